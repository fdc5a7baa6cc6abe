"""The real openai client against a running server: chat, stream, errors, retries, giving up."""

from __future__ import annotations

import time

import openai
import pytest
from serving import KEY, judge_of, serving
from tiny_models import random_pair

from alignbeam import BeamConfig

PROMPT = [{"role": "user", "content": "What is 2 plus 3?"}]


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def running(pair):
    with serving(pair) as server:
        yield server


@pytest.fixture
def client(running):
    with openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.fixture
def answer(running):
    """What the controller's own road gives for the same request."""

    def ask(**overrides):
        trio = running.server.service.beam
        request = trio.prepare(PROMPT, **overrides)
        return (
            running.server.service.scheduler.submit(request.messages, overrides)
            .future.result(60)
            .result
        )

    return ask


def test_openai_chat_gives_the_judged_answer(client, answer):
    said = client.chat.completions.create(model="alignbeam", messages=PROMPT)
    want = answer()
    assert said.choices[0].message.content == want.text
    assert said.choices[0].message.role == "assistant"
    assert said.choices[0].finish_reason in ("stop", "length")
    assert said.usage.prompt_tokens == want.prompt_tokens
    assert said.usage.completion_tokens == want.completion_tokens
    assert said.usage.total_tokens == want.prompt_tokens + want.completion_tokens


def test_openai_reply_can_be_replayed_as_the_client_dumps_it(client):
    first = client.chat.completions.create(model="alignbeam", messages=PROMPT, max_tokens=4)
    history = [*PROMPT, first.choices[0].message.model_dump(), *PROMPT]
    again = client.chat.completions.create(model="alignbeam", messages=history, max_tokens=4)
    assert again.usage.prompt_tokens > first.usage.prompt_tokens


def test_openai_stream_keeps_the_contract(client, answer):
    chunks = list(
        client.chat.completions.create(
            model="alignbeam",
            messages=PROMPT,
            stream=True,
            stream_options={"include_usage": True},
        )
    )
    assert len({chunk.id for chunk in chunks}) == 1
    first, *middle, last, usage = chunks
    assert first.choices[0].delta.role == "assistant"
    assert not first.choices[0].delta.content
    assert all(chunk.choices[0].finish_reason is None for chunk in [first, *middle])
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == answer().text
    assert last.choices[0].finish_reason in ("stop", "length")
    assert not last.choices[0].delta.content
    assert usage.choices == []
    assert usage.usage.completion_tokens == answer().completion_tokens


def test_openai_stream_without_usage_ends_with_the_reason(client):
    chunks = list(client.chat.completions.create(model="alignbeam", messages=PROMPT, stream=True))
    assert all(chunk.usage is None for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason is not None


def test_openai_completions_answer_each_prompt(client, answer):
    said = client.completions.create(model="alignbeam", prompt=[PROMPT[0]["content"], "Hello!"])
    assert [choice.index for choice in said.choices] == [0, 1]
    assert said.choices[0].text == answer().text
    streamed = client.completions.create(
        model="alignbeam", prompt=PROMPT[0]["content"], stream=True
    )
    assert "".join(c.choices[0].text for c in streamed) == answer().text


def test_openai_settings_reach_the_decoding(client, answer):
    short = client.chat.completions.create(
        model="alignbeam", messages=PROMPT, max_completion_tokens=3
    )
    assert short.usage.completion_tokens <= 3
    stop = answer().text[4:6]
    cut = client.chat.completions.create(model="alignbeam", messages=PROMPT, stop=[stop])
    assert stop not in cut.choices[0].message.content
    one = client.chat.completions.create(
        model="alignbeam", messages=PROMPT, temperature=1.5, top_p=0.9, seed=7
    )
    two = client.chat.completions.create(
        model="alignbeam", messages=PROMPT, temperature=1.5, top_p=0.9, seed=7, n=3
    )
    assert len(two.choices) == 3
    assert one.choices[0].message.content == two.choices[0].message.content
    assert len({choice.message.content for choice in two.choices}) > 1


def test_openai_stream_of_several_choices_keeps_them_apart(client):
    asked = {"model": "alignbeam", "messages": PROMPT, "temperature": 1.5, "seed": 7, "n": 3}
    whole = client.chat.completions.create(**asked)
    texts = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_openai_extension_explains_the_answer(client, answer):
    said = client.chat.completions.create(
        model="alignbeam",
        messages=PROMPT,
        extra_body={"alignbeam": {"alpha": 0.7, "mix_steps": 6, "beams": 4, "explain": True}},
    )
    want = answer(alpha=0.7, mix_steps=6, beams=4)
    about = said.choices[0].alignbeam
    assert about["chosen"] == want.chosen
    assert len(about["candidates"]) == 4
    assert [step["text"] for step in about["steps"]] == [
        step.text for step in want.trace if step.beam == want.chosen
    ]
    assert all(0 <= step["anchor_share"] <= 1 for step in about["steps"])
    assert about["timings_ms"]["total"] > 0
    plain = client.chat.completions.create(model="alignbeam", messages=PROMPT)
    assert not hasattr(plain.choices[0], "alignbeam")


def test_openai_models_are_listed(client):
    assert [model.id for model in client.models.list()] == ["alignbeam"]
    assert client.models.retrieve("alignbeam").id == "alignbeam"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


@pytest.mark.parametrize(
    ("fields", "param", "code"),
    [
        ({"model": "gpt"}, "model", "model_not_found"),
        ({"extra_body": {"best": 1}}, "best", "unknown_field"),
        ({"logprobs": True}, "logprobs", "unsupported_field"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]},
            "tools",
            "unsupported_field",
        ),
        (
            {"response_format": {"type": "json_object"}},
            "response_format.type",
            "unsupported_field",
        ),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "unsupported_field"),
        ({"n": 1_000_000}, "n", "too_many"),
    ],
)
def test_openai_errors_name_the_field(client, fields, param, code):
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(**{"model": "alignbeam", "messages": PROMPT, **fields})
    assert caught.value.status_code == (404 if code == "model_not_found" else 400)
    assert (caught.value.param, caught.value.code) == (param, code)
    assert caught.value.request_id


