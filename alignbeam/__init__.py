"""Safe decoding of fine-tuned language models.

The names below are loaded when they are first used, so that ``import alignbeam`` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from alignbeam.version import __version__

if TYPE_CHECKING:
    from alignbeam import hf
    from alignbeam.config import (
        BeamConfig,
        GateConfig,
        JudgeConfig,
        RoleConfig,
        Settings,
        load_settings,
    )
    from alignbeam.controller import AlignBeam
    from alignbeam.models.role import Role
    from alignbeam.ops import mix_topk
    from alignbeam.result import Candidate, Result, StepTrace, Timings, Verdict
    from alignbeam.vocab.bridge import Bridge

_HOMES = {
    "AlignBeam": "alignbeam.controller",
    "BeamConfig": "alignbeam.config",
    "Bridge": "alignbeam.vocab.bridge",
    "Candidate": "alignbeam.result",
    "GateConfig": "alignbeam.config",
    "JudgeConfig": "alignbeam.config",
    "Result": "alignbeam.result",
    "Role": "alignbeam.models.role",
    "RoleConfig": "alignbeam.config",
    "Settings": "alignbeam.config",
    "StepTrace": "alignbeam.result",
    "Timings": "alignbeam.result",
    "Verdict": "alignbeam.result",
    "load_settings": "alignbeam.config",
    "mix_topk": "alignbeam.ops",
}

__all__ = [
    "AlignBeam",
    "BeamConfig",
    "Bridge",
    "Candidate",
    "GateConfig",
    "JudgeConfig",
    "Result",
    "Role",
    "RoleConfig",
    "Settings",
    "StepTrace",
    "Timings",
    "Verdict",
    "__version__",
    "hf",
    "load_settings",
    "mix_topk",
]


def __getattr__(name: str) -> object:
    """Load a public name from its module, or the public module ``hf`` (PEP 562)."""
    if name == "hf":
        return import_module("alignbeam.hf")
    if name not in _HOMES:
        raise AttributeError(f"module 'alignbeam' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted(__all__)
