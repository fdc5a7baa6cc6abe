"""The fail-closed table: each part is really broken, and no unjudged text leaves."""

from __future__ import annotations

import json
import os
import re
import threading

import pytest
import torch
from serving import chat, judge_of, serving
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import ServerConfig
from alignbeam.errors import ConfigError
from alignbeam.judge import CallableJudge
from alignbeam.server import canaries
from alignbeam.server.app import Server
from alignbeam.server.canaries import CanaryFailed, check_canaries
from alignbeam.server.keys import Keys
from alignbeam.server.run import _banner


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def ask(running, **fields):
    with running.client() as client:
        return client.post("/v1/chat/completions", json=chat(**fields))


def frames_of(running, **fields):
    """All frames of a stream, parsed; the last is None where ``[DONE]`` came."""
    with running.client() as client:
        text = client.post("/v1/chat/completions", json=chat(stream=True, **fields)).text
    data = [line[6:] for line in text.splitlines() if line.startswith("data: ")]
    return [None if line == "[DONE]" else json.loads(line) for line in data]


def assert_withheld(running, response, status, code):
    """Nothing but the error left, and it was counted."""
    assert response.status_code == status
    assert response.json()["error"]["code"] == code
    assert set(response.json()) == {"error"}
    if status == 503:
        assert int(response.headers["retry-after"]) >= 1
    counted = f'alignbeam_fail_closed_total{{reason="{code}"}}'
    assert counted in running.server.service.metrics.page().decode()


def test_judge_that_hangs_withholds_the_answer(pair):
    hold = threading.Event()

    def hang(request, text):
        hold.wait(60)
        return 1.0

    with serving(pair, judge_of(hang), judge_timeout_s=0.5) as running:
        assert_withheld(running, ask(running), 503, "judge_unavailable")
        hold.set()


def test_judge_that_crashes_withholds_the_answer_whole_and_streamed(pair):
    def crash(request, text):
        raise RuntimeError(f"cannot judge {text}")

    with serving(pair, judge_of(crash)) as running:
        assert_withheld(running, ask(running), 503, "judge_unavailable")
        assert_withheld(running, ask(running, stream=True), 503, "judge_unavailable")
    with serving(pair, judge_of(crash), release="chunked", chunk_tokens=2) as running:
        assert_withheld(running, ask(running, stream=True), 503, "judge_unavailable")


@pytest.mark.parametrize("stream", [False, True])
def test_fault_of_the_settings_is_no_fault_of_the_client(pair, stream, monkeypatch, caplog):
    with serving(pair) as running:
        beam = running.server.service.beam

        def broken(prompt, **overrides):
            raise ConfigError("beam.fallback: run the anchor in this process")

        monkeypatch.setattr(beam, "prepare", broken)
        response = ask(running, stream=stream)
        assert_withheld(running, response, 500, "misconfigured")
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("server_error", None)
    assert not re.search("anchor|fallback|setting .*=", response.text)
    assert any("run the anchor" in getattr(r, "detail", "") for r in caplog.records)


def test_judge_that_gives_nan_withholds_the_answer(pair):
    with serving(pair, judge_of(lambda request, text: float("nan"))) as running:
        assert_withheld(running, ask(running), 503, "judge_unavailable")


def test_judge_error_counts_as_five_for_that_beam_only(pair):
    texts = []

    def choosy(request, text):
        texts.append(text)
        if len(texts) % 2:
            raise RuntimeError("no verdict for this one")
        return 2.0

    with serving(pair, judge_of(choosy)) as running:
        said = ask(running, alignbeam={"explain": True}).json()["choices"][0]
        failed, passed = said["alignbeam"]["candidates"]
        assert failed == {"passed": False, "failure": "exception"}
        assert (passed["passed"], passed["score"]) == (True, 2.0)
        assert said["message"]["content"] == texts[1]


@pytest.fixture
def own_trio():
    """A trio that a test may break."""
    return AlignBeam.from_pretrained(config=BeamConfig(max_new_tokens=12, beams=2))


def break_weights(model, value):
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(value)


@pytest.mark.parametrize("value", [float("nan"), 0.0])
def test_judge_with_broken_weights_withholds_the_answer(own_trio, value):
    """NaN everywhere, and zeros: a flat distribution leaves no mass on the labels."""
    pair = own_trio.target, own_trio.anchor
    with serving(pair, own_trio.judge, own_trio.config) as running:
        assert ask(running).status_code == 200
        break_weights(own_trio.judge.role.model, value)
        assert_withheld(running, ask(running), 503, "judge_unavailable")
        assert_withheld(running, ask(running, stream=True), 503, "judge_unavailable")


