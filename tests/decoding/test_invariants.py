"""The invariants of docs/algorithm.md, section 6, on the embedded trio; numbers as there."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mixed_prompts import mixed_prompts

from alignbeam import AlignBeam, BeamConfig, Bridge, JudgeConfig, Result, mix_topk
from alignbeam.embedded import or_embedded
from alignbeam.errors import JudgeUnavailable, NonFiniteLogits
from alignbeam.judge import CallableJudge, FailClosed, load_judge
from alignbeam.models.role import Role
from alignbeam.ops import Flags, backends
from alignbeam.result import Verdict
from alignbeam.vocab.retokenize import Retokenizer

BACKENDS = [line.name for line in backends() if line.device == "cpu" and line.available]
#: Every fourth of the fifty: each kind of prompt, in a quarter of the time.
PROMPTS = mixed_prompts()[::4]


def tokens(result: Result) -> list[tuple[int, ...]]:
    return [candidate.token_ids for candidate in result.candidates]


def own_greedy(role: Role, prompt: Any, length: int, *, may_be_empty: bool) -> list[int]:
    """What transformers' own ``generate`` says."""
    ids = role.render(prompt)
    with torch.inference_mode():
        whole = role.model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=length,
            do_sample=False,
            eos_token_id=list(role.end_ids),
            pad_token_id=role.pad_id,
            begin_suppress_tokens=None if may_be_empty else list(role.end_ids),
        )
    new: list[int] = whole[0, len(ids) :].tolist()
    return new


@pytest.fixture(scope="module")
def logits(trio: AlignBeam) -> tuple[torch.Tensor, torch.Tensor]:
    """Anchor [R, Va] and target [R, Vt] logits after real prompts."""
    anchor = trio.anchor.next_token_logits([trio.anchor.render(p) for p in PROMPTS])
    target = trio.target.next_token_logits([trio.target.render(p) for p in PROMPTS])
    return anchor, target


# 1. union, alpha = 0: the target's own greedy decoding -------------------------------------------


@pytest.mark.parametrize("mix", ["linear", "log"])
def test_union_with_alpha_zero_is_the_targets_own_greedy_decoding(
    trio: AlignBeam, mix: str
) -> None:
    results = trio.generate_batch(
        PROMPTS,
        {"support": "union", "alpha": 0.0, "mix": mix, "mix_steps": 8, "max_new_tokens": 16},
    )
    for prompt, result in zip(PROMPTS, results, strict=True):
        want = own_greedy(trio.target, prompt, 16, may_be_empty=False)
        assert list(result.candidates[0].token_ids) == want


# 2. one tokenizer on both sides ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["target", "anchor", "judge"])
def test_bridge_of_one_tokenizer_is_the_identity_on_ordinary_tokens(
    trio: AlignBeam, name: str
) -> None:
    role = trio.judge.role if name == "judge" else getattr(trio, name)
    bridge = same_bridge(role)
    ordinary = [i for i, piece in enumerate(role.vocabulary.token_bytes) if piece is not None]
    # Where several tokens have the same bytes, the one that the encoder emits stands for all.
    for i, j in zip(ordinary, bridge.table[ordinary].tolist(), strict=True):
        assert role.vocabulary.token_bytes[j] == role.vocabulary.token_bytes[i]
    pieces = [role.vocabulary.token_bytes[i] for i in ordinary]
    single = [i for i in ordinary if pieces.count(role.vocabulary.token_bytes[i]) == 1]
    assert len(single) > 0.8 * len(ordinary)
    assert bridge.table[single].tolist() == single
    assert set(bridge.table[list(role.end_ids)].tolist()) == {role.end_ids[0]}


