"""Methods that go through the controller: AlignBeam itself, and a judge without mixing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from alignbeam.config import AnchorTokens, BeamCount, GateConfig, Harm, Margin, Share, Whole
from alignbeam.controller import AlignBeam
from alignbeam.errors import ConfigError
from alignbeam.eval.methods.protocol import Answers, Method, Models, answer_of
from alignbeam.models.conversation import Message


def answer_judged(
    beam: AlignBeam, prompts: Sequence[list[Message]], overrides: dict[str, Any]
) -> Answers:
    """Answer one batch through the controller."""
    results = beam.generate_batch(prompts, overrides, batch_size=len(prompts))
    return Answers([answer_of(result) for result in results], results[0].timings)


class Judged(Method):
    """Base: what ``BeamConfig`` has too, means the same there."""


@dataclass(frozen=True, kw_only=True)
class AlignBeamMethod(Judged):
    """Anchor and target mixed over a bridge for the first tokens, K beams, a judge.

    Attributes
    ----------
    alpha, mix_steps, beams, top_b, mix, support, fallback, threshold, tie_margin, on_unsafe
        See ``BeamConfig``; the defaults are the paper's.
    compensate, unsteered, unsteered_threshold, request_threshold, selection
    early_every, early_safe, early_harm, early_margin
        Likewise; ours.
    gate : mapping or None
        Settings of ``GateConfig``; ours too.
    bridge : {"bytes", "text"}
        ``"text"`` translates by the paper's literal text round trip, for comparison.

    Source
    ------
    ALIGNBEAM, arXiv 2606.12342.
    """

    name: ClassVar[str] = "alignbeam"
    citation: ClassVar[str] = "ALIGNBEAM, arXiv 2606.12342"
    description: ClassVar[str] = "anchor mixed into the first tokens, K candidates, a judge"
    alpha: Share = 0.5
    mix_steps: Whole = 6
    beams: BeamCount = 3
    top_b: AnchorTokens = 50
    mix: Literal["linear", "log"] = "linear"
    support: Literal["anchor", "union"] = "anchor"
    fallback: Literal["drop", "first", "exact", "prefix"] = "drop"
    compensate: bool = False
    bridge: Literal["bytes", "text"] = "bytes"
    threshold: Harm = 2.5
    tie_margin: Margin = 0.25
    on_unsafe: Literal["refuse", "safest"] = "refuse"
    unsteered: bool = False
    unsteered_threshold: Harm = 1.5
    request_threshold: Share = 0.5
    selection: Literal["safest", "least_steered"] = "safest"
    early_every: Whole = 0
    early_safe: Harm = 1.2
    early_harm: Harm = 4.5
    early_margin: Margin = 1.0
    gate: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        GateConfig.from_mapping(self.gate or {}, where="gate")
        if self.bridge == "text" and self.fallback == "prefix":
            raise ConfigError('fallback = "prefix" goes by bytes; it excludes bridge = "text"')

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        return answer_judged(beam_of(self, models), prompts, beam_settings(self))


def beam_of(method: AlignBeamMethod, models: Models) -> AlignBeam:
    """Return the controller that a method's bridge belongs to."""
    beam = models.text_beam if method.bridge == "text" else models.beam
    return beam.with_gate(GateConfig.from_mapping(method.gate)) if method.gate else beam


def beam_settings(method: AlignBeamMethod) -> dict[str, Any]:
    """Return the method's settings as fields of ``BeamConfig``."""
    return {k: v for k, v in method.settings.items() if k not in ("bridge", "gate")}


@dataclass(frozen=True, kw_only=True)
class BestOfK(Judged):
    """K candidates of the target alone, the judge's pick: AlignBeam without its anchor.

    The candidates open with the target's K most probable first tokens and go on greedily, so
    that they differ as AlignBeam's do.

    Attributes
    ----------
    beams, threshold, tie_margin, on_unsafe
        See ``BeamConfig``.

    Source
    ------
    Best-of-n with a scorer: Nakano et al., WebGPT, arXiv 2112.09332.
    """

    name: ClassVar[str] = "best-of-k"
    citation: ClassVar[str] = "Nakano et al. 2021 (arXiv 2112.09332)"
    description: ClassVar[str] = "K candidates of the target alone, the judge picks"
    beams: BeamCount = 3
    threshold: Harm = 2.5
    tie_margin: Margin = 0.25
    on_unsafe: Literal["refuse", "safest"] = "refuse"

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        return answer_judged(models.beam, prompts, {**self.settings, "mix_steps": 0})


@dataclass(frozen=True, kw_only=True)
class PostHocGuard(Judged):
    """The target answers, then a guard reads the answer and blocks it.

    Attributes
    ----------
    threshold : float
        An answer with a higher score is replaced by the fixed refusal, 1..5.

    Source
    ------
    Inan et al., Llama Guard, arXiv 2312.06674.
    """

    name: ClassVar[str] = "post-hoc-guard"
    citation: ClassVar[str] = "Inan et al. 2023 (arXiv 2312.06674)"
    description: ClassVar[str] = "the target alone, then a guard blocks"
    threshold: Harm = 2.5

    def answer(self, models: Models, prompts: Sequence[list[Message]]) -> Answers:
        """See ``Method.answer``."""
        beam = models.beam
        if models.guard is not None:
            trio = (beam.target, beam.anchor, models.guard)
            beam = AlignBeam(*trio, beam.config, bridge=beam.bridge)
        overrides = {**self.settings, "mix_steps": 0, "beams": 1, "on_unsafe": "refuse"}
        return answer_judged(beam, prompts, overrides)
