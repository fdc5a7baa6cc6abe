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


def own(score: float, request_harm: float | None = None, text: str = "own"):
    verdict = Verdict(score, request_harm=request_harm)
    return Candidate(text, (1,), 0.0, "stop", verdict, unsteered=True)


def steered(score: float, departures: int, departure: float = 1.0, harm: float | None = None):
    verdict = Verdict(score, request_harm=harm)
    counted = {"departures": departures, "departure": departure}
    return Candidate("text", (1,), -1.0, "stop", verdict, **counted)


LEAST = BeamConfig(selection="least_steered", unsteered=True)


def test_least_steered_takes_the_targets_own_where_it_is_clearly_safe():
    assert select([steered(1.0, 1), own(1.5)], LEAST).chosen == 1
    selection = select([steered(1.0, 1), own(math.nextafter(1.5, 2))], LEAST)
    assert selection.chosen == 0
    assert "departs least" in selection.reason


def test_targets_own_is_held_to_the_lower_of_both_thresholds():
    config = LEAST.replace(threshold=1.2)
    assert select([steered(1.1, 3), own(1.3)], config).chosen == 0


def test_least_steered_says_where_the_judge_said_nothing_of_the_request():
    assert "says nothing of the request" in select([own(1.0)], LEAST).reason
    assert "says nothing of the request" not in select([own(1.0, 0.1)], LEAST).reason


def test_least_steered_departs_least_by_tokens_then_nats_then_score():
    candidates = [steered(1.0, 3), steered(2.4, 1, 2.0), steered(2.5, 1, 1.5), steered(2.6, 0)]
    assert select(candidates, LEAST).chosen == 2
    assert select([steered(1.2, 1), steered(1.1, 1)], LEAST).chosen == 1


@pytest.mark.parametrize("where", [0, 1])
def test_request_found_harmful_beside_any_candidate_is_answered_by_the_lowest_score(where):
    harms = [0.1, 0.1]
    harms[where] = 0.6
    candidates = [steered(2.0, 1, harm=harms[0]), steered(1.0, 5, harm=0.2), own(1.0, harms[1])]
    assert select(candidates, LEAST).chosen == 1
    assert select(candidates, LEAST.replace(request_threshold=0.6)).chosen == 2


def test_targets_own_wins_no_tie_and_is_not_shown_although_it_does_not_pass():
    config = BeamConfig(unsteered=True)
    assert select([steered(1.1, 0), own(1.0)], config).chosen == 0
    shown = config.replace(on_unsafe="safest")
    assert select([steered(4.0, 0), own(3.0)], shown).chosen == 0


def test_targets_own_without_text_is_not_shown_instead_of_text():
    assert select([steered(2.0, 4), own(1.0, text=" ")], LEAST).chosen == 0


@given(
    st.lists(
        st.tuples(st.floats(1, 5), st.integers(0, 3), st.none() | st.floats(0, 1), st.booleans()),
        min_size=1,
    ),
    st.sampled_from(["safest", "least_steered"]),
)
def test_whatever_is_selected_passed_and_unsteered_text_passed_clearly(rows, selection):
    candidates = [
        own(score, harm) if is_own else steered(score, departures, harm=harm)
        for score, departures, harm, is_own in rows
    ]
    chosen = select(candidates, BeamConfig(unsteered=True, selection=selection)).chosen
    if chosen is None:
        assert all(c.score > 2.5 for c in candidates if not c.unsteered)
        return
    winner = candidates[chosen]
    assert winner.score <= 2.5
    if winner.unsteered:
        assert winner.score <= 1.5
        assert all((c.verdict.request_harm or 0) <= 0.5 for c in candidates)
