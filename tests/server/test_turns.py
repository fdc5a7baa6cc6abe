"""Whose turn it is: to be read, to join the batch, to be judged; nobody waits for a flood."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import Future

import pytest
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.judge import CallableJudge
from alignbeam.server import entrance
from alignbeam.server.admission import Admission
from alignbeam.server.entrance import FORWARD_CELLS, Entrance
from alignbeam.server.job import Job
from alignbeam.server.ledger import Ledger
from alignbeam.server.queue import FairQueue
from alignbeam.server.scheduler import Scheduler

WAIT_S = 60


@pytest.fixture(scope="module")
def beam():
    judge = CallableJudge(lambda messages, text: 1.0, "test")
    return AlignBeam(*random_pair(), judge, BeamConfig(mix_steps=2, beams=1, max_new_tokens=8))


@pytest.fixture
def job(beam):
    """Make jobs of a client with so many tokens of prompt, of answer, and rows."""

    def make(client, prompt=10, answer=10, rows=1):
        request = beam.prepare("a", max_new_tokens=answer, beams=rows)
        request.target_ids = request.anchor_ids = [5] * prompt
        return Job(request, client, "full", lambda text: None, Future(), 32)

    return make


# Being read --------------------------------------------------------------------------------


@pytest.fixture
def waiting(job):
    """Make an entrance at which jobs wait."""

    def make(*jobs):
        made = Entrance()
        for one in jobs:
            made.put(one)
        return made

    return make


def test_prompts_that_are_read_between_two_steps_are_bounded_but_for_one(job, waiting):
    long = [job("many", FORWARD_CELLS + 1) for _ in range(2)]
    short = [job("many", FORWARD_CELLS // 4) for _ in range(6)]
    at = waiting(*long, *short)
    taken = [at.take(set()) for _ in range(4)]
    assert taken == [long[:1], long[1:], short[:4], short[4:]]
    assert at.waiting == at.take(set()) == []


def test_short_prompt_is_not_padded_to_a_long_one(job, waiting):
    short, long = job("one", 10), job("many", FORWARD_CELLS - 1)
    at = waiting(short, long)
    assert at.take(set()) == [short]
    assert at.take(set()) == [long]


def test_client_waits_for_as_long_as_its_prompts_took_while_others_decode(job, waiting):
    first, second = job("many"), job("many")
    at = waiting(first)
    assert at.take({"one"}) == [first]
    at.charge([first], 2.0)
    at.put(second)
    at.stepped(1.5)
    assert at.take({"one", "many"}) == []
    at.stepped(0.5)
    assert at.take({"one", "many"}) == [second]


def test_client_that_decodes_alone_never_waits_and_is_not_owed_for_by_it(job, waiting):
    at = waiting(job("many"))
    for _ in range(50):
        assert len(at.take({"many"})) == 1
        at.charge([job("many")], 2.0)
        at.put(job("many"))
    at.stepped(2.0)
    assert len(at.take({"one"})) == 1


def test_prompt_of_a_client_that_owes_nothing_is_read_first(job, waiting):
    flood, one = [job("many") for _ in range(3)], job("one")
    at = waiting(*flood, one)
    at.charge([job("many")], 2.0)
    assert at.take(set()) == [one, *flood]


def test_clients_that_are_read_together_owe_their_parts(job, waiting):
    at = waiting()
    at.charge([job("many", 30), job("one", 10)], 2.0)
    at.stepped(0.5)
    at.put(job("many"))
    at.put(job("one"))
    assert [one.client for one in at.take({"third"})] == ["one"]


def test_second_client_is_read_before_what_the_first_one_has_waiting(beam, monkeypatch):
    """The first client's prompts have their place in the batch before the second comes."""
    monkeypatch.setattr(entrance, "FORWARD_CELLS", 1)
    prompts = [f"{n} and so on" for n in range(6)]
    alone = [beam.generate(prompt).text for prompt in prompts]
    scheduler = Scheduler(beam)
    entered, go_on, read = threading.Event(), threading.Event(), []
    add = scheduler._engine.add

    def held(requests):
        read.extend(scheduler._active[request].client for request in requests)
        if not entered.is_set():
            entered.set()
            assert go_on.wait(WAIT_S)
        add(requests)

    monkeypatch.setattr(scheduler._engine, "add", held)
    try:
        tickets = [scheduler.submit(prompt, {}, client="many") for prompt in prompts[:5]]
        assert entered.wait(WAIT_S)
        tickets.append(scheduler.submit(prompts[5], {}, client="one"))
        go_on.set()
        assert [t.future.result(WAIT_S).result.text for t in tickets] == alone
    finally:
        go_on.set()
        scheduler.stop()
    assert read == ["many", "one", *["many"] * 4]


def test_request_that_is_given_up_while_it_waits_to_be_read_is_never_read(beam, monkeypatch):
    monkeypatch.setattr(entrance, "FORWARD_CELLS", 1)
    scheduler = Scheduler(beam)
    entered, go_on, read = threading.Event(), threading.Event(), []
    add = scheduler._engine.add

    def held(requests):
        read.extend(requests)
        entered.set()
        assert go_on.wait(WAIT_S)
        add(requests)

    monkeypatch.setattr(scheduler._engine, "add", held)
    try:
        first, left, kept = (scheduler.submit(prompt, {}) for prompt in "abc")
        assert entered.wait(WAIT_S)
        left.cancel()
        go_on.set()
        for ticket in (first, kept):
            assert ticket.future.result(WAIT_S).result.text
    finally:
        go_on.set()
        scheduler.stop()
    assert left._job.request not in read
    assert len(read) == 2


