"""Sweeps: one setting of AlignBeam at a time, everything else held, the paper's axes and more."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final

from alignbeam.config import read_value
from alignbeam.errors import ConfigError
from alignbeam.eval.methods import build_method
from alignbeam.eval.run.summary import BASELINE
from alignbeam.eval.suite import MethodChoice, Suite

#: What is varied by default. ``fallback = "text"`` is the paper's literal text round trip.
AXES: Final[dict[str, tuple[Any, ...]]] = {
    "mix_steps": (0, 1, 2, 3, 6, 12, 20),
    "alpha": (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
    "beams": (1, 2, 3, 5, 8),
    "top_b": (10, 50, 100),
    "fallback": ("drop", "first", "exact", "prefix", "text"),
    "mix": ("linear", "log"),
    "support": ("anchor", "union"),
}

_METHOD: Final = "alignbeam"


def sweep_suite(
    suite: Suite, axes: Mapping[str, Sequence[Any]] | None = None
) -> tuple[Suite, list[dict[str, Any]]]:
    """Make a suite of sweep points out of a suite: its sets, its settings, other methods.

    The suite's ``alignbeam`` method is the centre of all axes. A point that lies at the centre
    is the centre, and occurs once. The target alone runs beside the points.

    Parameters
    ----------
    axes : mapping of setting to values, or None
        None takes ``AXES``.

    Returns
    -------
    suite : Suite
    sweep : list of mapping
        For the manifest: axis, default, and the method label of each value.

    Raises
    ------
    ConfigError
        An unknown setting, or a value out of range.
    """
    own = next((m for m in suite.methods if m.method == _METHOD), None)
    settings = dict(own.settings) if own is not None else {}
    centre = build_method(_METHOD, settings).settings
    choices = {_METHOD: MethodChoice(label=_METHOD, method=_METHOD, settings=settings)}
    described = []
    for axis, values in (AXES if axes is None else axes).items():
        if axis not in centre:
            raise ConfigError(f"sweep: unknown axis {axis!r}; known: {', '.join(centre)}")
        points = []
        for value in values:
            changed = _at(axis, value)
            point = build_method(_METHOD, {**settings, **changed}).settings
            label = _METHOD if point == centre else f"{_METHOD}[{axis}={value}]"
            choices.setdefault(
                label,
                MethodChoice(label=label, method=_METHOD, settings={**settings, **changed}),
            )
            points.append({"value": value, "method": label})
        described.append({"axis": axis, "default": centre[axis], "points": points})
    methods = (MethodChoice(label=BASELINE, method="target"), *choices.values())
    swept = dataclasses.replace(suite, name=f"sweep-{suite.name}", methods=methods, published=())
    return swept, described


def parse_axis(text: str) -> tuple[str, tuple[Any, ...]]:
    """Read ``alpha=0,0.5,1`` or ``mix=linear,log``.

    Raises
    ------
    ConfigError
        Not of that form.
    """
    axis, equals, rest = text.partition("=")
    values = [part.strip() for part in rest.split(",")]
    if not equals or not axis.strip() or not all(values):
        raise ConfigError(f"an axis is written like alpha=0,0.5,1; got {text!r}")
    return axis.strip().replace("-", "_"), tuple(read_value(part) for part in values)


def _at(axis: str, value: Any) -> dict[str, Any]:
    if axis == "fallback" and value == "text":
        return {"bridge": "text"}
    return {axis: value}