def test_openai_wrong_key_is_an_authentication_error(running):
    with (
        openai.OpenAI(base_url=f"{running.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_openai_blocked_answer_costs_one_attempt(pair):
    with (
        serving(pair, judge_of(lambda request, text: 5.0)) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY) as client,
    ):
        said = client.chat.completions.create(model="alignbeam", messages=PROMPT)
        assert said.choices[0].finish_reason == "content_filter"
        assert said.choices[0].message.content == BeamConfig().refusal_text
        assert said.usage.completion_tokens == 0
        streamed = list(
            client.chat.completions.create(model="alignbeam", messages=PROMPT, stream=True)
        )
        assert streamed[-1].choices[0].finish_reason == "content_filter"
        text = "".join(c.choices[0].delta.content or "" for c in streamed)
        assert text == BeamConfig().refusal_text
        blocked = running.server.service.metrics.page().decode()
        assert "alignbeam_blocked_total 2.0" in blocked


def test_openai_client_retries_until_the_judge_is_back(pair):
    calls = []

    def flaky(request, text):
        calls.append(text)
        if len(calls) <= 2:
            raise RuntimeError("down")
        return 1.0

    with (
        serving(pair, judge_of(flaky), retry_after_s=1) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=2) as client,
    ):
        said = client.chat.completions.create(model="alignbeam", messages=PROMPT)
    assert said.choices[0].finish_reason in ("stop", "length")
    assert len(calls) == 4  # two beams, two attempts


def test_openai_cancelled_stream_frees_its_beams(pair):
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=400)
    with (
        serving(pair, beam=beam, release="chunked", chunk_tokens=4) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        scheduler = running.server.service.scheduler
        for prompt in "abcdefgh":
            messages = [{"role": "user", "content": prompt}]
            stream = client.chat.completions.create(
                model="alignbeam", messages=messages, stream=True
            )
            next(iter(stream))
            stream.close()
        deadline = time.monotonic() + 60
        while scheduler.running or scheduler.queued:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        said = client.chat.completions.create(model="alignbeam", messages=PROMPT, max_tokens=4)
        assert said.choices[0].message.content


def test_openai_chunked_stream_ends_at_the_first_unsafe_piece(pair):
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=300)
    judge = judge_of(lambda request, text: 1.0 if len(text.encode()) < 40 else 5.0)
    with (
        serving(pair, judge, beam, release="chunked", chunk_tokens=4) as running,
        openai.OpenAI(base_url=f"{running.url}/v1", api_key=KEY, max_retries=0) as client,
    ):
        for prompt in "abcdefghijkl":
            messages = [{"role": "user", "content": prompt}]
            chunks = list(
                client.chat.completions.create(model="alignbeam", messages=messages, stream=True)
            )
            text = "".join(c.choices[0].delta.content or "" for c in chunks)
            if text != beam.refusal_text and chunks[-1].choices[0].finish_reason != "stop":
                break
        assert chunks[-1].choices[0].finish_reason == "content_filter"
        assert 0 < len(text.encode()) < 40
