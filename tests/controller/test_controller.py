"""The controller on the embedded trio: batches, stop strings, sampling, cancelling, errors."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.embedded import warn_of_embedded
from alignbeam.errors import (
    BackendUnavailable,
    Cancelled,
    ConfigError,
    NonFiniteLogits,
    PromptError,
)
from alignbeam.judge import CallableJudge
from alignbeam.result import Result

PROMPTS = ["What is 2 plus 3?", "Write a short poem about the sea.", "Hello!"]


@pytest.fixture(scope="module")
def lenient(trio):
    """The trio's models under a judge that passes everything: what is decoded comes out."""
    return AlignBeam(
        trio.target,
        trio.anchor,
        CallableJudge(lambda messages, text: 1.0, "lenient"),
        bridge=trio.bridge,
    )


def test_generate_batch_gives_each_request_its_own_settings(lenient):
    overrides = [
        {"alpha": 0.2, "beams": 2, "max_new_tokens": 12},
        {"mix": "log", "support": "union", "mix_steps": 3, "max_new_tokens": 9},
        {"mix_steps": 0, "beams": 4, "temperature": 1.0, "seed": 5, "max_new_tokens": 15},
    ]
    together = lenient.generate_batch(PROMPTS, overrides)
    for prompt, override, result in zip(PROMPTS, overrides, together, strict=True):
        alone = lenient.generate(prompt, **override)
        assert [c.token_ids for c in alone.candidates] == [c.token_ids for c in result.candidates]
        assert len(result.candidates) == override.get("beams", 3)
        assert all(len(c.token_ids) <= override["max_new_tokens"] for c in result.candidates)


def test_generate_batch_split_over_batches_equals_one_batch(lenient):
    one = lenient.generate_batch(PROMPTS, {"max_new_tokens": 10})
    two = lenient.generate_batch(PROMPTS, {"max_new_tokens": 10}, batch_size=2)
    assert [r.text for r in one] == [r.text for r in two]


def test_outcomes_come_as_their_batches_are_done(lenient):
    asked = []
    found = lenient.outcomes(
        PROMPTS, {"max_new_tokens": 8}, batch_size=1, should_cancel=lambda: asked.append(1)
    )
    assert not asked  # nothing is decoded before somebody asks
    assert isinstance(next(found), Result)
    steps = len(asked)
    assert len(list(found)) == len(PROMPTS) - 1
    assert len(asked) > steps


def test_outcomes_hold_errors_in_their_places(lenient):
    results = list(
        lenient.outcomes(["Hello!", "  ", "Hello!"], [{"max_new_tokens": 8}, {}, {"alhpa": 1}])
    )
    assert results[0].text == lenient.generate("Hello!", max_new_tokens=8).text
    assert isinstance(results[1], PromptError)
    assert isinstance(results[2], ConfigError)
    with pytest.raises(PromptError, match="empty"):
        lenient.generate_batch(["Hello!", "  "])


def test_generate_batch_refuses_uneven_overrides(lenient):
    with pytest.raises(ConfigError, match="1 overrides for 3 prompts"):
        lenient.generate_batch(PROMPTS, [{}])


def test_generate_batch_of_nothing_is_nothing(lenient):
    assert lenient.generate_batch([]) == []


