"""The files to deploy with: what goes into an image, and what a service may write to."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]


def _patterns(name: str) -> list[str]:
    lines = (REPO / name).read_text(encoding="utf-8").splitlines()
    kept = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [line.removeprefix("**/").strip("/") for line in kept]


@pytest.mark.parametrize("name", [*_patterns(".gitignore"), ".git", "keys", "api.key"])
def test_image_holds_nothing_that_is_kept_out_of_the_repository(name):
    assert any(fnmatch(name, pattern) for pattern in _patterns(".dockerignore"))


def test_image_holds_the_sources_of_the_package():
    sources = [path.relative_to(REPO) for path in REPO.glob("alignbeam/**/*.py")]
    for path in (*sources, Path("pyproject.toml"), Path("constraints.txt"), Path("csrc")):
        left_out = [p for p in _patterns(".dockerignore") if any(fnmatch(n, p) for n in path.parts)]
        # Without ** a pattern is of the root alone.
        assert not [p for p in left_out if p != "report" or path.parts[0] == p]


@pytest.mark.parametrize("variable", ["ALIGNBEAM_CACHE", "HF_HOME"])
def test_service_keeps_its_caches_where_it_may_write(variable):
    text = (REPO / "examples/deploy/alignbeam.service").read_text(encoding="utf-8")
    state = re.search(r"^StateDirectory=(\w+)$", text, re.MULTILINE)
    assert re.search(rf"^Environment=.*\b{variable}=/var/lib/{state[1]}/", text, re.MULTILINE)
