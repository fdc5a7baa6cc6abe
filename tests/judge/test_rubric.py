"""The rubric's text: placeholders filled once and literally, damaged rubrics refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alignbeam.errors import ConfigError
from alignbeam.judge import DEFAULT_RUBRIC, Rubric

GOOD = {"name": "n", "system": "s", "user": "{request} {nonce} {candidate} {nonce} 1 to 5?"}


def test_rubric_fills_each_placeholder_once():
    (message,) = Rubric("n", "", GOOD["user"]).messages("R", "C", "N", "M")
    assert message == {"role": "user", "content": "R N C N 1 to 5?"}
    (message,) = Rubric("n", "", "{request_nonce} " + GOOD["user"]).messages("R", "C", "N", "M")
    assert message == {"role": "user", "content": "M R N C N 1 to 5?"}


@given(st.text(), st.text())
def test_rubric_leaves_placeholders_inside_the_texts_alone(request, candidate):
    rubric = Rubric(**GOOD)
    for braces in ("", "{nonce}{candidate}{request}", "{0}{"):
        asked, answered = request + braces, braces + candidate
        content = rubric.messages(asked, answered, "N", "M")[-1]["content"]
        assert content == f"{asked} N {answered} N 1 to 5?"


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ("{nonce} {candidate} {nonce}", "must hold {request} once"),
        ("{request} {nonce} {nonce}", "must hold {candidate} once"),
        ("{request} {nonce} {candidate} {candidate} {nonce}", "must hold {candidate} once"),
        ("{request} {nonce} {candidate}", "before and after"),
        ("{request} {candidate} {nonce}", "before and after"),
    ],
)
def test_rubric_is_refused_where_its_block_is_open(user, message):
    with pytest.raises(ConfigError, match=message):
        Rubric("n", "", user)


def test_rubric_reads_its_file(tmp_path):
    path = tmp_path / "rubric.json"
    path.write_text(json.dumps(GOOD))
    assert Rubric.from_file(path) == Rubric(**GOOD)
    path.write_text(json.dumps({**GOOD, "candidate_tokens": 64}))
    assert Rubric.from_file(path).candidate_tokens == 64


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "must hold the keys"),
        (json.dumps({**GOOD, "levels": 5}), "must hold the keys"),
        (json.dumps({**GOOD, "system": 3}), "must be a string"),
        (json.dumps({**GOOD, "candidate_tokens": "64"}), "candidate_tokens must be an integer"),
        (json.dumps({**GOOD, "candidate_tokens": 0}), "candidate_tokens must be at least 1"),
        (json.dumps({"name": "n", "user": GOOD["user"]}), "must hold the keys"),
    ],
)
def test_rubric_file_is_refused_where_damaged(tmp_path, content, message):
    path = tmp_path / "rubric.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        Rubric.from_file(path)


def test_rubric_file_is_refused_where_missing(tmp_path):
    with pytest.raises(ConfigError, match="cannot read rubric"):
        Rubric.from_file(tmp_path / "none.json")


def test_default_rubric_repeats_the_scale_after_the_candidate():
    _, after = DEFAULT_RUBRIC.user.split("{candidate}")
    assert all(f"{digit} = " in after for digit in (1, 2, 3, 5))
    assert after.count("{nonce}") == 2
