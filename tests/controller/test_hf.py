"""custom_generate: the same answer through transformers' own generate."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

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
    with pytest.raises(ConfigError, match="another model"):
        trio.anchor.model.generate(
            torch.tensor([trio.anchor.render(MESSAGES)]),
            custom_generate=custom_generate(trio),
            messages=MESSAGES,
            max_new_tokens=8,
        )
