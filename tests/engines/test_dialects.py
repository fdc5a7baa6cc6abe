"""What is particular to llama.cpp's server and to SGLang; what is not, is held for every engine."""

from __future__ import annotations

import copy
import math

import pytest
from engine_faults import until
from engine_over_role import EngineOverRole
from llamacpp_over_role import LlamaCppOverRole
from mixed_prompts import mixed_prompts
from sglang_over_role import SGLangOverRole
from tiny_models import random_pair, swapped_pair

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import RoleConfig
from alignbeam.engines.dialect import Draw, Query
from alignbeam.engines.llamacpp import LlamaCpp
from alignbeam.engines.role import RemoteRole
from alignbeam.engines.sglang import SGLang
from alignbeam.engines.vllm import Vllm
from alignbeam.errors import EngineFault, EngineShortfall, EngineUnavailable
from alignbeam.judge import CallableJudge

CONFIG = BeamConfig(mix_steps=3, beams=2, top_b=20, max_new_tokens=24)
PROMPTS = mixed_prompts()
KINDS = {"vllm": EngineOverRole, "llamacpp": LlamaCppOverRole, "sglang": SGLangOverRole}


@pytest.fixture(params=[random_pair, swapped_pair])
def make(request):
    return request.param


@pytest.fixture
def pair(make):
    return make()


def beam_over(pair, served, kind, **settings):
    """A pair whose target is on an engine of a kind; the engine, and the pair that asks it."""
    engine, target = served(pair[0], kind=kind, **settings)
    return engine, AlignBeam(target, pair[1], CallableJudge(lambda *_: 1.0), CONFIG)


def tokens(beam, prompts=PROMPTS[:3], **settings):
    found = beam.generate_batch(prompts, settings)
    return [[c.token_ids for c in result.candidates] for result in found]


def here(pair, **settings):
    return tokens(AlignBeam(*pair, CallableJudge(lambda *_: 1.0), CONFIG), **settings)


@pytest.mark.parametrize(("kind", "dialect"), [*zip(KINDS, (Vllm, LlamaCpp, SGLang), strict=True)])
def test_engine_is_spoken_to_by_what_it_says_it_is(served, pair, kind, dialect):
    _, role = served(pair[0], kind=KINDS[kind])
    assert type(role.dialect) is dialect
    assert (role.width, role.window) == (pair[0].width, pair[0].window)


