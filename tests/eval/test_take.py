"""A draw that leaves out what another asks shares no prompt with it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from alignbeam.eval.datasets import Sample, take


@given(st.integers(0, 40), st.integers(0, 15), st.integers(1, 15), st.integers(0, 3))
def test_what_is_skipped_is_what_a_smaller_draw_asks(count, skip, limit, seed):
    samples = [Sample(str(n), f"prompt {n}") for n in range(count)]
    first = take(samples, skip, seed) if skip else []
    other = take(samples, limit, seed, skip)
    assert not set(map(id, first)) & set(map(id, other))
    assert len(other) == max(0, min(limit, count - skip))
    both = sorted([*first, *other], key=samples.index)
    assert both == take(samples, skip + limit, seed)
