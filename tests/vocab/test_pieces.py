"""``fallback="prefix"``: the pieces of anchor tokens, and that no probability is lost over them."""

from __future__ import annotations

import functools
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vocab_strategies import CAUSAL, PAIRS, byte_level, real, sentencepiece, small_tokenizers

from alignbeam.errors import BridgeError
from alignbeam.vocab import bridge_cache, matching
from alignbeam.vocab.bridge import Bridge, Kind
from alignbeam.vocab.pieces import OVER, STUCK, ByteTrie, Pieces
from alignbeam.vocab.vocabulary import Vocabulary

few_letters = st.lists(st.sampled_from(b"ab\xe4"), max_size=6).map(bytes)


def naive_cut(data: bytes, ids: dict[bytes, int]) -> list[int]:
    found = []
    while data:
        begins = [token for token in ids if data.startswith(token)]
        if not begins:
            return [*found, STUCK]
        longest = max(begins, key=len)
        found.append(ids[longest])
        data = data[len(longest) :]
    return found


@given(tokens=st.sets(few_letters.filter(len)), data=few_letters)
def test_cut_takes_the_longest_token_that_the_rest_begins_with(
    tokens: set[bytes], data: bytes
) -> None:
    ids = {token: i for i, token in enumerate(tokens)}
    assert ByteTrie(ids).cut(data) == naive_cut(data, ids)


def test_cut_spells_one_very_long_token_byte_by_byte() -> None:
    """A tampered tokenizer: 65,536 bytes of one letter, in single bytes."""
    ids = {bytes([byte]): byte for byte in range(256)}
    assert ByteTrie(ids).cut(b"a" * 65_536) == [97] * 65_536


# --- real vocabularies ----------------------------------------------------------------------------


@functools.cache
def vocabulary_of(name: str) -> Vocabulary:
    return Vocabulary.of(real(name))


@functools.cache
def trie_of(name: str) -> Pieces:
    """Pieces of everything that was cut for this target so far."""
    return Pieces(matching._Finder(vocabulary_of(name)).trie)


# Each vocabulary once as anchor and once as target.
RING = list(zip(CAUSAL, (*CAUSAL[1:], CAUSAL[0]), strict=True))


@pytest.mark.parametrize(("anchor", "target"), PAIRS)
def test_all_that_an_anchor_says_in_bytes_reaches_a_target(anchor: str, target: str) -> None:
    """Mass in = mass out, for random distributions, and byte for byte."""
    texts, spelled = vocabulary_of(anchor).text_bytes, vocabulary_of(target).text_bytes
    if (anchor, target) not in RING:  # in full once for each, else what is quickly cut
        texts = random.Random(f"{anchor} {target}").sample(texts, 8_000)
    added = trie_of(target)
    starts = added.add(texts).long()
    pieces = added.tensor()
    table = pieces[starts]
    firsts = {piece[0] for piece in spelled if piece}
    lost = torch.tensor([not text or text[0] not in firsts for text in texts])
    assert torch.equal(table < 0, lost)
    draw = torch.Generator().manual_seed(0)
    for sharpness in (0.0, 1.0, 30.0):
        p = (sharpness * torch.randn(len(table), generator=draw, dtype=torch.float64)).softmax(0)
        out = torch.zeros(len(spelled), dtype=torch.float64)
        out.index_add_(0, table[~lost], p[~lost])
        assert float(out.sum() + p[lost].sum()) == pytest.approx(1.0, abs=1e-6)
        # The very bytes arrive: of tokens drawn at random, whatever their pieces say.
        for i in torch.multinomial(p, 300, replacement=True, generator=draw).tolist():
            place, text = int(starts[i]), b""
            while int(pieces[place]) >= 0:
                text += spelled[int(pieces[place])] or b""
                place += 1
            whole = texts[i] or b""
            if int(pieces[place]) == OVER:
                assert text == whole
            else:
                assert whole.startswith(text)
                assert not whole or whole[len(text)] not in firsts


# --- whole bridges --------------------------------------------------------------------------------


def bridge_of(anchor: object, target: object, **of_target: object) -> Bridge:
    pair = Vocabulary.of(anchor), Vocabulary.of(target, **of_target)
    return Bridge.build(*pair, "prefix", cache_dir=False)


