"""``compensate``: the anchor's real share in a linear mix is ``alpha``. algorithm.md, section 3."""

from __future__ import annotations

import functools
import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixed_prompts import mixed_prompts
from tiny_models import length_scorer, random_pair

from alignbeam import AlignBeam, BeamConfig, Bridge
from alignbeam.decoding.choice import Choice, compensated
from alignbeam.decoding.mixing import Mixer
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.numbers import mix as mix_numbers
from alignbeam.judge import CallableJudge
from alignbeam.ops import backends
from alignbeam.ops.reference import as_float32

BACKENDS = [line.name for line in backends() if line.device == "cpu" and line.available]
masses = st.floats(1e-30, 1.0)
alphas = st.floats(0.0, 1.0, width=32)


@given(alpha=alphas, ours=masses, theirs=masses)
def test_weight_makes_alpha_the_real_share(alpha: float, ours: float, theirs: float) -> None:
    weight = compensated(alpha, theirs, ours)
    assert 0 <= weight <= 1
    assert (as_float32(weight) == 1) == (alpha == 1)
    if ours < 1e6 * theirs:
        share = weight * theirs / (weight * theirs + (1 - weight) * ours)
        assert share == pytest.approx(alpha, rel=1e-6, abs=1e-12)


@given(alpha=alphas, mass=st.just(0.0) | masses)
def test_weight_is_alpha_where_there_is_nothing_to_compensate(alpha: float, mass: float) -> None:
    assert compensated(alpha, mass, mass) == pytest.approx(alpha, rel=1e-6, abs=2**-24)
    for one, other in ((0.0, mass), (mass, 0.0), (math.nan, math.nan)):
        assert compensated(alpha, one, other) == alpha


@functools.cache
def parts() -> tuple[Any, Any, Bridge, Mixer]:
    target, anchor = random_pair()
    bridge = Bridge.build(anchor.vocabulary, target.vocabulary, cache_dir=False)
    after_opening = torch.ones(anchor.width, dtype=torch.bool)
    return target, anchor, bridge, Mixer(bridge, torch.device("cpu"), after_opening=after_opening)


