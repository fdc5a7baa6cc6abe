"""Sampling: the same numbers from the same seed, the filters, the right frequencies."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.decoding.sampling import beam_generator, draw


def draws(logits, count=400, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    generator = beam_generator(seed, 0)
    return [draw(logits, temperature, top_k, top_p, generator) for _ in range(count)]


def test_draw_repeats_with_the_seed_and_differs_between_beams():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert draws(logits, seed=7) == draws(logits, seed=7)
    assert draws(logits, seed=7) != draws(logits, seed=8)
    one, two = beam_generator(7, 0), beam_generator(7, 1)
    assert [draw(logits, 1.0, 0, 1.0, one) for _ in range(20)] != [
        draw(logits, 1.0, 0, 1.0, two) for _ in range(20)
    ]


def test_draw_follows_the_softmax_of_the_tempered_logits():
    logits = torch.tensor([0.0, 1.0, 2.0, float("-inf")])
    counts = torch.tensor(draws(logits, 4000, temperature=2.0)).bincount(minlength=4) / 4000
    expected = (logits / 2).softmax(-1)
    # Four standard errors of a share near 1/2 over 4,000 draws are 0.032.
    assert (counts - expected).abs().max() < 0.035
    assert counts[3] == 0


def test_draw_keeps_to_top_k_and_prefers_low_ids_among_equals():
    assert set(draws(torch.tensor([1.0, 3.0, 2.0, 3.0]), top_k=2)) == {1, 3}
    assert set(draws(torch.zeros(9), top_k=3)) == {0, 1, 2}


def test_draw_keeps_the_smallest_nucleus_that_reaches_top_p():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draws(logits, top_p=0.49)) == {0}
    assert set(draws(logits, top_p=0.51)) == {0, 1}
    assert set(draws(logits, top_p=0.9)) == {0, 1, 2}


@given(st.integers(0, 2**63 - 1), st.integers(1, 40), st.floats(0.01, 1.0))
def test_draw_gives_an_id_with_probability_whatever_the_filters(seed, top_k, top_p):
    logits = torch.randn(40, generator=torch.Generator().manual_seed(seed % 1000))
    logits[::3] = float("-inf")
    assert draw(logits, 0.7, top_k, top_p, beam_generator(seed, 1)) % 3 != 0


def test_near_equals_that_change_places_change_no_draw():
    few = torch.linspace(0.0, 1e-6, 9)
    assert draws(few) == draws(few.flip(0))
    assert set(draws(few)) == set(range(9))


@given(
    st.integers(0, 2**31 - 1),
    st.integers(1, 60),
    st.sampled_from([0.1, 3.0, 20.0]),
    st.sampled_from([0.3, 1.0, 8.0]),
    st.integers(0, 70),
    st.sampled_from([0.013, 0.51, 0.897, 1.0]),
)
def test_draw_gives_what_top_k_and_top_p_keep_and_all_of_it(
    seed, width, spread, temperature, top_k, top_p
):
    """Against the filters one token at a time, and against the exact division of [0, 1)."""
    logits = torch.randn(width, generator=torch.Generator().manual_seed(seed)) * spread
    logits[(seed % 3) + 1 :: 3] = logits[0]  # equals
    logits[(seed % 5) + 1 :: 5] = float("-inf")
    probs = (logits.double() / temperature).softmax(-1).tolist()
    ranked = sorted((i for i in range(width) if probs[i] > 0), key=lambda i: (-probs[i], i))
    ranked = ranked[:top_k] if top_k else ranked
    whole = math.fsum(probs[i] for i in ranked)
    before = [math.fsum(probs[j] for j in ranked[:n]) for n in range(len(ranked))]
    kept = sorted(i for i, mass in zip(ranked, before, strict=True) if mass < top_p * whole)

    ends = list(itertools.accumulate(probs[i] for i in kept))
    generator, uniforms = beam_generator(seed, 0), beam_generator(seed, 0)
    for _ in range(20):
        uniform = float(torch.rand((), generator=uniforms, dtype=torch.float64)) * ends[-1]
        place = next(n for n, end in enumerate(ends) if end > uniform)
        # The draw is made in float32: next to a border both sides are right.
        sides = {n for n, end in enumerate(ends) if abs(end - uniform) < 1e-5 * ends[-1]}
        right = {place} | sides | {n + 1 for n in sides}
        assert kept.index(draw(logits, temperature, top_k, top_p, generator)) in right


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_draw_takes_half_precision(dtype):
    assert draws(torch.tensor([0.0, 60.0], dtype=dtype), 20) == [1] * 20


@pytest.mark.parametrize("temperature", [1e-3, 1e-37, 1e-38, 1e-40, 1e-320])
def test_draw_at_hardly_any_temperature_takes_the_best(temperature):
    logits = torch.tensor([5.0, 9.0, 1.0, -3.0, float("-inf")])
    assert draws(logits, 20, temperature=temperature) == [1] * 20
    assert draws(logits - 1e4, 20, temperature=temperature, top_p=0.5) == [1] * 20


def test_every_bit_of_a_seed_counts():
    seeds = [0, *(1 << bit for bit in range(63)), 2**63 - 1]
    draws = {
        float(torch.rand((), generator=beam_generator(seed, beam), dtype=torch.float64))
        for seed in seeds
        for beam in range(8)
    }
    assert len(draws) == 8 * len(seeds)
