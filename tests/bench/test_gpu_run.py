"""`bench/on_gpu.py` and what it calls, as far as that goes without a GPU."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

REPO = Path(__file__).resolve().parents[2]
sys.path.append(str(REPO / "bench"))

import bench_mix_topk as bench  # noqa: E402
import compare_kernels  # noqa: E402
import gpu_summary  # noqa: E402
import kernel_library  # noqa: E402
import mix_topk_on_gpu  # noqa: E402
import on_gpu  # noqa: E402
import peers  # noqa: E402
import render_mix_topk  # noqa: E402
import render_tables  # noqa: E402
import rows as bench_rows  # noqa: E402

MACHINE = {
    "gpu": "NVIDIA H200", "driver": "580.159", "cuda": "13.0", "torch": "2.11", "triton": "3.6",
    "python": "3.12", "commit": "abc", "utc": "2027-01-01T00:00:00+00:00",
}  # fmt: skip
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch sees a GPU")


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=REPO, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(REPO), **environment},
    )  # fmt: skip


@pytest.fixture
def on_gpu_says(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Call `on_gpu` as from the command line; return its exit code and what it printed."""

    def call(*arguments: object) -> tuple[int | str | None, str]:
        monkeypatch.setattr(sys, "argv", ["on_gpu.py", *map(str, arguments)])
        try:
            code: int | str | None = on_gpu.main()
        except SystemExit as error:
            code = error.code
        return code, capsys.readouterr().out

    return call


def made_row(system: str, rows: int, us: float, **other: object) -> dict[str, object]:
    """A row as the bench writes it, of made-up figures; ours takes 10 us at any R."""
    return {
        "op": "mix_topk", "system": system, "device": "cuda", "isa": "", "dtype": "bf16",
        "kind": "peaked", "rows": rows, "threads": 0, "timer": "graph, cold L2", "basis": "wall",
        "p50_us": us, "gb_per_s": rows * 280_192 * 2 / us / 1e3, "ratio_to_ours_p50": us / 10,
        "load": 0.0, "graph_nodes": 1.0, "machine": MACHINE, **other,
    }  # fmt: skip


MADE = [
    made_row("copy", 0, 1.0, op="roofline", gb_per_s=20_000.0),
    made_row("copy", 256, 10.0, gb_per_s=20_000.0),
    *(made_row("ours", count, 10.0) for count in (1, 24, 256)),
    *(made_row("triton", count, 15.0) for count in (1, 24, 256)),
    made_row("smart_eager", 1, 500.0),
    made_row("flashinfer_compiled", 1, 30.0),
    made_row("smart_eager", 24, 90.0),
    made_row("ours", 3, 44.4, kind="ties"),
]


