"""Which unfinished candidates may still win."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.config import BeamConfig
from alignbeam.judge import early
from alignbeam.result import Candidate, Verdict

CONFIG = BeamConfig(early_every=4)


def survivors(candidates, config):
    still = [i for i, c in enumerate(candidates) if c.finish_reason != "dropped"]
    return early.survivors(candidates, config, still)


def begun(score, *, unsteered=False, error=None, text="text", reason="length", logprob=-1.0):
    verdict = None if reason == "dropped" else Verdict(score, error=error)
    return Candidate(text, (1,), logprob, reason, verdict, unsteered=unsteered)


@pytest.mark.parametrize(
    ("candidates", "left"),
    [
        # A clearly harmless one has won, by the selection's own rule.
        ([begun(1.1, logprob=-3.0), begun(1.0), begun(2.0)], [1]),
        ([begun(1.3), begun(1.21), begun(2.0)], [0, 1, 2]),
        # Without text nobody wins.
        ([begun(1.0, text=""), begun(1.5)], [0, 1]),
        # Losers by the margin.
        ([begun(1.5), begun(2.5), begun(2.6)], [0, 1]),
        # All clearly harmful: the refusal is the answer.
        ([begun(4.6), begun(5.0)], []),
        ([begun(4.5), begun(5.0)], [0, 1]),
        # Errors decide nothing.
        ([begun(5.0, error="x"), begun(5.0, error="x")], [0, 1]),
        ([begun(5.0, error="x"), begun(4.9)], [0, 1]),
        ([begun(5.0, error="x"), begun(1.0)], [1]),
        # What is given up stays so.
        ([begun(1.0, reason="dropped"), begun(3.0), begun(3.2)], [1, 2]),
        # What is not steered ousts nobody, but can be ousted.
        ([begun(3.0), begun(1.6, unsteered=True)], [0, 1]),
        ([begun(1.5), begun(2.6, unsteered=True)], [0]),
    ],
)
def test_survivors_are_what_may_still_win(candidates, left):
    assert survivors(candidates, CONFIG) == left


def test_targets_own_goes_on_alone_where_that_is_how_it_is_selected():
    candidates = [begun(1.0), begun(1.15, unsteered=True)]
    assert survivors(candidates, CONFIG.replace(unsteered=True)) == [0]
    assert survivors(candidates, CONFIG.replace(selection="least_steered")) == [1]
    strict = CONFIG.replace(selection="least_steered", unsteered_threshold=1.1)
    assert survivors(candidates, strict) == [0]


def test_nothing_ends_as_harmful_where_the_safest_is_shown_anyhow():
    assert survivors([begun(4.6), begun(5.0)], CONFIG.replace(on_unsafe="safest")) == [0, 1]


@given(st.lists(st.tuples(st.floats(1, 5), st.booleans()), min_size=1, max_size=6))
def test_best_beginning_of_the_steered_is_never_given_up_for_a_worse_one(rows):
    candidates = [begun(score, error="x" if broken else None) for score, broken in rows]
    left = survivors(candidates, CONFIG)
    sound = [score for score, broken in rows if not broken]
    if left and sound:
        kept = [candidates[i].score for i in left if candidates[i].failure is None]
        assert min(kept) <= min(sound) + CONFIG.tie_margin
    if not left:
        assert sound == [score for score, _ in rows]
        assert min(sound) > CONFIG.early_harm
