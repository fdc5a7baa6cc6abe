"""Inputs of `mix_topk`, generated from its contract, and the one comparison with the reference."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from alignbeam.ops import MAX_TOP_B, MAX_TOP_K, Flags, MixResult, reference
from alignbeam.ops.spec import FLOATS, MIXES, SUPPORTS, TOLERANCE

# The edges of every grid a backend cuts a row by (8, 32, 64, 256, 1,024, 2,048, 8,192, 16,384).
WIDTHS = (1, 2, 7, 8, 31, 33, 50, 64, 255, 257, 1023, 1025, 2047, 2049, 8193, 16383, 16385, 31999)
KINDS = ("gaussian", "peaked", "ties", "equal", "ascending", "descending", "masked", "offset",
         "wide", "zeros", "lonely")  # fmt: skip
POISONS = (math.nan, -math.nan, math.inf)
_GUARD = 64


@dataclass(frozen=True)
class Case:
    """The arguments of one call."""

    anchor_logits: Tensor
    target_logits: Tensor
    table: Tensor
    alpha: float | Tensor
    top_b: int
    top_k: int
    mix: str
    support: str

    def arguments(self) -> dict[str, Any]:
        return dict(vars(self))

    def with_rows(self, rows: list[int]) -> Case:
        alpha = self.alpha[rows] if isinstance(self.alpha, Tensor) else self.alpha
        return Case(
            **{
                **self.arguments(),
                "anchor_logits": self.anchor_logits[rows],
                "target_logits": self.target_logits[rows],
                "alpha": alpha,
            }
        )


def values(kind: str, rows: int, width: int, generator: torch.Generator) -> Tensor:
    """Return float32 [rows, width] of one kind."""
    x = torch.randn(rows, width, generator=generator) * 3
    if kind == "peaked":
        x[:, torch.randint(width, (min(width, 3),), generator=generator)] += 25
    elif kind == "ties":
        x = torch.randint(-2, 3, (rows, width), generator=generator).float()
    elif kind == "equal":
        x = torch.full((rows, width), -1.7)
    elif kind == "ascending":
        x = x.sort(dim=1).values
    elif kind == "descending":
        x = x.sort(dim=1, descending=True).values
    elif kind == "masked":  # whole blocks, heads included; one column always remains
        keep = torch.randint(width, (1,), generator=generator)
        begin = int(torch.randint(width, (1,), generator=generator))
        kept = x[:, keep].clone()
        x[:, :begin] = -math.inf
        x[:, keep] = kept
    elif kind == "offset":
        x += 20_000
    elif kind == "wide":
        x *= 400
    elif kind == "zeros":
        x = torch.where(x > 0, 0.0, -0.0)
    elif kind == "lonely":
        x = torch.full((rows, width), -math.inf)
        x[:, int(torch.randint(width, (1,), generator=generator))] = 4.0
    return x


def embedded(x: Tensor, gap: int, offset: int) -> Tensor:
    """Return ``x`` inside a larger buffer of NaN: row stride ``width + gap``, any alignment.

    A read outside the rows meets NaN and shows in the result.
    """
    rows, width = x.shape
    stride = width + gap
    buffer = torch.full((2 * _GUARD + offset + max(rows, 1) * stride,), math.nan, dtype=x.dtype)
    view = buffer.as_strided((rows, width), (stride, 1), _GUARD + offset)
    view.copy_(x)
    return view


def make_table(kind: str, anchor_width: int, target_width: int, g: torch.Generator) -> Tensor:
    """Return int32 [anchor_width]."""
    if kind == "nothing":
        return torch.full((anchor_width,), -1, dtype=torch.int32)
    high = target_width if kind == "spread" else min(target_width, 3)  # else: many collisions
    return torch.randint(-1, high, (anchor_width,), generator=g, dtype=torch.int32)


@st.composite
def cases(draw: st.DrawFn, max_width: int = WIDTHS[-1], max_rows: int = 3) -> Case:
    """Draw a call: shapes, strides, dtypes and parameters from the spec, logits of many kinds."""
    g = torch.Generator().manual_seed(draw(st.integers(0, 2**31 - 1)))
    widths = st.sampled_from([width for width in WIDTHS if width <= max_width])
    rows = draw(st.integers(1, max_rows))
    sides = []
    for _ in range(2):
        x = values(draw(st.sampled_from(KINDS)), rows, draw(widths), g)
        x = x.to(draw(st.sampled_from(FLOATS)))
        if draw(st.integers(0, 5)) == 0:
            row = draw(st.integers(0, rows - 1))
            x[row, draw(st.integers(0, x.shape[1] - 1))] = draw(st.sampled_from(POISONS))
        sides.append(embedded(x, draw(st.integers(0, 9)), draw(st.integers(0, 9))))
    anchor, target = sides
    table = make_table(
        draw(st.sampled_from(("spread", "spread", "narrow", "nothing"))),
        anchor.shape[1], target.shape[1], g,
    )  # fmt: skip
    alpha: float | Tensor = draw(st.sampled_from((0.0, 1.0, 0.5, 0.3, 1e-6)))
    if draw(st.booleans()):
        alpha = torch.rand(rows, generator=g)
        alpha[draw(st.integers(0, rows - 1))] = draw(st.sampled_from((0.0, 1.0, 0.5)))
    return Case(
        anchor_logits=anchor,
        target_logits=target,
        table=table,
        alpha=alpha,
        top_b=draw(st.integers(1, min(anchor.shape[1], MAX_TOP_B))),
        top_k=draw(st.integers(1, MAX_TOP_K)),
        mix=draw(st.sampled_from(MIXES)),
        support=draw(st.sampled_from(SUPPORTS)),
    )


def assert_matches_reference(result: MixResult, case: Case, backend: str) -> None:
    """Compare with the float64 reference: flags exactly, log F and ids within the tolerance."""
    want = reference.mix_topk(**case.arguments())
    tolerance = max(TOLERANCE[case.anchor_logits.dtype], TOLERANCE[case.target_logits.dtype])
    where = (
        f"{backend} {list(case.anchor_logits.shape)} {case.anchor_logits.dtype} -> "
        f"{list(case.target_logits.shape)} {case.target_logits.dtype} alpha={case.alpha} "
        f"top_b={case.top_b} top_k={case.top_k} {case.mix} {case.support}"
    )
    assert result.flags.tolist() == want.flags.tolist(), where
    for name in ("anchor_mass", "translated_mass", "target_mass"):
        torch.testing.assert_close(
            getattr(result, name), getattr(want, name), rtol=1e-5, atol=1e-7, equal_nan=True,
            msg=lambda text, name=name: f"{where}: {name}: {text}",
        )  # fmt: skip
    # Both sides round log F to float32; beyond that, the contract's tolerance.
    torch.testing.assert_close(
        result.logprobs, want.logprobs, rtol=2.5e-7, atol=tolerance, equal_nan=True,
        msg=lambda text: f"{where}: logprobs: {text}",
    )  # fmt: skip
    for row in (result.token_ids != want.token_ids).any(dim=1).nonzero().flatten().tolist():
        _assert_near_tie(result, case, row, tolerance, where)


def _assert_near_tie(result: MixResult, case: Case, row: int, tolerance: float, where: str) -> None:
    """Ids may differ from the reference's only where its own values are within the tolerance."""
    one = case.with_rows([row])
    arguments = {**one.arguments(), "top_k": case.target_logits.shape[1]}
    full = reference.mix_topk(**arguments)  # the whole ranking: the reference has no limit
    assert not int(full.flags) & Flags.NON_FINITE, where
    by_id = dict(zip(full.token_ids[0].tolist(), full.logprobs[0].tolist(), strict=True))
    got = result.token_ids[row].tolist()
    assert len({i for i in got if i >= 0}) == len([i for i in got if i >= 0]), f"{where}: {got}"
    for k, token_id in enumerate(got):
        expected = float(full.logprobs[0, k]) if k < full.logprobs.shape[1] else -math.inf
        actual = by_id.get(token_id, -math.inf) if token_id >= 0 else -math.inf
        close = actual == expected or abs(actual - expected) <= 2 * tolerance
        assert close, f"{where}: row {row} place {k}: id {token_id}, {actual} for {expected}"
