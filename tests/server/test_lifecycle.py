"""What a server lives through in months: logs rotated by others, files used up, clients that go."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx2
import pytest
from serving import KEY, METRICS_KEY, chat, judge_of, serving, unnamed
from tiny_models import random_pair

from alignbeam.config import JudgeConfig
from alignbeam.server import judge_process
from alignbeam.server.audit import AuditLog
from alignbeam.server.judge_process import JudgeProcess
from alignbeam.server.problems import AuditQuota, AuditUnavailable
from alignbeam.server.run import allow_files

WAIT_S = 60


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def until(true, seconds=WAIT_S):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def numbers(folder):
    lines = (line for path in folder.iterdir() for line in path.read_bytes().splitlines())
    return sorted(json.loads(line)["n"] for line in lines)


def test_rotation_that_fails_half_way_loses_no_history_and_is_gone_on_with(tmp_path, monkeypatch):
    log = AuditLog(tmp_path / "audit.jsonl", max_bytes=300, keep=9)
    written = 0
    while not (tmp_path / "audit.jsonl.3").exists():
        log.write({"n": written})
        written += 1

    def no_file(self):
        raise OSError(24, "Too many open files")

    refused = 0
    with monkeypatch.context() as patch:
        patch.setattr(AuditLog, "_open", no_file)
        while refused < 20:
            try:
                log.write({"n": written})
                written += 1
            except AuditUnavailable:
                refused += 1
    assert numbers(tmp_path) == list(range(written))
    log.write({"n": written})  # once there is a file again
    assert numbers(tmp_path) == list(range(written + 1))
    log.close()


@pytest.mark.skipif(os.name != "posix", reason="an open file is renamed")
@pytest.mark.parametrize("how", ["renamed", "removed", "copied and cut"])
def test_audit_log_goes_on_where_another_program_rotates_it(tmp_path, how):
    path, aside = tmp_path / "audit.jsonl", tmp_path / "aside"
    log = AuditLog(path, max_bytes=2000)
    for number in range(10):
        log.write({"n": number})
    if how == "renamed":
        path.rename(aside)
    elif how == "removed":
        path.unlink()
    else:
        shutil.copy(path, aside)
        os.truncate(path, 0)
    kept = 0 if how == "removed" else 10
    for number in range(10, 110):
        log.write({"n": number})
    assert len(numbers(tmp_path)) == kept + 100
    log.close()


def test_record_that_does_not_fit_is_cut_off_although_another_program_cut_the_log(
    tmp_path, monkeypatch
):
    path, write = tmp_path / "audit.jsonl", os.write
    log = AuditLog(path)
    for number in range(10):
        log.write({"n": number})
    os.truncate(path, 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:5]))
        with pytest.raises(AuditUnavailable):
            log.write({"n": 10})
    log.write({"n": 11})
    assert numbers(tmp_path) == [11]
    log.close()


def test_judge_process_that_cannot_be_started_again_at_first_comes_back(monkeypatch):
    monkeypatch.setattr(judge_process, "_PAUSES", (0.2,))
    judge = JudgeProcess(JudgeConfig(), timeout_s=60, threads=1)
    try:
        start, tries = judge._start, []

        def no_process():
            tries.append(1)
            if len(tries) < 3:
                raise OSError(24, "Too many open files")
            return start()

        monkeypatch.setattr(judge, "_start", no_process)
        os.kill(judge.pid, signal.SIGKILL)
        until(lambda: len(tries) >= 3 and judge.alive, 300)
    finally:
        judge.close()


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_judge_process_outlives_a_hangup_of_the_whole_group():
    judge = JudgeProcess(JudgeConfig(), timeout_s=60, threads=1)
    try:
        pid = judge.pid
        os.kill(pid, signal.SIGHUP)
        assert judge.score([[{"role": "user", "content": "Hello"}]], ["Hi."])[0].error is None
        assert judge.pid == pid
    finally:
        judge.close()


@pytest.fixture
def held(pair):
    """A server whose judge waits, and what lets it go on."""
    go = threading.Event()

    def score(request, text):
        go.wait(WAIT_S)
        return 1.0

    with serving(pair, judge_of(score), judge_timeout_s=WAIT_S, keep_alive_s=WAIT_S) as running:
        try:
            yield running, go
        finally:
            go.set()


def begun(running, **fields):
    body = json.dumps(chat(**fields)).encode()
    made = socket.create_connection(("127.0.0.1", running.port))
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\n"
    )
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    made.sendall(head.encode() + body)
    return made


@pytest.mark.parametrize("stream", [False, True])
def test_client_that_leaves_before_anything_was_sent_is_seen_at_once(held, stream):
    running, _ = held
    made = begun(running, stream=stream)
    until(lambda: running.server.service.scheduler.running)
    made.close()
    until(lambda: "alignbeam_cancelled_total 1.0" in running.metrics(), WAIT_S / 2)


def test_client_that_leaves_while_its_answer_is_written_down_has_it_charged(
    pair, tmp_path, monkeypatch
):
    write, writing, go = AuditLog.write, threading.Event(), threading.Event()

    def slowly(self, record):
        writing.set()
        go.wait(WAIT_S)
        return write(self, record)

    monkeypatch.setattr(AuditLog, "write", slowly)
    audit = {"audit_file": str(tmp_path / "audit.jsonl"), "audit_client_bytes": 1}
    with serving(pair, judge_of(lambda request, text: 1.0), **audit) as running:
        made = begun(running)
        assert writing.wait(WAIT_S)
        made.close()
        until(lambda: "alignbeam_cancelled_total 1.0" in running.metrics(), WAIT_S / 2)
        go.set()
        quota = running.server.service._quota

        def spent():
            try:
                quota.check(unnamed(KEY))
            except AuditQuota:
                return True
            return False

        until(spent)


@pytest.mark.parametrize("stream", [False, True])
def test_request_that_is_not_done_when_the_server_must_end_is_told_so(held, stream):
    running, _ = held
    scheduler = running.server.service.scheduler
    said = []

    def ask():
        with running.client() as client:
            said.append(client.post("/v1/chat/completions", json=chat(stream=stream)))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: scheduler.running)
    scheduler.expire()
    asking.join(WAIT_S)
    assert (said[0].status_code, said[0].json()["error"]["code"]) == (503, "shutting_down")
    assert "retry-after" in said[0].headers


def test_client_that_waits_to_be_told_to_send_its_body_is_told_that_the_connection_ends(pair):
    with serving(pair) as running, socket.create_connection(("127.0.0.1", running.port)) as made:
        made.settimeout(WAIT_S)
        made.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\n"
            b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n"
        )
        said = b""
        while piece := made.recv(4096):  # until it is closed
            said += piece
    assert said.startswith(b"HTTP/1.1 401")
    assert b"connection: close" in said


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_limit_on_open_files_is_raised_to_what_the_connections_need():
    code = """