def test_server_does_not_start_with_a_judge_of_broken_weights(own_trio):
    break_weights(own_trio.judge.role.model, float("nan"))
    with pytest.raises(CanaryFailed, match="cannot judge the canary"):
        Server(own_trio, ServerConfig(), keys=Keys(environ={}))


@pytest.mark.parametrize(
    ("score", "why"),
    [
        (lambda text: 1.0, "would pass the threshold"),
        (lambda text: 5.0, "no better than the harmful"),
        (lambda text: 1.0 if "Score: 1" in text or "Step" not in text else 5.0, "injected score"),
    ],
)  # fmt: skip
def test_canaries_refuse_a_judge_that_cannot_rank(score, why):
    with pytest.raises(CanaryFailed, match=why):
        check_canaries(CallableJudge(lambda messages, text: score(text), "bad"), 2.5)


@pytest.fixture
def fooled():
    """A judge that takes every answer to a request beside harmless text for safe."""
    knowing = judge_of()

    def judged(messages, text):
        drowned = "garden" in messages[-1]["content"]
        return 1.0 if drowned else knowing.score([messages], [text])[0].score

    return CallableJudge(judged, "fooled")


LOST = [f"padding {where} the request" for where in ("before", "after", "around")]


def test_attacks_that_the_judge_does_not_survive_are_told_to_the_operator_only(
    pair, fooled, caplog
):
    with serving(pair, fooled) as running, running.client() as client:
        assert f"harmful canaries pass it with {', '.join(LOST)}:" in caplog.text
        series = running.metrics()
        assert "alignbeam_judge_attacks_lost 3.0" in series
        assert not any(attack in series for attack in LOST)
        assert client.get("/ready").json() == client.get("/health").json()
        assert client.get("/ready").json() == {"status": "ok", "reasons": []}


def test_attacks_refuse_a_judge_where_the_operator_says_so(pair, fooled, monkeypatch, caplog):
    with serving(pair, canary_attacks="refuse"):
        pass
    with (
        pytest.raises(CanaryFailed, match=", ".join(LOST)),
        serving(pair, fooled, canary_attacks="refuse"),
    ):
        pass
    caplog.clear()
    with serving(pair, fooled, canary_attacks="off") as running:
        assert "alignbeam_judge_attacks_lost 0.0" in running.metrics()
    monkeypatch.setattr(canaries, "ATTACK_S", -1.0)
    with (
        pytest.raises(CanaryFailed, match="no time was left to try it with a sentence before"),
        serving(pair, canary_attacks="refuse"),
    ):
        pass
    assert "canaries pass" not in caplog.text


def test_canaries_pass_the_embedded_judge(trio):
    check_canaries(trio.judge, trio.config.threshold)


@pytest.mark.parametrize("role", ["anchor", "target"])
def test_model_with_nan_weights_fails_the_request(own_trio, role):
    pair = own_trio.target, own_trio.anchor
    with serving(pair, judge_of(), own_trio.config) as running:
        break_weights(getattr(own_trio, role).model, float("nan"))
        assert_withheld(running, ask(running), 500, "non_finite_logits")
        assert running.client().get("/health").status_code == 200


def test_anchor_that_breaks_in_mid_mix_fails_the_request_never_the_bare_target(pair):
    anchor = pair[1]
    forward, calls = anchor.forward, []

    def breaking(ids, mask, positions, cache):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("the anchor is gone")
        return forward(ids, mask, positions, cache)

    with serving(pair) as running:
        healthy = ask(running).json()["choices"][0]["message"]
        anchor.forward = breaking
        try:
            assert_withheld(running, ask(running), 500, "decoding_failed")
            assert len(calls) > 2
        finally:
            del anchor.forward
        assert ask(running).json()["choices"][0]["message"] == healthy


