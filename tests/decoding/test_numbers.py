"""The road over numbers mixes as the road over logits does, whatever the settings."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.config import BeamConfig
from alignbeam.decoding.numbers import mix, translate
from alignbeam.ops.reference import mix_topk
from alignbeam.ops.spec import Flags

#: The road over logits rounds its log-probabilities to float32.
ROOM = 2e-6


@st.composite
def steps(draw):
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32 - 1)))
    va, vt = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    spread = draw(st.sampled_from([0.1, 2.0, 12.0]))
    anchor = torch.randn(va, generator=generator, dtype=torch.float64) * spread
    target = torch.randn(vt, generator=generator, dtype=torch.float64) * spread
    for logits in (anchor, target):  # some tokens are impossible
        gone = torch.rand(len(logits), generator=generator) < draw(st.sampled_from([0.0, 0.3]))
        gone[0] = False
        logits[gone] = -math.inf
    table = torch.randint(-1, vt, (va,), generator=generator, dtype=torch.int32)
    if draw(st.booleans()):
        table[torch.rand(va, generator=generator) < 0.8] = -1
    if draw(st.sampled_from([False, False, False, True])):
        table[:] = -1
    config = BeamConfig(
        alpha=draw(st.sampled_from([0.0, 1.0, 0.5, 0.3, 0.999])),
        top_b=draw(st.integers(1, va)),
        mix=draw(st.sampled_from(["linear", "log"])),
        support=draw(st.sampled_from(["anchor", "union"])),
    )
    return anchor, target, table, config, draw(st.integers(1, min(8, vt)))


def by_numbers(anchor, target, table, config, top_k):
    """Mix what an engine would tell of the two rows, and nothing else of them."""
    log_p, log_q = anchor.log_softmax(0), target.log_softmax(0)
    order = anchor.sort(descending=True, stable=True).indices[: config.top_b]
    top = [(i, float(log_p[i])) for i in order.tolist()]
    entries = table.tolist()
    named = {i: float(log_q[i]) for i in translate(top, entries)}

    def best(count):
        ids = target.sort(descending=True, stable=True).indices[:count]
        return [(i, float(log_q[i])) for i in ids.tolist()]

    return mix(top, entries, named, best, config, top_k)


@given(steps())
def test_numbers_give_what_logits_give(step):
    anchor, target, table, config, top_k = step
    got = by_numbers(*step)
    want = mix_topk(
        anchor[None], target[None], table, alpha=config.alpha, top_b=config.top_b, top_k=top_k,
        mix=config.mix, support=config.support,
    )  # fmt: skip
    said = zip(want.token_ids[0].tolist(), want.logprobs[0].tolist(), strict=True)
    # What has no probability is no choice: the controller leaves it out.
    due = [(i, value) for i, value in said if i >= 0 and value > -math.inf]
    found = [
        (i, value)
        for i, value in zip(got.token_ids, got.logprobs, strict=True)
        if value > -math.inf
    ]
    assert [i for i, _ in found] == [i for i, _ in due]
    for (_, mine), (_, theirs) in zip(found, due, strict=True):
        assert mine == pytest.approx(theirs, abs=ROOM, rel=ROOM)
    assert got.empty_support == bool(int(want.flags[0]) & Flags.EMPTY_SUPPORT)
    for name in ("anchor_mass", "translated_mass", "target_mass"):
        assert getattr(got, name) == pytest.approx(float(getattr(want, name)[0]), abs=ROOM)
