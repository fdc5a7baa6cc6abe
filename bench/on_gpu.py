"""Everything that waits for a GPU, in one call of under eight minutes.

``python bench/on_gpu.py --out DIR`` builds the kernels for the GPU at hand, runs the GPU tests and
a short program under compute-sanitizer, times one mixing step against its peers and in its parts,
and times whole answers. What it finds is in DIR at any moment, also when it is
killed:

- ``mix_topk_cuda.jsonl``, ``phases_cuda.jsonl`` and ``decode_cuda.jsonl``: rows, each written when
  it is measured;
- ``steps.jsonl``: how each step ended; ``log.txt``: what they printed;
- ``summary.md``: printed at the end, too; ``--summary`` writes it anew from the rest of DIR.

A step stops politely between two things that it measures when its seconds are spent, and is
stopped a little later if it does not. One that fails does not keep the later ones from running; the
exit code is 1 if any did, 2 where there is no GPU. Rows become tables when they are copied to
``bench/results``: ``render_mix_topk.py`` and ``render_tables.py``.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

# A bare checkout is enough: what is started from here finds the package beside this folder too.
REPO = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO))
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
)

import gpu_summary  # noqa: E402
import rows  # noqa: E402
import torch  # noqa: E402

TOTAL_S = 440.0
_GRACE_S = 15.0  # after its seconds, for what a step is in the middle of
_TAIL_LINES = 12


@dataclass(frozen=True)
class Command:
    """One process of a step. ``politely``: it takes ``--seconds`` and ends by itself."""

    argv: list[str]
    environment: dict[str, str] = field(default_factory=dict)
    politely: bool = False


@dataclass(frozen=True)
class Step:
    """What it runs, the seconds it may take, and those it took on an H200."""

    name: str
    seconds: float
    took: str
    commands: list[Command]


@dataclass(frozen=True)
class Outcome:
    """How a step ended: a row of ``steps.jsonl``."""

    step: str
    ended: str
    seconds: float
    said: str  # its last lines where it failed; else what it left out


_BUILD = """
import sys
from alignbeam.ops import backends
found = [b for b in backends() if b.device == "cuda"]
print(*found, sep="\\n")
sys.exit(not any(b.available for b in found if b.name == "cuda"))
"""


def steps(out: Path, kernel: list[str]) -> list[Step]:
    """All steps, in the order in which they run; ``kernel``: arguments of the kernel bench."""
    python = sys.executable
    mix = [
        *(python, "bench/bench_mix_topk.py", "--device", "cuda", *kernel),
        *("--out", str(out / "mix_topk_cuda.jsonl")),
    ]
    decode = [
        *(python, "bench/bench_decode.py", "--models", "8b", "--one-at-a-time"),
        *("--new-tokens", "24", "--runs", "3", "--out", str(out / "decode_cuda.jsonl")),
    ]
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return [
        Step("build", 60, "23 to 31 s", [Command([python, "-c", _BUILD])]),
        Step("tests", 45, "18 to 22 s", [
            Command([*pytest, "tests/ops/test_gpu.py"]),
            # Each other test compiles variants for seconds each; it interprets them without a GPU.
            Command([*pytest, "tests/ops/test_triton.py", "-k", "real_widths"]),
        ]),
        Step("sanitizers", 45, "21 s", [
            # Without a filter by kernel: only so does initcheck see what torch's kernels write.
            # Without torch's cache of memory: a read beyond a tensor would end in another's block.
            Command(
                [sanitizer(), "--tool", tool, "--error-exitcode", "9", python,
                 "tests/native/small_calls.py"],
                {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
            )
            for tool in ("memcheck", "racecheck", "initcheck")
        ]),
        Step("kernel", 180, "28 s to compile all peers at once; the rest not yet since", [
            Command(mix, politely=True)
        ]),
        Step("phases", 40, "12 to 17 s", [
            Command([python, "bench/phases.py", "--out", str(out / "phases_cuda.jsonl")])
        ]),
        Step("decode", 75, "not yet: 64 tokens did not fit 120 s", [
            Command(decode, politely=True)
        ]),
    ]  # fmt: skip


def sanitizer() -> str:
    return shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"


def run(step: Step, limit_s: float, log: Path) -> Outcome:
    """Run a step's commands for at most ``limit_s`` and a little; return how it ended."""
    begin = time.monotonic()
    failed = []
    said = ""
    for command in step.commands:
        left = limit_s - (time.monotonic() - begin)
        name = command.argv[command.argv.index("--tool") + 1] if "--tool" in command.argv else ""
        if left < 2:
            failed.append(f"{name} left out: the time is spent".strip())
            continue
        if shutil.which(command.argv[0]) is None:
            failed.append(f"{name} left out: there is no {Path(command.argv[0]).name}".strip())
            continue
        ended, output = _call(command, left, log)
        if ended:
            failed.append(f"{name} {ended}".strip())
            said += "\n".join(output.splitlines()[-_TAIL_LINES:]) + "\n"
        said += "".join(f"{line}\n" for line in output.splitlines() if line.startswith("left out"))
    took = time.monotonic() - begin
    return Outcome(step.name, "; ".join(failed) or "ok", round(took, 1), said)


