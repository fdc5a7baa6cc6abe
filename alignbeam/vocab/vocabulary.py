"""A role without its weights: tokenizer, logit columns, ends, opening, and the bytes of each id."""

from __future__ import annotations

import operator
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
            The tokenizer is a slow one, or does not fit the head; an end id lies beyond the head.
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
        made = cls(tokenizer, columns, ends, opening, name)
        made._check_holds(ids)
        if beyond := [i for i in ends if not 0 <= i < columns]:
            raise TokenizerError(f"the {name}'s end ids {beyond} lie beyond its head ({columns})")
        return made

    def _check_holds(self, ids: int) -> None:
        if ids > self.width:
            raise TokenizerError(
                f"the {self.name}'s tokenizer has {ids} ids, but its head only {self.width} "
                "columns; this tokenizer belongs to another model"
            )

    @cached_property
    def token_bytes(self) -> list[bytes | None]:
        """What each id adds to a text; see the function of this name.

        Raises
        ------
        TokenizerError
            The tokenizer cannot be read exactly, or does not fit the head.
        """
        table = token_bytes(self.tokenizer)
        self._check_holds(len(table))
        return table

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
