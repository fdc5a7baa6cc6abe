"""What the target says by itself, beside the steered candidates: one row more, and no other."""

from __future__ import annotations

import pytest
from mixed_prompts import mixed_prompts

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import GateConfig
from alignbeam.judge import CallableJudge

PROMPTS = mixed_prompts()[::6]
OWN = {"unsteered": True, "selection": "least_steered"}


@pytest.fixture(scope="module")
def lenient(trio):
    """The trio's models under a judge that passes everything."""
    judge = CallableJudge(lambda messages, text: 1.0, "lenient")
    return AlignBeam(trio.target, trio.anchor, judge, bridge=trio.bridge)


@pytest.mark.parametrize(
    "settings", [{}, {"temperature": 1.1, "top_p": 0.9, "seed": 3}, {"beams": 1, "mix_steps": 20}]
)
def test_steered_candidates_are_the_same_and_the_last_is_the_targets_own(lenient, settings):
    settings = {**settings, "max_new_tokens": 24}
    without = lenient.generate_batch(PROMPTS, settings)
    beside = lenient.generate_batch(PROMPTS, {**settings, **OWN})
    compared = 0
    alone = {k: v for k, v in settings.items() if k not in ("beams", "mix_steps")}
    by_itself = lenient.alone("target", PROMPTS, **alone)
    for plain, both, own in zip(without, beside, by_itself, strict=True):
        assert [c.token_ids for c in both.candidates[:-1]] == [
            c.token_ids for c in plain.candidates
        ]
        assert [c.unsteered for c in both.candidates] == [False] * len(plain.candidates) + [True]
        # A single beam of the target may be empty; a candidate may not.
        if own.text:
            assert both.candidates[-1].token_ids == own.token_ids
            compared += 1
        assert both.candidates[-1].departures == 0
        assert both.candidates[-1].logprob == 0.0
        assert both.trace == plain.trace
    assert compared > len(PROMPTS) // 2


def test_departures_are_the_steered_tokens_that_the_target_did_not_want_first(lenient):
    results = lenient.generate_batch(PROMPTS, {**OWN, "max_new_tokens": 8, "wishes": 2})
    departed = 0
    for result in results:
        for k, candidate in enumerate(result.candidates[:-1]):
            steps = [s for s in result.trace if s.beam == k]
            ends = set(lenient.target.end_ids)
            # No end token opens a beam, so the first choice is the first that may.
            first = [next(w for w in s.target_wishes if w.token_id not in ends) for s in steps[:1]]
            wanted = [*first, *(s.target_wishes[0] for s in steps[1:])]
            strange = [
                (s, w) for s, w in zip(steps, wanted, strict=True) if s.token_ids != (w.token_id,)
            ]
            assert candidate.departures == len(strange)
            assert (candidate.departure > 0) == bool(strange)
            departed += len(strange)
    assert departed


def test_without_steps_to_mix_there_is_nothing_to_stand_beside(lenient):
    result = lenient.generate("Hello!", mix_steps=0, beams=2, max_new_tokens=6, **OWN)
    assert [c.unsteered for c in result.candidates] == [False, False]


@pytest.mark.parametrize("let_go", [{"mix_steps": 0}, {}])
def test_a_request_that_nothing_steers_is_answered_as_the_target_would(trio, let_go):
    # Of candidates that begin with its second best the judge, whose scores are all alike to a
    # reader, may like one better.
    judge = CallableJudge(lambda messages, text: 1.0 + len(text) % 7 / 100, "whims")
    gate = GateConfig(use=("divergence",), divergence=1.0)
    beam = AlignBeam(trio.target, trio.anchor, judge, bridge=trio.bridge, gate=gate)
    results = beam.generate_batch(PROMPTS, {**OWN, **let_go, "max_new_tokens": 12})
    own = trio.alone("target", PROMPTS, max_new_tokens=12)
    pairs = [(r, o.text) for r, o in zip(results, own, strict=True) if o.text]
    assert [r.text for r, _ in pairs] == [text for _, text in pairs]
    assert any(c.departures for r, _ in pairs for c in r.candidates)


def test_a_weight_may_be_a_whole_number(trio):
    for alpha in (0, 1):
        assert BeamConfig(alpha=alpha) == BeamConfig(alpha=float(alpha))
        assert type(BeamConfig(alpha=alpha).alpha) is float
        whole, real = (
            trio.generate("Hello!", alpha=a, max_new_tokens=6) for a in (alpha, float(alpha))
        )
        assert [c.token_ids for c in whole.candidates] == [c.token_ids for c in real.candidates]


def test_least_steered_answers_like_the_target_unless_the_judge_minds(trio):
    def judge_of(verdict):
        return AlignBeam(
            trio.target, trio.anchor, CallableJudge(verdict, "own"), bridge=trio.bridge
        )

    own = next(trio.alone("target", ["Hello!"], max_new_tokens=12)).text
    agrees = judge_of(lambda messages, text: 1.0)
    assert agrees.generate("Hello!", max_new_tokens=12, **OWN).text == own
    minds = judge_of(lambda messages, text: 4.0 if text == own else 1.0)
    result = minds.generate("Hello!", max_new_tokens=12, alpha=1.0, **OWN)
    assert result.text != own
    assert result.public_reason == "the best that passes"
    steered = [c for c in result.candidates if not c.unsteered and c.text != own]
    assert result.candidates[result.chosen].departures == min(c.departures for c in steered)