def test_generate_ends_before_the_stop_string(lenient):
    whole = lenient.generate(PROMPTS[1], max_new_tokens=40).candidates[0].text
    stop = whole[len(whole) // 2 :][:3]
    cut = lenient.generate(PROMPTS[1], max_new_tokens=40, stop=(stop,)).candidates[0]
    assert cut.finish_reason == "stop_string"
    assert cut.text == whole[: whole.index(stop)]


def test_generate_ends_before_the_stop_string_that_comes_first(lenient):
    whole = lenient.generate(PROMPTS[1], max_new_tokens=40).candidates[0].text
    early, late = whole[6:9], whole[20:24]
    cut = lenient.generate(PROMPTS[1], max_new_tokens=40, stop=(late, early)).candidates[0]
    assert cut.text == whole[: min(whole.index(early), whole.index(late))]


def test_generate_reports_length_when_the_tokens_run_out(lenient):
    result = lenient.generate(PROMPTS[1], max_new_tokens=7)
    assert {c.finish_reason for c in result.candidates} <= {"length", "stop"}
    assert all(len(c.token_ids) == 7 for c in result.candidates if c.finish_reason == "length")
    assert result.finish_reason == result.candidates[result.chosen].finish_reason


def test_generate_sampled_repeats_with_the_seed_only(lenient):
    settings = {"temperature": 1.5, "max_new_tokens": 30}
    first = lenient.generate(PROMPTS[1], seed=1, **settings)
    again = lenient.generate(PROMPTS[1], seed=1, **settings)
    other = lenient.generate(PROMPTS[1], seed=2, **settings)
    assert [c.token_ids for c in first.candidates] == [c.token_ids for c in again.candidates]
    assert [c.token_ids for c in first.candidates] != [c.token_ids for c in other.candidates]


def test_generate_traces_every_mixed_token_of_every_beam(lenient):
    result = lenient.generate(PROMPTS[0], mix_steps=4, beams=3, max_new_tokens=20)
    for k, candidate in enumerate(result.candidates):
        steps = [s for s in result.trace if s.beam == k]
        assert [s.step for s in steps] == list(range(min(4, len(candidate.token_ids))))
        assert [s.token_ids[0] for s in steps] == list(candidate.token_ids[:4])
        assert sum(s.logprob for s in steps) == pytest.approx(candidate.logprob)
        assert all(0 <= s.anchor_share <= 1 for s in steps)
        assert all(len(s.target_wishes) == 3 for s in steps)


def test_generate_keeps_no_trace_when_no_wishes_are_wanted(lenient):
    assert lenient.generate(PROMPTS[0], wishes=0, max_new_tokens=8).trace == ()


def test_generate_splits_the_time_without_remainder(trio):
    t = trio.generate(PROMPTS[0], max_new_tokens=16).timings
    parts = (t.target_ms, t.anchor_ms, t.mix_ms, t.judge_ms, t.other_ms)
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(t.total_ms)


def test_generate_stops_between_steps_when_cancelled(lenient):
    asked: list[int] = []

    def should_cancel() -> bool:
        asked.append(1)
        return len(asked) == 4

    with pytest.raises(Cancelled):
        lenient.generate_batch([PROMPTS[1]], {"max_new_tokens": 50}, should_cancel=should_cancel)
    assert len(asked) == 4


def test_generate_shows_the_fixed_refusal_when_no_candidate_passes(trio):
    strict = AlignBeam(
        trio.target,
        trio.anchor,
        CallableJudge(lambda messages, text: 4.0, "strict"),
        bridge=trio.bridge,
    )
    result = strict.generate(PROMPTS[0], max_new_tokens=8, refusal_text="No.")
    assert (result.text, result.finish_reason, result.chosen) == ("No.", "content_filter", None)
    assert result.completion_tokens == 0
    assert len(result.candidates) == 3


def test_generate_opens_no_beam_with_an_end_token(lenient):
    ends = set(lenient.target.end_ids)
    for alpha in (0.0, 1.0):
        result = lenient.generate("Hello!", alpha=alpha, beams=8, max_new_tokens=8)
        assert all(c.token_ids[0] not in ends for c in result.candidates)


def test_generate_refuses_a_prompt_beyond_a_window_naming_the_role(lenient):
    with pytest.raises(PromptError, match=r"tokens or more for the (target|anchor), whose window"):
        lenient.generate("word " * 5000)


def test_generate_shortens_the_answer_to_what_the_window_leaves(lenient, monkeypatch):
    prompt = PROMPTS[1]
    room = 9
    monkeypatch.setattr(lenient.target, "window", len(lenient.target.render(prompt)) + room)
    result = lenient.generate(prompt, max_new_tokens=50)
    assert max(len(c.token_ids) for c in result.candidates) <= room


def test_generate_fails_only_the_request_whose_logits_are_not_finite(lenient):
    healthy = lenient.generate(PROMPTS[0], max_new_tokens=8)
    forward = lenient.target.forward

    def poisoned(ids, mask, positions, cache):
        logits = forward(ids, mask, positions, cache)
        if ids.shape[0] == 2:  # the prefill of both requests
            logits = logits.clone()
            logits[1, 100] = torch.nan
        return logits

    lenient.target.forward = poisoned
    try:
        good, bad = lenient.outcomes([PROMPTS[0], "Hello!"], {"max_new_tokens": 8})
    finally:
        del lenient.target.forward
    assert isinstance(bad, NonFiniteLogits)
    assert good.text == healthy.text


def test_alone_is_plain_generation_of_that_model(trio):
    for role in ("target", "anchor"):
        model = getattr(trio, role)
        ids = torch.tensor([model.render(PROMPTS[0])])
        out = model.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=20,
            do_sample=False,
            eos_token_id=list(model.end_ids),
            pad_token_id=model.pad_id,
        )
        want = out[0, ids.shape[1] :].tolist()
        assert list(next(trio.alone(role, [PROMPTS[0]], max_new_tokens=20)).token_ids) == want


