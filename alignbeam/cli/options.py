"""Options that several commands share, and how they become settings.

An option's value is checked once, by ``alignbeam.config``; here it is only named.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from alignbeam.config import BeamConfig, Settings, from_assignments, from_flat, load_settings

_DEFAULT = BeamConfig()


def _option(name: str, panel: str, metavar: str, help: str) -> Any:
    return typer.Option(name, help=help, metavar=metavar, rich_help_panel=panel, show_default=False)


def _model(name: str, help: str) -> Any:
    return _option(name, "Models", "FOLDER|HUB-ID", f"{help} (default: the embedded one).")


def _beam(key: str, metavar: str, help: str) -> Any:
    name, default = "--" + key.replace("_", "-"), getattr(_DEFAULT, key)
    return _option(name, "Settings", metavar, f"{help} (default {default}).")


Target = Annotated[str | None, _model("--target", "The fine-tuned specialist whose answer you get")]
Anchor = Annotated[str | None, _model("--anchor", "The small, well-aligned model, of any family")]
JudgeModel = Annotated[str | None, _model("--judge", "The model that scores finished candidates")]
ConfigFile = Annotated[
    str | None,
    _option("--config", "Settings", "FILE.toml", "Settings in tables; options win over them."),
]
Set = Annotated[
    list[str] | None,
    _option(
        "--set",
        "Settings",
        "NAME=VALUE",
        "Any other setting, such as temperature=0.7, judge.kind=wildguard or device=cuda; "
        "repeatable. docs/tuning.md lists all names, /set in a chat those of an answer.",
    ),
]
Alpha = Annotated[float | None, _beam("alpha", "0..1", "Weight of the anchor in the mix")]
MixSteps = Annotated[
    int | None, _beam("mix_steps", "N", "How many tokens are mixed; 0 leaves the target alone")
]
Beams = Annotated[
    int | None, _beam("beams", "K", "How many candidates are completed and judged, 1..8")
]
MaxNewTokens = Annotated[
    int | None, _beam("max_new_tokens", "N", "Longest answer, in target tokens")
]

#: The options above that set something by their own name.
_FLAGS = ("target", "anchor", "judge", "alpha", "mix_steps", "beams", "max_new_tokens")


def overrides_from(
    parameters: Mapping[str, Any], own: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
    """Sort the options that were given into the tables of ``Settings``.

    Parameters
    ----------
    parameters : mapping
        A command's parameters by name, as ``typer.Context.params`` holds them; None is not given.
    own : mapping or None
        What a command's own options set, by flat name; None is not given. ``--set`` wins.

    Raises
    ------
    ConfigError
        ``--set`` without a value, or an unknown name.
    """
    flat = {name: parameters.get(name) for name in _FLAGS} | dict(own or {})
    given = {name: value for name, value in flat.items() if value is not None}
    return from_flat(given | from_assignments(parameters["assigned"] or ()))


def settings_from(parameters: Mapping[str, Any], own: Mapping[str, Any] | None = None) -> Settings:
    """Command line over environment over ``--config`` over defaults; see ``overrides_from``.

    Raises
    ------
    ConfigError
        An unknown key, or a value of the wrong type or range.
    """
    return load_settings(parameters["config"], overrides_from(parameters, own))
