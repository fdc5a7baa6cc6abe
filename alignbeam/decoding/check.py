"""Whether what is configured can be done with these models: asked before anything is decoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alignbeam.config import BeamConfig
from alignbeam.engines.role import RemoteRole
from alignbeam.engines.roles import AnyRole
from alignbeam.errors import BackendUnavailable, ConfigError
from alignbeam.ops.dispatch import resolve

if TYPE_CHECKING:
    from alignbeam.decoding.anchor import AnchorSteering


def check_settings(target: AnyRole, steering: AnchorSteering, config: BeamConfig) -> None:
    """Check what every request would fail by, mixed or not: a request may mix more than this one.

    Raises
    ------
    ConfigError, BackendUnavailable
        What cannot be done here, and what to set instead.
    """
    check_roles(target, steering.anchor, config)
    if isinstance(steering.anchor, RemoteRole):
        _check_best(steering.anchor, steering.opening_id is not None, config)
    elif not isinstance(target, RemoteRole):  # where either is on an engine, no kernel runs
        _check_backend(target.device.type, config.backend)


def check_roles(target: AnyRole, anchor: AnyRole | None, config: BeamConfig) -> None:
    """Check settings against the roles; ``anchor`` is None where nothing is mixed.

    Raises
    ------
    ConfigError
        What cannot be done with them, and what to set instead.
    """
    if config.early_every > 0 and isinstance(target, RemoteRole):
        raise ConfigError(
            "early_every needs the target in this process, not on an engine; set early_every = 0, "
            "or target.model in place of target.url"
        )
    if config.beams > target.width:
        raise ConfigError(
            f"beams must be in 1..{target.width} (the vocabulary), got {config.beams}"
        )
    if config.fallback == "prefix" and isinstance(anchor, RemoteRole):
        raise ConfigError(
            'fallback = "prefix" needs all that the anchor says, and an engine tells its '
            "best tokens only; run the anchor in this process, or set another fallback"
        )


def _check_best(anchor: RemoteRole, has_opening: bool, config: BeamConfig) -> None:
    # In the first step one more: the opening token is none of the answer.
    needed = config.top_b + has_opening
    if needed > anchor.most:
        raise ConfigError(
            f"top_b is {config.top_b}, and the {anchor.name}'s engine was checked for "
            f"{anchor.most - has_opening} of its best tokens; lower top_b, or make the role with "
            f"best={needed}"
        )


def _check_backend(device: str, backend: str) -> None:
    if backend == "auto":  # falls back to what there is
        return
    try:
        resolve(device, backend)
    except BackendUnavailable as error:
        raise BackendUnavailable(
            f'{error}; set backend = "auto" to take the best that runs here'
        ) from error
