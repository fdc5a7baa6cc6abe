"""Rates with honest intervals: small samples are reported with what they do not tell."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist


@dataclass(frozen=True, slots=True)
class Rate:
    """A share of ``n`` trials with its confidence interval.

    Attributes
    ----------
    successes, n : int
        Counted cases and trials.
    low, high : float
        Ends of the confidence interval, 0..1.
    """

    successes: int
    n: int
    low: float
    high: float

    @property
    def value(self) -> float:
        """The observed share, 0..1; NaN without trials."""
        return self.successes / self.n if self.n else math.nan

    def __str__(self) -> str:
        """Percentages: ``62.5 % [42.7, 78.8]``."""
        if not self.n:
            return "no trials"
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


def wilson(successes: int, n: int, confidence: float = 0.95) -> Rate:
    """Wilson score interval of a binomial share.

    ``(p + z^2/2n +- z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n)``, which stays inside 0..1 and is
    honest at 0 and n successes, where the textbook interval has width zero.

    Parameters
    ----------
    successes, n : int
        Counted cases and trials, ``0 <= successes <= n``. Without trials the interval is 0..1.
    confidence : float
        Two-sided coverage, strictly between 0 and 1.

    Raises
    ------
    ValueError
        Counts or confidence out of range.

    Source: E. B. Wilson, JASA 22 (1927) 209-212; A. Agresti and B. Coull, Am. Stat. 52 (1998).
    """
    if n < 0 or not 0 <= successes <= n:
        raise ValueError(f"wilson: successes must be in 0..n, got {successes} of {n}")
    if not 0 < confidence < 1:
        raise ValueError(f"wilson: confidence must be between 0 and 1, got {confidence}")
    if n == 0:
        return Rate(0, 0, 0.0, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = successes / n
    scale = 1 + z * z / n
    middle = (share + z * z / (2 * n)) / scale
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / scale
    # The exact ends are 0 and 1 where nothing or everything counted; rounding must not move them.
    low = 0.0 if successes == 0 else max(0.0, middle - half)
    high = 1.0 if successes == n else min(1.0, middle + half)
    return Rate(successes, n, low, high)


def rate(outcomes: Iterable[bool], confidence: float = 0.95) -> Rate:
    """Count ``outcomes`` and put the Wilson interval around their share."""
    counted = [bool(outcome) for outcome in outcomes]
    return wilson(sum(counted), len(counted), confidence)


@dataclass(frozen=True, slots=True)
class Paired:
    """Two methods on the same samples.

    Attributes
    ----------
    n : int
        Samples.
    only_first, only_second : int
        Where one of the two alone succeeded.
    difference, low, high : float
        Second minus first, as a share of ``n``, with its 95 % interval (Wald on the
        discordant pairs, Agresti and Min 2005: half a count added to each cell).
    p_value : float
        McNemar's exact test, two-sided: how often a fair coin would split the discordant pairs
        at least as unevenly.
    """

    n: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p_value: float


def paired(first: Sequence[bool], second: Sequence[bool]) -> Paired:
    """Compare two methods sample by sample.

    Raises
    ------
    ValueError
        They have not the same number of samples, or none.

    Source: Q. McNemar, Psychometrika 12 (1947), in its exact form; A. Agresti and Y. Min,
    Statistics in Medicine 24 (2005).
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"paired: both must have the same samples, got {len(first)} and {len(second)}"
        )
    n = len(first)
    lost = sum(a and not b for a, b in zip(first, second, strict=True))
    won = sum(b and not a for a, b in zip(first, second, strict=True))
    b, c, m = lost + 0.5, won + 0.5, n + 2.0
    middle = (c - b) / m
    half = NormalDist().inv_cdf(0.975) * math.sqrt(max(b + c - (c - b) ** 2 / m, 0.0)) / m
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    return Paired(n, lost, won, (won - lost) / n, low, high, mcnemar(lost, won))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test, 0..1; 1 where the two never differ.

    Raises
    ------
    ValueError
        A negative count.
    """
    if min(only_first, only_second) < 0:
        raise ValueError(f"mcnemar: counts must be >= 0, got {only_first} and {only_second}")
    n = only_first + only_second
    tail = sum(math.comb(n, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / (1 << n))


def kappa(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Cohen's kappa of two scorers, -1..1; NaN where chance alone would agree always.

    Raises
    ------
    ValueError
        They have not the same number of samples, or none.

    Source: J. Cohen, Educational and Psychological Measurement 20 (1960).
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"kappa: both must have the same samples, got {len(first)} and {len(second)}"
        )
    n = len(first)
    agreed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    p, q = sum(first) / n, sum(second) / n
    chance = p * q + (1 - p) * (1 - q)
    return math.nan if chance >= 1 else (agreed - chance) / (1 - chance)


def bootstrap_ratio(
    pairs: Sequence[tuple[float, float]], *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """Sum of the first over the sum of the second, with its 95 % percentile bootstrap interval.

    Returns
    -------
    tuple of float
        The ratio, low, high; pairs are resampled.

    Raises
    ------
    ValueError
        No pairs.

    Source: B. Efron, Annals of Statistics 7 (1979).
    """
    if not pairs:
        raise ValueError("bootstrap_ratio: at least one pair is needed")
    draw = random.Random(seed)

    def ratio(drawn: Sequence[tuple[float, float]]) -> float:
        return math.fsum(a for a, _ in drawn) / math.fsum(b for _, b in drawn)

    found = sorted(ratio(draw.choices(pairs, k=len(pairs))) for _ in range(resamples))
    cut = max(0, math.ceil(0.025 * resamples) - 1)
    return ratio(pairs), found[cut], found[-1 - cut]


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Chance that a positive scores above a negative; ties count half.

    Raises
    ------
    ValueError
        One side is empty.
    """
    if not positive or not negative:
        raise ValueError("an AUROC needs scores of both classes")
    ranked = sorted([(s, 1) for s in positive] + [(s, 0) for s in negative])
    total, i = 0.0, 0
    while i < len(ranked):
        j = i
        while j < len(ranked) and ranked[j][0] == ranked[i][0]:
            j += 1
        total += sum(kind for _, kind in ranked[i:j]) * (i + j + 1) / 2
        i = j
    n, m = len(positive), len(negative)
    return (total - n * (n + 1) / 2) / (n * m)


def auroc_interval(value: float, n: int, m: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of an AUROC of ``n`` positives and ``m`` negatives: all that do not refute it.

    As Wilson's of a rate: the error is that of the bound, not of the value, so that no interval is
    a point, not even of scores that do not overlap.

    Source
    ------
    Newcombe, Statistics in Medicine 25 (2006), part 2, method 5.
    """
    mean = (n + m) / 2 - 1

    def refuted(truth: float) -> bool:
        spread = 1 + mean * ((1 - truth) / (2 - truth) + truth / (1 + truth))
        return abs(value - truth) > z * math.sqrt(truth * (1 - truth) * spread / (n * m))

    def bound(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if refuted(middle) else (middle, outside)
        return inside

    return bound(value, 0.0), bound(value, 1.0)
