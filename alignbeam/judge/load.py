"""From settings to a judge that is ready to ask."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Final

from alignbeam.config import JudgeConfig
from alignbeam.errors import ConfigError
from alignbeam.judge.failclosed import FailClosed
from alignbeam.judge.formats import GUARDS
from alignbeam.judge.guard import GuardJudge
from alignbeam.judge.model_judge import ModelJudge
from alignbeam.judge.protocol import JudgeRole
from alignbeam.judge.rubric import DEFAULT_RUBRIC, Rubric
from alignbeam.judge.rubric_judge import RubricJudge

#: A checkpoint that was trained on a rubric of its own ships it under this name.
RUBRIC_FILE: Final = "rubric.json"


def load_judge(config: JudgeConfig, role: JudgeRole) -> FailClosed:
    """Build the judge that ``config.kind`` names around a loaded model, failing closed.

    Parameters
    ----------
    config : JudgeConfig
        What only a judge has is read, and ``model``: a ``rubric.json`` in that folder is the
        rubric of a rubric judge, in place of ``DEFAULT_RUBRIC``.
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
    elif config.kind in GUARDS:
        judge = GuardJudge(role, GUARDS[config.kind], **asked)
    else:
        kinds = ["rubric", *GUARDS]
        near = difflib.get_close_matches(config.kind, kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(
            f"judge.kind must be one of {', '.join(kinds)}, got {config.kind!r}{hint}"
        )
    return FailClosed(judge, config.timeout_s)


def _rubric_of(config: JudgeConfig) -> Rubric:
    path = Path(config.model or "").expanduser() / RUBRIC_FILE
    return Rubric.from_file(path) if config.model and path.is_file() else DEFAULT_RUBRIC
