"""Selection: which candidate may be shown, and what happens when none may."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.config import BeamConfig
from alignbeam.errors import JudgeUnavailable, UnsafeAnswer
from alignbeam.judge.selection import select
from alignbeam.result import Candidate, Verdict


def candidate(score: float, text: str = "text", logprob: float = -1.0, error: str | None = None):
    return Candidate(text, (1,), logprob, "stop", Verdict(score, error=error))


def test_select_takes_the_lowest_score():
    assert select([candidate(2.0), candidate(1.5), candidate(1.9)], BeamConfig()).chosen == 1


def test_select_takes_the_likelier_of_scores_within_the_tie_margin():
    close = [
        candidate(1.0, logprob=-4.0),
        candidate(1.2, logprob=-2.0),
        candidate(1.3, logprob=-1.0),
    ]
    assert select(close, BeamConfig(tie_margin=0.25)).chosen == 1
    assert select(close, BeamConfig(tie_margin=0.0)).chosen == 0


def test_select_never_passes_a_tied_score_above_the_threshold():
    close = [candidate(2.4, logprob=-4.0), candidate(2.6, logprob=-1.0)]
    assert select(close, BeamConfig(threshold=2.5, tie_margin=1.0)).chosen == 0


def test_select_breaks_ties_by_mixed_logprob():
    tied = [
        candidate(1.5, logprob=-3.0),
        candidate(1.5, logprob=-2.0),
        candidate(1.5, logprob=-2.0),
    ]
    assert select(tied, BeamConfig()).chosen == 1


def test_select_passes_a_score_at_the_threshold():
    assert select([candidate(2.5)], BeamConfig(threshold=2.5)).chosen == 0
    assert select([candidate(math.nextafter(2.5, 3))], BeamConfig(threshold=2.5)).chosen is None


def test_select_prefers_text_to_none_among_those_that_pass():
    assert select([candidate(1.0, text=" \n"), candidate(2.4)], BeamConfig()).chosen == 1
    assert select([candidate(1.0, text=""), candidate(3.0)], BeamConfig()).chosen == 0


def test_select_never_passes_an_error_even_at_the_highest_threshold():
    config = BeamConfig(threshold=5.0)
    assert select([candidate(5.0, error="timeout"), candidate(5.0)], config).chosen == 1


def test_select_refuses_by_default_when_none_passes():
    selection = select([candidate(3.0), candidate(4.0)], BeamConfig())
    assert selection.chosen is None
    assert "3.00" in selection.reason


def test_select_shows_the_safest_real_verdict_when_asked_to():
    config = BeamConfig(on_unsafe="safest")
    assert select([candidate(5.0, error="x"), candidate(4.5), candidate(4.0)], config).chosen == 2


def test_select_raises_when_asked_to():
    with pytest.raises(UnsafeAnswer, match=r"3\.00"):
        select([candidate(3.0)], BeamConfig(on_unsafe="raise"))


@pytest.mark.parametrize("policy", ["refuse", "safest", "raise"])
def test_select_shows_nothing_when_every_verdict_is_an_error(policy):
    broken = [candidate(5.0, error="timeout"), candidate(5.0, error="NaN")]
    with pytest.raises(JudgeUnavailable, match=r"all 2 candidates.*NaN; timeout"):
        select(broken, BeamConfig(on_unsafe=policy))


def test_select_shows_nothing_that_was_never_judged():
    with pytest.raises(JudgeUnavailable, match="never asked"):
        select([Candidate("text", (1,), 0.0, "stop")], BeamConfig())


@given(
    st.lists(
        st.tuples(st.floats(1, 5), st.booleans(), st.booleans(), st.floats(-50, 0)), min_size=1
    )
)
def test_select_is_what_the_rule_says_in_words(rows):
    candidates = [
        candidate(
            5.0 if broken else score, "text" if has_text else "", logprob, "x" if broken else None
        )
        for score, broken, has_text, logprob in rows
    ]
    if all(broken for _, broken, _, _ in rows):
        with pytest.raises(JudgeUnavailable):
            select(candidates, BeamConfig())
        return
    chosen = select(candidates, BeamConfig()).chosen
    passing = [c for c in candidates if c.verdict.error is None and c.score <= 2.5]
    if chosen is None:
        assert not passing
        return
    winner = candidates[chosen]
    assert winner in passing
    rivals = [c for c in passing if c.text] or passing
    assert winner in rivals
    lowest = min(c.score for c in rivals)
    assert winner.score <= lowest + 0.25
    assert all(c.logprob <= winner.logprob for c in rivals if c.score <= lowest + 0.25)
