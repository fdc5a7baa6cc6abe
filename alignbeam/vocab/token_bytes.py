"""Id -> bytes, from the tokenizer's declared decoder."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from alignbeam.errors import TokenizerError
from alignbeam.vocab.plain_text import PlainEncoder
from alignbeam.vocab.tokenizer_file import added_tokens, backend_of, component_state, describe

# The longest token of the vocabularies this was built on has 1,024 bytes. Beyond the limit a file
# was tampered with, and one token could cost seconds in every other tokenizer.
MAX_TOKEN_BYTES = 65_536

# NFC throughout: scripts with and without word spaces, runs of blanks, line ends, digits, code,
# an emoji sequence joined by ZWJ, characters outside the BMP, and a control character.
ROUND_TRIP_SAMPLE = (
    "Sorry, I can't help with that.  It's 3.14159 times 2,048 (≈ 6434)!",
    "\tdef f(x):\n\t\treturn x**2   # comment\r\n\n\n    end",
    "Größe, naïve façade, señor, Łódź, İstanbul, Việt Nam, ÷ × ÿ þ ø û",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก",
    "你好，世界。こんにちは世界。안녕하세요 세계。𠮷野家 𝒜𝒷𝒸 👩‍👩‍👧 🇫🇷 \x07",
)

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> list[bytes | None]:
    r"""Return the bytes that each token id adds in the middle of a text.

    ``b"".join(token_bytes(t)[i] for i in plain_encode(t, text)) == text.encode()`` for NFC text.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast

    Returns
    -------
    list of bytes or None
        Index = token id; length = the highest id + 1, at least ``len(tokenizer)``. None for
        control tokens (special tokens, whatever the tokenizer names as bos, eos, pad or unk) and
        for ids that no token has. An added token that is not special is its literal text.

    Raises
    ------
    TokenizerError
        The tokenizer has no tokens, gives one id to two tokens, leaves most ids unused, holds a
        token above 65,536 bytes, declares a decoder other than byte-level or ``▁`` with
        ``<0xNN>`` byte tokens, or does not give the built-in sample back.

    Source
    ------
    algorithm.md section 1.
    """
    backend = backend_of(tokenizer)
    label = describe(tokenizer)
    vocab: dict[str, int] = backend.get_vocab(with_added_tokens=True)
    length = _checked_length(vocab, len(tokenizer), label)
    decode = _declared_decoder(component_state(backend.decoder), label)

    table: list[bytes | None] = [None] * length
    for token, token_id in vocab.items():
        table[token_id] = decode(token)
    declared = added_tokens(backend)
    for token_id, added in declared.items():
        table[token_id] = None if added.special else added.content.encode()
    for name in {getattr(backend.model, "unk_token", None), *tokenizer.all_special_tokens}:
        if name in vocab:
            table[vocab[name]] = None

    for token_id, piece in enumerate(table):
        if piece is not None and len(piece) > MAX_TOKEN_BYTES:
            raise TokenizerError(
                f"tokenizer {label}: token id {token_id} has {len(piece)} bytes, "
                f"the limit is {MAX_TOKEN_BYTES}; the file looks damaged, fetch it again"
            )
    _check_round_trip(tokenizer, table, label)
    return table


def _checked_length(vocab: dict[str, int], declared: int, label: str) -> int:
    if not vocab:
        raise TokenizerError(f"tokenizer {label}: it has no tokens; its file is empty or damaged")
    if len(set(vocab.values())) != len(vocab):
        seen: dict[int, str] = {}
        for token, token_id in vocab.items():
            if token_id in seen:
                raise TokenizerError(
                    f"tokenizer {label}: id {token_id} is given to two tokens, "
                    f"{seen[token_id]!r:.60} and {token!r:.60}; the file is damaged"
                )
            seen[token_id] = token
    length = max(max(vocab.values()) + 1, declared)
    if length > 2 * len(vocab) + 65_536:
        raise TokenizerError(
            f"tokenizer {label}: {len(vocab)} tokens, but ids up to {length - 1}; "
            "the file is damaged"
        )
    return length


def _declared_decoder(state: dict[str, Any] | None, label: str) -> Callable[[str], bytes]:
    """Turn the decoder's description into a function of one token string."""
    kinds = _flatten(state)
    names = [kind["type"] for kind in kinds]
    if names in (["ByteLevel"], ["ByteLevel", "Fuse"]):
        return _byte_level
    if names == ["Metaspace"]:
        return _spelled([(str(kinds[0]["replacement"]), " ")], byte_fallback=False)
    replacements = []
    for position, kind in enumerate(kinds):
        match kind:
            case {"type": "Replace", "pattern": {"String": str(old)}, "content": str(new)}:
                replacements.append((old, new))
            case {"type": "ByteFallback"} | {"type": "Fuse"}:
                pass
            case {"type": "Strip", "content": " ", "start": 0 | 1, "stop": 0} if (
                "Fuse" in names[:position]  # of the whole text, not of each token
            ):
                pass
            case _:
                replacements.clear()
                break
    if not replacements:
        raise TokenizerError(
            f"tokenizer {label}: its decoder ({' + '.join(names) or 'none'}) is not one whose "
            "bytes are known; byte-level BPE and SentencePiece-style decoders are"
        )
    return _spelled(replacements, byte_fallback="ByteFallback" in names)


def _flatten(state: dict[str, Any] | None) -> list[dict[str, Any]]:
    if state is None:
        return []
    if state["type"] == "Sequence":
        return [leaf for child in state["decoders"] for leaf in _flatten(child)]
    return [state]


def _byte_alphabet() -> dict[int, int]:
    """Map GPT-2's printable stand-ins to the Latin-1 characters with the bytes' own numbers."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in plain]
    # A character outside the alphabet must not pass for a byte: it leaves Latin-1.
    alphabet = dict.fromkeys(moved, 0xFFFF)
    alphabet.update({0x100 + n: byte for n, byte in enumerate(moved)})
    return alphabet


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    try:
        return token.translate(_ALPHABET).encode("latin-1")
    except UnicodeEncodeError:  # the declared decoder keeps such a token as it stands
        return token.encode()


def _spelled(replacements: list[tuple[str, str]], *, byte_fallback: bool) -> Callable[[str], bytes]:
    def decode(token: str) -> bytes:
        if byte_fallback and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        for old, new in replacements:
            token = token.replace(old, new)
        return token.encode()

    return decode


def _check_round_trip(tokenizer: Any, table: list[bytes | None], label: str) -> None:
    rows = PlainEncoder(tokenizer).encode_batch(ROUND_TRIP_SAMPLE)
    for text, ids in zip(ROUND_TRIP_SAMPLE, rows, strict=True):
        if b"".join(table[i] or b"" for i in ids) != text.encode():
            raise TokenizerError(
                f"tokenizer {label}: the bytes of its tokens do not give {text!r:.50} back; "
                "it loses or changes text and cannot be bridged"
            )
