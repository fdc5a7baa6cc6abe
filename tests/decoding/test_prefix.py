"""``fallback="prefix"``: what a longer anchor token says of the bytes after it is kept."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from typing import Any

import pytest
import torch
from mixed_prompts import mixed_prompts
from naive.decode import Model, Pair, Settings, decode
from tiny_models import length_scorer, random_pair, random_role, swapped_pair
from vocab_strategies import byte_level, sentencepiece

from alignbeam import AlignBeam, BeamConfig, Bridge
from alignbeam.decoding.remainders import Followed, Remainders
from alignbeam.errors import AlignBeamError
from alignbeam.judge import CallableJudge
from alignbeam.models.role import Role
from alignbeam.ops import mix_topk
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes, split_utf8
from alignbeam.vocab.vocabulary import Vocabulary

PROMPTS = mixed_prompts()[::9]
CONFIG = BeamConfig(fallback="prefix", mix_steps=10, max_new_tokens=12)
SETTINGS: list[dict[str, Any]] = [
    {},
    {"mix": "log", "support": "union"},
    {"alpha": 1.0, "beams": 5},
    {"alpha": 0.8, "top_b": 3},
    {"alpha": 0.9, "support": "union", "stop": ("e", "a")},
]
#: See ``test_second_writing``.
NEAR_TIE = 1e-5


def beam_of(target: Role, anchor: Role, config: BeamConfig = CONFIG) -> AlignBeam:
    judge = CallableJudge(lambda messages, text: length_scorer(messages[-1]["content"], text))
    return AlignBeam(target, anchor, judge, config)


def naive_pair(target: Role, anchor: Role) -> Pair:
    """The tables too are made here, from bytes alone."""

    def padded(role: Role) -> list[bytes | None]:
        return role.vocabulary.text_bytes

    retokenizer = Retokenizer(anchor.vocabulary)

    def retokenize(data: bytes) -> list[int] | None:
        try:
            return retokenizer.encode(data)
        except UnspellableBytes:
            return None

    # Where several ids have the same bytes, the one that the target's encoder emits.
    own = Bridge.build(target.vocabulary, target.vocabulary, cache_dir=False).table.tolist()
    ids = {piece: own[i] for i, piece in enumerate(padded(target)) if piece}
    pair = Pair(
        target=Model(target.model),
        anchor=Model(anchor.model),
        target_bytes=padded(target),
        target_ends=list(target.end_ids),
        target_opening=target.opening,
        anchor_bytes=padded(anchor),
        anchor_opening=anchor.opening,
        retokenize=retokenize,
        unfinished=lambda data: bool(split_utf8(data)[1]),
        table=[],
        opening_table=[],
        ids=ids,
    )

    def longest(piece: bytes | None) -> int:
        ends = (n for n in range(len(piece or b""), 0, -1) if piece and piece[:n] in ids)
        n = next(ends, 0)
        return ids[piece[:n]] if piece and n else -1

    for i, piece in enumerate(padded(anchor)):
        rest = piece and piece.removeprefix(anchor.opening)
        pair.opening_table.append(longest(rest and target.opening + rest))
        pair.table.append(target.end_ids[0] if i in anchor.end_ids else longest(piece))
    return pair


@pytest.mark.parametrize("make", [random_pair, swapped_pair])
def test_controller_gives_the_second_writings_tokens(make: Any) -> None:
    target, anchor = make()
    beam, pair = beam_of(target, anchor), naive_pair(target, anchor)
    jobs = [(prompt, settings) for settings in SETTINGS for prompt in PROMPTS]
    results = beam.generate_batch([p for p, _ in jobs], [s for _, s in jobs], batch_size=7)
    near = inside = 0
    for (prompt, settings), result in zip(jobs, results, strict=True):
        naive_settings = Settings(**{"mix_steps": 10, "max_new_tokens": 12, **settings})
        prompts = target.render(prompt), anchor.render(prompt)
        beams = decode(pair, naive_settings, *prompts)
        assert len(beams) == len(result.candidates)
        for ours, naive in zip(result.candidates, beams, strict=True):
            pairs = enumerate(zip(ours.token_ids, naive.ids, strict=False))
            parted = next((i for i, (left, right) in pairs if left != right), None)
            if parted is None:
                assert len(ours.token_ids) == len(naive.ids)
                assert ours.logprob == pytest.approx(naive.logprob, abs=1e-4)
                inside += list(naive.owed) != [b""]
            else:
                assert naive.gaps[parted] < NEAR_TIE, (prompt, settings)
                near += 1
    assert near <= 0.01 * sum(len(r.candidates) for r in results)
    assert inside > 3, "some beams must have ended their mixing inside a token of the anchor's"


@pytest.mark.parametrize("anchor_is", ["byte-level", "sentencepiece"])
def test_target_that_draws_from_the_mix_at_alpha_1_says_what_the_anchor_says(
    anchor_is: str,
) -> None:
    """The law of the text is the anchor's, whatever the tokens: nothing is lost, nothing added."""
    corpus = ("abab abba abbab bab b a abracadabra abra",) * 4
    tokenizers = byte_level(corpus, 280, regex=False), sentencepiece(corpus[:1], 12)
    if anchor_is == "sentencepiece":
        tokenizers = sentencepiece(corpus, 60), byte_level(("ab",), 258)
    anchor, target = (Vocabulary.of(tokenizer) for tokenizer in tokenizers)
    bridge = Bridge.build(anchor, target, "prefix", cache_dir=False)
    followed = Followed(bridge, torch.ones(anchor.width, dtype=torch.bool))
    usable = [i for i, text in enumerate(anchor.text_bytes) if text and set(text) <= set(b"ab ")]
    assert sum(len(bridge.spelling(i)) > 1 for i in usable) > 3
    (end,) = anchor.end_ids
    longest = 5

    def says(text: bytes) -> torch.Tensor:
        """The anchor's logits after a text, float32 [Va]."""
        logits = torch.full((anchor.width,), -math.inf)
        if len(text) >= longest:
            logits[end] = 0.0
        else:
            draw = torch.Generator().manual_seed(sum(text) + 1000 * len(text))
            chosen = [usable[int(i)] for i in torch.randperm(len(usable), generator=draw)[:4]]
            logits[chosen] = torch.randn(4, generator=draw)
            logits[end] = -1.0
        return logits

    want: dict[bytes, float] = defaultdict(float)

    def anchor_alone(text: bytes, weight: float) -> None:
        for i, p in enumerate(says(text).softmax(0).tolist()):
            if i == end:
                want[text] += weight * p
            elif p:
                anchor_alone(text + (anchor.text_bytes[i] or b""), weight * p)

    got: dict[bytes, float] = defaultdict(float)
    splits = []
    own_table, wide_table = bridge.table.long(), followed.table(bridge.table).long()

    def mixed(text: bytes, standing: Remainders | None, weight: float) -> None:
        asked = standing is None or standing.free > 0
        said = says(text)
        p, table = said.softmax(0).double(), own_table
        if standing is not None:
            p = followed.mixed(said[None], [standing], [asked])[0].double().exp()
            table = wide_table
        share = torch.zeros(target.width, dtype=torch.float64)
        share.index_add_(0, table[table >= 0], p[table >= 0])
        assert float(share.sum()) == pytest.approx(1.0, abs=1e-6)
        for d in share.nonzero()[:, 0].tolist():
            if d in target.end_ids:
                got[text] += weight * float(share[d])
                continue
            after = followed.after(d, said if asked else None, standing)
            splits.append(after is not None)
            mixed(text + target.bytes_of(d), after, weight * float(share[d]))

    anchor_alone(b"", 1.0)
    mixed(b"", None, 1.0)
    assert sum(splits) > 20
    assert set(got) == set(want)
    for text, p in want.items():
        assert got[text] == pytest.approx(p, abs=1e-6)


