"""What an engine may do wrong: each is an error by name, and no answer comes of it."""

from __future__ import annotations

import asyncio
import copy
import gzip
import math
import threading
import time
from pathlib import Path

import pytest
from starlette.responses import RedirectResponse, Response, StreamingResponse
from tiny_models import random_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import RoleConfig
from alignbeam.engines.dialect import GREEDY
from alignbeam.engines.role import RemoteRole
from alignbeam.errors import (
    Cancelled,
    ConfigError,
    EngineFault,
    EngineShortfall,
    EngineUnavailable,
    ModelLoadError,
)
from alignbeam.judge import CallableJudge

CONFIG = BeamConfig(mix_steps=3, beams=2, top_b=20, max_new_tokens=8)


@pytest.fixture
def pair():
    return random_pair()


@pytest.fixture
def engines(served, pair):
    """Return an engine for each role, and the trio that asks them."""
    (target, asks_target), (anchor, asks_anchor) = (served(role) for role in pair)
    judge = CallableJudge(lambda messages, text: 1.0, "one")
    return target, anchor, AlignBeam(asks_target, asks_anchor, judge, CONFIG)


def until(true, seconds=60):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def said(answer):
    return answer["choices"][0]["logprobs"]


def spoil_numbers(change):
    """Return a spoiler of every answer with numbers; streams pass."""

    def spoil(answer):
        if "logprobs" not in answer["choices"][0]:
            return answer
        answer = copy.deepcopy(answer)
        change(answer)
        return answer

    return spoil


def spoil_stream(change):
    def spoil(answer):
        answer = copy.deepcopy(answer)
        if "logprobs" not in answer["choices"][0]:
            change(answer["choices"][0])
        return answer

    return spoil


def keep_some(answer):
    table = said(answer)["top_logprobs"][0]
    for name in list(table)[1:3]:
        del table[name]


def lift(answer):
    table = said(answer)["top_logprobs"][0]
    table[next(iter(table))] = 0.5


def flatten(answer):
    table = said(answer)["top_logprobs"][0]
    table.update(dict.fromkeys(table, -0.1))


def to_nan(answer):
    table = said(answer)["top_logprobs"][0]
    table[next(reversed(table))] = math.nan


def to_null(answer):
    table = said(answer)["top_logprobs"][0]
    table[next(reversed(table))] = None


def fill(value):
    def change(answer):
        table = said(answer)["top_logprobs"][0]
        table.update(dict.fromkeys(table, value))

    return change


def hide_choice(answer):
    """Give numbers of all that was asked for, and none of the token that was chosen."""
    tokens, table = said(answer)["tokens"], said(answer)["top_logprobs"][0]
    tokens[0] = next(n for i in range(300) if (n := f"token_id:{i}") not in table)


def choose_the_worst(answer):
    tokens, table = said(answer)["tokens"], said(answer)["top_logprobs"][0]
    tokens[0] = min(table, key=table.get)


NONSENSE = {
    "no-number-of-the-choice": hide_choice,
    "not-the-best": choose_the_worst,
    "beyond-floats": fill(10**400),
    "all-impossible": fill(-9999.0),
    "place-of-no-kind": lambda answer: answer["choices"][0].update(index=[]),
    "fingerprint-of-no-kind": lambda answer: answer.update(system_fingerprint={}),
    "NaN": to_nan,
    "null": to_null,
    "fewer": keep_some,
    "above-0": lift,
    "above-1": flatten,
    "no-numbers": lambda answer: answer["choices"][0].update(logprobs=None),
    "no-choices": lambda answer: answer.update(choices=[]),
    "no-places": lambda answer: answer["choices"][0].update(index=7),
    "foreign-id": lambda answer: said(answer).update(tokens=["token_id:99999"]),
    "no-id": lambda answer: said(answer).update(tokens=[" the"]),
    "another-model": lambda answer: answer.update(model="another"),
}


@pytest.mark.parametrize("who", [0, 1])
@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_fails_the_request(engines, name, who):
    beam = engines[2]
    engines[who].spoil = spoil_numbers(NONSENSE[name])
    with pytest.raises(EngineFault, match=f"the {('target', 'anchor')[who]}'s engine gave"):
        beam.generate("Hello!")
    engines[who].spoil = lambda answer: answer
    assert beam.generate("Hello!").text


