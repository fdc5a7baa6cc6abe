"""Everything that waits for a GPU, in one call of under eight minutes.

``python bench/on_gpu.py`` builds the kernels for the GPU at hand, runs the GPU tests, runs them
under compute-sanitizer on a short set, then every bench, and writes rows to ``bench/results``.
Where there is no GPU it says so and exits 0. A step that fails does not keep the later ones from
running; the exit code is 1 if any did.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

REPO = Path(__file__).resolve().parent.parent
BUDGET_S = 460.0


@dataclass(frozen=True)
class Step:
    """A command, and the most it may take."""

    name: str
    command: list[str]
    most_s: float
    environment: dict[str, str]


def steps() -> list[Step]:
    python = sys.executable
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found = [
        Step(
            "build",
            [python, "-c", "from alignbeam.ops import backends\nfor b in backends(): print(*b)"],
            120,
            {},
        ),
        Step("tests", [*pytest, "tests/ops/test_gpu.py", "tests/ops/test_triton.py"], 120, {}),
    ]
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if Path(sanitizer).is_file():
        for tool, chosen, environment in (
            # torch's caching would hide an overrun inside one of its blocks; graphs need it.
            ("memcheck", "two_streams or real_widths", {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}),
            ("racecheck", "in_a_graph or real_widths", {}),
            ("initcheck", "in_a_graph or real_widths", {}),
        ):
            command = [
                *(sanitizer, "--tool", tool, "--error-exitcode", "9"),
                *("--kernel-name", "kernel_substring=mix_topk"),
                *(*pytest, "tests/ops/test_gpu.py", "-k", chosen),
            ]
            found.append(Step(tool, command, 60, environment))
    else:
        print("compute-sanitizer was not found: its runs are left out", flush=True)
    found.append(
        Step(
            "bench mix_topk",
            [python, "bench/bench_mix_topk.py", "--device", "cuda", "--budget", "0.15"],
            150,
            {},
        )
    )
    decode = REPO / "bench" / "bench_decode.py"
    if decode.is_file():
        found.append(
            Step("bench decode", [python, str(decode), "--models", "8b", "--runs", "3"], 150, {})
        )
    found.append(Step("tables", [python, "bench/render_mix_topk.py"], 30, {}))
    return found


def run(step: Step, left_s: float) -> str:
    """Run a step in what is left of the budget; return how it ended."""
    limit = min(step.most_s, left_s)
    if limit < 5:
        return "left out: the time is spent"
    environment = {**os.environ, "PYTHONPATH": str(REPO), **step.environment}
    begin = time.monotonic()
    try:
        done = subprocess.run(step.command, cwd=REPO, env=environment, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return f"stopped after {limit:.0f} s"
    took = time.monotonic() - begin
    return f"ok, {took:.0f} s" if done.returncode == 0 else f"failed ({done.returncode})"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=BUDGET_S, help="seconds for everything")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no GPU here (torch sees none): nothing was built, tested or measured")
        return 0
    print(torch.cuda.get_device_name(), "compute capability", torch.cuda.get_device_capability())
    end = time.monotonic() + arguments.budget
    outcomes = {}
    for step in steps():
        print(f"== {step.name}", flush=True)
        outcomes[step.name] = run(step, end - time.monotonic())
    print("\n".join(f"{name:16} {outcome}" for name, outcome in outcomes.items()))
    return 0 if all(outcome.startswith("ok") for outcome in outcomes.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
