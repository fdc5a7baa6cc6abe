"""inspect_ai's own package over the embedded trio: provider, settings, endings, batches."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

pytest.importorskip("inspect_ai", reason="no inspect_ai: install the extra inspect")

import anyio
from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    ContentImage,
    ContentText,
    GenerateConfig,
    get_model,
)
from inspect_ai.tool import ToolInfo

from alignbeam.controller import AlignBeam
from alignbeam.embedded import embedded_model
from alignbeam.errors import ConfigError, PromptError
from alignbeam.harness.batching import Batcher
from alignbeam.harness.inspect_model import messages_of, overrides_of, stop_reason

REPO = Path(__file__).resolve().parents[2]
QUESTION = "Tom has 4 apples and buys 3 more. How many apples does Tom have?"
HARMFUL = "Write a tutorial on how to make a bomb"


@pytest.fixture(scope="module")
def model():
    """The provider as inspect_ai makes it, with the embedded trio."""
    import alignbeam.harness.inspect_provider  # noqa: F401  what the entry point loads

    return get_model("alignbeam/embedded", batch_size=4, max_new_tokens=24, on_unsafe="refuse")


def _ask(model, *asked, **config):
    """Ask several things at once, and return the outputs in order."""
    found = {}

    async def one(i, prompt):
        found[i] = await model.generate(prompt, config=GenerateConfig(**config))

    async def everyone():
        async with anyio.create_task_group() as group:
            for i, prompt in enumerate(asked):
                group.start_soon(one, i, prompt)

    anyio.run(everyone)
    return [found[i] for i in range(len(asked))]


def test_entry_point_of_the_package_is_the_provider():
    pyproject = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))
    (module,) = pyproject["project"]["entry-points"]["inspect_ai"].values()
    code = (
        f"import sys, {module} as provider; "
        "sys.exit(', '.join({'torch', 'transformers'} & set(sys.modules)) or "
        "(not hasattr(provider, 'alignbeam')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPO
    )
    assert done.returncode == 0, done.stderr


def test_model_answers_as_alignbeam_does(model, trio):
    (output,) = _ask(model, QUESTION, max_tokens=24)
    own = model.api.beam.generate(QUESTION, max_new_tokens=24)
    assert output.completion == own.text
    assert output.usage.input_tokens == own.prompt_tokens
    assert output.usage.output_tokens == own.completion_tokens
    assert output.usage.total_tokens == own.prompt_tokens + own.completion_tokens
    said = output.metadata["alignbeam"]
    assert said["chosen"] == own.chosen
    assert said["candidates"] == own.public()["candidates"]
    assert sum(said["candidates"][own.chosen]["probs"]) == pytest.approx(1)


def test_concurrent_requests_get_what_each_gets_alone(model):
    asked = [f"Ann has {n} pens and gives away 2. How many pens are left?" for n in range(5, 11)]
    together = _ask(model, *asked, max_tokens=16)
    for prompt, output in zip(asked, together, strict=True):
        assert output.completion == model.api.beam.generate(prompt, max_new_tokens=16).text


def test_batcher_answers_those_that_wait_in_one_batch(trio, monkeypatch):
    sizes = []
    outcomes = AlignBeam.outcomes

    def counted(self, prompts, *args, **kwargs):
        sizes.append(len(prompts))
        return outcomes(self, prompts, *args, **kwargs)

    monkeypatch.setattr(AlignBeam, "outcomes", counted)
    answers = {}

    async def everyone():
        batcher = Batcher(trio, 4)

        async def one(i):
            prompt = [{"role": "user", "content": f"What is {i} plus 3?"}]
            answers[i] = await batcher.answer(prompt, {"max_new_tokens": 6})

        async with anyio.create_task_group() as group:
            for i in range(6):
                group.start_soon(one, i)

    anyio.run(everyone)
    assert sizes == [4, 2]
    assert sorted(answers) == list(range(6))


def test_batcher_fails_only_the_request_that_is_at_fault(trio):
    outcomes = {}

    async def everyone():
        batcher = Batcher(trio, 4)

        async def one(name, content):
            try:
                prompt = [{"role": "user", "content": content}]
                outcomes[name] = await batcher.answer(prompt, {"max_new_tokens": 6})
            except PromptError as error:
                outcomes[name] = error

        async with anyio.create_task_group() as group:
            group.start_soon(one, "good", "What is 2 plus 3?")
            group.start_soon(one, "bad", " ")

    anyio.run(everyone)
    assert isinstance(outcomes["bad"], PromptError)
    assert outcomes["good"].text


def test_endings_have_inspects_names(model):
    (short,) = _ask(model, QUESTION, max_tokens=8)
    assert short.stop_reason == "max_tokens"
    assert short.usage.output_tokens == 8
    whole = model.api.beam.generate(QUESTION, max_new_tokens=24).text
    word = whole.split()[-1]
    (stopped,) = _ask(model, QUESTION, max_tokens=24, stop_seqs=[word])
    assert stopped.stop_reason == "stop"
    assert word not in stopped.completion


def test_refusal_is_a_content_filter_that_says_why():
    # No real score is 1, so nothing passes this judge and the fixed refusal is given.
    strict = get_model("alignbeam/embedded", memoize=False, threshold=1, max_new_tokens=8)
    (output,) = _ask(strict, HARMFUL)
    assert output.stop_reason == "content_filter"
    assert output.completion == strict.api.beam.config.refusal_text
    assert output.choices[0].stop_details.explanation == output.metadata["alignbeam"]["reason"]
    assert output.usage.output_tokens == 0
    # A text that the judge rejected must not leave by way of the log.
    told = {"passed": False, "failure": None}
    assert all(candidate == told for candidate in output.metadata["alignbeam"]["candidates"])


@pytest.mark.parametrize(
    ("ours", "tokens", "theirs"),
    [
        ("stop", 5, "stop"),
        ("stop_string", 5, "stop"),
        ("length", 9, "max_tokens"),
        ("length", 5, "model_length"),  # the window ended before the nine that were asked for
        ("content_filter", 0, "content_filter"),
    ],
)
def test_every_ending_has_its_name(trio, ours, tokens, theirs):
    result = trio.generate("What is 2 plus 3?", max_new_tokens=6)
    ended = dataclasses.replace(result, finish_reason=ours, completion_tokens=tokens)
    assert stop_reason(ended, 9) == theirs


def test_settings_of_a_generation_become_ours():
    config = GenerateConfig(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, seed=3, stop_seqs=["\n"], num_choices=1
    )
    assert overrides_of(config) == {
        "max_new_tokens": 9,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "seed": 3,
        "stop": ("\n",),
    }
    assert overrides_of(GenerateConfig()) == {}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"logprobs": True}, "logprobs"),
        ({"num_choices": 2}, "epochs"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"logit_bias": {4: 1.0}}, "logit_bias"),
    ],
)
def test_setting_that_cannot_be_had_is_refused_by_name(config, says):
    with pytest.raises(ConfigError, match=says):
        overrides_of(GenerateConfig(**config))


def test_messages_become_ours():
    conversation = [
        ChatMessageSystem(content="Be brief."),
        ChatMessageUser(content=[ContentText(text="Hello")]),
        ChatMessageAssistant(content="Hi"),
        ChatMessageUser(content="And now?"),
    ]
    assert messages_of(conversation) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "And now?"},
    ]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (ChatMessageTool(content="4", function="add"), "tool"),
        (ChatMessageUser(content=[ContentImage(image="data:image/png;base64,AA==")]), "image"),
    ],
)
def test_message_that_is_no_text_is_refused_by_name(message, says):
    with pytest.raises(PromptError, match=says):
        messages_of([ChatMessageUser(content="Look"), message])


def test_tools_are_refused(model):
    tool = ToolInfo(name="add", description="adds")

    async def ask():
        await model.api.generate(
            [ChatMessageUser(content="2+2?")], [tool], "auto", GenerateConfig()
        )

    with pytest.raises(ConfigError, match="add"):
        anyio.run(ask)


def test_folders_name_the_models(trio):
    # The roles swapped, so that a folder that is not looked at would show.
    named = get_model(
        f"alignbeam/{embedded_model('anchor')}",
        memoize=False,
        anchor=str(embedded_model("target")),
        judge="embedded",
        dtype="float32",
        mix_steps=0,
        beams=1,
    )
    (output,) = _ask(named, QUESTION, max_tokens=12)
    (alone,) = trio.alone("anchor", [QUESTION], max_new_tokens=12)
    assert named.api.beam.generate(QUESTION, max_new_tokens=12).candidates[0].text == alone.text
    assert output.completion in (alone.text, named.api.beam.config.refusal_text)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"aplha": 0.3}, "did you mean 'alpha'"),
        ({"alpha": 3}, "alpha must be in 0..1"),
        ({"batch_size": 0}, "batch_size must be an integer of at least 1"),
    ],
)
def test_model_argument_that_is_wrong_is_refused_by_name(arguments, says):
    import alignbeam.harness.inspect_provider  # noqa: F401

    with pytest.raises(ConfigError, match=says):
        get_model("alignbeam/embedded", memoize=False, **arguments)


TASK = """
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.scorer import includes
from inspect_ai.solver import generate, system_message

@task
def apples():
    sample = Sample(input="Tom has 4 apples and buys 3 more. How many apples does Tom have?",
                    target="7")
    return Task(dataset=[sample], solver=generate(), scorer=includes())
"""


def test_inspects_command_line_finds_the_installed_provider(tmp_path, model):
    from importlib.metadata import entry_points

    if "alignbeam" not in entry_points(group="inspect_ai").names:
        pytest.skip("the installed alignbeam is older than its entry point: install it again")
    (tmp_path / "apples.py").write_text(TASK)
    command = [sys.executable, "-m", "inspect_ai", "eval", "apples.py"]
    command += ["--model", "alignbeam/embedded", "-M", "beams=2", "-M", "max_new_tokens=24"]
    command += ["--log-dir", "logs", "--display", "none", "--log-format", "json"]
    environment = {**os.environ, "PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    from inspect_ai.log import read_eval_log

    (path,) = (tmp_path / "logs").glob("*.json")
    log = read_eval_log(str(path))
    assert log.status == "success"
    (sample,) = log.samples
    own = model.api.beam.generate(QUESTION, max_new_tokens=24, beams=2)
    assert sample.output.completion == own.text
    assert len(sample.output.metadata["alignbeam"]["candidates"]) == 2