import resource
from alignbeam.server.run import allow_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
allow_files(1024)
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= min(1024 + 64, hard))
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "True"


@pytest.mark.skipif(os.name != "posix", reason="limits of POSIX")
def test_limit_that_may_not_be_raised_is_warned_of(monkeypatch, caplog):
    import resource

    def refuse(which, limits):
        raise ValueError("current limit exceeds maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    allow_files(1024)
    assert "at most 256 files may be open here" in caplog.text


@pytest.mark.skipif(os.name != "posix", reason="signals are tested on POSIX")
def test_server_outlives_a_hangup_and_tells_who_is_not_done_in_time(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    options = ("--port", str(port), "--set", "server.drain_s=0.1")
    server = subprocess.Popen(
        [sys.executable, "-m", "alignbeam", "serve", *options],
        stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env={**os.environ, "ALIGNBEAM_API_KEYS": KEY, "ALIGNBEAM_METRICS_KEYS": METRICS_KEY},
    )  # fmt: skip
    key = {"authorization": f"Bearer {KEY}"}
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", headers=key, timeout=120) as client:

        def ready():
            try:
                return client.get("/ready").status_code == 200
            except httpx2.TransportError:
                return False

        until(ready, 300)
        server.send_signal(signal.SIGHUP)
        time.sleep(0.5)
        assert ready()
        assert server.poll() is None
        said = []
        body = chat("Tell me a story.", n=8, max_tokens=200, temperature=1.5)
        asking = [
            threading.Thread(target=lambda: said.append(_post(port, key, body))) for _ in range(8)
        ]
        for one in asking:
            one.start()
        scraper = {"authorization": f"Bearer {METRICS_KEY}"}
        until(lambda: _running(client.get("/metrics", headers=scraper).text) >= 16, 300)
        server.send_signal(signal.SIGTERM)
        for one in asking:
            one.join(60)
    assert server.wait(60) == 0
    assert {s.status_code for s in said} <= {200, 503}
    # Those that are left; some may have been done in time.
    codes = {s.json()["error"]["code"] for s in said if s.status_code == 503}
    assert codes == {"shutting_down"}


def _running(series):
    return float(re.search(r"^alignbeam_running_requests (.+)$", series, re.MULTILINE)[1])


def _post(port, key, body):
    return httpx2.post(
        f"http://127.0.0.1:{port}/v1/chat/completions", json=body, headers=key, timeout=120
    )
