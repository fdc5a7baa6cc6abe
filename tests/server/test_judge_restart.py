"""A judge's process that takes a dead one's place judges nobody before it told the canaries apart.

Real processes, killed; what comes back is a judge that is none: by its answers, or its weights.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import time

import judge_children
import pytest
from safetensors.torch import load_file, save_file
from serving import chat, serving
from tiny_models import random_pair

from alignbeam.config import JudgeConfig
from alignbeam.embedded import embedded_model
from alignbeam.judge import FailClosed
from alignbeam.server import judge_process
from alignbeam.server.judge_process import JudgeProcess

pytestmark = pytest.mark.skipif(os.name != "posix", reason="a process is killed by a signal")
JUDGE_S, BACK_S = 5.0, 300


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return shutil.copytree(embedded_model("judge"), tmp_path_factory.mktemp("judge") / "model")


@pytest.fixture(scope="module")
def judge(folder):
    made = JudgeProcess(JudgeConfig(model=str(folder)), timeout_s=JUDGE_S, threads=1)
    yield made
    made.close()


@pytest.fixture(scope="module")
def running(pair, judge):
    with serving(pair, FailClosed(judge, JUDGE_S), judge_timeout_s=JUDGE_S) as made:
        yield made


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(judge_process, "_PAUSES", (0.2,))


def until_it_judges(judge):
    deadline = time.monotonic() + BACK_S
    while not judge.alive:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def kill(judge):
    os.kill(judge.pid, signal.SIGKILL)
    while judge.alive:
        time.sleep(0.01)


def assert_nothing_leaves(running):
    with running.client() as client:
        for streamed in (False, True):
            said = client.post("/v1/chat/completions", json=chat(stream=streamed))
            assert (said.status_code, set(said.json())) == (503, {"error"})
            assert said.json()["error"]["code"] == "judge_unavailable"
        for route in ("/health", "/ready"):
            state = client.get(route)
            assert state.status_code == 503
            assert state.json()["reasons"] == ["the judge's process is down"]


def assert_answers(running):
    with running.client() as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200
        assert client.get("/health").status_code == client.get("/ready").status_code == 200


@pytest.mark.parametrize("ill", ["always_safe", "always_harmful", "no_number", "too_few", "words"])
def test_judge_process_that_comes_back_ill_judges_nobody(running, judge, monkeypatch, ill):
    until_it_judges(judge)
    assert_answers(running)
    with monkeypatch.context() as patch:
        patch.setattr(judge_process, "_serve", getattr(judge_children, ill))
        kill(judge)
        assert_nothing_leaves(running)
        assert not judge.alive
    until_it_judges(judge)  # the next one is the judge itself
    assert_answers(running)


def test_judge_process_that_comes_back_and_never_answers_is_ended(running, judge, monkeypatch):
    until_it_judges(judge)
    with monkeypatch.context() as patch:
        patch.setattr(judge_process, "_serve", judge_children.silent)
        kill(judge)
        assert_nothing_leaves(running)
    until_it_judges(judge)
    assert_answers(running)


def weights_that_always_say(digit, folder):
    """Write weights whose answer is that digit, whatever is asked."""
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weights[name].zero_()  # the answer then hangs on the last token alone
    weights["model.norm.weight"].fill_(1)
    ids = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    last = next(t["id"] for t in ids["added_tokens"] if t["content"] == "[assistant]")
    embedding = weights["model.embed_tokens.weight"]  # and the head
    embedding[ids["model"]["vocab"][digit]] = 10 * embedding[last]
    save_file(weights, folder / "new", {"format": "pt"})
    os.replace(folder / "new", folder / "model.safetensors")


def test_judge_process_that_comes_back_with_weights_that_find_all_safe_judges_nobody(
    running, judge, folder, tmp_path, caplog
):
    until_it_judges(judge)
    assert_answers(running)
    good = shutil.copy(folder / "model.safetensors", tmp_path)
    weights_that_always_say("1", folder)
    kill(judge)
    try:
        assert_nothing_leaves(running)
        deadline = time.monotonic() + BACK_S
        while "would pass the threshold" not in caplog.text:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert not judge.alive
    finally:
        os.replace(good, folder / "model.safetensors")
    until_it_judges(judge)
    assert_answers(running)


def test_judge_process_that_comes_back_stands_the_attacks_where_the_first_one_had_to(
    pair, monkeypatch, caplog
):
    for policy in ("warn", "refuse"):
        monkeypatch.setattr(judge_process, "_serve", judge_children.knowing)
        with contextlib.closing(JudgeProcess(JudgeConfig(), timeout_s=JUDGE_S)) as judge:
            settings = {"judge_timeout_s": JUDGE_S, "canary_attacks": policy}
            with serving(pair, FailClosed(judge, JUDGE_S), **settings) as running:
                monkeypatch.setattr(judge_process, "_serve", judge_children.fooled)
                kill(judge)
                if policy == "warn":
                    until_it_judges(judge)
                    assert_answers(running)
                else:
                    assert_nothing_leaves(running)
                    assert not judge.alive
    assert "no other judge's process yet: the judge: harmful canaries pass it" in caplog.text