STREAMED = {
    "too-many": lambda choice: choice.update(token_ids=choice["token_ids"] * 9),
    "no-ids": lambda choice: choice.update(token_ids=None),
    "foreign-ids": lambda choice: choice.update(token_ids=[99999]),
    "aborted": lambda choice: choice.update(finish_reason="abort"),
    "ends-early": lambda choice: choice.update(
        token_ids=choice["token_ids"][:1], finish_reason="length"
    ),
}


def numbers_only(body):
    return not body.get("stream")


def streams(body):
    return not numbers_only(body)


def body_of(content, **headers):
    return lambda: Response(content, headers=headers)


async def trickle(head, piece, pause_s):
    yield head
    while True:
        await asyncio.sleep(pause_s)
        yield piece


def trickling(*how):
    return lambda: StreamingResponse(trickle(*how))


def resident_mib():
    held = Path("/proc/self/statm")  # where there is none, time alone is looked at
    return int(held.read_text().split()[1]) // 256 if held.exists() else 0


EMPTY = b'data: {"choices": [{"index": 0, "token_ids": [], "finish_reason": null}]}\n\n'
#: What is sent in place of an answer, to questions for numbers or for a stream; and the error.
INSTEAD = {
    "nested": (numbers_only, body_of(b"[" * 200_000), "no JSON object"),
    "packed": (
        numbers_only,
        body_of(gzip.compress(b" " * (64 << 20)), **{"content-encoding": "gzip"}),
        "no JSON object",
    ),
    "without-end": (numbers_only, trickling(b"{", b" " * (1 << 20), 0), "more than 32 MiB"),
    "drips": (numbers_only, trickling(b"{", b" ", 0.05), "is too slow"),
    "elsewhere": (numbers_only, lambda: RedirectResponse("http://127.0.0.1:9/"), "307"),
    "line-without-end": (streams, trickling(b"data: ", b" " * (1 << 18), 0), "1 MiB"),
    "line-drips": (streams, trickling(b"data: {", b" ", 0.05), "is too slow"),
    "comments": (streams, trickling(b"", b": here\n\n", 0.05), "is too slow"),
    "no-tokens": (streams, trickling(b"", EMPTY, 0.01), "more of an answer"),
}


@pytest.mark.parametrize("name", INSTEAD)
def test_answer_that_never_ends_or_grows_fails_the_request(served, pair, name):
    kind, response, words = INSTEAD[name]
    target, asks_target = served(pair[0])
    asks_target = served.ask(target, pair[0], connect_s=0.2, read_s=0.2)
    judge = CallableJudge(lambda messages, text: 1.0, "one")
    beam = AlignBeam(asks_target, served(pair[1])[1], judge, CONFIG)
    before = resident_mib()
    target.instead = lambda body: response() if kind(body) else None
    with pytest.raises(EngineUnavailable, match=words):
        beam.generate("Hello!")
    assert resident_mib() - before < 300
    target.instead = lambda body: None
    assert beam.generate("Hello!").text


def test_engine_that_drips_is_not_asked_a_second_time(served, pair):
    engine, _ = served(pair[0])
    role = served.ask(engine, pair[0], connect_s=0.2, read_s=0.2)
    engine.instead = lambda body: trickling(b"{", b" ", 0.05)()
    before = role.client.calls
    with pytest.raises(EngineUnavailable, match="is too slow"):
        role.named_logprobs([[1, 2]], [[3]])
    assert role.client.calls == before + 1


@pytest.mark.parametrize("name", STREAMED)
def test_stream_that_goes_wrong_fails_the_request(engines, name):
    engines[0].spoil = spoil_stream(STREAMED[name])
    with pytest.raises(EngineFault):
        engines[2].generate("Hello!")


def test_engine_that_talks_nonsense_for_long_is_asked_no_more(engines):
    target, _, beam = engines
    target.spoil = spoil_numbers(to_nan)
    for _ in range(4):
        with pytest.raises(EngineFault):
            beam.generate("Hello!")
    assert "log-probability that is no number" in beam.target.watch.why
    with pytest.raises(EngineUnavailable, match="no number"):
        beam.generate("Hello!")
    target.spoil = lambda answer: answer
    until(lambda: beam.target.watch.why is None)
    assert beam.generate("Hello!").text


def test_more_of_the_best_than_an_engine_was_checked_for_is_refused(engines):
    with pytest.raises(ConfigError, match="checked for 40 of its best tokens"):
        engines[2].generate("Hello!", top_b=41)


def test_engine_that_is_busy_for_a_moment_is_asked_again(engines):
    target, _, beam = engines
    want = beam.generate("Hello!").text
    target.status = 503
    threading.Timer(0.1, lambda: setattr(target, "status", 200)).start()
    assert beam.generate("Hello!").text == want


