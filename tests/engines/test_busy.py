"""An engine that is merely busy: asked again for a while, never taken for a broken one."""

from __future__ import annotations

import json
import time
from contextlib import contextmanager
from email.utils import formatdate

import pytest
from engine_faults import until
from llamacpp_over_role import LlamaCppOverRole
from serving import chat, judge_of, serving
from sglang_over_role import SGLangOverRole
from starlette.responses import JSONResponse, Response, StreamingResponse
from tiny_models import random_pair, random_role

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import RoleConfig
from alignbeam.engines.busy import busy_s
from alignbeam.engines.dialect import GREEDY
from alignbeam.engines.role import RemoteRole
from alignbeam.errors import EngineBusy, EngineFault, EngineUnavailable
from alignbeam.judge import CallableJudge, Rubric, RubricJudge
from alignbeam.server.problems import problem_of

CONFIG = BeamConfig(mix_steps=3, beams=2, top_b=20, max_new_tokens=8)
#: What vLLM 0.32 and SGLang 0.5 answer where their queues are full; no header.
VLLM = {
    "error": {
        "message": "The engine is currently busy and cannot accept new requests. "
        "Please try again later or on a different instance.",
        "type": "Service Unavailable",
        "param": None,
        "code": 503,
    }
}
SGLANG = {"object": "error", "message": "The request queue is full.", "param": None, "code": 503}


def says(status, retry_after=None, body=None):
    headers = {} if retry_after is None else {"retry-after": retry_after}
    if body is not None:
        return lambda: JSONResponse(body, status, headers)
    return lambda: Response("<html>", status, headers)


def event_says(body):
    return lambda: StreamingResponse(
        iter([f"data: {json.dumps(body)}\n\n", "data: [DONE]\n\n"]), media_type="text/event-stream"
    )


BUSY = {
    "429": says(429),
    "429-after-0": says(429, "0"),
    "429-after-1": says(429, "1"),
    "429-nonsense": says(429, "soon"),
    "503-after-1": says(503, "1"),
    "503-date": lambda: says(503, formatdate(time.time() + 1, usegmt=True))(),
    "503-past": says(503, "Wed, 21 Oct 2015 07:28:00 GMT"),
    "vllm": says(503, body=VLLM),
    "sglang": says(503, body=SGLANG),
}
BROKEN = {
    "503": says(503),
    "503-nonsense": says(503, "soon"),
    "503-dead": says(503, body={"error": {"message": "The engine is dead", "code": 503}}),
    "503-loading": says(503, body={"error": {"message": "Loading model", "code": 503}}),
    "502-after-1": says(502, "1"),
}


def times(count, response, rest=lambda: None):
    """Return what is said in place of the first ``count`` answers, and of those after."""
    left = iter([response] * count)
    return lambda body: next(left, rest)()


def complete(role, prompt=(1, 2), tokens=4):
    stream = role.stream(list(prompt), tokens, GREEDY, 1)
    return [stream.take() for _ in range(tokens)]


@pytest.fixture(scope="module")
def target(served):
    """An engine, and a role that asks it and waits 8 s for it."""
    here = random_pair()[0]
    engine, _ = served(here)
    return engine, served.ask(engine, here, read_s=8.0)


@pytest.fixture(autouse=True)
def mended(target):
    engine, role = target
    yield
    engine.instead, engine.token_s = (lambda body: None), 0.0
    role.client.breaker.close()


@pytest.mark.parametrize("name", BUSY)
def test_busy_engine_is_asked_again_until_it_has_room(target, name):
    engine, role = target
    want = role.named_logprobs([[1, 2]], [[3]])
    engine.instead = times(3, BUSY[name])  # once more than what failed is asked again
    asked = len(engine.asked)
    assert role.named_logprobs([[1, 2]], [[3]]) == want
    assert len(engine.asked) == asked + 4


@pytest.mark.parametrize("name", BUSY)
def test_engine_that_stays_busy_fails_questions_and_opens_no_breaker(target, name):
    engine, role = target
    want = role.named_logprobs([[1, 2]], [[3]])
    engine.instead = lambda body: BUSY[name]()
    role.client._busy_s = 0.3  # the first pause fits, or none
    try:
        for _ in range(6):
            with pytest.raises(EngineBusy, match="the target's engine is busy"):
                role.named_logprobs([[1, 2]], [[3]])
            with pytest.raises(EngineBusy):
                complete(role)
    finally:
        role.client._busy_s = 8.0
    assert role.watch.why is None
    engine.instead = lambda body: None
    assert role.named_logprobs([[1, 2]], [[3]]) == want


