"""schemathesis over the OpenAPI document, and texts that it does not generate."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving import KEY, METRICS_KEY, serving
from tiny_models import random_pair

from alignbeam import BeamConfig
from alignbeam.server.gate import METRICS, OPEN_PATHS

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
from schemathesis.specs.openapi.checks import positive_data_acceptance  # noqa: E402

HEADERS = {"authorization": f"Bearer {KEY}"}


@pytest.fixture(scope="module")
def running():
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=4)
    with serving(random_pair(), beam=beam, max_tokens=8) as server:
        yield server


@pytest.fixture(scope="module")
def api(running):
    return schemathesis.openapi.from_url(f"{running.url}/openapi.json", headers=HEADERS)


OPERATIONS = [
    ("POST", "/v1/chat/completions"),
    ("POST", "/v1/completions"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    ("GET", "/health"),
    ("GET", "/ready"),
    ("GET", "/metrics"),
]
#: Open paths take neither parameters nor a key: nothing can be wrong in a request for them.
TRIED = [(*operation, "positive") for operation in OPERATIONS] + [
    (method, path, "negative") for method, path in OPERATIONS if path not in OPEN_PATHS
]


@pytest.mark.parametrize(("method", "path", "mode"), TRIED)
def test_operation_keeps_its_schema_on_generated_requests(api, method, path, mode):
    """NUL bytes are generated; 5xx, unknown statuses, wrong bodies and ignored keys are found."""
    mode = schemathesis.GenerationMode(mode)
    headers = {"authorization": f"Bearer {METRICS_KEY}"} if path == METRICS else HEADERS
    cases = api[path][method].as_strategy(generation_mode=mode)

    @given(case=cases)
    def check(case):
        response = case.call(headers=headers)
        # A body may fit its schema and still be refused: an unknown model, an operator's limit.
        case.validate_response(
            response, headers=headers, excluded_checks=[positive_data_acceptance]
        )
        assert response.status_code < 500

    check()


def test_every_route_of_the_document_is_tried(api):
    assert {(op.ok().method.upper(), op.ok().path) for op in api.get_all_operations()} == set(
        OPERATIONS
    )


#: Any text of code points, NUL and lone surrogates among them.
TEXT = st.text(st.characters(codec=None, categories=None), max_size=20) | st.sampled_from(
    ["\x00", "\ud800", "a\udfffb", "\U0010ffff", "\ufffe"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    ["messages", "prompt", "stop", "user", "n", "seed", "stream", "temperature", "max_tokens",
     "logit_bias", "metadata", "alignbeam", "tools", "response_format", "stream_options", "extra"]
)  # fmt: skip


@given(field=FIELDS, value=JSON, text=TEXT, chat=st.booleans())
def test_any_text_and_any_value_is_answered_or_refused_by_name(running, field, value, text, chat):
    body = {"model": "alignbeam", "max_tokens": 2}
    if chat:
        path, body["messages"] = "/v1/chat/completions", [{"role": "user", "content": text}]
    else:
        path, body["prompt"] = "/v1/completions", text
    body[field] = value
    with running.client() as client:
        response = client.post(
            path,
            content=json.dumps(body).encode(),
            headers={"content-type": "application/json"},
        )
    assert response.status_code in (200, 400)
    if response.status_code == 400:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
