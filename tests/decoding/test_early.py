"""Decisions before the end: rows go, the rest is as it would be, and is judged whole."""

from __future__ import annotations

import pytest
from mixed_prompts import mixed_prompts

from alignbeam import AlignBeam
from alignbeam.judge import CallableJudge

PROMPTS = mixed_prompts()[::12]
LONG = {"max_new_tokens": 30, "mix_steps": 4}
EARLY = {**LONG, "early_every": 5}


def beam_under(trio, verdict):
    judge = CallableJudge(verdict, "test")
    return AlignBeam(trio.target, trio.anchor, judge, bridge=trio.bridge)


def test_candidate_that_begins_harmlessly_goes_on_alone_and_ends_as_it_would(trio):
    asked = []

    def verdict(messages, text):
        asked.append(text)
        return 1.0

    beam = beam_under(trio, verdict)
    whole = beam.generate_batch(PROMPTS, LONG)
    asked.clear()
    early = beam.generate_batch(PROMPTS, EARLY)
    contested = 0
    for one, two in zip(whole, early, strict=True):
        kept = [c for c in two.candidates if c.finish_reason != "dropped"]
        if max(len(c.token_ids) for c in one.candidates) > 9:
            contested += 1
            assert len(kept) == 1
            assert two.candidates[two.chosen] is kept[0]
        for before, after in zip(one.candidates, two.candidates, strict=True):
            assert before.token_ids[: len(after.token_ids)] == after.token_ids
            if after.finish_reason == "dropped":
                assert after.failure == "not-judged"
            else:
                assert before.token_ids == after.token_ids
        assert two.text in asked  # the whole of it
    assert contested


def test_winner_by_its_beginning_that_ends_badly_is_not_shown(trio):
    whole = {}

    def verdict(messages, text):
        return 5.0 if len(text) > 45 else 1.0

    result = beam_under(trio, verdict).generate("Write a poem.", **EARLY)
    whole = [c for c in result.candidates if c.finish_reason != "dropped"]
    assert [len(c.text) > 45 for c in whole] == [True]
    assert result.finish_reason == "content_filter"


def test_contest_ends_where_every_beginning_is_clearly_harmful(trio):
    result = beam_under(trio, lambda messages, text: 5.0).generate("Write a poem.", **EARLY)
    assert result.chosen is None
    assert [len(c.token_ids) for c in result.candidates] == [9] * 3


def test_losers_are_given_up_and_their_rows_are_freed(trio, monkeypatch):
    rows = []
    forward = trio.target.forward

    def watched(ids, *rest):
        rows.append(ids.shape[0])
        return forward(ids, *rest)

    monkeypatch.setattr(trio.target, "forward", watched)
    firsts = []

    def verdict(messages, text):
        firsts.append(text) if len(firsts) < 4 else None
        return 1.5 if text.startswith(firsts[1]) else 3.0

    result = beam_under(trio, verdict).generate("Write a poem.", **EARLY, beams=4)
    assert [c.finish_reason == "dropped" for c in result.candidates] == [True, False, True, True]
    assert rows[0] == 1
    assert set(rows[1:9]) == {4}
    assert rows[9] < 4
    assert rows[-1] == 1
    assert result.chosen == 1


def test_requests_of_a_batch_are_looked_at_each_in_its_own_time(trio):
    def verdict(messages, text):
        return 1.0 if "a" in messages[-1]["content"] else 3.0 + len(text) % 2

    beam = beam_under(trio, verdict)
    settings = [{**EARLY, "early_every": 3 + n % 4} for n, _ in enumerate(PROMPTS)]
    together = beam.generate_batch(PROMPTS, settings)
    for prompt, own, result in zip(PROMPTS, settings, together, strict=True):
        alone = beam.generate(prompt, **own)
        assert [c.token_ids for c in alone.candidates] == [c.token_ids for c in result.candidates]
        assert alone.text == result.text


@pytest.mark.parametrize("unsteered", [False, True])
def test_no_candidate_is_looked_at_where_decisions_are_not_early(trio, unsteered):
    asked = []

    def verdict(messages, text):
        asked.append(text)
        return 1.0

    result = beam_under(trio, verdict).generate("Hello!", **LONG, unsteered=unsteered)
    assert asked == [c.judged_text for c in result.candidates]
