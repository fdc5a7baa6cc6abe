"""Options that several commands share, and how they become settings.

An option's value is checked once, by ``alignbeam.config``; here it is only named.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Annotated, Any, Final

import typer

from alignbeam.config import BeamConfig, Settings, from_assignments, from_flat, load_settings

_DEFAULT = BeamConfig()


def _option(kind: Any, name: str, panel: str, metavar: str, help: str) -> Any:
    given = typer.Option(
        name, help=help, metavar=metavar, rich_help_panel=panel, show_default=False
    )
    return Annotated[kind | None, given]


def _flags(default: str | None = None) -> dict[str, Any]:
    """Return the options; their help names the defaults of ``BeamConfig``, or ``default``."""

    def model(name: str, help: str) -> Any:
        words = f"{help} (default: {default or 'the embedded one'})."
        return _option(str, name, "Models", "FOLDER|HUB-ID|GGUF|URL", words)

    def beam(kind: type, key: str, metavar: str, help: str) -> Any:
        words = f" {getattr(_DEFAULT, key)}" if default is None else f": {default}"
        name = "--" + key.replace("_", "-")
        return _option(kind, name, "Settings", metavar, f"{help} (default{words}).")

    return {
        "target": model("--target", "The fine-tuned specialist whose answer you get"),
        "anchor": model("--anchor", "The small, well-aligned model, of any family"),
        "judge": model("--judge", "The model that scores finished candidates"),
        "alpha": beam(float, "alpha", "0..1", "Weight of the anchor in the mix"),
        "mix_steps": beam(
            int, "mix_steps", "N", "How many tokens are mixed; 0 leaves the target alone"
        ),
        "beams": beam(int, "beams", "K", "How many candidates are completed and judged, 1..8"),
        "max_new_tokens": beam(int, "max_new_tokens", "N", "Longest answer, in target tokens"),
    }


#: Options that set something by their own name, in the order in which help lists them.
FLAGS: Final = _flags()
_SUITE_FLAGS: Final = _flags("the suite's")
_CONFIG: Final = _option(
    str, "--config", "Settings", "FILE.toml", "Settings in tables; options win over them."
)
_SET: Final = _option(
    list[str],
    "--set",
    "Settings",
    "NAME=VALUE",
    "Any other setting, such as temperature=0.7, judge.kind=wildguard or device=cuda; "
    "repeatable. `alignbeam settings` explains all of them.",
)


def with_options(
    added: Mapping[str, tuple[Any, Any]],
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command more options, after its own; it finds them in ``typer.Context.params``.

    Parameters
    ----------
    added : mapping of name to (annotation, default)
    """

    def given_to(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        @wraps(command)
        def run(**given: Any) -> None:
            command(**{name: given[name] for name in own})

        more = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value, annotation=kind)
            for name, (kind, value) in added.items()
        ]
        vars(run)["__signature__"] = inspect.Signature([*own.values(), *more])
        run.__annotations__ = {p.name: p.annotation for p in (*own.values(), *more)}
        return run

    return given_to


def with_settings(
    *flags: str, over_suite: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command ``--config``, ``--set`` and these of ``FLAGS`` (none named: all).

    Parameters
    ----------
    over_suite : bool
        Whether the command begins from a suite's settings.
    """
    named = {"config": _CONFIG, "assigned": _SET}
    known = _SUITE_FLAGS if over_suite else FLAGS
    chosen = {name: kind for name, kind in known.items() if not flags or name in flags}
    return with_options({name: (kind, None) for name, kind in (chosen | named).items()})


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
    flat = {name: parameters.get(name) for name in FLAGS} | dict(own or {})
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
