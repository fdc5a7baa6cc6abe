"""The embedded trio on three real vLLM servers: the same tokens, and no answer when they break."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from engine_faults import (
    NONCE_KEY,
    killed_engine_fails_all_its_answers,
    killed_engine_withholds_and_a_new_one_is_taken,
    said,
    stalled_engine_is_too_slow_and_wakes_up,
    until,
)
from engine_process import start_again
from mixed_prompts import mixed_prompts, mixed_settings
from safetensors.torch import load_file, save_file
from serving import chat, judge_of, serving
from vllm_servers import VllmServer, serve_trio, vllm_python

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.embedded import embedded_model
from alignbeam.engines.role import RemoteRole
from alignbeam.errors import EngineShortfall, EngineUnavailable

CONFIG = BeamConfig(max_new_tokens=48)
PROMPTS = mixed_prompts()
#: What a hundred streams at once are asked for: the engines have one core each at best.
FEW = {"mix_steps": 3, "beams": 2, "max_new_tokens": 12}
#: A new server compiles at its first question.
PATIENCE_S = 300.0
EACH = [{**settings, "max_new_tokens": 48} for settings in mixed_settings()]


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    servers = serve_trio(vllm_python(), tmp_path_factory.mktemp("vllm"))
    yield servers
    for server in servers.values():
        server.kill()


@pytest.fixture
def servers(started):
    """The three, started again where an earlier test broke them."""
    start_again(started.values())
    return started


@pytest.fixture(scope="module")
def remote(started):
    return over(started)


def over(servers, read_s=PATIENCE_S):
    """The trio over the servers; their tokenizers are where the servers say."""
    target, anchor, judge = (servers[role].url for role in ("target", "anchor", "judge"))
    return AlignBeam.from_pretrained(
        RoleConfig(url=target, read_s=read_s),
        RoleConfig(url=anchor, read_s=PATIENCE_S),
        JudgeConfig(url=judge, read_s=PATIENCE_S, nonce_key=NONCE_KEY),
        CONFIG,
    )


def test_fifty_mixed_requests_give_the_tokens_of_this_process(trio, remote):
    here = [said(r) for r in trio.outcomes(PROMPTS, EACH)]
    there = [said(r) for r in remote.outcomes(PROMPTS, EACH)]
    assert len(here) == 50
    assert there == here


def test_gateway_over_vllm_gives_the_texts_of_this_process(trio, remote):
    want = [r.text for r in trio.outcomes(PROMPTS[:20], {"max_new_tokens": 48})]
    pair = remote.target, remote.anchor
    with serving(pair, remote.judge, CONFIG) as running, running.client() as client:

        def ask(prompt):
            body = chat(prompt) if isinstance(prompt, str) else chat(messages=prompt)
            answer = client.post("/v1/chat/completions", json=body).json()
            return answer["choices"][0]["message"]["content"]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, PROMPTS[:20])) == want


def test_draws_repeat_on_one_engine(remote):
    sampled = {"temperature": 1.0, "max_new_tokens": 24}
    one, again, other = (
        said(remote.generate("Hello!", seed=seed, **sampled))[1] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


def test_vllm_mixes_up_two_kinds_of_questions_in_a_batch(servers):
    """Why an engine is asked one kind only. Where this fails, vLLM has mended it."""
    body = {
        "model": "judge", "prompt": [1, 5, 6, 8], "max_tokens": 24, "temperature": 0,
        "ignore_eos": True, "logprobs": 5, "return_tokens_as_token_ids": True,
    }  # fmt: skip

    def best_of(extra):
        url = f"{servers['judge'].url}/v1/completions"
        answer = httpx2.post(url, json=body | extra, timeout=120).json()
        return [len(table) for table in answer["choices"][0]["logprobs"]["top_logprobs"]]

    assert min(best_of({})) >= 5
    with ThreadPoolExecutor(6) as pool:
        both = list(pool.map(best_of, [{}, {"logprob_token_ids": [5, 6, 7]}] * 3))
    assert min(min(sizes) for sizes in both[::2]) < 5


def test_engine_that_plays_anchor_and_judge_is_refused_at_the_start(servers):
    url = servers["judge"].url
    with pytest.raises(EngineShortfall, match="start one engine for each"):
        AlignBeam.from_pretrained(servers["target"].url, url, JudgeConfig(url=url), CONFIG)


def test_engine_that_gives_too_few_logprobs_is_refused_at_the_start(servers):
    with pytest.raises(EngineShortfall, match="--max-logprobs 257"):
        AlignBeam.from_pretrained(
            servers["target"].url, servers["anchor"].url, judge_of(), BeamConfig(top_b=256)
        )


def test_gateway_that_is_killed_takes_nothing_of_another_along(trio, servers):
    """Two processes without a model, 50 streams each; one is killed while they run."""
    want = [r.text for r in trio.outcomes(PROMPTS, FEW)]
    with gateway(servers) as (doomed, doomed_url), gateway(servers) as (_, url):
        with ThreadPoolExecutor(100) as pool:
            lost = [pool.submit(streamed, doomed_url, prompt) for prompt in PROMPTS]
            kept = [pool.submit(streamed, url, prompt) for prompt in PROMPTS]
            until(lambda: any(future.done() for future in kept), seconds=600)
            doomed.kill()
            assert [future.result() for future in kept] == want
        outcomes = [future.exception() or future.result() for future in lost]
        cut = [o for o in outcomes if not isinstance(o, str)]
        assert cut
        # What had left before was whole, and judged.
        assert all(o == w for o, w in zip(outcomes, want, strict=True) if isinstance(o, str))


@contextlib.contextmanager
def gateway(servers):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "alignbeam", "serve", "--port", str(port)]
    for role, server in servers.items():
        command += [f"--{role}", server.url]
    settings = {"judge.nonce_key": NONCE_KEY, "server.max_batch_cells": 1000000}
    settings |= {f"beam.{name}": value for name, value in FEW.items()}
    settings |= {f"{role}.read_s": PATIENCE_S for role in servers}
    settings["server.judge_timeout_s"] = PATIENCE_S
    for name, value in settings.items():
        command += ["--set", f"{name}={value}"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"

    def ready():
        try:
            return httpx2.get(f"{url}/ready", timeout=5).status_code == 200
        except httpx2.HTTPError:
            assert process.poll() is None
            return False

    try:
        until(ready, seconds=600)
        yield process, url
    finally:
        process.kill()
        process.wait()


def streamed(url, prompt):
    """The text of a streamed answer; raises where the stream breaks off."""
    body = chat("", stream=True)
    body["messages"] = chat(prompt)["messages"] if isinstance(prompt, str) else prompt
    with httpx2.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=900) as response:
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    frames = [json.loads(line) for line in data[:-1]]
    return "".join(f["choices"][0]["delta"].get("content") or "" for f in frames if f["choices"])


@pytest.mark.parametrize("role", ["target", "anchor", "judge"])
def test_killed_engine_withholds_the_answer_and_a_new_one_is_taken(servers, role):
    killed_engine_withholds_and_a_new_one_is_taken(over(servers), servers, role)


@pytest.mark.parametrize("how", [VllmServer.kill, VllmServer.kill_core])
def test_engine_killed_in_the_middle_of_its_answers_fails_them_all(servers, how):
    """All of it, or only the process that holds the weights: its web server is left to answer."""
    killed_engine_fails_all_its_answers(over(servers), lambda: how(servers["target"]))


def test_engine_out_of_memory_answers_nobody(servers):
    """The system gives it no more: a prompt that needs some ends the process with the weights."""
    beam = over(servers, read_s=30.0)
    pair = beam.target, beam.anchor
    with serving(pair, beam.judge, CONFIG) as running, running.client() as client:

        def ask(prompt):
            return client.post("/v1/chat/completions", json=chat(prompt, max_tokens=12))

        assert ask("Hello!").status_code == 200
        servers["target"].starve()
        try:
            failed = ask("How are you? " * 200)
            assert (failed.status_code, set(failed.json())) == (503, {"error"})
            # Its last words, if it has any, are those of a fault.
            assert failed.json()["error"]["code"] in ("engine_fault", "engine_unavailable")
            until(lambda: client.get("/ready").status_code == 503)
            assert client.get("/ready").json()["reasons"] == ["the target's engine is down"]
        finally:
            servers["target"].kill()


def test_stalled_engine_is_too_slow_and_wakes_up(servers):
    RemoteRole.from_config("target", RoleConfig(url=servers["target"].url, read_s=PATIENCE_S))
    stalled_engine_is_too_slow_and_wakes_up(RoleConfig(url=servers["target"].url), servers)


def another_model(folder):
    return embedded_model("anchor"), ()


def other_weights(folder):
    """The target after more training, say: the same shape and tokenizer."""
    shutil.copytree(embedded_model("target"), folder)
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] *= 2
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return str(folder), ()


def fewer_positions(folder):
    return embedded_model("target"), ("--max-model-len", "256")


@pytest.mark.parametrize(
    ("rollout", "why"),
    [
        (another_model, "has another tokenizer"),
        (other_weights, "serves another model than at the start"),
        (fewer_positions, "now has 256 positions, and had 1024"),
    ],
)
def test_engine_replaced_by_another_is_refused(servers, tmp_path, rollout, why):
    """A rollout under the same name and address."""
    beam = over(servers)
    servers["target"].kill()
    model, flags = rollout(tmp_path / "model")
    url = servers["target"].url
    other = VllmServer(vllm_python(), model, "target", tmp_path / "log", url, flags)
    try:
        other.wait()
        with pytest.raises(EngineUnavailable):  # it is one, or the breaker is open still
            beam.generate("Hello!", max_new_tokens=12)
        until(lambda: beam.target.watch.why is not None and why in beam.target.watch.why)
        with pytest.raises(EngineUnavailable, match=why):
            beam.generate("Hello!", max_new_tokens=12)
    finally:
        other.kill()