def test_one_vocabulary_on_both_sides_is_mixed_as_under_any_other_fallback() -> None:
    target = random_role("target", "llama", seed=0)
    anchor = random_role("anchor", "qwen2", seed=1)
    beam = beam_of(target, anchor)
    for settings in SETTINGS:
        prefix = beam.generate_batch(PROMPTS, settings)
        drop = beam.generate_batch(PROMPTS, {**settings, "fallback": "drop"})
        assert [r.candidates for r in prefix] == [r.candidates for r in drop]


def test_batch_gives_what_each_request_gives_alone_beside_other_fallbacks() -> None:
    beam = beam_of(*random_pair())
    settings = [
        {"fallback": fallback, "alpha": alpha}
        for fallback in ("prefix", "first")
        for alpha in (0.7, 1.0)
    ]
    prompts = PROMPTS[: len(settings)]
    together = beam.generate_batch(prompts, settings)
    for prompt, own, result in zip(prompts, settings, together, strict=True):
        alone = beam.generate(prompt, **own)
        assert [c.token_ids for c in alone.candidates] == [c.token_ids for c in result.candidates]


def test_step_that_failed_is_taken_up_inside_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    beam = beam_of(*random_pair())
    want = beam.generate_batch(PROMPTS[:2], {"alpha": 1.0})
    forward, calls = beam.anchor.forward, []

    def failing(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) == 5:
            raise RuntimeError("out of luck")
        return forward(*given)

    monkeypatch.setattr(beam.anchor, "forward", failing)
    got = beam.generate_batch(PROMPTS[:2], {"alpha": 1.0})
    assert len(calls) > 5
    for mine, due in zip(got, want, strict=True):
        assert [c.token_ids for c in mine.candidates] == [c.token_ids for c in due.candidates]