def test_alone_refuses_another_role(trio):
    with pytest.raises(ConfigError, match="target or anchor"):
        trio.alone("judge", ["Hello!"])


def test_records_are_frozen(trio):
    result = trio.generate("Hello!", max_new_tokens=8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        result.text = "other"


def test_config_of_the_controller_is_the_default_of_every_request(trio):
    beam = AlignBeam(
        trio.target,
        trio.anchor,
        trio.judge,
        BeamConfig(beams=2, max_new_tokens=8),
        bridge=trio.bridge,
    )
    assert len(beam.generate("Hello!").candidates) == 2
    assert len(beam.generate("Hello!", beams=1).candidates) == 1


@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_backend_that_cannot_run_here_is_refused_once_and_not_by_every_request(
    trio, backend, monkeypatch
):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    parts = trio.target, trio.anchor, trio.judge
    complaint = f'{backend}.* cannot run on cpu.*set backend = "auto"'
    for mix_steps in (0, 6):  # a request may mix where the settings do not
        config = BeamConfig(backend=backend, mix_steps=mix_steps)
        with pytest.raises(BackendUnavailable, match=complaint):
            AlignBeam(*parts, config, bridge=trio.bridge)
    with pytest.raises(BackendUnavailable, match=complaint):
        AlignBeam.from_pretrained(*parts, BeamConfig(backend=backend))
    for backend in ("auto", "cpu", "reference"):
        AlignBeam(*parts, BeamConfig(backend=backend), bridge=trio.bridge)


def test_more_beams_than_the_vocabulary_has_tokens_are_refused_once(trio, monkeypatch):
    monkeypatch.setattr(trio.target, "width", 3)
    with pytest.raises(ConfigError, match=r"beams must be in 1\.\.3 \(the vocabulary\), got 4"):
        AlignBeam(trio.target, trio.anchor, trio.judge, BeamConfig(beams=4), bridge=trio.bridge)


@pytest.mark.parametrize(
    ("named", "warned"),
    [((), ""), (("target",), "the anchor and the judge: embedded"),
     (("target", "anchor"), "the judge: embedded"), (("target", "anchor", "judge"), "")],
)  # fmt: skip
def test_embedded_models_beside_ones_own_are_warned_of(trio, caplog, named, warned):
    own = {"target": trio.target, "anchor": trio.anchor, "judge": JudgeConfig(model="mine")}
    sources = {"target": None, "anchor": RoleConfig(), "judge": JudgeConfig()}
    warn_of_embedded(**{**sources, **{name: own[name] for name in named}})
    assert bool(caplog.records) == bool(warned)
    assert warned in caplog.text


def test_a_judge_that_is_not_named_is_warned_of(trio, caplog):
    AlignBeam.from_pretrained(trio.target, trio.anchor)
    assert "the judge: embedded" in caplog.text
