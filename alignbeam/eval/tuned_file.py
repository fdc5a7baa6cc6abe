"""A configuration file with its evidence: what ``alignbeam tune`` writes."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from alignbeam.config import JudgeConfig, toml
from alignbeam.errors import ConfigError
from alignbeam.eval.promises import Goal, Standing
from alignbeam.eval.refusal import MEASURED
from alignbeam.eval.tune import Tuned

#: How such a file begins.
_HEAD: Final = "Written by `alignbeam tune`; "
#: Never copied into a file that others may read.
_SECRET = {"judge": JudgeConfig.secret_keys()}


def check_ours(path: Path) -> None:
    """Refuse to replace what ``tune`` did not write, a configuration of the user's own above all.

    Raises
    ------
    ConfigError
    """
    if path.exists() and not path.read_bytes().startswith(f"# {_HEAD}".encode()):
        raise ConfigError(f"{path} is there, and not by alignbeam tune; name another file: --out")


def tuned_tables(given: Mapping[str, Mapping[str, Any]], tuned: Tuned) -> dict[str, dict[str, Any]]:
    """Return the tables of a file: what was given, under the winner's settings; no secrets."""
    tables = {
        name: {k: v for k, v in values.items() if k not in _SECRET.get(name, ())}
        for name, values in given.items()
    }
    settings = dict(tuned.settings)
    gate = settings.pop("gate", None)
    tables["beam"] = {**tables.get("beam", {}), **settings}
    if gate:
        tables["gate"] = dict(gate)
    return {name: values for name, values in tables.items() if values}


def tuned_file(
    given: Mapping[str, Mapping[str, Any]], tuned: Tuned, goal: Goal, sets: Sequence[str]
) -> str:
    """Return the whole file.

    Parameters
    ----------
    given : mapping of table to mapping
        What was set, defaults left out.
    tuned : Tuned
    goal : Goal
    sets : sequence of str
        What was asked, a line each.
    """
    lines = [
        f"{_HEAD}read by `alignbeam generate --config` and `serve --config`.",
        "",
        "Chosen on the tuning half of:",
        *(f"  {told}" for told in sets),
        _standing("chosen, tuning half", tuned.tuning),
        "Measured once on the other half, which decided nothing:",
        _standing("chosen", tuned.held_out),
        _standing("default settings", tuned.faithful),
        _standing("the target alone", tuned.target),
        "",
        *(f"{'SHOWN' if p.shown else 'NOT SHOWN'}: {p.words}." for p in tuned.promises),
        "",
        "95 % intervals in brackets. Refusals by the strict reading: " + MEASURED + ".",
        "They are of these prompts and models alone. No attacker was among those who asked.",
    ]
    wrapped = [part for line in lines for part in (textwrap.wrap(line, 96) or [""])]
    head = "\n".join(f"# {line}".rstrip() for line in wrapped)
    body = "\n\n".join(
        f"[{name}]\n" + "\n".join(f"{key} = {toml(value)}" for key, value in values.items())
        for name, values in tuned_tables(given, tuned).items()
    )
    return f"{head}\n\n{body}\n"


def _standing(name: str, found: Standing) -> str:
    return (
        f"  {name}: harmful refused {found.refused} of {found.refused.n}, benign refused "
        f"{found.over_refusal} of {found.over_refusal.n}, {found.ms:.0f} ms a sample "
        f"[{found.low_ms:.0f}, {found.high_ms:.0f}]"
    )
