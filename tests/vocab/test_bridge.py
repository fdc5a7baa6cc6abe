"""The bridge against a second, naive reading of its definition; its cache; its bad input."""

import functools
import os
import random
import unicodedata
import warnings
from collections import defaultdict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save as safetensors_bytes
from vocab_strategies import (
    CAUSAL,
    CORPUS,
    PAIRS,
    SENTENCEPIECE,
    byte_level,
    real,
    sentencepiece,
    small_tokenizers,
)

from alignbeam.errors import BridgeError, TokenizerError
from alignbeam.vocab import bridge_cache, matching, vocabulary
from alignbeam.vocab.bridge import Bridge, Kind
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.plain_text import plain_encode
from alignbeam.vocab.retokenize import Retokenizer, UnspellableBytes
from alignbeam.vocab.token_bytes import token_bytes
from alignbeam.vocab.vocabulary import Vocabulary

SAMPLED_IDS = 400
FALLBACKS = ("drop", "first", "exact")
# Each vocabulary once as anchor and once as target, built in full.
RING = list(zip(CAUSAL, (*CAUSAL[1:], CAUSAL[0]), strict=True))


@functools.cache
def vocabulary_of(name):
    return Vocabulary.of(real(name))


def bytes_of(name):
    return vocabulary_of(name).token_bytes


@functools.cache
def ids_by_bytes(name):
    index = defaultdict(list)
    ends = end_token_ids(real(name))
    for token_id, piece in enumerate(bytes_of(name)):
        if piece and token_id not in ends:
            index[piece].append(token_id)
    return index


def build(anchor, target, *, cache_dir=False, **settings):
    """Build from two tokenizers; ``anchor_width`` is the anchor's ``width``, and so on."""
    pair = []
    for name, tokenizer in (("anchor", anchor), ("target", target)):
        own = {key for key in settings if key.startswith(f"{name}_")}
        own = {key.removeprefix(f"{name}_"): settings.pop(key) for key in own}
        pair.append(Vocabulary.of(tokenizer, name=name, **own))
    return Bridge.build(*pair, cache_dir=cache_dir, **settings)


def is_text(piece):
    try:
        piece.decode()
    except UnicodeDecodeError:
        return False
    return True


def entries(matches, kinds):
    return [(Kind(k), i) for k, i in zip(kinds.tolist(), matches.tolist(), strict=True)]


# --- the definition, once more, one token at a time -----------------------------------------------


def encoded_by_itself(name, text):
    """Mid-text ids from the untouched tokenizer: after a line end, which then is cut off."""
    if name in SENTENCEPIECE:
        ids = real(name).encode("\n" + text, add_special_tokens=False, split_special_tokens=True)
        assert real(name).convert_ids_to_tokens(ids[:2]) == ["▁", "<0x0A>"]
        return ids[2:]
    return real(name).encode(text, add_special_tokens=False, split_special_tokens=True)


def naive_match(piece, name):
    """Section 2 for the bytes of one anchor token: kind and target id."""
    if not piece:
        return Kind.NONE, -1
    same = ids_by_bytes(name).get(piece, [])
    try:
        text = piece.decode()
    except UnicodeDecodeError:
        if same:
            return Kind.EXACT, min(same)
        try:
            return Kind.MULTI, Retokenizer(vocabulary_of(name)).encode(piece)[0]
        except UnspellableBytes:
            return Kind.NONE, -1
    ids = encoded_by_itself(name, text)
    if same:
        return Kind.EXACT, ids[0] if len(ids) == 1 and ids[0] in same else min(same)
    spelled = b"".join(bytes_of(name)[i] or b"?" for i in ids)
    kept = (text, unicodedata.normalize("NFC", text), text.replace("▁", " "))
    if spelled not in [form.encode() for form in kept]:
        return Kind.NONE, -1
    return (Kind.SINGLE if len(ids) == 1 else Kind.MULTI), ids[0]