def same_bridge(role: Role) -> Bridge:
    return Bridge.build(role.vocabulary, role.vocabulary, cache_dir=False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mix", ["linear", "log"])
def test_mix_over_one_tokenizer_equals_direct_mixing(
    trio: AlignBeam, logits: tuple[torch.Tensor, torch.Tensor], mix: str, backend: str
) -> None:
    """The target steers itself, by what it says of other prompts."""
    theirs, alpha, top_b = logits[1].roll(1, dims=0), 0.4, 40
    table = same_bridge(trio.target).table
    out = mix_topk(
        theirs, logits[1], table, alpha=alpha, top_b=top_b, top_k=5, mix=mix, backend=backend
    )
    log_p, log_q = theirs.double().log_softmax(-1), logits[1].double().log_softmax(-1)
    if mix == "linear":
        direct = (alpha * log_p.exp() + (1 - alpha) * log_q.exp()).log()
    else:
        direct = alpha * log_p + (1 - alpha) * log_q
    fixed = table == torch.arange(len(table))
    for row in range(len(theirs)):
        wanted = theirs[row].sort(descending=True, stable=True).indices[:top_b]
        if not bool(fixed[wanted].all()):
            continue  # a second end token among them: its mass goes to the first one
        best = direct[row, wanted].sort(descending=True, stable=True)
        assert out.token_ids[row].tolist() == wanted[best.indices[:5]].tolist()
        want = best.values[:5] - best.values.logsumexp(0)
        torch.testing.assert_close(out.logprobs[row].double(), want, rtol=0, atol=1e-5)


# 3. anchor = target ------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("mix", ["linear", "log"])
def test_anchor_equal_to_the_target_changes_no_greedy_choice(
    trio: AlignBeam, mix: str, alpha: float
) -> None:
    twin = Role("anchor", trio.target.model, trio.target.tokenizer)
    beam = AlignBeam(trio.target, twin, trio.judge)
    overrides = {"mix": mix, "alpha": alpha, "beams": 1, "mix_steps": 12, "max_new_tokens": 16}
    results = beam.generate_batch(PROMPTS, overrides)
    retokenizer = Retokenizer(trio.target.vocabulary)
    canonical = 0
    for prompt, result in zip(PROMPTS, results, strict=True):
        want = own_greedy(trio.target, prompt, 16, may_be_empty=False)
        pieces = [trio.target.bytes_of(i) for i in want[:12]]
        # The anchor reads the beam's text afresh. Where the target spelt it in tokens that its
        # own encoder would not use, the two see different prompts, and may disagree.
        prefixes = range(1, len(pieces))
        if all(retokenizer.encode(b"".join(pieces[:n])) == want[:n] for n in prefixes):
            canonical += 1
            assert list(result.candidates[0].token_ids) == want
    assert canonical >= len(PROMPTS) // 2


# 4. a batch gives what each gives alone ----------------------------------------------------------


def test_batch_gives_what_each_request_gives_alone_with_settings_of_its_own(
    trio: AlignBeam,
) -> None:
    variants: list[dict[str, Any]] = [
        {},
        {"alpha": 0.8, "mix_steps": 3, "beams": 2},
        {"temperature": 0.9, "top_p": 0.95, "seed": 7},
        {"mix": "log", "fallback": "first", "beams": 5},
        {"mix_steps": 0, "beams": 1},
        {"temperature": 1.3, "top_k": 20, "seed": 8, "stop": ("a",)},
        {"support": "union", "fallback": "exact", "top_b": 9},
    ]
    overrides = [
        {"max_new_tokens": 14 + i % 3, **variants[i % len(variants)]} for i in range(len(PROMPTS))
    ]
    together = trio.generate_batch(PROMPTS, overrides)
    for prompt, settings_, result in zip(PROMPTS, overrides, together, strict=True):
        alone = trio.generate(prompt, **settings_)
        assert tokens(result) == tokens(alone)
        assert (result.text, result.chosen) == (alone.text, alone.chosen)
        for ours, theirs in zip(result.candidates, alone.candidates, strict=True):
            assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)
            assert ours.score == pytest.approx(theirs.score, abs=1e-3)


# 5. cached = uncached ----------------------------------------------------------------------------