@given(
    anchor=small_tokenizers(),
    target=small_tokenizers(),
    opening=st.sampled_from([b"", b" ", b"\n\n "]),
    seed=st.integers(0, 2**31),
)
def test_prefix_keeps_all_mass_and_all_bytes_for_any_two_vocabularies(
    anchor: object, target: object, opening: bytes, seed: int
) -> None:
    bridge = bridge_of(anchor, target, opening=opening)
    theirs, ours = Vocabulary.of(anchor), Vocabulary.of(target)
    p = torch.rand(bridge.anchor_width, generator=torch.Generator().manual_seed(seed)).softmax(0)
    coverage = bridge.coverage(p)
    assert sum(part.mass or 0 for part in coverage.kinds.values()) == pytest.approx(1, abs=1e-6)
    speaks = torch.tensor([bool(text) for text in theirs.text_bytes])
    speaks[list(theirs.end_ids)] = True
    firsts = {piece[0] for piece in ours.text_bytes if piece}
    for i, text in enumerate(theirs.text_bytes):
        if i in theirs.end_ids:
            assert bridge.spelling(i) == [ours.end_ids[0]]
            assert bridge.spelling(i, opening=True) == []
            continue
        for first in (False, True):
            whole = (opening if first else b"") + text if text else b""
            said = b"".join(ours.bytes_of(d) for d in bridge.spelling(i, opening=first))
            assert whole.startswith(said)
            assert whole == said or whole[len(said)] not in firsts
    if len(firsts) == 256:
        assert coverage.translated.mass == pytest.approx(float(p[speaks].sum()), abs=1e-6)
        assert coverage.kinds[Kind.NONE].count == int((~speaks).sum())


def test_prefix_is_by_bytes_where_the_targets_normaliser_would_change_them() -> None:
    anchor = byte_level((*["e\u0301"] * 50, "plain"), regex=False)
    target = byte_level(("é " * 50,), nfc=True)
    theirs, ours = Vocabulary.of(anchor), Vocabulary.of(target)
    i = theirs.token_bytes.index("e\u0301".encode())
    bridge = bridge_of(anchor, target)
    assert bridge.kinds[i] == Kind.SINGLE
    assert bridge.kinds_in_use[i] == Kind.PREFIX
    assert ours.bytes_of(int(bridge.table[i])) == b"e"
    assert b"".join(map(ours.bytes_of, bridge.spelling(i))) == "e\u0301".encode()


def test_prefix_equals_every_other_fallback_where_each_token_has_its_twin() -> None:
    tokenizer = byte_level()
    bridge = bridge_of(tokenizer, tokenizer)
    for name in ("exact", "drop", "first"):
        assert torch.equal(bridge.table, bridge.with_fallback(name).table)
        assert torch.equal(bridge.opening_table, bridge.with_fallback(name).opening_table)


def test_prefix_of_a_bridge_that_was_matched_by_text_is_refused() -> None:
    pair = Vocabulary.of(byte_level()), Vocabulary.of(sentencepiece())
    bridge = Bridge.build(*pair, method="text", cache_dir=False)
    with pytest.raises(BridgeError, match="prefix"):
        bridge.with_fallback("prefix")


@pytest.mark.parametrize("fault", ["no end", "beyond the pieces", "begins over", "beyond the head"])
def test_cache_never_trusts_pieces_that_lead_astray(tmp_path, fault: str) -> None:
    pair = Vocabulary.of(byte_level()), Vocabulary.of(sentencepiece())
    built = Bridge.build(*pair, cache_dir=tmp_path)
    tables = matching.Tables(*(getattr(built, name).clone() for name in matching.Tables._fields))
    if fault == "no end":
        tables.pieces[-1] = 3
    elif fault == "beyond the pieces":
        tables.starts[3] = len(tables.pieces)
    elif fault == "begins over":
        tables.opening_starts[3] = int((tables.pieces == OVER).nonzero()[0])
    else:
        tables.pieces[1] = built.target_width
    bridge_cache.save(tmp_path, built.key, tables)
    with pytest.warns(RuntimeWarning, match="building the bridge anew"):
        again = Bridge.build(*pair, cache_dir=tmp_path)
    assert again.fingerprint == built.fingerprint
