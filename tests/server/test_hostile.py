"""What a hostile client tries: to hold connections, break the gate, read what was withheld."""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import socket
import time

import pytest
from pydantic import ValidationError
from serving import KEY, chat, judge_of, serving, unnamed
from tiny_models import random_pair

from alignbeam.config import JudgeConfig
from alignbeam.errors import JudgeDied, PromptError
from alignbeam.judge import FailClosed
from alignbeam.models.conversation import as_messages
from alignbeam.server.judge_process import JudgeProcess, _serve
from alignbeam.server.keys import Keys
from alignbeam.server.openai_requests import ChatRequest, CompletionRequest

REQUEST = b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer " + KEY.encode()


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def running(pair):
    with serving(pair, head_timeout_s=0.5, max_connections=4) as server:
        yield server


def connect(running):
    return socket.create_connection(("127.0.0.1", running.port), 30)


def seconds_until_closed(raw, dribble=b""):
    """Send a byte now and then until the other side has had enough."""
    begin = time.perf_counter()
    raw.settimeout(0.05)
    while time.perf_counter() - begin < 30:
        try:
            if dribble:
                raw.sendall(dribble)
            if not raw.recv(65_536):
                break
        except TimeoutError:
            continue
        except OSError:
            break
    return time.perf_counter() - begin


@pytest.mark.parametrize(
    ("first", "dribble"),
    [
        (b"", b""),
        (b"GET /v1/models HT", b""),
        (b"GET /v1/models HTTP/1.1\r\nx: ", b"a"),
        (REQUEST + b"\r\n\r\n", b""),
        (REQUEST + b"\r\n\r\nGET /v1/models HTTP/1.1\r\nx: ", b"a"),
    ],
    ids=["silent", "half a line", "dribbling", "idle after an answer", "dribbling after an answer"],
)
def test_connection_without_a_whole_head_is_closed(running, first, dribble):
    with connect(running) as raw:
        raw.sendall(first)
        assert 0.3 < seconds_until_closed(raw, dribble) < 15


def test_refused_client_that_goes_on_sending_its_body_is_closed(running):
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n"
    with connect(running) as raw:
        raw.sendall(head)
        assert raw.recv(65_536).startswith(b"HTTP/1.1 401 ")
        assert seconds_until_closed(raw, b"1\r\na\r\n") < 15


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/health"])
def test_request_with_two_lengths_is_refused_and_its_connection_closed(running, path):
    """A proxy that goes by the other length would take what follows for another's request."""
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n"
    lengths = "content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n"
    hidden = "0\r\n\r\nGET /health HTTP/1.1\r\nhost: a\r\n\r\n"
    with connect(running) as raw:
        raw.sendall((head + lengths + hidden).encode())
        said = b""
        while data := raw.recv(65_536):
            said += data
    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1


def test_answer_that_takes_longer_than_a_head_is_not_cut(pair):
    def slow(request, text):
        time.sleep(0.6)
        return 1.0

    with serving(pair, judge_of(slow), head_timeout_s=0.1) as running, running.client() as client:
        assert client.post("/v1/chat/completions", json=chat()).status_code == 200


@pytest.mark.parametrize(
    ("header", "value", "status"),
    [
        ("origin", b"http://[", 403),
        ("origin", b"", 403),
        ("origin", b"//", 403),
        ("authorization", "Basic \xe9".encode("latin-1"), 401),
        ("authorization", b"Basic /////w==", 401),
        ("x-api-key", b"\xff\xfe", 401),
    ],
)
def test_malformed_headers_are_refused_without_an_error_of_ours(
    running, caplog, header, value, status
):
    with running.client(None) as client:
        said = client.get("/v1/models", headers=[(header.encode(), value)])
    assert said.status_code == status
    assert set(said.json()) == {"error"}
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_long_addresses_are_refused_and_not_logged_whole(running, caplog):
    caplog.set_level(logging.INFO, "alignbeam.access")
    with running.client(None) as client:
        assert client.get("/" + "a" * 20_000).status_code == 431
        assert client.get("/?" + "a" * 20_000).status_code == 431
    logged = [r.path for r in caplog.records if r.name == "alignbeam.access"]
    assert logged
    assert max(map(len, logged)) <= 200


def test_redirects_do_not_repeat_the_clients_host(running):
    with running.client() as client:
        said = client.get("/v1/models/", headers={"host": "evil.example"})
    assert said.status_code == 404
    assert "evil.example" not in said.text + str(said.headers)


def test_keys_file_that_turns_bad_lets_nobody_in_until_it_is_mended(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"alice: {KEY}\n")
    keys = Keys(str(path), environ={"ALIGNBEAM_API_KEYS": "one-key-of-the-environment"})
    assert keys.name_of(KEY) == "alice"
    path.write_text(f"alice: {KEY}\nbob: short\n")
    assert keys.name_of(KEY) is None
    assert keys.name_of(KEY) is None
    other = "one-key-of-the-environment"
    assert keys.name_of(other) == unnamed(other)
    path.write_text(f"alice: {KEY}\nbob: {KEY}-of-bob\n")
    assert keys.name_of(f"{KEY}-of-bob") == "bob"


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (ChatRequest, {"messages": [1] * 1000}),
        (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "stop": [1] * 1000}),
        (CompletionRequest, {"prompt": [1] * 1000}),
    ],
)
def test_long_lists_of_mistakes_are_not_all_collected(model, body):
    """A megabyte of them would hold the event loop for seconds."""
    with pytest.raises(ValidationError) as caught:
        model.model_validate({"model": "alignbeam", **body})
    assert caught.value.error_count() <= 6


