"""custom_generate: the same answer through transformers' own generate."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from transformers import LogitsProcessorList, MaxLengthCriteria, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper

from alignbeam.errors import ConfigError
from alignbeam.hf import custom_generate

MESSAGES = [{"role": "user", "content": "What is 2 plus 3?"}]


def test_hf_is_there_after_importing_the_package_alone():
    code = "import alignbeam; alignbeam.hf.custom_generate"
    subprocess.run([sys.executable, "-c", code], check=True)


def ids_of(beam, *conversations):
    rows = [beam.target.render(c) for c in conversations]
    width = max(map(len, rows))
    pad = beam.target.pad_id
    ids = torch.tensor([[pad] * (width - len(r)) + r for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


def generate(beam, inputs, **kwargs):
    return beam.target.model.generate(
        **inputs, custom_generate=custom_generate(beam), pad_token_id=beam.target.pad_id, **kwargs
    )


def test_custom_generate_gives_the_judged_answer_after_the_prompt(trio):
    inputs = ids_of(trio, MESSAGES)
    out = generate(trio, inputs, messages=MESSAGES, max_new_tokens=24, do_sample=False)
    result = trio.generate(MESSAGES, max_new_tokens=24)
    prompt = inputs["input_ids"].shape[1]
    assert out[0, :prompt].tolist() == inputs["input_ids"][0].tolist()
    assert out[0, prompt:].tolist() == list(result.candidates[result.chosen].token_ids)


def test_custom_generate_takes_a_left_padded_batch_and_fields_of_beam_config(trio):
    other = [{"role": "user", "content": "Hello, who are you and what can you do for me today?"}]
    inputs = ids_of(trio, MESSAGES, other)
    out = generate(
        trio,
        inputs,
        messages=[MESSAGES, other],
        alignbeam={"on_unsafe": "safest", "beams": 2},
        max_new_tokens=12,
        do_sample=False,
    )
    assert out.shape[0] == 2
    for row, conversation in enumerate([MESSAGES, other]):
        result = trio.generate(conversation, max_new_tokens=12, beams=2, on_unsafe="safest")
        want = list(result.candidates[result.chosen].token_ids)
        assert out[row, inputs["input_ids"].shape[1] :].tolist()[: len(want)] == want


def test_custom_generate_spells_the_refusal_when_none_passes(trio):
    out = generate(
        trio,
        ids_of(trio, MESSAGES),
        messages=MESSAGES,
        alignbeam={"threshold": 1.0, "refusal_text": "No."},
        max_new_tokens=8,
        do_sample=False,
    )
    answer = out[0, len(trio.target.render(MESSAGES)) :].tolist()
    assert trio.target.tokenizer.decode(answer, skip_special_tokens=True) == "No."


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({}, "pass messages"),
        ({"messages": [{"role": "user", "content": "Other"}]}, "not the target's rendering"),
        ({"messages": MESSAGES, "num_return_sequences": 2, "do_sample": True}, "one judged answer"),
        ({"messages": [MESSAGES, MESSAGES]}, "2 conversations for 1 rows"),
    ],
)
def test_custom_generate_refuses_what_it_cannot_answer(trio, kwargs, message):
    with pytest.raises(ConfigError, match=message):
        generate(trio, ids_of(trio, MESSAGES), max_new_tokens=8, **kwargs)


def test_custom_generate_belongs_to_its_own_model(trio):
    with pytest.raises(ConfigError, match=r"another model; call beam\.target\.model"):
        trio.anchor.model.generate(
            torch.tensor([trio.anchor.render(MESSAGES)]),
            custom_generate=custom_generate(trio),
            messages=MESSAGES,
            max_new_tokens=8,
        )


class _Streamer:
    def put(self, value): ...
    def end(self): ...


REFUSED = {
    "repetition_penalty": 1.3,
    "no_repeat_ngram_size": 1,
    "bad_words_ids": [[5]],
    "sequence_bias": {(5,): 4.0},
    "suppress_tokens": [5],
    "forced_eos_token_id": 0,
    "min_new_tokens": 1,
    "min_length": 50,
    "eos_token_id": 5,
    "max_time": 100.0,
    "guidance_scale": 1.5,
    "exponential_decay_length_penalty": (5, 1.1),
    "return_dict_in_generate": True,
    "streamer": _Streamer(),
    "stopping_criteria": StoppingCriteriaList([lambda ids, scores, **_: False]),
    "logits_processor": LogitsProcessorList([lambda ids, scores: scores]),
    "prefix_allowed_tokens_fn": lambda batch, ids: [5],
    "num_beams": 2,
}


@pytest.mark.parametrize("name", REFUSED)
def test_custom_generate_refuses_by_name_what_would_change_the_text(trio, name):
    with pytest.raises(ConfigError, match=name):
        generate(
            trio,
            ids_of(trio, MESSAGES),
            messages=MESSAGES,
            max_new_tokens=8,
            **{name: REFUSED[name]},
        )


@pytest.mark.parametrize("name", ["min_p", "typical_p", "top_h", "epsilon_cutoff"])
def test_custom_generate_refuses_a_sampling_filter_only_where_it_samples(trio, name):
    asked = {"messages": MESSAGES, "max_new_tokens": 8, name: 0.3}
    inputs = ids_of(trio, MESSAGES)
    plain = generate(trio, inputs, messages=MESSAGES, max_new_tokens=8)
    assert generate(trio, inputs, **asked, do_sample=False).tolist() == plain.tolist()
    with pytest.raises(ConfigError, match=name):
        generate(trio, inputs, **asked, do_sample=True)


def test_custom_generate_refuses_a_warper_that_wins_over_its_argument(trio):
    asked = {"messages": MESSAGES, "max_new_tokens": 8, "do_sample": True, "temperature": 0.7}
    generate(trio, ids_of(trio, MESSAGES), **asked, top_p=0.9, top_k=5)
    own = LogitsProcessorList([TemperatureLogitsWarper(0.2)])
    with pytest.raises(ConfigError, match="logits_processor"):
        generate(trio, ids_of(trio, MESSAGES), **asked, logits_processor=own)


def test_custom_generate_names_a_field_of_the_models_own_generation_config(trio, monkeypatch):
    monkeypatch.setattr(trio.target.model.generation_config, "repetition_penalty", 1.05)
    asked = {"messages": MESSAGES, "max_new_tokens": 8}
    with pytest.raises(ConfigError, match=r"repetition_penalty=1\.0"):
        generate(trio, ids_of(trio, MESSAGES), **asked)
    generate(trio, ids_of(trio, MESSAGES), **asked, repetition_penalty=1.0)


@pytest.mark.parametrize("as_list", [False, True])
@pytest.mark.parametrize("tokenizer", [False, True])
def test_custom_generate_takes_stop_strings(trio, as_list, tokenizer):
    whole = trio.generate(MESSAGES, max_new_tokens=24).text
    stop = whole[len(whole) // 2 :][:2]
    want = trio.generate(MESSAGES, max_new_tokens=24, stop=(stop,))
    out = generate(
        trio,
        ids_of(trio, MESSAGES),
        messages=MESSAGES,
        max_new_tokens=24,
        stop_strings=[stop] if as_list else stop,
        **({"tokenizer": trio.target.tokenizer} if tokenizer else {}),
    )
    ids = list(want.candidates[want.chosen].token_ids)
    assert want.text != whole
    assert out[0, len(trio.target.render(MESSAGES)) :].tolist() == ids


def test_custom_generate_honours_criteria_that_say_what_arguments_say(trio):
    prompt = len(trio.target.render(MESSAGES))
    short = StoppingCriteriaList([MaxLengthCriteria(prompt + 8)])
    ends = sorted(trio.target.end_ids)
    out = generate(
        trio,
        ids_of(trio, MESSAGES),
        messages=MESSAGES,
        max_new_tokens=24,
        stopping_criteria=short,
        eos_token_id=ends,
    )
    want = trio.generate(MESSAGES, max_new_tokens=8)
    assert out[0, prompt:].tolist() == list(want.candidates[want.chosen].token_ids)
