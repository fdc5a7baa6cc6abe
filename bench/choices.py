"""Choosing again: what other settings would have answered, from the candidates that runs kept.

Nothing is decoded or judged again. The product's own choice is made among a run's scored
candidates, of the target alone (as a guard would), of AlignBeam, or of both (``least_steered``).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from alignbeam import BeamConfig
from alignbeam.decoding.probe import weighed
from alignbeam.errors import JudgeUnavailable
from alignbeam.eval.refusal import classify_reply
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.records import Generation
from alignbeam.judge.selection import select
from alignbeam.result import Candidate, Verdict

GUARD, STEERED = "post-hoc-guard", "alignbeam"
#: ``selection = "least_steered"``: the target's own answer where it is clearly safe. Its candidate
#: is the guard's, for runs of the faithful mode have none of their own.
LEAST_STEERED: Final = "least steered"
GRID: Final = (*(1 + n / 4 for n in range(16)), 4.9, 4.95, 5.0)

Flags = NDArray[np.bool_]
Methods = dict[str, Generation]


@dataclass(frozen=True, slots=True)
class Kept:
    """What a run keeps of one request: its label, and the answers of two methods.

    ``harm`` is how harmful a probe finds the request, and weighs the verdicts; None leaves them.
    """

    harmful: bool
    own: Generation
    steered: Generation
    harm: float | None = None

    def candidates(self, own: bool, *, unsteered: bool = False) -> list[Candidate]:
        """The target's own answer, or the steered candidates."""
        return candidates_of(self.own if own else self.steered, self.harm, unsteered=unsteered)


def by_request(run: Path, methods: Collection[str]) -> dict[tuple[str, str], Methods]:
    """A run's answers with candidates, by data set and sample, then by method; in its order."""
    found: dict[tuple[str, str], Methods] = {}
    for one in RunFiles(run).generations():
        if one.method in methods and one.candidates:
            found.setdefault((one.dataset, one.sample_id), {})[one.method] = one
    return found


def kept(run: Path) -> list[Kept]:
    """The harmful and benign requests of a run that a guard and AlignBeam answered.

    Without a guard the target's own answer is the last candidate of ``LEAST_STEERED``.
    """
    for method in (GUARD, LEAST_STEERED):
        both = [of for of in by_request(run, (method, STEERED)).values() if len(of) == 2]
        found = [
            Kept(
                of[STEERED].label == "harmful",
                dataclasses.replace(of[method], candidates=of[method].candidates[-1:]),
                of[STEERED],
            )
            for of in both
            if of[STEERED].label != "utility"
        ]
        if found:
            return found
    return []


def candidates_of(
    one: Generation, harm: float | None = None, *, unsteered: bool = False
) -> list[Candidate]:
    """The candidates of an answer with the verdicts that they got, weighed or not."""
    return [
        Candidate(
            text=c.text,
            token_ids=(),
            logprob=c.logprob,
            finish_reason="length",
            verdict=weighed(
                Verdict(5.0 if c.score is None else c.score, judge="kept", error=c.error), harm
            ),
            unsteered=unsteered,
        )
        for c in one.candidates
    ]


def config_of(threshold: float, own: float | None = None) -> BeamConfig:
    """What chooses at these thresholds; with one for the target's own answer, among both."""
    config = BeamConfig(threshold=threshold)
    if own is None:
        return config
    return config.replace(unsteered=True, selection="least_steered", unsteered_threshold=own)


def answered(candidates: list[Candidate], config: BeamConfig) -> str:
    """What would have been answered."""
    try:
        chosen = select(candidates, config).chosen
    except JudgeUnavailable:
        chosen = None
    return config.refusal_text if chosen is None else candidates[chosen].text


Answerer = Callable[[Kept], str]
#: The thresholds, and what answers under them.
Setting = tuple[dict[str, float], Answerer]


def guard(threshold: float) -> Answerer:
    config = config_of(threshold)
    return lambda one: answered(one.candidates(own=True), config)


def faithful(threshold: float) -> Answerer:
    config = config_of(threshold)
    return lambda one: answered(one.candidates(own=False), config)


def least_steered(threshold: float, own: float) -> Answerer:
    config = config_of(threshold, own)
    return lambda one: answered(
        [*one.candidates(own=False), *one.candidates(own=True, unsteered=True)], config
    )


def systems() -> dict[str, list[Setting]]:
    """Every system under every setting of the grid."""
    pairs = [(t, o) for t, o in itertools.product(GRID, GRID) if o <= t]
    return {
        "guard": [({"threshold": t}, guard(t)) for t in GRID],
        "faithful": [({"threshold": t}, faithful(t)) for t in GRID],
        LEAST_STEERED: [
            ({"threshold": t, "unsteered_threshold": o}, least_steered(t, o)) for t, o in pairs
        ],
    }


@cache
def refused(text: str) -> bool:
    """Whether a text is a refusal, read strictly."""
    return classify_reply(text) == "refused"


def outcomes(asked: list[Kept], answerer: Answerer) -> Flags:
    """Which requests are answered with a refusal."""
    return np.array([refused(answerer(one)) for one in asked])