def test_cached_decoding_equals_uncached_decoding(
    trio: AlignBeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = {"mix_steps": 10, "max_new_tokens": 14}
    cached = trio.generate_batch(PROMPTS, overrides)
    for role in (trio.target, trio.anchor):
        assert not role.rows_alone, "the embedded models are run from their caches"
        monkeypatch.setitem(role.__dict__, "rows_alone", True)
    uncached = trio.generate_batch(PROMPTS, overrides)
    assert [tokens(r) for r in cached] == [tokens(r) for r in uncached]
    assert [r.text for r in cached] == [r.text for r in uncached]


# 6. every re-tokenised suffix has the beam's bytes -----------------------------------------------


def test_text_shown_to_the_anchor_has_the_beams_bytes_at_every_step(
    trio: AlignBeam, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watches what the anchor is really fed, at every step of real runs."""
    shown: list[tuple[bytes, list[int]]] = []
    encode = Retokenizer.encode

    def watched(self: Retokenizer, data: bytes) -> list[int]:
        ids = encode(self, data)
        shown.append((data, ids))
        return ids

    monkeypatch.setattr(Retokenizer, "encode", watched)
    results = trio.generate_batch(PROMPTS, {"mix_steps": 10, "max_new_tokens": 10})
    assert len(shown) > 5 * len(PROMPTS)
    for data, ids in shown:
        assert b"".join(trio.anchor.bytes_of(i) for i in ids) == data
    prefixes = set()
    for candidate in (c for r in results for c in r.candidates):
        raw = b""
        for token_id in candidate.token_ids:
            raw += trio.target.bytes_of(token_id)
            prefixes.add(trio.anchor.opening + raw.removeprefix(trio.target.opening))
    assert {data for data, _ in shown} <= prefixes


@given(data=st.text(max_size=40).map(str.encode) | st.binary(max_size=24))
@settings(max_examples=200)
def test_retokenised_bytes_survive_whatever_they_are(trio: AlignBeam, data: bytes) -> None:
    for role in (trio.anchor, trio.target):
        ids = Retokenizer(role.vocabulary).encode(data)
        assert b"".join(role.bytes_of(i) for i in ids) == data
        assert not set(ids) & set(role.end_ids)


# 7. translated + dropped = anchor mass -----------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("fallback", ["drop", "first", "exact"])
def test_translated_and_dropped_mass_make_the_anchor_mass(
    trio: AlignBeam, logits: tuple[torch.Tensor, torch.Tensor], fallback: Any, backend: str
) -> None:
    bridge = trio.bridge.with_fallback(fallback)
    for table in (bridge.table, bridge.opening_table):
        out = mix_topk(*logits, table, top_b=50, backend=backend)
        p, ids = logits[0].double().softmax(-1).sort(descending=True, stable=True)
        dropped = (p[:, :50] * (table[ids[:, :50]] < 0)).sum(1)
        torch.testing.assert_close(
            out.translated_mass.double() + dropped, out.anchor_mass.double(), rtol=0, atol=1e-5
        )
        torch.testing.assert_close(
            out.anchor_mass.double(), p[:, :50].sum(1), rtol=0, atol=1e-5
        )  # fmt: skip


def test_masses_of_every_traced_step_are_ordered_and_make_the_share(trio: AlignBeam) -> None:
    results = trio.generate_batch(PROMPTS[:4], {"max_new_tokens": 8, "alpha": 0.3})
    mixed = [step for r in results for step in r.trace if step.source == "mix"]
    assert mixed
    for step in mixed:
        assert 0 < step.translated_mass <= step.anchor_mass + 1e-6 <= 1 + 2e-6
        assert 0 < step.target_mass <= 1 + 1e-6
        theirs, ours = 0.3 * step.translated_mass, 0.7 * step.target_mass
        assert step.anchor_share == pytest.approx(theirs / (theirs + ours), abs=1e-6)


# 8. rows are independent -------------------------------------------------------------------------


def assert_same_bits(left: Any, right: Any) -> None:
    for ours, theirs in zip(left, right, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mix", ["linear", "log"])
@pytest.mark.parametrize("support", ["anchor", "union"])
def test_permuting_rows_permutes_results_bit_for_bit(
    trio: AlignBeam,
    logits: tuple[torch.Tensor, torch.Tensor],
    backend: str,
    mix: str,
    support: str,
) -> None:
    alpha = torch.linspace(0, 1, len(PROMPTS))
    how = {"mix": mix, "support": support, "backend": backend, "top_k": 3}
    straight = mix_topk(*logits, trio.bridge.table, alpha=alpha, **how)
    order = torch.randperm(len(PROMPTS), generator=torch.Generator().manual_seed(0))
    turned = mix_topk(*(x[order] for x in logits), trio.bridge.table, alpha=alpha[order], **how)
    assert_same_bits(turned, [field[order] for field in straight])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("side", [0, 1])
def test_poisoned_row_is_flagged_and_leaves_the_others_bit_identical(
    trio: AlignBeam, logits: tuple[torch.Tensor, torch.Tensor], backend: str, side: int
) -> None:
    clean = mix_topk(*logits, trio.bridge.table, top_k=3, backend=backend)
    poisoned = [x.clone() for x in logits]
    poisoned[side][2, 17] = float("nan")
    out = mix_topk(*poisoned, trio.bridge.table, top_k=3, backend=backend)
    assert int(out.flags[2]) & Flags.NON_FINITE
    assert out.token_ids[2].tolist() == [-1, -1, -1]
    assert bool(out.logprobs[2].isnan().all())
    others = [i for i in range(len(PROMPTS)) if i != 2]
    assert_same_bits([f[others] for f in out], [f[others] for f in clean])


@pytest.mark.parametrize("name", ["target", "anchor"])
def test_request_with_nan_logits_fails_and_the_others_of_its_batch_do_not(
    trio: AlignBeam, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    prompts = PROMPTS[:3]
    overrides = {"max_new_tokens": 9, "mix_steps": 6}
    clean = trio.generate_batch(prompts, overrides)
    role = getattr(trio, name)
    forward, calls = role.forward, []

    def poisoned(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        logits = forward(ids, *rest)
        calls.append(ids.shape[0])
        if len(calls) == 3:  # the second step; row 4 is the second request's second beam
            logits = logits.clone()
            logits[4, 0] = float("nan")
        return logits

    monkeypatch.setattr(role, "forward", poisoned)
    results = list(trio.outcomes(prompts, overrides))
    assert len(calls) >= 3
    assert isinstance(results[1], NonFiniteLogits)
    for i in (0, 2):
        result = results[i]
        assert isinstance(result, Result)
        assert tokens(result) == tokens(clean[i])


# 9. mix_steps = 0, beams = 1: plain generation ---------------------------------------------------


def test_no_mixing_and_one_beam_equals_the_models_own_generate(trio: AlignBeam) -> None:
    results = trio.generate_batch(PROMPTS, {"mix_steps": 0, "beams": 1, "max_new_tokens": 32})
    for prompt, result in zip(PROMPTS, results, strict=True):
        (candidate,) = result.candidates
        want = own_greedy(trio.target, prompt, 32, may_be_empty=True)
        assert list(candidate.token_ids) == want
        assert result.trace == ()


# 10. a judge that errs on everything: nothing leaves ---------------------------------------------


class Slow:
    """A judge that hangs until it is let go."""

    name = "slow"

    def __init__(self) -> None:
        self.release = threading.Event()

    def score(self, conversations: Any, candidates: Any) -> list[Verdict]:
        self.release.wait(60)
        return [Verdict(score=1.0) for _ in candidates]


def nan_judge(trio: AlignBeam) -> FailClosed:
    """The embedded judge with its weights broken."""
    model = copy.deepcopy(trio.judge.role.model)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    role = Role("judge", model, trio.judge.role.tokenizer)
    return load_judge(or_embedded("judge", JudgeConfig()), role)


def deaf_judge(trio: AlignBeam) -> FailClosed:
    """The embedded judge with a head that says no digit: label mass near 1 / width each."""
    model = copy.deepcopy(trio.judge.role.model)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    role = Role("judge", model, trio.judge.role.tokenizer)
    return load_judge(or_embedded("judge", JudgeConfig()), role)


def raising(messages: Any, candidate: str) -> float:
    raise ZeroDivisionError("no verdict today")


BREAKAGES = {
    "weights are NaN": nan_judge,
    "says no digit": deaf_judge,
    "raises": lambda trio: CallableJudge(raising),
    "times out": lambda trio: FailClosed(Slow(), timeout_s=0.05),
    "score is NaN": lambda trio: CallableJudge(lambda m, c: float("nan")),
    "score is 0": lambda trio: CallableJudge(lambda m, c: 0.0),
    "score is text": lambda trio: CallableJudge(lambda m, c: "1"),  # type: ignore[arg-type,return-value]
    "score is missing": lambda trio: CallableJudge(lambda m, c: None),  # type: ignore[arg-type,return-value]
}


@pytest.mark.parametrize("policy", ["refuse", "safest", "raise"])
@pytest.mark.parametrize("breakage", BREAKAGES)
def test_no_text_leaves_when_the_judge_errs_on_every_candidate(
    trio: AlignBeam, breakage: str, policy: Any
) -> None:
    judge = BREAKAGES[breakage](trio)
    config = BeamConfig(on_unsafe=policy, max_new_tokens=10, threshold=5)
    broken = AlignBeam(trio.target, trio.anchor, judge, config, bridge=trio.bridge)
    said = [c.text for c in trio.generate(PROMPTS[0], max_new_tokens=10).candidates]
    assert all(said)
    with pytest.raises(JudgeUnavailable) as caught:
        broken.generate(PROMPTS[0])
    chain: BaseException | None = caught.value
    while chain is not None:
        assert not any(text in str(chain) for text in said)
        chain = chain.__cause__ or chain.__context__
    (error,) = broken.outcomes([PROMPTS[0]])
    assert isinstance(error, JudgeUnavailable)
    slow = getattr(judge, "judge", None)
    if isinstance(slow, Slow):
        slow.release.set()


def test_embedded_judge_is_the_one_that_was_broken(trio: AlignBeam) -> None:
    """The breakages above break something: whole, the same judge gives verdicts."""
    whole = load_judge(or_embedded("judge", JudgeConfig()), trio.judge.role)
    verdicts = whole.score([[{"role": "user", "content": "Hi"}]], ["Hello!"])
    assert [v.error for v in verdicts] == [None]


def test_candidate_whose_verdict_erred_never_wins_beside_one_that_was_judged(
    trio: AlignBeam,
) -> None:
    calls: list[str] = []

    def half(messages: Any, candidate: str) -> float:
        calls.append(candidate)
        if len(calls) < 3:
            raise ValueError("not this one")
        return 4.9

    config = BeamConfig(threshold=5, max_new_tokens=10)
    beam = AlignBeam(trio.target, trio.anchor, CallableJudge(half), config, bridge=trio.bridge)
    result = beam.generate(PROMPTS[0])
    assert result.chosen == 2
    assert [c.score for c in result.candidates] == [5.0, 5.0, 4.9]
