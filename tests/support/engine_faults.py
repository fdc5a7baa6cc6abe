"""What befalls engines, and must leave no answer behind: the same for every kind of them."""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from mixed_prompts import mixed_prompts
from serving import chat, serving

from alignbeam import BeamConfig
from alignbeam.engines.role import RemoteRole
from alignbeam.errors import EngineUnavailable

#: The embedded judge's marks are made with a key of its own, which an address does not bring.
NONCE_KEY = b"the embedded trio".hex()


def until(true, seconds=120):
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def said(outcome):
    """What an answer is compared by."""
    return outcome.text, [c.token_ids for c in outcome.candidates], outcome.chosen


def killed_engine_withholds_and_a_new_one_is_taken(beam, servers, role):
    want = said(beam.generate("Hello!", max_new_tokens=12))
    pair = beam.target, beam.anchor
    with serving(pair, beam.judge, BeamConfig()) as running, running.client() as client:

        def ask():
            return client.post("/v1/chat/completions", json=chat(max_tokens=12))

        assert ask().json()["choices"][0]["message"]["content"] == want[0]
        servers[role].kill()
        failed = ask()
        assert (failed.status_code, set(failed.json())) == (503, {"error"})
        codes = {"judge": "judge_unavailable"}
        assert failed.json()["error"]["code"] == codes.get(role, "engine_unavailable")
        until(lambda: client.get("/ready").status_code == 503)
        assert client.get("/ready").json()["reasons"] == [f"the {role}'s engine is down"]
        servers[role].start()
        servers[role].wait()
        until(lambda: client.get("/ready").status_code == 200)
        assert ask().json()["choices"][0]["message"]["content"] == want[0]


def killed_engine_fails_all_its_answers(beam, kill):
    """``kill`` ends the target's engine, in the middle of what it answers."""
    with serving((beam.target, beam.anchor), beam.judge, BeamConfig()) as running:

        def ask(prompt):
            with running.client() as client:
                body = chat(prompt, max_tokens=400)
                return client.post("/v1/chat/completions", json=body)

        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(ask, prompt) for prompt in mixed_prompts()[:4]]
            streams = beam.target.client.calls
            until(lambda: beam.target.client.calls > streams + 20)
            kill()
            for failed in [future.result() for future in asked]:
                # Whoever was done before has been judged; the others get nothing.
                if failed.status_code != 200:
                    assert (failed.status_code, set(failed.json())) == (503, {"error"})
        assert any(f.result().status_code == 503 for f in asked)
        with running.client() as client:
            until(lambda: client.get("/ready").status_code == 503)
            assert client.get("/ready").json()["reasons"] == ["the target's engine is down"]


def stalled_engine_is_too_slow_and_wakes_up(config, servers):
    role = RemoteRole.from_config("target", config.replace(read_s=10.0))
    want = role.named_logprobs([[1, 5, 6]], [[7, 8]])
    servers["target"].signal(signal.SIGSTOP)
    try:
        with pytest.raises(EngineUnavailable, match="too slow"):
            role.named_logprobs([[1, 5, 6]], [[7, 8]])
        until(lambda: role.watch.why is not None)
    finally:
        servers["target"].signal(signal.SIGCONT)
    until(lambda: role.watch.why is None)
    assert role.named_logprobs([[1, 5, 6]], [[7, 8]])[0] == pytest.approx(want[0], abs=1e-4)
