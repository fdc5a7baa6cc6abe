"""The README's promises: its Python runs as written, its tables are current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

REPO = Path(__file__).parents[2]
README = (REPO / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    # One pass over all blocks, so that a closing fence is never taken for an opening one.
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [body for name, body in blocks if name == language]


def test_readme_python_runs_as_written(trio, capsys):
    (code,) = _blocks("python")
    exec(compile(code, "README.md", "exec"), {})
    question = re.search(r'generate\("(.*?)"\)', code)
    assert question is not None
    result = trio.generate(question[1])
    printed = capsys.readouterr().out
    assert printed.startswith(f"{result.text}\n{result.reason}\n")
    assert printed.count("\n") >= 2 + len(result.candidates)


def test_python_of_its_page_runs_as_written(capsys):
    page = (REPO / "docs" / "python.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```python\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    exec(compile(code, "python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert printed.count("the best that passes") == 2


def test_readme_python_has_ten_lines_at_most():
    (code,) = _blocks("python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 10


def test_readme_make_commands_are_targets_of_the_makefile():
    makefile = (REPO / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert named == ["demo", "test"]
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)


def test_first_table_has_six_rows_at_most():
    body = re.search(r"<!-- results:systems -->\n(.*?)<!-- end:systems -->", README, re.DOTALL)
    assert body is not None
    rows = [line for line in body[1].splitlines() if line.startswith("|")][2:]
    assert 2 <= len(rows) <= 6


def test_tables_are_what_the_script_writes():
    check = [sys.executable, "bench/render_tables.py", "--check"]
    done = subprocess.run(check, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
