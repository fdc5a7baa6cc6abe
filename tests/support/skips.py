"""Skips: which of them CI allows (``tests/skips.toml``), and the line that names them.

The hooks below are tests/conftest.py's; they see the reports of all of pytest-xdist's workers.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

LIST = Path(__file__).resolve().parents[1] / "skips.toml"
MODES = ("any", "listed", "none")


class Skip(NamedTuple):
    """A test, or a module of tests, that was left out."""

    test: str
    reason: str


def entries() -> list[dict[str, Any]]:
    return tomllib.loads(LIST.read_text())["skip"]


def skips_of(reports: Iterable[Any]) -> list[Skip]:
    """Read pytest's reports of skipped tests and modules."""
    return [Skip(r.nodeid, r.longrepr[2].removeprefix("Skipped: ")) for r in reports]


def _entry(skip: Skip) -> dict[str, Any]:
    return next((e for e in entries() if re.match(e["reason"], skip.reason)), {})


def _allowed(skip: Skip) -> bool:
    entry = _entry(skip)
    files = entry.get("files", [skip.test.split("::")[0]])
    return "ci" in entry and skip.test.split("::")[0] in files


def refused(skips: Iterable[Skip], mode: str) -> list[Skip]:
    """Return the skips that fail a run in ``mode``, one of `MODES`."""
    if mode == "any":
        return []
    return [skip for skip in skips if mode == "none" or not _allowed(skip)]


def closing_line(skips: Iterable[Skip]) -> str:
    """Say in one line how many were left out, and what each kind needs."""
    counts = Counter(_entry(s).get("say", f"for another reason: {s.reason}") for s in skips)
    return "skipped: " + ", ".join(f"{count} {say}" for say, count in counts.most_common())


def pytest_addoption(parser):
    parser.addoption(
        "--skips",
        choices=MODES,
        default="listed" if os.environ.get("CI") else "any",
        help="which skips pass: any, those of tests/skips.toml (with CI set), or none",
    )


def _skips(config):
    """Those of all workers; a worker itself has no reporter."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    return skips_of(reporter.stats.get("skipped", [])) if reporter else []


def pytest_sessionfinish(session):
    if refused(_skips(session.config), session.config.option.skips) and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter, config):
    yield  # the list of -ra comes first
    skips = _skips(config)
    for skip in refused(skips, config.option.skips):
        terminalreporter.write_line(f"SKIP NOT ALLOWED {skip.test}: {skip.reason}", red=True)
    if skips:
        terminalreporter.write_line(closing_line(skips))
