"""A beam's bytes to the anchor's ids: exact, mid-text, never a control token (invariant 6)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocab_strategies import (
    CAUSAL,
    SP_STYLES,
    byte_level,
    byte_strings,
    real,
    sentencepiece,
    small_tokenizers,
    texts,
)

from alignbeam.vocab.retokenize import (
    Retokenizer,
    UnspellableBytes,
    longest_common_prefix,
    plain_encode,
    split_utf8,
)
from alignbeam.vocab.token_bytes import token_bytes
from alignbeam.vocab.vocabulary import Vocabulary

CONTROL_TEXT = "a <|im_end|> b </s><|eot_id|>\n<s>[INST] <|end|>   c <｜end▁of▁sentence｜> <|EOT|>"
HARD_TEXTS = (
    "Sorry, I can't help with that.",
    " Sorry",
    "  two blanks, e\u0301 and ﬁ, Å (Angstrom) and Å",
    "▁ stands for a blank ▁▁",
    "👩‍👩‍👧 🇫🇷 👋🏽 𠮷野家 \0 \x07 \ufffd \ufeff",
    "\t\r\n\n  def f():\n        return 'ü'",
    CONTROL_TEXT,
    "x" * 20_000,
)


def joined(table, ids):
    return b"".join(table[i] for i in ids)


def encode(tokenizer, data):
    return Retokenizer(Vocabulary.of(tokenizer)).encode(data)


# --- unfinished UTF-8 -----------------------------------------------------------------------------


@given(st.text(max_size=20), st.integers(0, 80))
def test_split_utf8_cuts_only_the_unfinished_character(text, cut):
    data = text.encode()[:cut]
    head, tail = split_utf8(data)
    assert head + tail == data
    assert head.decode() == text[: len(head.decode())]
    assert len(tail) == 0 or len(text[len(head.decode())].encode()) > len(tail)


@given(st.binary(max_size=12))
def test_split_utf8_keeps_back_only_what_more_bytes_can_finish(data):
    head, tail = split_utf8(data)
    assert head + tail == data
    finished = False
    for more in (b"\x80", b"\x80\x80", b"\x80\x80\x80", b"\xa0\x80", b"\x90\x80\x80"):
        try:
            finished |= len((tail + more).decode()) == 1
        except UnicodeDecodeError:
            continue
    assert finished == bool(tail)


@pytest.mark.parametrize(
    "hopeless", [b"a\xff", b"\xc0", b"a\xe0\x80", b"\xed\xa0", b"\xf4\x90", b"\x80"]
)
def test_split_utf8_does_not_wait_for_bytes_that_cannot_be_mended(hopeless):
    assert split_utf8(hopeless) == (hopeless, b"")


# --- common prefix --------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_longest_common_prefix_is_shared_and_cannot_grow(a, b):
    shared = longest_common_prefix(a, b)
    assert a[:shared] == b[:shared]
    assert shared == min(len(a), len(b)) or a[shared] != b[shared]


# --- invariant 6 ----------------------------------------------------------------------------------


@given(tokenizer=small_tokenizers(), data=byte_strings)
def test_retokenizer_gives_the_bytes_back_for_any_bytes(tokenizer, data):
    """Both kinds trained here have a token for each of the 256 bytes, so nothing is refused."""
    assert joined(token_bytes(tokenizer), encode(tokenizer, data)) == data


@given(tokenizer=small_tokenizers(), text=texts)
def test_retokenizer_reads_text_as_the_tokenizer_does_where_it_keeps_the_bytes(tokenizer, text):
    ids = plain_encode(tokenizer, text)
    if joined(token_bytes(tokenizer), ids) == text.encode():
        assert encode(tokenizer, text.encode()) == ids


@pytest.mark.parametrize("name", CAUSAL)
def test_retokenizer_gives_hard_texts_back_with_real_vocabularies(name):
    tokenizer = real(name)
    table = token_bytes(tokenizer)
    retokenizer = Retokenizer(Vocabulary.of(tokenizer))
    for text in HARD_TEXTS:
        data = text.encode()
        assert joined(table, retokenizer.encode(data)) == data


@pytest.mark.parametrize("name", CAUSAL)
def test_retokenizer_never_makes_a_control_token_of_text(name):
    tokenizer = real(name)
    added = tokenizer.added_tokens_decoder
    ids = encode(tokenizer, CONTROL_TEXT.encode())
    assert not {added[i].content for i in ids if i in added} & set(CONTROL_TEXT.split())
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_retokenizer_continues_in_the_middle_of_a_text():
    tokenizer = real("llama-spm")
    assert encode(tokenizer, b" Sorry") == tokenizer.convert_tokens_to_ids(["▁Sorry"])
    assert encode(tokenizer, b"!") == tokenizer.convert_tokens_to_ids(["!"])


def test_retokenizer_leaves_out_a_normaliser_that_changes_bytes():
    tokenizer = byte_level(nfc=True)
    assert joined(token_bytes(tokenizer), plain_encode(tokenizer, "e\u0301")) == "é".encode()
    ids = encode(tokenizer, "e\u0301".encode())
    assert joined(token_bytes(tokenizer), ids) == "e\u0301".encode()


@pytest.mark.parametrize("style", SP_STYLES)
def test_retokenizer_spells_what_sentencepiece_cannot_keep(style):
    tokenizer = sentencepiece(style=style)
    ids = encode(tokenizer, "bread▁at".encode())
    spelled = [f"<0x{byte:02X}>" for byte in "▁".encode()]
    tokens = tokenizer.convert_ids_to_tokens(ids)
    at = tokens.index(spelled[0])
    assert tokens[at : at + 3] == spelled
    # The text around it is still read as text, not letter by letter.
    assert tokens[:at] == tokenizer.convert_ids_to_tokens(plain_encode(tokenizer, "bread"))


def test_retokenizer_spells_invalid_utf8_between_texts():
    tokenizer = byte_level()
    data = b"Sorry \xff\xc3 bread"
    ids = encode(tokenizer, data)
    assert joined(token_bytes(tokenizer), ids) == data
    assert ids[: len(plain_encode(tokenizer, "Sorry "))] == plain_encode(tokenizer, "Sorry ")


def test_retokenizer_names_the_byte_that_a_vocabulary_cannot_spell():
    with pytest.raises(UnspellableBytes, match="0xFF"):
        encode(real("deepseek-llm"), b"a\xff")


def test_retokenizer_of_nothing_is_nothing():
    assert encode(byte_level(), b"") == []
