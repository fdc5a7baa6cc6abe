"""A vocabulary is checked once: what does not fit its head is refused by name."""

import json

import pytest
from transformers import PreTrainedTokenizerFast
from vocab_strategies import byte_level

from alignbeam.errors import TokenizerError
from alignbeam.vocab.end_tokens import end_token_ids
from alignbeam.vocab.plain_text import plain_encode
from alignbeam.vocab.retokenize import Retokenizer
from alignbeam.vocab.token_bytes import token_bytes
from alignbeam.vocab.vocabulary import Vocabulary


def test_vocabulary_of_a_bare_tokenizer_is_as_wide_as_its_ids():
    tokenizer = byte_level()
    made = Vocabulary.of(tokenizer)
    assert (made.width, made.end_ids) == (len(tokenizer), end_token_ids(tokenizer))
    assert made.token_bytes == token_bytes(tokenizer)


def test_vocabulary_spells_no_text_with_ends_and_padding():
    tokenizer = byte_level()
    end = max(plain_encode(tokenizer, "I cannot"), key=lambda i: len(token_bytes(tokenizer)[i]))
    made = Vocabulary.of(tokenizer, len(tokenizer) + 2, [end, end])
    assert made.end_ids == (end,)
    assert made.text_bytes[end] is None
    assert made.text_bytes[-2:] == [None, None]
    assert (made.bytes_of(end), made.bytes_of(made.width - 1)) == (token_bytes(tokenizer)[end], b"")
    ids = Retokenizer(made).encode(b"I cannot")
    assert end not in ids
    assert b"".join(made.bytes_of(i) for i in ids) == b"I cannot"


def test_vocabulary_refuses_a_head_narrower_than_the_tokenizer():
    match = "the anchor's tokenizer has .* ids, but its head only 300 columns"
    with pytest.raises(TokenizerError, match=match):
        Vocabulary.of(byte_level(), 300, name="anchor")


def test_vocabulary_finds_an_id_beyond_the_head_when_it_reads_the_bytes(tmp_path):
    data = json.loads(byte_level().backend_tokenizer.to_str())
    data["model"]["vocab"]["far"] = len(data["model"]["vocab"]) + 50
    (tmp_path / "tokenizer.json").write_text(json.dumps(data))
    made = Vocabulary.of(PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json")))
    with pytest.raises(TokenizerError, match="belongs to another model"):
        _ = made.token_bytes


@pytest.mark.parametrize("width", [0, -1, 2**40, 3.5, "wide"])
def test_vocabulary_refuses_a_width_that_is_none(width):
    with pytest.raises(TokenizerError, match="the target's width"):
        Vocabulary.of(byte_level(), width, name="target")


@pytest.mark.parametrize("end_ids", [[10**6], [-1], ["</s>"]])
def test_vocabulary_refuses_an_end_that_is_no_column(end_ids):
    with pytest.raises(TokenizerError, match=r"the target's .*end ids"):
        Vocabulary.of(byte_level(), end_ids=end_ids, name="target")
