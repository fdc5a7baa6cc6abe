"""How much of one client is read, and what the others notice of it."""

from __future__ import annotations

import asyncio
import json

import pytest
from serving import KEY, OTHER, chat, serving
from tiny_models import random_pair

from alignbeam.config import ServerConfig
from alignbeam.server.allowance import Allowance
from alignbeam.server.gate import Gate
from alignbeam.server.keys import Keys


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_client_may_spend_what_it_saved_and_waits_for_what_it_owes():
    clock = Clock()
    allowance = Allowance(1000, 5000, clock)
    assert allowance.wait_s("ann") == 0
    allowance.spend("ann", 5000)
    assert allowance.wait_s("ann") == 0
    allowance.spend("ann", 2500)
    assert allowance.wait_s("ann") == pytest.approx(2.5)
    assert allowance.wait_s("ben") == 0
    clock.now += 2
    assert allowance.wait_s("ann") == pytest.approx(0.5)
    clock.now += 1000  # no more is saved than may be
    allowance.spend("ann", 6000)
    assert allowance.wait_s("ann") == pytest.approx(1)


@pytest.fixture(scope="module")
def running():
    with serving(random_pair(), max_body_bytes=20_000, client_bytes_per_s=100) as server:
        yield server


def test_client_that_sends_too_fast_is_sent_away_unread_and_holds_up_no_other(running):
    large = json.dumps(chat("a" * 19_000)).encode()
    how = {"content": large, "headers": {"content-type": "application/json"}}
    with running.client(KEY) as client, running.client(OTHER) as other:
        first, second, third = (client.post("/v1/chat/completions", **how) for _ in range(3))
        # What it saved up is one body; it may owe another, and that takes minutes to come back.
        assert first.json()["error"]["code"] == "prompt_too_long"
        assert second.json()["error"]["code"] == "prompt_too_long"
        assert (third.status_code, third.json()["error"]["code"]) == (429, "too_many_bytes")
        assert int(third.headers["retry-after"]) > 60
        # Whatever it asks now, probes aside, and with or without a body.
        assert client.get("/v1/models").status_code == 429
        assert client.get("/ready").status_code == 200
        assert other.post("/v1/chat/completions", json=chat(max_tokens=2)).status_code == 200


class Owing(Allowance):
    """Of a client that has to wait as long as it is told, each time it asks."""

    def __init__(self, *waits):
        super().__init__(1, 1)
        self._waits = list(waits)

    def wait_s(self, client):
        return self._waits.pop(0)


@pytest.fixture
def through_the_gate(monkeypatch):
    """Return what a request comes to that has to wait so long: status, read or not, waits."""
    read, said, waited = [], [], []

    async def app(scope, receive, send):
        read.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def receive():
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(message):
        said.append(message)

    async def sleep(seconds):
        waited.append(seconds)

    def ask(*waits):
        gate = Gate(app, Keys(environ={}), Keys(environ={}), ServerConfig())
        gate._allowance = Owing(*waits)
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/v1/chat/completions",
            "headers": [(b"host", b"localhost")],
        }
        with monkeypatch.context() as patched:
            patched.setattr("alignbeam.server.gate.asyncio.sleep", sleep)
            asyncio.run(gate(scope, receive, send))
        return said[0]["status"], bool(read), waited

    return ask


def test_client_that_was_a_little_too_fast_waits_and_is_read(through_the_gate):
    assert through_the_gate(0.3, 0.0) == (200, True, [0.3])


def test_client_that_was_much_too_fast_is_not_read_and_not_waited_for_long(through_the_gate):
    assert through_the_gate(60.0, 59.0) == (429, False, [1.0])
