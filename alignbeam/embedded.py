"""Where the embedded demonstration models are."""

from __future__ import annotations

from pathlib import Path

from alignbeam.errors import ModelLoadError
from alignbeam.judge import Rubric

_DEMO = Path(__file__).parent / "demo"

#: Of the embedded judge's nonces: a demonstration guards nothing, and its figures must repeat.
EMBEDDED_KEY = b"the embedded trio"


def embedded_model(role: str) -> str:
    """Return the folder of the embedded target, anchor or judge.

    Raises
    ------
    ModelLoadError
        The package was installed without its models.
    """
    folder = _DEMO / role
    if not (folder / "config.json").is_file():
        raise ModelLoadError(
            f"the embedded {role} is not in this installation; name a model of your own, or "
            "install the package again"
        )
    return str(folder)


def embedded_rubric() -> Rubric:
    """Return the rubric that the embedded judge was trained on."""
    return Rubric.from_file(_DEMO / "judge" / "rubric.json")
