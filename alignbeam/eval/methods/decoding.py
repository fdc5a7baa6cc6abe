"""What the baselines share: one answer of one beam per request, on the product's own road."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.decode import decode
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.reading import ReadingRows
from alignbeam.decoding.steer import Steer, Steering, Taken
from alignbeam.eval.methods.protocol import Answers, Models, only, step_record
from alignbeam.eval.run.records import StepRecord
from alignbeam.models.conversation import Message
from alignbeam.models.role import Role
from alignbeam.vocab.bridge import Bridge
from alignbeam.vocab.retokenize import Retokenizer


def requests_of(role: Role, models: Models, prompts: Sequence[list[Message]]) -> list[Request]:
    """Render requests for one model and one beam, with nothing of AlignBeam's own mixing.

    Raises
    ------
    PromptError
    """
    config = models.config.replace(mix_steps=0, beams=1)
    return [Request.of(role, None, messages, config) for messages in prompts]


def answer_steered(
    role: Role,
    requests: Sequence[Request],
    reason: str,
    clock: Clock,
    steering: Steering | None = None,
) -> Answers:
    """Decode requests with one model and whatever steers it.

    Raises
    ------
    AlignBeamError
        The first request that failed.
    """
    decode(role, steering, requests, clock)
    for request in requests:
        if request.error is not None:
            raise request.error
    traces = [[step_record(step) for step in r.trace] for r in requests]
    pairs = zip(requests, traces, strict=True)
    found = [only(r.beams[0].candidate(), reason, trace) for r, trace in pairs]
    return Answers(found, clock.timings())


@dataclass(slots=True)
class Tried:
    """A request that grows by what was tried: the tokens that were kept of it."""

    request: Request
    kept: list[int] = field(default_factory=list)
    trace: list[StepRecord] = field(default_factory=list)


def grown(role: Role, request: Request, ids: Sequence[int]) -> Beam:
    """Return a beam that holds ``ids``, cut where a token, a stop string or the length ends it."""
    beam = Beam.of(request, 0, role.opening)
    for token_id in ids:
        if not beam.live:
            break
        beam.append(token_id, role.bytes_of(token_id), ends=token_id in role.end_ids)
    return beam


def continuations(
    role: Role, held: Sequence[Sequence[int]], width: int, length: int
) -> list[list[list[int]]]:
    """Go on from each of ``held`` with its ``width`` best tokens, ``length`` tokens, greedily.

    Most probable first token first; nothing ends them.
    """
    rows = role.rows([list(ids) for ids in held])
    first = rows.logits.float().topk(width, -1).indices.tolist()
    rows.select([n for n in range(len(held)) for _ in range(width)])
    tails = [[token] for row in first for token in row]
    for _ in range(length - 1):
        logits = rows.extend([[tail[-1]] for tail in tails])
        for tail, token in zip(tails, logits.argmax(-1).tolist(), strict=True):
            tail.append(token)
    return [tails[n : n + width] for n in range(0, len(tails), width)]


def wishes_of(owner: Request | Beam) -> int:
    """Return how many tokens of each model a trace keeps."""
    request = owner if isinstance(owner, Request) else owner.request
    return request.config.wishes


@dataclass(frozen=True)
class Guided(Steering):
    """Steers every batch in one way: ``make(requests, clock, open beams)``."""

    make: Callable[[Sequence[Request], Clock, Sequence[Beam]], Steer]

    def begin(self, requests: Sequence[Request], clock: Clock) -> Steer:
        """See ``Steering.begin``."""
        return self.make(requests, clock, ())

    def resume(self, beams: Sequence[Beam], clock: Clock) -> Steer:
        """See ``Steering.resume``."""
        return self.make([], clock, beams)


class GuideSteer(ABC):
    """Base of the steers that ask other models, each of which reads the answer as it grows.

    Parameters
    ----------
    guides : sequence of Role
    requests : sequence of Request
        Of the batch; empty where ``beams`` are open already.
    clock : Clock
    beams : sequence of Beam
    """

    def __init__(
        self,
        guides: Sequence[Role],
        requests: Sequence[Request],
        clock: Clock,
        beams: Sequence[Beam] = (),
    ) -> None:
        self.clock = clock
        self._requests = list(requests)
        asked = self._requests or [b.request for b in beams]
        self.guides = [
            ReadingRows(
                role,
                Retokenizer(role.vocabulary),
                {r: role.render(r.messages) for r in asked},
                clock,
                beams,
            )
            for role in guides
        ]

    @abstractmethod
    def decide(
        self, answers: Mapping[Any, bytes | None], target: NextTokens
    ) -> Sequence[Taken | None]:
        """Choose what follows, or None for the target's own choice.

        Parameters
        ----------
        answers : mapping of owner to (bytes or None)
            Whom the guides' rows belong to, and the answer so far; None where it has not begun.
        target : NextTokens
            One row per answer.
        """

    def open(self, target: NextTokens) -> list[Sequence[Taken] | None]:
        """See ``Steer.open``; one beam a request."""
        taken = self.decide(dict.fromkeys(self._requests), target)
        return [None if one is None else [one] for one in taken]

    def choose(self, beams: Sequence[Beam], target: NextTokens) -> list[Taken | None]:
        """See ``Steer.choose``."""
        return list(self.decide({b: b.text_bytes for b in beams}, target))

    def fork(self) -> None:
        """See ``Steer.fork``."""
        for guide in self.guides:
            guide.fork()

    def join(self, other: Steer) -> None:
        """See ``Steer.join``."""
        if isinstance(other, GuideSteer):
            for mine, theirs in zip(self.guides, other.guides, strict=True):
                mine.join(theirs)

    def leave(self, *, lazily: bool) -> bool:
        """See ``Steer.leave``."""
        for guide in self.guides:
            guide.rows.keep(lambda beam: beam.live, lazily=lazily)
        return True


class Translator:
    """A guide's whole next-token distribution, in the target's vocabulary.

    ``t[d] = sum of p[a] over all a with table[a] = d``: as in the mixing step, but with every
    anchor token instead of the best ``top_b``, because these methods compare whole
    distributions. What does not translate is left out, so that ``sum(t) <= 1``.
    """

    def __init__(self, bridge: Bridge, width: int, device: torch.device) -> None:
        self._width = width
        self._maps = {}
        for opening, table in ((False, bridge.table), (True, bridge.opening_table)):
            here = table.to(device).long()
            kept = (here >= 0).nonzero()[:, 0]
            self._maps[opening] = (kept, here[kept])

    def __call__(self, logits: torch.Tensor, *, opening: bool) -> torch.Tensor:
        """Translate logits [Va] to probabilities [Vt], float32."""
        kept, to = self._maps[opening]
        p = logits.to(kept.device).float().softmax(-1)
        return torch.zeros(self._width, device=kept.device).index_add_(0, to, p[kept])
