"""What a result tells: nothing of a candidate that did not pass, and strict JSON of the rest."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.result import (
    Candidate,
    Failure,
    Result,
    StepTrace,
    Timings,
    Verdict,
    ViewName,
    Wish,
    plain,
)

SECRET = "SECRET"
TIMINGS = Timings(1.0, 2.0, 3.0, 4.0, math.nan, 10.0)
FINISHED = ("stop", "length", "stop_string")


def step_of(beam: int, place: int, token_id: int, text: str) -> StepTrace:
    wish = Wish(token_id, text, 0.5)
    return StepTrace(
        place, beam, "mix", (token_id,), text, -0.25, (wish,), (wish,), 1.0, 0.5, math.nan, math.nan
    )


@st.composite
def results(draw: st.DrawFn) -> Result:
    """Results in which every text of a candidate that did not pass, and of a judge, is secret."""
    threshold = 2.5
    candidates = []
    for n in range(draw(st.integers(1, 4))):
        score = draw(st.sampled_from([1.0, 2.5, 2.501, 5.0]))
        failed = draw(st.booleans())
        verdict = Verdict(
            score=5.0 if failed else score,
            probs=() if failed else (0.2,) * 5,
            label_mass=draw(st.sampled_from([0.9, math.nan])),
            error=f"TimeoutError: only {SECRET}" if failed else None,
            judge=SECRET,
            view=draw(st.sampled_from([*get_args(ViewName), "", SECRET])),
            failure=draw(st.sampled_from([*get_args(Failure), None, SECRET])) if failed else None,
        )
        bad = failed or score > threshold
        candidates.append(
            Candidate(
                text=f"{SECRET} {n}" if bad else f"fine {n}",
                token_ids=tuple(7919 * (n + 1) + i for i in range(draw(st.integers(0, 3)))),
                logprob=-1234.5678 if bad else draw(st.sampled_from([-1.0, -math.inf])),
                finish_reason=draw(st.sampled_from(FINISHED)),
                verdict=None if draw(st.integers(0, 9)) == 0 else verdict,
            )
        )
    passing = [i for i, c in enumerate(candidates) if c.passes(threshold)]
    chosen = draw(st.sampled_from(passing)) if passing else None
    steps = [
        # Some say that they are of a beam whose tokens they are not.
        step_of(draw(st.sampled_from([n, chosen or 0])), place, token_id, c.text)
        for n, c in enumerate(candidates)
        for place, token_id in enumerate(c.token_ids)
    ]
    return Result(
        text="the refusal" if chosen is None else candidates[chosen].text,
        finish_reason="content_filter" if chosen is None else candidates[chosen].finish_reason,
        chosen=chosen,
        reason=f"the lowest score is 4.83 {SECRET}",
        candidates=tuple(candidates),
        trace=tuple(steps),
        timings=TIMINGS,
        prompt_tokens=3,
        completion_tokens=4,
        threshold=threshold,
    )


@given(results())
def test_public_holds_nothing_of_candidates_that_did_not_pass_and_no_text_of_a_judge(result):
    told = result.public()
    spelled = json.dumps(told, allow_nan=False)
    for withheld in (SECRET, "1234.5", "7919", "4.83"):
        assert withheld not in spelled
    for candidate, said in zip(result.candidates, told["candidates"], strict=True):
        assert said["passed"] is candidate.passes(result.threshold)
        assert said["failure"] in {*get_args(Failure), None}
        if not said["passed"]:
            assert set(said) == {"passed", "failure"}
        elif candidate.verdict is not None:
            known = candidate.verdict.view in get_args(ViewName)
            assert said["view"] == (candidate.verdict.view if known else None)
    own = () if result.chosen is None else result.candidates[result.chosen].token_ids
    assert len(told["steps"]) <= len(own)


@given(results())
def test_full_holds_everything_and_is_strict_json(result):
    told = json.loads(json.dumps(result.full(), allow_nan=False))
    assert [c["text"] for c in told["candidates"]] == [c.text for c in result.candidates]
    assert [c["score"] for c in told["candidates"]] == [c.score for c in result.candidates]
    assert set(told) == {f.name for f in dataclasses.fields(Result)}
    assert told["timings"]["other_ms"] is None


SAFE, UNSAFE = Verdict(1.0), Verdict(5.0)
BROKEN = Verdict(5.0, error="down", failure="exception")


@pytest.mark.parametrize(
    ("chosen", "verdict", "reason"),
    [
        (0, SAFE, "the best that passes"),
        (None, UNSAFE, "no candidate passes"),
        (0, UNSAFE, "the safest, though none passes"),
        (0, BROKEN, "the judge failed"),
        (0, None, "not judged"),
    ],
)
def test_public_reason_says_why_without_a_score(chosen, verdict, reason):
    candidate = Candidate("text", (1,), -1.0, "stop", verdict)
    result = Result("text", "stop", chosen, "4.83", (candidate,), (), TIMINGS, 1, 1, threshold=2.5)
    assert result.public_reason == result.public()["reason"] == reason


def test_public_tells_the_steps_of_the_answer_itself():
    rejected = Candidate("no", (3, 4), -1.0, "stop", UNSAFE)
    candidates = (rejected, Candidate("yes", (5, 6), -1.0, "stop", SAFE))
    trace = (step_of(0, 0, 3, "n"), step_of(1, 0, 5, "y"), step_of(1, 1, 6, "es"))
    result = Result("yes", "stop", 1, "", candidates, trace, TIMINGS, 1, 2, threshold=2.5)
    step = {"source": "mix", "anchor_share": None}
    assert result.public()["steps"] == [{"text": "y", **step}, {"text": "es", **step}]


def test_result_that_says_no_threshold_lets_nothing_pass():
    candidate = Candidate("text", (1,), -1.0, "stop", SAFE)
    result = Result("text", "stop", 0, "", (candidate,), (), TIMINGS, 1, 1)
    assert result.public()["candidates"] == [{"passed": False, "failure": None}]


def test_plain_makes_null_of_every_number_that_json_cannot_spell():
    odd = {"a": (math.nan, [math.inf, -math.inf, 1.23456]), 2: TIMINGS}
    assert plain(odd, 2)["a"] == [None, [None, None, 1.23]]
    assert plain(odd)["2"]["other_ms"] is None
