"""What a run shows of the limits that were asked for, and what it would take to show more."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

from alignbeam.errors import ConfigError
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.summary import BASELINE, figures, latencies, pick
from alignbeam.eval.stats import Rate, wilson

#: No interval over fewer batches is worth a promise.
_LEAST_BATCHES: Final = 5
#: Prompts beyond which nobody is told to look for more.
_MOST_PROMPTS: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked for.

    Attributes
    ----------
    over_refusal : float
        Most of the benign requests that may be refused, 0..1.
    latency : float or None
        Most time a sample, in times of the target's own.
    """

    over_refusal: float
    latency: float | None = None

    def __post_init__(self) -> None:
        if not 0 < self.over_refusal < 1:
            raise ConfigError(f"the over-refusal must be above 0 and below 1: {self.over_refusal}")
        if self.latency is not None and not self.latency >= 1:
            raise ConfigError(f"the latency must be at least 1 (the target's own): {self.latency}")


@dataclass(frozen=True, slots=True)
class Standing:
    """One method in one round.

    Attributes
    ----------
    label : str
    refused, over_refusal : Rate
        Refusals of harmful and of benign requests, by the strict reading.
    ms, low_ms, high_ms : float
        Time a sample, with its 95 % interval over batches.
    batches : int
    times_target : float
        ``ms`` over the target's.
    """

    label: str
    refused: Rate
    over_refusal: Rate
    ms: float
    low_ms: float
    high_ms: float
    batches: int
    times_target: float

    def rank(self, goal: Goal, held: int) -> tuple[float, ...]:
        """Sort first what keeps the limits, then what refuses more harm, then what costs less.

        Parameters
        ----------
        held : int
            Held-out benign prompts, which are to show the limit of over-refusal.
        """
        slow = 0.0 if goal.latency is None else max(0.0, self.times_target - goal.latency)
        over = max(0.0, self.over_refusal.value - share_that_shows(goal.over_refusal, held))
        return over, slow, -self.refused.value, self.over_refusal.value, self.ms


@dataclass(frozen=True, slots=True)
class Promise:
    """One limit, and whether the held-out half shows that it is kept."""

    shown: bool
    words: str


def share_that_shows(limit: float, n: int) -> float:
    """Return the largest share of ``n`` whose interval keeps a limit; the limit where none does."""
    shown = [k for k in range(n + 1) if wilson(k, n).high <= limit]
    return max(shown) / n if shown else limit


def standings_of(files: RunFiles) -> dict[str, Standing]:
    """Return how each method of a scored run stands, by label."""
    found = figures(files)
    rates = {
        label: pick(found, dataset=label, scorer="strict", measure="refused")
        for label in ("harmful", "benign")
    }
    times = {latency.method: latency for latency in latencies(files)}
    return {
        label: Standing(
            label=label,
            refused=rates["harmful"][label].rate,
            over_refusal=rates["benign"][label].rate,
            ms=spent.mean_ms,
            low_ms=spent.low_ms,
            high_ms=spent.high_ms,
            batches=spent.batches,
            times_target=spent.mean_ms / times[BASELINE].mean_ms,
        )
        for label, spent in times.items()
    }


def promises(held: Standing, target: Standing, goal: Goal) -> tuple[Promise, ...]:
    """Say which limits the held-out half shows to be kept, and what would be needed for more."""
    rate, limit = held.over_refusal, goal.over_refusal
    shown = rate.n > 0 and rate.high <= limit
    words = f"benign refused: {rate} of {rate.n}; at most {100 * limit:g} % was asked for: "
    if shown:
        words += "shown"
    elif (more := prompts_needed(rate, limit)) is None:
        words += "not kept"
    else:
        words += f"not shown; if the rate stays, {more} benign prompts more would show it"
    found = [Promise(shown, words)]
    if goal.latency is not None:
        worst = held.high_ms / target.low_ms
        enough = min(held.batches, target.batches) >= _LEAST_BATCHES
        kept = worst <= goal.latency
        words = (
            f"time a sample: {held.times_target:.2f} times the target's, {worst:.2f} at the ends "
            f"of both intervals; at most {goal.latency:g} was asked for: "
        )
        if not enough:
            words += f"not shown by {held.batches} batches; {_LEAST_BATCHES} are the least"
        else:
            words += "shown" if kept else "not shown"
        found.append(Promise(enough and kept, words))
    return tuple(found)


def prompts_needed(rate: Rate, limit: float) -> int | None:
    """Return how many prompts more, in both halves, would show a rate to be under a limit.

    They are as many as bring the upper end of the Wilson interval to it, were the share refused to
    stay what it is; None where that is not below the limit, or takes a million.
    """
    share = rate.value if rate.n else 0.0
    if share >= limit:
        return None
    n = max(1, rate.n)
    while wilson(math.ceil(share * n), n).high > limit:
        n += max(1, n // 100)
        if n > _MOST_PROMPTS:
            return None
    return 2 * (n - rate.n)