def test_end_of_the_anchor_is_the_targets_end_and_opens_no_beam() -> None:
    target, anchor = random_pair()
    beam = beam_of(target, anchor)
    ended = 0
    for result in beam.generate_batch(PROMPTS, {"alpha": 1.0, "beams": 8, "mix_steps": 12}):
        for step in (s for s in result.trace if s.source == "mix"):
            assert not set(step.token_ids) & set(target.end_ids[1:])
            ended += target.end_ids[0] in step.token_ids
            assert step.step > 0 or target.end_ids[0] not in step.token_ids
    assert ended


def test_anchor_with_nan_fails_its_request_inside_a_token_too() -> None:
    bridge = Bridge.build(*(r.vocabulary for r in reversed(random_pair())), "prefix")
    followed = Followed(bridge, torch.ones(bridge.anchor_width, dtype=torch.bool))
    whole = torch.tensor([1])
    standing = Remainders(whole, bridge.starts[whole].long(), torch.tensor([0.5]).double(), 0.5)
    logits = torch.zeros(1, bridge.anchor_width)
    logits[0, 7] = math.nan
    target = torch.zeros(1, bridge.target_width)
    table = followed.table(bridge.table)
    for heard, flagged in ((True, 2), (False, 0)):
        columns = followed.mixed(logits, [standing], [heard])
        assert int(mix_topk(columns, target, table).flags[0]) == flagged


def test_trace_shows_the_token_that_the_target_is_in_the_middle_of() -> None:
    target, anchor = random_pair()
    beam = beam_of(target, anchor)
    results = beam.generate_batch(PROMPTS, {"alpha": 1.0, "beams": 5})
    shown = 0
    for step in (s for r in results for s in r.trace if s.source == "mix"):
        assert step.translated_mass <= step.anchor_mass + 1e-6 <= 1 + 1e-5
        assert sum(wish.prob for wish in step.anchor_wishes) <= 1 + 1e-5
        shown += any(len(w.text.encode()) > len(step.text.encode()) for w in step.anchor_wishes)
    assert shown


def test_request_whose_bridge_was_matched_by_text_is_refused() -> None:
    target, anchor = random_pair()
    bridge = Bridge.build(anchor.vocabulary, target.vocabulary, method="text", cache_dir=False)
    beam = dataclasses.replace(CONFIG, beams=1)
    judge = CallableJudge(lambda messages, text: 1.0)
    (outcome,) = AlignBeam(target, anchor, judge, beam, bridge=bridge).outcomes(["Hello"])
    assert isinstance(outcome, AlignBeamError)
    assert "prefix" in str(outcome)
