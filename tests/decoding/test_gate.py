"""Gates: a number and a threshold each; who cannot tell steers; what goes is the target's own."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mixed_prompts import mixed_prompts

from alignbeam import AlignBeam
from alignbeam.config import GateConfig, load_settings
from alignbeam.decoding.gate import Gate, divergence
from alignbeam.decoding.refusals import may_open_refusal
from alignbeam.errors import ConfigError, NonFiniteLogits
from alignbeam.judge import CallableJudge
from alignbeam.result import Verdict

PROMPTS = mixed_prompts()[::9]
SHORT = {"max_new_tokens": 10}
#: Thresholds that let everything go that has a number.
WIDE = {"request": 1.0, "divergence": 1.0, "refusals": 1.0, "agreement": 0.0}


def beam_under(trio, verdict=lambda messages, text: 1.0, **gate):
    judge = CallableJudge(verdict, "test")
    config = GateConfig(**gate)
    return AlignBeam(trio.target, trio.anchor, judge, bridge=trio.bridge, gate=config)


def tokens(results):
    return [[c.token_ids for c in result.candidates] for result in results]


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8), st.randoms())
def test_divergence_is_the_mean_relative_entropy_to_the_middle(weights, random):
    p = np.array(weights) / sum(weights)
    q = np.array(random.sample(weights, len(weights))) / sum(weights)
    middle = (p + q) / 2
    want = (sum(p * np.log2(p / middle)) + sum(q * np.log2(q / middle))) / 2
    # The last outcome is left to "all others".
    log_p, log_q = ({i: math.log(x) for i, x in enumerate(d[:-1])} for d in (p, q))
    assert divergence(log_p, log_q) == pytest.approx(want, abs=1e-9)
    assert divergence(log_p, log_p) == pytest.approx(0, abs=1e-12)


def test_divergence_of_what_has_nothing_in_common_is_one_bit():
    assert divergence({1: 0.0}, {1: -math.inf}) == 1.0


def test_what_may_open_a_refusal_begins_like_one_or_goes_on_like_one():
    for opens in (b"I", b"I'm", b"Sorry, but", b"Unfort"):
        assert may_open_refusal(opens)
    for does_not in (b"", b"Sure", b"It", b"sorry"):
        assert not may_open_refusal(does_not)


@pytest.mark.parametrize("combine", ["all", "any"])
def test_gates_let_go_when_all_or_any_of_them_agree(combine):
    names = ("divergence", "refusals")
    for values in itertools.product([0.0, 0.9, None], repeat=2):
        gate = Gate(GateConfig(use=names, combine=combine))
        for name, value in zip(names, values, strict=True):
            if gate.wants(name):
                gate.read(name, value)
        says = [value == 0.0 for value in values]
        assert gate.open == (all(says) if combine == "all" else any(says))


@pytest.mark.parametrize("gate", ["divergence", "refusals"])
def test_request_that_is_let_go_at_once_is_the_targets_own(trio, gate):
    opened = beam_under(trio, use=(gate,), **WIDE).generate_batch(PROMPTS, SHORT)
    shut = beam_under(trio, use=(gate,), **{gate: 0.0}).generate_batch(PROMPTS, SHORT)
    plain = beam_under(trio)
    assert tokens(opened) == tokens(plain.generate_batch(PROMPTS, {**SHORT, "mix_steps": 0}))
    assert tokens(shut) == tokens(plain.generate_batch(PROMPTS, SHORT))
    for let_go, steered in zip(opened, shut, strict=True):
        assert let_go.let_go
        assert not steered.let_go
        assert let_go.gates[0].value == steered.gates[0].value
        assert 0 < let_go.gates[0].value <= 1


def test_gates_decide_for_each_request_of_a_batch_what_they_decide_for_it_alone(trio):
    readings = [
        r.gates[0].value
        for r in beam_under(trio, use="divergence").generate_batch(PROMPTS, {"max_new_tokens": 6})
    ]
    middle = sorted(readings)[len(readings) // 2]
    beam = beam_under(trio, use="divergence", divergence=middle)
    together = beam.generate_batch(PROMPTS, SHORT)
    assert {r.let_go for r in together} == {True, False}
    for prompt, result in zip(PROMPTS, together, strict=True):
        alone = beam.generate(prompt, **SHORT)
        assert tokens([result]) == tokens([alone])
        assert result.let_go == alone.let_go


def test_divergence_and_refusals_are_read_off_the_first_step(trio):
    table, opening = trio.bridge.opening_table.tolist(), trio.anchor.opening
    lone = trio.steering.opening_id
    assert lone is not None, "else there is no second half"
    result = beam_under(trio, use=("divergence", "refusals")).generate(PROMPTS[0], **SHORT)
    prompt = trio.anchor.render(PROMPTS[0])
    first, then = trio.anchor.next_token_logits([prompt, [*prompt, lone]]).double().softmax(-1)
    q = trio.target.next_token_logits([trio.target.render(PROMPTS[0])])[0].double()
    q[list(trio.target.end_ids)] = -math.inf
    q = q.softmax(-1)
    says = {i: trio.anchor.bytes_of(i) for i in range(trio.anchor.width)}
    begins = [(float(first[i]), i, says[i].removeprefix(opening)) for i in says if i != lone]
    begins += [(float(first[lone] * then[i]), i, says[i]) for i in says]
    a: dict[int, float] = {}
    refusing = 0.0
    for share, i, text in sorted(begins, key=lambda row: -row[0])[:50]:
        # After the opening nothing spells it again.
        if table[i] >= 0 and not text.startswith(opening):
            a[table[i]] = a.get(table[i], 0.0) + share
        refusing += share * may_open_refusal(text)
    want = divergence({i: math.log(x) for i, x in a.items()}, {i: math.log(float(q[i])) for i in a})
    by_gate = {reading.gate: reading.value for reading in result.gates}
    assert by_gate["divergence"] == pytest.approx(want, abs=1e-5)
    assert by_gate["refusals"] == pytest.approx(refusing, abs=1e-5)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_agreement_ends_the_steering_after_so_many_steps(trio, after):
    agreeing = beam_under(trio, use="agreement", agreement=0.0, after=after)
    result = agreeing.generate(PROMPTS[1], **SHORT)
    mixed = [step.step for step in result.trace]
    assert result.let_go
    # The first step opens the beams: let go there, they are opened by the target.
    assert set(mixed) == (set() if after == 1 else set(range(after)))
    shut = beam_under(trio, use="agreement", agreement=1.0, after=after)
    whole = shut.generate(PROMPTS[1], alpha=1.0, **SHORT)
    (reading,) = whole.gates
    wanted = [s for s in whole.trace if s.beam == 0][:after]
    assert reading.value == pytest.approx(
        sum(s.target_wishes[0].token_id == s.token_ids[0] for s in wanted) / after
    )


def test_request_that_is_let_go_may_be_mixed_with_less(trio):
    lighter = beam_under(trio, use="divergence", **WIDE, alpha=0.2)
    assert tokens([lighter.generate(PROMPTS[1], **SHORT)]) == tokens(
        [beam_under(trio).generate(PROMPTS[1], alpha=0.2, **SHORT)]
    )
    # Letting go never steers more.
    stronger = beam_under(trio, use="divergence", **WIDE, alpha=0.9)
    assert tokens([stronger.generate(PROMPTS[1], alpha=0.1, **SHORT)]) == tokens(
        [beam_under(trio).generate(PROMPTS[1], alpha=0.1, **SHORT)]
    )


def telling(harm):
    return lambda messages, text: Verdict(1.0, request_harm=harm)


def test_gate_on_the_request_lets_go_before_anything_is_mixed(trio):
    result = beam_under(trio, telling(0.1), use="request").generate(PROMPTS[0], **SHORT)
    assert result.let_go
    assert result.trace == ()
    steered = beam_under(trio, telling(0.11), use="request").generate(PROMPTS[0], **SHORT)
    assert not steered.let_go
    assert steered.trace


def crash(messages, text):
    if "sorry" in text:  # what the gate shows beside the request
        raise RuntimeError("down")
    return 1.0


@pytest.mark.parametrize("verdict", [telling(None), crash])
def test_gate_that_cannot_tell_steers(trio, verdict):
    beam = beam_under(trio, verdict, use="request", **WIDE)
    result = beam.generate(PROMPTS[0], **SHORT)
    (reading,) = result.gates
    assert math.isnan(reading.value)
    assert not result.let_go
    assert result.trace


def test_anchor_with_nan_logits_fails_the_request_and_is_not_let_go(trio, monkeypatch):
    forward = trio.anchor.forward
    monkeypatch.setattr(trio.anchor, "forward", lambda *a: torch.full_like(forward(*a), math.nan))
    beam = beam_under(trio, use=("divergence", "refusals", "agreement"), combine="any", **WIDE)
    with pytest.raises(NonFiniteLogits):
        beam.generate(PROMPTS[0], **SHORT)


def test_gates_are_set_by_a_file_and_named_once(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[gate]\nuse = ["divergence", "request"]\nrequest = 0.3\n')
    settings = load_settings(file, {"gate": {"combine": "any"}}, {}).gate
    assert settings == GateConfig(use=("divergence", "request"), request=0.3, combine="any")
    with pytest.raises(ConfigError, match="twice"):
        GateConfig(use=("request", "request"))
    with pytest.raises(ConfigError, match="any of request, divergence"):
        GateConfig(use=("harm",))
