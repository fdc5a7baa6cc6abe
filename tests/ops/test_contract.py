"""Hand-worked rows of the contract (docs/algorithm.md, section 3) and its refusals."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from alignbeam.errors import BackendUnavailable
from alignbeam.ops import Flags, MixResult, backends, dispatch, mix_topk

NEVER = float("-inf")
BACKENDS = [line.name for line in backends() if line.device == "cpu" and line.available]


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def row(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)


def logs(*probs: float) -> Tensor:
    return row(*[math.log(p) if p > 0 else NEVER for p in probs])


def table(*ids: int) -> Tensor:
    return torch.tensor(ids, dtype=torch.int32)


def assert_row(result: MixResult, ids: list[int], probs: list[float]) -> None:
    assert result.token_ids.tolist() == [ids]
    expected = logs(*probs)
    torch.testing.assert_close(result.logprobs, expected, rtol=0, atol=1e-5)


def test_mix_topk_weighs_both_sides_linear(backend: str) -> None:
    out = mix_topk(
        logs(0.5, 0.3, 0.2), logs(0.1, 0.2, 0.7), table(1, 2, -1),
        alpha=0.25, top_b=3, top_k=3, backend=backend,
    )  # fmt: skip
    f1, f2 = 0.25 * 0.5 + 0.75 * 0.2, 0.25 * 0.3 + 0.75 * 0.7
    assert_row(out, [2, 1, -1], [f2 / (f1 + f2), f1 / (f1 + f2), 0.0])
    assert out.anchor_mass.item() == pytest.approx(1.0, abs=1e-5)
    assert out.translated_mass.item() == pytest.approx(0.8, abs=1e-5)
    assert out.target_mass.item() == pytest.approx(0.9, abs=1e-5)
    assert out.flags.item() == 0


def test_mix_topk_weighs_both_sides_log(backend: str) -> None:
    out = mix_topk(
        logs(0.5, 0.3, 0.2), logs(0.1, 0.2, 0.7), table(1, 2, -1),
        alpha=0.25, top_b=3, top_k=2, mix="log", backend=backend,
    )  # fmt: skip
    f1, f2 = 0.5**0.25 * 0.2**0.75, 0.3**0.25 * 0.7**0.75
    assert_row(out, [2, 1], [f2 / (f1 + f2), f1 / (f1 + f2)])


def test_mix_topk_sums_anchor_mass_and_adds_target_once_on_collision(backend: str) -> None:
    out = mix_topk(
        logs(0.5, 0.3, 0.2), logs(0.6, 0.4), table(0, 0, 1),
        alpha=0.5, top_b=3, top_k=2, backend=backend,
    )  # fmt: skip
    assert_row(out, [0, 1], [0.5 * 0.8 + 0.5 * 0.6, 0.5 * 0.2 + 0.5 * 0.4])


def test_mix_topk_keeps_lower_anchor_ids_on_tie(backend: str) -> None:
    out = mix_topk(
        row(0, 0, 0, 0), row(0, 0, 0, 0), table(3, 2, 1, 0), top_b=2, top_k=3, backend=backend
    )
    assert_row(out, [2, 3, -1], [0.5, 0.5, 0.0])


def test_mix_topk_ties_negative_zero_with_zero(backend: str) -> None:
    out = mix_topk(
        row(-0.0, 0.0, -1.0), row(0, 0, 0), table(2, 1, 0), top_b=1, top_k=2, backend=backend
    )
    assert_row(out, [2, -1], [1.0, 0.0])


def test_mix_topk_falls_back_to_target_when_nothing_translates(backend: str) -> None:
    out = mix_topk(
        logs(0.5, 0.5), logs(0.2, 0.5, 0.3), table(-1, -1), top_b=2, top_k=2, backend=backend
    )
    assert_row(out, [1, 2], [0.5, 0.3])
    assert out.flags.item() == Flags.EMPTY_SUPPORT
    assert out.translated_mass.item() == 0.0
    assert out.target_mass.item() == 0.0
    assert out.anchor_mass.item() == pytest.approx(1.0, abs=1e-5)


@pytest.mark.parametrize(("alpha", "mix"), [(0.0, "linear"), (0.0, "log"), (0.5, "log")])
def test_mix_topk_falls_back_to_target_when_support_has_no_mass(
    backend: str, alpha: float, mix: str
) -> None:
    out = mix_topk(
        logs(1.0, 0.0), logs(0.0, 1.0), table(0, -1),
        alpha=alpha, top_b=2, mix=mix, backend=backend,
    )  # fmt: skip
    assert_row(out, [1], [1.0])
    assert out.flags.item() == Flags.EMPTY_SUPPORT


@pytest.mark.parametrize("depth", [600.0, 640.0, 700.0, 800.0, 5000.0])
def test_mix_topk_tells_probabilities_apart_that_double_rounds_to_zero(
    backend: str, depth: float
) -> None:
    """exp(-745) is the smallest double: linear mixing may not lose what lies below it."""
    out = mix_topk(
        row(0, -depth, 1 - depth, 2 - depth), row(-depth, 2 - depth, 1 - depth, 0),
        table(-1, 0, 1, 2), alpha=0.5, top_b=4, top_k=3, backend=backend,
    )  # fmt: skip
    f = [1 + 1, math.e + math.e**2, math.e**2 + math.e]
    assert_row(out, [1, 2, 0], [f[1] / sum(f), f[2] / sum(f), f[0] / sum(f)])
    assert out.flags.item() == 0


def test_mix_topk_ranks_a_negligible_probability_behind_a_large_one(backend: str) -> None:
    out = mix_topk(
        row(0, -700, -700.5), row(0, -700, -700.5), table(0, 1, 2),
        alpha=0.5, top_b=3, top_k=3, backend=backend,
    )  # fmt: skip
    assert out.token_ids.tolist() == [[0, 1, 2]]
    torch.testing.assert_close(out.logprobs, row(0, -700, -700.5), rtol=0, atol=1e-4)


def test_mix_topk_union_without_anchor_is_the_target(backend: str) -> None:
    out = mix_topk(
        logs(0.9, 0.1), logs(0.2, 0.5, 0.3), table(0, -1),
        alpha=0.0, top_b=2, top_k=3, support="union", backend=backend,
    )  # fmt: skip
    assert_row(out, [1, 2, 0], [0.5, 0.3, 0.2])
    assert out.target_mass.item() == pytest.approx(1.0, abs=1e-5)


def test_mix_topk_union_without_anchor_ranks_logits_no_rounding_can_tell(backend: str) -> None:
    out = mix_topk(
        row(0, 0), row(1e-30, 2e-30, 10.0), table(0, 1),
        alpha=0.0, top_b=2, top_k=3, support="union", backend=backend,
    )  # fmt: skip
    assert out.token_ids.tolist() == [[2, 1, 0]]


def test_mix_topk_union_without_target_is_the_translated_anchor(backend: str) -> None:
    out = mix_topk(
        logs(0.6, 0.3, 0.1), logs(0.9, 0.05, 0.03, 0.02), table(3, 2, -1),
        alpha=1.0, top_b=3, top_k=4, support="union", backend=backend,
    )  # fmt: skip
    assert_row(out, [3, 2, 0, 1], [2 / 3, 1 / 3, 0.0, 0.0])


def test_mix_topk_union_mixes_over_the_whole_target(backend: str) -> None:
    out = mix_topk(
        logs(0.6, 0.4), logs(0.15, 0.2, 0.65), table(0, -1),
        alpha=0.5, top_b=2, top_k=3, support="union", backend=backend,
    )  # fmt: skip
    total = 0.5 * 0.6 + 0.5
    assert_row(out, [0, 2, 1], [0.375 / total, 0.325 / total, 0.1 / total])


@pytest.mark.parametrize("side", ["anchor", "target"])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_mix_topk_flags_the_poisoned_row_alone(backend: str, side: str, poison: float) -> None:
    anchor = torch.tensor([[1.0, 2.0, 3.0]] * 3)
    target = torch.tensor([[3.0, 1.0]] * 3)
    ids = table(0, 1, -1)
    clean = mix_topk(anchor, target, ids, top_b=2, top_k=2, backend=backend)
    (anchor if side == "anchor" else target)[1, 0] = poison
    out = mix_topk(anchor, target, ids, top_b=2, top_k=2, backend=backend)
    assert out.flags.tolist() == [0, Flags.NON_FINITE, 0]
    assert out.token_ids[1].tolist() == [-1, -1]
    for name in ("logprobs", "anchor_mass", "translated_mass", "target_mass"):
        assert getattr(out, name)[1].isnan().all(), name
    for got, want in zip(out, clean, strict=True):
        assert torch.equal(got[[0, 2]], want[[0, 2]])


def test_mix_topk_flags_a_fully_masked_row(backend: str) -> None:
    out = mix_topk(row(NEVER, NEVER), row(0.0), table(0, 0), top_b=2, backend=backend)
    assert out.flags.item() == Flags.NON_FINITE


def test_mix_topk_returns_nothing_for_no_rows(backend: str) -> None:
    out = mix_topk(
        torch.empty(0, 5), torch.empty(0, 4), table(0, 1, 2, 3, -1), top_b=5, top_k=2,
        backend=backend,
    )  # fmt: skip
    assert [tuple(tensor.shape) for tensor in out] == [(0, 2), (0, 2), (0,), (0,), (0,), (0,)]


def test_mix_topk_takes_alpha_per_row(backend: str) -> None:
    anchor, target = logs(0.8, 0.2).repeat(2, 1), logs(0.1, 0.9).repeat(2, 1)
    out = mix_topk(
        anchor, target, table(0, 1), alpha=torch.tensor([1.0, 0.0]), top_b=2, backend=backend
    )
    assert out.token_ids.tolist() == [[0], [1]]


def arguments(**changes: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "anchor_logits": torch.zeros(2, 4),
        "target_logits": torch.zeros(2, 3),
        "table": table(0, 1, 2, -1),
        "top_b": 4,
    }
    return {**base, **changes}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"top_b": 0}, ValueError, "mix_topk: top_b must be in 1..Va, got 0"),
        ({"top_b": 5}, ValueError, "mix_topk: top_b must be in 1..Va, got 5"),
        ({"top_b": 2.0}, TypeError, "top_b must be an int, got float"),
        ({"top_b": True}, TypeError, "top_b must be an int, got bool"),
        ({"top_k": 0}, ValueError, "mix_topk: top_k must be in 1..8, got 0"),
        ({"top_k": 9}, ValueError, "mix_topk: top_k must be in 1..8, got 9"),
        ({"alpha": math.nan}, ValueError, "alpha must be in 0..1, got nan"),
        ({"alpha": 1.5}, ValueError, "alpha must be in 0..1, got 1.5"),
        ({"alpha": 10**400}, ValueError, "alpha must be in 0..1, got 1000"),
        ({"alpha": True}, TypeError, "alpha must be a float or a tensor, got bool"),
        ({"alpha": torch.tensor([0.5, 0.5], requires_grad=True)}, ValueError, "not require grad"),
        ({"top_b": 2**80}, ValueError, "mix_topk: top_b must be in 1..Va, got 1208925"),
        ({"mix": 1}, ValueError, "mix must be one of linear, log, got 1"),
        ({"alpha": torch.tensor([0.5, -0.1])}, ValueError, "alpha must be in 0..1"),
        ({"alpha": torch.tensor([0.5, math.nan])}, ValueError, "alpha must be in 0..1, got nan"),
        ({"alpha": torch.tensor([0.5])}, ValueError, r"alpha must have shape \[R\] = \[2\]"),
        ({"alpha": torch.tensor([0.5, 0.5]).double()}, TypeError, "alpha must be float32"),
        ({"alpha": "0.5"}, TypeError, "alpha must be a float or a tensor, got str"),
        ({"mix": "linar"}, ValueError, "mix must be one of linear, log, got 'linar'"),
        ({"support": "both"}, ValueError, "support must be one of anchor, union"),
        ({"backend": "cdua"}, ValueError, "backend must be one of auto, "),
        ({"table": [0, 1, 2, -1]}, TypeError, "table must be a torch.Tensor, got list"),
        ({"table": table(0, 1, 2)}, ValueError, "table must have Va = 4, got Va = 3"),
        ({"table": table(0, 1, 2, -1, -1)}, ValueError, "table must have Va = 4, got Va = 5"),
        ({"table": table(0, 1, 2, -1).long()}, TypeError, "table must be int32, got int64"),
        ({"table": table(0, 1, 3, -1)}, ValueError, r"table must hold -1..Vt-1 \(Vt = 3\), got 3"),
        ({"table": table(0, 1, -2, 2)}, ValueError, "table must hold -1..Vt-1 .* got -2"),
        ({"table": table(0, 9, 1, 9, 2, 9, -1, 9)[::2]}, ValueError, "contiguous last dimension"),
        ({"target_logits": torch.zeros(3, 3)}, ValueError, "target_logits must have R = 2"),
        ({"target_logits": torch.zeros(2, 0)}, ValueError, "target_logits must have Vt >= 1"),
        ({"target_logits": torch.zeros(2, 3, 1)}, ValueError, r"must have shape \[R, Vt\]"),
        ({"target_logits": torch.zeros(2, 3).double()}, TypeError, "target_logits must be float32"),
        ({"target_logits": torch.zeros(3, 2).T}, ValueError, "contiguous last dimension"),
        ({"target_logits": torch.zeros(2, 3, device="meta")}, ValueError, "must be on cpu"),
        ({"anchor_logits": torch.zeros(2, 4).int()}, TypeError, "anchor_logits must be float32"),
        ({"anchor_logits": torch.zeros(4)}, ValueError, r"must have shape \[R, Va\], got \[4\]"),
        ({"table": table(0, 1, 2, -1)[None]}, ValueError, r"must have shape \[Va\]"),
        ({"anchor_logits": None}, TypeError, "anchor_logits must be a torch.Tensor, got NoneType"),
        (
            {"anchor_logits": torch.zeros(2, 4, requires_grad=True)},
            ValueError,
            "anchor_logits must not require grad",
        ),
    ],
)  # fmt: skip
def test_mix_topk_refuses_arguments_outside_the_contract(
    backend: str, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        mix_topk(**{"backend": backend, **arguments(**changes)})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"alpha": 1},
        {"alpha": torch.tensor([0.0, 9.0, 1.0, 9.0])[::2]},
        {"anchor_logits": torch.zeros(2, 9)[:, 3:7]},
        {"anchor_logits": torch.zeros(4).expand(2, 4)},
        {"table": table(-1, -1, 0, 1, 2, -1)[2:]},
        {"target_logits": torch.zeros(2, 3).half(), "anchor_logits": torch.zeros(2, 4).bfloat16()},
        {"table": torch.nn.Parameter(table(0, 1, 2, -1), requires_grad=False)},
    ],
    ids=str,
)
def test_mix_topk_accepts_all_that_the_contract_allows(
    backend: str, changes: dict[str, Any]
) -> None:
    assert mix_topk(**arguments(**changes), backend=backend).flags.tolist() == [0, 0]


@pytest.mark.skipif("cpu" not in BACKENDS, reason="no native extension")
def test_mix_topk_refuses_tensors_without_memory() -> None:
    with FakeTensorMode() as mode:
        fake = mode.from_tensor(torch.zeros(2, 4))
    with pytest.raises(TypeError, match="plain tensors with memory of their own"):
        mix_topk(**arguments(anchor_logits=fake, backend="cpu"))


def test_mix_topk_results_outlive_each_other() -> None:
    """The extension makes a call's six tensors of one block of memory."""
    kept = [mix_topk(**arguments())[i] for i in range(6) for _ in range(50)]
    poisoned = arguments(anchor_logits=torch.full((2, 4), math.nan))
    others = [mix_topk(**poisoned) for _ in range(500)]  # they would take memory freed too soon
    want = mix_topk(**arguments(), backend="reference")
    for i, tensor in enumerate(kept):
        torch.testing.assert_close(tensor, want[i // 50])
    assert all(other.flags.tolist() == [Flags.NON_FINITE] * 2 for other in others)


def test_mix_topk_checks_a_table_again_after_it_was_written_to() -> None:
    ids = table(0, 1, 2, -1)
    mix_topk(**arguments(table=ids))
    ids[0] = 3
    with pytest.raises(ValueError, match="got 3"):
        mix_topk(**arguments(table=ids))


def test_mix_topk_checks_a_table_again_for_a_narrower_target() -> None:
    ids = table(0, 1, 2, -1)
    mix_topk(**arguments(table=ids))
    with pytest.raises(ValueError, match=r"Vt = 2"):
        mix_topk(**arguments(table=ids, target_logits=torch.zeros(2, 2)))


def test_mix_topk_refuses_rows_whose_table_changed_unseen(backend: str) -> None:
    ids = table(0, 1, 2, -1)
    mix_topk(**arguments(table=ids, backend=backend))
    ids.numpy()[1] = 1_000_000  # torch counts no version for this write
    out = mix_topk(**arguments(table=ids, backend=backend))
    assert out.flags.tolist() == [Flags.NON_FINITE] * 2
    assert out.token_ids.tolist() == [[-1], [-1]]


def test_resolve_never_falls_back_when_a_backend_is_named() -> None:
    with pytest.raises(BackendUnavailable, match=r"cpu.*cannot run on cuda.*cpu only"):
        dispatch.resolve("cuda", "cpu")


def test_resolve_falls_back_and_says_why_when_auto(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = dispatch.Backend("cpu", "nowhere", "nothing", lambda _: "it is broken", lambda: "")
    monkeypatch.setitem(dispatch._BACKENDS, "cpu", broken)
    dispatch.resolve.cache_clear()
    try:
        run = dispatch.resolve("cpu", "auto")
    finally:
        dispatch.resolve.cache_clear()
    assert run.__module__ == "alignbeam.ops.reference"
    assert "'cpu' cannot run on cpu: it is broken" in caplog.text


def test_backends_names_each_backend_with_its_state() -> None:
    lines = backends()
    assert ("reference", "cpu", True) in [line[:3] for line in lines]
    assert all(line.detail for line in lines)
