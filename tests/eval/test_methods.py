"""Each method does what its paper says: on models whose every distribution is written down.

Every test here fails if the method were a no-op (the target's own answer comes out), if its sign
were wrong, or if something other than the steered text were returned.
"""

from __future__ import annotations

import pytest
import torch
from eval_models import END, START, bigram_models, bigram_role

from alignbeam.errors import ConfigError
from alignbeam.eval.methods import METHODS, build_method
from alignbeam.eval.methods.guided import ContrastiveDecoding, ProxyTuning, SafeDecoding
from alignbeam.eval.methods.rain import SelfEvaluation
from alignbeam.eval.methods.sharing import answer_together, shares_work

ASK = [[{"role": "user", "content": "Hello"}]]
TAIL = {"S": {"s": 1.0}, "N": {"n": 1.0}, "X": {"x": 1.0}}
TARGET = {START: {"S": 0.65, "N": 0.25, "X": 0.1}, **TAIL}
ANCHOR = {START: {"N": 0.9, "S": 0.06, "X": 0.04}, **TAIL}


def said(method, models, prompts=ASK, **settings):
    return [a.text for a in build_method(method, settings).answer(models, prompts).answers]


@pytest.fixture(scope="module")
def pair():
    return bigram_models(TARGET, ANCHOR)


def test_bigram_models_say_what_is_written(pair):
    logits = pair.target.next_token_logits([pair.target.render(ASK[0])])[0]
    probs = logits.softmax(-1)
    ids = pair.target.encode_plain("SNX")
    assert probs[ids].tolist() == pytest.approx([0.65, 0.25, 0.1], rel=2e-3)
    assert pair.target.encode_plain("S") != pair.anchor.encode_plain("S")


def test_target_and_anchor_alone_give_their_own_answers(pair):
    assert said("target", pair) == ["Ss"]
    assert said("anchor", pair) == ["Nn"]


def test_every_method_answers_a_batch_as_it_answers_each_request_alone(pair):
    prompts = [[{"role": "user", "content": text}] for text in ("Hi", "Longer than that", "No")]
    for name in METHODS:
        if name == "rain":  # the tiny characters cannot be asked A or B in time; tested below
            continue
        together = said(name, pair, prompts)
        assert together == [said(name, pair, [prompt])[0] for prompt in prompts], name


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("safedecoding", {"steps": 4}),
        ("nudging", {"gate": 0.5}),
        ("proxy-tuning", {"alpha": 0.5}),
        ("contrastive", {}),
        ("refusal-prefix", {}),
    ],
)
def test_method_answers_unlike_requests_in_a_batch_as_it_answers_each_alone(name, settings):
    """On random models of two families, whose answers differ and end at different times."""
    from tiny_models import random_pair

    from alignbeam import AlignBeam, BeamConfig
    from alignbeam.eval.methods import Models
    from alignbeam.judge import CallableJudge

    target, anchor = random_pair()
    judge = CallableJudge(lambda messages, text: 1.0, "any")
    models = Models(AlignBeam(target, anchor, judge, BeamConfig(max_new_tokens=24)))
    asked = (
        "Hello",
        "What is the capital of France?",
        "Tom has 12 apples.",
        "你好",
        "a",
        "The sea",
    )
    prompts = [[{"role": "user", "content": text}] for text in asked]
    together = said(name, models, prompts, **settings)
    assert together == [said(name, models, [prompt], **settings)[0] for prompt in prompts]
    assert len(set(together)) > 3
    assert together != said("target", models, prompts)


def test_system_prompt_reaches_the_target_and_only_the_target():
    from tiny_models import random_pair

    from alignbeam import AlignBeam, BeamConfig
    from alignbeam.eval.methods import Models
    from alignbeam.judge import CallableJudge

    target, anchor = random_pair()
    judge = CallableJudge(lambda messages, text: 1.0, "any")
    beam = AlignBeam(target, anchor, judge, BeamConfig(max_new_tokens=12))
    models = Models(beam)
    told = [{"role": "system", "content": "Be good."}, *ASK[0]]
    want = next(beam.alone("target", [told], max_new_tokens=12)).text
    assert said("system-prompt", models, text="Be good.") == [want]
    assert said("system-prompt", models, text="Be good.") != said("target", models)


