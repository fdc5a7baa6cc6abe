"""How much of one client is read, and what the others notice of it."""

from __future__ import annotations

import asyncio
import functools
import json
from types import SimpleNamespace

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
            "headers": [(b"host", b"localhost"), (b"content-length", b"2")],
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


yield_to_others = functools.partial(asyncio.sleep, 0)


class Uploads:
    """Bodies that one client sends at the same time, in pieces, through a gate whose clock stands.

    Attributes
    ----------
    read : int
        Bytes that the application got.
    statuses : list of int
    headers : dict of int to dict
        Of the last answer of each status.
    """

    PIECE = 1 << 16

    def __init__(self, config, clock):
        self.gate = Gate(self._app, Keys(environ={}), Keys(environ={}), config)
        rate = config.client_bytes_per_s
        self.gate._allowance = Allowance(rate, max(rate, config.max_body_bytes), clock)
        self.read, self.statuses, self.headers = 0, [], {}

    async def _app(self, scope, receive, send):
        more = True
        while more:
            message = await receive()
            self.read += len(message["body"])
            more = message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(self, size, declared):
        left = size

        async def receive():
            nonlocal left
            await yield_to_others()
            piece = min(self.PIECE, left)
            left -= piece
            return {"type": "http.request", "body": b"a" * piece, "more_body": left > 0}

        async def answered(message):
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])
                self.headers[message["status"]] = dict(message["headers"])

        chunked = (b"transfer-encoding", b"chunked")
        length = (b"content-length", str(size).encode()) if declared else chunked
        headers = [(b"host", b"localhost"), length]
        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
        await self.gate(scope, receive, answered)

    async def send_all(self, count, size, declared):
        await asyncio.gather(*(self.send(size, declared) for _ in range(count)))


@pytest.fixture
def uploads(monkeypatch):
    async def sleep(seconds):
        await yield_to_others()

    monkeypatch.setattr("alignbeam.server.gate.asyncio", SimpleNamespace(sleep=sleep))
    return Uploads(ServerConfig(), Clock())


def test_bodies_that_one_client_sends_at_once_are_bounded_in_all(uploads):
    config = ServerConfig()
    size = config.max_body_bytes
    asyncio.run(uploads.send_all(60, size, declared=True))
    # What it saved up, and the one that it may owe.
    passed = config.client_bytes_per_s // size + 1
    assert sorted(uploads.statuses) == [200] * passed + [429] * (60 - passed)
    assert uploads.read == passed * size
    assert uploads.headers[429][b"connection"] == b"close"


def test_bodies_of_no_declared_length_are_bounded_in_all(uploads):
    config = ServerConfig()
    asyncio.run(uploads.send_all(60, config.max_body_bytes, declared=False))
    assert uploads.statuses.count(429) > 50
    assert uploads.read <= config.client_bytes_per_s + config.max_body_bytes


def test_small_bodies_of_no_declared_length_are_charged_what_they_have(uploads):
    asyncio.run(uploads.send_all(200, 1000, declared=False))
    assert uploads.statuses == [200] * 200
    uploads.statuses.clear()
    # So a whole body fits into what is left.
    asyncio.run(uploads.send_all(1, ServerConfig().max_body_bytes, declared=False))
    assert uploads.statuses == [200]


def test_body_that_never_comes_costs_its_client_nothing_where_no_length_was_declared(uploads):
    async def leave():
        sending = asyncio.ensure_future(uploads.send(1 << 20, declared=False))
        await yield_to_others()
        assert uploads.gate._allowance.wait_s("local") == 0
        assert uploads.gate._allowance._now("local") < 4 << 20
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)

    asyncio.run(leave())
    assert uploads.gate._allowance._now("local") == 4 << 20


@pytest.mark.parametrize("declared", [True, False])
def test_largest_body_passes(declared):
    with serving(random_pair(), client_bytes_per_s=1) as server, server.client() as client:
        body = json.dumps(chat(max_tokens=2)).encode().ljust(ServerConfig().max_body_bytes)
        content = body if declared else (body[i : i + 50_000] for i in range(0, len(body), 50_000))
        headers = {"content-type": "application/json"}
        said = client.post("/v1/chat/completions", content=content, headers=headers)
        assert said.status_code == 200
