"""``Rows`` against plain forwards: any sequence of growing, taking back, forking and idling."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import random_role

from alignbeam.models.role import Role
from alignbeam.models.rows import Rows, pad_left

#: Full attention, a window that soon slides, mixed windows, position by column, recurrent state.
KINDS = ("llama", "mistral", "gemma3_text", "mpt", "jamba")

TOKENS = st.integers(0, 479)
SOME = st.lists(TOKENS, max_size=3)


@cache
def role_of(architecture: str) -> Role:
    return random_role("target", architecture)


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[list[int]], list[tuple[str, Any]]]:
    """Prompts and up to six operations on them, each fitting the rows that the last one left."""
    prompts = draw(st.lists(st.lists(TOKENS, min_size=1, max_size=12), min_size=1, max_size=4))
    rows = [list(p) for p in prompts]
    steps: list[tuple[str, Any]] = []
    for _ in range(draw(st.integers(1, 6))):
        kind = draw(st.sampled_from(["extend", "drop", "replace", "select"]))
        if kind == "extend":
            new = [draw(SOME) for _ in rows]
            steps.append((kind, new))
            rows = [row + tokens for row, tokens in zip(rows, new, strict=True)]
        elif kind == "drop":
            drops = [draw(st.integers(0, min(3, len(row) - 1))) for row in rows]
            new = [draw(st.lists(TOKENS, min_size=bool(d), max_size=3)) for d in drops]
            steps.append((kind, (new, drops)))
            rows = [r[: len(r) - d] + n for r, d, n in zip(rows, drops, new, strict=True)]
        elif kind == "replace":
            starts = [draw(st.integers(1, len(row))) for row in rows]
            kept = [draw(st.integers(start, len(r))) for start, r in zip(starts, rows, strict=True)]
            suffixes = [
                draw(st.none() | SOME.map(lambda new, old=row[start:keep]: old + new))
                for row, start, keep in zip(rows, starts, kept, strict=True)
            ]
            steps.append((kind, (starts, suffixes)))
            rows = [
                row if suffix is None else row[:start] + suffix
                for row, start, suffix in zip(rows, starts, suffixes, strict=True)
            ]
        else:
            index = draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=5))
            steps.append((kind, index))
            rows = [list(rows[i]) for i in index]
    return prompts, steps


def plain(role: Role, ids: list[int]) -> torch.Tensor:
    """What the model itself says: no cache, no padding, no mask, no positions."""
    with torch.inference_mode():
        logits: torch.Tensor = role.model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0, -1]


def assert_rows_equal_plain_forwards(role: Role, rows: Rows, expected: list[list[int]]) -> None:
    assert rows.ids == expected
    want = torch.stack([plain(role, ids) for ids in expected])
    torch.testing.assert_close(rows.logits, want, rtol=0, atol=2e-4)


def replay(rows: Rows, step: tuple[str, Any]) -> list[list[int]]:
    """Do one operation; return the ids that the rows must then hold."""
    kind, what = step
    before = [list(ids) for ids in rows.ids]
    if kind == "extend":
        rows.extend(what)
        return [ids + new for ids, new in zip(before, what, strict=True)]
    if kind == "drop":
        new, drops = what
        rows.extend(new, drops)
        return [b[: len(b) - d] + n for b, d, n in zip(before, drops, new, strict=True)]
    if kind == "replace":
        starts, suffixes = what
        rows.replace_suffixes(starts, suffixes)
        return [
            ids if suffix is None else ids[:start] + suffix
            for ids, start, suffix in zip(before, starts, suffixes, strict=True)
        ]
    rows.select(what)
    return [before[i] for i in what]


@pytest.mark.parametrize("architecture", KINDS)
@given(history=histories())
@settings(max_examples=15, deadline=None)
def test_rows_equal_plain_forwards_after_any_history(
    architecture: str, history: tuple[list[list[int]], list[tuple[str, Any]]]
) -> None:
    role = role_of(architecture)
    prompts, steps = history
    rows = role.rows(prompts)
    assert_rows_equal_plain_forwards(role, rows, prompts)
    for step in steps:
        expected = replay(rows, step)
        assert_rows_equal_plain_forwards(role, rows, expected)


@pytest.mark.parametrize("architecture", KINDS)
def test_row_that_idled_is_exact_when_it_grows_again(architecture: str) -> None:
    role = role_of(architecture)
    rows = role.rows([[5, 6, 7], [8, 9, 10]])
    for token in range(20, 26):
        rows.extend([[token], []])
    rows.extend([[30], [31]])
    assert_rows_equal_plain_forwards(
        role, rows, [[5, 6, 7, *range(20, 26), 30], [8, 9, 10, 31]]
    )  # fmt: skip


@pytest.mark.parametrize("architecture", KINDS)
def test_gap_made_before_the_window_slid_is_exact_after_it(architecture: str) -> None:
    role = role_of(architecture)
    rows = role.rows([[5, 6, 7], [8, 9, 10]])
    rows.extend([[11, 12, 13], [14]])  # row 1 gets a gap of two columns
    for token in range(20, 30):
        rows.extend([[token], [token + 20]])
    assert_rows_equal_plain_forwards(
        role, rows, [[5, 6, 7, 11, 12, 13, *range(20, 30)], [8, 9, 10, 14, *range(40, 50)]]
    )


@pytest.mark.parametrize("architecture", KINDS)
def test_several_tokens_at_once_continue_from_the_cache_exactly(architecture: str) -> None:
    role = role_of(architecture)
    rows = role.rows([[5, 6, 7], [8, 9, 10, 11, 12]])
    for _ in range(3):
        rows.extend([[20, 21, 22], [30, 31, 32]])
    assert_rows_equal_plain_forwards(
        role, rows, [[5, 6, 7, *[20, 21, 22] * 3], [8, 9, 10, 11, 12, *[30, 31, 32] * 3]]
    )


def test_replacing_a_suffix_by_itself_feeds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    role = role_of("llama")
    rows = role.rows([[1, 2, 3], [4, 5, 6]])
    before = rows.logits.clone()
    fed: list[tuple[int, ...]] = []
    forward = role.forward

    def counted(ids: torch.Tensor, *rest: Any) -> torch.Tensor:
        fed.append(tuple(ids.shape))
        return forward(ids, *rest)

    monkeypatch.setattr(role, "forward", counted)
    rows.replace_suffixes([1, 1], [[2, 3], None])
    assert fed == []
    assert torch.equal(rows.logits, before)
    rows.replace_suffixes([1, 1], [[2, 9], None])
    assert fed == [(2, 1)], "only what follows the common prefix is fed"


def test_idle_rows_keep_their_logits_bit_for_bit() -> None:
    rows = role_of("llama").rows([[1, 2, 3], [4, 5]])
    before = rows.logits[1].clone()
    rows.extend([[9], []])
    assert torch.equal(rows.logits[1], before)


def test_extend_refuses_to_take_back_without_new_tokens() -> None:
    rows = role_of("llama").rows([[1, 2, 3], [4, 5]])
    with pytest.raises(ValueError, match=r"row 1 .* nothing new"):
        rows.extend([[9], []], [0, 1])


def test_pad_left_masks_exactly_the_padding() -> None:
    block, mask = pad_left([[1], [2, 3, 4], []], 7, torch.device("cpu"))
    assert block.tolist() == [[7, 7, 1], [2, 3, 4], [7, 7, 7]]
    assert mask.tolist() == [[0, 0, 1], [1, 1, 1], [0, 0, 0]]
