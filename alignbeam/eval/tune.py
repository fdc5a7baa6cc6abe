"""Settings for one trio and one's own prompts: many are tried on few, the better ones on more.

Successive halving: every candidate answers a small part of the *tuning* half of each set, the
better half of the candidates a part twice as large, and so on; what is left is compared on all of
it. Better is what refuses most harm of those whose share of refused benign requests, were it the
same on the held-out half, would be shown to keep the limit. The winner is then measured once on the
*held-out* half, which decided nothing, and promises are made of that alone. Each round is a run of
its own (``eval.run``), so all of it can be interrupted and taken up again.

Source: K. Jamieson and A. Talwalkar, Non-stochastic best arm identification, AISTATS 2016.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alignbeam.errors import ConfigError
from alignbeam.eval.datasets import Part
from alignbeam.eval.methods import Models, build_method
from alignbeam.eval.promises import (
    Goal,
    Promise,
    Standing,
    promises,
    prompts_needed,
    standings_of,
)
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.run import Prepared, RunWatcher, generate, prepare, price, score
from alignbeam.eval.run.summary import BASELINE
from alignbeam.eval.stats import wilson
from alignbeam.eval.suite import MethodChoice, Suite

#: What candidates are drawn from; a value is one or several settings of the method ``alignbeam``.
AXES: Final[dict[str, tuple[Mapping[str, Any], ...]]] = {
    "alpha": tuple({"alpha": a} for a in (0.5, 0.2, 0.3, 0.4, 0.7)),
    "mix_steps": tuple({"mix_steps": n} for n in (6, 3, 12)),
    "beams": tuple({"beams": k} for k in (3, 1, 2)),
    "top_b": tuple({"top_b": b} for b in (50, 100)),
    "fallback": tuple({"fallback": f} for f in ("drop", "first")),
    "threshold": tuple({"threshold": t} for t in (2.5, 2.0, 3.0, 3.5, 4.0)),
    "own": (
        {},
        {"unsteered": True, "selection": "least_steered"},
        {"unsteered": True, "selection": "least_steered", "unsteered_threshold": 1.1},
        {"unsteered": True, "selection": "least_steered", "unsteered_threshold": 4.0},
    ),
    "gate": (
        {},
        {"gate": {"use": ["divergence"], "divergence": 0.1}},
        {"gate": {"use": ["divergence"], "divergence": 0.3}},
        {"gate": {"use": ["refusals"], "refusals": 0.02}},
        {"gate": {"use": ["refusals"], "refusals": 0.1}},
        {"gate": {"use": ["agreement"]}},
    ),
}
#: What every search tries beside the defaults: the target's own answer where it is clearly safe,
#: and where it is not clearly harmful; the judge then refuses hardly anything harmless.
_ALWAYS: Final = (AXES["own"][1], {**AXES["own"][-1], "threshold": 4.0})
#: For judges that say whether a request is harmful.
_OF_REQUEST: Final = tuple({"gate": {"use": ["request"], "request": p}} for p in (0.1, 0.5))

_METHOD: Final = "alignbeam"


@dataclass(frozen=True, slots=True)
class Round:
    """Which candidates answer how much of each set."""

    name: str
    labels: tuple[str, ...]
    limit: int | None
    part: Part


@dataclass(frozen=True, slots=True)
class Tuned:
    """What came of it.

    Attributes
    ----------
    settings : mapping
        Of the winner; settings of the method ``alignbeam`` that are not the defaults.
    tuning, held_out : Standing
        The winner on the whole of either half.
    target, faithful : Standing
        The target alone, and the default settings, on the held-out half.
    promises : tuple of Promise
    """

    settings: Mapping[str, Any]
    tuning: Standing
    held_out: Standing
    target: Standing
    faithful: Standing
    promises: tuple[Promise, ...]


def population(
    count: int,
    seed: int,
    held: Mapping[str, Any],
    *,
    longest: int = 256,
    asks_request: bool = False,
) -> list[MethodChoice]:
    """Draw the candidates: the defaults, two that steer less, then at random, no two alike.

    Parameters
    ----------
    held : mapping
        Settings that are not to be varied.
    longest : int
        Tokens of an answer; no more are mixed.
    asks_request : bool
        Whether the judge says of requests that they are harmful.

    Raises
    ------
    ConfigError
        Fewer than two, or a setting out of range.
    """
    if count < 2:
        raise ConfigError(f"there must be 2 candidates or more, got {count}")
    steps = [{"mix_steps": min(n["mix_steps"], longest)} for n in AXES["mix_steps"]]
    gates = AXES["gate"] + (_OF_REQUEST if asks_request else ())
    axes = {**AXES, "mix_steps": tuple(steps), "gate": gates}
    draw = random.Random(f"alignbeam tune {seed}")
    found: dict[str, dict[str, Any]] = {}
    for n in range(50 * count):
        fixed = n <= len(_ALWAYS)
        chosen = [values[0] if fixed else draw.choice(values) for values in axes.values()]
        drawn = {k: v for setting in chosen for k, v in setting.items()}
        if 0 < n <= len(_ALWAYS):
            drawn |= _ALWAYS[n - 1]
        settings = {**drawn, **held}
        default = build_method(_METHOD, {}).settings
        own = build_method(_METHOD, settings).settings
        changed = {k: v for k, v in own.items() if v != default[k]}
        told = ",".join(f"{k}={_short(v)}" for k, v in changed.items())
        found.setdefault(f"{_METHOD}[{told}]" if told else _METHOD, changed)
        if len(found) == count:
            break
    return [MethodChoice(label=k, method=_METHOD, settings=v) for k, v in found.items()]


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return "+".join(str(v if k != "use" else "/".join(v)) for k, v in value.items())
    return str(value)


class Tuning:
    """The search over one folder of runs.

    Parameters
    ----------
    suite : Suite
        Its data sets, common settings and seed; its methods are not used.
    models : Models
    goal : Goal
    candidates : list of MethodChoice
    folder : Path
    first : int
        Samples of each set in the first round.
    data : Path or None
        Data folder.
    """

    def __init__(
        self,
        suite: Suite,
        models: Models,
        goal: Goal,
        candidates: Sequence[MethodChoice],
        folder: Path,
        *,
        first: int = 16,
        data: Path | None = None,
    ) -> None:
        labels = {d.declared.label for d in suite.datasets}
        if not {"harmful", "benign"} <= labels:
            raise ConfigError("tuning needs a set of harmful and one of benign requests")
        self.suite, self.models, self.goal = suite, models, goal
        self.candidates = {choice.label: choice for choice in candidates}
        self.folder, self.first, self.data = folder, first, data

    def _prepared(self, round: Round) -> Prepared:
        methods = [
            MethodChoice(label=BASELINE, method="target"),
            *(self.candidates[label] for label in round.labels),
        ]
        suite = dataclasses.replace(
            self.suite,
            name=f"tune-{round.name}",
            methods=tuple(methods),
            datasets=tuple(
                dataclasses.replace(d, limit=round.limit, part=round.part)
                for d in self.suite.datasets
            ),
        )
        return prepare(suite, models=self.models, data=self.data, kind="tune")

    def rounds(self, labels: Sequence[str]) -> list[Round]:
        """Return the rounds of the tuning half; each but the first names places, not labels."""
        found: list[Round] = []
        left, limit = len(labels), self.first
        while left > 2:
            found.append(Round(f"round-{len(found) + 1}", tuple(labels[:left]), limit, "tuning"))
            left, limit = math.ceil(left / 2), 2 * limit
        found.append(Round(f"round-{len(found) + 1}", tuple(labels[:left]), None, "tuning"))
        return found

    def could_show(self) -> str | None:
        """Say what is missing where no outcome could show the limit; None where one could."""
        count = self._benign_held_out()
        best = wilson(0, count)
        if best.high <= self.goal.over_refusal:
            return None
        more = prompts_needed(best, self.goal.over_refusal)
        return (
            f"{count} held-out benign prompts cannot show that at most "
            f"{100 * self.goal.over_refusal:g} % are refused, were none of them: that takes "
            f"{more} prompts more"
        )

    def _benign_held_out(self) -> int:
        held = self._prepared(self._held_out(next(iter(self.candidates)))).plan.asked
        return sum(asked.dataset.label == "benign" for asked in held)

    def price(self) -> list[dict[str, Any]]:
        """Say what all of it would take, from a few samples; see ``run.price``.

        Returns
        -------
        list of mapping
            Per round: ``round``, ``candidates``, ``samples``, ``seconds``.
        """
        labels = list(self.candidates)
        first = self._prepared(self.rounds(labels)[0])
        of_unit = price(first)
        methods = sum(len(row["methods"]) for row in of_unit)
        each = sum(row["seconds_a_sample"] for row in of_unit) / methods
        found = []
        for round in [*self.rounds(labels), self._held_out(labels[0])]:
            samples = len(self._prepared(round).plan.asked)
            answers = samples * (1 + len(round.labels))
            found.append(
                {
                    "round": round.name,
                    "candidates": len(round.labels),
                    "samples": samples,
                    "seconds": each * answers,
                }
            )
        return found

    def run(self, watcher: RunWatcher | None = None) -> Tuned:
        """Search, then measure the winner on what decided nothing."""
        order = list(self.candidates)
        held_out = self._benign_held_out()
        standings: dict[str, Standing] = {}
        for round in self.rounds(order):
            now = dataclasses.replace(round, labels=tuple(order[: len(round.labels)]))
            standings = self._measure(now, watcher)
            order = sorted(now.labels, key=lambda label: standings[label].rank(self.goal, held_out))
        winner = order[0]
        held = self._measure(self._held_out(winner), watcher)
        return Tuned(
            settings=self.candidates[winner].settings,
            tuning=standings[winner],
            held_out=held[winner],
            target=held[BASELINE],
            faithful=held[next(iter(self.candidates))],
            promises=promises(held[winner], held[BASELINE], self.goal),
        )

    def _held_out(self, winner: str) -> Round:
        labels = dict.fromkeys((next(iter(self.candidates)), winner))
        return Round("held-out", tuple(labels), None, "held-out")

    def _measure(self, round: Round, watcher: RunWatcher | None) -> dict[str, Standing]:
        prepared = self._prepared(round)
        folder = self.folder / round.name
        generate(prepared, folder, watcher)
        score(prepared, folder, watcher)
        return standings_of(RunFiles(folder))
