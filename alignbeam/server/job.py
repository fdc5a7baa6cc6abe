"""A job: one request on its way through the scheduler, and the ticket its owner holds."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Final, Literal

from alignbeam.decoding.beam import Beam, Request
from alignbeam.result import NO_TIME, Candidate, Result, Timings, Verdict

#: Stands for the request itself among a job's beams, where the judge is asked about that.
REQUEST: Final = -1
#: When text may leave. ``full``: after the finished candidates were judged. ``chunked``: the judged
#: beginning first, then each further piece once it was judged with all that precedes it.
#: ``bare``: no judge is asked; for comparisons that an operator switched on, never for answers.
Release = Literal["full", "chunked", "bare"]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What a finished job hands over.

    Attributes
    ----------
    result : Result
    released : str
        What ``on_text`` was already given, a prefix of ``result.text`` unless the end was withheld.
    queued_ms, total_ms : float
        From submission to the first step, and to the answer.
    fail_open : bool
        No judge could speak, and the operator lets answers pass all the same.
    """

    result: Result
    released: str
    queued_ms: float
    total_ms: float
    fail_open: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """One request, what it may hold, and how far it is.

    Attributes
    ----------
    rows, length : int
        Candidates, and the longest row: prompt and answer, tokens.
    started : float or None
        When the judge or the models began with it (monotonic seconds).
    aside : bool
        It stands in the room of the batch that is kept for clients which had nothing there.
    judging : bool
        Some of its text is before the judge.
    decoded : bool
        No beam of it grows any longer.
    chosen : int or None
        The beam whose beginning was released (``chunked``).
    drafts : dict of int to Candidate
        Each beam, by its index, as the judge was last asked about it.
    verdicts : dict of int to Verdict
        Of each beam, on its draft; none until the judge has spoken.
    judge_rows : int
        How many rows the verdicts that were last asked for read.
    next_check : int
        Tokens at which the next piece of a chunked answer goes before the judge.
    failed_open : bool
        Text of it was let pass although the judge could not speak.
    """

    request: Request
    client: str
    release: Release
    on_text: Callable[[str], object]
    future: Future[Delivery]
    chunk_tokens: int
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    aside: bool = False
    clock_start: Timings | None = None
    judge_ms: float = 0.0
    cancelled: threading.Event = field(default_factory=threading.Event)
    judging: bool = False
    decoded: bool = False
    chosen: int | None = None
    drafts: dict[int, Candidate] = field(default_factory=dict)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    released: str = ""
    judge_rows: int = 0
    next_check: int = 0
    failed_open: bool = False

    def __post_init__(self) -> None:
        self.next_check = self.request.config.mix_steps + self.chunk_tokens

    @property
    def rows(self) -> int:
        """Rows of KV cache that the target holds for it."""
        return self.request.config.rows

    @property
    def prompt(self) -> int:
        """Tokens of its prompt, in the model that has more of them."""
        return max(len(self.request.target_ids), len(self.request.anchor_ids))

    @property
    def length(self) -> int:
        """Tokens of its longest row at the end, in either model."""
        return self.prompt + self.request.max_new_tokens

    @property
    def cost(self) -> int:
        """Cells of KV cache it may come to need: tokens times beams."""
        return self.rows * self.length

    @property
    def gated(self) -> bool:
        """Whether the judge is to be asked about the request before it is decoded."""
        return not self.request.beams and self.request.awaits("request")

    def start(self, now: Timings) -> None:
        """Note what the batch has spent when the judge or the models begin with it."""
        if self.started is None:
            self.started, self.clock_start = time.monotonic(), now

    def due(self) -> bool:
        """Whether the next piece of a chunked answer, or a look in between, is for the judge."""
        if self.release == "full" and self.request.config.early_every > 0:
            return self.request.looks_at(self.request.next_look)
        if self.release != "chunked":
            return False
        beams = self._eligible()
        return bool(beams) and all(len(b.token_ids) >= self.next_check or not b.live for b in beams)

    def to_judge(self) -> None:
        """Lay out what the judge is to read: the beams as they are now."""
        self.judging = True
        for beam in self._eligible():
            self.drafts[beam.index] = beam.candidate()
            # Of one that is given up nobody may say anything more: what was said of its beginning
            # must not count for the rest.
            self.verdicts.pop(beam.index, None)

    def asked(self) -> list[tuple[int, str]]:
        """Return the beams that the judge is to score now, and their texts."""
        if self.gated:
            return [(REQUEST, self.request.config.refusal_text)]
        return [(b.index, self.drafts[b.index].judged_text) for b in self._eligible()]

    def candidates(self) -> list[Candidate]:
        """Return all beams, in beam order, each as it was last judged."""
        contested = self.request.contested
        return [
            dataclasses.replace(
                self.drafts.get(b.index) or b.candidate(), verdict=self.verdicts.get(b.index)
            )
            if b in contested
            else b.candidate()  # whatever the judge said of its beginning, it is never shown
            for b in self.request.beams
        ]

    def timings(self, now: Timings) -> Timings:
        """Return what the batch spent while the job was in it, the judge's time its own."""
        start = self.clock_start
        if start is None:
            return now
        if self.request.clock is not None:
            start, now = NO_TIME, self.request.clock.timings()
        parts = {
            name: getattr(now, name) - getattr(start, name)
            for name in ("target_ms", "anchor_ms", "mix_ms", "total_ms")
        }
        other = parts["total_ms"] - sum(
            (parts["target_ms"], parts["anchor_ms"], parts["mix_ms"], self.judge_ms)
        )
        return Timings(**parts, judge_ms=self.judge_ms, other_ms=max(0.0, other))

    def let_out(self, text: str) -> None:
        """Hand over what follows the text that has left, if anything does: it was judged."""
        if text.startswith(self.released) and len(text) > len(self.released):
            self.on_text(text[len(self.released) :])
            self.released = text

    def delivery(self, result: Result) -> Delivery:
        """Return what is handed over, now that there is a result."""
        now = time.monotonic()
        started = self.started if self.started is not None else now
        return Delivery(
            result,
            self.released,
            (started - self.submitted) * 1e3,
            (now - self.submitted) * 1e3,
            self.failed_open,
        )

    def settle(self, outcome: Delivery | BaseException) -> None:
        """Fulfil the future once; later outcomes are dropped."""
        with contextlib.suppress(InvalidStateError):  # it is done already
            if isinstance(outcome, BaseException):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)

    def keep_only(self, index: int | None) -> None:
        """Let the other beams end: the beginning of this one is released; None ends them all."""
        for beam in self.request.beams:
            if beam.index != index and beam.finish_reason is None:
                beam.finish_reason = "length"
        if index is not None:
            self.chosen = index

    def _eligible(self) -> list[Beam]:
        """Return the beams that may still become the answer."""
        return [b for b in self.request.contested if self.chosen in (None, b.index)]


class Ticket:
    """What whoever submitted a job holds: its future, and the way to give it up."""

    def __init__(self, job: Job, wake: Callable[[], object]) -> None:
        self._job, self._wake = job, wake
        self.future: Future[Delivery] = job.future

    @property
    def prompt_tokens(self) -> int:
        """Target tokens of the rendered prompt."""
        return len(self._job.request.target_ids)

    def cancel(self) -> None:
        """Give the job up, unless it is done; its beams are gone before the next step."""
        self._job.cancelled.set()
        self._wake()
