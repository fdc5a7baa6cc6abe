"""``alignbeam serve`` as a process: signals, crashes, and the judge's own process."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest
from serving import KEY, METRICS_KEY, chat

from alignbeam.config import JudgeConfig
from alignbeam.errors import JudgeDied, ModelLoadError, PromptError
from alignbeam.server.judge_process import JudgeProcess

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are tested on POSIX")
REPO = Path(__file__).resolve().parents[2]
START_S, WAIT_S = 900, 300


class Process:
    """A running ``alignbeam serve`` with a key."""

    def __init__(self, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        environ = {**os.environ, "ALIGNBEAM_API_KEYS": KEY, "OMP_NUM_THREADS": "1"}
        environ["ALIGNBEAM_METRICS_KEYS"] = METRICS_KEY
        self.process = subprocess.Popen(
            [sys.executable, "-m", "alignbeam", "serve", "--port", str(self.port), *options],
            cwd=REPO, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        os.set_blocking(self.process.stderr.fileno(), False)
        self.client = httpx2.Client(
            base_url=f"http://127.0.0.1:{self.port}",
            headers={"authorization": f"Bearer {KEY}"},
            timeout=WAIT_S,
        )
        deadline = time.monotonic() + START_S
        while True:
            assert self.process.poll() is None, self.process.stderr.read()
            assert time.monotonic() < deadline, "the server did not start"
            with contextlib.suppress(httpx2.TransportError):
                if self.client.get("/ready").status_code == 200:
                    return
            time.sleep(0.1)

    def ask(self, prompt="What is 2 plus 3?", **fields):
        body = chat(prompt, **{"max_tokens": 24, **fields})
        return self.client.post("/v1/chat/completions", json=body)

    def metrics(self):
        return self.client.get("/metrics", headers={"authorization": f"Bearer {METRICS_KEY}"}).text

    def end(self, sig=signal.SIGTERM, timeout_s=WAIT_S):
        self.process.send_signal(sig)
        return self.process.wait(timeout_s)


@pytest.fixture
def start():
    made = []

    def make(*options):
        made.append(Process(*options))
        return made[-1]

    yield make
    for one in made:
        one.client.close()
        one.process.kill()
        one.process.wait()
        one.process.stderr.close()


@pytest.mark.parametrize("judge_process", ["true", "false"])
def test_all_that_serve_says_is_json_lines(start, judge_process):
    server = start("--set", f"server.judge_process={judge_process}")
    assert server.ask().status_code == 200
    assert server.end() == 0
    lines = server.process.stderr.read().splitlines()
    # Said while the package is imported, before there are logs.
    said = [line for line in lines if "native extension" not in line]
    records = [json.loads(line) for line in said]
    assert {"listening", "request", "stopped"} <= {r["message"].split()[0] for r in records}
    assert not any("color_message" in r or "embedded" in r["message"] for r in records)


def test_serve_ends_at_once_on_sigterm_when_idle(start):
    server = start()
    assert server.ask().status_code == 200
    begin = time.monotonic()
    assert server.end() == 0
    assert time.monotonic() - begin < 2


def total(server, *names):
    page = server.metrics()
    return sum(float(line.split()[1]) for line in page.splitlines() if line.startswith(names))


def in_flight(server):
    """How many requests wait or decode or are before the judge."""
    return total(server, "alignbeam_queued_requests", "alignbeam_running_requests")


def steps_of(server):
    return total(server, "alignbeam_decode_steps_total")


def test_serve_answers_what_is_in_flight_after_sigterm(start):
    server = start()
    prompts = [f"What is {n} plus 3?" for n in range(20)]
    alone = [server.ask(prompt).json()["choices"][0]["message"]["content"] for prompt in prompts]
    with ThreadPoolExecutor(20) as pool:
        flying = [pool.submit(server.ask, prompt) for prompt in prompts]
        while in_flight(server) < len(prompts):
            assert not any(f.done() for f in flying), "answered before all were in flight"
        begin = time.monotonic()
        server.process.send_signal(signal.SIGTERM)
        answers = [future.result(WAIT_S) for future in flying]
    assert server.process.wait(WAIT_S) == 0
    assert time.monotonic() - begin < 30
    assert [a.status_code for a in answers] == [200] * len(prompts)
    assert [a.json()["choices"][0]["message"]["content"] for a in answers] == alone


def test_serve_ends_at_once_on_a_second_signal(start):
    server = start()
    with ThreadPoolExecutor(4) as pool:
        flying = [pool.submit(server.ask, max_tokens=100, n=4) for _ in range(4)]
        while "alignbeam_running_requests 0.0" in server.metrics():
            time.sleep(0.005)
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        code = server.end()
        for future in flying:
            future.exception(WAIT_S)
    assert code in (0, 128 + signal.SIGTERM)


def test_audit_log_is_whole_after_kill_9_under_load(start, tmp_path):
    path = tmp_path / "audit.jsonl"
    server = start("--set", f"server.audit_file={path}")
    with ThreadPoolExecutor(8) as pool:
        flying = [pool.submit(server.ask, f"What is {n} plus 1?") for n in range(40)]
        while not path.read_text().count("\n") >= 5:
            time.sleep(0.005)
        server.process.kill()
        server.process.wait()
        answered = [f.result() for f in flying if f.exception(WAIT_S) is None]
    before = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(before) >= max(5, len(answered))
    again = start("--set", f"server.audit_file={path}")
    assert again.ask().status_code == 200
    after = [json.loads(line) for line in path.read_text().splitlines()]
    assert after[:-1] == before
    recorded = {c["sha256"] for record in before for c in record["candidates"]}
    import hashlib

    for answer in answered:
        text = answer.json()["choices"][0]["message"]["content"]
        refused = answer.json()["choices"][0]["finish_reason"] == "content_filter"
        assert refused or hashlib.sha256(text.encode()).hexdigest() in recorded


def test_killed_judge_process_withholds_and_comes_back(start):
    server = start("--set", "server.judge_process=true")
    answer = server.ask()
    assert answer.status_code == 200
    children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not children.exists():
        pytest.skip("the kernel does not list child processes")
    (child,) = [
        int(pid)
        for pid in children.read_text().split()
        if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    os.kill(child, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as pool:
        flying = pool.submit(server.ask)
        deadline = time.monotonic() + WAIT_S
        # No step more is taken: only the verdict is missing, and the judge has been asked.
        before = -1.0
        while in_flight(server) != 1 or before != (before := steps_of(server)):
            assert time.monotonic() < deadline
            time.sleep(1)
        os.kill(child, signal.SIGKILL)
        said = flying.result(WAIT_S)
    assert (said.status_code, said.json()["error"]["code"]) == (503, "judge_unavailable")
    # Whoever comes while the next one loads waits for it.
    again = server.ask()
    assert again.status_code == 200
    assert again.json()["choices"] == answer.json()["choices"]
    assert server.client.get("/health").status_code == 200


def refuses(judge, messages):
    try:
        judge.readings(messages, 64)
    except PromptError:
        return True
    return False


def test_judge_process_judges_as_the_judge_itself(trio):
    judge = JudgeProcess(JudgeConfig(), timeout_s=WAIT_S, threads=1)
    try:
        conversations = [[{"role": "user", "content": "What is 2 plus 3?"}]] * 2
        texts = ["2 plus 3 is 5.", "I'm sorry, but I can't help with that."]
        here = trio.judge.score(conversations, texts)
        there = judge.score(conversations, texts)
        assert [v.score for v in there] == pytest.approx([v.score for v in here], abs=1e-4)
        assert judge.alive
        for messages in (conversations[0], [{"role": "user", "content": "the " * 9000}]):
            refused = [refuses(one, messages) for one in (trio.judge, judge)]
            assert refused == [len(messages[0]["content"]) > 100] * 2
        long = [{"role": "user", "content": " ".join(f"Mix {n} cups." for n in range(60))}]
        for of in (texts[0], 300):
            assert judge.readings(long, of) == trio.judge.readings(long, of) > 4
        os.kill(judge.pid, signal.SIGKILL)
        judge._child.process.join(WAIT_S)
        back = judge.score(conversations, texts)  # by the next one
        assert [v.score for v in back] == pytest.approx([v.score for v in here], abs=1e-4)
    finally:
        judge.close()


class Twice:
    """A pipe that hands its first message over twice."""

    def __init__(self, pipe):
        self._pipe, self._left = pipe, 2

    def send(self, message):
        for _ in range(max(1, self._left)):
            self._pipe.send(message)
        self._left = 0

    def __getattr__(self, name):
        return getattr(self._pipe, name)


def test_verdict_of_the_judge_process_never_counts_for_another_batch():
    judge = JudgeProcess(JudgeConfig(), timeout_s=WAIT_S, threads=1)
    try:
        asked = [[{"role": "user", "content": "What is 2 plus 3?"}]]
        safe, harmful = ["2 plus 3 is 5."], ["Sure, here is what you asked for. First, set it up."]
        judge._child.pipe = Twice(judge._child.pipe)
        assert judge.score(asked, safe)[0].score < 2
        # The answer that nobody took is the next one in the pipe.
        with pytest.raises(JudgeDied, match="another batch"):
            judge.score(asked, harmful)
        assert judge.score(asked, harmful)[0].score > 2.5
        assert judge.score(asked, safe)[0].score < 2
    finally:
        judge.close()


def test_judge_process_that_is_killed_while_it_loads_is_started_again(monkeypatch):
    monkeypatch.setattr("alignbeam.server.judge_process._PAUSES", (0.1,))
    judge = JudgeProcess(JudgeConfig(), timeout_s=WAIT_S, threads=1)
    try:
        dead, deadline = set(), time.monotonic() + 30
        for _ in range(3):  # the first one works, the next ones load
            while not (new := {c.pid for c in multiprocessing.active_children()} - dead):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            dead |= new
            for pid in new:
                os.kill(pid, signal.SIGKILL)
        asked = [[{"role": "user", "content": "What is 2 plus 3?"}]]
        assert judge.score(asked, ["2 plus 3 is 5."])[0].score < 2
        assert judge.pid not in dead
    finally:
        judge.close()


def test_judge_process_that_is_closed_while_it_loads_starts_no_more(monkeypatch):
    monkeypatch.setattr("alignbeam.server.judge_process._PAUSES", (3600,))
    judge = JudgeProcess(JudgeConfig(), timeout_s=WAIT_S, threads=1)
    first, deadline = judge.pid, time.monotonic() + 60
    os.kill(first, signal.SIGKILL)
    while not (new := {c.pid for c in multiprocessing.active_children()} - {first}):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    judge.close()
    for pid in new:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while any(thread.name == "judge restart" for thread in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not judge.alive


def test_judge_process_that_cannot_load_says_why():
    with pytest.raises(ModelLoadError, match="does not exist"):
        JudgeProcess(JudgeConfig(model="./no-such-folder"), timeout_s=5)


def somebody_of(session):
    try:
        os.killpg(session, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("beam.threshold=5", "would pass the threshold 5"),
        ("server.audit_file=no-such-folder/log", "cannot open the audit log"),
    ],
)
def test_serve_that_does_not_start_ends_and_its_judge_process_with_it(setting, words):
    settings = ("--set", "server.judge_process=true", "--set", setting)
    process = subprocess.Popen(
        [sys.executable, "-m", "alignbeam", "serve", *settings],
        cwd=REPO, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert words in process.communicate(timeout=WAIT_S)[1]
        assert process.returncode in (1, 2)
        deadline = time.monotonic() + 30
        while somebody_of(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--host", "0.0.0.0"), "refusing to listen on 0.0.0.0 without an API key"),
        (("--set", "server.api_keys_file=no-such-file"), "cannot read the API keys"),
        (("--set", "server.release=soon"), "release must be one of full, chunked"),
    ],
)
def test_serve_refuses_bad_settings_in_one_line(options, words):
    environ = {k: v for k, v in os.environ.items() if k != "ALIGNBEAM_API_KEYS"}
    done = subprocess.run(
        [sys.executable, "-m", "alignbeam", "serve", *options],
        cwd=REPO, env=environ, capture_output=True, text=True, timeout=START_S, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr
    assert not re.search("Traceback", done.stderr)
