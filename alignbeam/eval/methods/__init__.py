"""Every method of the comparison, under one roof: a name, settings, answers to a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from alignbeam.config import suggest
from alignbeam.errors import ConfigError
from alignbeam.eval.methods.alone import AnchorAlone, RefusalPrefix, SystemPrompt, TargetAlone
from alignbeam.eval.methods.backtracking import Backtracking
from alignbeam.eval.methods.deal import Deal
from alignbeam.eval.methods.guided import ContrastiveDecoding, ProxyTuning, SafeDecoding
from alignbeam.eval.methods.judged import AlignBeamMethod, BestOfK, PostHocGuard
from alignbeam.eval.methods.nudging import Nudging
from alignbeam.eval.methods.protocol import Answer, Answers, Method, Models
from alignbeam.eval.methods.rain import Rain

__all__ = ["METHODS", "Answer", "Answers", "Method", "Models", "build_method"]

#: All methods by the name that suites use, in the order of reports.
METHODS: Final[dict[str, type[Method]]] = {
    method.name: method
    for method in (
        TargetAlone,
        AnchorAlone,
        SystemPrompt,
        RefusalPrefix,
        SafeDecoding,
        Nudging,
        ProxyTuning,
        ContrastiveDecoding,
        Rain,
        Deal,
        Backtracking,
        PostHocGuard,
        BestOfK,
        AlignBeamMethod,
    )
}


def build_method(name: str, settings: Mapping[str, Any] | None = None) -> Method:
    """Return the method of a name under some settings.

    Raises
    ------
    ConfigError
        An unknown name or setting, or a value out of range.
    """
    if name not in METHODS:
        raise ConfigError(f"unknown method {name!r}{suggest(name, METHODS)}")
    return METHODS[name].from_mapping(settings or {}, where=f"method {name}")
