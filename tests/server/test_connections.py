"""Connections: silent ones shut nobody out, and probes always have room."""

from __future__ import annotations

import http.client
import json
import socket
import threading

import pytest
from serving import KEY, METRICS_KEY, chat, judge_of, serving
from tiny_models import random_pair

from alignbeam.server.connections import SPARE, Crowd, _address_of

WAIT_S = 30


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def connect(running, source="127.0.0.1"):
    return socket.create_connection(("127.0.0.1", running.port), WAIT_S, (source, 0))


def send(raw, path="/v1/models", body=None):
    data = b"" if body is None else json.dumps(body).encode()
    head = f"{'POST' if data else 'GET'} {path} HTTP/1.1\r\nhost: a\r\n"
    key = METRICS_KEY if path == "/metrics" else KEY
    head += f"authorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    raw.sendall(f"{head}content-length: {len(data)}\r\n\r\n".encode() + data)


def status(raw):
    """The status of the answer that comes next; 0 where the connection was closed instead."""
    answer = http.client.HTTPResponse(raw)
    try:
        answer.begin()
        answer.read()
    except (ConnectionError, http.client.HTTPException):
        return 0
    return answer.status


def is_open(raw):
    send(raw)
    return status(raw) == 200


def test_silent_connections_do_not_shut_out_another_address(pair):
    with serving(pair, max_connections=8) as running:
        silent = [connect(running) for _ in range(8)]
        other = connect(running, "127.0.0.2")
        assert is_open(other)
        # It is silent too now, but of another address than those that come on and on.
        silent += [connect(running) for _ in range(20)]
        assert is_open(other)
        for raw in (*silent, other):
            raw.close()


def test_silent_connections_give_way_to_their_own_address_too(pair):
    with serving(pair, max_connections=3) as running:
        silent = [connect(running) for _ in range(3)]
        fresh = connect(running)
        assert is_open(fresh)
        assert status(silent[0]) == 0
        assert is_open(silent[2])
        for raw in (*silent, fresh):
            raw.close()


@pytest.fixture
def held(pair):
    """A server of two connections, both waiting for a judge."""
    hold, asked = threading.Event(), []

    def wait(request, text):
        asked.append(request)
        hold.wait(WAIT_S)
        return 1.0

    settings = {"max_connections": 2, "max_connections_per_address": 30}
    with serving(pair, judge_of(wait), **settings) as running:
        busy = [connect(running) for _ in range(2)]
        for raw in busy:
            send(raw, "/v1/chat/completions", chat())
        while running.server.service.scheduler.running < 2:
            pass
        yield running, busy
        hold.set()
        assert [status(raw) for raw in busy] == [200, 200]
        for raw in busy:
            raw.close()


def test_probes_are_answered_when_all_connections_are_in_use(held):
    running, _ = held
    for path in ("/health", "/ready", "/metrics"):
        with connect(running) as probe:
            send(probe, path)
            assert status(probe) == 200
    with connect(running) as more:
        send(more, "/v1/chat/completions", chat())
        assert status(more) == 503
    silent = [connect(running) for _ in range(SPARE + 5)]
    with connect(running) as probe:
        send(probe, "/health")
        assert status(probe) == 200
    for raw in silent:
        raw.close()


def test_one_address_has_a_bound_of_its_own(pair):
    with serving(pair, max_connections_per_address=2) as running:
        first, second = connect(running), connect(running)
        third, other = connect(running), connect(running, "127.0.0.2")
        assert status(first) == 0
        assert all(map(is_open, (second, third, other)))
        for raw in (first, second, third, other):
            raw.close()


def test_crowd_refuses_where_nobody_is_silent_and_forgets_who_left():
    crowd = Crowd(most=2, each=2)
    for who in ("a", "b"):
        assert crowd.enter(who, "x") == (True, False, None)
        crowd.speaks(who, "x")
    assert crowd.enter("c", "x") == (False, False, None)
    for n in range(SPARE):
        assert crowd.enter(n, f"y{n}") == (True, True, None)
        crowd.speaks(n, f"y{n}")
    assert crowd.enter("d", "z") == (False, False, None)
    crowd.falls_silent(3, "y3")
    assert crowd.enter("d", "z") == (True, True, 3)
    for who, address in (("a", "x"), ("b", "x"), ("d", "z")):
        crowd.leave(who, address)
    for n in set(range(SPARE)) - {3}:
        crowd.leave(n, f"y{n}")
    assert not crowd._held
    assert not crowd._silent


@pytest.mark.parametrize(
    ("client", "address"),
    [
        (None, ""),
        (("10.0.0.1", 5), "10.0.0.1"),
        (("::ffff:10.0.0.1", 5), "10.0.0.1"),
        (("2001:db8::1", 5), "2001:db8::/64"),
        (("2001:db8::ffff:1", 5), "2001:db8::/64"),
        (("nonsense", 5), "nonsense"),
    ],
)
def test_address_is_that_of_a_customer(client, address):
    assert _address_of(client) == address
