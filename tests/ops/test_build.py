"""The life of a build, and what is said when there is none."""

from __future__ import annotations

import inspect
import multiprocessing
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignbeam.errors import BackendUnavailable
from alignbeam.ops import build, native, reference


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """Build into a folder of this test, as if nothing were installed."""
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ALIGNBEAM_DISABLE_JIT", raising=False)
    monkeypatch.setattr(build, "_installed", lambda: None)
    build.cpu_extension.cache_clear()
    build.gpu_extension.cache_clear()
    yield tmp_path / "cache" / "native"
    build.cpu_extension.cache_clear()
    build.gpu_extension.cache_clear()


def executable(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_build_refuses_when_it_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGNBEAM_DISABLE_JIT", "1")
    extension = build.cpu_extension()
    assert extension.reason == "not installed, and ALIGNBEAM_DISABLE_JIT=1 forbids to build it"
    with pytest.raises(BackendUnavailable, match="ALIGNBEAM_DISABLE_JIT=1"):
        extension.require()


def test_build_says_how_to_get_a_compiler_without_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    reason = build.cpu_extension().reason
    assert reason is not None
    assert "no C++ compiler was found (c++, g++ or clang++)" in reason


def test_build_says_how_to_get_a_gpu_kernel_without_nvcc(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CUDACXX", str(tmp_path / "nvcc"))
    reason = build.gpu_extension((9, 0)).reason
    assert reason is not None
    assert "nvcc was not found" in reason


def test_build_keeps_the_log_of_a_failure_and_does_not_try_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own_cache: Path
) -> None:
    calls = tmp_path / "calls"
    compiler = executable(
        tmp_path / "broken-c++",
        f"#!/bin/sh\necho x >> {calls}\n"
        '[ "$1" = --version ] && exit 0\necho it is broken\nexit 1\n',
    )
    monkeypatch.setenv("CXX", str(compiler))
    first = build.cpu_extension().reason
    assert first is not None
    assert first.startswith("its build failed: ")
    log = next(own_cache.glob("*.log"))
    assert str(log) in first
    assert "it is broken" in log.read_text()
    tried = len(calls.read_text())

    build.cpu_extension.cache_clear()
    second = build.cpu_extension().reason
    assert second is not None
    assert second.startswith("its build failed before")
    assert len(calls.read_text()) == tried + 2  # one more --version
    assert not [path for path in own_cache.iterdir() if path.is_dir()]


def test_build_reports_a_cache_folder_it_cannot_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path / "file"))
    reason = build.cpu_extension().reason
    assert reason is not None
    assert "set ALIGNBEAM_CACHE" in reason


def _build_once(calls: str, results: multiprocessing.queues.Queue[str]) -> None:
    """In a process of its own: a build whose compilation takes a moment and is counted."""

    def compile_slowly(folder: Path, work: Path, *_: object) -> Path:
        with open(calls, "a") as handle:
            handle.write("x")
        built = work / f"_C{build.sysconfig.get_config_var('EXT_SUFFIX')}"
        for _ in range(20):
            built.write_text("half")
            os.sched_yield()
        built.write_text("whole")
        return built

    build._compile = compile_slowly  # type: ignore[assignment]
    folder = build.source_folder()
    assert folder is not None
    results.put(build._cached_or_build(folder, (), []).read_text())


def test_build_happens_once_when_several_processes_want_it(tmp_path: Path) -> None:
    calls = tmp_path / "calls"
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    workers = [context.Process(target=_build_once, args=(str(calls), results)) for _ in range(4)]
    for worker in workers:
        worker.start()
    built = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
    assert built == ["whole"] * 4
    assert calls.read_text() == "x"


def _quick_build(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The extension's path in the cache, after a build that compiles nothing."""

    def write(folder: Path, work: Path, *_: object) -> Path:
        built = work / f"_C{build.sysconfig.get_config_var('EXT_SUFFIX')}"
        built.write_text("whole")
        return built

    monkeypatch.setattr(build, "_compile", write)
    folder = build.source_folder()
    assert folder is not None
    return build._cached_or_build(folder, (), [])


def test_build_is_for_this_user_alone_whatever_the_umask(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    before = os.umask(0)
    try:
        built = _quick_build(monkeypatch)
    finally:
        os.umask(before)
    for path in (own_cache.parent, own_cache, built.parent, built):
        assert path.stat().st_mode & 0o77 == 0
    assert _quick_build(monkeypatch) == built


@pytest.mark.parametrize("level", ["root", "folder", "build", "file"])
def test_build_loads_nothing_that_other_users_could_have_planted(
    monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    built = _quick_build(monkeypatch)
    levels = {
        "root": built.parent.parent.parent,
        "folder": built.parent.parent,
        "build": built.parent,
        "file": built,
    }
    levels[level].chmod(0o777)
    with pytest.raises(build._BuildRefused, match=f"{levels[level]} can be changed by other users"):
        _quick_build(monkeypatch)
    levels[level].chmod(0o700)
    assert _quick_build(monkeypatch) == built


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
@pytest.mark.parametrize("level", ["folder", "file"])
def test_build_loads_nothing_of_another_user(monkeypatch: pytest.MonkeyPatch, level: str) -> None:
    built = _quick_build(monkeypatch)
    planted = {"folder": built.parent.parent, "file": built}[level]
    os.chown(planted, 12345, -1)
    with pytest.raises(build._BuildRefused, match=f"{planted} belongs to another user"):
        _quick_build(monkeypatch)


def test_build_leaves_alone_what_a_planted_lock_points_to(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    built = _quick_build(monkeypatch)
    lock = built.parent.parent / f"{built.parent.name}.lock"
    precious = tmp_path / "precious"
    precious.write_text("kept")
    built.unlink()
    lock.unlink(missing_ok=True)
    lock.symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        _quick_build(monkeypatch)
    assert precious.read_text() == "kept"


def test_build_says_what_to_set_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "cache_folder", lambda name: None)
    assert build.cpu_extension().reason == (
        "there is no home folder to build into; set ALIGNBEAM_CACHE"
    )


def test_build_key_changes_with_any_source(tmp_path: Path) -> None:
    (tmp_path / "csrc").mkdir()
    (tmp_path / "CMakeLists.txt").write_text("one")
    (tmp_path / "csrc" / "a.cpp").write_text("two")
    first = build.source_key(tmp_path)
    (tmp_path / "csrc" / "a.cpp").write_text("three")
    assert build.source_key(tmp_path) != first


@pytest.mark.parametrize(
    ("archs", "capability", "covered"),
    [
        ("", (9, 0), False),
        ("80-real,90-real,100-real,120", (8, 0), True),
        ("80-real,90-real,100-real,120", (8, 9), True),
        ("80-real,90-real,100-real,120", (9, 0), True),
        ("80-real,90-real,100-real,120", (10, 3), True),
        ("80-real,90-real,100-real,120", (7, 5), False),
        ("80-real,90-real,100-real,120", (11, 0), False),
        ("80-real,90-real,100-real,120", (13, 0), True),
        ("90-real", (12, 0), False),
        ("80-virtual", (12, 0), True),
        ("89-real", (8, 0), False),
    ],
)
def test_covers_follows_the_rules_of_binary_compatibility(
    archs: str, capability: tuple[int, int], covered: bool
) -> None:
    assert build.covers(archs, capability) is covered


def test_backends_share_one_signature() -> None:
    want = inspect.signature(reference.mix_topk)
    assert inspect.signature(native.mix_topk_cpu) == want
    assert inspect.signature(native.mix_topk_cuda) == want
