"""A pair on engines decodes what the pair decodes in this process, token for token."""

from __future__ import annotations

import pytest
from mixed_prompts import mixed_prompts
from tiny_models import length_scorer

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import GateConfig
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.decode import decode
from alignbeam.errors import ConfigError
from alignbeam.judge import CallableJudge

PROMPTS = mixed_prompts()
CONFIG = BeamConfig(mix_steps=5, beams=3, top_b=40, max_new_tokens=14)
SETTINGS = {
    "paper": {},
    "log": {"mix": "log"},
    "union": {"support": "union"},
    "log-union": {"mix": "log", "support": "union"},
    "first": {"fallback": "first"},
    "exact": {"fallback": "exact"},
    "target-weight": {"alpha": 0.0, "support": "union"},
    "anchor-weight": {"alpha": 1.0},
    "narrow": {"top_b": 1},
    "narrow-union": {"top_b": 2, "support": "union", "alpha": 0.2},
    "wide": {"beams": 8},
    "all-mixed": {"mix_steps": 14},
    "unmixed": {"mix_steps": 0},
    "plain": {"mix_steps": 0, "beams": 1},
    "one": {"mix_steps": 1, "max_new_tokens": 1},
    "stop": {"stop": ["e", " the", "a"]},
}


def trio(pair):
    judge = CallableJudge(lambda messages, text: length_scorer(messages[-1]["content"], text))
    return AlignBeam(*pair, judge, CONFIG)


def tokens(beam, prompts, settings):
    found = beam.outcomes(prompts, settings)
    return [
        r if isinstance(r, Exception) else (r.text, [c.token_ids for c in r.candidates])
        for r in found
    ]


@pytest.mark.parametrize("name", SETTINGS)
def test_engines_give_the_tokens_of_this_process(pairs, name):
    here, there = pairs
    at = list(SETTINGS).index(name)
    prompts = [PROMPTS[(3 * at + n) % len(PROMPTS)] for n in range(3)]
    want = tokens(trio(here), prompts, SETTINGS[name])
    assert tokens(trio(there), prompts, SETTINGS[name]) == want
    assert not any(isinstance(answer, Exception) for answer in want)


@pytest.mark.parametrize("remote", [0, 1])
def test_one_role_on_an_engine_and_one_here_give_the_same(pairs, remote):
    here, there = pairs
    mixed = (there[0], here[1]) if remote == 0 else (here[0], there[1])
    for settings in ({}, {"mix": "log", "support": "union"}, {"top_b": 1}):
        want = tokens(trio(here), PROMPTS[:2], settings)
        assert tokens(trio(mixed), PROMPTS[:2], settings) == want


def test_prefix_is_for_an_anchor_in_this_process_wherever_the_target_is(pairs):
    here, there = pairs
    settings = {"fallback": "prefix", "alpha": 0.9, "mix_steps": 10}
    want = tokens(trio(here), PROMPTS[:4], settings)
    assert tokens(trio((there[0], here[1])), PROMPTS[:4], settings) == want
    (refused,) = tokens(trio((here[0], there[1])), PROMPTS[:1], settings)
    assert isinstance(refused, ConfigError)
    assert "run the anchor in this process" in str(refused)


def test_trace_of_a_step_is_the_same(pairs):
    here, there = (trio(pair).generate("Hello!", wishes=1) for pair in pairs)
    assert [s.source for s in there.trace] == [s.source for s in here.trace]
    for mine, theirs in zip(there.trace, here.trace, strict=True):
        assert mine.token_ids == theirs.token_ids
        for name in ("logprob", "anchor_mass", "translated_mass", "target_mass", "anchor_share"):
            due = pytest.approx(getattr(theirs, name), abs=1e-4, nan_ok=True)
            assert getattr(mine, name) == due
        for name in ("anchor_wishes", "target_wishes"):
            wished, due = ([w.token_id for w in getattr(s, name)] for s in (mine, theirs))
            assert wished == due


def test_draws_repeat_with_a_seed_and_differ_between_seeds_and_beams(pairs):
    beam = trio(pairs[1])
    sampled = {"temperature": 1.5, "max_new_tokens": 12}
    for mixed in ({}, {"mix_steps": 0}):
        one, again, other = (
            tokens(beam, PROMPTS[:1], {**sampled, **mixed, "seed": n})[0][1] for n in (1, 1, 2)
        )
        assert one == again
        assert one != other
        assert len({t[5:] for t in one}) == len(one)


def test_an_engine_is_asked_one_kind_of_question(served, pairs):
    """vLLM mixes up the answers of both kinds in a batch."""
    pair = pairs[0]
    (target, asks_target), (anchor, asks_anchor) = served(pair[0]), served(pair[1])
    beam = trio((asks_target, asks_anchor))
    tokens(beam, PROMPTS[:2], {"support": "union"})
    alone = [c.token_ids for c in beam.alone("anchor", PROMPTS[:2])]
    assert alone == [c.token_ids for c in trio(pair).alone("anchor", PROMPTS[:2])]
    named = [("logprob_token_ids" in b, b.get("stream", False)) for b in target.asked]
    assert {(True, False), (False, True)} == set(named)
    # The first question to every engine is how many ids there are.
    assert not any("logprob_token_ids" in b for b in anchor.asked[1:])


def test_gates_ask_an_anchor_nothing_that_its_opening_would_not(served, pairs):
    pair = pairs[0]
    anchor, asks_anchor = served(pair[1])
    judge = CallableJudge(lambda messages, text: 1.0)
    asked, found = [], []
    shut = GateConfig(use=("divergence", "refusals"), divergence=0, refusals=0)
    for gate in (GateConfig(), shut):
        begin = len(anchor.asked)
        beam = AlignBeam(pair[0], asks_anchor, judge, CONFIG, gate=gate)
        found.append(tokens(beam, PROMPTS[:2], {}))
        asked.append(sorted(body["prompt"] for body in anchor.asked[begin:]))  # some go at once
    assert found[1] == found[0]
    assert asked[1] == asked[0]


def test_prompts_are_token_ids_and_prefixes_of_two_tenants_are_kept_apart(served, pairs):
    engine, target = served(pairs[0][0])
    beam = trio((target, pairs[1][1]))
    salts = []
    for tenant in ("one", "two", "one"):
        begin = len(engine.asked)
        request = beam.prepare("Hello!")
        request.salt = tenant
        decode(beam.target, beam.steering, [request], Clock([]))
        asked = engine.asked[begin:]
        salts.append({body.get("cache_salt") for body in asked})
        for body in asked:
            prompts = [body["prompt"]] if body.get("stream") else body["prompt"]
            assert all(p[: len(request.target_ids)] == request.target_ids for p in prompts)
    assert salts == [{"one"}, {"two"}, {"one"}]