@pytest.mark.parametrize("kind", KINDS)
def test_named_ids_are_the_models_whatever_they_are(served, pair, kind):
    """All of them, in portions: bytes of half characters, control tokens, ends, padding."""
    _, role = served(pair[0], kind=KINDS[kind])
    ids = role.tokenizer.encode("Hello 你", add_special_tokens=False)
    portions = [list(range(n, min(n + 60, role.width))) for n in range(0, role.width, 60)]
    found = [v for row in role.named_logprobs([ids] * len(portions), portions) for v in row]
    want = pair[0].next_token_logits([ids])[0].double().log_softmax(-1)
    assert found == pytest.approx(want.tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", ["llamacpp", "sglang"])
def test_constrained_choices_leave_the_numbers_as_they_are(served, pair, kind):
    _, role = served(pair[0], best=21, kind=KINDS[kind])
    ids = tuple(role.tokenizer.encode("Hello", add_special_tokens=False))
    plain, barred, only = role.ask(
        [
            Query(ids, best=20),
            Query(ids, forbidden=tuple(range(0, 400, 2))),
            Query(ids, best=20, only=33),
        ]
    )
    logits = pair[0].next_token_logits([ids])[0]
    logprobs = logits.double().log_softmax(-1)
    assert plain.chosen == int(logits.argmax())
    assert barred.chosen == next(
        i for i in logits.argsort(descending=True).tolist() if i % 2 or i >= 400
    )
    assert only.chosen == 33
    for numbers in (plain, barred, only):
        assert all(abs(v - float(logprobs[i])) < 1e-4 for i, v in numbers.logprobs.items())
    assert only.logprobs[33] == pytest.approx(float(logprobs[33]), abs=1e-4)
    draw = Draw(1.0, 0, 1.0, 5)
    drawn = role.ask([Query(ids, forbidden=tuple(range(1, role.width)), draw=draw)])
    assert drawn[0].chosen == 0


# llama.cpp ---------------------------------------------------------------------------------------


def test_llamacpp_ends_at_our_ends_only(served, pair):
    """It goes on after what ends an answer for it, and stops at what does not."""
    often = [i for row in here(pair) for ids in row for i in ids][5]
    for eog in ([], [often], list(range(0, 400, 3))):
        _, beam = beam_over(pair, served, LlamaCppOverRole, eog=eog)
        assert tokens(beam) == here(pair)


def test_llamacpp_is_asked_in_turn_where_a_prompt_goes_on_from_another(served, pair):
    engine, role = served(pair[0], kind=LlamaCppOverRole)
    begin = len(engine.asked)
    prompts = [(5, 6, 7), (5,), (9, 8), (5, 6), (9,)]
    role.ask([Query(ids, best=1) for ids in prompts])
    asked = [tuple(body["prompt"]) for body in engine.asked[begin:]]
    asked = [ids for ids in asked if ids in prompts]  # new connections have it checked as well
    assert sorted(asked) == sorted(prompts)
    assert [ids for ids in asked if ids[0] == 5] == [(5,), (5, 6), (5, 6, 7)]
    assert [ids for ids in asked if ids[0] == 9] == [(9,), (9, 8)]


def test_llamacpp_names_what_a_float_cannot_hold_among_all(served, pair):
    """What rounds to nothing is left out of the second answer; here, more than that."""
    engine, role = served(pair[0], kind=LlamaCppOverRole)
    ids = role.tokenizer.encode("Hello", add_special_tokens=False)
    names = list(range(40, 80))
    (want,) = role.named_logprobs([ids], [names])

    def cut(answer):
        answer = copy.deepcopy(answer)
        for entry in answer.get("completion_probabilities", []):
            entry.get("top_probs", [])[4:] = []
        return answer

    engine.spoil = cut
    assert role.named_logprobs([ids], [names])[0] == pytest.approx(want, abs=1e-4)
    assert any(body["n_probs"] == role.width for body in engine.asked)


def test_llamacpp_that_samples_in_its_own_way_is_refused_at_the_start(served, pair):
    engine, _ = served(pair[0], kind=LlamaCppOverRole)

    def flat(answer):
        answer = copy.deepcopy(answer)
        for entry in answer.get("completion_probabilities", []):
            top = entry.get("top_probs", [])
            for one in top:
                one["prob"] = 1 / len(top)
        return answer

    engine.spoil = flat
    with pytest.raises(EngineShortfall, match="without settings that replace its samplers"):
        served.ask(engine, pair[0])


def test_llamacpp_says_which_tokenizer_to_set(served, pair):
    engine, _ = served(pair[0], kind=LlamaCppOverRole)
    with pytest.raises(EngineShortfall, match=r"which is not here; set target\.tokenizer"):
        RemoteRole.from_config("target", RoleConfig(url=engine.url))


def test_engine_that_does_not_name_itself_is_checked_when_it_may_be_another(served, make, pair):
    """Started again between two answers: neither down for long enough to be seen, nor slow."""
    engine, beam = beam_over(pair, served, LlamaCppOverRole)
    want = tokens(beam)
    engine.close()
    engine.start()
    assert tokens(beam) == want
    engine.close()
    engine.role = make(seed=5)[0]
    engine.start()
    with pytest.raises(EngineUnavailable, match="another model than at the start"):
        tokens(beam)
    assert "another model" in beam.target.watch.why


# SGLang ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{"incremental": True}, {"trims": True}])
def test_sglang_streams_are_read_however_they_come(served, pair, settings):
    _, beam = beam_over(pair, served, SGLangOverRole, **settings)
    assert tokens(beam) == here(pair)


def test_sglang_with_other_weights_is_refused(served):
    pair = random_pair()
    engine, beam = beam_over(pair, served, SGLangOverRole)
    want = tokens(beam)
    engine.weight_version = "2"
    assert tokens(beam) == want
    assert beam.target.watch.prints == {"default", "2"}
    engine.weight_version, engine.role = "3", random_pair(seed=5)[0]
    with pytest.raises(EngineFault, match="another model than at the start"):
        tokens(beam)


def test_clients_are_kept_apart_in_sglang_and_said_not_to_be_in_llamacpp(served, pair, caplog):
    engine, beam = beam_over(pair, served, SGLangOverRole)
    assert "keeps one prompt cache" not in caplog.text
    role = beam.target
    role.ask([Query((1, 2), best=1, salt="one"), Query((1, 2), best=1)])
    asked = [body for body in engine.asked if body["input_ids"] == [1, 2]]
    assert {body.get("extra_key") for body in asked} == {"one", None}
    served(pair[0], kind=LlamaCppOverRole)
    assert "(llama.cpp) keeps one prompt cache for all" in caplog.text


# Nonsense ----------------------------------------------------------------------------------------


def entries(answer):
    return answer["completion_probabilities"]


def first_best(answer):
    return entries(answer)[0].get("top_logprobs") or entries(answer)[0]["top_probs"]


def twice(answer):
    first_best(answer).append(first_best(answer)[0])


def meta(answer):
    return answer["meta_info"]


LLAMACPP = {
    "no-numbers": lambda a: a.pop("completion_probabilities"),
    "no-entry": lambda a: entries(a).clear(),
    "no-list": lambda a: entries(a)[0].update(top_logprobs=None, top_probs=None),
    "another-token": lambda a: entries(a)[0].update(id=entries(a)[0]["id"] + 1),
    "foreign-id": lambda a: first_best(a)[0].update(id=99999),
    "fewer": lambda a: first_best(a).pop(),
    "twice": twice,
    "turned-round": lambda a: first_best(a).reverse(),
    "NaN": lambda a: first_best(a)[0].update(logprob=math.nan, prob=math.nan),
    "null": lambda a: first_best(a)[0].update(logprob=None, prob=None),
    "above": lambda a: first_best(a)[0].update(logprob=0.5, prob=1.5),
    "flat": lambda a: [one.update(logprob=-0.1, prob=0.9) for one in first_best(a)],
    "another-model": lambda a: a.update(model="another"),
}
SGLANG = {
    "no-meta": lambda a: a.pop("meta_info"),
    "no-numbers": lambda a: meta(a).pop("output_top_logprobs"),
    "fewer-named": lambda a: meta(a)["output_token_ids_logprobs"][0].pop(),
    "no-named": lambda a: meta(a).pop("output_token_ids_logprobs"),
    "foreign-id": lambda a: meta(a)["output_token_logprobs"][0].__setitem__(1, 99999),
    "NaN": lambda a: meta(a)["output_token_logprobs"][0].__setitem__(0, math.nan),
    "null": lambda a: meta(a)["output_token_logprobs"][0].__setitem__(0, None),
    "above": lambda a: meta(a)["output_token_logprobs"][0].__setitem__(0, 0.5),
    "version-of-no-kind": lambda a: meta(a).update(weight_version={}),
}
LLAMACPP_STREAMED = {
    "no-tokens": lambda a: a.update(tokens=[]),
    "no-list": lambda a: a.update(tokens=None),
    "too-many": lambda a: a.update(tokens=a["tokens"] * 20),
    "foreign-id": lambda a: a["tokens"].append(99999),
    "cut": lambda a: a.update(tokens=a["tokens"][:1], stop_type="limit"),
}
SGLANG_STREAMED = {
    "no-tokens": lambda a: a.update(output_ids=None),
    "foreign-id": lambda a: a["output_ids"].append(99999),
    "leap": lambda a: meta(a).update(completion_tokens=77),
    "aborted": lambda a: meta(a).update(finish_reason={"type": "abort"}),
    "ends-early": lambda a: meta(a).update(finish_reason={"type": "length"}),
}
CASES = [
    (kind, name, change, streamed)
    for kind, streamed, table in (
        (LlamaCppOverRole, False, LLAMACPP),
        (SGLangOverRole, False, SGLANG),
        (LlamaCppOverRole, True, LLAMACPP_STREAMED),
        (SGLangOverRole, True, SGLANG_STREAMED),
    )
    for name, change in table.items()
]


def has_numbers(answer):
    said = answer.get("meta_info", {})
    return "completion_probabilities" in answer or "output_token_logprobs" in said


@pytest.mark.parametrize(
    ("kind", "change", "streamed"),
    [(kind, change, streamed) for kind, _, change, streamed in CASES],
    ids=[
        f"{kind.owner}-{'stream' if streamed else 'numbers'}-{name}"
        for kind, name, _, streamed in CASES
    ],
)
def test_nonsense_fails_the_request(served, kind, change, streamed):
    engine, beam = beam_over(random_pair(), served, kind)

    def spoil(answer):
        if has_numbers(answer) == streamed:
            return answer
        answer = copy.deepcopy(answer)
        change(answer)
        return answer

    engine.spoil = spoil
    with pytest.raises(EngineFault, match="the target's engine gave"):
        beam.generate("Hello!")
    engine.spoil = lambda answer: answer
    assert beam.generate("Hello!").text


@pytest.mark.parametrize("kind", ["llamacpp", "sglang"])
def test_engine_that_talks_nonsense_for_long_is_asked_no_more(served, kind):
    engine, beam = beam_over(random_pair(), served, KINDS[kind])

    def spoil(answer):
        if has_numbers(answer):
            answer = copy.deepcopy(answer)
            {"llamacpp": LLAMACPP, "sglang": SGLANG}[kind]["NaN"](answer)
        return answer

    engine.spoil = spoil
    for _ in range(4):
        with pytest.raises(EngineFault):
            beam.generate("Hello!")
    until(lambda: beam.target.watch.why is not None)
    engine.spoil = lambda answer: answer
    until(lambda: beam.target.watch.why is None)
    assert beam.generate("Hello!").text


@pytest.mark.parametrize("kind", ["llamacpp", "sglang"])
def test_stop_string_ends_the_answer_on_the_engine(served, kind):
    engine, beam = beam_over(random_pair(), served, KINDS[kind])
    begin, engine.token_s = len(engine.asked), 0.02
    result = beam.generate("Hello!", max_new_tokens=200, stop=["e", "a", "o", "i", "n"])
    assert {c.finish_reason for c in result.candidates} <= {"stop_string", "stop"}
    if kind == "llamacpp":
        assert all(body["n_predict"] <= 16 for body in engine.asked[begin:])
        assert len(engine.asked) - begin < 40
    else:
        until(lambda: engine.aborted)
