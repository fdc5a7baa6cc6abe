"""Logits with a common beginning computed once equal those of each sequence by itself."""

from __future__ import annotations

from itertools import chain

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from judge_roles import random_role

from alignbeam.judge import DEFAULT_RUBRIC, GUARDS, GuardJudge, RubricJudge
from alignbeam.judge.reader import read_labels
from alignbeam.models.shared import LEAST_SHARED

ROLE = random_role()
ASK = [{"role": "user", "content": "How do I bake bread? " * 8}]
CANDIDATES = ["Mix flour and water, then wait for a good while.", "I cannot.", "Sure, here it is."]

_block = st.lists(st.integers(3, 400), min_size=1, max_size=3).map(lambda ids: ids * 20)


def _alone(sequences):
    return torch.cat([ROLE.forward_alone(ids) for ids in sequences]).float()


@given(st.lists(st.lists(_block, min_size=1, max_size=3).map(lambda b: [*chain(*b)]), min_size=2,
                max_size=6), st.lists(st.integers(0, 5), max_size=3))  # fmt: skip
def test_shared_beginnings_change_no_logits(sequences, repeats):
    sequences = sequences + [sequences[i % len(sequences)] for i in repeats]
    sequences += [sequences[0] + [7], sequences[0][:-1]]  # one begins with another
    sequences = [ids for ids in sequences if ids]
    got = ROLE.next_token_logits(sequences)
    torch.testing.assert_close(got, _alone(sequences), atol=2e-4, rtol=1e-4)


class Counted:
    """Counts the tokens that a role's forwards are fed."""

    def __init__(self, role, monkeypatch):
        self.fed = 0
        forward = role.forward

        def counted(ids, *rest):
            self.fed += ids.numel()
            return forward(ids, *rest)

        monkeypatch.setattr(role, "forward", counted)


def test_a_shared_beginning_is_fed_once(monkeypatch):
    head = list(range(3, 3 + 4 * LEAST_SHARED))
    sequences = [[*head, 200 + n, 7, 8] for n in range(10)]
    assert ROLE.gaps_are_exact
    assert not ROLE.rows_alone
    counted = Counted(ROLE, monkeypatch)
    ROLE.next_token_logits(sequences)
    assert counted.fed == len(head) + 30


def test_what_others_begin_with_is_fed_once(monkeypatch):
    heads = [list(range(n, n + 2 * LEAST_SHARED)) for n in (3, 203)]
    sequences = [*heads, *([*head, 7, 8] for head in heads)]
    counted = Counted(ROLE, monkeypatch)
    got = ROLE.next_token_logits(sequences)
    assert counted.fed == 2 * (len(heads[0]) + 2)
    torch.testing.assert_close(got, _alone(sequences), atol=2e-4, rtol=1e-4)


def test_a_long_row_makes_no_padding_of_the_short_ones(monkeypatch):
    head, tail = list(range(3, 3 + 4 * LEAST_SHARED)), list(range(210, 210 + 4 * LEAST_SHARED))
    sequences = [*([*head, 200 + n, 7, 8] for n in range(10)), [*head, *tail]]
    assert ROLE.gaps_are_exact
    assert not ROLE.rows_alone
    counted = Counted(ROLE, monkeypatch)
    got = ROLE.next_token_logits(sequences)
    assert counted.fed == len(head) + 30 + len(tail)
    torch.testing.assert_close(got, _alone(sequences), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["rubric", "yes-no"])
def test_judge_feeds_rubric_and_request_once_for_all_candidates(name, monkeypatch):
    judge = (
        RubricJudge(ROLE, DEFAULT_RUBRIC, label_mass_floor=0.0)
        if name == "rubric"
        else GuardJudge(ROLE, GUARDS[name], label_mass_floor=0.0)
    )
    rows = [row for c in CANDIDATES for row in judge._rows(ASK, c)]
    plain = [
        tuple(float(p[list(ids)].sum()) for ids in row.labels)
        for row in rows
        for p in _alone([row.ids]).double().softmax(-1)
    ]
    assert ROLE.gaps_are_exact
    assert not ROLE.rows_alone
    counted = Counted(ROLE, monkeypatch)
    read = read_labels(ROLE, rows)
    for got, want in zip(read, plain, strict=True):
        assert got == pytest.approx(want, rel=1e-3, abs=1e-6)
    assert counted.fed < 0.75 * sum(len(row.ids) for row in rows)
    # All before the candidate is shared: no prompt differs from another earlier.
    one, two = (row.ids for row in rows[:2])
    same = next(n for n, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert "bake bread? How do I" in ROLE.tokenizer.decode(one[:same])
