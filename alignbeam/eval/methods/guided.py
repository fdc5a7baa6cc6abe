"""Baselines that steer with the anchor's whole distribution, translated over the bridge.

Their papers assume one vocabulary. Over an identity bridge each computes exactly its paper's
formula; over any other, the anchor's distribution is translated first (``Translator``) and a
target token without a translated counterpart has no anchor probability. Where the anchor cannot be
asked (the answer stops inside a character), the target chooses.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import torch

from alignbeam.config import Count, Range, Share, Whole
from alignbeam.decoding.beam import Beam, Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.steer import Taken
from alignbeam.errors import ConfigError
from alignbeam.eval.methods.decoding import (
    Guided,
    GuideSteer,
    Translator,
    answer_steered,
    requests_of,
    wishes_of,
)
from alignbeam.eval.methods.protocol import Answers, Method, Models
from alignbeam.models.conversation import Message
from alignbeam.models.role import Role

#: Below this a translated probability is rounding, and its logarithm would be noise.
_FLOOR = 1e-12


@dataclass(frozen=True, kw_only=True)
class ScoredMethod(Method):
    """Base: at each of the first ``steps`` tokens, the best of ``scores`` is taken.

    Attributes
    ----------
    steps : int
        How many tokens are steered; 0 steers the whole answer.
    """

    steps: Whole = 0

    @abstractmethod
    def scores(self, target: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """Score every target token.

        Parameters
        ----------
        target : Tensor float32 [Vt]
            The target's probabilities.
        guides : sequence of Tensor float32 [Vt]
            Translated probabilities of each of ``guide_roles``.

        Returns
        -------
        Tensor [Vt] or None
            -inf for what may not be chosen; None leaves the step to the target.
        """

    def guide_roles(self, models: Models) -> list[Role]:
        """Return the models that steer; the anchor by default."""
        return [models.anchor]

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        target = models.target
        translate = Translator(models.beam.bridge, target.width, target.device)
        steering = Guided(
            lambda requests, clock, beams: _ScoreSteer(
                self, translate, self.guide_roles(models), requests, clock, beams
            )
        )
        clock = Clock([target.device, models.anchor.device])
        requests = requests_of(target, models, prompts)
        return answer_steered(target, requests, self.description, clock, steering)


class _ScoreSteer(GuideSteer):
    """Takes the best of a method's scores over the guides' translated distributions."""

    def __init__(self, method: ScoredMethod, translate: Translator, *batch: Any) -> None:
        super().__init__(*batch)
        self._method, self._translate = method, translate

    def decide(
        self, answers: Mapping[Any, bytes | None], target: NextTokens
    ) -> Sequence[Taken | None]:
        """See ``GuideSteer.decide``."""
        taken: list[Taken | None] = [None] * len(answers)
        at = {o: row for row, o in enumerate(answers) if self._steers(o)}
        for guide in self.guides:
            begun = {o: text for o in at if (text := answers[o]) is not None}
            for owner in guide.show(begun):
                del at[owner]
        said = [guide.next_tokens(list(at)) for guide in self.guides]
        with self.clock.part("mix"):
            for n, (owner, row) in enumerate(at.items()):
                heard = [
                    self._translate(one.logits[n], opening=answers[owner] is None) for one in said
                ]
                scores = self._method.scores(target.logits[row].float().softmax(-1), heard)
                if scores is not None and target.finite[row]:
                    best = int(scores.argmax(-1))
                    count = wishes_of(owner)
                    wishes = said[0].wishes(n, count) if count else ()
                    logprob = target.logprob(row, best)
                    taken[row] = Taken((best,), logprob, self._method.name, wishes)
        return taken

    def _steers(self, owner: Request | Beam) -> bool:
        """Whether a beam (or a request, which has no token yet) is within the steps."""
        steps = self._method.steps
        return not steps or isinstance(owner, Request) or len(owner.token_ids) < steps


@dataclass(frozen=True, kw_only=True)
class SafeDecoding(ScoredMethod):
    """Blend the target with a safer expert over the tokens that both think likely.

    ``V`` is the intersection of the two models' best ``k`` tokens for the smallest ``k`` that
    leaves ``common`` of them; ``P = q + alpha * (a - q)`` on ``V``; for the first ``steps``
    tokens. The paper's expert is the target itself fine-tuned for safety; here the anchor takes
    its place, over the bridge where its vocabulary is another.

    Attributes
    ----------
    alpha : float
        Weight of the difference, >= 0.
    steps : int
        The paper's m.
    common : int
        The paper's c, the least size of the sample space.

    Source
    ------
    Xu et al., SafeDecoding, ACL 2024 (arXiv 2402.08983): alpha = 3, m = 2, c = 5.
    """

    name: ClassVar[str] = "safedecoding"
    citation: ClassVar[str] = "Xu et al. 2024, ACL (arXiv 2402.08983)"
    description: ClassVar[str] = "target and anchor blended over their common best tokens"
    depends_on: ClassVar[tuple[str, ...] | None] = ("target", "anchor", "bridge")
    alpha: Annotated[float, Range(0)] = 3.0
    steps: Whole = 2
    common: Count = 5

    def scores(self, target: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """See ``ScoredMethod.scores``."""
        (anchor,) = guides
        both = torch.maximum(_ranks(target), _ranks(anchor))
        # A token enters the intersection of the best k when k reaches its worse rank.
        depth = both.kthvalue(min(self.common, len(both))).values
        blended = target + self.alpha * (anchor - target)
        return blended.masked_fill(both > depth, float("-inf"))


@dataclass(frozen=True, kw_only=True)
class ProxyTuning(ScoredMethod):
    """Add to the target what tuning changed in a small model.

    ``log q + alpha * (log expert - log antiexpert)``, at every token. The expert is the anchor,
    the anti-expert its untuned twin (``Models.antiexpert``). Without one the target itself
    stands in: it is the model whose alignment is missing. Then ``alpha = 1`` would be the
    anchor's own choice, and smaller values lie between the two.

    Attributes
    ----------
    alpha : float
        Weight of the difference.

    Source
    ------
    Liu et al., Tuning language models by proxy, COLM 2024 (arXiv 2401.08565): alpha = 1.
    """

    name: ClassVar[str] = "proxy-tuning"
    citation: ClassVar[str] = "Liu et al. 2024, COLM (arXiv 2401.08565)"
    description: ClassVar[str] = "target plus the difference of a tuned and an untuned small model"
    alpha: float = 1.0

    def guide_roles(self, models: Models) -> list[Role]:
        """Return the expert, and the anti-expert where there is one."""
        return [r for r in (models.anchor, models.antiexpert) if r is not None]

    def scores(self, target: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """See ``ScoredMethod.scores``."""
        expert = guides[0]
        anti = guides[1] if len(guides) > 1 else target
        difference = expert.clamp_min(_FLOOR).log() - anti.clamp_min(_FLOOR).log()
        scores = target.clamp_min(_FLOOR).log() + self.alpha * difference
        # A token that neither small model can spell has no difference to add: not comparable.
        spoken = expert > 0 if len(guides) == 1 else (expert > 0) | (anti > 0)
        return scores.masked_fill(~spoken, float("-inf")) if bool(spoken.any()) else None


@dataclass(frozen=True, kw_only=True)
class ContrastiveDecoding(ScoredMethod):
    """Take what an expert prefers over an amateur, among what the expert finds plausible.

    ``log expert - log amateur`` over the tokens with ``expert >= plausibility * max expert``.
    For safety the anchor is the expert, and the target, whose alignment is gone, the amateur;
    the other way round would steer away from the aligned model.

    Attributes
    ----------
    plausibility : float
        The paper's alpha, 0..1.

    Source
    ------
    Li et al., Contrastive decoding, ACL 2023 (arXiv 2210.15097): 0.1.
    """

    name: ClassVar[str] = "contrastive"
    citation: ClassVar[str] = "Li et al. 2023, ACL (arXiv 2210.15097)"
    description: ClassVar[str] = "what the anchor prefers over the target, if plausible"
    depends_on: ClassVar[tuple[str, ...] | None] = ("target", "anchor", "bridge")
    plausibility: Share = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.plausibility == 0:
            raise ConfigError("plausibility must be above 0")

    def scores(self, target: torch.Tensor, guides: Sequence[torch.Tensor]) -> torch.Tensor | None:
        """See ``ScoredMethod.scores``."""
        (expert,) = guides
        peak = float(expert.max())
        if peak <= 0:
            return None
        scores = expert.clamp_min(_FLOOR).log() - target.clamp_min(_FLOOR).log()
        return scores.masked_fill(expert < self.plausibility * peak, float("-inf"))


def _ranks(p: torch.Tensor) -> torch.Tensor:
    """Rank of each entry, 0 for the largest; of equals the lower index first. int64."""
    order = p.sort(descending=True, stable=True).indices
    return torch.empty_like(order).scatter_(0, order, torch.arange(len(p), device=p.device))