@pytest.mark.parametrize(("anchor", "target"), PAIRS)
def test_bridge_matches_as_the_naive_reading_does_on_sampled_ids(anchor, target):
    pieces = bytes_of(anchor)
    draw = random.Random(f"{anchor} {target}")
    sampled = {*range(40), *range(len(pieces) - 20, len(pieces))}
    sampled |= set(draw.sample(range(len(pieces)), SAMPLED_IDS))
    # Text that holds an added token's name is encoded apart from it by the bridge, never here.
    names = [t.content.encode() for t in real(target).added_tokens_decoder.values()]
    names = [name for name in names if name.startswith(b"<")]
    sampled = {
        i for i in sampled if pieces[i] is None or not any(name in pieces[i] for name in names)
    }
    ends = end_token_ids(real(anchor))
    sample = Vocabulary.of(real(anchor))
    vars(sample)["token_bytes"] = [p if i in sampled else None for i, p in enumerate(pieces)]
    tables = matching.by_bytes(sample, vocabulary_of(target))
    got = entries(tables.matches, tables.kinds)
    for i in sorted(sampled - set(ends)):
        assert got[i] == naive_match(pieces[i], target), (i, pieces[i])
    for i in ends:
        assert got[i] == (Kind.END, end_token_ids(real(target))[0])


@pytest.mark.parametrize(("anchor", "target"), RING)
def test_bridge_is_right_for_every_id_of_a_whole_vocabulary(anchor, target):
    pieces, index = bytes_of(anchor), ids_by_bytes(target)
    bridge = build(real(anchor), real(target), anchor_width=len(pieces) + 64)
    kinds, table = bridge.kinds.tolist(), bridge.table.tolist()
    ends = end_token_ids(real(anchor))
    for i, piece in enumerate(pieces):
        if i in ends:
            assert kinds[i] == Kind.END
        elif piece is None:
            assert (kinds[i], table[i]) == (Kind.NONE, -1)
        elif piece in index:
            assert kinds[i] == Kind.EXACT
            assert table[i] in index[piece]
        else:
            assert kinds[i] in (Kind.SINGLE, Kind.MULTI, Kind.NONE)
    assert kinds[len(pieces) :] == [Kind.NONE] * 64
    assert table[len(pieces) :] == [-1] * 64

    opening = bridge.opening_table.tolist()
    expected = [-1 if i in ends else d for i, d in enumerate(table)]
    assert opening == expected
    coverage = bridge.coverage()
    assert sum(part.count for part in coverage.kinds.values()) == bridge.anchor_width
    assert coverage.translated.count == sum(d >= 0 for d in table)


@pytest.mark.parametrize("name", CAUSAL)
def test_bridge_is_the_identity_on_the_same_tokenizer(name):
    """Invariant 2. Where several ids have the same bytes, all go to the one that is emitted."""
    bridge = build(real(name), real(name))
    table = bridge.table.tolist()
    ends = set(end_token_ids(real(name)))
    for i, piece in enumerate(bytes_of(name)):
        if piece is None or i in ends:
            continue
        twins = ids_by_bytes(name)[piece]
        chosen = table[i]
        assert chosen in twins
        assert table[chosen] == chosen
        if len(twins) == 1:
            assert chosen == i


@pytest.mark.parametrize("name", ["llama-spm", "mpt", "deepseek-coder"])
def test_bridge_picks_of_twins_the_one_the_encoder_emits(name):
    twins = {piece: ids for piece, ids in ids_by_bytes(name).items() if len(ids) > 1}
    assert twins
    bridge = build(real(name), real(name))
    for piece, ids in twins.items():
        emitted = encoded_by_itself(name, piece.decode())
        expected = emitted[0] if len(emitted) == 1 and emitted[0] in ids else min(ids)
        assert {int(bridge.table[i]) for i in ids} == {expected}


def test_bridge_sends_the_pieces_of_a_character_to_the_same_bytes():
    anchor, target = real("qwen2"), real("llama-bpe")
    bridge = build(anchor, target)
    exact = [
        i
        for i, piece in enumerate(bytes_of("qwen2"))
        if piece and not is_text(piece) and bridge.kinds[i] == Kind.EXACT
    ]
    assert len(exact) > 900
    for i in exact:
        assert bytes_of("llama-bpe")[int(bridge.table[i])] == bytes_of("qwen2")[i]


def test_bridge_does_not_translate_a_text_that_the_target_would_lose_bytes_of():
    """Falcon has no token for some control bytes, and its BPE drops them in silence."""
    bridge = build(real("mpt"), real("falcon"))
    i = bytes_of("mpt").index(b"\\\x03")
    assert plain_encode(real("falcon"), "\\\x03") == plain_encode(real("falcon"), "\\")
    assert bridge.kinds[i] == Kind.NONE


