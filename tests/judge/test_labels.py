"""Digits and words are found in context, with every kind of tokenizer and template."""

from __future__ import annotations

import pytest
from judge_roles import (
    REAL_TEMPLATES,
    byte_level_tokenizer,
    random_role,
    real_role,
    sentencepiece_tokenizer,
)

from alignbeam.errors import TokenizerError
from alignbeam.judge import RubricJudge
from alignbeam.judge.labels import find_labels

DIGITS = ("1", "2", "3", "4", "5")


def answered_ids(role, judge, digit):
    """Ids of the rubric's prompt with an answer in it, as the tokenizer itself writes them."""
    text = role.render_text(judge.rubric.messages("request", "candidate", "0" * 16, "1" * 16))
    return role.tokenizer.encode(text + role.opening.decode() + digit, add_special_tokens=False)


def assert_digits_in_context(role):
    judge = RubricJudge(role)
    labels = judge._labels
    prompt = role.render(judge.rubric.messages("request", "candidate", "0" * 16, "1" * 16))
    for digit, ids in zip(DIGITS, labels.ids, strict=True):
        assert [*prompt, *labels.suffix, ids[0]] == answered_ids(role, judge, digit)
    flat = [i for ids in labels.ids for i in ids]
    assert len(flat) == len(set(flat))


@pytest.mark.parametrize("name", REAL_TEMPLATES)
def test_digits_are_found_in_context_with_real_tokenizers(vocabs_dir, name):
    assert_digits_in_context(real_role(vocabs_dir / name))


@pytest.mark.parametrize("make", [byte_level_tokenizer, sentencepiece_tokenizer])
def test_digits_are_found_in_context_with_small_tokenizers(make):
    assert_digits_in_context(random_role(make()))


def test_digits_are_read_after_the_opening_where_the_template_has_one():
    role = random_role(sentencepiece_tokenizer())
    assert role.opening == b" "
    labels = RubricJudge(role)._labels
    blank, one = role.tokenizer.convert_tokens_to_ids(["▁", "1"])
    assert labels.suffix == (blank,)
    assert labels.ids[0] == (one,)


def test_digits_that_merge_with_the_prompt_are_refused(vocabs_dir):
    # Llama-3 writes up to three digits as one token, so "score 0" + "1" ends in "01".
    tokenizer = real_role(vocabs_dir / "llama-bpe").tokenizer

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    with pytest.raises(TokenizerError, match="merges the labels"):
        find_labels(encode, "score 0", "", DIGITS, whole=True, judge="j")


def test_labels_of_several_tokens_are_refused_where_whole_ones_are_needed():
    tokenizer = byte_level_tokenizer()

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    find_labels(encode, "Say:\n", "", ("safely", "unsafely"), whole=False, judge="j")
    with pytest.raises(TokenizerError, match="no single distinct tokens"):
        find_labels(encode, "Say:\n", "", ("safely", "unsafely"), whole=True, judge="j")


def test_labels_with_the_same_first_token_are_refused():
    tokenizer = byte_level_tokenizer()

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    with pytest.raises(TokenizerError, match="no single distinct tokens"):
        find_labels(encode, "Say:\n", "", ("no", "no"), whole=False, judge="j")


def test_a_spelling_with_a_blank_counts_where_it_is_one_token():
    role = random_role(byte_level_tokenizer())
    tokenizer = role.tokenizer

    def encode(text):
        return tokenizer.encode(text, add_special_tokens=False)

    labels = find_labels(encode, "<|im_start|>", "", ("the", "and"), whole=False, judge="j")
    (spaced,) = encode(" the")
    assert labels.ids[0] == (encode("the")[0], spaced)