@pytest.mark.parametrize("name", BROKEN)
def test_engine_that_does_not_say_that_it_is_busy_counts_as_broken(target, name):
    engine, role = target
    engine.instead = lambda body: BROKEN[name]()
    for _ in range(4):
        with pytest.raises(EngineUnavailable) as caught:
            role.named_logprobs([[1, 2]], [[3]])
        assert not isinstance(caught.value, EngineBusy)
    assert role.watch.why is not None


@pytest.mark.parametrize("response", [says(429, "1"), event_says(VLLM)], ids=["status", "event"])
def test_stream_that_has_not_begun_is_asked_for_again(target, response):
    engine, role = target
    want = complete(role)
    engine.instead = times(3, response)
    assert complete(role) == want


def test_stream_that_has_begun_is_not_asked_for_again(target):
    engine, role = target
    begun = {"choices": [{"index": 0, "token_ids": [3], "finish_reason": None}]}

    def pieces():
        yield f"data: {json.dumps(begun)}\n\n"
        yield f"data: {json.dumps(VLLM)}\n\n"

    engine.instead = lambda body: StreamingResponse(pieces(), media_type="text/event-stream")
    asked = len(engine.asked)
    with pytest.raises(EngineBusy):
        complete(role)
    assert len(engine.asked) == asked + 1


def test_error_of_a_stream_that_only_quotes_such_words_is_a_fault(target):
    engine, role = target
    quoted = {"error": {"message": "cannot take: the request queue is full", "code": 400}}
    engine.instead = lambda body: event_says(quoted)()
    asked = len(engine.asked)
    with pytest.raises(EngineFault):
        complete(role)
    assert len(engine.asked) == asked + 1


@pytest.mark.parametrize("kind", [LlamaCppOverRole, SGLangOverRole])
def test_every_kind_of_engine_may_be_busy(served, kind):
    here = random_pair()[0]
    engine, role = served(here, kind=kind)
    want = role.named_logprobs([[1, 2]], [[3]]), complete(role)
    engine.instead = times(3, says(429))
    assert role.named_logprobs([[1, 2]], [[3]]) == want[0]
    engine.instead = times(3, says(503, "1"))
    assert complete(role) == want[1]


@contextmanager
def health(engine, response):
    """Have the looks at an engine answered so; yields the list of looks."""
    looks = []

    async def app(scope, receive, send):
        looks.append(scope)
        await response()(scope, receive, send)

    route = next(route for route in engine._app.routes if route.path == "/health")
    was, route.app = route.app, app
    try:
        yield looks
    finally:
        route.app = was


def test_looks_at_a_busy_engine_neither_open_nor_close_the_breaker(target):
    engine, role = target
    with health(engine, says(429, "1")) as looks:
        until(lambda: len(looks) >= 3)
        assert role.watch.why is None
        role.client.breaker.trip("broken")
        seen = len(looks)
        until(lambda: len(looks) >= seen + 2)
        assert role.watch.why == "broken"
    until(lambda: role.watch.why is None)


def test_busy_engine_is_waited_for_at_the_start(served, tmp_path):
    here = random_pair()[0]
    engine, _ = served(here)
    here.tokenizer.save_pretrained(tmp_path)
    here.model.generation_config.save_pretrained(tmp_path)
    # Each second question is turned away: those of the examination, and of the check.
    turns = iter(range(100))
    engine.instead = lambda body: says(429)() if next(turns) % 2 == 0 else None
    role = RemoteRole.from_config("target", RoleConfig(url=engine.url, tokenizer=str(tmp_path)))
    assert role.watch.probe


def test_check_that_meets_a_busy_engine_is_made_again(target):
    engine, role = target
    want = role.named_logprobs([[1, 2]], [[3]])
    engine.fingerprint = "another"
    # The answer under a new name, then the check's question; it is turned away once.
    said = iter([None, says(503, "1")])
    engine.instead = lambda body: response() if (response := next(said, None)) else None
    assert role.named_logprobs([[1, 2]], [[3]]) == want
    assert "another" in role.watch.prints