def _call(command: Command, limit_s: float, log: Path) -> tuple[str, str]:
    """Return what went wrong ("" if nothing) and what the command printed."""
    argv = [*command.argv, "--seconds", f"{limit_s:.0f}"] if command.politely else command.argv
    environment = {
        **os.environ, **command.environment, "PYTHONPATH": _path(), "PYTHONUNBUFFERED": "1",
    }  # fmt: skip
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {' '.join(argv)}\n")
        file.flush()
        start = file.tell()
        process = subprocess.Popen(
            argv, cwd=REPO, env=environment, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s + (_GRACE_S if command.politely else 0))
            ended = "" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit_s:.0f} s"
        finally:
            if process.poll() is None:
                _stop(process)
    with log.open("rb") as file:
        file.seek(start)
        return ended, file.read().decode(errors="replace")


def _path() -> str:
    return os.pathsep.join([str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])])


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        os.killpg(process.pid, number)
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            continue
        return


def chosen(names: list[str], found: list[Step]) -> list[Step]:
    """Keep the steps that are named, and the build before them; all where none is named."""
    wanted = [name for given in names for name in given.split(",")]
    unknown = set(wanted) - {step.name for step in found}
    if unknown:
        raise SystemExit(f"--only: no step {', '.join(sorted(unknown))}")
    return [step for step in found if not wanted or step.name in ("build", *wanted)]


def seconds(given: list[str], found: list[Step]) -> dict[str, float]:
    """Seconds of each step: its own, N of every one, or NAME=N of one."""
    most = {step.name: step.seconds for step in found}
    for part in (part for text in given for part in text.split(",")):
        name, _, number = part.rpartition("=")
        try:
            value = float(number)
        except ValueError:
            raise SystemExit(f"--seconds: {part} is neither N nor STEP=N") from None
        if name and name not in most:
            raise SystemExit(f"--seconds: no step {name} in this run")
        most.update({name: value} if name else dict.fromkeys(most, value))
    return most


def plan(found: list[Step], most: dict[str, float], total_s: float) -> str:
    lines = [f"{step.name:12} {most[step.name]:5.0f} s at most (took {step.took})"
             for step in found]  # fmt: skip
    return "\n".join([*lines, f"{'all':12} {min(total_s, sum(most.values())):5.0f} s at most"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="the folder of what is found")
    parser.add_argument(
        "--only", action="append", default=[], help="steps, with commas; the build always runs"
    )
    parser.add_argument(
        "--seconds", action="append", default=[], help="N for every step, or STEP=N; with commas"
    )
    parser.add_argument("--total", type=float, default=TOTAL_S, help="seconds for everything")
    parser.add_argument("--leave-out", default="", help="systems of the kernel bench, with commas")
    parser.add_argument("--rows", nargs="+", default=[], help="of the kernel bench: these alone")
    parser.add_argument("--dtypes", nargs="+", default=[], help="of the kernel bench: these alone")
    parser.add_argument("--commit", help="what is measured, where git cannot tell")
    parser.add_argument("--dry-run", action="store_true", help="print the plan")
    parser.add_argument("--summary", action="store_true", help="sum up what DIR holds")
    arguments = parser.parse_args()
    out = (arguments.out or Path("DIR")).resolve()
    kernel = ["--leave-out", arguments.leave_out]
    for name in ("rows", "dtypes"):
        given = getattr(arguments, name)
        kernel += [f"--{name}", *given] if given else []
    found = chosen(arguments.only, steps(out, kernel))
    most = seconds(arguments.seconds, found)
    if arguments.dry_run:
        print(plan(found, most, arguments.total))
        return 0
    if arguments.out is None:
        parser.error("--out DIR is needed")
    if arguments.summary:
        print(gpu_summary.write(out))
        return 0
    if not torch.cuda.is_available():
        print("no GPU here (torch sees none): nothing was built, tested or measured",
              file=sys.stderr)  # fmt: skip
        return 2
    if arguments.commit:
        os.environ["BENCH_COMMIT"] = arguments.commit
    return measure(found, most, time.monotonic() + arguments.total, out)


def measure(found: list[Step], most: dict[str, float], end: float, out: Path) -> int:
    """Run the steps; write and print the summary whatever happens.

    Asked to end (SIGTERM), it stops the step and still sums up.
    """
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.txt"
    log.write_text(f"{rows.machine()}\n", encoding="utf-8")
    writer = rows.Writer(out / "steps.jsonl")
    all_ok = True
    try:
        for step in found:
            limit = min(most[step.name], end - time.monotonic() - _GRACE_S)
            outcome = run(step, limit, log)
            writer.add(outcome)
            all_ok &= outcome.ended == "ok"
            print(f"{step.name:12} {outcome.ended}, {outcome.seconds:.0f} s", flush=True)
            gpu_summary.write(out)
    finally:
        print(gpu_summary.write(out), flush=True)
    return 0 if all_ok else 1


if __name__ == "__main__":
    sys.exit(main())
