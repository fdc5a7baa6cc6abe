"""The CUDA kernel's own lines on the host, on rows made to defeat them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from op_strategies import Case, assert_matches_reference, embedded, make_table

from alignbeam.ops import MixResult, build

_EXTENSION = build.cpu_extension()
pytestmark = pytest.mark.skipif(
    _EXTENSION.reason is not None, reason=f"no native extension: {_EXTENSION.reason}"
)
INF = float("inf")
Maker = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


def _few(c: torch.Tensor, fill: float, places: slice, value: float) -> torch.Tensor:
    x = torch.full((len(c),), fill)
    x[places] = value
    return x


def _drawn(c: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return torch.randn(len(c), generator=g)


def _steps(c: torch.Tensor, g: torch.Generator) -> torch.Tensor:
    return (torch.rand(len(c), generator=g) * 64).floor() * 2**-23


ROWS: dict[str, Maker] = {
    "equal": lambda c, g: torch.full((len(c),), -1.7),
    "ascending": lambda c, g: c / len(c) * 12 - 4,
    "descending": lambda c, g: -c / len(c) * 12 + 4,
    "five values": lambda c, g: (torch.rand(len(c), generator=g) * 5).floor(),
    "neighbours of 1": lambda c, g: 1 + _steps(c, g),
    "neighbours of -1": lambda c, g: -1 - _steps(c, g),
    "a tie in each octet": lambda c, g: torch.where(c % 8 == 0, 2.0, -1.0),
    "late ties": lambda c, g: _few(c, -1.7, slice(-3000, None), 0.5),
    "spread ties": lambda c, g: _few(c, -1.0, slice(None, None, 97), 2.0),
    "20 left": lambda c, g: _few(c, -INF, slice(1000, 1020), 1.0),
    "sorted steps": lambda c, g: (c / len(c) * 40).floor(),
    "one block high": lambda c, g: torch.where((c > 5000) & (c < 9000), 4.0, 0.0) + _drawn(c, g),
    "huge": lambda c, g: _drawn(c, g) * 3e37,
    "tiny": lambda c, g: _drawn(c, g) * 1e-38,
    "far from 0": lambda c, g: _drawn(c, g) * 3 + 1e5,
    "2^30": lambda c, g: _drawn(c, g) * 3 + 2.0**30,
    "NaN among equals": lambda c, g: _few(c, 0.25, slice(7, 8), float("nan")),
    "inf among equals": lambda c, g: _few(c, 0.25, slice(None, None, 2), INF),
    "all masked": lambda c, g: torch.full((len(c),), -INF),
    "negatives": lambda c, g: -(torch.rand(len(c), generator=g) * 4).round() - 1,
}
OPTIONS = [
    (50, "anchor", "linear"),
    (256, "union", "linear"),
    (1, "anchor", "log"),
    (133, "union", "log"),
]


def run_on_host(case: Case) -> MixResult:
    return MixResult._make(_EXTENSION.require().mix_topk_host(**case.arguments()))


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cuda_steps_match_reference_on_rows_made_to_defeat_them(
    name: str, dtype: torch.dtype
) -> None:
    g = torch.Generator().manual_seed(11)
    which = list(ROWS).index(name)
    top_b, support, mix = OPTIONS[which % len(OPTIONS)]
    anchor = ROWS[name](torch.arange(20_003).float(), g).to(dtype)
    target = (torch.randn(9_001, generator=g) * 3).to(dtype)
    case = Case(
        embedded(anchor[None], 1, which % 3 * 4), embedded(target[None], 0, which % 2),
        make_table("spread", 20_003, 9_001, g), 0.5, top_b, 3, mix, support,
    )  # fmt: skip
    assert_matches_each_time(case, name)


def assert_matches_each_time(case: Case, what: str) -> None:
    first = run_on_host(case)
    assert_matches_reference(first, case, what)
    # Each run on the host has another layout and another order of threads.
    for again in (run_on_host(case), run_on_host(case)):
        for x, y in zip(first, again, strict=True):
            assert torch.equal(x.nan_to_num(7.0), y.nan_to_num(7.0))


@pytest.mark.parametrize("width", [70_001, 131_073, 524_288])
def test_cuda_steps_match_reference_on_a_tie_in_each_of_many_groups(width: int) -> None:
    # More groups than are looked at before the ranks of their ties are known.
    g = torch.Generator().manual_seed(12)
    column = torch.arange(width)
    anchor = torch.where(column % 256 == column // 256 * 37 % 256, 2.0, -1.0)
    case = Case(
        anchor[None], torch.randn(1, 9_001, generator=g), make_table("spread", width, 9_001, g),
        0.5, 50, 3, "linear", "anchor",
    )  # fmt: skip
    assert_matches_each_time(case, str(width))


@pytest.mark.parametrize("top_b", [33, 64, 256])
def test_cuda_steps_match_reference_where_slots_share_an_id(top_b: int) -> None:
    g = torch.Generator().manual_seed(top_b)
    case = Case(
        torch.randn(2, 20_003, generator=g) * 3, torch.randn(2, 9_001, generator=g) * 3,
        make_table("narrow", 20_003, 9_001, g), 0.5, top_b, 3, "linear", "anchor",
    )  # fmt: skip
    for _ in range(4):
        assert_matches_each_time(case, str(top_b))


def test_cuda_steps_refuse_rows_that_their_memory_does_not_hold() -> None:
    wide, narrow = torch.zeros(1, 524_289 + 2**19), torch.zeros(1, 8)
    for anchor, target in ((wide, narrow), (narrow, wide)):
        table = torch.zeros(anchor.shape[1], dtype=torch.int32)
        with pytest.raises(ValueError, match="at most 524,288 columns"):
            run_on_host(Case(anchor, target, table, 0.5, 5, 1, "linear", "anchor"))