# --- small vocabularies ---------------------------------------------------------------------------


@given(anchor=small_tokenizers(), target=small_tokenizers(), padding=st.integers(0, 9))
def test_bridge_keeps_its_promises_for_any_two_vocabularies(anchor, target, padding):
    a_bytes, t_bytes = token_bytes(anchor), token_bytes(target)
    bridge = build(anchor, target, anchor_width=len(a_bytes) + padding, fallback="first")
    known = {piece for i, piece in enumerate(t_bytes) if i != target.eos_token_id}
    for i, (kind, d) in enumerate(entries(bridge.table, bridge.kinds)):
        piece = a_bytes[i] if i < len(a_bytes) else None
        if i == anchor.eos_token_id:
            assert (kind, d) == (Kind.END, target.eos_token_id)
        elif kind == Kind.EXACT:
            assert t_bytes[d] == piece
        elif kind == Kind.NONE:
            assert d == -1
            assert not piece or piece not in known
        else:
            assert piece not in known
            assert t_bytes[d]
            if kind == Kind.MULTI and "NFC" not in str(target.backend_tokenizer.normalizer):
                # "▁" is a blank to one spelling and three bytes of its own to the other.
                blank = piece.replace("▁".encode(), b" ")
                assert piece.startswith(t_bytes[d]) or blank.startswith(t_bytes[d])
    assert sum(p.count for p in bridge.coverage().kinds.values()) == bridge.anchor_width


@given(tokenizer=small_tokenizers())
def test_bridge_to_itself_keeps_every_token_that_its_encoder_emits(tokenizer):
    bridge = build(tokenizer, tokenizer)
    table = token_bytes(tokenizer)
    for text in CORPUS:
        for i in plain_encode(tokenizer, text):
            assert table[int(bridge.table[i])] == table[i]


def small_pair():
    return byte_level(nfc=False), sentencepiece()


def test_bridge_fallbacks_use_the_kinds_they_promise():
    anchor = byte_level((*CORPUS, *["e\u0301"] * 50), regex=False)
    target = byte_level((*CORPUS, "é " * 50), nfc=True)
    kinds = {
        "exact": {Kind.EXACT, Kind.END},
        "drop": {Kind.EXACT, Kind.END, Kind.SINGLE},
        "first": {Kind.EXACT, Kind.END, Kind.SINGLE, Kind.MULTI},
    }
    present = {Kind(k) for k in build(anchor, target).kinds.tolist()}
    assert present >= {Kind.EXACT, Kind.END, Kind.SINGLE, Kind.MULTI}
    for fallback in FALLBACKS:
        bridge = build(anchor, target, fallback=fallback)
        used = {Kind(k) for k in bridge.kinds[bridge.table >= 0].tolist()}
        assert used == kinds[fallback]


def test_bridge_with_fallback_equals_a_bridge_built_with_it():
    anchor, target = small_pair()
    bridge = build(anchor, target)
    for fallback in FALLBACKS:
        rebuilt = build(anchor, target, fallback=fallback)
        assert torch.equal(bridge.with_fallback(fallback).table, rebuilt.table)
        assert torch.equal(bridge.with_fallback(fallback).opening_table, rebuilt.opening_table)


def test_bridge_sends_every_end_of_the_anchor_to_the_targets_first():
    anchor, target = small_pair()
    bridge = build(anchor, target, anchor_end_ids=[300, 0], target_end_ids=[290, 2])
    assert bridge.table[[300, 0]].tolist() == [290, 290]
    assert bridge.opening_table[[300, 0]].tolist() == [-1, -1]
    # Ordinary text never leads to an end, not even to one that is an ordinary token otherwise.
    others = [i for i in range(bridge.anchor_width) if i not in (0, 300)]
    assert not set(bridge.with_fallback("first").table[others].tolist()) & {290, 2}


