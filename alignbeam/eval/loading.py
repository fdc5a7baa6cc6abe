"""The models of a suite, loaded once for all its methods and scorers."""

from __future__ import annotations

import hashlib
import json
from typing import Any, cast

from alignbeam.config import BeamConfig, JudgeConfig, RoleConfig
from alignbeam.controller import AlignBeam, load_judge_of
from alignbeam.decoding.probe import WeighedJudge
from alignbeam.engines.roles import refuse_engines
from alignbeam.errors import ConfigError
from alignbeam.eval.environment import describe_role
from alignbeam.eval.methods import METHODS, Models, build_method
from alignbeam.eval.scorers import (
    AnswerMatch,
    BareRequests,
    JudgeScorer,
    Scorer,
    StrictRefusal,
    StringMatch,
)
from alignbeam.eval.suite import SELECTING_JUDGE, Suite
from alignbeam.models.role import Role


def load_models(suite: Suite) -> Models:
    """Load what the suite's methods need.

    Raises
    ------
    ModelLoadError, TokenizerError, BridgeError, ConfigError
    """
    refuse_engines(suite.models, "an evaluation")
    config = BeamConfig.from_mapping({**suite.beam, "seed": suite.seed})
    beam = AlignBeam.from_pretrained(
        suite.models.get("target"),
        suite.models.get("anchor"),
        _judge_of(suite, "judge"),
        config,
    )
    antiexpert = None
    if "antiexpert" in suite.models:
        antiexpert = Role.from_config("antiexpert", suite.models["antiexpert"])
        if antiexpert.tokenizer.get_vocab() != beam.anchor.tokenizer.get_vocab():
            raise ConfigError(
                "the antiexpert must be the anchor's untuned twin: its vocabulary is another"
            )
    guard = load_judge_of(_judge_of(suite, "guard")) if "guard" in suite.models else None
    return Models(beam, antiexpert, guard)


def _judge_of(suite: Suite, name: str) -> JudgeConfig:
    config = cast(JudgeConfig, suite.models.get(name, JudgeConfig()))
    return repeatable(config, suite.seed)


def repeatable(config: JudgeConfig, seed: int) -> JudgeConfig:
    """Give a rubric judge nonces that are the same in every process, unless it has its own key.

    In service its nonces come from a secret that is drawn anew; a run that is to be taken up
    again after a kill needs the same prompts, hence the same nonces. The requests of a run are
    fixed beforehand and cannot make use of that.
    """
    if config.nonce_key is not None:
        return config
    return config.replace(nonce_key=hashlib.sha256(f"alignbeam eval {seed}".encode()).hexdigest())


def load_scorers(suite: Suite, models: Models, bare: BareRequests) -> list[Scorer]:
    """Load what the suite scores with; exact match wherever there is a right answer.

    Parameters
    ----------
    bare : mapping
        What judges are shown in the place of a request that a template made (``Plan.bare``).

    Raises
    ------
    ConfigError
        Two scorers of one name.
    """
    scorers: list[Scorer] = []
    for choice in suite.scorers:
        if choice.kind == "strict":
            scorers.append(StrictRefusal())
        elif choice.kind == "strings":
            scorers.append(StringMatch())
        elif choice.kind == SELECTING_JUDGE:
            judge = models.beam.judge
            if isinstance(judge, WeighedJudge):  # a probe would find the same reply less harmful
                judge = judge.unweighed
            scorers.append(JudgeScorer(judge, selects=True, bare=bare))
        elif choice.model is not None:
            other = load_judge_of(repeatable(choice.model, suite.seed))
            who = describe_role(other.role, choice.model, embedded=False) if other.role else {}
            rules = hashlib.sha256(json.dumps(who, sort_keys=True).encode()).hexdigest()
            scorers.append(JudgeScorer(other, selects=False, bare=bare, rules=rules))
    scoring = {d.declared.name: d.declared.scoring for d in suite.datasets if d.declared.scoring}
    if scoring:
        scorers.append(AnswerMatch(scoring))
    names = [scorer.name for scorer in scorers]
    if len(set(names)) != len(names):
        raise ConfigError(f"two scorers have one name: {', '.join(names)}")
    return scorers


def describe_models(suite: Suite, models: Models) -> dict[str, Any]:
    """Return what the models are, for the manifest."""
    roles: dict[str, Role | None] = {
        "target": models.target,
        "anchor": models.anchor,
        "judge": models.beam.judge.role,
        "antiexpert": models.antiexpert,
        "guard": getattr(models.guard, "role", None),
    }
    found: dict[str, Any] = {}
    for name, role in roles.items():
        if role is None:
            continue
        config: RoleConfig = suite.models.get(name, RoleConfig())
        found[name] = describe_role(role, config, embedded=config.model is None)
    found["judge"] = {**found.get("judge", {}), "name": models.beam.judge.name}
    if models.guard is not None:
        found["guard"] = {**found.get("guard", {}), "name": models.guard.name}
    found["bridge"] = {"fingerprint": models.beam.bridge.fingerprint}
    return found


def describe_methods(suite: Suite) -> list[dict[str, Any]]:
    """Return the suite's methods with all settings filled in, for the manifest."""
    return [
        {
            "label": m.label,
            "method": m.method,
            "settings": build_method(m.method, m.settings).settings,
            "citation": METHODS[m.method].citation,
            "description": METHODS[m.method].description,
        }
        for m in suite.methods
    ]
