"""A role without its weights: tokenizer, logit columns, ends, opening, and the bytes of each id."""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from alignbeam.errors import TokenizerError
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.token_bytes import token_bytes
from alignbeam.vocab.tokenizer_file import added_tokens, backend_of, tokenizer_fingerprint

# Sixty times the widest head known; a wider one is a typing error that would eat the memory.
_MAX_WIDTH = 2**24


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """What a role reads and writes with. Made, and checked, by `of`.

    Its bytes are read once, on first use: a tokenizer that is changed later needs a new one.

    Parameters
    ----------
    tokenizer : PreTrainedTokenizerFast
    width : int
        Logit columns of the head, padding included.
    end_ids : tuple of int
        Distinct ids that end an answer, the one to aim at first; empty where nothing names one.
    opening : bytes
        What the template puts between the generation prompt and the answer's first letter.
    name : str
        Whose it is; stands in errors.
    """

    tokenizer: Any
    width: int
    end_ids: tuple[int, ...]
    opening: bytes
    name: str

    @classmethod
    def of(
        cls,
        tokenizer: Any,
        width: int | None = None,
        end_ids: Iterable[int] | None = None,
        opening: bytes = b"",
        name: str = "model",
    ) -> Self:
        """Check and make one.

        Parameters
        ----------
        width : int, optional
            Default: highest token id + 1.
        end_ids : iterable of int, optional
            Default: `end_token_ids` of the tokenizer, which does not know the generation config.

        Raises
        ------
        TokenizerError
            The tokenizer is a slow one, or does not fit the head: a token of text, or an end id
            that is none of its control tokens, lies beyond it.
        """
        # Not len(tokenizer): an added token may lie far above the number of tokens. Of the others
        # only `token_bytes` can tell, and a cached bridge must load in milliseconds.
        ids = max([1, len(tokenizer), *(i + 1 for i in added_tokens(backend_of(tokenizer)))])
        try:
            columns = ids if width is None else operator.index(width)
            given = end_token_ids(tokenizer) if end_ids is None else map(operator.index, end_ids)
            ends = tuple(dict.fromkeys(given))
        except TypeError as error:
            raise TokenizerError(
                f"the {name}'s width and end ids must be integers, got {width!r} and {end_ids!r}"
            ) from error
        if not 1 <= columns <= _MAX_WIDTH:
            raise TokenizerError(f"the {name}'s width must be in 1..{_MAX_WIDTH}, got {columns}")
        absent = _absent(tokenizer, columns, name) if ids > columns else {}
        ends = tuple(i for i in ends if i not in absent)
        if beyond := [i for i in ends if not 0 <= i < columns]:
            raise TokenizerError(f"the {name}'s end ids {beyond} lie beyond its head ({columns})")
        return cls(tokenizer, columns, ends, opening, name)

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        """What each id adds to a text; see the function of this name.

        Raises
        ------
        TokenizerError
            The tokenizer cannot be read exactly, or does not fit the head.
        """
        table = token_bytes(self.tokenizer)
        _check_holds(table, self.width, self.name)
        return table[: self.width]

    @cached_property
    def text_bytes(self) -> list[bytes | None]:
        """`token_bytes` per logit column, None for ends and padding too: what may spell a text."""
        table = self.token_bytes + [None] * (self.width - len(self.token_bytes))
        for token_id in self.end_ids:
            table[token_id] = None
        return table

    @property
    def fingerprint(self) -> str:
        """See `tokenizer_fingerprint`."""
        return tokenizer_fingerprint(self.tokenizer)

    def bytes_of(self, token_id: int) -> bytes:
        """Bytes of one id; empty for control tokens and padded columns."""
        if token_id >= len(self.token_bytes):
            return b""
        return self.token_bytes[token_id] or b""


def _check_holds(table: list[bytes | None], width: int, name: str) -> None:
    if any(piece is not None for piece in table[width:]):
        raise TokenizerError(
            f"the {name}'s tokenizer has {len(table)} ids, but its head only {width} columns; this "
            "tokenizer belongs to another model"
        )


def _absent(tokenizer: Any, width: int, name: str) -> dict[int, str]:
    """Return the control tokens beyond the head by id, with a warning; refuse any other token.

    Fine-tuning puts a padding token there that the model never sees, nor can produce.
    """
    _check_holds(token_bytes(tokenizer), width, name)
    known: dict[str, int] = backend_of(tokenizer).get_vocab(with_added_tokens=True)
    beyond = {i: token for token, i in known.items() if i >= width}
    warnings.warn(
        f"the {name}'s head has {width} columns and none for {', '.join(beyond.values())}; they "
        "count as absent",
        RuntimeWarning,
        stacklevel=3,
    )
    return beyond