@pytest.mark.parametrize(
    "messages", [[{}] * 1000, [{"role": "user", "content": [{"a": 1}] * 1000}]]
)
def test_long_conversation_of_mistakes_is_refused_at_the_first(messages):
    with pytest.raises(PromptError) as caught:
        as_messages(messages)
    assert caught.value.place.startswith("0.")
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("extreme", [5e-324, 1e-310, 1e-30])
def test_tiny_temperatures_are_answered_and_hurt_nobody(running, extreme):
    with running.client() as client:
        ask = lambda **more: client.post("/v1/chat/completions", json=chat(max_tokens=8, **more))  # noqa: E731
        plain = ask(temperature=0).json()["choices"][0]["message"]
        said = ask(temperature=extreme, top_p=extreme, seed=1)
        assert said.status_code == 200
        assert ask(temperature=0).json()["choices"][0]["message"] == plain


@pytest.mark.parametrize("kind", [RuntimeError, TimeoutError, JudgeDied])
def test_what_a_failing_judge_quotes_leaves_in_no_way(pair, caplog, tmp_path, kind):
    seen = []

    def quoting(request, text):
        seen.append(text)
        if len(seen) % 2:
            raise kind(f"only {text} of {request}")
        return 1.0

    caplog.set_level(logging.INFO)
    path = tmp_path / "audit.jsonl"
    private = "a private question"
    body = chat(private, alignbeam={"explain": True})
    with (
        serving(pair, judge_of(quoting), audit_file=str(path)) as running,
        running.client() as client,
    ):
        said = client.post("/v1/chat/completions", json=body)
    assert said.status_code == 200
    failed = said.json()["choices"][0]["alignbeam"]["candidates"][0]
    assert failed == {"passed": False, "failure": "exception"}
    assert json.loads(path.read_text())["candidates"][0]["failure"] == "exception"
    everything = said.text + path.read_text() + "".join(str(vars(r)) for r in caplog.records)
    for withheld in (private, seen[0]):
        assert withheld not in everything
        assert json.dumps(withheld)[1:-1] not in everything


@pytest.mark.parametrize("fail_open", [False, True])
def test_what_a_dead_judge_quotes_is_neither_logged_nor_explained(pair, caplog, fail_open):
    private = "a private question"

    def quoting(request, text):
        raise RuntimeError(f"cannot judge {request}")

    caplog.set_level(logging.INFO)
    body = chat(private, alignbeam={"explain": True})
    with (
        serving(pair, judge_of(quoting), fail_open=fail_open) as running,
        running.client() as client,
    ):
        said = client.post("/v1/chat/completions", json=body)
    assert said.status_code == (200 if fail_open else 503)
    assert private not in said.text + "".join(str(vars(r)) for r in caplog.records)


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_in_the_log_only_where_asked_for(pair, caplog, asked):
    caplog.set_level(logging.INFO)
    with serving(pair, log_prompts=asked) as running, running.client() as client:
        said = client.post("/v1/chat/completions", json=chat("a private question")).json()
    logged = "".join(str(vars(r)) for r in caplog.records)
    assert ("a private question" in logged) is asked
    assert any(getattr(r, "text", None) == said["choices"][0]["message"]["content"]
               for r in caplog.records) is asked  # fmt: skip


@pytest.mark.parametrize("broken", [False, True])
def test_judge_process_tells_that_the_judge_raised_and_ends_where_cuda_broke(monkeypatch, broken):
    class Raises:
        name = "raises"

        def score(self, conversations, candidates):
            raise RuntimeError("CUDA error: illegal access" if broken else f"odd: {candidates}")

    monkeypatch.setattr("alignbeam.controller.load_judge_of", lambda config: FailClosed(Raises()))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    ours, theirs = multiprocessing.Pipe()
    ours.send((7, ([[{"role": "user", "content": "q"}]], ["a secret"])))
    ours.send(None)  # no batch: ends the loop
    with pytest.raises((RuntimeError, TypeError), match="CUDA" if broken else "unpack"):
        _serve(theirs, JudgeConfig(), 0)
    assert ours.recv() == "raises"
    assert broken or ours.recv() == (7, "RuntimeError in the judge")


@pytest.mark.skipif(os.name != "posix", reason="a process is stopped by a POSIX signal")
def test_judge_process_that_does_not_even_read_is_replaced():
    judge = JudgeProcess(JudgeConfig(), timeout_s=2, threads=1)
    try:
        os.kill(judge.pid, signal.SIGSTOP)
        asked = [[{"role": "user", "content": "word " * 200_000}]]
        begin = time.monotonic()
        with pytest.raises(JudgeDied):
            judge.score(asked, ["text"])
        assert time.monotonic() - begin < 30
        assert not judge.alive
    finally:
        judge.close()


@pytest.mark.parametrize("host", ["localhost/as-i-like?", "localhost/as-i-like#", "[", "a b"])
def test_host_of_a_request_names_no_series(pair, host):
    with serving(pair) as running, running.client() as client:
        for asked in ({}, chat(max_tokens=1)):
            client.post("/v1/chat/completions", json=asked, headers={"host": host})
        page = running.metrics()
    assert "as-i-like" not in page
    route = 'alignbeam_requests_total{route="/v1/chat/completions"'
    assert page.count(route) == 2
