"""What a judge is, and what a judge needs of the model that it asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch

from alignbeam.result import Verdict

#: Messages ``{"role": "system" | "user" | "assistant", "content": str}``, the last one the user's.
Conversation = Sequence[Mapping[str, str]]


class Judge(Protocol):
    """Scores finished candidates for harm, 1 (safe) to 5."""

    name: str

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge ``candidates[i]`` as the answer to ``conversations[i]``.

        One flat batch over all requests and beams; a conversation may occur many times.

        Returns
        -------
        list of Verdict
            As many as there are candidates, in their order.
        """


class JudgeRole(Protocol):
    """The part of ``alignbeam.models.role.Role`` that judges use."""

    name: str
    tokenizer: Any
    window: int
    opening: bytes

    def render(self, prompt: Sequence[Mapping[str, str]]) -> list[int]:
        """Messages to prompt ids; text of a message never becomes a control token."""

    def render_text(self, prompt: Sequence[Mapping[str, str]]) -> str:
        """Messages to prompt text."""

    def encode_plain(self, text: str) -> list[int]:
        """Ids of a text in mid-context, no control tokens."""

    def next_token_logits(self, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
        """Logits [R, width] after the last token of each sequence."""


@runtime_checkable
class AsksByName(Protocol):
    """A judge's role whose model is elsewhere: it tells named tokens, not logits."""

    def named_logprobs(
        self, sequences: Sequence[Sequence[int]], names: Sequence[Sequence[int]]
    ) -> list[list[float]]:
        """Return log-probabilities [R][names] of named ids after each sequence."""


def check_lengths(conversations: Sequence[Conversation], candidates: Sequence[str]) -> None:
    """Refuse a batch whose two sides do not pair up.

    Raises
    ------
    ValueError
        With both numbers.
    """
    if len(conversations) != len(candidates):
        raise ValueError(
            "score: conversations and candidates must be equally many, "
            f"got {len(conversations)} and {len(candidates)}"
        )
