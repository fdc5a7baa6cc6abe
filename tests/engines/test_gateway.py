"""The server over engines: no model, the same answers, nothing unjudged when they break."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from serving import KEY, OTHER, chat, judge_of, serving
from starlette.responses import JSONResponse
from tiny_models import length_scorer, random_pair, random_role

from alignbeam import BeamConfig
from alignbeam.judge import Rubric, RubricJudge

CONFIG = BeamConfig(mix_steps=4, beams=3, top_b=20, max_new_tokens=24, threshold=4.0)
SHORT = Rubric("short", "", "Q {request}\n[{nonce}]\n{candidate}\n[{nonce}]\nGrade 1 to 5.")
QUESTIONS = ["Hello!", "What is 2+2?", "Wie geht's?", "你好", "x"]


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture
def engines(served, pair):
    (target, asks_target), (anchor, asks_anchor) = (served(role) for role in pair)
    return target, anchor, (asks_target, asks_anchor)


def ask(running, prompt="Hello!", **fields):
    with running.client() as client:
        return client.post("/v1/chat/completions", json=chat(prompt, **fields))


def texts(running, **fields):
    return [ask(running, q, **fields).json()["choices"][0]["message"] for q in QUESTIONS]


def streamed(running, prompt):
    text = ask(running, prompt, stream=True).text
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]", data[-1]
    frames = [json.loads(line) for line in data[:-1]]
    return "".join(f["choices"][0]["delta"].get("content") or "" for f in frames if f["choices"])


def ready(running):
    with running.client(None) as client:
        said = client.get("/ready")
    return said.status_code, said.json()["reasons"]


def until_ready(running, status):
    deadline = time.monotonic() + 60
    while ready(running)[0] != status:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("release", ["full", "chunked"])
def test_gateway_answers_as_the_server_with_the_models(pair, engines, release):
    # Every score passes: how far a beam is when a later piece is judged is a matter of time.
    judge = judge_of(lambda request, text: 0.7 * length_scorer(request, text) + 0.3)
    settings = {"release": release, "chunk_tokens": 5}
    with serving(pair, judge, CONFIG, **settings) as here:
        want = texts(here), [streamed(here, q) for q in QUESTIONS]
    with serving(engines[2], judge, CONFIG, **settings) as gateway:
        assert (texts(gateway), [streamed(gateway, q) for q in QUESTIONS]) == want
        assert ready(gateway) == (200, [])


@pytest.mark.parametrize("who", [0, 1])
def test_engine_that_goes_away_withholds_answers_and_ready_names_the_role(engines, who):
    engine, name = engines[who], ("target", "anchor")[who]
    with serving(engines[2], judge_of(), CONFIG) as running:
        want = ask(running).json()["choices"][0]["message"]
        engine.close()
        failed = ask(running)
        assert (failed.status_code, set(failed.json())) == (503, {"error"})
        assert failed.json()["error"]["code"] == "engine_unavailable"
        assert int(failed.headers["retry-after"]) >= 1
        until_ready(running, 503)
        assert ready(running)[1] == [f"the {name}'s engine is down"]
        engine.start()
        until_ready(running, 200)
        assert ask(running).json()["choices"][0]["message"] == want
        counted = 'alignbeam_fail_closed_total{reason="engine_unavailable"}'
        assert counted in running.server.service.metrics.page().decode()


def test_engine_that_talks_nonsense_withholds_the_answer(engines):
    with serving(engines[2], judge_of(), CONFIG) as running:
        engines[0].spoil = lambda answer: {**answer, "choices": []}
        failed = ask(running)
        assert (failed.status_code, failed.json()["error"]["code"]) == (503, "engine_fault")


@pytest.mark.parametrize("here", [True, False])
def test_prefixes_of_two_clients_are_kept_apart_in_every_engine(served, pair, here):
    """A target in this process is steered for several clients at once."""
    (target, asks_target), (anchor, asks_anchor) = (served(role) for role in pair)
    judge, asks_judge = served(random_role("judge", "llama", seed=3))
    roles = pair[0] if here else asks_target, asks_anchor
    rubric = RubricJudge(asks_judge, SHORT, label_mass_floor=0.0)
    knows = judge_of()

    class Both:  # asks the engine, and knows the canaries
        name, role = "both", asks_judge

        def score(self, conversations, candidates):
            rubric.score(conversations, candidates)
            return knows.score(conversations, candidates)

    with serving(roles, Both(), CONFIG) as running:
        for engine in (target, anchor, judge):
            engine.asked.clear()
        with ThreadPoolExecutor(8) as pool:
            clients = [running.client(key) for key in (KEY, OTHER) * 4]
            said = [
                pool.submit(c.post, "/v1/chat/completions", json=chat("Hello!")) for c in clients
            ]
            assert {one.result().status_code for one in said} == {200}
    for engine in (anchor, judge) if here else (target, anchor, judge):
        assert len({body.get("cache_salt", "") for body in engine.asked}) == 2
        assert all(body.get("cache_salt") for body in engine.asked)


@pytest.mark.parametrize("status", [400, 404, 500])
def test_what_an_engine_quotes_stands_in_the_log_only_where_asked_for(engines, caplog, status):
    def quote(body):
        return JSONResponse({"error": {"message": f"cannot take QXZJ {body['prompt']}"}}, status)

    for log_prompts in (False, True):
        with serving(engines[2], judge_of(), CONFIG, log_prompts=log_prompts) as running:
            engines[0].instead = quote
            caplog.clear()
            for _ in range(5):  # the breaker opens, and says why
                assert ask(running).status_code == 503
            log = "\n".join(f"{r.getMessage()} {vars(r)}" for r in caplog.records)
            assert ("QXZJ" in log) == log_prompts
            assert "engine gave" in log
            engines[0].instead = lambda body: None
            until_ready(running, 200)


def test_engine_that_dies_while_a_chunked_answer_streams_ends_it_with_an_error(engines):
    engines[0].token_s = 0.05
    settings = {"release": "chunked", "chunk_tokens": 2}
    with serving(engines[2], judge_of(), CONFIG, **settings) as running, running.client() as client:
        body = chat(stream=True, max_tokens=300)
        with client.stream("POST", "/v1/chat/completions", json=body) as response:
            lines = response.iter_lines()
            for line in lines:
                if line.startswith("data: ") and '"content":"' in line and '""' not in line:
                    break
            engines[0].close()
            data = [line[6:] for line in lines if line.startswith("data: ")]
        assert json.loads(data[-1])["error"]["code"] == "engine_unavailable"


def test_slow_request_holds_up_no_other(engines):
    """Requests share connections only: one that waits for its engine is waited for alone."""
    target, _, pair = engines
    with serving(pair, judge_of(), CONFIG, keep_alive_s=0.1) as running:
        target.token_s = 1.0
        with running.client() as slow:
            body = chat("slow", stream=True, max_tokens=64)
            with slow.stream("POST", "/v1/chat/completions", json=body):
                deadline = time.monotonic() + 60
                while not any(b.get("stream") for b in target.asked):
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                assert ask(running, "quick", max_tokens=4).status_code == 200
                assert running.server.service.scheduler.running == 1