def test_engine_that_is_gone_fails_fast_and_comes_back(engines):
    _, anchor, beam = engines
    want = beam.generate("Hello!").text
    anchor.close()
    with pytest.raises(EngineUnavailable, match="the anchor's engine does not answer"):
        beam.generate("Hello!")
    until(lambda: beam.anchor.watch.why is not None)
    # The breaker is open: the engine's answer to a question is not waited for, nor is it asked.
    anchor.start()
    asked = len(anchor.asked)
    with pytest.raises(EngineUnavailable, match="the anchor's engine does not answer"):
        beam.generate("Hello!")
    assert len(anchor.asked) == asked
    until(lambda: beam.anchor.watch.why is None)
    assert beam.generate("Hello!").text == want


def test_engine_that_stalls_is_too_slow(served, pair):
    engine, _ = served(pair[0])
    role = served.ask(engine, pair[0], read_s=0.3)
    engine.pause_s = 5.0
    with pytest.raises(EngineUnavailable, match="the target's engine is too slow"):
        role.named_logprobs([[1, 2]], [[3]])
    engine.pause_s = 0.0


def test_new_engine_with_the_same_model_is_taken_and_one_with_another_is_not(engines, pair):
    target, _, beam = engines
    want = beam.generate("Hello!").text
    target.fingerprint = "second"
    assert beam.generate("Hello!").text == want
    assert beam.target.watch.prints == {"first", "second"}
    target.fingerprint = "third"
    target.role = random_pair(seed=5)[0]
    with pytest.raises(EngineFault, match="another model than at the start"):
        beam.generate("Hello!")
    assert "third" not in beam.target.watch.prints
    assert "another model" in beam.target.watch.why


@pytest.mark.parametrize("who", [0, 1])
def test_another_model_is_not_taken_because_it_calls_itself_nothing(engines, who):
    engine, beam = engines[who], engines[2]
    want = beam.generate("Hello!").text
    engine.close()
    engine.start()
    engine.spoil = lambda answer: {k: v for k, v in answer.items() if k != "system_fingerprint"}
    (beam.target, beam.anchor)[who].client.breaker.close()
    assert beam.generate("Hello!").text == want  # checked, and the same
    engine.close()
    engine.role = random_pair(seed=5)[who]
    engine.start()
    (beam.target, beam.anchor)[who].client.breaker.close()
    with pytest.raises(EngineFault, match="another model than at the start"):
        beam.generate("Hello!")


def test_completion_that_nobody_signs_is_checked_before_it_counts(served, pair):
    engine, target = served(pair[0])
    engine.spoil = lambda answer: {k: v for k, v in answer.items() if k != "system_fingerprint"}
    prompt = target.render([{"role": "user", "content": "Hello!"}])
    engine.close()
    engine.role = random_pair(seed=5)[0]
    engine.start()
    target.client.breaker.close()
    with pytest.raises(EngineFault, match="another model than at the start"):
        complete(target, prompt)


def test_engine_that_is_certain_to_end_still_opens_beams(engines, pair):
    """Of what rounding leaves beside the ends nothing; they open no beam, and others do."""
    target, _, beam = engines
    prompt = pair[0].render([{"role": "user", "content": "Hello!"}])
    logits, ends = target.logits, list(pair[0].end_ids)

    def certain(ids):
        found = logits(ids).clone()
        if len(ids) == len(prompt):
            found[ends[0]] = found.max() + 200
        return found

    target.logits = certain
    result = beam.generate("Hello!")
    assert len(result.candidates) == CONFIG.beams
    assert all(c.token_ids[0] not in ends for c in result.candidates)
    assert all(-math.inf < c.logprob <= 0 for c in result.candidates)


def complete(role, prompt):
    stream = role.stream(prompt, 4, GREEDY, 1)
    return [stream.take() for _ in range(4)]


def test_request_that_nobody_waits_for_is_aborted_on_the_engine(engines):
    target, _, beam = engines
    target.token_s = 0.2

    def streaming():
        return sum(body.get("stream", False) for body in target.asked) == 2

    with pytest.raises(Cancelled):
        beam.generate_batch(["Hello!"], {"max_new_tokens": 200}, should_cancel=streaming)
    until(lambda: target.aborted == 2)


def test_stop_string_ends_the_stream_on_the_engine(engines):
    target, _, beam = engines
    target.token_s = 0.02
    result = beam.generate("Hello!", max_new_tokens=200, stop=["e", "a", "o", "i", "n"])
    assert {c.finish_reason for c in result.candidates} <= {"stop_string", "stop"}
    until(lambda: target.aborted)


