"""Where the embedded demonstration models are."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, TypeVar

from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.errors import ModelLoadError

_log = logging.getLogger(__name__)
_DEMO = Path(__file__).parent / "demo"

#: Of the embedded judge's nonces: a demonstration guards nothing, and its figures must repeat.
_NONCE_KEY = b"the embedded trio".hex()

_Config = TypeVar("_Config", bound=RoleConfig)


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


def or_embedded(role: str, config: _Config) -> _Config:
    """Return ``config``, with the embedded model of that role where it names no other."""
    if config.model is not None or config.url is not None:
        return config
    changes: dict[str, Any] = {"model": embedded_model(role)}
    if isinstance(config, JudgeConfig) and config.nonce_key is None:
        changes["nonce_key"] = _NONCE_KEY
    return config.replace(**changes)


def warn_of_embedded(**sources: object) -> None:
    """Log which roles the embedded models would play beside models of the user's own.

    Parameters
    ----------
    **sources
        What plays each role: a folder, settings, None (the embedded model), or anything ready made.
    """
    embedded = [name for name, source in sources.items() if _is_embedded(source)]
    if embedded and len(embedded) < len(sources):
        _log.warning(
            "the %s: embedded, made to show how things work with each other and no others; they "
            "protect nothing beside your own models: name your own, too",
            " and the ".join(embedded),
        )


def _is_embedded(source: object) -> bool:
    if isinstance(source, RoleConfig):
        return source.model is None and source.url is None
    return source is None
