"""What a body may cost before it is refused: not its bytes, the values in it."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from alignbeam.server.bodies import MAX_VALUES, parse_as, parse_json
from alignbeam.server.openai_requests import ChatRequest
from alignbeam.server.problems import Problem

CHAT = {"model": "alignbeam", "messages": [{"role": "user", "content": "Hello!"}]}
MANY = 5_000
NAMES = {f"k{i}": 0 for i in range(MANY)}


@pytest.fixture
def watched():
    """Return a chat request, and how many errors pydantic made each time that it was asked."""
    errors = []

    class Watched(ChatRequest):
        @classmethod
        def model_validate(cls, value):
            errors.append(0)
            try:
                return super().model_validate(value)
            except ValidationError as error:
                errors[-1] = error.error_count()
                raise

    return Watched, errors


def refused(model, body):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    with pytest.raises(Problem) as caught:
        parse_as(model, data)
    return caught.value.code, caught.value.param


def listed(item):
    return json.dumps({**CHAT, "tools": [item] * (MAX_VALUES + 1)}).encode()


@pytest.mark.parametrize(
    "body",
    [
        listed([]),
        listed({}),
        listed(0),
        listed(""),
        listed('\\"'),
        json.dumps({**CHAT, **{f"k{i}": 0 for i in range(MAX_VALUES)}}).encode(),
        json.dumps({**CHAT, "metadata": {f"k{i}": "" for i in range(MAX_VALUES)}}).encode(),
        json.dumps(["[,"] * (MAX_VALUES + 2)).encode(),
        b'{"a":' + b"[" * (MAX_VALUES + 1),
    ],
)
def test_body_of_too_many_values_is_refused_before_one_is_made(watched, monkeypatch, body):
    monkeypatch.setattr("alignbeam.server.bodies.json.loads", lambda *a, **k: pytest.fail("read"))
    model, errors = watched
    assert refused(model, body) == ("too_many_values", None)
    assert errors == []


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        (NAMES, "k0"),
        ({"alignbeam": NAMES}, "alignbeam.k0"),
        ({"alignbeam": NAMES, "best": 1}, "alignbeam.k0"),
        ({"chat_template_kwargs": NAMES}, "chat_template_kwargs.k0"),
        ({"stream_options": NAMES, "n": "two"}, "stream_options.k0"),
        ({"response_format": {"type": "text", **NAMES}}, "response_format.k0"),
        ({"str": 1}, "str"),
        ({"": 1}, "body"),
        ({"x" * 300: 1}, "x" * 200),
    ],
)
def test_unknown_fields_are_found_without_validating(watched, fields, param):
    model, errors = watched
    assert refused(model, {**CHAT, **fields}) == ("unknown_field", param)
    assert errors == []


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"metadata": NAMES}, "invalid_value", "metadata"),
        ({"metadata": {f"k{i}": "" for i in range(17)}}, "invalid_value", "metadata"),
        ({"metadata": [""] * MANY}, "invalid_value", "metadata"),
        ({"tools": [[]] * MANY}, "unsupported_field", "tools"),
        ({"functions": [[]] * MANY}, "unsupported_field", "functions"),
        ({"logit_bias": NAMES}, "unsupported_field", "logit_bias"),
        ({"messages": [0] * MANY}, "invalid_value", "messages.0"),
    ],
)
def test_one_error_is_made_of_a_field_however_much_is_wrong_in_it(watched, fields, code, param):
    model, errors = watched
    assert refused(model, {**CHAT, **fields}) == (code, param)
    assert errors == [1]


def test_wrong_stop_strings_make_one_error_for_each_way_to_write_them(watched):
    model, errors = watched
    assert refused(model, {**CHAT, "stop": [0] * MANY}) == ("invalid_value", "stop")
    assert errors == [2]


def test_metadata_takes_as_many_names_as_openai():
    metadata = {f"k{i}": "v" for i in range(16)}
    assert parse_as(ChatRequest, json.dumps({**CHAT, "metadata": metadata}).encode()).metadata


@pytest.mark.parametrize(
    "text",
    [",[{" * MAX_VALUES, '"' * 5 * MAX_VALUES, "\\" * 5 * MAX_VALUES, '\\",' * 3 * MAX_VALUES],
)
@pytest.mark.parametrize("name", ["content", '\\"content,[{\\'])
def test_text_is_one_value_whatever_is_written_in_it(text, name):
    assert parse_json(json.dumps({name: [text, text]}).encode()) == {name: [text, text]}


def test_as_many_values_as_there_may_be_are_taken():
    body = {"a": [[]] * ((MAX_VALUES - 1) // 2)}
    assert parse_json(json.dumps(body).encode()) == body