def test_refusal_prefix_begins_every_answer_and_the_target_goes_on():
    models = bigram_models({START: {"S": 1.0}, "l": {"!": 1.0}}, ANCHOR)
    method = build_method("refusal-prefix", {})
    (answer,) = method.answer(models, ASK).answers
    assert answer.text == "I cannot fulfill!"
    # The prefix counts among the answer's tokens, the end token too.
    assert answer.candidates[0].new_tokens == len("I cannot fulfill!") + 1


def test_safedecoding_takes_what_the_anchor_prefers(pair):
    assert said("safedecoding", pair) == ["Nn"]


def test_safedecoding_without_weight_is_the_target(pair):
    assert said("safedecoding", pair, alpha=0.0) == ["Ss"]


def test_safedecoding_chooses_among_common_tokens_only():
    # The anchor loves X, which the target ranks last of three: with one common token it is out.
    anchor = {START: {"X": 0.8, "N": 0.15, "S": 0.05}, **TAIL}
    models = bigram_models({START: {"S": 0.6, "N": 0.3, "X": 0.05}, **TAIL}, anchor)
    assert said("safedecoding", models, common=1) == ["Nn"]
    assert said("safedecoding", models, common=3) == ["Xx"]


def test_safedecoding_steers_its_first_steps_only():
    path = {"a": {"b": 0.6, "y": 0.4}, "b": {"c": 0.6, "y": 0.4}, "c": {"d": 0.6, "y": 0.4}}
    target = {START: {"a": 0.6, "b": 0.4}, **path}
    anchor = {s: {k: 1 - v for k, v in t.items()} for s, t in target.items()}
    models = bigram_models(target, anchor)
    assert said("target", models) == ["abcd"]
    assert said("safedecoding", models, steps=1, common=2) == ["bcd"]
    assert said("safedecoding", models, steps=2, common=2) == ["by"]


def test_safedecoding_scores_equal_the_papers_own_loop():
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        q = torch.rand(40, generator=generator).softmax(-1)
        a = torch.rand(40, generator=generator).softmax(-1)
        scores = SafeDecoding(alpha=3.0, common=5).scores(q, [a])
        want: dict[int, float] = {}
        for k in range(1, 41):
            common = set(q.topk(k).indices.tolist()) & set(a.topk(k).indices.tolist())
            if len(common) >= 5:
                want = {d: float(q[d] + 3.0 * (a[d] - q[d])) for d in common}
                break
        got = {d: float(s) for d, s in enumerate(scores) if s > float("-inf")}
        assert got == pytest.approx(want)


def test_safedecoding_over_an_identity_bridge_equals_the_direct_formula():
    models = bigram_models(TARGET, ANCHOR, shift=0)
    assert models.beam.bridge.table[: len(models.target.tokenizer)].unique().numel() > 250
    q, a = (
        role.next_token_logits([role.render(ASK[0])])[0].softmax(-1)
        for role in (models.target, models.anchor)
    )
    want = int(SafeDecoding().scores(q, [a]).argmax())
    (answer,) = build_method("safedecoding").answer(models, ASK).answers
    assert answer.text[0].encode() == models.target.bytes_of(want)


def test_nudging_inserts_the_anchors_word_where_the_target_is_unsure():
    # Unsure at the start, sure after the blank that follows the anchor's word.
    target = {
        START: {"S": 0.35, "N": 0.3, "X": 0.3},
        "S": {"s": 1.0},
        "o": {" ": 0.9},
        " ": {"z": 0.9},
    }
    anchor = {START: {"N": 0.9}, "N": {"o": 0.9}, "o": {" ": 0.9}, " ": {"k": 0.9}}
    models = bigram_models(target, anchor)
    assert said("target", models) == ["Ss"]
    assert said("nudging", models) == ["No z"]


def test_nudging_leaves_a_sure_target_alone(pair):
    assert said("nudging", pair, gate=0.4) == ["Ss"]
    assert said("nudging", pair, gate=0.7) == ["Nn"]


def test_nudging_ends_where_the_anchor_would():
    target = {START: {"S": 0.9}, "S": {"s": 0.3, "t": 0.25, "u": 0.2, "v": 0.2}}
    models = bigram_models(target, {START: {"N": 1.0}, "S": {END: 1.0}})
    assert said("target", models) == ["Ss"]
    assert said("nudging", models) == ["S"]


