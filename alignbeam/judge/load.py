"""From settings to a judge that is ready to ask."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final

from alignbeam.config import JudgeConfig
from alignbeam.errors import ConfigError
from alignbeam.judge.failclosed import FailClosed
from alignbeam.judge.formats import GUARDS, GuardFormat, read_guards
from alignbeam.judge.guard import GuardJudge
from alignbeam.judge.model_judge import ModelJudge
from alignbeam.judge.protocol import JudgeRole
from alignbeam.judge.rubric import DEFAULT_RUBRIC, Rubric
from alignbeam.judge.rubric_judge import RubricJudge

#: A checkpoint that was trained on a rubric of its own ships it under this name.
RUBRIC_FILE: Final = "rubric.json"
#: A model, or an adapter, that was trained on a guard format of its own ships it under this name.
GUARD_FILE: Final = "guard.toml"
OWN_GUARD: Final = "guard"


def load_judge(config: JudgeConfig, role: JudgeRole) -> FailClosed:
    """Build the judge that ``config.kind`` names around a loaded model, failing closed.

    Parameters
    ----------
    config : JudgeConfig
        What only a judge has is read, and where the model is: a ``rubric.json`` in its folder is
        the rubric of a rubric judge, in place of ``DEFAULT_RUBRIC``; the ``guard.toml`` in its
        folder, or in its adapter's, is the format of the kind ``"guard"``.
    role : JudgeRole
        The model; the judge's ``role`` attribute.

    Raises
    ------
    ConfigError
        An unknown kind, or a damaged rubric file.
    TokenizerError
        The model's tokenizer cannot answer this kind of question.
    """
    asked: dict[str, Any] = {
        "label_mass_floor": config.label_mass_floor,
        "views": config.views,
        "unreadable": config.unreadable,
    }
    judge: ModelJudge
    if config.kind == "rubric":
        judge = RubricJudge(
            role,
            _rubric_of(config),
            **asked,
            key=None if config.nonce_key is None else bytes.fromhex(config.nonce_key),
        )
    elif config.kind == OWN_GUARD:
        judge = GuardJudge(role, _guard_of(config), **asked)
    elif config.kind in GUARDS:
        judge = GuardJudge(role, GUARDS[config.kind], **asked)
    else:
        kinds = ["rubric", OWN_GUARD, *GUARDS]
        near = difflib.get_close_matches(config.kind, kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"judge.kind must be one of {', '.join(kinds)}, got {config.kind!r}{hint}"
        )
    return FailClosed(judge, config.timeout_s)


def _guard_of(config: JudgeConfig) -> GuardFormat:
    for folder in (config.adapter, config.model, config.tokenizer):
        path = Path(folder or "").expanduser() / GUARD_FILE
        if folder and path.is_file():
            formats = list(read_guards(path).values())
            if len(formats) != 1:
                raise ConfigError(f"{path} must hold one table, the guard's; it has {len(formats)}")
            return formats[0]
    raise ConfigError(
        f"judge.kind = {OWN_GUARD!r} takes the format from a {GUARD_FILE} beside the judge's model "
        "or adapter, and there is none; name a published format, or put the file there"
    )


def _rubric_of(config: JudgeConfig) -> Rubric:
    # What an engine serves names its folder only where the settings do.
    folder = config.model or config.tokenizer
    path = Path(folder or "").expanduser() / RUBRIC_FILE
    return Rubric.from_file(path) if folder and path.is_file() else DEFAULT_RUBRIC