# --- openings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("anchor_opening", "target_opening"), [(b"", b" "), (b" ", b""), (b" ", b" "), (b"\n", b" ")]
)
def test_opening_table_exchanges_one_opening_for_the_other(anchor_opening, target_opening):
    anchor, target = small_pair()
    a_bytes, t_bytes = token_bytes(anchor), token_bytes(target)
    bridge = build(anchor, target, anchor_opening=anchor_opening, target_opening=target_opening)
    known = set(t_bytes) - {None}
    translated = 0
    for i, piece in enumerate(a_bytes):
        entry = int(bridge.opening_table[i])
        rest = piece and piece.removeprefix(anchor_opening)
        if not rest or i == anchor.eos_token_id:
            assert entry == -1
        elif target_opening + rest in known:
            assert t_bytes[entry] == target_opening + rest
            translated += 1
    assert translated > 20


def test_opening_table_says_sorry_with_a_blank_to_llama_2():
    anchor, target = real("qwen2"), real("llama-spm")
    bridge = build(anchor, target, target_opening=b" ")
    (sorry,) = plain_encode(anchor, "Sorry")
    assert bytes_of("llama-spm")[int(bridge.opening_table[sorry])] == b" Sorry"
    assert int(bridge.table[sorry]) == -1  # "Sorry" without a blank is two of its tokens


# --- the paper's literal method -------------------------------------------------------------------


def test_text_method_has_the_false_matches_that_section_1_counts_for_two_byte_level_families():
    bridge = build(real("qwen2"), real("llama-bpe"), method="text")
    false = bridge.kinds == Kind.SINGLE
    assert int(false.sum()) == 1_327
    replacement = plain_encode(real("llama-bpe"), "\ufffd")
    assert replacement[0] in bridge.table[false].tolist()


def test_text_method_has_the_false_and_missed_matches_that_section_1_counts_for_llama_2():
    by_text = build(real("qwen2"), real("llama-spm"), method="text")
    by_bytes = build(real("qwen2"), real("llama-spm"))
    false = by_text.matches[by_text.kinds == Kind.SINGLE].tolist()
    control = [i for i in false if bytes_of("llama-spm")[i] is None]
    assert len(false) - len(control) == 8_311
    # And plain text of Qwen's that Llama 2 parses as its own <unk>, <s> and </s>.
    assert sorted(control) == [0, 1, 2]
    identical = by_bytes.kinds == Kind.EXACT
    assert int((identical & (by_text.table < 0)).sum()) == 21_382


def test_text_method_adds_a_blank_where_bytes_do_not():
    anchor, target = small_pair()
    (exclamation,) = plain_encode(anchor, "!")
    assert token_bytes(target)[int(build(anchor, target).table[exclamation])] == b"!"
    assert build(anchor, target, method="text").kinds[exclamation] != Kind.EXACT


# --- coverage -------------------------------------------------------------------------------------


def test_coverage_masses_add_up_per_kind_and_to_one():
    bridge = build(*small_pair(), anchor_width=450)
    probs = torch.rand(450, generator=torch.Generator().manual_seed(0)).softmax(0)
    coverage = bridge.coverage(probs)
    assert sum(part.mass for part in coverage.kinds.values()) == pytest.approx(1, abs=1e-6)
    assert sum(part.share for part in coverage.kinds.values()) == pytest.approx(1)
    used = (Kind.EXACT, Kind.END, Kind.SINGLE)
    assert coverage.translated.mass == pytest.approx(sum(coverage.kinds[k].mass for k in used))
    dropped = sum(coverage.kinds[k].mass for k in Kind if k not in used)
    assert coverage.translated.mass + dropped == pytest.approx(float(probs.double().sum()))
    assert bridge.coverage().translated.mass is None


@pytest.mark.parametrize(
    "probs", [torch.ones(3), torch.full((400,), torch.nan), torch.full((400,), -0.1)]
)
def test_coverage_refuses_what_is_no_probability_vector(probs):
    bridge = build(*small_pair(), anchor_width=400)
    with pytest.raises(BridgeError, match="probs"):
        bridge.coverage(probs)


# --- the cache ------------------------------------------------------------------------------------


def same(a, b):
    return all(torch.equal(getattr(a, name), getattr(b, name)) for name in matching.Tables._fields)


@pytest.fixture
def no_matching(monkeypatch):
    """After a call, building anew is a failure: whatever comes must come from the cache."""

    def forbid():
        def fail(*_):
            raise AssertionError("built anew")

        monkeypatch.setattr(matching, "by_bytes", fail)
        monkeypatch.setattr(vocabulary, "token_bytes", fail)  # takes seconds, a load milliseconds

    return forbid