def test_proxy_tuning_adds_the_difference_and_not_the_expert():
    target = {START: {"S": 0.6, "N": 0.3}, **TAIL}
    expert = {START: {"S": 0.5, "N": 0.45}, **TAIL}
    towards = bigram_models(target, expert, {START: {"S": 0.85, "N": 0.1}, **TAIL})
    assert said("proxy-tuning", towards) == ["Nn"]
    # Tuning changed nothing, or made N rarer: the target's own choice stays.
    same = bigram_models(target, expert, expert)
    assert said("proxy-tuning", same) == ["Ss"]
    away = bigram_models(target, expert, {START: {"S": 0.1, "N": 0.85}, **TAIL})
    assert said("proxy-tuning", away) == ["Ss"]


def test_proxy_tuning_steers_every_token():
    target = {START: {"S": 1.0}, "S": {"s": 0.6, "n": 0.4}, "s": {"s": 0.6, "n": 0.4}}
    expert = {START: {"S": 1.0}, "S": {"s": 0.9, "n": 0.1}, "s": {"s": 0.1, "n": 0.9}}
    models = bigram_models(target, expert, {**expert, "s": {"s": 0.5, "n": 0.5}})
    assert said("proxy-tuning", models) == ["Ssn"]


def test_proxy_tuning_without_a_twin_lies_between_target_and_anchor(pair):
    assert said("proxy-tuning", pair, alpha=0.0) == ["Ss"]
    assert said("proxy-tuning", pair, alpha=1.0) == ["Nn"]


def test_proxy_tuning_scores_are_the_papers_formula():
    q, e, b = (torch.tensor(v) for v in ([0.5, 0.3, 0.2], [0.2, 0.5, 0.3], [0.4, 0.2, 0.4]))
    scores = ProxyTuning(alpha=1.0).scores(q, [e, b])
    assert torch.allclose(scores.softmax(-1), (q * e / b) / (q * e / b).sum())


def test_contrastive_takes_what_the_anchor_prefers_among_the_plausible():
    target = {START: {"S": 0.6, "N": 0.1, "X": 0.0001}, **TAIL}
    anchor = {START: {"S": 0.5, "N": 0.45, "X": 0.02}, **TAIL}
    models = bigram_models(target, anchor)
    assert said("contrastive", models) == ["Nn"]  # the other way round: "Ss"
    assert said("contrastive", models, plausibility=0.01) == ["Xx"]
    assert said("contrastive", models, plausibility=1.0) == ["Ss"]


def test_contrastive_scores_are_the_papers_formula():
    target, anchor = torch.tensor([0.6, 0.1, 0.3]), torch.tensor([0.5, 0.46, 0.04])
    scores = ContrastiveDecoding().scores(target, [anchor])
    assert scores[:2].tolist() == pytest.approx((anchor / target).log()[:2].tolist())
    assert scores[2] == float("-inf")


def test_rain_takes_back_what_it_finds_harmful(pair, monkeypatch):
    def values(self, conversations, replies):
        return [0.1 if "S" in reply else 0.9 for reply in replies]

    monkeypatch.setattr(SelfEvaluation, "values", values)
    assert said("rain", pair, width=3, segment=2) == ["Nn"]


def test_rain_keeps_the_most_probable_segment_that_is_good_enough(pair, monkeypatch):
    monkeypatch.setattr(SelfEvaluation, "values", lambda self, c, replies: [0.85] * len(replies))
    assert said("rain", pair, width=3, segment=2) == ["Ss"]


def test_rain_takes_the_best_where_none_is_good_enough(pair, monkeypatch):
    def values(self, conversations, replies):
        return [0.5 if reply.startswith("X") else 0.2 for reply in replies]

    monkeypatch.setattr(SelfEvaluation, "values", values)
    assert said("rain", pair, width=3, segment=2) == ["Xx"]


def test_rain_evaluates_what_was_kept_together_with_what_is_new(monkeypatch):
    long = {START: {"a": 1.0}, "a": {"b": 0.9, "B": 0.1}, "b": {"c": 1.0}, "B": {"c": 1.0}}
    seen: list[str] = []

    def values(self, conversations, replies):
        seen.extend(replies)
        return [0.0 if "b" in reply else 1.0 for reply in replies]

    monkeypatch.setattr(SelfEvaluation, "values", values)
    models = bigram_models(long, ANCHOR)
    assert said("rain", models, width=2, segment=1, rounds=2) == ["aBc"]
    assert seen[2:] == ["ab", "aB"]


