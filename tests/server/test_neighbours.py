"""What one client's requests do to another's: nothing, whatever they are."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest
from serving import KEY, OTHER, chat, judge_of, serving, unnamed
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import ServerConfig
from alignbeam.errors import Cancelled
from alignbeam.judge import CallableJudge, FailClosed
from alignbeam.server.app import Server
from alignbeam.server.judging import CALL_ROWS, PATIENCE
from alignbeam.server.keys import Keys
from alignbeam.server.problems import Overloaded, TooLarge
from alignbeam.server.scheduler import Scheduler

ASK = "/v1/chat/completions"
WAIT_S = 60


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@contextlib.contextmanager
def watched_rendering(target, slow="slow"):
    """Yield what is rendered for the target, and an event that prompts beginning so wait for."""
    render, seen, go_on = target.render, [], threading.Event()

    def watched(messages):
        seen.append(messages[-1]["content"])
        if seen[-1].startswith(slow):
            go_on.wait(WAIT_S)
        return render(messages)

    target.render = watched
    try:
        yield seen, go_on
    finally:
        go_on.set()
        del target.render


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def send(running, body, key=KEY):
    """Send a request and leave its answer on the connection, which is returned."""
    data = json.dumps(body).encode()
    head = f"POST {ASK} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    raw = socket.create_connection(("127.0.0.1", running.port), WAIT_S)
    raw.sendall(head.encode() + data)
    return raw


def test_prompt_that_takes_long_to_read_holds_up_its_own_client_only(pair):
    with (
        serving(pair) as running,
        running.client(OTHER) as other,
        ThreadPoolExecutor(1) as pool,
        watched_rendering(pair[0]) as (seen, go_on),
        running.client() as hostile,
    ):
        slow = pool.submit(hostile.post, ASK, json=chat("slow prompt"))
        until(lambda: seen)
        assert other.post(ASK, json=chat("quick"), timeout=WAIT_S / 2).status_code == 200
        assert not slow.done()
        go_on.set()
        assert slow.result(WAIT_S).status_code == 200


def test_control_tokens_that_cannot_fit_are_refused_without_encoding_them(pair):
    """Encoding each spelling by itself takes half a minute a megabyte on a large vocabulary."""
    control = pair[0].tokenizer.eos_token
    with (
        serving(pair) as running,
        running.client() as client,
        watched_rendering(pair[0]) as (seen, _),
    ):
        said = client.post(ASK, json=chat(control * 300))
        assert said.status_code == 400
        assert said.json()["error"]["code"] == "prompt_too_long"
        assert said.json()["error"]["param"] == "messages"
        assert seen == []


def test_least_tokens_is_at_most_what_encoding_gives(pair):
    texts = ["a", "ab" * 40, " " * 30, "über", "<|end|>", "<|end|>x<|user|>" * 9, "</s> <s>" * 5]
    for role in pair:
        longest = max(len(data) for data in role.vocabulary.token_bytes if data)
        for text in texts:
            prompt = [{"role": "user", "content": f"x{text}"}]
            least = role._renderer.least_tokens(prompt, longest, 10**9)
            assert 0 <= least <= len(role.render(prompt))
    role = pair[0]
    spelled = [{"role": "user", "content": role.tokenizer.eos_token * 50}]
    assert role._renderer.least_tokens(spelled, 10**6, 10**9) > 50


def test_rendering_is_the_same_on_many_threads(pair):
    ends = [role.tokenizer.eos_token for role in pair]
    prompts = [f"{n} {ends[n % 2] * (n % 3)} words {'and more ' * (n % 7)}" for n in range(60)]
    for role in pair:
        alone = [role.render(prompt) for prompt in prompts]
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(role.render, prompts * 4)) == alone * 4


def test_choices_of_a_request_are_rendered_once(pair):
    with (
        serving(pair) as running,
        running.client() as client,
        watched_rendering(pair[0]) as (seen, _),
    ):
        said = client.post(ASK, json=chat("a", n=4, temperature=1, seed=7)).json()
        texts = [choice["message"]["content"] for choice in said["choices"]]
        assert seen == ["a"]
        again = client.post(ASK, json=chat("a", temperature=1, seed=9)).json()
        assert again["choices"][0]["message"]["content"] == texts[2]


def test_prompt_whose_client_left_while_it_waited_is_never_read(pair):
    with (
        serving(pair) as running,
        running.client() as client,
        watched_rendering(pair[0]) as (seen, go_on),
    ):
        held = send(running, chat("slow prompt"))
        until(lambda: seen)
        send(running, chat("left")).close()
        metrics = running.server.service.metrics
        until(lambda: "alignbeam_cancelled_total 1.0" in metrics.page().decode())
        go_on.set()
        assert client.post(ASK, json=chat("last")).status_code == 200
        assert seen == ["slow prompt", "last"]
        held.close()


def test_client_with_too_much_to_read_is_told_to_come_back(pair):
    with (
        serving(pair, max_queued=2) as running,
        running.client() as client,
        running.client(OTHER) as other,
        watched_rendering(pair[0]) as (seen, go_on),
    ):
        held = [send(running, chat("slow prompt")) for _ in range(2)]
        until(lambda: seen)
        until(lambda: running.server.service._turns._lines[unnamed(KEY)].length == 2)
        said = client.post(ASK, json=chat("one more"))
        assert (said.status_code, said.json()["error"]["code"]) == (503, "overloaded")
        assert other.post(ASK, json=chat("one more")).status_code == 200
        for raw in held:
            raw.close()
        go_on.set()


# Before the judge --------------------------------------------------------------------------


class HeldJudge:
    """A judge whose calls are kept; its first call about a request is held until told."""

    name = "held"

    def __init__(self, judge):
        self.judge, self.calls = judge, []
        self.entered, self.go_on = threading.Event(), threading.Event()

    def score(self, conversations, candidates):
        asked = [c[-1]["content"] for c in conversations]
        if "first" in asked:
            self.entered.set()
            self.go_on.wait(WAIT_S)
        self.calls.append(asked)
        return self.judge.score(conversations, candidates)


class Poisoned:
    """A judge that raises, or takes longer than it may, over a whole call with ``poison`` in it."""

    name = "poisoned"

    def __init__(self, kind):
        self.kind, self.judge = kind, judge_of()

    def score(self, conversations, candidates):
        if any(c[-1]["content"] == "poison" for c in conversations):
            if self.kind == "raises":
                raise RuntimeError("poisoned")
            time.sleep(3.3)
        return self.judge.score(conversations, candidates)


def put_before_the_judge(pool, judge, running, *asked):
    """Ask ``first`` and, while the judge is held over it, all else; return what comes of each."""
    scheduler = running.server.service.scheduler

    def ask(key, body):
        with running.client(key) as client:
            return client.post(ASK, json=body)

    flying = [pool.submit(ask, KEY, chat("first"))]
    assert judge.entered.wait(WAIT_S)
    for key, body in asked:
        waiting = len(scheduler._desk.finished) + body.get("n", 1)
        flying.append(pool.submit(ask, key, body))
        until(lambda waiting=waiting: len(scheduler._desk.finished) == waiting)
    judge.go_on.set()
    return [future.result(WAIT_S) for future in flying]


@pytest.mark.parametrize("kind", ["raises", "takes too long"])
def test_call_of_the_judge_that_fails_fails_its_own_client_only(pair, kind):
    judge = HeldJudge(Poisoned(kind))
    with serving(pair, judge, judge_timeout_s=3) as running, ThreadPoolExecutor(3) as pool:
        _, bad, good = put_before_the_judge(
            pool, judge, running, (KEY, chat("poison")), (OTHER, chat("good"))
        )
    assert bad.json()["error"]["code"] == "judge_unavailable"
    assert good.status_code == 200


def test_call_of_the_judge_is_about_one_client_and_bounded_and_clients_take_turns(pair):
    judge = HeldJudge(judge_of())
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=8)
    with serving(pair, judge, beam) as running, ThreadPoolExecutor(4) as pool:
        judge.calls.clear()
        large = chat("large", n=8, alignbeam={"beams": 8})
        said = put_before_the_judge(pool, judge, running, (KEY, large), (OTHER, chat("small")))
    assert [one.status_code for one in said] == [200] * 3
    assert all(len(set(call)) == 1 for call in judge.calls)
    assert max(map(len, judge.calls)) <= CALL_ROWS
    assert sum(map(len, judge.calls)) == 2 + 64 + 2
    assert ["small"] * 2 in judge.calls[:3]


@pytest.mark.parametrize(("rows", "most"), [(10, CALL_ROWS // 10), (CALL_ROWS + 1, 1)])
def test_call_of_the_judge_is_bounded_in_what_it_reads(pair, rows, most):
    judge = HeldJudge(judge_of())
    judge.readings = lambda conversation, candidate: rows
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=8)
    with serving(pair, judge, beam) as running, ThreadPoolExecutor(2) as pool:
        judge.calls.clear()
        large = chat("large", n=4, alignbeam={"beams": 4})
        said = put_before_the_judge(pool, judge, running, (KEY, large))
    assert [one.status_code for one in said] == [200] * 2
    calls = [len(call) for call in judge.calls if "large" in call]
    assert (max(calls), sum(calls)) == (most, 16)


def test_judge_that_hangs_fails_all_that_wait_after_a_few_calls(pair):
    hold = threading.Event()

    def hang(request, text):
        hold.wait(WAIT_S)
        return 1.0

    with serving(pair, judge_of(hang), judge_timeout_s=0.4) as running:
        with ThreadPoolExecutor(12) as pool, running.client() as client:
            said = list(pool.map(lambda n: client.post(ASK, json=chat(str(n), n=4)), range(12)))
        assert {one.json()["error"]["code"] for one in said} == {"judge_unavailable"}
        page = running.server.service.metrics.page().decode()
        hold.set()
    calls = next(x for x in page.splitlines() if x.startswith("alignbeam_judge_milliseconds_count"))
    assert float(calls.split()[1]) <= 4 * (PATIENCE + 1)


def test_judges_own_time_limit_counts_under_serve_where_it_is_smaller(pair):
    limits = []
    for own in (None, 0.3, 500.0):
        trio = AlignBeam(*pair, FailClosed(judge_of(), own), BeamConfig(max_new_tokens=8))
        server = Server(trio, ServerConfig(judge_timeout_s=40), keys=Keys(environ={}))
        limits.append(server.service.beam.judge.timeout_s)
        server.close()
    assert limits == [40, 0.3, 40]


@pytest.fixture
def scheduling(pair):
    """Make schedulers over a judge, which end with the test."""
    made = []

    def make(judge=None, **settings):
        beam = AlignBeam(*pair, judge or judge_of(), BeamConfig(mix_steps=2, max_new_tokens=8))
        made.append(Scheduler(beam, **settings))
        return made[-1]

    yield make
    for scheduler in made:
        scheduler.stop()


def test_judge_is_not_asked_for_a_client_that_left(scheduling):
    judge = HeldJudge(CallableJudge(lambda messages, text: 1.0))
    scheduler = scheduling(judge)
    first = scheduler.submit("first", {}, client="a")
    assert judge.entered.wait(WAIT_S)
    left, kept = scheduler.submit("left", {}, client="a"), scheduler.submit("kept", {}, client="a")
    until(lambda: len(scheduler._desk.finished) == 3)
    left.cancel()
    judge.go_on.set()
    for ticket in (first, kept):
        assert ticket.future.result(WAIT_S).result.text
    with pytest.raises(Cancelled):
        left.future.result(WAIT_S)
    assert "left" not in {text for call in judge.calls for text in call}
    assert scheduler.running == 0


def test_clients_part_before_the_judge_is_counted_in_what_the_judge_reads(scheduling):
    judge = HeldJudge(CallableJudge(lambda messages, text: 1.0))
    judge.readings = lambda conversation, candidate: 50
    scheduler = scheduling(judge, max_batch_cells=2000, client_share=0.75)
    first = scheduler.submit("first", {"beams": 2}, client="many")
    assert judge.entered.wait(WAIT_S)
    with scheduler._wake:
        (job,) = scheduler._desk.finished
        assert scheduler._desk.backlog("many") == 2 * 50 * job.length
    second = scheduler.submit("second", {}, client="many")
    other = scheduler.submit("other", {}, client="one")
    until(lambda: any(job.client == "one" for job in scheduler._desk.finished))
    assert scheduler.queued == 1  # its client has enough before the judge, little as it decoded
    judge.go_on.set()
    for ticket in (first, second, other):
        ticket.future.result(WAIT_S)


# In the queue and in the batch -------------------------------------------------------------


def test_second_client_is_admitted_while_the_first_ones_work_is_before_the_judge(scheduling):
    judge = HeldJudge(CallableJudge(lambda messages, text: 1.0))
    scheduler = scheduling(judge, max_batch_cells=400, client_share=0.75)
    flood = [scheduler.submit("first", {}, client="many") for _ in range(16)]
    assert judge.entered.wait(WAIT_S)
    until(lambda: not scheduler._active)
    assert scheduler.queued > 0
    scheduler.submit("one", {}, client="one")
    until(lambda: any(job.client == "one" for job in scheduler._desk.finished))
    judge.go_on.set()
    for ticket in flood:
        ticket.future.result(WAIT_S)


def test_second_client_joins_a_batch_that_the_first_ones_requests_fill(scheduling):
    scheduler = scheduling(max_batch_cells=1600, client_share=0.75)
    done = []
    long = {"max_new_tokens": 120, "beams": 2}
    many = [scheduler.submit("a", {**long, "seed": n}, client="many") for n in range(12)]
    until(lambda: len(scheduler._active) > 3)
    one = scheduler.submit("b", {"max_new_tokens": 4, "beams": 1}, client="one")
    for name, ticket in [*(("many", t) for t in many), ("one", one)]:
        ticket.future.add_done_callback(lambda _, name=name: done.append(name))
    for ticket in (*many, one):
        ticket.future.result(WAIT_S)
    assert done.index("one") <= 2


def test_one_request_may_not_take_more_than_a_clients_share(scheduling):
    scheduler = scheduling(max_batch_cells=400, client_share=0.5)
    with pytest.raises(TooLarge, match="exceed the 200"):
        scheduler.submit("a", {"beams": 8, "max_new_tokens": 40})


def test_queue_keeps_room_for_each_client_however_one_floods_it(scheduling):
    judge = HeldJudge(CallableJudge(lambda messages, text: 1.0))
    scheduler = scheduling(judge, max_batch_cells=300, max_queued=64, client_share=0.75)
    accepted = []

    def flood():
        while True:
            accepted.append(scheduler.submit("first", {}, client="many"))

    with pytest.raises(Overloaded):
        flood()
    assert judge.entered.wait(WAIT_S)
    others = [scheduler.submit("a", {}, client=f"c{n % 6}") for n in range(24)]
    with pytest.raises(Overloaded):
        flood()
    judge.go_on.set()
    for ticket in (*accepted, *others):
        assert ticket.future.result(WAIT_S).result.text


def test_flood_of_one_client_refuses_no_request_of_another(pair):
    judge = HeldJudge(judge_of())
    with (
        serving(pair, judge, max_queued=32, max_batch_cells=600) as running,
        ThreadPoolExecutor(60) as pool,
        running.client() as client,
        running.client(OTHER) as other,
    ):
        flood = [pool.submit(client.post, ASK, json=chat("first")) for _ in range(50)]
        scheduler = running.server.service.scheduler
        refused = lambda: sum(one.done() for one in flood)  # noqa: E731
        until(lambda: refused() + scheduler.queued + scheduler.running == len(flood))
        mine = [pool.submit(other.post, ASK, json=chat(f"mine {n}")) for n in range(8)]
        judge.go_on.set()
        assert [one.result(WAIT_S).status_code for one in mine] == [200] * 8
        assert 503 in [one.result(WAIT_S).status_code for one in flood]


def test_client_beside_a_hostile_one_gets_the_answers_that_it_gets_alone(pair):
    """All attacks at once; ``bench_server.py --part hostile`` measures the same."""
    hostile = [
        chat(pair[0].tokenizer.eos_token * 50_000),
        chat("word " * 150_000),
        *[chat("a story", n=8, alignbeam={"beams": 8})] * 3,
        chat("poison", n=2),
    ]
    honest = [chat(f"question {n}", max_tokens=8 + n) for n in range(8)]
    over = threading.Event()
    statuses = set()

    def attack(running, body):
        with running.client() as client:
            while not over.is_set():
                with contextlib.suppress(httpx2.TransportError):  # its own connections give way
                    statuses.add(client.post(ASK, json=body).status_code)

    def stay_silent(running):
        while not over.is_set():
            held = [socket.create_connection(("127.0.0.1", running.port)) for _ in range(20)]
            over.wait(0.2)
            for raw in held:
                raw.close()

    settings = {"max_batch_cells": 2048, "max_queued": 32, "max_connections": 24}
    with (
        serving(pair, Poisoned("raises"), **settings) as running,
        running.client(OTHER, transport=httpx2.HTTPTransport(local_address="127.0.0.2")) as client,
        ThreadPoolExecutor(len(hostile) + 1) as pool,
    ):
        texts = lambda said: [c["message"]["content"] for c in said.json()["choices"]]  # noqa: E731
        alone = [texts(client.post(ASK, json=body)) for body in honest]
        try:
            flying = [pool.submit(attack, running, body) for body in hostile]
            flying.append(pool.submit(stay_silent, running))
            until(lambda: {400, 503} <= statuses)
            for body, text in zip(honest, alone, strict=True):
                said = client.post(ASK, json=body)
                assert said.status_code == 200
                assert texts(said) == text
                assert client.get("/health").status_code == 200
        finally:
            over.set()
        for one in flying:
            one.result(WAIT_S)
    assert 200 in statuses
