"""The libraries that only a report needs."""

from __future__ import annotations

from importlib.util import find_spec

from alignbeam.errors import ConfigError, how_to_install


def check_extra() -> None:
    """Say what to install, before anything is written.

    Raises
    ------
    ConfigError
        A library of the extra is missing.
    """
    missing = [name for name in ("plotly", "matplotlib") if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"a report needs the report extra ({', '.join(missing)} missing): "
            + how_to_install("report")
        )
