"""Skips: CI fails on one that is not listed, and the end of a run says what is needed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from skips import Skip, closing_line, entries, refused

TESTS = Path(__file__).resolve().parents[1]
GPU = Skip("tests/ops/test_gpu.py::test_a", "torch sees no GPU")
LM_EVAL = Skip("tests/harness/test_lm_eval.py", "no lm_eval: make test-harness")
BROWSER = Skip("tests/eval/test_report_page.py::test_b", "no chromium with chromedriver")
NEW = Skip("tests/cli/test_cli.py::test_c", "not today")


def test_ci_allows_listed_skips_where_they_are_listed():
    elsewhere = LM_EVAL._replace(test="tests/cli/test_cli.py")
    every = [GPU, LM_EVAL, BROWSER, NEW, elsewhere]
    assert refused(every, "any") == []
    assert refused(every, "listed") == [BROWSER, NEW, elsewhere]
    assert refused(every, "none") == every


def test_closing_line_counts_by_what_is_needed():
    assert closing_line([NEW, GPU, LM_EVAL, GPU]) == (
        "skipped: 2 need a GPU, 1 for another reason: not today, 1 need lm-eval (make test-harness)"
    )


def test_files_that_ci_may_skip_in_part_run_in_the_other_environment():
    named = {file for entry in entries() for file in entry.get("files", ())}
    makefile = (TESTS.parent / "Makefile").read_text().replace("\\\n", " ")
    (line,) = (x for x in makefile.splitlines() if x.startswith("HARNESS_TESTS :="))
    assert named <= set(line.split())
    assert all((TESTS.parent / file).is_file() for file in line.split()[2:])


@pytest.mark.parametrize("workers", ["0", "2"])
def test_run_with_an_unlisted_skip_fails_and_names_it(tmp_path, workers):
    (tmp_path / "conftest.py").write_text("from skips import *\n")
    (tmp_path / "test_one.py").write_text(
        "import pytest\ndef test_a(): pytest.skip('torch sees no GPU')\n"
        "def test_b(): pytest.skip('not today')\ndef test_c(): pass\n"
    )
    (tmp_path / "test_two.py").write_text("import pytest\npytest.importorskip('no_such_module')\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
         "-n", workers, "--skips=listed", "--rootdir", tmp_path, tmp_path],
        env={**os.environ, "PYTHONPATH": str(TESTS / "support")}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout
    *_, first, second, line, closing = done.stdout.splitlines()
    assert {first.split(": ")[0], second.split(": ")[0]} == {
        "SKIP NOT ALLOWED test_one.py::test_b",
        "SKIP NOT ALLOWED test_two.py",
    }
    assert line.startswith("skipped: ")
    assert "1 need a GPU" in line
    assert "1 passed, 3 skipped" in closing
