"""Intervals: against published values, an independent computation, and their own laws."""

from __future__ import annotations

import math
import random
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.eval.stats import auroc, auroc_interval, rate, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values_four_decimals(successes, n, low, high):
    interval = wilson(successes, n)
    assert round(interval.low, 4) == low
    assert round(interval.high, 4) == high


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_ends_solve_the_score_equation_any_counts(case):
    successes, n = case
    interval = wilson(successes, n)
    z = NormalDist().inv_cdf(0.975)
    assert 0 <= interval.low <= interval.value <= interval.high <= 1
    for end in (interval.low, interval.high):
        if 0 < end < 1:
            distance = abs(interval.value - end)
            assert math.isclose(distance, z * math.sqrt(end * (1 - end) / n), rel_tol=1e-6)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_mirrors_for_the_opposite_outcome(case):
    successes, n = case
    interval, mirrored = wilson(successes, n), wilson(n - successes, n)
    assert math.isclose(interval.low, 1 - mirrored.high, abs_tol=1e-12)
    assert math.isclose(interval.high, 1 - mirrored.low, abs_tol=1e-12)


def test_wilson_keeps_width_where_everything_or_nothing_counted():
    assert wilson(0, 24).low == 0.0
    assert 0.1 < wilson(0, 24).high < 0.2
    assert wilson(24, 24).high == 1.0


def test_wilson_knows_nothing_without_trials():
    interval = wilson(0, 0)
    assert (interval.low, interval.high) == (0.0, 1.0)
    assert math.isnan(interval.value)
    assert str(interval) == "no trials"


def test_wilson_widens_with_confidence():
    assert wilson(5, 20, 0.99).low < wilson(5, 20, 0.95).low


@pytest.mark.parametrize(("successes", "n"), [(-1, 5), (6, 5), (0, -1)])
def test_wilson_refuses_counts_out_of_range(successes, n):
    with pytest.raises(ValueError, match="successes must be in"):
        wilson(successes, n)


@pytest.mark.parametrize("confidence", [0, 1, float("nan")])
def test_wilson_refuses_confidence_out_of_range(confidence):
    with pytest.raises(ValueError, match="confidence must be"):
        wilson(1, 2, confidence)


def test_rate_counts_outcomes_and_prints_percent():
    assert rate([True, False, True, True]) == wilson(3, 4)
    assert str(rate([True, False])) == "50.0 % [9.5, 90.5]"


def test_auroc_is_the_share_of_ordered_pairs():
    rng = random.Random(2)
    high = [rng.choice((1.0, 2.0, 3.0, 4.0)) for _ in range(13)]
    low = [rng.choice((1.0, 2.0, 3.0)) for _ in range(17)]
    pairs = [(h > s) + 0.5 * (h == s) for h in high for s in low]
    assert auroc(high, low) == pytest.approx(sum(pairs) / len(pairs))
    with pytest.raises(ValueError, match="both classes"):
        auroc(high, [])


@pytest.mark.parametrize("value", [0.0, 0.2, 0.5, 0.893, 1.0])
@pytest.mark.parametrize(("n", "m"), [(51, 58), (20, 20), (3, 200)])
def test_auroc_interval_ends_where_the_value_is_just_refuted(value, n, m):
    low, high = auroc_interval(value, n, m)
    assert 0 <= low <= value <= high <= 1
    assert high - low > 0.02
    mean = (n + m) / 2 - 1
    for end in {low, high} - {0.0, 1.0, value}:
        spread = 1 + mean * ((1 - end) / (2 - end) + end / (1 + end))
        error = math.sqrt(end * (1 - end) * spread / (n * m))
        assert abs(value - end) / error == pytest.approx(1.959964, rel=1e-6)
    mirrored = auroc_interval(1 - value, n, m)
    assert mirrored == pytest.approx((1 - high, 1 - low))


def test_auroc_interval_holds_the_truth_nineteen_times_in_twenty():
    rng = random.Random(5)
    truth = 0.5 * math.erfc(-2.0 / 2)  # two normal scores, two standard deviations apart
    inside = 0
    for _ in range(400):
        high = [rng.gauss(2, 1) for _ in range(20)]
        low = [rng.gauss(0, 1) for _ in range(30)]
        bounds = auroc_interval(auroc(high, low), 20, 30)
        inside += bounds[0] <= truth <= bounds[1]
    assert inside / 400 > 0.93
