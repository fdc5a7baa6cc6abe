"""The anchor mixed into the first tokens: AlignBeam's own steer."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import torch

from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.choice import Choice
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.foresight import Foresight
from alignbeam.decoding.gate import divergence, mass
from alignbeam.decoding.mixing import Layout, Mixer
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.numbers import translate
from alignbeam.decoding.reading import ReadingRows
from alignbeam.decoding.refusals import may_open_refusal
from alignbeam.decoding.remainders import Remainders
from alignbeam.decoding.remote import RemoteTokens
from alignbeam.decoding.steer import Steer, Taken, non_finite
from alignbeam.engines.roles import AnyRole
from alignbeam.errors import PromptError
from alignbeam.result import Wish
from alignbeam.vocab.bridge import Bridge
from alignbeam.vocab.retokenize import Retokenizer


class AnchorSteering:
    """Steers by an anchor: its retokeniser, and the op over the bridge."""

    def __init__(self, anchor: AnyRole, bridge: Bridge, device: torch.device) -> None:
        self.anchor = anchor
        self.retokenizer = Retokenizer(anchor.vocabulary)
        self.mix = Mixer(bridge, device, after_opening=self._after_opening())
        self.opening_id = self._opening_id()
        self.foresight = Foresight()

    def begin(self, requests: Sequence[Request], clock: Clock) -> Steer | None:
        """See ``Steering.begin``."""
        mixed = any(r.config.mix_steps > 0 for r in requests)
        return AnchorSteer(self, requests, clock) if mixed else None

    def resume(self, beams: Sequence[Beam], clock: Clock) -> Steer | None:
        """See ``Steering.resume``."""
        mixing = [b for b in beams if b.mixing]
        return AnchorSteer(self, (), clock, mixing) if mixing else None

    def _opening_id(self) -> int | None:
        """Return the anchor's token for exactly its opening, if there is one.

        The anchor says it before whatever does not merge with the opening: Llama-2's lone blank
        before a digit.
        """
        opening = self.anchor.opening
        ids = self.retokenizer.encode(opening) if opening else []
        return ids[0] if len(ids) == 1 else None

    def _after_opening(self) -> torch.Tensor:
        """Mark the anchor's columns [Va] that may follow its opening token.

        A token that begins with the opening would spell it twice.
        """
        anchor = self.anchor
        starts = [(b or b"").startswith(anchor.opening) for b in anchor.vocabulary.token_bytes]
        starts += [False] * (anchor.width - len(starts))
        return ~torch.tensor(starts)


class AnchorSteer:
    """The anchor's side of one batch: its rows for the beams that are still mixing."""

    def __init__(
        self,
        steering: AnchorSteering,
        requests: Sequence[Request],
        clock: Clock,
        beams: Sequence[Beam] = (),
    ) -> None:
        self._steering, self._clock, self._requests = steering, clock, requests
        mixed = [r for r in requests if r.config.mix_steps > 0] or [b.request for b in beams]
        prompts = {r: r.anchor_ids for r in mixed}
        self._reads = ReadingRows(steering.anchor, steering.retokenizer, prompts, clock, beams)

    def open(self, target: NextTokens) -> list[Sequence[Taken] | None]:
        """See ``Steer.open``."""
        at = [i for i, r in enumerate(self._requests) if r.config.mix_steps > 0]
        mixed = [self._requests[i] for i in at]
        # A target on an engine reads the prompts while the anchor speaks.
        wait = target.rows(at).without_ends().prefill()
        wanted = self._reads.rows.next_tokens(self._reads.rows.owners)
        said = self._opening(wanted)
        wait()
        # An empty answer would always be judged safe, so no end token may open a beam. The
        # anchor's end tokens lead nowhere in the opening table.
        theirs = target.rows(at).without_ends()
        layout: Layout = "opening" if self._steering.opening_id is None else "opening-twice"
        with self._clock.part("mix"):
            self._weigh_opening(mixed, said, theirs, layout)
            choices = self._steering.mix(
                said,
                theirs,
                [r.config for r in mixed],
                layout=layout,
                top_k=max(r.config.beams for r in mixed),
            )
        openings: list[Sequence[Taken] | None] = [None] * len(self._requests)
        for row, (i, request, choice) in enumerate(zip(at, mixed, choices, strict=True)):
            openings[i] = None if request.config.mix_steps == 0 else ()
            if openings[i] is None:  # let go
                continue
            if choice.non_finite:
                request.fail(non_finite("target or anchor", 0))
                continue
            wishes = self._wishes(wanted, row, request)
            pairs = zip(choice.token_ids, choice.logprobs, strict=True)
            taken = [
                _taken(
                    choice,
                    token_id,
                    logprob,
                    request,
                    wishes,
                    self._remainders(request, 0, token_id, said, row, opening=True),
                )
                for token_id, logprob in pairs
                if logprob > float("-inf")  # what neither model would say opens no beam
            ]
            openings[i] = taken[: request.config.beams]
        return openings

    def _weigh_opening(
        self, requests: Sequence[Request], said: NextTokens, target: NextTokens, layout: Layout
    ) -> None:
        """Read the gates of the first step."""
        asked = [
            row
            for row, r in enumerate(requests)
            if any(r.awaits(name) for name in ("divergence", "refusals", "agreement"))
        ]
        if not asked:
            return
        best = said.top(max(requests[row].config.top_b for row in asked))
        for row in asked:
            request = requests[row]
            if not (said.finite[row] and target.finite[row]):
                continue  # it is about to fail
            top = best[row][: request.config.top_b]
            table = self._steering.mix.table(request.config.fallback, layout)
            if request.awaits("divergence"):
                log_p = translate(top, table)
                (log_q,) = target.rows([row]).named([list(log_p)])
                request.weigh("divergence", divergence(log_p, log_q))
            if request.awaits("refusals"):
                texts = [self._begins(column) for column, _ in top]
                request.weigh("refusals", mass(top, [may_open_refusal(t) for t in texts]))
            if request.awaits("agreement"):
                self._agree(request, 0, table[top[0][0]], target.best_of(row, 1)[0])

    def _begins(self, column: int) -> bytes:
        """Return what an answer begins with that a column of the first step opens."""
        anchor = self._steering.anchor
        if column >= anchor.width:  # said after the opening
            return anchor.bytes_of(column - anchor.width)
        return anchor.bytes_of(column).removeprefix(anchor.opening)

    @staticmethod
    def _agree(request: Request, step: int, theirs: int, own: int) -> None:
        """Count a step for the gate of agreement, and read it where that was the last."""
        gate = request.gate
        if gate is not None and request.awaits("agreement"):
            gate.agreed += theirs == own
            if step + 1 >= gate.config.after:
                request.weigh("agreement", gate.agreed / gate.config.after)

    def _opening(self, first: NextTokens) -> NextTokens:
        """Return the numbers of the first step.

        Their columns are [Va], or [2 Va] where the anchor has a token for exactly its opening.
        That token says nothing of the answer yet; its probability belongs to what follows it. So
        it is fed, and the second half of the columns holds what the anchor says then::

            p(a)        without the opening token        first half
            p(opening) * p(a | opening)                  second half

        Source: algorithm.md, section 2, The opening.
        """
        opening, rows = self._steering.opening_id, self._reads.rows
        if opening is None:
            return first
        if isinstance(first, RemoteTokens):
            return first.after_opening(opening)
        with self._clock.part("anchor"):
            before = first.logits.float().log_softmax(-1)
        rows.extend({owner: [opening] for owner in rows.owners})
        with self._clock.part("anchor"):
            then = rows.logits.float().log_softmax(-1)
            weight = before[:, opening, None].clone()
            before[:, opening] = float("-inf")
            return NextTokens(first.role, torch.cat([before, weight + then], dim=1))

    def fork(self) -> None:
        """See ``Steer.fork``."""
        self._reads.fork()

    def choose(self, beams: Sequence[Beam], target: NextTokens) -> list[Taken | None]:
        """See ``Steer.choose``."""
        taken: list[Taken | None] = [None] * len(beams)
        at = {b: row for row, b in enumerate(beams) if b.mixing}
        with self._clock.part("anchor"):
            unreadable = self._reads.show({b: b.text_bytes for b in at if _is_asked(b)})
        for beam, why in unreadable.items():
            if isinstance(why, PromptError):
                beam.request.fail(why)
            elif beam.remainders is None:
                row = at.pop(beam)
                if target.finite[row]:
                    best = target.best_token(row)
                    taken[row] = Taken((best,), target.logprob(row, best), why)
        # A failed request takes its other beams along.
        at = {b: row for b, row in at.items() if b.live}
        heard = {b for b in at if _is_asked(b) and b not in unreadable}
        for begun in (False, True):
            group = {b: row for b, row in at.items() if (b.remainders is not None) == begun}
            if group:
                chosen = self._mix(list(group), heard, target.rows(list(group.values())))
                for row, one in zip(group.values(), chosen, strict=True):
                    taken[row] = one
        return taken

    def _mix(
        self, beams: Sequence[Beam], heard: Collection[Beam], target: NextTokens
    ) -> list[Taken | None]:
        """Mix a row for each beam: all of them inside a token of the anchor's, or none."""
        anchor = said = self._reads.next_tokens(beams)
        standing = [b.remainders for b in beams if b.remainders is not None]
        layout: Layout = "remainders" if standing else "step"
        foresight, mix = self._steering.foresight, self._steering.mix
        guesses = foresight.ask(anchor, target, beams, mix)
        with self._clock.part("mix"):
            if standing:
                asked = [b in heard for b in beams]
                columns = mix.followed.mixed(anchor.logits, standing, asked)
                said = NextTokens(self._steering.anchor, columns)
            configs = [b.request.config for b in beams]
            choices = mix(said, target, configs, layout=layout, top_k=1)
        if guesses:
            foresight.saw(guesses, choices, target)
        taken: list[Taken | None] = []
        for n, (beam, choice) in enumerate(zip(beams, choices, strict=True)):
            request, step = beam.request, len(beam.token_ids)
            if choice.non_finite:
                request.fail(non_finite("target or anchor", step))
                taken.append(None)
                continue
            (token_id,), (logprob,) = choice.token_ids, choice.logprobs
            told = anchor if beam in heard else None
            wishes = self._wishes(told, n, request, beam.remainders)
            left = self._remainders(request, step, token_id, told, n, beam.remainders)
            taken.append(_taken(choice, token_id, logprob, request, wishes, left))
            if beam.index == 0 and request.awaits("agreement"):
                table = mix.table(request.config.fallback, layout)
                self._agree(request, step, table[said.best_token(n)], target.best_token(n))
        return taken

    def _remainders(
        self,
        request: Request,
        step: int,
        token_id: int,
        said: NextTokens | None,
        row: int,
        before: Remainders | None = None,
        *,
        opening: bool = False,
    ) -> Remainders | None:
        """Return where the anchor stands after a token; None where nothing is mixed after it."""
        config = request.config
        if config.fallback != "prefix" or step + 1 >= config.mix_steps:
            return None
        logits = None if said is None else said.logits[row]
        return self._steering.mix.followed.after(token_id, logits, before, opening=opening)

    def _wishes(
        self, said: NextTokens | None, row: int, request: Request, begun: Remainders | None = None
    ) -> tuple[Wish, ...]:
        """Return the anchor's most probable tokens, those that the target has begun included."""
        count = request.config.wishes
        found = said.wishes(row, count) if said is not None and count else ()
        if begun is None or not count:
            return found
        best = begun.weights.topk(min(count, len(begun.weights)))
        pairs = zip(begun.token_ids[best.indices].tolist(), best.values.tolist(), strict=True)
        both = [Wish(i, self._steering.anchor.shown([i]), p) for i, p in pairs]
        both += [Wish(w.token_id, w.text, w.prob * begun.free) for w in found]
        return tuple(sorted(both, key=lambda wish: -wish.prob)[:count])

    def join(self, other: Steer) -> None:
        """See ``Steer.join``."""
        if isinstance(other, AnchorSteer):
            self._reads.join(other._reads)

    def leave(self, *, lazily: bool) -> bool:
        """See ``Steer.leave``."""
        owners = self._reads.rows.owners
        if not any(beam.mixing for beam in owners):
            return False
        self._reads.rows.keep(lambda beam: beam.mixing, lazily=lazily)
        return True


def _is_asked(beam: Beam) -> bool:
    """Whether the anchor may stand at the end of the beam's text, and so says what follows."""
    return beam.remainders is None or beam.remainders.free > 0


def _taken(
    choice: Choice,
    token_id: int,
    logprob: float,
    request: Request,
    wishes: tuple[Wish, ...],
    remainders: Remainders | None,
) -> Taken:
    return Taken(
        (token_id,),
        logprob,
        "target:empty-support" if choice.empty_support else "mix",
        wishes,
        choice.anchor_mass,
        choice.translated_mass,
        choice.target_mass,
        choice.anchor_share,
        remainders,
    )
