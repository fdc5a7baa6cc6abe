"""A beam: what one continuation holds while it grows, and how it becomes a candidate."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import torch

from alignbeam.config import BeamConfig
from alignbeam.decoding.check import check_roles
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.gate import Gate
from alignbeam.decoding.remainders import Remainders
from alignbeam.decoding.sampling import beam_generator
from alignbeam.engines.roles import AnyRole
from alignbeam.models.conversation import Message, Prompt, as_messages
from alignbeam.result import Candidate, FinishReason, StepTrace
from alignbeam.vocab.retokenize import split_utf8

if TYPE_CHECKING:
    from alignbeam.decoding.next_tokens import NextTokens


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
    salt : str
        Keeps what engines cache of it apart from other tenants'; see ``engines.scope``.
    looks : int
        How often the judge has looked at its unfinished beams.
    clock : Clock or None
        Its own, where it decodes apart from others.
    gate : Gate or None
        Whether it is steered, where the operator has gates.
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
    salt: str = ""
    looks: int = 0
    clock: Clock | None = None
    gate: Gate | None = None
    error: Exception | None = None

    @classmethod
    def of(
        cls, target: AnyRole, anchor: AnyRole | None, prompt: Prompt, config: BeamConfig
    ) -> Self:
        """Render a prompt for the models and check that it fits their windows.

        Raises
        ------
        PromptError, ConfigError
            What is wrong with the request.
        """
        anchor = anchor if config.mix_steps > 0 else None
        check_roles(target, anchor, config)
        messages = as_messages(prompt)
        target.check_text(messages)
        target_ids = target.render(messages)
        target.check_room(len(target_ids), max(1, config.mix_steps))
        anchor_ids: list[int] = []
        if anchor is not None:
            anchor.check_text(messages)
            anchor_ids = anchor.render(messages)
            anchor.check_room(len(anchor_ids), config.mix_steps)
        room = target.window - len(target_ids)
        return cls(messages, config, target_ids, anchor_ids, min(config.max_new_tokens, room))

    def drawn_again(self, seed: int) -> Self:
        """Return the same request, not begun, with another seed; its rendering is shared."""
        config = self.config.replace(seed=seed)
        gate = None if self.gate is None else Gate(self.gate.config)
        return dataclasses.replace(self, config=config, gate=gate, prefix=[], beams=[], trace=[])

    def awaits(self, gate: str) -> bool:
        """Whether this gate is still to be read, and there is steering to spare."""
        return self.gate is not None and self.config.mix_steps > 0 and self.gate.wants(gate)

    def weigh(self, gate: str, value: float | None) -> None:
        """Tell a gate its number (None: it could not be had), and let go where that suffices."""
        if self.gate is not None and self.awaits(gate):
            self.gate.read(gate, value)
            if self.gate.open:
                self.config = self.gate.relaxed(self.config)

    @property
    def contested(self) -> list[Beam]:
        """The beams that may still become the answer."""
        return [b for b in self.beams if b.finish_reason != "dropped"]

    @property
    def next_look(self) -> int:
        """Tokens at which the judge is to look at the beams next."""
        return self.config.mix_steps + (self.looks + 1) * self.config.early_every

    def looks_at(self, tokens: int) -> bool:
        """Whether what the beams have become is to be judged, at so many tokens of each."""
        beams = self.contested
        return (
            self.error is None
            and len(beams) > 1
            and any(b.live for b in beams)
            and all(len(b.token_ids) >= tokens or not b.live for b in beams)
        )

    def keep(self, indices: Collection[int]) -> None:
        """Give up the beams beside these; where none is left, all of them end as they are."""
        for beam in self.contested:
            if not indices:
                beam.finish_reason = beam.finish_reason or "length"
            elif beam.index not in indices:
                beam.finish_reason = "dropped"

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
        ``raw`` without the opening; a stop string, and what was decoded after it, included.
    logprob : float
        Sum over the mixed steps, nats.
    steered : bool
        Whether a steer may choose for it; False for what the target says by itself.
    departures, departure : int, float
        See ``Candidate``.
    remainders : Remainders or None
        Where the anchor stands after the newest token; None: after a token of its own.
    """

    request: Request
    index: int
    opening: bytes
    generator: torch.Generator
    token_ids: list[int] = field(default_factory=list)
    raw: bytes = b""
    logprob: float = 0.0
    steered: bool = True
    departures: int = 0
    departure: float = 0.0
    remainders: Remainders | None = None
    finish_reason: FinishReason | None = None
    _ends: list[int] = field(default_factory=list)
    _stop_at: int | None = None

    @classmethod
    def of(cls, request: Request, index: int, opening: bytes) -> Beam:
        """Start beam ``index`` of a request."""
        return cls(request, index, opening, beam_generator(request.config.seed, index))

    @classmethod
    def unsteered(cls, request: Request, opening: bytes) -> Beam:
        """Start the beam of what the target says by itself, beside those that are open.

        It draws as a single beam of the target would.
        """
        own = cls.of(request, 0, opening)
        own.index, own.steered = len(request.beams), False
        return own

    @property
    def live(self) -> bool:
        """Whether the beam still grows."""
        return self.finish_reason is None and self.request.error is None

    @property
    def mixing(self) -> bool:
        """Whether its next token is to be mixed."""
        config = self.request.config
        return self.live and self.steered and len(self.token_ids) < config.mix_steps

    @property
    def text_bytes(self) -> bytes:
        """The answer's bytes so far."""
        return self.raw.removeprefix(self.opening)

    def append(self, token_id: int, data: bytes, *, ends: bool) -> None:
        """Take one token; finish the beam where the token, the length or a stop string ends it."""
        self.token_ids.append(token_id)
        before = len(self.text_bytes)
        if not ends:
            self.raw += data
        self._ends.append(len(self.text_bytes))
        if ends:
            self.finish_reason = "stop"
            return
        if self._find_stop(before) and self.request.config.stop_ends:
            self.finish_reason = "stop_string"
        elif len(self.token_ids) >= self.request.max_new_tokens:
            self.finish_reason = "length"

    def depart(self, token_ids: Sequence[int], best: int, target: NextTokens, row: int) -> None:
        """Count the tokens that are about to be taken in place of the target's ``best``."""
        if tuple(token_ids) == (best,):
            return
        self.departures += len(token_ids)
        self.departure += target.logprob(row, best) - target.logprob(row, token_ids[0])

    def _find_stop(self, before: int) -> bool:
        """Look for the first stop string in what the newest token brought, unless one was found."""
        if self._stop_at is not None:
            return False
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
        if self.live and self._stop_at is None:
            longest = max((len(s.encode()) for s in self.request.config.stop), default=1)
            shown = split_utf8(whole[: max(0, len(whole) - longest + 1)])[0]
        ended = self.finish_reason
        if self._stop_at is not None and ended != "dropped":
            ended = "stop_string"
        return Candidate(
            text=shown.decode("utf-8", errors="replace"),
            token_ids=tuple(self.token_ids),
            logprob=self.logprob,
            finish_reason=ended or "length",
            beyond=whole[len(shown) :].decode("utf-8", errors="replace"),
            beyond_tokens=sum(end > len(shown) for end in self._ends),
            unsteered=not self.steered,
            departures=self.departures,
            departure=self.departure,
        )
