"""lm-eval's own package over the embedded trio: model, settings, chats, refusals of likelihoods."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="no lm_eval: make test-harness")

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from alignbeam.errors import AlignBeamError, ConfigError, PromptError
from alignbeam.harness.lm_eval import register

REPO = Path(__file__).resolve().parents[2]
QUESTIONS = [f"Ann has {n} pens and gives away 2. How many pens are left?" for n in range(5, 9)]


@pytest.fixture(scope="module")
def lm():
    """The model as lm-eval makes it, with the embedded trio."""
    register()
    return get_model("alignbeam").create_from_arg_string(
        "target=embedded,max_new_tokens=16,beams=2", {"batch_size": "3", "device": None}
    )


def _request(context, **generation):
    return Instance("generate_until", {}, (context, {"until": [], **generation}), 0)


def test_generate_until_answers_as_alignbeam_does_in_order(lm):
    answers = lm.generate_until([_request(q) for q in QUESTIONS], disable_tqdm=True)
    assert lm.batch_size == 3
    assert answers == [lm.beam.generate(q).text for q in QUESTIONS]
    assert len(set(answers)) > 1


def test_until_and_length_are_kept(lm):
    whole = lm.beam.generate(QUESTIONS[0]).text
    word = whole.split()[-1]
    stopped, short = lm.generate_until(
        [_request(QUESTIONS[0], until=[word, ""]), _request(QUESTIONS[0], max_gen_toks=7)],
        disable_tqdm=True,
    )
    assert whole.startswith(stopped)
    assert word not in stopped
    assert short == lm.beam.generate(QUESTIONS[0], max_new_tokens=7).text


def test_sampling_follows_do_sample(lm):
    hot = {"temperature": 8.0, "seed": 5}
    greedy, sampled = lm.generate_until(
        [
            _request(QUESTIONS[0], do_sample=False, **hot),
            _request(QUESTIONS[0], do_sample=True, **hot),
        ],
        disable_tqdm=True,
    )
    assert greedy == lm.beam.generate(QUESTIONS[0]).text
    assert sampled == lm.beam.generate(QUESTIONS[0], **hot).text
    assert sampled != greedy


def test_setting_that_cannot_be_had_is_refused_by_name(lm):
    lm.generate_until([_request(QUESTIONS[0], num_beams=1, max_gen_toks=6)], disable_tqdm=True)
    with pytest.raises(ConfigError, match="num_beams = 4"):
        lm.generate_until([_request(QUESTIONS[0], num_beams=4)], disable_tqdm=True)


def test_chats_reach_every_role_as_messages(lm):
    chat = [
        {"role": "system", "content": "Answer in one sentence."},
        {"role": "user", "content": QUESTIONS[0]},
    ]
    (answer,) = lm.generate_until([_request(lm.apply_chat_template(chat))], disable_tqdm=True)
    assert answer == lm.beam.generate(chat).text
    assert lm.chat_template(True) == lm.beam.target.tokenizer.chat_template
    assert lm.chat_template(False) == ""
    assert "/" not in lm.tokenizer_name
    with pytest.raises(PromptError, match="gen_prefix"):
        lm.apply_chat_template(chat, add_generation_prompt=False)


@pytest.mark.parametrize("what", ["loglikelihood", "loglikelihood_rolling"])
def test_likelihood_is_refused_with_a_way_out(lm, what):
    with pytest.raises(AlignBeamError, match=f"no {what}: .*generate_until.*--model hf"):
        getattr(lm, what)([Instance(what, {}, ("a", "b"), 0)])


def _task(**changes):
    from datasets import Dataset, DatasetDict

    rows = [{"question": q, "answer": str(n)} for n, q in enumerate(QUESTIONS, 3)]
    return {
        "task": "pens",
        "custom_dataset": lambda **_: DatasetDict({"test": Dataset.from_list(rows)}),
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 16},
        "metric_list": [{"metric": "exact_match"}],
        **changes,
    }


def test_simple_evaluate_runs_a_task_of_chats(lm):
    found = simple_evaluate(
        model=lm,
        tasks=[_task()],
        apply_chat_template=True,
        system_instruction="Answer in one sentence.",
        log_samples=True,
        bootstrap_iters=0,
    )
    said = {row["doc"]["question"]: row["resps"][0][0] for row in found["samples"]["pens"]}
    for question in QUESTIONS:
        chat = [
            {"role": "system", "content": "Answer in one sentence."},
            {"role": "user", "content": question},
        ]
        assert said[question] == lm.beam.generate(chat, stop=("\n",)).text


def test_simple_evaluate_of_a_likelihood_task_ends_with_the_reason(lm):
    task = _task(output_type="multiple_choice", doc_to_choice=["3", "4"], doc_to_target="{{0}}")
    del task["generation_kwargs"]
    task["metric_list"] = [{"metric": "acc"}]
    with pytest.raises(AlignBeamError, match="output_type generate_until"):
        simple_evaluate(model=lm, tasks=[task], bootstrap_iters=0)


def test_answers_are_cached_batch_by_batch(lm, tmp_path):
    from lm_eval.api.model import CachingLM

    cached = CachingLM(lm, str(tmp_path / "answers.db"))
    requests = [_request(q, do_sample=False) for q in QUESTIONS[:2]]
    first = cached.generate_until(requests)
    lm.beam, beam = None, lm.beam  # whoever asks the models now fails
    try:
        assert cached.generate_until(requests) == first
    finally:
        lm.beam = beam


def test_command_line_knows_the_model(tmp_path):
    rows = [{"question": QUESTIONS[0], "answer": "3"}]
    (tmp_path / "pens.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "pens.yaml").write_text(
        f"""
task: pens
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "pens.jsonl"}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs:
  until: ["\\n"]
  max_gen_toks: 16
metric_list:
  - metric: exact_match
"""
    )
    command = [sys.executable, "-m", "alignbeam.harness.lm_eval", "run", "--model", "alignbeam"]
    command += ["--model_args", "target=embedded,beams=2", "--tasks", "pens", "--log_samples"]
    command += ["--include_path", str(tmp_path), "--output_path", str(tmp_path / "out")]
    environment = {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_CACHE": str(tmp_path / "cache"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=REPO, env=environment
    )
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out").rglob("samples_pens_*.jsonl")
    (sample,) = [json.loads(line) for line in path.read_text().splitlines()]
    assert sample["resps"][0][0]