def test_self_evaluation_cancels_a_preference_for_one_letter():
    always_a = bigram_role("target", {START: {"A": 0.9, "B": 0.05}})
    (value,) = SelfEvaluation(always_a).values([ASK[0]], ["text"])
    assert value == pytest.approx(0.5, abs=1e-4)


def test_post_hoc_guard_blocks_the_targets_answer_and_passes_it_otherwise():
    harsh = bigram_models(TARGET, ANCHOR, judge=lambda text: 5.0 if "S" in text else 1.0)
    (answer,) = build_method("post-hoc-guard").answer(harsh, ASK).answers
    assert answer.finish_reason == "content_filter"
    assert answer.text == harsh.config.refusal_text
    assert [c.text for c in answer.candidates] == ["Ss"]
    mild = bigram_models(TARGET, ANCHOR, judge=lambda text: 2.5)
    assert said("post-hoc-guard", mild) == ["Ss"]


def test_best_of_k_takes_the_targets_safest_candidate():
    models = bigram_models(
        TARGET, ANCHOR, judge=lambda text: {"S": 5.0, "N": 2.0}.get(text[0], 1.0)
    )
    (answer,) = build_method("best-of-k").answer(models, ASK).answers
    # The openings are the target's own three best; X is the safest.
    assert [c.text for c in answer.candidates] == ["Ss", "Nn", "Xx"]
    assert answer.text == "Xx"
    assert said("best-of-k", models, beams=2) == ["Nn"]


def test_alignbeam_mixes_and_its_first_step_is_the_mean_of_both(pair):
    (answer,) = build_method("alignbeam", {"beams": 1}).answer(pair, ASK).answers
    assert answer.text == "Nn"
    first = answer.trace[0]
    assert first.prob == pytest.approx((0.25 + 0.9) / 2, abs=1e-3)
    assert said("alignbeam", pair, alpha=0.0, beams=1) == ["Ss"]


def test_sharing_gives_each_point_what_it_gives_alone():
    def judge(text):
        return {"S": 4.0, "N": 2.0, "X": 1.0}.get(text[:1], 3.0)

    models = bigram_models(TARGET, ANCHOR, judge=judge)
    points = [
        build_method("alignbeam", s)
        for s in (
            {"beams": 1},
            {"beams": 2},
            {"beams": 3},
            {"beams": 3, "threshold": 1.0},
            {"beams": 2, "threshold": 1.5},
            {"beams": 2, "unsteered": True, "selection": "least_steered"},
            {"beams": 1, "unsteered": True, "unsteered_threshold": 4.0, "threshold": 4.0},
            {"selection": "least_steered"},
            {"unsteered": True, "selection": "least_steered", "unsteered_threshold": 5.0}
            | {"threshold": 5.0},
        )
    ]
    assert all(shares_work(points[0], p) for p in points)
    together = [a.answers[0] for a in answer_together(points, models, ASK)]
    alone = [p.answer(models, ASK).answers[0] for p in points]
    assert together == alone
    assert len({a.text for a in alone}) == 4


def test_sharing_is_refused_where_the_decoding_differs():
    base = build_method("alignbeam")
    for other in ({"alpha": 0.4}, {"mix_steps": 3}, {"fallback": "first"}, {"bridge": "text"}):
        assert not shares_work(base, build_method("alignbeam", other))
    unmixed = build_method("alignbeam", {"mix_steps": 0})
    assert not shares_work(unmixed, build_method("alignbeam", {"mix_steps": 0, "beams": 1}))


def test_build_method_refuses_unknown_names_settings_and_values():
    with pytest.raises(ConfigError, match="did you mean 'nudging'"):
        build_method("nuding")
    with pytest.raises(ConfigError, match=r"unknown setting 'aplha'; did you mean 'alpha'"):
        build_method("alignbeam", {"aplha": 0.3})
    with pytest.raises(ConfigError, match="alpha must be in"):
        build_method("alignbeam", {"alpha": 1.5})
    with pytest.raises(ConfigError, match="plausibility"):
        build_method("contrastive", {"plausibility": 0.0})


def test_methods_cite_their_papers():
    for name, method in METHODS.items():
        assert method.description
        assert method.citation or name in ("target", "anchor")