def test_cache_gives_the_built_bridge_back(tmp_path, no_matching):
    anchor, target = small_pair()
    built = build(anchor, target, cache_dir=tmp_path)
    no_matching()
    loaded = build(anchor, target, fallback="first", cache_dir=tmp_path)
    assert same(built, loaded)
    assert loaded.fingerprint == built.fingerprint
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_cache_is_found_again_by_a_tokenizer_that_was_saved_and_loaded(tmp_path, no_matching):
    for name, tokenizer in zip(("anchor", "target"), small_pair(), strict=True):
        tokenizer.save_pretrained(tmp_path / name)

    def loaded():
        return [
            type(small_pair()[0]).from_pretrained(tmp_path / name) for name in ("anchor", "target")
        ]

    first = build(*loaded(), cache_dir=tmp_path / "cache")
    no_matching()
    assert same(first, build(*loaded(), cache_dir=tmp_path / "cache"))


def test_cache_folder_comes_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path))
    bridge = build(*small_pair(), cache_dir=None)
    assert (tmp_path / "bridges" / f"{bridge.key}.safetensors").is_file()


def variants():
    anchor, target = small_pair()
    grown = byte_level()
    grown.add_tokens(["zebra"])
    prefixed = sentencepiece(style="gemma")
    yield "base", anchor, target, {}
    yield "anchor tokens", grown, target, {}
    yield "target components", anchor, prefixed, {}
    yield "target corpus", anchor, sentencepiece(CORPUS[::-1][:3]), {}
    yield "anchor width", anchor, target, {"anchor_width": 512}
    yield "target width", anchor, target, {"target_width": 1024}
    yield "anchor ends", anchor, target, {"anchor_end_ids": [5]}
    yield "target ends", anchor, target, {"target_end_ids": [5]}
    yield "anchor opening", anchor, target, {"anchor_opening": b" "}
    yield "target opening", anchor, target, {"target_opening": b" "}
    yield "method", anchor, target, {"method": "text"}


def test_fingerprint_differs_with_everything_the_table_depends_on():
    prints = {name: build(a, t, **settings).fingerprint for name, a, t, settings in variants()}
    assert len(set(prints.values())) == len(prints)


def test_fingerprint_notices_a_tokenizer_that_changed_after_its_first_use():
    anchor, target = small_pair()
    before = build(anchor, target).fingerprint
    anchor.add_tokens(["zebra"])
    assert build(anchor, target).fingerprint != before


def test_fingerprint_ignores_what_a_call_left_behind():
    anchor, target = small_pair()
    anchor.pad_token = anchor.eos_token
    before = build(anchor, target).fingerprint
    anchor(["a", "b c d"], padding="max_length", truncation=True, max_length=8)
    assert anchor.backend_tokenizer.padding is not None
    assert build(anchor, target).fingerprint == before


def test_fingerprint_tells_a_retrained_tokenizer_from_the_folder_it_names(tmp_path):
    original, target = small_pair()
    original.save_pretrained(tmp_path)
    original = type(original).from_pretrained(tmp_path)
    retrained = original.train_new_from_iterator(["entirely other words " * 9], len(original))
    assert retrained.name_or_path == original.name_or_path
    assert build(retrained, target).fingerprint != build(original, target).fingerprint