# Joining the batch -------------------------------------------------------------------------


class Door:
    """Admission to a batch of 1600 cells, without a scheduler."""

    def __init__(self, share=0.75):
        self.queue, self.running = FairQueue(256, 1 << 20), []
        self.admission = Admission(
            self.queue,
            max_cells=1600,
            share=share,
            running=self.running,
            backlog=lambda client: 0,
        )

    def admit(self, *jobs):
        """Put jobs and return those that join."""
        for one in jobs:
            self.admission.put([one])
        joined = []
        while (one := self.admission.next()) is not None:
            self.queue.take(one)
            self.running.append(one)
            joined.append(one)
        return joined

    def leave(self, *jobs):
        for one in jobs:
            self.running.remove(one)

    def flood(self, job, *clients):
        return self.admit(*(job(client, answer=90, rows=2) for client in clients for _ in range(9)))


@pytest.mark.parametrize(("share", "joins"), [(0.75, True), (1.0, False)])
def test_batch_that_several_clients_fill_has_room_for_another(job, share, joins):
    door = Door(share)
    assert len(door.flood(job, "a", "b")) == (7 if joins else 8)
    assert len(door.queue) > 0
    small = job("one")
    assert door.admit(small) == [small] * joins
    assert sum(one.rows for one in door.running) * 100 <= 1600


def test_room_that_is_kept_is_for_one_job_of_a_client_and_bounded(job):
    door = Door()
    door.flood(job, "a", "b")
    first, again, other, third = job("one"), job("one"), job("other"), job("third")
    assert door.admit(first, again) == [first]
    assert door.admit(other, third) == [other]  # two rows of a hundred tokens are all that is kept
    door.leave(first)
    assert door.admit() == [again]


def test_large_job_whose_turn_it_is_joins_once_those_before_it_left(job):
    door = Door()
    before = door.flood(job, "a", "b")
    door.queue.drop(lambda one: True)
    large = job("large", answer=140, rows=8)
    assert door.admit(large) == []
    passed = []
    for n in range(len(before)):
        passed += door.admit(job(f"small{n}"))
        door.leave(before[n])
    assert 0 < len(passed) < len(before)
    assert all(one.aside for one in passed)
    assert large in door.admit()
    assert not large.aside
    assert sum(one.rows for one in door.running) * 150 <= 1600


def test_no_job_passes_by_one_that_needs_the_whole_batch(job):
    door = Door()
    (before,) = door.admit(job("a", answer=90, rows=2))
    door.admission.shrink()
    large, small = job("large", answer=80, rows=8), job("one")
    assert door.admit(large, small) == []
    door.leave(before)
    assert door.admit() == [large]


# Being judged ------------------------------------------------------------------------------


def served(ledger, work):
    client = ledger.turn(work)
    ledger.charge(client, work[client])
    return client


def test_clients_that_ask_all_the_time_get_the_same_work_done():
    ledger, work, done = Ledger(), {"large": 90, "small": 30, "middle": 45}, Counter()
    for client in work:
        ledger.enter(client)
    for _ in range(600):
        client = served(ledger, work)
        done[client] += work[client]
    assert max(done.values()) - min(done.values()) <= max(work.values())


def test_newcomers_however_many_keep_no_large_question_waiting_for_ever():
    ledger = Ledger()
    ledger.enter("large")
    for n in range(101):
        newcomer = f"{n}"
        ledger.enter(newcomer)
        if served(ledger, {"large": 1000, newcomer: 10}) == "large":
            break
    assert 90 <= n <= 100
    assert len(ledger._done) <= 2


def test_nothing_is_made_up_for_the_time_when_a_client_asked_nothing():
    ledger = Ledger()
    ledger.enter("busy")
    for _ in range(50):
        served(ledger, {"busy": 10})
    ledger.enter("idle")
    turns = [served(ledger, {"busy": 10, "idle": 10}) for _ in range(6)]
    assert turns.count("idle") == 3


def test_small_question_comes_after_the_call_that_is_being_made(beam):
    entered, go_on, calls = threading.Event(), threading.Event(), []

    class Held:
        name = "held"

        def readings(self, conversation, candidate):
            return 1 if conversation[-1]["content"] == "small" else 30

        def score(self, conversations, candidates):
            calls.append(conversations[0][-1]["content"])
            if len(calls) == 1:
                entered.set()
                assert go_on.wait(WAIT_S)
            judge = CallableJudge(lambda messages, text: 1.0)
            return judge.score(conversations, candidates)

    scheduler = Scheduler(AlignBeam(beam.target, beam.anchor, Held(), beam.config))
    try:
        asked = [scheduler.submit("first", {}, client="a")]
        assert entered.wait(WAIT_S)
        for n, client in enumerate("aabbcc"):
            asked.append(scheduler.submit(f"{client} {n}", {}, client=client))
        asked.append(scheduler.submit("small", {}, client="one"))
        deadline = time.monotonic() + WAIT_S
        while len(scheduler._desk.finished) < len(asked):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        go_on.set()
        for ticket in asked:
            assert ticket.future.result(WAIT_S).result.text is not None
    finally:
        go_on.set()
        scheduler.stop()
    assert calls[1] == "small"
    assert {call[0] for call in calls[2:5]} == {"a", "b", "c"}