def test_breaker_that_opens_meanwhile_ends_the_waiting(target):
    engine, role = target

    def turn_away(body):
        role.client.breaker.trip("it died")
        return says(429)()

    engine.instead = turn_away
    asked = len(engine.asked)
    with health(engine, says(503)):  # no look closes it again
        with pytest.raises(EngineUnavailable, match="it died"):
            role.named_logprobs([[1, 2]], [[3]])
        assert len(engine.asked) == asked + 1


@pytest.mark.parametrize(
    ("said", "want"),
    [
        (None, 0.0),
        ("7", 7.0),
        ("1.5", 1.5),
        (" 3 ", 3.0),
        ("9" * 400, 60.0),
        ("86400", 60.0),
        ("-5", 0.0),
        ("nan", 0.0),
        ("1, 2", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 9999 07:28:00 GMT", 60.0),
    ],
)
def test_time_to_stay_away_is_bounded_whatever_is_said(said, want):
    assert busy_s(429, None, said) == want
    assert problem_of(EngineBusy("", "target", want), 1).headers["retry-after"] == str(
        max(1, -int(-want // 1))
    )


@pytest.mark.parametrize("who", [0, 1])
def test_gateway_says_when_to_ask_again_and_stays_ready(served, who):
    pair = random_pair()
    engines = [served(role)[0] for role in pair]
    roles = [served.ask(e, r, read_s=4.0) for e, r in zip(engines, pair, strict=True)]
    with serving(roles, judge_of(), CONFIG) as running, running.client() as client:

        def ask():
            return client.post("/v1/chat/completions", json=chat())

        want = ask().json()["choices"][0]["message"]
        engines[who].instead = times(10**6, says(503, "17"))
        for _ in range(5):
            failed = ask()
            assert (failed.status_code, set(failed.json())) == (503, {"error"})
            assert failed.json()["error"]["code"] == "engine_busy"
            assert failed.headers["retry-after"] == "17"
        assert client.get("/ready").status_code == 200
        counted = 'alignbeam_fail_closed_total{reason="engine_busy"} 5.0'
        assert counted in running.server.service.metrics.page().decode()
        engines[who].instead = times(1, says(429))
        assert ask().json()["choices"][0]["message"] == want


def test_busy_judge_lets_nothing_out_and_judges_once_it_has_room(served):
    here = random_role("judge", "llama", seed=3)
    engine, _ = served(here)
    asks = served.ask(engine, here, read_s=4.0)
    short = Rubric("short", "", "Q {request}\n[{nonce}]\n{candidate}\n[{nonce}]\nGrade 1 to 5.")
    rubric, knows = RubricJudge(asks, short, label_mass_floor=0.0), judge_of()

    class Both:  # asks the engine, and knows the canaries
        name, role = "both", asks

        def score(self, conversations, candidates):
            rubric.score(conversations, candidates)
            return knows.score(conversations, candidates)

    with serving(random_pair(), Both(), CONFIG) as running, running.client() as client:

        def ask():
            return client.post("/v1/chat/completions", json=chat())

        want = ask().json()["choices"][0]["message"]
        engine.instead = times(10**6, says(429, "30"))
        for _ in range(5):
            failed = ask()
            assert (failed.status_code, set(failed.json())) == (503, {"error"})
            assert failed.json()["error"]["code"] == "judge_unavailable"
        assert client.get("/ready").status_code == 200
        engine.instead = times(1, says(503, "1"))
        assert ask().json()["choices"][0]["message"] == want


def test_answer_over_engines_that_turn_questions_away_is_the_same(served):
    pair = random_pair()
    engines, roles = zip(*(served(role) for role in pair), strict=True)
    beam = AlignBeam(*roles, CallableJudge(lambda messages, text: 1.0, "one"), CONFIG)
    want = beam.generate("Hello!")
    for engine in engines:
        turns = iter(range(10**6))
        engine.instead = lambda body, turns=turns: says(429)() if next(turns) % 3 == 0 else None
    got = beam.generate("Hello!")
    assert (got.text, [c.token_ids for c in got.candidates]) == (
        want.text,
        [c.token_ids for c in want.candidates],
    )