@without_gpu
def test_on_gpu_refuses_without_a_gpu_and_leaves_nothing(tmp_path: Path) -> None:
    done = python("bench/on_gpu.py", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert not (tmp_path / "out").exists()


def test_on_gpu_tells_its_plan_and_keeps_to_the_total(on_gpu_says) -> None:
    code, said = on_gpu_says("--dry-run", "--only", "kernel,decode", "--seconds", "90,decode=50")
    assert code == 0
    lines = [line.split()[:2] for line in said.splitlines()]
    assert lines == [["build", "90"], ["kernel", "90"], ["decode", "50"], ["all", "230"]]
    _, whole = on_gpu_says("--dry-run")
    assert whole.splitlines()[-1].split()[:2] == ["all", f"{on_gpu.TOTAL_S:.0f}"]
    assert on_gpu.TOTAL_S <= 450  # half of what is lent at a time, its start included


@pytest.mark.parametrize(
    ("arguments", "named"),
    [(["--only", "kernel,dance"], "dance"), (["--seconds", "soon"], "soon"),
     (["--seconds", "dance=3"], "dance"), (["--only", "tests", "--seconds", "decode=3"], "decode")],
)  # fmt: skip
def test_on_gpu_refuses_what_it_does_not_know(
    on_gpu_says, arguments: list[str], named: str
) -> None:
    code, _ = on_gpu_says("--dry-run", *arguments)
    assert isinstance(code, str)
    assert named in code


def test_every_command_of_a_step_is_of_files_that_are_there(tmp_path: Path) -> None:
    for step in on_gpu.steps(tmp_path, []):
        for command in step.commands:
            for word in command.argv:
                if word.startswith(("bench/", "tests/")):
                    assert (REPO / word).is_file(), word


def test_benches_take_what_on_gpu_gives_them(tmp_path: Path) -> None:
    for step in on_gpu.steps(tmp_path, []):
        for command in step.commands:
            if command.politely:
                given = [*command.argv, "--seconds", "1", "--help"]
                done = python(*given[1:])
                assert done.returncode == 0, done.stderr
                used = [word for word in given if word.startswith("--")]
                assert all(word in done.stdout for word in used)


def step_of(*scripts: str, politely: bool = False) -> on_gpu.Step:
    commands = [on_gpu.Command([sys.executable, "-c", s], politely=politely) for s in scripts]
    return on_gpu.Step("made", 5, "", commands)


def test_step_that_hangs_is_stopped_with_what_it_started(tmp_path: Path) -> None:
    child = tmp_path / "child"
    hangs = (
        "import subprocess, sys, time\n"
        "p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        f"open({str(child)!r}, 'w').write(str(p.pid))\n"
        "print('left out: nothing yet', flush=True)\n"
        "time.sleep(600)"
    )
    outcome = on_gpu.run(step_of(hangs, "print(1)"), 3, tmp_path / "log.txt")
    assert "stopped after 3 s" in outcome.ended
    assert "left out: the time is spent" in outcome.ended  # what was to come after it
    assert "left out: nothing yet" in outcome.said
    stat = Path(f"/proc/{child.read_text()}/stat")
    for _ in range(50):
        # Gone, or waiting for init to take note of its end.
        if not stat.exists() or stat.read_text().split()[2] == "Z":
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child lives on")


def test_step_that_fails_says_why_and_the_next_command_runs(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    outcome = on_gpu.run(step_of("raise SystemExit('no such luck')", "print('second')"), 60, log)
    assert outcome.ended == "failed (1)"
    assert "no such luck" in outcome.said
    assert "second" in log.read_text()


def test_step_whose_program_is_missing_is_said_to_be_left_out(tmp_path: Path) -> None:
    step = on_gpu.Step("made", 5, "", [on_gpu.Command([str(tmp_path / "compute-sanitizer")])])
    outcome = on_gpu.run(step, 5, tmp_path / "log.txt")
    assert "there is no compute-sanitizer" in outcome.ended


def test_polite_command_gets_the_seconds_that_are_left(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    script = "import sys; print('given', sys.argv[1:])"
    assert on_gpu.run(step_of(script, politely=True), 30, log).ended == "ok"
    assert "given ['--seconds', '30']" in log.read_text()


def test_rows_outlive_the_process_that_is_killed_while_it_writes(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    script = (
        "import os, signal, sys\n"
        "sys.path.insert(0, 'bench')\n"
        "import dataclasses, rows\nfrom pathlib import Path\n"
        "Row = dataclasses.make_dataclass('Row', ['step'])\n"
        f"writer = rows.Writer(Path({str(path)!r}))\n"
        "for i in range(3): writer.add(Row(f's{i}'))\n"
        'writer._file.write(\'{"step": "cut\'); writer._file.flush()\n'
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = python("-c", script, BENCH_COMMIT="told")
    assert done.returncode == -signal.SIGKILL
    found = bench_rows.read_file(path)
    assert [row["step"] for row in found] == ["s0", "s1", "s2"]
    assert {row["machine"]["commit"] for row in found} == {"told"}


def test_run_that_is_ended_stops_its_step_and_sums_up(tmp_path: Path) -> None:
    script = (
        "import sys, time; sys.path.insert(0, 'bench')\n"
        "import on_gpu\nfrom pathlib import Path\n"
        "step = lambda name, code: on_gpu.Step(name, 60, '', [on_gpu.Command("
        "[sys.executable, '-c', code])])\n"
        "steps = [step('first', ''), step('second', 'import time; time.sleep(600)')]\n"
        f"on_gpu.measure(steps, {{'first': 60, 'second': 600}}, time.monotonic() + 900, "
        f"Path({str(tmp_path)!r}))\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=REPO, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(REPO)},
    ) as process:  # fmt: skip
        log = tmp_path / "log.txt"
        for _ in range(1200):
            if log.exists() and "sleep(600)" in log.read_text():
                break
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert [row["step"] for row in bench_rows.read_file(tmp_path / "steps.jsonl")] == ["first"]
    assert "first: ok" in said
    assert (tmp_path / "summary.md").read_text() in said


def test_summary_judges_each_target_by_the_best_peer_and_the_copy() -> None:
    table = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in render_mix_topk.cuda_targets(MADE).splitlines()
    ]
    judged = {line[0]: line[3:] for line in table}
    assert judged["us, R = 1, bf16"] == ["10.0", "missed"]
    assert judged["us, R = 24, bf16"] == ["10.0", "gate"]
    assert judged["us, R = 256, bf16"] == ["10.0", "stretch"]
    # 256 * 280,192 * 2 bytes in 10 us are 14.3 TB/s, of 20.
    assert judged["share of copy bandwidth, R = 256, bf16"] == ["0.72", "missed"]
    assert judged["times faster than flashinfer_compiled, R = 1, bf16"] == ["3.0", "missed"]
    assert judged["times faster than smart_eager, R = 24, bf16"] == ["9.0", "stretch"]
    assert judged["Triton, times CUDA's time, R = 1, bf16"] == ["1.50", "gate"]
    assert judged["Triton, times CUDA's time, R = 256, bf16"] == ["1.50", "missed"]


def test_summary_of_a_folder_names_the_machine_and_fits_the_screen(
    on_gpu_says, tmp_path: Path
) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in MADE)
    (tmp_path / "mix_topk_cuda.jsonl").write_text(lines)
    long = {"step": "tests", "ended": "failed (1)", "seconds": 3.0, "said": "x\n" * 9_000}
    steps = [{**long, "step": f"s{i}", "machine": MACHINE} for i in range(20)]
    (tmp_path / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    code, said = on_gpu_says("--summary", "--out", tmp_path)
    assert code == 0
    assert (tmp_path / "summary.md").read_text() == said
    assert len(said) <= gpu_summary.LIMIT + 1
    assert "NVIDIA H200, driver 580.159, CUDA 13.0, torch 2.11, triton 3.6" in said
    assert "the beginning is left out" in said
    assert render_mix_topk.cuda_targets(MADE) in said


def test_summary_of_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    assert gpu_summary.write(tmp_path) == "no rows"


def test_page_shows_gpu_rows_with_their_card_and_the_older_figures_as_what_they_are() -> None:
    before = bench_rows.read("mix_topk_prototype")
    none_yet = render_tables.cuda_page([], before)
    assert "has not been timed on a GPU yet" in none_yet
    assert "Not this code's figures" in none_yet
    assert "(superseded)" in none_yet
    measured = render_tables.cuda_page(MADE, before)
    assert "not been timed" not in measured
    assert "Conditions: NVIDIA H200, driver 580.159" in measured
    assert "| **mix_topk, CUDA** | 10.0 | 10.0 | 10.0 |" in measured
    assert "| smart_eager | 500 (50.0x) | 90.0 (9.0x) |  |" in measured


def test_results_page_has_a_section_of_the_card() -> None:
    text = render_mix_topk.section("cuda", MADE)
    assert "NVIDIA H200" in text
    assert "ties: ours 44.4 us" in text
    assert "copy 20,000 GB/s" in text


def test_groups_come_in_the_order_in_which_they_are_missed() -> None:
    order = [
        (g.dtype, g.rows) for g in mix_topk_on_gpu.groups(list(bench.ROWS), list(bench.DTYPES))
    ]
    assert order[:5] == [("bf16", count) for count in (1, 24, 256, 3, 96)]
    assert sorted(order[5:]) == sorted(("fp32", count) for count in bench.ROWS)
    assert mix_topk_on_gpu.groups([96, 1], ["fp32"]) == [
        mix_topk_on_gpu.Group("fp32", 1), mix_topk_on_gpu.Group("fp32", 96),
    ]  # fmt: skip
    kinds = {g.rows: g.kinds() for g in mix_topk_on_gpu.groups(list(bench.ROWS), ["bf16"])}
    assert kinds[3] == ["peaked", "equal", "ascending", "masked", "ties"]
    assert kinds[1] == kinds[256] == ["peaked"]


@pytest.mark.parametrize("rows", bench.ROWS)
def test_inputs_are_enough_to_keep_a_cache_cold(rows: int) -> None:
    cache = 60 * 2**20
    for dtype in bench.DTYPES.values():
        copies = mix_topk_on_gpu.copies_for(rows, dtype, cache)
        one = rows * (bench.ANCHOR_WIDTH + bench.TARGET_WIDTH) * dtype.itemsize
        assert copies * one >= 5 * cache
        assert copies == 2 or (copies - 1) * one < 5 * cache


@pytest.mark.parametrize("systems", [2, 3, 9])
@pytest.mark.parametrize("rows", bench.ROWS)
def test_no_system_finds_an_input_in_the_cache(rows: int, systems: int) -> None:
    cache = 60 * 2**20
    for dtype in bench.DTYPES.values():
        one = rows * (bench.ANCHOR_WIDTH + bench.TARGET_WIDTH) * dtype.itemsize
        inputs = list(range(mix_topk_on_gpu.copies_for(rows, dtype, cache)))
        turns = [mix_topk_on_gpu.cold_calls(inputs, turn) for turn in range(systems)]
        assert all(len(calls) >= 24 for calls in turns)
        read = [x for calls in turns * 2 for x in calls]
        last: dict[int, int] = {}
        for at, x in enumerate(read):
            if x in last:
                since = set(read[last[x] + 1 : at])
                assert len(since) * one >= cache, (dtype, at)
            last[x] = at


def table() -> torch.Tensor:
    return bench.real_pair(None)[0]


@pytest.mark.parametrize("kind", ["peaked", "flat", "equal", "ascending", "masked", "ties"])
def test_ours_and_peers_agree_on_each_kind_of_input(kind: str) -> None:
    x = bench.make_input(kind, 1, torch.float32, table(), "cpu")
    want = bench.reference(x)
    bench.check_ours("ours", bench.ours(x, "cpu")(), x, want)
    for peer in (peers.eager, peers.smart_eager):
        bench.check(peer.__name__, peer(x.anchor, x.target, x.table), x, want)
    if kind == "ties":
        assert (x.anchor == x.anchor.max()).sum() > 10_000


def test_a_wrong_answer_is_not_timed() -> None:
    x = bench.make_input("peaked", 1, torch.float32, table(), "cpu")
    want = bench.reference(x)
    wrong = replace(x, target=x.target.roll(1, dims=1))
    with pytest.raises(bench.WrongAnswer, match="smart_eager"):
        bench.check("smart_eager", peers.smart_eager(wrong.anchor, wrong.target, x.table), x, want)
    with pytest.raises(bench.WrongAnswer, match="ours"):
        bench.check_ours("ours", bench.ours(wrong, "cpu")(), x, want)


def test_merge_does_not_mind_candidates_out_of_order() -> None:
    x = bench.make_input("peaked", 2, torch.float32, table(), "cpu")
    logits, ids = torch.topk(x.anchor, peers.TOP_B, dim=-1)
    turned = peers.merge(logits.flip(1), ids.flip(1), x.anchor, x.target, x.table)
    bench.check("merge", turned, x, bench.reference(x))


@pytest.mark.skipif(
    importlib.util.find_spec("flashinfer") is not None, reason="flashinfer is installed"
)
def test_a_missing_library_and_what_does_not_fit_are_said() -> None:
    budget = mix_topk_on_gpu.Budget(1.0)
    systems = mix_topk_on_gpu.Systems(["smart_eager", "flashinfer"], "default", {"eager"}, budget)
    assert set(systems.plain) == {"smart_eager"}
    group = mix_topk_on_gpu.Group("bf16", 1)
    assert systems.compile_for(None, group, 0.0) == {}
    assert [line.split(":")[0] for line in budget.left_out] == [
        "flashinfer", "compile_smart_eager, bf16, R = 1",
    ]  # fmt: skip


def test_small_calls_of_the_sanitizers_pass_on_what_is_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = REPO / "tests" / "native" / "small_calls.py"
    spec = importlib.util.spec_from_file_location("small_calls", path)
    small_calls = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(small_calls)
    monkeypatch.setattr(small_calls, "SHAPES", ((3, 1_025, 511),))
    small_calls.main()
    assert "20 calls" in capsys.readouterr().out


READ = """
import sys
sys.path.insert(0, "bench")
import torch, gpu_limits
first, second = (torch.randn(n).to(torch.bfloat16).abs() for n in (9_000, 5_000))
out = gpu_limits.read(first, second)
blocks = [x.float()[i:i + 4096].max() for x in (first, second) for i in range(0, len(x), 4096)]
assert torch.equal(out, torch.stack(blocks)), out
"""
COMPILED = """
import sys
sys.path.insert(0, "bench")
import gpu_limits, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
for dtype in ("*bf16", "*fp32"):
    names = dict(first=dtype, first_size="i32", second=dtype, second_size="i32", out="*fp32",
                 first_blocks="i32", BLOCK="constexpr")
    source = ASTSource(gpu_limits._read, names, constexprs={"BLOCK": 4096})
    assert "ld.global" in triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(("script", "interpret"), [(READ, "1"), (COMPILED, "0")])
def test_read_kernel_reads_all_and_compiles_for_a_gpu(script: str, interpret: str) -> None:
    done = python("-c", script, TRITON_INTERPRET=interpret)
    assert done.returncode == 0, done.stderr


def test_kernels_are_built_as_libraries_where_there_is_a_compiler(tmp_path: Path) -> None:
    if kernel_library.nvcc() is None:
        with pytest.raises(RuntimeError, match="nvcc was not found"):
            kernel_library.build(tmp_path / "kernel.so", arch="90")
        return
    library = kernel_library.build(tmp_path / "kernel.so", arch="90", marks=True)
    symbols = library.read_bytes()
    for name in (b"workspace_bytes", b"step", b"forget_marks", b"read_marks", b"mark_count"):
        assert name in symbols
    (tmp_path / "mix_topk.cu").write_text("no such thing;")
    with pytest.raises(RuntimeError, match=f"nvcc failed on {tmp_path}"):
        kernel_library.build(tmp_path / "broken.so", tmp_path, arch="90")


@pytest.mark.parametrize("text", ["csrc", "now=", "now=nowhere", "=csrc", "a/b=csrc"])
def test_compared_kernels_have_a_name_and_a_folder(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(REPO)
    assert compare_kernels.named("now=csrc") == ("now", Path("csrc"))
    with pytest.raises(argparse.ArgumentTypeError):
        compare_kernels.named(text)


@without_gpu
def test_kernels_are_not_compared_without_a_gpu(tmp_path: Path) -> None:
    done = python("bench/compare_kernels.py", "now=csrc", "--out", str(tmp_path / "rows.jsonl"))
    assert done.returncode == 2
    assert "no GPU" in done.stderr
    assert list(tmp_path.iterdir()) == []
