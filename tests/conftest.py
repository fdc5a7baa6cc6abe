"""Profiles, shared fixtures, and the hooks of ``support/skips.py``."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from skips import (  # noqa: F401  hooks
    pytest_addoption,
    pytest_sessionfinish,
    pytest_terminal_summary,
)

REPO = Path(__file__).resolve().parent.parent

for name, examples in (("dev", 20), ("ci", 60), ("deep", 1000)):
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        derandomize=name == "ci",
        suppress_health_check=[HealthCheck.too_slow],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))

# Test workers run side by side; threads of one must not crowd out the other.
torch.set_num_threads(1)


def _folder(variable: str, name: str) -> Path | None:
    given = os.environ.get(variable)
    folder = Path(given) if given else REPO.parent / "shared" / name
    return folder if folder.is_dir() else None


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The published data sets (ALIGNBEAM_DATA); skips where there are none."""
    folder = _folder("ALIGNBEAM_DATA", "data")
    if folder is None:
        pytest.skip("no data sets: set ALIGNBEAM_DATA")
    return folder


@pytest.fixture(scope="session")
def vocabs_dir() -> Path:
    """The real tokenizers (ALIGNBEAM_VOCABS); skips where there are none."""
    folder = _folder("ALIGNBEAM_VOCABS", "vocabs")
    if folder is None:
        pytest.skip("no real tokenizers: set ALIGNBEAM_VOCABS")
    return folder


@pytest.fixture(scope="session")
def trio():
    """The embedded trio under the default settings; its settings are frozen, so it is shared."""
    from alignbeam import AlignBeam

    return AlignBeam.from_pretrained()