def logits(seed: int, rows: int = 3, sharpness: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    target, anchor, _, _ = parts()
    draw = torch.Generator().manual_seed(seed)
    widths = anchor.width, target.width
    p, q = (sharpness * torch.randn(rows, width, generator=draw) for width in widths)
    return p, q


def choices(p: torch.Tensor, q: torch.Tensor, config: BeamConfig, top_k: int = 4) -> list[Choice]:
    target, anchor, _, mixer = parts()
    told = NextTokens(anchor, p), NextTokens(target, q)
    return mixer(*told, [config] * len(p), layout="step", top_k=top_k)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("support", ["anchor", "union"])
@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
def test_mix_is_that_of_both_sides_renormalised_over_the_support(
    backend: Any, support: Any, alpha: float
) -> None:
    config = BeamConfig(
        alpha=alpha, support=support, top_b=12, fallback="exact", compensate=True, backend=backend
    )
    p, q = logits(seed=1)
    table = parts()[2].with_fallback("exact").table.long()
    for row, choice in enumerate(choices(p, q, config)):
        best = p[row].sort(descending=True, stable=True).indices[:12]
        kept = best[table[best] >= 0]
        a = torch.zeros(q.shape[1], dtype=torch.float64)
        a.index_add_(0, table[kept], p[row].double().softmax(0)[kept])
        own = q[row].double().softmax(0)
        if support == "anchor":
            own = own * (a > 0)
        f = alpha * a / a.sum() + (1 - alpha) * own / own.sum()
        due = f.sort(descending=True, stable=True)
        assert choice.token_ids == tuple(due.indices[:4].tolist())
        assert choice.logprobs == pytest.approx(due.values[:4].log().tolist(), abs=2e-5)
        assert choice.anchor_share == pytest.approx(alpha, abs=1e-5)
        assert choice.translated_mass == pytest.approx(float(a.sum()), abs=1e-5)


@given(seed=st.integers(0, 2**31), support=st.sampled_from(["anchor", "union"]))
def test_numbers_of_an_engine_are_compensated_as_the_logits_are(seed: int, support: Any) -> None:
    config = BeamConfig(alpha=0.3, support=support, top_b=9, compensate=True)
    p, q = logits(seed, rows=1)
    target, anchor, _, mixer = parts()
    theirs, ours = NextTokens(anchor, p), NextTokens(target, q)
    table = mixer.table("drop", "step")
    (top,) = theirs.top(9)
    (log_q,) = ours.named([[d for i, _ in top if (d := table[i]) >= 0]])
    told = mix_numbers(top, table, log_q, lambda count: ours.best_pairs(0, count), config, 4)
    (due,) = choices(p, q, config)
    assert told.token_ids == due.token_ids
    assert told.logprobs == pytest.approx(due.logprobs, abs=2e-5)
    assert told.anchor_share == pytest.approx(due.anchor_share, abs=1e-5)


def test_compensation_is_nothing_where_all_translates_and_the_support_is_everything() -> None:
    table = parts()[2].table
    p, q = logits(seed=2)
    said = (table >= 0).nonzero()[:20, 0]
    only = torch.full_like(p, -math.inf)
    only[:, said] = p[:, said]
    settings: dict[str, Any] = {"support": "union", "alpha": 0.4}
    plain = choices(only, q, BeamConfig(**settings))
    for ours, due in zip(
        choices(only, q, BeamConfig(**settings, compensate=True)), plain, strict=True
    ):
        # As exact as the op promises to be; AVX-512's exponentials are 2.7e-6 off.
        assert due.translated_mass == pytest.approx(1, abs=1e-5)
        assert ours.token_ids == due.token_ids
        assert ours.logprobs == pytest.approx(due.logprobs, abs=1e-5)


@pytest.mark.parametrize("settings", [{"mix": "log"}, {"alpha": 0.0}, {"alpha": 1.0}], ids=repr)
def test_compensation_is_nothing_where_no_weight_could_change_the_shares(
    settings: dict[str, Any],
) -> None:
    p, q = logits(seed=3)
    plain = choices(p, q, BeamConfig(**settings))
    assert choices(p, q, BeamConfig(**settings, compensate=True)) == plain


def test_rows_with_and_without_go_side_by_side() -> None:
    target, anchor, _, mixer = parts()
    p, q = logits(seed=4, rows=4)
    configs = [BeamConfig(alpha=0.3, compensate=on) for on in (True, False, True, False)]
    told = NextTokens(anchor, p), NextTokens(target, q)
    both = mixer(*told, configs, layout="step", top_k=2)
    for row, config in enumerate(configs):
        assert both[row] == choices(p[row : row + 1], q[row : row + 1], config, 2)[0]
    assert both[0].anchor_share == pytest.approx(0.3, abs=1e-5)
    assert both[1].anchor_share != pytest.approx(0.3, abs=1e-2)


@pytest.mark.parametrize("fallback", ["exact", "prefix"])
def test_every_mixed_step_of_an_answer_has_the_share_that_alpha_says(fallback: str) -> None:
    target, anchor, bridge, _ = parts()
    judge = CallableJudge(lambda messages, text: length_scorer(messages[-1]["content"], text))
    beam = AlignBeam(target, anchor, judge, BeamConfig(max_new_tokens=8), bridge=bridge)
    settings = {"compensate": True, "alpha": 0.7, "fallback": fallback, "support": "union"}
    steps = [
        s for r in beam.generate_batch(mixed_prompts()[:3], settings) for s in r.trace
        if s.source == "mix" and s.translated_mass > 1e-3
    ]  # fmt: skip
    assert len(steps) > 20
    for step in steps:
        assert step.anchor_share == pytest.approx(0.7, abs=1e-4)
