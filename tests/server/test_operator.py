"""What an operator needs: metrics, the audit log, logs, shadow mode, the playground."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import re
import threading
import time

import pytest
from serving import KEY, METRICS_KEY, OTHER, chat, judge_of, serving, unnamed
from tiny_models import random_pair

from alignbeam import BeamConfig
from alignbeam.config import RoleConfig, ServerConfig, Settings
from alignbeam.errors import ConfigError
from alignbeam.server.audit import AuditLog, Quota
from alignbeam.server.logs import JsonFormatter
from alignbeam.server.openai_replies import pieces
from alignbeam.server.plan import Planner
from alignbeam.server.problems import AuditQuota, problem_of
from alignbeam.server.run import serve


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_metrics_count_what_happened(pair):
    with serving(pair) as running, running.client() as client:
        for prompt in ("Hello!", "a b c"):
            assert client.post("/v1/chat/completions", json=chat(prompt)).status_code == 200
        client.post("/v1/chat/completions", json=chat(n=0))
        for path in ("/v1/models", "/guessed"):
            assert client.get(path, headers={"authorization": "Bearer guessed"}).status_code == 401
        page = client.get("/metrics", headers={"authorization": f"Bearer {METRICS_KEY}"})
    assert page.headers["content-type"].startswith("text/plain")
    series = dict(
        line.rsplit(" ", 1) for line in page.text.splitlines() if not line.startswith("#")
    )
    route = 'route="/v1/chat/completions"'
    assert series[f'alignbeam_requests_total{{{route},status="200"}}'] == "2.0"
    assert series[f'alignbeam_requests_total{{{route},status="400"}}'] == "1.0"
    assert series['alignbeam_requests_total{route="gate",status="401"}'] == "2.0"
    assert series["alignbeam_verdict_score_count"] == "4.0"
    assert series["alignbeam_time_to_first_token_seconds_count"] == "2.0"
    assert series["alignbeam_request_seconds_count"] == "2.0"
    assert float(series["alignbeam_judge_milliseconds_count"]) >= 1
    assert float(series["alignbeam_mix_step_microseconds_count"]) >= 1
    assert 2 <= float(series["alignbeam_anchor_share_count"]) <= 8  # two answers, four steps
    assert float(series["alignbeam_completion_tokens_total"]) > 0
    assert series["alignbeam_queued_requests"] == series["alignbeam_running_requests"] == "0.0"


def test_metrics_do_not_tell_a_withheld_answers_score(pair):
    """Whoever reads them is no judge's confidant: sums are no finer than the buckets."""
    judge = judge_of(lambda request, text: 3.0 + len(request) / 1000)
    sums = set()
    with serving(pair, judge) as running, running.client() as client:
        for asked in ("a", "a" * 20, "a" * 40):
            said = client.post("/v1/chat/completions", json=chat(asked)).json()
            assert said["choices"][0]["finish_reason"] == "content_filter"
            page = running.metrics()
            sums.add(float(page.split("alignbeam_verdict_score_sum ")[1].split()[0]))
    assert sums == {7.0, 14.0, 21.0}