def stored(folder):
    (path,) = folder.glob("*.safetensors")
    return path


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "noise"])
def test_cache_reports_a_damaged_file_by_name_and_rebuilds(tmp_path, damage):
    anchor, target = small_pair()
    built = build(anchor, target, cache_dir=tmp_path)
    path = stored(tmp_path)
    data = path.read_bytes()
    path.write_bytes(
        {
            "truncated": data[: len(data) // 2],
            "empty": b"",
            "flipped": data[:-100] + bytes([data[-100] ^ 1]) + data[-99:],
            "noise": random.Random(0).randbytes(1000),
        }[damage]
    )
    with pytest.warns(RuntimeWarning, match=path.name):
        rebuilt = build(anchor, target, cache_dir=tmp_path)
    assert same(built, rebuilt)
    with warnings.catch_warnings():  # mended: the next one finds a whole file
        warnings.simplefilter("error")
        assert same(built, build(anchor, target, cache_dir=tmp_path))


def test_cache_rebuilds_over_another_pairs_file(tmp_path):
    anchor, target = small_pair()
    build(target, anchor, cache_dir=tmp_path / "other")
    bridge = build(anchor, target)
    path = tmp_path / f"{bridge.key}.safetensors"
    path.write_bytes(stored(tmp_path / "other").read_bytes())
    assert same(bridge, build(anchor, target, cache_dir=tmp_path))
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["key"] == bridge.key


def test_cache_never_trusts_an_id_beyond_the_head(tmp_path):
    """Even under a right checksum: a kernel would read beyond the target's logits."""
    anchor, target = small_pair()
    built = build(anchor, target, cache_dir=tmp_path)
    path = stored(tmp_path)
    tables = matching.Tables(*(getattr(built, name).clone() for name in matching.Tables._fields))
    tables.matches[7] = built.target_width
    bridge_cache.save(tmp_path, built.key, tables)
    with pytest.warns(RuntimeWarning, match=path.name):
        assert same(built, build(anchor, target, cache_dir=tmp_path))


def test_cache_that_cannot_be_written_is_only_warned_about(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(RuntimeWarning, match="going on without a cache"):
        bridge = build(*small_pair(), cache_dir=blocked)
    assert same(bridge, build(*small_pair()))


def poisoned(folder, built):
    """A file under the right name and checksum whose first match is another."""
    tables = matching.Tables(*(getattr(built, name).clone() for name in matching.Tables._fields))
    tables.matches[7] = (tables.matches[7] + 1) % built.target_width
    bridge_cache.save(folder, built.key, tables)


def test_fingerprint_is_of_the_tables_in_use(tmp_path):
    built = build(*small_pair())
    poisoned(tmp_path, built)
    loaded = build(*small_pair(), cache_dir=tmp_path)
    assert not same(built, loaded)  # nothing about the file itself tells
    assert loaded.key == built.key
    assert loaded.fingerprint != built.fingerprint
    assert build(*small_pair()).fingerprint == built.fingerprint


def test_cache_does_not_take_the_tables_of_another_pair_under_a_new_name(tmp_path):
    anchor, target = small_pair()
    built = build(anchor, target)
    tables = matching.Tables(*(getattr(built, name) for name in matching.Tables._fields))
    data = {"key": built.key, "sha256": bridge_cache.checksum(tables, "of another pair")}
    path = tmp_path / f"{built.key}.safetensors"
    path.write_bytes(safetensors_bytes(tables._asdict(), data))
    with pytest.warns(RuntimeWarning, match="wrong checksum"):
        build(anchor, target, cache_dir=tmp_path)


@pytest.mark.parametrize("level", ["root", "folder"])
def test_cache_that_others_can_change_is_left_alone(tmp_path, monkeypatch, level):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path))
    built = build(*small_pair())
    poisoned(tmp_path / "bridges", built)
    (tmp_path if level == "root" else tmp_path / "bridges").chmod(0o777)
    with pytest.warns(RuntimeWarning, match="can be changed by other users; chmod go-w"):
        assert same(built, build(*small_pair(), cache_dir=None))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_cache_rebuilds_over_a_file_of_another_user(tmp_path):
    built = build(*small_pair())
    poisoned(tmp_path, built)
    os.chown(stored(tmp_path), 12345, -1)
    with pytest.warns(RuntimeWarning, match="belongs to another user"):
        assert same(built, build(*small_pair(), cache_dir=tmp_path))
    with warnings.catch_warnings():  # mended: the file is now ours
        warnings.simplefilter("error")
        assert same(built, build(*small_pair(), cache_dir=tmp_path))


def test_cache_false_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path))
    build(*small_pair())
    assert list(tmp_path.iterdir()) == []


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"fallback": "last"}, {"method": "guess"}, {"target_end_ids": []}]
)
def test_build_refuses_a_setting_out_of_range(settings):
    with pytest.raises(BridgeError):
        build(*small_pair(), **settings)


def test_build_refuses_a_tokenizer_it_cannot_serve():
    with pytest.raises(TokenizerError):
        build(real("bert-bge"), real("gpt-2"))


def test_build_emits_no_warning_on_a_clean_run(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        build(*small_pair(), cache_dir=tmp_path)
        build(*small_pair(), cache_dir=tmp_path)
