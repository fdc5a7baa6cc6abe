"""A few small calls of `mix_topk`, each twice, compared with the reference: for compute-sanitizer.

usage: compute-sanitizer --tool TOOL python tests/native/small_calls.py. Every input is written by a
copy from the host, so that initcheck sees it written, and torch launches next to nothing itself.
Without a GPU the CPU kernel is called.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from op_strategies import Case, assert_matches_reference, make_table, values  # noqa: E402

from alignbeam.ops import MixResult, mix_topk  # noqa: E402

SHAPES = ((3, 8_193, 5_001), (1, 151_936, 128_256))


def main() -> None:
    on_gpu = torch.cuda.is_available()
    device, backend = ("cuda", "cuda") if on_gpu else ("cpu", "cpu")
    calls = 0
    for rows, anchor_width, target_width in SHAPES:
        for kind in ("peaked", "equal", "ascending", "masked", "ties"):
            for dtype in (torch.bfloat16, torch.float32):
                g = torch.Generator().manual_seed(rows)
                case = Case(
                    values(kind, rows, anchor_width, g).to(dtype),
                    values("gaussian", rows, target_width, g).to(dtype),
                    make_table("spread", anchor_width, target_width, g), 0.5, 50, 3, "linear",
                    "union" if rows == 3 and kind == "ties" else "anchor",
                )  # fmt: skip
                tensors = {
                    name: x.to(device)
                    for name, x in case.arguments().items()
                    if isinstance(x, torch.Tensor)
                }
                for _ in range(2):  # the second finds the workspace as the first left it
                    out = mix_topk(**{**case.arguments(), **tensors}, backend=backend)
                    assert_matches_reference(MixResult(*(t.cpu() for t in out)), case, backend)
                    calls += 1
    print(f"{calls} calls on {device}: as the reference")


if __name__ == "__main__":
    main()
