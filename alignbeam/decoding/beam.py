"""A beam: what one continuation holds while it grows, and how it becomes a candidate."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Self

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.sampling import beam_generator
from alignbeam.errors import ConfigError
from alignbeam.models.conversation import Message, Prompt, as_messages
from alignbeam.models.role import Role
from alignbeam.result import Candidate, FinishReason, StepTrace
from alignbeam.vocab.retokenize import split_utf8


@dataclass(slots=True, eq=False)
class Request:
    """One checked request, rendered for both models.

    Attributes
    ----------
    anchor_ids : list of int
        Empty where nothing is mixed.
    max_new_tokens : int
        As configured, or what the target's window leaves.
    prefix : list of int
        Target tokens that the answer begins with, nobody's choice; then there is one beam.
    error : Exception or None
        Set when this request cannot go on; the others of its batch do.
    """

    messages: list[Message]
    config: BeamConfig
    target_ids: list[int]
    anchor_ids: list[int]
    max_new_tokens: int
    prefix: list[int] = field(default_factory=list)
    beams: list[Beam] = field(default_factory=list)
    trace: list[StepTrace] = field(default_factory=list)
    error: Exception | None = None

    @classmethod
    def of(cls, target: Role, anchor: Role | None, prompt: Prompt, config: BeamConfig) -> Self:
        """Render a prompt for the models and check that it fits their windows.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        """
        messages = as_messages(prompt)
        if config.beams > target.width:
            raise ConfigError(
                f"beams must be in 1..{target.width} (the vocabulary), got {config.beams}"
            )
        target.check_text(messages)
        target_ids = target.render(messages)
        target.check_room(len(target_ids), max(1, config.mix_steps))
        anchor_ids: list[int] = []
        if anchor is not None and config.mix_steps > 0:
            anchor.check_text(messages)
            anchor_ids = anchor.render(messages)
            anchor.check_room(len(anchor_ids), config.mix_steps)
        room = target.window - len(target_ids)
        return cls(messages, config, target_ids, anchor_ids, min(config.max_new_tokens, room))

    def drawn_again(self, seed: int) -> Self:
        """Return the same request, not begun, with another seed; its rendering is shared."""
        config = self.config.replace(seed=seed)
        return dataclasses.replace(self, config=config, prefix=[], beams=[], trace=[])

    @property
    def decoded(self) -> bool:
        """Whether no beam grows any longer."""
        return bool(self.beams) and not any(b.live for b in self.beams)

    def fail(self, error: Exception) -> None:
        """End this request with an error (the first one counts)."""
        if self.error is None:
            self.error = error


@dataclass(slots=True, eq=False)
class Beam:
    """One growing continuation of a request.

    Attributes
    ----------
    token_ids : list of int
        Target tokens, end token included.
    raw : bytes
        Bytes of these tokens, the target's opening included.
    text_bytes : bytes
        ``raw`` without the opening; where a stop string ended the beam, with it.
    logprob : float
        Sum over the mixed steps, nats.
    """

    request: Request
    index: int
    opening: bytes
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    raw: bytes = b""
    logprob: float = 0.0
    finish_reason: FinishReason | None = None
    _ends: list[int] = field(default_factory=list)
    _stop_at: int | None = None

    @classmethod
    def of(cls, request: Request, index: int, opening: bytes) -> Beam:
        """Start beam ``index`` of a request."""
        return cls(request, index, opening, beam_generator(request.config.seed, index))

    @property
    def live(self) -> bool:
        """Whether the beam still grows."""
        return self.finish_reason is None and self.request.error is None

    @property
    def mixing(self) -> bool:
        """Whether its next token is to be mixed."""
        return self.live and len(self.token_ids) < self.request.config.mix_steps

    @property
    def text_bytes(self) -> bytes:
        """The answer's bytes so far."""
        return self.raw.removeprefix(self.opening)

    def append(self, token_id: int, data: bytes, *, ends: bool) -> None:
        """Take one token; finish the beam where the token, a stop string or the length ends it."""
        self.token_ids.append(token_id)
        before = len(self.text_bytes)
        if not ends:
            self.raw += data
        self._ends.append(len(self.text_bytes))
        if ends:
            self.finish_reason = "stop"
            return
        if self._find_stop(before):
            self.finish_reason = "stop_string"
        elif len(self.token_ids) >= self.request.max_new_tokens:
            self.finish_reason = "length"

    def _find_stop(self, before: int) -> bool:
        """Look for the first stop string that the newest token completed."""
        text = self.text_bytes
        found = []
        for stop in self.request.config.stop:
            needle = stop.encode()
            place = text.find(needle, max(0, before - len(needle) + 1))
            if place >= 0:
                found.append(place)
        if not found:
            return False
        self._stop_at = min(found)
        return True

    def candidate(self) -> Candidate:
        """Return the beam as a record, not yet judged.

        Of a beam that still grows, an unfinished character and what may yet become a stop string
        are not to be shown.
        """
        whole = self.text_bytes
        shown = whole[: self._stop_at]
        if self.live:
            longest = max((len(s.encode()) for s in self.request.config.stop), default=1)
            shown = split_utf8(whole[: max(0, len(whole) - longest + 1)])[0]
        return Candidate(
            text=shown.decode("utf-8", errors="replace"),
            token_ids=tuple(self.token_ids),
            logprob=self.logprob,
            finish_reason=self.finish_reason or "length",
            beyond=whole[len(shown) :].decode("utf-8", errors="replace"),
            beyond_tokens=sum(end > len(shown) for end in self._ends),
        )
