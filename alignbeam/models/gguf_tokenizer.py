"""The tokenizer that a GGUF file describes, as its model was trained with it.

transformers reads the vocabulary but splits texts of most families as GPT-2 does, gives special
tokens with letters beyond the byte alphabet new ids, and takes filled-up ids for words. Byte-level
vocabularies are therefore put together here, from the file; of the others its own are mended.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from alignbeam.errors import ModelLoadError
from alignbeam.models.gguf_header import Header

#: Kinds of tokens.
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_NAMED: Final = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split",
        "pattern": {"Regex": pattern},
        "behavior": "Isolated",
        "invert": False,
    }


def _bytes(own_words: bool = False) -> dict[str, Any]:
    return {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": own_words,
    }


def _digits(each: bool) -> dict[str, Any]:
    return {"type": "Digits", "individual_digits": each}


_WORDS: Final = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_REST: Final = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER: Final = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]"
_LOWER: Final = r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED: Final = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s|"
)
_CJK: Final = "[一-龥ࠀ-一가-퟿]+"
_CONTRACTIONS: Final = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"

_GPT2: Final = [_bytes(own_words=True)]
_LLAMA3: Final = [_split(rf"{_WORDS}\p{{N}}{{1,3}}{_REST}"), _bytes()]
_QWEN2: Final = [_split(rf"{_WORDS}\p{{N}}{_REST}"), _bytes()]
_EACH_DIGIT: Final = [_digits(True), _bytes(own_words=True)]
_TEKKEN: Final = [
    _split((_CASED % ("", "")) + r"\p{N}" + _REST.replace(r"[\r\n]*", r"[\r\n/]*")),
    _bytes(),
]
_GPT4O: Final = [
    _split(
        (_CASED % (_CONTRACTIONS, _CONTRACTIONS))
        + r"\p{N}{1,3}"
        + _REST.replace(r"[\r\n]*", r"[\r\n/]*", 1)
    ),
    _bytes(),
]
_DEEPSEEK_CODER: Final = [
    *map(_split, ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK)),
    _digits(True),
    _bytes(),
]
_FALCON: Final = [
    {"type": "Punctuation", "behavior": "Contiguous"},
    _bytes(own_words=True),
    _digits(False),
    _split("[0-9][0-9][0-9]"),
]
#: How a text is split, by what the file calls it (``tokenizer.ggml.pre``).
SPLITS: Final[dict[str, list[dict[str, Any]]]] = {
    **dict.fromkeys(("default", "gpt-2", "mpt", "olmo", "phi-2", "jais", "dolly"), _GPT2),
    **dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "dbrx", "smaug-bpe"), _LLAMA3),
    **dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), _QWEN2),
    **dict.fromkeys(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone"), _EACH_DIGIT
    ),
    "tekken": _TEKKEN,
    **dict.fromkeys(("gpt-4o", "llama4"), _GPT4O),
    "deepseek-coder": _DEEPSEEK_CODER,
    "falcon": _FALCON,
}
#: Those whose words are looked up whole before merges are tried.
_WHOLE_WORDS: Final = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken", "smaug-bpe")
#: Those that bring a text into Unicode's composed form first.
_COMPOSED: Final = ("qwen2", "deepseek-r1-qwen", "megrez", "mpt")


def read_tokenizer(path: Path, header: Header) -> Any:
    """Return the tokenizer of a GGUF file.

    Raises
    ------
    ModelLoadError
        There is none, it is of a kind that cannot be read, or a token has not the id that the
        file gives it.
    """
    metadata = header.metadata
    kind = metadata.get("tokenizer.ggml.model")
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelLoadError(f"{path} holds no tokenizer; take a file that was converted with one")
    backend = _byte_level(path, metadata) if kind == "gpt2" else _from_library(path, kind, metadata)
    for token_id, token in _added(metadata):
        # Runs of blanks stand in Gemma's files as they are, in its vocabulary as "▁▁".
        if token_id not in (backend.token_to_id(token), backend.token_to_id("▁" * len(token))):
            raise ModelLoadError(
                f"{path}: token {token!r:.60} has id {backend.token_to_id(token)} where the file "
                f"says {token_id}; its tokenizer cannot be read exactly: take the model's own "
                "checkpoint in place of the GGUF file"
            )
    named = {}
    for name, key in _NAMED.items():
        named_id = metadata.get(f"tokenizer.ggml.{key}_token_id")
        if named_id is not None and named_id < len(tokens):
            named[f"{name}_token"] = tokens[named_id]
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        chat_template=metadata.get("tokenizer.chat_template"),
        clean_up_tokenization_spaces=False,
        **named,
    )


def _added(metadata: dict[str, Any]) -> list[tuple[int, str]]:
    kinds = metadata.get("tokenizer.ggml.token_type", ())
    tokens = metadata["tokenizer.ggml.tokens"]
    wanted = (_CONTROL, _USER_DEFINED)
    return [(i, tokens[i]) for i, kind in enumerate(kinds[: len(tokens)]) if kind in wanted]


def _byte_level(path: Path, metadata: dict[str, Any]) -> Tokenizer:
    tokens, pre = metadata["tokenizer.ggml.tokens"], metadata.get("tokenizer.ggml.pre", "default")
    kinds = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    vocab = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind != _UNUSED
    }
    merges = [tuple(merge.split(" ")) for merge in metadata.get("tokenizer.ggml.merges", ())]
    backend = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [
            AddedToken(tokens[i], normalized=False, special=kinds[i] == _CONTROL)
            for i, _ in _added(metadata)
        ]
    )
    if pre not in SPLITS:
        warnings.warn(
            f"{path}: texts of this model are split by rule {pre!r}, which is not known here; "
            "its words are split as GPT-2's are, and its answers may suffer: where they do, take "
            "the model's own checkpoint in place of the GGUF file",
            RuntimeWarning,
            stacklevel=2,
        )
    state = json.loads(backend.to_str())
    state["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": SPLITS.get(pre, _GPT2)}
    state["normalizer"] = {"type": "NFC"} if pre in _COMPOSED else None
    state["model"]["ignore_merges"] = pre in _WHOLE_WORDS
    return Tokenizer.from_str(json.dumps(state))


def _from_library(path: Path, kind: str | None, metadata: dict[str, Any]) -> Tokenizer:
    try:
        read = PreTrainedTokenizerFast.from_pretrained(str(path.parent), gguf_file=path.name)
    except Exception as error:  # transformers raises whatever comes up
        raise ModelLoadError(
            f"the tokenizer of {path} (of kind {kind!r}) cannot be read ({error}); take the "
            "model's own checkpoint in place of the GGUF file"
        ) from error
    state = json.loads(read.backend_tokenizer.to_str())
    if kind == "llama" and not metadata["general.architecture"].startswith("gemma"):
        # As SentencePiece does it: each text opens with a blank, and runs of blanks stay runs.
        blanks = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
        dummy = {"type": "Prepend", "prepend": "▁"}
        opens = metadata.get("tokenizer.ggml.add_space_prefix", True)
        steps = [dummy, blanks] if opens else [blanks]
        state["normalizer"] = {"type": "Sequence", "normalizers": steps}
        state["pre_tokenizer"] = None
    kinds = metadata.get("tokenizer.ggml.token_type", ())
    vocab = state["model"].get("vocab")
    if isinstance(vocab, dict):
        tokens = metadata["tokenizer.ggml.tokens"]
        for token, token_kind in zip(tokens, kinds, strict=False):
            if token_kind == _UNUSED and token not in {t["content"] for t in state["added_tokens"]}:
                vocab.pop(token, None)
    return Tokenizer.from_str(json.dumps(state))
