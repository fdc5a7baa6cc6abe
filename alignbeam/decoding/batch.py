"""Prime, mix, complete: a batch of requests becomes a batch of finished beams.

The three phases of the paper share one loop, because requests of one batch may differ in
everything: at each step, a beam that still has steps to mix asks the anchor, every other beam is
the target's alone. Anchor and its cache are let go when no beam mixes any longer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from alignbeam.decoding.anchor import AnchorRows, Steering
from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.mixing import Choice
from alignbeam.decoding.sampling import draw
from alignbeam.decoding.trace import shown_token, top_wishes
from alignbeam.errors import Cancelled, NonFiniteLogits
from alignbeam.models.role import Role
from alignbeam.models.rows import Rows
from alignbeam.result import StepSource, StepTrace, Wish


class Phases:
    """Decodes batches of requests with one target and what steers it.

    Parameters
    ----------
    target : Role
    steering : Steering or None
        None for a model alone; then no request may have steps to mix.
    """

    def __init__(self, target: Role, steering: Steering | None) -> None:
        self._target = target
        self._steering = steering

    def run(
        self,
        requests: Sequence[Request],
        clock: Clock,
        should_cancel: Callable[[], bool] | None = None,
    ) -> None:
        """Decode all beams of all requests; results and errors stay in the requests.

        Parameters
        ----------
        should_cancel : callable or None
            Asked between steps; True ends the batch.

        Raises
        ------
        Cancelled
            ``should_cancel`` said so.
        """
        batch = self.start(requests, clock)
        while batch.live():
            if should_cancel is not None and should_cancel():
                raise Cancelled("cancelled between two steps")
            batch.step()

    def start(self, requests: Sequence[Request], clock: Clock) -> Batch:
        """Prime requests: their prompts are prefilled and their beams opened."""
        batch = Batch(self._target, requests, clock)
        batch.prime(self._steering)
        return batch

    def resume(self, requests: Sequence[Request], clock: Clock) -> Batch:
        """Go on with requests whose beams are open, from what the beams hold alone.

        Everything that a decoding step changes before it changes a beam is made anew here, so a
        batch in which a step failed half-way can be taken apart and its requests resumed.
        """
        batch = Batch(self._target, requests, clock, opened=True)
        batch.show_again(self._steering)
        return batch


class Batch:
    """Requests that decode together: target row i holds ``beams[i]``.

    Others may join between two steps, and whoever is finished leaves: see ``absorb``, ``leave``.
    """

    def __init__(
        self, target: Role, requests: Sequence[Request], clock: Clock, *, opened: bool = False
    ) -> None:
        self._target, self._requests, self._clock = target, requests, clock
        self._end_ids = torch.tensor(target.end_ids, device=target.device)
        self._beams: list[Beam] = [b for r in requests for b in r.beams if b.live] if opened else []
        # A beam's newest token is fed by the step that asks what follows it.
        shown = (
            [b.request.target_ids + b.token_ids[:-1] for b in self._beams]
            if opened
            else [r.target_ids for r in requests]
        )
        with clock.part("target"):
            self._rows: Rows = target.rows(shown)
        self._anchor: AnchorRows | None = None

    def live(self) -> bool:
        """Whether any beam still grows."""
        return any(b.live for b in self._beams)

    def absorb(self, other: Batch) -> None:
        """Take in another batch of the same models; ``other`` is used up."""
        self.leave()
        other.leave()
        if not other._beams:
            return
        if not self._beams:
            self._rows, self._beams, self._anchor = other._rows, other._beams, other._anchor
            return
        with self._clock.part("target"):
            self._rows.join(other._rows)
        self._beams += other._beams
        if self._anchor is None or not self._anchor.mixing():
            self._anchor = other._anchor
        elif other._anchor is not None and other._anchor.mixing():
            with self._clock.part("anchor"):
                self._anchor.join(other._anchor)

    def leave(self) -> None:
        """Drop every row that grows no longer, at once (``step`` waits for half of them)."""
        keep = [i for i, b in enumerate(self._beams) if b.live]
        if len(keep) < len(self._beams):
            with self._clock.part("target"):
                self._rows.select(keep)
            self._beams = [self._beams[i] for i in keep]
        if self._anchor is not None:
            with self._clock.part("anchor"):
                self._anchor.leave()

    def show_again(self, steering: Steering | None) -> None:
        """Prefill the anchor's prompts once more, for the beams that still mix."""
        mixing = [b for b in self._beams if b.mixing]
        if mixing and steering is not None:
            with self._clock.part("anchor"):
                self._anchor = AnchorRows(steering, [b.request for b in mixing], mixing)

    # Prime ---------------------------------------------------------------------------------

    def prime(self, steering: Steering | None) -> None:
        """Open K beams per request and fork both caches; every prompt is prefilled once."""
        mixed = [i for i, r in enumerate(self._requests) if r.config.mix_steps > 0]
        if mixed and steering is not None:
            requests = [self._requests[i] for i in mixed]
            with self._clock.part("anchor"):
                self._anchor = AnchorRows(steering, requests)
            self._open_mixed(self._anchor, requests, self._rows.logits[mixed])
        for i, request in enumerate(self._requests):
            if request.config.mix_steps == 0:
                self._open_alone(request, self._rows.logits[i])
        self._beams = [b for r in self._requests for b in r.beams]
        with self._clock.part("target"):
            self._rows.select([i for i, r in enumerate(self._requests) for _ in r.beams])
        if self._anchor is not None:
            with self._clock.part("anchor"):
                self._anchor.fork()

    def _open_mixed(
        self, anchor: AnchorRows, requests: Sequence[Request], target_logits: torch.Tensor
    ) -> None:
        wanted = anchor.logits
        with self._clock.part("anchor"):
            anchor_logits = anchor.opening_logits()
        with self._clock.part("mix"):
            # An empty answer would always be judged safe, so no end token may open a beam. The
            # anchor's end tokens lead nowhere in the opening table.
            masked = target_logits.index_fill(1, self._end_ids, float("-inf"))
            choices = anchor.steering.mix(
                anchor_logits,
                masked,
                [r.config for r in requests],
                opening=True,
                top_k=max(r.config.beams for r in requests),
            )
        for row, (request, choice) in enumerate(zip(requests, choices, strict=True)):
            if choice.non_finite:
                request.fail(_non_finite("target or anchor", 0))
                continue
            openings = [
                (token_id, logprob)
                for token_id, logprob in zip(choice.token_ids, choice.logprobs, strict=True)
                if logprob > float("-inf")  # what neither model would say opens no beam
            ]
            wishes = self._wishes(request, target_logits[row], wanted[row])
            for k, (token_id, logprob) in enumerate(openings[: request.config.beams]):
                beam = Beam.of(request, k, self._target.opening)
                request.beams.append(beam)
                source: StepSource = "target:empty-support" if choice.empty_support else "mix"
                self._take(beam, token_id, logprob, source, choice, wishes)

    def _open_alone(self, request: Request, logits: torch.Tensor) -> None:
        """Open beams with the target alone: its K best tokens, or K draws."""
        config = request.config
        if not _finite(logits[None])[0]:
            request.fail(_non_finite("target", 0))
            return
        if config.beams > 1:  # a single beam is plain generation, and may be empty
            logits = logits.index_fill(0, self._end_ids, float("-inf"))
        beams = [Beam.of(request, k, self._target.opening) for k in range(config.beams)]
        if config.temperature > 0:
            first = [self._draw(beam, logits) for beam in beams]
        else:
            first = logits.float().sort(descending=True, stable=True).indices[: len(beams)].tolist()
        for beam, token_id in zip(beams, first, strict=True):
            request.beams.append(beam)
            self._append(beam, token_id)

    # Mix and complete ----------------------------------------------------------------------

    def step(self) -> None:
        """Give every live beam one more token."""
        self._prune()
        with self._clock.part("target"):
            logits = self._rows.extend([[b.token_ids[-1]] if b.live else [] for b in self._beams])
        mixing = [] if self._anchor is None else self._anchor.mixing()
        alone: dict[int, StepSource] = {}
        if self._anchor is None or not mixing:
            self._anchor = None  # its cache and its logits are let go
        else:
            with self._clock.part("anchor"):
                alone = self._anchor.show(mixing)
            mixing = [b for b in mixing if b.live and id(b) not in alone]
            if mixing:
                self._mix(self._anchor, mixing, self._logits_of(mixing, logits))
        mixed = {id(b) for b in mixing}
        rest = [b for b in self._beams if b.live and id(b) not in mixed]
        if rest:
            self._take_alone(rest, self._logits_of(rest, logits), alone)

    def _logits_of(self, beams: list[Beam], logits: torch.Tensor) -> torch.Tensor:
        if beams == self._beams:
            return logits
        row_of = {id(beam): row for row, beam in enumerate(self._beams)}
        return logits[[row_of[id(b)] for b in beams]]

    def _prune(self) -> None:
        """Drop finished rows, once they are half of all: each drop copies the cache."""
        keep = [i for i, b in enumerate(self._beams) if b.live]
        if 2 * len(keep) <= len(self._beams):
            with self._clock.part("target"):
                self._rows.select(keep)
            self._beams = [self._beams[i] for i in keep]
        if self._anchor is not None:
            with self._clock.part("anchor"):
                self._anchor.prune()

    def _mix(self, anchor: AnchorRows, beams: Sequence[Beam], target_logits: torch.Tensor) -> None:
        with self._clock.part("mix"):
            anchor_logits = anchor.logits_of(beams)
            configs = [b.request.config for b in beams]
            choices = anchor.steering.mix(
                anchor_logits, target_logits, configs, opening=False, top_k=1
            )
        for row, (beam, choice) in enumerate(zip(beams, choices, strict=True)):
            if choice.non_finite:
                beam.request.fail(_non_finite("target or anchor", len(beam.token_ids)))
                continue
            source: StepSource = "target:empty-support" if choice.empty_support else "mix"
            wishes = self._wishes(beam.request, target_logits[row], anchor_logits[row])
            self._take(beam, choice.token_ids[0], choice.logprobs[0], source, choice, wishes)

    def _take_alone(
        self, beams: Sequence[Beam], logits: torch.Tensor, why: dict[int, StepSource]
    ) -> None:
        """Let the target choose: greedily inside the mixed steps, else as configured."""
        finite = _finite(logits)
        greedy = logits.argmax(-1).tolist()
        for row, beam in enumerate(beams):
            if not finite[row]:
                beam.request.fail(_non_finite("target", len(beam.token_ids)))
            elif id(beam) in why:
                logprob = float(logits[row].float().log_softmax(-1)[greedy[row]])
                wishes = self._wishes(beam.request, logits[row], None)
                self._take(beam, greedy[row], logprob, why[id(beam)], None, wishes)
            elif beam.request.config.temperature > 0:
                self._append(beam, self._draw(beam, logits[row]))
            else:
                self._append(beam, greedy[row])

    def _draw(self, beam: Beam, logits: torch.Tensor) -> int:
        config = beam.request.config
        return draw(logits, config.temperature, config.top_k, config.top_p, beam.generator)

    def _append(self, beam: Beam, token_id: int) -> None:
        ends = token_id in self._target.end_ids
        beam.append(token_id, self._target.bytes_of(token_id), ends=ends)

    # Trace ---------------------------------------------------------------------------------

    def _take(
        self,
        beam: Beam,
        token_id: int,
        logprob: float,
        source: StepSource,
        choice: Choice | None,
        wishes: tuple[tuple[Wish, ...], tuple[Wish, ...]] | None,
    ) -> None:
        """Append a token of the mixed steps, with its log-probability and its trace."""
        step = len(beam.token_ids)
        beam.logprob += logprob
        self._append(beam, token_id)
        if wishes is None:
            return
        nan = float("nan")
        alpha = beam.request.config.alpha
        beam.request.trace.append(
            StepTrace(
                step=step,
                beam=beam.index,
                source=source,
                token_id=token_id,
                text=shown_token(self._target, token_id),
                logprob=logprob,
                target_wishes=wishes[0],
                anchor_wishes=wishes[1],
                anchor_mass=nan if choice is None else choice.anchor_mass,
                translated_mass=nan if choice is None else choice.translated_mass,
                target_mass=nan if choice is None else choice.target_mass,
                anchor_share=0.0 if choice is None else choice.anchor_share(alpha),
            )
        )

    def _wishes(
        self, request: Request, target_logits: torch.Tensor, anchor_logits: torch.Tensor | None
    ) -> tuple[tuple[Wish, ...], tuple[Wish, ...]] | None:
        """Return what each model wanted most, best first; None where no trace is kept."""
        count = request.config.wishes
        if count == 0:
            return None
        theirs: tuple[Wish, ...] = ()
        if anchor_logits is not None and self._anchor is not None:
            theirs = top_wishes(self._anchor.steering.anchor, anchor_logits, count)
        return top_wishes(self._target, target_logits, count), theirs


def _finite(logits: torch.Tensor) -> list[bool]:
    """Per row: no NaN, no +inf, not all -inf. The maximum shows all three."""
    finite: list[bool] = logits.amax(-1).isfinite().tolist()
    return finite


def _non_finite(who: str, step: int) -> NonFiniteLogits:
    return NonFiniteLogits(
        f"{who}: NaN or +inf logits at step {step}; no answer is given. "
        "Check the weights and the dtype (float16 overflows where bfloat16 does not)"
    )
