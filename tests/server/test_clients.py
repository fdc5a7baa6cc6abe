"""The clients' configurations: the real package where it is there, else what it says it sends."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest
import yaml
from serving import KEY, serving
from tiny_models import random_pair

from alignbeam.config import load_settings
from alignbeam.server.metrics import Metrics

DEPLOY = Path(__file__).parents[2] / "examples" / "deploy"
USER = [{"role": "user", "content": "What is 2 plus 3?"}]

#: What each client sends, read in its source or documentation.
SHAPES = {
    "garak": {
        "model": "alignbeam", "messages": USER, "n": 2, "max_tokens": 150, "temperature": 0.7,
        "top_p": 1.0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "seed": 9, "stop": [],
    },
    "pyrit": {
        "model": "alignbeam", "stream": False, "temperature": 0.7, "top_p": 1.0,
        "frequency_penalty": 0.0, "presence_penalty": 0.0, "max_completion_tokens": 20,
        "messages": [
            {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
            {"role": "user", "content": [{"type": "text", "text": "What is 2 plus 3?"}]},
        ],
    },
    "promptfoo": {
        "model": "alignbeam", "messages": USER, "max_tokens": 256, "temperature": 0, "top_p": 1,
        "presence_penalty": 0, "frequency_penalty": 0,
    },
    "litellm": {
        "model": "alignbeam", "messages": USER, "stream": True, "max_tokens": 20, "user": "team-a",
        "stream_options": {"include_usage": True}, "metadata": {"trace": "t"},
    },
    "inspect": {
        "model": "alignbeam", "messages": USER, "max_tokens": 64, "temperature": 0.0, "seed": 1,
        "stop": ["\n\n"],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def running():
    with serving(random_pair()) as server:
        yield server


@pytest.mark.parametrize("client", SHAPES)
def test_request_of_the_client_is_answered(running, client):
    with running.client() as http:
        said = http.post("/v1/chat/completions", json=SHAPES[client])
    assert said.status_code == 200
    if SHAPES[client].get("stream"):
        assert said.text.endswith("data: [DONE]\n\n")
    else:
        choices = said.json()["choices"]
        assert len(choices) == SHAPES[client].get("n", 1)
        assert all(choice["message"]["content"] for choice in choices)


def test_inspect_asks_through_its_own_package(running, monkeypatch):
    pytest.importorskip("inspect_ai", reason="no inspect_ai: install the extra inspect")
    import asyncio

    from inspect_ai.model import get_model

    monkeypatch.setenv("ALIGNBEAM_BASE_URL", f"{running.url}/v1")
    monkeypatch.setenv("ALIGNBEAM_API_KEY", KEY)
    model = get_model("openai-api/alignbeam/alignbeam")
    said = asyncio.run(model.generate(USER[0]["content"]))
    assert said.completion
    assert said.stop_reason in ("stop", "max_tokens")


def test_litellm_asks_through_its_own_package(running, monkeypatch):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look-up on the net
    litellm = pytest.importorskip("litellm", reason="no litellm: make test-harness")
    route = yaml.safe_load((DEPLOY / "clients" / "litellm.yaml").read_text())["model_list"][0]
    ask = {
        "model": route["litellm_params"]["model"], "api_base": f"{running.url}/v1", "api_key": KEY,
        "messages": USER, "max_tokens": 12, "seed": 1,
    }  # fmt: skip
    said = litellm.completion(**ask, metadata={"trace": "t"}, user="team-a")
    streamed = "".join(
        frame.choices[0].delta.content or ""
        for frame in litellm.completion(**ask, stream=True, stream_options={"include_usage": True})
        if frame.choices
    )
    assert streamed == said.choices[0].message.content
    assert said.usage.completion_tokens > 0
    with pytest.raises(litellm.BadRequestError, match="temperature"):
        litellm.completion(**ask, temperature=9)
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**ask, "api_key": "another-key-than-that"})


def test_client_configurations_name_the_servers_defaults():
    address = "http://127.0.0.1:8000/v1"
    clients = DEPLOY / "clients"
    garak = json.loads((clients / "garak.json").read_text())["openai"]["OpenAICompatible"]
    assert garak["uri"].rstrip("/") == address
    promptfoo = yaml.safe_load((clients / "promptfooconfig.yaml").read_text())["providers"][0]
    assert promptfoo["config"]["apiBaseUrl"] == address
    assert promptfoo["id"].endswith(":alignbeam")
    litellm = yaml.safe_load((clients / "litellm.yaml").read_text())["model_list"][0]
    assert litellm["litellm_params"]["api_base"] == address
    environment = dict(
        line.split("=", 1)
        for line in (clients / "inspect.env").read_text().splitlines()
        if "=" in line and not line.startswith("#")
    )
    assert environment["ALIGNBEAM_BASE_URL"] == address
    for script in ("openai_client.py", "pyrit_target.py"):
        text = (clients / script).read_text()
        compile(text, script, "exec")
        assert address in text


def test_example_settings_are_the_defaults_that_they_say():
    path = DEPLOY / "alignbeam.toml"
    settings = load_settings(path, environ={})
    assert settings == load_settings(environ={})
    assert set(tomllib.loads(path.read_text())) == {"beam", "server"}


def test_dashboard_asks_only_for_series_that_exist():
    page = Metrics()
    page.watch_queue(lambda: 0, lambda: 0)
    page.requests.labels("r", "200")
    page.fail_closed.labels("r")
    page.recoveries.labels("r")
    page.shadow.labels("r")
    names = {line.split("{")[0].split(" ")[0] for line in page.page().decode().splitlines()}
    dashboard = json.loads((DEPLOY / "grafana.json").read_text())
    import re

    asked = {
        name
        for panel in dashboard["panels"]
        for target in panel["targets"]
        for name in re.findall(r"alignbeam_\w+", target["expr"])
    }
    assert len(asked) > 10
    assert asked <= names