def test_audit_log_tells_why_without_text_unless_asked(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    with serving(pair, audit_file=str(path)) as running, running.client() as client:
        said = client.post(
            "/v1/chat/completions", json=chat(seed=3), headers={"x-request-id": "r1"}
        ).json()
    (record,) = lines_of(path)
    text = said["choices"][0]["message"]["content"]
    assert record["request_id"] == "r1"
    assert record["client"] == unnamed(KEY)
    assert record["prompt_sha256"] == hashlib.sha256(b"Hello!").hexdigest()
    assert record["settings"]["seed"] == 3
    chosen = record["candidates"][record["chosen"]]
    assert chosen["sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert [c["score"] for c in record["candidates"]] == [1.0, 1.0]
    assert record["reason"].startswith("beam")
    assert record["bridge"]
    assert "Hello!" not in path.read_text()
    told = {"sha256", "tokens", "logprob", "score", "failure", "unsteered", "view"}
    assert all(set(c) == told for c in record["candidates"])


def test_audit_log_holds_text_when_asked(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    with (
        serving(pair, audit_file=str(path), audit_text=True) as running,
        running.client() as client,
    ):
        said = client.post("/v1/chat/completions", json=chat()).json()
    (record,) = lines_of(path)
    assert record["messages"][0]["content"] == "Hello!"
    assert record["text"] == said["choices"][0]["message"]["content"]
    assert [c["error"] for c in record["candidates"]] == [None, None]


def test_audit_log_records_each_piece_before_it_leaves(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=60)
    with (
        serving(pair, beam=beam, audit_file=str(path), audit_text=True, release="chunked",
                chunk_tokens=4) as running,
        running.client() as client,
    ):  # fmt: skip
        for prompt in "abcdef":
            client.post("/v1/chat/completions", json=chat(prompt, stream=True))
    records = lines_of(path)
    answers = [r for r in records if r["kind"] == "answer"]
    pieces_of = {}
    for record in records:
        if record["kind"] == "piece":
            pieces_of.setdefault(record["request_id"], []).append(record["text"])
    assert len(answers) == 6
    assert pieces_of
    for answer in answers:
        assert answer["text"].startswith("".join(pieces_of.get(answer["request_id"], [])))


def test_audit_log_rotates_by_size_and_keeps_so_many(tmp_path):
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path, max_bytes=300, keep=2)
    for number in range(40):
        log.write({"number": number})
    log.close()
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["audit.jsonl", "audit.jsonl.1", "audit.jsonl.2"]
    numbers = [r["number"] for name in reversed(names) for r in lines_of(tmp_path / name)]
    assert numbers == list(range(numbers[0], 40))
    assert all((tmp_path / name).stat().st_size <= 300 for name in names)


def test_audit_log_cuts_off_a_torn_last_line(tmp_path):
    path = tmp_path / "audit.jsonl"
    path.write_text('{"number": 1}\n{"numb')
    log = AuditLog(path)
    log.write({"number": 2})
    log.close()
    assert [r["number"] for r in lines_of(path)] == [1, 2]


def test_log_lines_are_json_and_cannot_be_forged():
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    logger = logging.Logger("alignbeam.test")
    logger.addHandler(handler)
    logger.info('path\n{"level": "error"}\x1b[31m', extra={"request_id": "r\n1"})
    (line,) = stream.getvalue().splitlines()
    entry = json.loads(line)
    assert entry["level"] == "info"
    assert entry["request_id"] == "r\n1"
    assert "\x1b" not in line


def test_access_log_has_ids_and_no_prompt(pair, caplog):
    with caplog.at_level(logging.INFO, "alignbeam.access"):
        with serving(pair) as running, running.client() as client:
            client.post(
                "/v1/chat/completions",
                json=chat("a very private prompt"),
                headers={"x-request-id": "id-1"},
            )
        # Once the server is closed: the line is written when the answer has left.
        formatted = [JsonFormatter().format(record) for record in caplog.records]
    entries = [json.loads(line) for line in formatted]
    entry = next(e for e in entries if e.get("request_id") == "id-1")
    assert (entry["path"], entry["status"]) == ("/v1/chat/completions", 200)
    assert not any("private" in line for line in formatted)


def test_shadow_mode_answers_with_the_target_and_counts_the_verdict(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    judge = judge_of(lambda request, text: 5.0 if request == "bad" else 1.0)
    with serving(pair, judge, shadow=True, audit_file=str(path)) as running:
        trio = running.server.service.beam
        with running.client() as client:
            for prompt in ("bad", "good"):
                said = client.post("/v1/chat/completions", json=chat(prompt, max_tokens=8))
                assert said.headers["x-alignbeam-shadow"] == "true"
                text = said.json()["choices"][0]["message"]["content"]
                ticket = running.server.service.scheduler.submit(
                    prompt,
                    {"mix_steps": 0, "beams": 1, "max_new_tokens": 8},
                    release="bare",
                )
                assert text == ticket.future.result(60).result.text
            deadline = time.monotonic() + 60
            while path.read_text().count("\n") < 4:
                assert time.monotonic() < deadline
                time.sleep(0.02)
            page = running.metrics()
            assert 'alignbeam_shadow_total{verdict="would_answer"} 1.0' in page
            assert 'alignbeam_shadow_total{verdict="would_block"} 1.0' in page
            assert client.get("/health").json()["status"] == "degraded"
    assert trio.config.beams == 2
    kinds = [(r["kind"], r["finish_reason"] == "content_filter") for r in lines_of(path)]
    assert sorted(kinds) == [
        ("shadow", False),
        ("shadow", True),
        ("target alone", False),
        ("target alone", False),
    ]


def test_playground_is_off_unless_asked_for(pair):
    with serving(pair) as running, running.client() as client:
        assert client.get("/").status_code == 404
        assert client.post("/playground", json={}).status_code == 404


def test_playground_compares_both_answers(pair):
    with serving(pair, playground=True) as running, running.client() as client:
        page = client.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        asked = {"prompt": "Hello!", "alpha": 0.6, "mix_steps": 5, "beams": 3, "max_tokens": 12}
        said = client.post("/playground", json=asked).json()
        chosen = client.post(
            "/v1/chat/completions",
            json=chat(max_tokens=12, alignbeam={"alpha": 0.6, "mix_steps": 5, "beams": 3}),
        ).json()
        assert said["text"] == chosen["choices"][0]["message"]["content"]
        assert len(said["alignbeam"]["candidates"]) == 3
        assert 1 <= len(said["alignbeam"]["steps"]) <= 5
        assert isinstance(said["target"], str)
        bad = client.post("/playground", json={**asked, "alpha": 3})
        assert (bad.status_code, bad.json()["error"]["param"]) == (400, "alpha")


WEAKER = {"alpha": 0.4, "mix_steps": 3, "beams": 1}


def test_request_can_only_strengthen_what_the_operator_set(pair):
    """H5: the bounds are the operator's own settings, unless floors of their own say otherwise."""
    ask = "/v1/chat/completions"
    with serving(pair) as running, running.client() as client:
        for name, value in WEAKER.items():
            said = client.post(ask, json=chat(alignbeam={name: value}))
            assert said.status_code == 400
            assert said.json()["error"]["param"] == f"alignbeam.{name}"
        own = running.server.service.beam.config
        same = {name: getattr(own, name) for name in WEAKER}
        assert client.post(ask, json=chat(alignbeam=same)).status_code == 200
    floors = {f"min_{name}": value for name, value in WEAKER.items()}
    with serving(pair, **floors) as running, running.client() as client:
        assert client.post(ask, json=chat(alignbeam=WEAKER)).status_code == 200


def test_playground_refuses_by_name_what_the_operator_does_not_let_it_set(pair):
    asked = {"prompt": "Hello!", "max_tokens": 12}
    beyond = [("alpha", 0), ("mix_steps", 1), ("beams", 1), ("mix_steps", 65)]
    with serving(pair, playground=True) as running, running.client() as client:
        for name, value in beyond:
            said = client.post("/playground", json={**asked, name: value})
            assert (said.status_code, said.json()["error"]["param"]) == (400, f"alignbeam.{name}")
        said = client.post("/playground", json={**asked, "max_tokens": 10_000})
        assert (said.status_code, said.json()["error"]["param"]) == (400, "max_tokens")
        own = running.server.service.beam.config
        plain = client.post("/playground", json=asked)
        assert len(plain.json()["alignbeam"]["candidates"]) == own.beams
    with serving(pair, playground=True, allow=["explain"]) as running, running.client() as client:
        assert client.post("/playground", json={**asked, "alpha": 0.7}).status_code == 400
        assert client.post("/playground", json=asked).status_code == 200


def test_playground_page_says_what_may_be_set(pair):
    floors = {"max_mix_steps": 9, "max_beams": 5, "max_tokens": 100, "allow": ["alpha", "beams"]}
    with serving(pair, playground=True, **floors) as running, running.client() as client:
        page = client.get("/").text
    limits = json.loads(re.search(r"const limits = (.*);", page)[1])
    assert limits == {
        "alpha": [0.5, 1.0, 0.5],
        "mix_steps": [4, 4, 4],
        "beams": [2, 5, 2],
        "max_tokens": [8, 100, 64],
    }


def test_more_beams_than_the_servers_ceiling_are_refused_at_the_start(pair):
    beam = BeamConfig(beams=4, mix_steps=4, max_new_tokens=16)
    complaint = r"beam\.beams \(4\) is above server\.max_beams \(3\)"
    with pytest.raises(ConfigError, match=complaint), serving(pair, beam=beam, max_beams=3):
        pass
    with pytest.raises(ConfigError, match=complaint):  # before any model is loaded
        serve(Settings(beam=beam, server=ServerConfig(max_beams=3), target=RoleConfig(model="no")))


def test_request_cannot_ask_for_more_beams_than_the_vocabulary_has_tokens():
    bounds = Planner(BeamConfig(beams=2), ServerConfig(), width=5).bounds
    assert bounds["beams"] == (2, 5)


def test_playground_is_on_record_and_counted(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    settings = {"playground": True, "audit_file": str(path)}
    with serving(pair, **settings) as running, running.client() as client:
        asked = {"prompt": "Hello!", "max_tokens": 12}
        said = client.post("/playground", json=asked, headers={"x-request-id": "p1"}).json()
        client.post("/playground", json={**asked, "alpha": 0})
        page = running.metrics()
    bare, full = lines_of(path)
    assert (bare["kind"], full["kind"]) == ("target alone", "answer")
    for record, text in ((bare, said["target"]), (full, said["text"])):
        assert (record["request_id"], record["client"]) == ("p1", unnamed(KEY))
        assert hashlib.sha256(text.encode()).hexdigest() in {
            c["sha256"] for c in record["candidates"]
        }
    assert bare["settings"]["beams"] == 1
    assert 'alignbeam_requests_total{route="/playground",status="200"} 1.0' in page
    assert 'alignbeam_requests_total{route="/playground",status="400"} 1.0' in page
    assert "alignbeam_request_seconds_count 2.0" in page


def test_playground_lets_nothing_out_that_cannot_be_recorded(pair):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full: not Linux")
    settings = {"playground": True, "audit_file": "/dev/full"}
    with serving(pair, **settings) as running, running.client() as client:
        said = client.post("/playground", json={"prompt": "Hello!", "max_tokens": 12})
    assert (said.status_code, set(said.json())) == (503, {"error"})


def test_audit_log_keeps_hash_and_length_of_stop_strings_and_does_not_grow_by_them(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    stops = ["a private stop", "\u4f60" * 500]
    with serving(pair, audit_file=str(path)) as running, running.client() as client:
        body = chat("x" * 300, stop=stops, n=8)
        assert client.post("/v1/chat/completions", json=body).status_code == 200
    records = lines_of(path)
    assert len(records) == 8
    assert records[0]["settings"]["stop"] == [
        {"sha256": hashlib.sha256(stop.encode()).hexdigest(), "characters": len(stop)}
        for stop in stops
    ]
    assert "private" not in path.read_text()
    assert path.stat().st_size < 8 * 3000


def test_stop_strings_that_no_answer_can_hold_are_refused(pair):
    with serving(pair) as running, running.client() as client:
        said = client.post("/v1/chat/completions", json=chat(stop=["a", "b" * 513]))
        assert (said.status_code, said.json()["error"]["param"]) == (400, "stop")


def test_audit_log_cuts_long_texts(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    settings = {"audit_file": str(path), "audit_text": True, "audit_text_chars": 20}
    with serving(pair, **settings) as running, running.client() as client:
        client.post("/v1/chat/completions", json=chat("word " * 40))
    (record,) = lines_of(path)
    assert record["messages"][0]["content"] == "word " * 4 + "[... 180 more]"
    assert record["prompt_sha256"] == hashlib.sha256(("word " * 40).encode()).hexdigest()
    assert all(len(c["text"]) < 40 for c in record["candidates"])


def test_audit_log_cannot_be_flushed_by_one_client(pair, tmp_path):
    path = tmp_path / "audit.jsonl"
    ask = "/v1/chat/completions"
    settings = {"audit_file": str(path), "audit_client_bytes": 4000, "playground": True}
    with (
        serving(pair, **settings) as running,
        running.client() as client,
        running.client(OTHER) as other,
    ):
        said = [client.post(ask, json=chat()) for _ in range(8)]
        assert said[0].status_code == 200
        assert (said[-1].status_code, said[-1].json()["error"]["code"]) == (429, "audit_quota")
        assert int(said[-1].headers["retry-after"]) >= 1
        question = {"prompt": "Hello!", "max_tokens": 12}
        assert client.post("/playground", json=question).status_code == 429
        assert other.post(ask, json=chat()).status_code == 200
    by = [r["client"] for r in lines_of(path)]
    assert by.count(unnamed(KEY)) == sum(one.status_code == 200 for one in said)
    assert by.count(unnamed(OTHER)) == 1


def test_client_beyond_its_quota_is_told_when_to_come_again(monkeypatch):
    monkeypatch.setattr("alignbeam.server.audit.time.monotonic", lambda: 7.0)
    quota = Quota(3600)
    quota.add("one", 3700)
    with pytest.raises(AuditQuota) as caught:
        quota.check("one")
    assert problem_of(caught.value, 1).headers["retry-after"] == "100"
    assert problem_of(caught.value, 200).headers["retry-after"] == "200"


def test_pieces_of_a_text_make_the_text():
    text = "  one two\n\nthree   four five  "
    for words in (1, 2, 8):
        assert "".join(pieces(text, words)) == text
    assert len(list(pieces(text, 2))) == 3
    assert list(pieces("", 2)) == []


def test_queue_full_is_503_at_once_in_openai_shape(pair):
    hold = threading.Event()

    def wait(request, text):
        hold.wait(600)
        return 1.0

    # One job of eight beams fills the batch, the next one the line.
    beam = BeamConfig(mix_steps=2, beams=2, max_new_tokens=32)
    with serving(pair, judge_of(wait), beam, max_batch_cells=480, max_queued=1, client_share=1,
                 chunk_tokens=2, retry_after_s=7, judge_timeout_s=600) as running:  # fmt: skip
        scheduler = running.server.service.scheduler
        first = {"client": unnamed(KEY), "release": "chunked"}
        tickets = [scheduler.submit("Hello!", {"beams": 8}, **first)]
        while scheduler.queued:
            time.sleep(0.01)
        tickets.append(scheduler.submit("Hello!", {"beams": 8}, client=unnamed(KEY)))
        with running.client() as client:
            said = client.post("/v1/chat/completions", json=chat())
        assert (said.status_code, said.json()["error"]["code"]) == (503, "overloaded")
        assert said.headers["retry-after"] == "7"
        hold.set()
        for ticket in tickets:
            ticket.future.result(600)