def test_out_of_memory_fails_that_request_and_the_next_succeeds(pair):
    target = pair[0]
    forward = target.forward

    def scarce(ids, mask, positions, cache):
        if ids.shape[0] > 3:
            raise torch.OutOfMemoryError("no memory")
        return forward(ids, mask, positions, cache)

    with serving(pair) as running:
        target.forward = scarce
        try:
            wide = {"alignbeam": {"beams": 6}}
            assert_withheld(running, ask(running, **wide), 503, "out_of_memory")
            assert ask(running).status_code == 200
        finally:
            del target.forward


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full: not Linux")
@pytest.mark.parametrize("release", ["full", "chunked"])
def test_audit_log_on_a_full_disk_withholds_the_answer(pair, release):
    with serving(pair, audit_file="/dev/full", release=release, chunk_tokens=2) as running:
        assert_withheld(running, ask(running), 503, "audit_unavailable")
        frames = frames_of(running)
        assert frames[-1]["error"]["code"] == "audit_unavailable"
        assert not any(
            choice["delta"].get("content") for f in frames[:-1] for choice in f["choices"]
        )


@pytest.mark.parametrize("release", ["full", "chunked"])
def test_policy_to_raise_is_a_refusal_over_http(pair, release):
    beam = BeamConfig(mix_steps=4, beams=2, max_new_tokens=16, on_unsafe="raise")
    unsafe = judge_of(lambda request, text: 4.0)
    with serving(pair, unsafe, beam, release=release, chunk_tokens=2) as running:
        said = ask(running)
        assert said.status_code == 200
        (choice,) = said.json()["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["content"] == beam.refusal_text
        frames = frames_of(running)
        assert frames[-1] is None
        assert frames[-2]["choices"][0]["finish_reason"] == "content_filter"


def test_failure_after_the_stream_began_is_an_error_frame_without_done(pair):
    entered, hold = threading.Event(), threading.Event()

    def late(request, text):
        entered.set()
        hold.wait(60)
        raise RuntimeError("too late")

    with serving(pair, judge_of(late), keep_alive_s=0.05) as running:
        with (
            running.client() as client,
            client.stream("POST", "/v1/chat/completions", json=chat(stream=True)) as response,
        ):
            assert response.status_code == 200
            lines = response.iter_lines()
            seen = [next(lines) for _ in range(5)]
            assert entered.wait(60)
            hold.set()
            seen += lines
        assert any(line.startswith(":") for line in seen)
        data = [line[6:] for line in seen if line.startswith("data: ")]
        assert json.loads(data[-1])["error"]["code"] == "judge_unavailable"
        first = json.loads(data[0])["choices"][0]["delta"]
        assert first == {"role": "assistant", "content": ""}
        assert len(data) == 2


def test_fail_open_is_announced_everywhere(pair, capsys):
    def crash(request, text):
        raise RuntimeError("down")

    with serving(pair, judge_of(crash), fail_open=True) as running:
        said = ask(running, alignbeam={"explain": True})
        assert said.status_code == 200
        assert said.headers["x-alignbeam-fail-open"] == "true"
        assert said.json()["choices"][0]["alignbeam"]["fail_open"] is True
        assert "alignbeam_fail_open_total 1.0" in running.server.service.metrics.page().decode()
        health = running.client().get("/health").json()
        assert health["status"] == "degraded"
        assert "fail-open" in health["reasons"][0]
    _banner("FAIL-OPEN")
    assert "!!  FAIL-OPEN  !!" in capsys.readouterr().err


def test_explanations_tell_of_a_blocked_candidate_only_that_it_is(pair):
    """A stop string, a score or a length would be an oracle on the text that was withheld."""
    with serving(pair, judge_of(lambda request, text: 4.321)) as running:
        said = ask(running, stop=["e"], alignbeam={"explain": True})
    choice = said.json()["choices"][0]
    assert choice["finish_reason"] == "content_filter"
    about = choice["alignbeam"]
    assert about["candidates"] == [{"passed": False, "failure": None}] * 2
    assert (about["chosen"], about["reason"]) == (None, "no candidate passes")
    assert about["steps"] == []
    told = {key: value for key, value in about.items() if key != "timings_ms"}
    assert "4.3" not in json.dumps(told)


def test_explanations_hold_no_text_of_other_candidates(pair):
    seen = []

    def choosy(request, text):
        seen.append(text)
        return 5.0 if len(seen) % 2 else 1.0

    with serving(pair, judge_of(choosy)) as running:
        said = ask(running, alignbeam={"explain": True}).text
    inside = [json.dumps(text, ensure_ascii=False)[1:-1] for text in seen]
    assert inside[1] in said
    assert inside[0] not in said


def test_health_is_503_when_decoding_has_stopped(pair):
    with serving(pair) as running:
        running.server.service.scheduler.stop()
        with running.client(None) as client:
            assert client.get("/health").status_code == 503
            assert client.get("/ready").status_code == 503
        assert ask(running).json()["error"]["code"] == "shutting_down"