# At the start --------------------------------------------------------------------------------


def config(engine, **settings):
    return RoleConfig(url=engine.url, **settings)


def folder_of(role, tmp_path):
    role.tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


def test_shortfalls_name_what_mends_them(served, pair, tmp_path, monkeypatch):
    engine, role = served(pair[1], max_logprobs=50)
    folder = folder_of(pair[1], tmp_path)
    with pytest.raises(EngineShortfall, match="start it with --max-logprobs 51 or more"):
        RemoteRole.from_config("anchor", config(engine, tokenizer=folder), 51)
    other = folder_of(pair[0], tmp_path / "other")
    with pytest.raises(EngineShortfall, match=r"another tokenizer than .*set anchor\.tokenizer"):
        RemoteRole.from_config("anchor", config(engine, tokenizer=other))
    with pytest.raises(EngineShortfall, match=r"serves model; set anchor\.served_name"):
        RemoteRole.from_config("anchor", config(engine, served_name="x", tokenizer=folder))
    with pytest.raises(EngineShortfall, match="ENGINE_KEY, which is not set"):
        RemoteRole.from_config("anchor", config(engine, key_env="ENGINE_KEY"))
    assert role.window == pair[1].window


def test_key_of_an_engine_is_read_from_the_environment(served, pair, tmp_path, monkeypatch):
    from engine_over_role import EngineOverRole

    engine = EngineOverRole(pair[0], key="secret-of-the-engine")
    try:
        folder = folder_of(pair[0], tmp_path)
        with pytest.raises(EngineShortfall, match=r"set target\.key_env"):
            RemoteRole.from_config("target", config(engine, tokenizer=folder))
        monkeypatch.setenv("ENGINE_KEY", "secret-of-the-engine")
        given = config(engine, tokenizer=folder, key_env="ENGINE_KEY")
        assert RemoteRole.from_config("target", given).width == pair[0].width
    finally:
        engine.close()


def test_engine_that_is_not_there_is_named(tmp_path):
    with pytest.raises(EngineUnavailable, match="the target's engine does not answer"):
        RemoteRole.from_config("target", RoleConfig(url="http://127.0.0.1:9"))


def test_address_is_taken_for_a_model_and_excludes_weights():
    assert RoleConfig(model="http://host:1").url == "http://host:1"
    for clash in ({"adapter": "x"}, {"device": "cpu"}, {"model": "folder"}):
        with pytest.raises(ConfigError, match="exclude each other"):
            RoleConfig(url="http://host:1", **clash)
    with pytest.raises(ConfigError, match="must begin with http"):
        RoleConfig(url="host:1")
    assert issubclass(EngineShortfall, ModelLoadError)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"fallback": "prefix"}, "run the anchor in this process, or set another fallback"),
        ({"fallback": "prefix", "mix_steps": 0}, "run the anchor in this process"),
        ({"early_every": 4}, "early_every needs the target in this process, not on an engine"),
        ({"top_b": 41}, "top_b is 41, and the anchor's engine was checked for 40 .* best=42"),
    ],
)
def test_what_engines_can_never_do_is_refused_once_and_not_by_every_request(
    engines, settings, complaint
):
    beam = engines[2]
    parts = beam.target, beam.anchor, beam.judge
    with pytest.raises(ConfigError, match=complaint):
        AlignBeam(*parts, CONFIG.replace(**settings), bridge=beam.bridge)
    with pytest.raises(ConfigError, match=complaint):
        AlignBeam.from_pretrained(*parts, CONFIG.replace(**settings))


def test_what_an_engine_can_do_is_not_refused(engines, pair):
    beam = engines[2]
    for roles, settings in (
        ((beam.target, beam.anchor), {"top_b": 40}),
        ((beam.target, pair[1]), {"fallback": "prefix", "top_b": 256}),
        ((pair[0], beam.anchor), {"early_every": 4}),
        # Numbers of engines are mixed without a kernel.
        ((beam.target, beam.anchor), {"backend": "cuda"}),
    ):
        AlignBeam(*roles, beam.judge, CONFIG.replace(**settings)).generate("Hello!")


def test_what_needs_logits_refuses_an_engine_by_name(engines):
    from alignbeam.hf import custom_generate

    beam = engines[2]
    with pytest.raises(ConfigError, match="needs the target's weights in this process"):
        custom_generate(beam)(None, None)
    with pytest.raises(ConfigError, match="load the target in this process"):
        _ = beam.target.rows([[1]]).logits
