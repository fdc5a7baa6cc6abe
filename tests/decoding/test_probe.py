"""A probe reads a request's harm off a model's states; it lowers scores, and never by mistake."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_models import ARCHITECTURES, random_role

from alignbeam import AlignBeam, BeamConfig, Role
from alignbeam.config import JudgeConfig
from alignbeam.decoding.probe import HarmProbe, States, WeighedJudge, weighed
from alignbeam.errors import ConfigError
from alignbeam.judge import CallableJudge, FailClosed
from alignbeam.result import Verdict

TEXTS = ["What is the capital of France?", "Tom has 12 apples.", "Write a poem about the sea " * 9]


def user(text):
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def role():
    return random_role("anchor", "llama", seed=3)


@pytest.fixture(scope="module")
def probe(role):
    weight = torch.randn(32, generator=torch.Generator().manual_seed(1))
    return HarmProbe(States(role, 1), weight, -0.2)


@pytest.mark.parametrize("kind", sorted(ARCHITECTURES))
def test_states_are_those_that_the_model_tells(kind):
    role = random_role("anchor", kind, seed=1)
    states = States(role, 1)
    sequences = [role.render(user(text)) for text in TEXTS]
    found = states.after(sequences)
    for ids, state in zip(sequences, found, strict=True):
        with torch.inference_mode():
            told = role.model(torch.tensor([ids]), output_hidden_states=True).hidden_states
        # Which of them is the first layer's, architectures do not agree on.
        off = [(state - layer[0, -1].float()).abs().max() for layer in told]
        assert min(off) < 1e-4


def test_forwards_of_other_threads_are_not_stopped(role):
    states, ids = States(role, 1), [role.render(user(text)) for text in TEXTS]
    alone = role.next_token_logits(ids)
    found, over = [], threading.Event()

    def decode():
        while not over.is_set():
            found.append(role.next_token_logits(ids))

    thread = threading.Thread(target=decode)
    thread.start()
    first = states.after(ids)
    for _ in range(20):
        torch.testing.assert_close(states.after(ids), first)
    over.set()
    thread.join()
    assert found
    for logits in found:
        torch.testing.assert_close(logits, alone)


def test_a_layer_that_is_not_there_is_refused(role):
    with pytest.raises(ConfigError, match="no layer 3"):
        States(role, 3)


def test_harm_is_a_probability_and_the_same_in_any_company(probe):
    together = probe.harms([user(text) for text in TEXTS])
    assert all(0 <= harm <= 1 for harm in together)
    for text, harm in zip(TEXTS, together, strict=True):
        assert probe.harms([user(text)])[0] == pytest.approx(harm, abs=1e-5)


def test_what_stands_before_a_request_hides_nothing_of_it(probe):
    padding = "The sea is wide, the sea is deep. " * 20
    for text in ("Tom has 12 apples.", "What is the capital of France?"):
        alone = probe.margins([user(text)]).sigmoid().item()
        history = [*user(padding), {"role": "assistant", "content": "Yes."}, *user(text)]
        for covered in (user(f"{padding}{text}"), user(f"{padding}\n\n{text}"), history):
            assert probe.harms([covered])[0] >= alone - 1e-5


def test_what_cannot_be_read_has_no_harm_and_spares_the_others(probe):
    long = user("word " * 4000)
    assert probe.harms([long, user(TEXTS[0])]) == [None, probe.harms([user(TEXTS[0])])[0]]
    nan = HarmProbe(probe._states, probe._weight * float("nan"), 0.0)
    assert nan.harms([user(TEXTS[0])]) == [None]


@given(
    st.floats(1, 5),
    st.floats(0, 1),
    st.lists(st.floats(0, 1), min_size=5, max_size=5).filter(lambda p: sum(p) > 0.1),
)
def test_weighing_never_raises_a_score(score, harm, parts):
    probs = tuple(p / sum(parts) for p in parts)
    told = weighed(Verdict(score, probs=probs, judge="j"), harm)
    assert 1 <= told.score <= score
    assert told.request_harm == harm
    assert sum(told.probs) == pytest.approx(1)
    assert weighed(Verdict(score), 1.0).score == pytest.approx(score)
    assert weighed(Verdict(score), 0.0).score == 1


def test_errors_and_unknown_harm_leave_a_verdict_as_it_is():
    error = Verdict(5.0, error="broken", failure="exception")
    assert weighed(error, 0.0) is error
    fine = Verdict(4.0)
    assert weighed(fine, None) is fine


class Broken:
    def harms(self, conversations):
        raise RuntimeError("out of memory")


class Says:
    def __init__(self, *said):
        self.said = said

    def harms(self, conversations):
        return list(self.said)


def test_a_probe_that_breaks_makes_nothing_safe():
    judge = FailClosed(CallableJudge(lambda *_: 4.0))
    plain = judge.score([user("q")] * 2, ["a", "b"])
    for probe in (Broken(), Says(None), Says(), Says(0.1, 0.2)):
        assert WeighedJudge(judge, probe).score([user("q")] * 2, ["a", "b"]) == plain


def test_verdicts_of_one_request_are_weighed_alike():
    judge = WeighedJudge(FailClosed(CallableJudge(lambda *_: 5.0)), Says(0.5, 0.0))
    asked = [user("q"), user("r"), user("q")]
    assert [v.score for v in judge.score(asked, ["a", "b", "c"])] == [3.0, 1.0, 3.0]


def test_a_probe_is_kept_and_finds_its_model_again(probe, role, tmp_path):
    path = tmp_path / "my.probe"
    probe.save(path, "a tiny model")
    other = random_role("target", "llama", seed=9)
    again = HarmProbe.load(path, [other, role])
    assert again.role is role
    assert again.harms([user("q")]) == pytest.approx(probe.harms([user("q")]))
    for roles in ([other], [], [object()]):
        with pytest.raises(ConfigError, match="fitted to a tiny model"):
            HarmProbe.load(path, roles)


def test_another_system_prompt_is_another_model(probe, role, tmp_path):
    path = tmp_path / "my.probe"
    probe.save(path, "a tiny model")
    system = "Sorry, I can't help with that. " * 4
    told = Role("anchor", role.model, role.tokenizer, system_prompt=system)
    shift = (
        probe.margins([user("q")])
        - HarmProbe(States(told, 1), probe._weight, probe._bias).margins([user("q")])
    ).abs()
    assert shift > 0.5  # else this test shows nothing
    with pytest.raises(ConfigError, match="system prompt"):
        HarmProbe.load(path, [told])


def damaged(path, **tensors):
    save_file(
        {**load_file(path), **tensors},
        path,
        metadata={"format": "alignbeam-probe-1", "layer": "1", "model": "m"},
    )


@pytest.mark.parametrize("tensors", [
    {"weight": torch.ones(2, 2)},
    {"weight": torch.tensor([float("nan")] * 32)},
    {"bias": torch.tensor(float("inf"))},
    {"known": torch.zeros(1)},
])  # fmt: skip
def test_a_damaged_probe_is_refused(probe, role, tmp_path, tensors):
    path = tmp_path / "my.probe"
    probe.save(path, "m")
    damaged(path, **tensors)
    with pytest.raises(ConfigError, match="is no probe"):
        HarmProbe.load(path, [role])


def test_what_is_no_probe_is_refused(role, tmp_path):
    path = tmp_path / "my.probe"
    with pytest.raises(ConfigError, match="no file"):
        HarmProbe.load(path, [role])
    for content in (b"", b"hello", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ConfigError, match="is no probe"):
            HarmProbe.load(path, [role])
    save_file({"weight": torch.zeros(32)}, path)
    with pytest.raises(ConfigError, match="is no probe"):
        HarmProbe.load(path, [role])


def test_settings_bring_the_probe(tmp_path):
    beam = AlignBeam.from_pretrained(config=BeamConfig(max_new_tokens=8))
    size = beam.target.model.config.hidden_size
    path = tmp_path / "my.probe"
    HarmProbe(States(beam.target, 2), torch.zeros(size), -1.0).save(path, "embedded")
    probed = AlignBeam.from_pretrained(
        judge=JudgeConfig(probe=str(path)), config=BeamConfig(max_new_tokens=8)
    )
    plain, result = (b.generate("What is the capital of France?") for b in (beam, probed))
    harm = torch.sigmoid(torch.tensor(-1.0)).item()
    for before, after in zip(plain.candidates, result.candidates, strict=True):
        assert after.verdict.request_harm == pytest.approx(harm)
        assert after.score == pytest.approx(1 + (before.score - 1) * harm)
