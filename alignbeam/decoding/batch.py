"""Prime, mix, complete: a batch of requests becomes a batch of finished beams.

The three phases of the paper share one loop, because requests of one batch may differ in
everything: at each step a steer may choose for some beams, and the target chooses for every other.
What the steer has cached is let go when it steers no beam any longer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.owned_rows import OwnedRows
from alignbeam.decoding.steer import Steer, Steering, Taken, non_finite
from alignbeam.engines.roles import AnyRole
from alignbeam.errors import DecodingFailed
from alignbeam.result import StepTrace, Wish


class Batch:
    """Beams that decode together, each with its row of the target's cache.

    Others may join between two steps, and whoever is finished leaves: see ``join``, ``leave``.

    Parameters
    ----------
    target : Role or RemoteRole
    rows : OwnedRows
        The target's, owned by the beams or, before ``_open``, by the requests.
    steer : Steer or None
    """

    def __init__(self, target: AnyRole, rows: OwnedRows, steer: Steer | None) -> None:
        self._target, self._rows, self._steer = target, rows, steer

    @classmethod
    def prime(
        cls, target: AnyRole, steering: Steering | None, requests: Sequence[Request], clock: Clock
    ) -> Self:
        """Prefill every prompt once, open the requests' beams and fork the caches."""
        rows = OwnedRows(target, ((r, r.target_ids) for r in requests), clock, "target")
        batch = cls(target, rows, None if steering is None else steering.begin(requests, clock))
        batch._open(requests)
        return batch

    @classmethod
    def resume(
        cls, target: AnyRole, steering: Steering | None, requests: Sequence[Request], clock: Clock
    ) -> Self:
        """Go on with requests whose beams are open, from what the beams hold alone.

        Everything that a decoding step changes before it changes a beam is made anew here, so a
        batch in which a step failed half-way can be taken apart and its requests resumed.
        """
        beams = [b for r in requests for b in r.beams if b.live]
        # A beam's newest token is fed by the step that asks what follows it.
        held = ((b, b.request.target_ids + b.token_ids[:-1]) for b in beams)
        rows = OwnedRows(target, held, clock, "target")
        return cls(target, rows, None if steering is None else steering.resume(beams, clock))

    @property
    def beams(self) -> list[Beam]:
        """The beams that hold a row, finished ones included."""
        return self._rows.owners

    def live(self) -> bool:
        """Whether any beam still grows."""
        return any(b.live for b in self.beams)

    def join(self, other: Batch) -> None:
        """Take in another batch of the same models; ``other`` is used up."""
        self.leave()
        other.leave()
        if not other.beams:
            return
        if not self.beams:
            self._rows, self._steer = other._rows, other._steer
            return
        self._rows.join(other._rows)
        if self._steer is None:
            self._steer = other._steer
        elif other._steer is not None:
            self._steer.join(other._steer)

    def leave(self, *, lazily: bool = False) -> None:
        """Drop the rows of beams that grow no longer; ``lazily`` once they are half of all."""
        self._rows.keep(lambda beam: beam.live, lazily=lazily)
        if self._steer is not None and not self._steer.leave(lazily=lazily):
            self._steer = None

    def step(self) -> None:
        """Give every live beam one more token, or as many as a steer inserts."""
        self.leave(lazily=True)
        lengths = zip(self.beams, self._rows.lengths(), strict=True)
        self._rows.extend(
            {b: b.token_ids[n - len(b.request.target_ids) :] for b, n in lengths if b.live}
        )
        beams = [b for b in self.beams if b.live]
        target = self._rows.next_tokens(beams)
        taken: list[Taken | None] = [None] * len(beams)
        if self._steer is not None:
            taken = self._steer.choose(beams, target)
        alone = []
        for row, (beam, choice) in enumerate(zip(beams, taken, strict=True)):
            if choice is None:
                alone.append(row)
            elif beam.live:
                if beam.request.config.selection == "least_steered":
                    beam.depart(choice.token_ids, target.best_token(row), target, row)
                self._take(beam, choice, self._wishes(target, row, beam.request))
        self._complete([beams[row] for row in alone], target.rows(alone))

    def _open(self, requests: Sequence[Request]) -> None:
        target = self._rows.next_tokens(self._rows.owners)
        openings: list[Sequence[Taken] | None] = [None] * len(requests)
        if self._steer is not None:
            openings = self._steer.open(target)
        for row, (request, taken) in enumerate(zip(requests, openings, strict=True)):
            if taken is None:
                self._open_alone(request, target.rows([row]))
                continue
            if not taken:  # without a candidate nobody would ever be asked, or answer
                request.fail(DecodingFailed("the steering opened no beam"))
            wishes = self._wishes(target, row, request)
            begun = target.rows([row]).without_ends()
            for k, choice in enumerate(taken):
                beam = Beam.of(request, k, self._target.opening)
                request.beams.append(beam)
                if request.config.selection == "least_steered":
                    beam.depart(choice.token_ids, begun.best_of(0, 1)[0], begun, 0)
                self._take(beam, choice, wishes)
            if request.config.unsteered and request.error is None:
                beam = Beam.unsteered(request, self._target.opening)
                request.beams.append(beam)
                self._append(beam, _first_tokens(begun, [beam]))
        self._rows.fork(lambda request: request.beams)
        if self._steer is not None:
            self._steer.fork()

    def _open_alone(self, request: Request, target: NextTokens) -> None:
        """Open beams with the target alone: its K best tokens, or K draws."""
        config = request.config
        if not target.finite[0]:
            request.fail(non_finite("target", 0))
            return
        if config.beams > 1:  # a single beam is plain generation, and may be empty
            target = target.without_ends()
        beams = [Beam.of(request, k, self._target.opening) for k in range(config.beams)]
        request.beams += beams
        if request.prefix:
            self._append(beams[0], request.prefix)
        else:
            first = _first_tokens(target, beams)
            own = config.temperature > 0 or config.selection != "least_steered"
            for beam, token_id in zip(beams, first, strict=True):
                if not own:  # the second best is not what the target would say by itself
                    beam.depart([token_id], first[0], target, 0)
                self._append(beam, [token_id])

    def _complete(self, beams: Sequence[Beam], target: NextTokens) -> None:
        """Let the target choose."""
        target.begin(beams)
        for row, beam in enumerate(beams):
            if not beam.live:
                continue
            if target.finite[row]:
                self._append(beam, [target.choose(row, beam)])
            else:
                beam.request.fail(non_finite("target", len(beam.token_ids)))

    def _append(self, beam: Beam, token_ids: Sequence[int]) -> None:
        """Append tokens until one of them ends the beam."""
        for token_id in token_ids:
            if beam.live:
                ends = token_id in self._target.end_ids
                beam.append(token_id, self._target.bytes_of(token_id), ends=ends)

    def _take(self, beam: Beam, taken: Taken, wishes: tuple[Wish, ...]) -> None:
        """Append what a steer chose, with its log-probability and its trace."""
        step = len(beam.token_ids)
        beam.logprob += taken.logprob
        self._append(beam, taken.token_ids)
        beam.remainders = taken.remainders
        if beam.request.config.wishes == 0:
            return
        beam.request.trace.append(
            StepTrace(
                step=step,
                beam=beam.index,
                source=taken.source,
                token_ids=taken.token_ids,
                text=self._target.shown(taken.token_ids),
                logprob=taken.logprob,
                target_wishes=wishes,
                anchor_wishes=taken.anchor_wishes,
                anchor_mass=taken.anchor_mass,
                translated_mass=taken.translated_mass,
                target_mass=taken.target_mass,
                anchor_share=taken.anchor_share,
            )
        )

    def _wishes(self, target: NextTokens, row: int, request: Request) -> tuple[Wish, ...]:
        count = request.config.wishes
        return target.wishes(row, count) if count else ()


def _first_tokens(target: NextTokens, beams: Sequence[Beam]) -> list[int]:
    """Return what the target opens a request's beams with: its best tokens, or a draw each."""
    config = beams[0].request.config
    if config.temperature > 0:
        return target.samples(0, config, [beam.generator for beam in beams])
    return target.best_of(0, len(beams))
