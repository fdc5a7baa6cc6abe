"""Text to ids as in the middle of a text: no leading space, no control token, ever."""

from __future__ import annotations

import json
import re
import weakref
from collections.abc import Sequence
from typing import Any

from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from alignbeam.errors import TokenizerError
from alignbeam.vocab.tokenizer_file import added_tokens, backend_of, component_state, describe

# Added tokens of this shape steer a model even where their file forgets to call them special
# (deepseek-coder's <|EOT|>, phi-3's </s>), so no plain text may turn into one.
_MARKUP = re.compile(r"[<\[].*[>\]]", re.DOTALL)


class PlainEncoder:
    """Encode plain text in mid-text context with a tokenizer's own model.

    The clone shares the model with the original (no copy of the vocabulary) and leaves the
    original untouched. It differs from it in four things: no dummy leading space, no special
    tokens parsed or added, no added token parsed that looks like markup (``<...>``, ``[...]``),
    no white space swallowed around added tokens.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    exact : bool
        Leave out every normaliser that changes text (NFC, lower-casing); only the
        replacement of blanks by ``▁`` stays. For text that must come back byte for byte.

    Raises
    ------
    TokenizerError
        If the tokenizer is not backed by the ``tokenizers`` library, encodes at random (BPE
        dropout), or its added tokens cannot be given the same ids again.

    Source
    ------
    algorithm.md section 2 (mid-text context) and 4 (user text never becomes a control token).
    """

    def __init__(self, tokenizer: Any, *, exact: bool = False) -> None:
        backend = backend_of(tokenizer)
        if getattr(backend.model, "dropout", None):
            raise TokenizerError(
                f"tokenizer {describe(tokenizer)}: BPE dropout is on, so its ids are random; "
                "set model.dropout to null in its tokenizer.json"
            )
        clone = Tokenizer(backend.model)
        declared = added_tokens(backend)
        for token in declared.values():
            _add(clone, token)
        if {i: t.content for i, t in added_tokens(clone).items()} != {
            i: t.content for i, t in declared.items()
        }:
            raise TokenizerError(
                f"tokenizer {describe(tokenizer)}: its added tokens do not follow its vocabulary; "
                "check added_tokens in its tokenizer.json"
            )
        clone.normalizer = _rebuilt(normalizers, _normalizer(backend, exact))
        clone.pre_tokenizer = _rebuilt(
            pre_tokenizers, _pre_tokenizer(component_state(backend.pre_tokenizer))
        )
        clone.encode_special_tokens = True
        self._clone = clone
        self._label = describe(tokenizer)
        self._never = {i: t.content for i, t in declared.items() if _is_markup(t)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text; see `encode_batch`."""
        return self.encode_batch([text])[0]

    def normalize(self, text: str) -> str:
        """Return `text` as the tokenizer's normaliser leaves it in mid-text."""
        if self._clone.normalizer is None:
            return text
        return str(self._clone.normalizer.normalize_str(text))

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, encoded alone.

        Raises
        ------
        TokenizerError
            If a text holds a lone surrogate (it is no text), or if a control token cannot be
            kept apart from the text that spells it.
        """
        try:
            encodings = self._clone.encode_batch_fast(list(texts), add_special_tokens=False)
        except (UnicodeEncodeError, TypeError) as error:
            raise TokenizerError(
                f"tokenizer {self._label}: the text is no valid Unicode; remove its lone surrogates"
            ) from error
        rows = [encoding.ids for encoding in encodings]
        return [
            ids if self._never.keys().isdisjoint(ids) else self._broken_up(text, ids)
            for text, ids in zip(texts, rows, strict=True)
        ]

    def _broken_up(self, text: str, ids: list[int]) -> list[int]:
        """Encode `text` with a break inside each control token that the model itself spelled.

        Unigram models match control pieces like any other, and so does ``ignore_merges``.
        """
        spelled = {self._never[i] for i in ids if i in self._never}
        cut = re.compile("|".join(f"(?<={re.escape(s[0])})(?={re.escape(s[1:])})" for s in spelled))
        pieces = [piece for piece in cut.split(text) if piece]
        encodings = self._clone.encode_batch_fast(pieces, add_special_tokens=False)
        broken = [i for encoding in encodings for i in encoding.ids]
        if not self._never.keys().isdisjoint(broken):
            raise TokenizerError(
                f"tokenizer {self._label}: plain text would become a control token "
                f"({sorted(spelled)}); remove that text from the prompt"
            )
        return broken


_encoders: weakref.WeakKeyDictionary[Any, tuple[Tokenizer, int, PlainEncoder]] = (
    weakref.WeakKeyDictionary()
)


def plain_encode(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of one text; see `plain_encode_batch`."""
    return plain_encode_batch(tokenizer, [text])[0]


def plain_encode_batch(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    """Return the ids of each text, encoded alone, as plain text in the middle of a text.

    The tokenizer's own normaliser applies; nothing in a text is parsed as a control token, and
    neither a dummy leading space nor a BOS is added. The encoder is kept per tokenizer object.

    Raises
    ------
    TokenizerError
        See `PlainEncoder`.

    Source
    ------
    algorithm.md sections 2 and 4.
    """
    backend = backend_of(tokenizer)
    size = backend.get_vocab_size(with_added_tokens=True)
    known = _encoders.get(tokenizer)
    if known is None or known[0] is not backend or known[1] != size:
        known = (backend, size, PlainEncoder(tokenizer))
        _encoders[tokenizer] = known
    return known[2].encode_batch(texts)


def _is_markup(token: AddedToken) -> bool:
    return bool(token.special or _MARKUP.fullmatch(token.content))


def _add(clone: Tokenizer, token: AddedToken) -> None:
    if _is_markup(token):
        clone.add_special_tokens([AddedToken(token.content, special=True, normalized=False)])
    else:
        plain = AddedToken(
            token.content, single_word=token.single_word, normalized=token.normalized
        )
        clone.add_tokens([plain])


def _normalizer(backend: Tokenizer, exact: bool) -> dict[str, Any] | None:
    def edit(state: dict[str, Any] | None) -> dict[str, Any] | None:
        if state is None or state["type"] == "Prepend":
            return None
        if state["type"] == "Sequence":
            kept = [child for child in map(edit, state["normalizers"]) if child is not None]
            return {**state, "normalizers": kept} if kept else None
        if exact and not (state["type"] == "Replace" and state["pattern"] == {"String": " "}):
            return None
        return state

    return edit(component_state(backend.normalizer))


def _pre_tokenizer(state: dict[str, Any] | None) -> dict[str, Any] | None:
    if state is None:
        return None
    if state["type"] == "Sequence":
        return {**state, "pretokenizers": [_pre_tokenizer(c) for c in state["pretokenizers"]]}
    if state["type"] == "Metaspace":
        return {**state, "prepend_scheme": "never"}
    if state["type"] == "ByteLevel":
        return {**state, "add_prefix_space": False}
    return state


def _rebuilt(module: Any, state: dict[str, Any] | None) -> Any:
    """Turn an edited description back into a component: any component can take any state."""
    if state is None:
        return None
    component = module.Sequence([])
    component.__setstate__(json.dumps(state).encode())
    return component
