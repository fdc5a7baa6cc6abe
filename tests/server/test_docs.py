"""What the server's guides promise: named tests and codes exist."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from alignbeam.server import problems

REPO = Path(__file__).parents[2]
DOCS = REPO / "docs"


def text_of(name):
    return (DOCS / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("head", ["## Fail closed", "## Attacks that were thought of"])
def test_every_row_of_the_threat_model_names_tests_that_exist(head):
    table = text_of("threat_model.md").split(head)[1].split("##")[0]
    named = set(re.findall(r"`(test_\w+)`", table))
    sources = "".join(p.read_text(encoding="utf-8") for p in (REPO / "tests").rglob("test_*.py"))
    assert len(named) >= 10
    assert named <= set(re.findall(r"^def (test_\w+)", sources, re.MULTILINE))
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert all("`test_" in row for row in rows if not row.startswith("| ---"))


def test_every_error_code_is_documented_under_its_status():
    rooms = (REPO / "alignbeam" / "server").glob("*.py")
    source = "".join(p.read_text(encoding="utf-8") for p in rooms)
    raised = set(re.findall(r'Problem\(\s*(\d{3}),\s*"(\w+)"', source))
    raised |= {(str(status), code) for _, status, code in problems._KNOWN}
    table = text_of("deploying.md").split("## Errors that clients see")[1]
    documented = set()
    for line in table.splitlines():
        cells = line.split("|")
        if len(cells) > 2 and cells[1].strip()[:1].isdigit():
            for status in re.findall(r"\d{3}", cells[1]):
                documented |= {(status, code) for code in re.findall(r"`(\w+)`", cells[2])}
    assert len(raised) > 20
    assert raised <= documented


def test_load_table_is_what_the_script_writes():
    check = [sys.executable, "bench/render_server.py", "--check"]
    done = subprocess.run(check, cwd=REPO, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_load_table_has_every_part_once_there_are_rows(monkeypatch):
    monkeypatch.syspath_prepend(str(REPO / "bench"))
    import render_server
    import rows

    machine = {"cpu": "c", "cores": 2, "torch": "t", "commit": "abc"}
    numbers = ("requests", "concurrency", "lost", "wrong", "requests_per_s", "tokens_per_s",
               "total_ms_p50", "total_ms_p95", "threads", "max_tokens")  # fmt: skip
    found = [
        {"part": part, "note": f"note of {part}", "machine": machine, **dict.fromkeys(numbers, 7)}
        for part in ("overload", "streams", "throughput", "cancel", "memory")
    ]
    monkeypatch.setattr(rows, "read", lambda name: found if name == "server" else [])
    table = render_server.server()
    assert all(f"note of {row['part']} |" in table for row in found)
    assert table.index("note of streams") < table.index("note of overload")
    monkeypatch.setattr(rows, "read", lambda name: [])
    assert render_server.server() == ""
