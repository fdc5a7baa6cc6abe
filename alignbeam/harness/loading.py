"""Models for a harness, from the flat arguments that harnesses hand over."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from alignbeam.config import from_flat, load_settings
from alignbeam.controller import DEFAULT_BATCH_SIZE, AlignBeam
from alignbeam.errors import ConfigError
from alignbeam.eval.loading import repeatable

#: What a harness calls the model of ours that needs no files: all three roles embedded.
EMBEDDED: Final = "embedded"


@dataclass(frozen=True)
class Loaded:
    """What a harness asks.

    Attributes
    ----------
    beam : AlignBeam
        Its rubric judge has nonces fixed by the seed, so that a repeated run is the same run.
    batch_size : int
        Requests answered together.
    """

    beam: AlignBeam
    batch_size: int


def load(target: str, arguments: Mapping[str, Any]) -> Loaded:
    """Load the models that a harness's arguments name.

    Parameters
    ----------
    target : str
        Folder or hub id of the fine-tuned model; ``"embedded"`` takes the configuration file's,
        else the embedded one.
    arguments : mapping
        ``config`` (a TOML file, see ``load_settings``), ``batch_size``, and any name that
        ``from_flat`` knows, such as ``anchor``, ``judge_kind`` or ``alpha``. They win over the
        environment, which wins over the file.

    Raises
    ------
    ConfigError, ModelLoadError, TokenizerError, BridgeError
    """
    given = {"target": target, **arguments}
    given = {name: value for name, value in given.items() if value not in (None, EMBEDDED)}
    config = given.pop("config", None)
    batch_size = _batch_size(given.pop("batch_size", DEFAULT_BATCH_SIZE))
    settings = load_settings(config, from_flat(given))
    judge = repeatable(settings.judge, settings.beam.seed)
    beam = AlignBeam.from_settings(dataclasses.replace(settings, judge=judge))
    return Loaded(beam, batch_size)


def _batch_size(given: object) -> int:
    """Return a number of requests; ``auto`` is a harness's word for our default."""
    text = str(given)
    if text.partition(":")[0] == "auto":
        return DEFAULT_BATCH_SIZE
    if isinstance(given, bool) or not text.isdecimal() or int(text) < 1:
        raise ConfigError(f"batch_size must be an integer of at least 1, or auto, got {given!r}")
    return int(text)
