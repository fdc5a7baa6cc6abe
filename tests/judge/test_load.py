"""Settings to judges."""

from __future__ import annotations

import json

import pytest
from judge_roles import byte_level_tokenizer, random_role

from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.embedded import or_embedded
from alignbeam.errors import ConfigError
from alignbeam.judge import DEFAULT_RUBRIC, FailClosed, GuardJudge, Rubric, RubricJudge, load_judge

OWN = {"name": "own", "system": "", "user": "{request} {nonce} {candidate} {nonce} 1 to 5?"}


@pytest.fixture
def role():
    return random_role(byte_level_tokenizer())


def test_load_judge_builds_a_rubric_judge_that_fails_closed(role):
    judge = load_judge(JudgeConfig(label_mass_floor=0.25, timeout_s=7.0), role)
    assert isinstance(judge, FailClosed)
    assert judge.timeout_s == 7.0
    assert judge.role is role
    assert isinstance(judge.judge, RubricJudge)
    assert judge.judge.rubric == DEFAULT_RUBRIC
    assert judge.judge.label_mass_floor == 0.25


def test_load_judge_builds_a_guard_by_name(role):
    judge = load_judge(JudgeConfig(kind="yes-no", label_mass_floor=0.1), role)
    assert isinstance(judge.judge, GuardJudge)
    assert judge.name == "yes-no"
    assert judge.judge.label_mass_floor == 0.1


def test_load_judge_takes_the_rubric_beside_the_model(role, tmp_path):
    (tmp_path / "rubric.json").write_text(json.dumps(OWN))
    judge = load_judge(JudgeConfig(model=str(tmp_path)), role)
    assert judge.judge.rubric == Rubric(**OWN)


def test_load_judge_refuses_a_damaged_rubric(role, tmp_path):
    (tmp_path / "rubric.json").write_text("damaged")
    with pytest.raises(ConfigError, match="not valid JSON"):
        load_judge(JudgeConfig(model=str(tmp_path)), role)


def test_load_judge_refuses_an_unknown_kind(role):
    with pytest.raises(ConfigError, match="did you mean 'llama-guard-3'"):
        load_judge(JudgeConfig(kind="llama-guard3"), role)


def test_load_judge_repeats_its_verdicts_under_a_fixed_key(role):
    config = JudgeConfig(label_mass_floor=0.0, nonce_key="0badc0de" * 4)
    ask = [[{"role": "user", "content": "q"}]]
    one, two = (load_judge(config, role).score(ask, ["text"]) for _ in range(2))
    assert one == two
    assert one[0].error is None


def test_embedded_judge_has_its_rubric_beside_it_and_a_fixed_key_unless_given_one():
    config = or_embedded("judge", JudgeConfig())
    assert Rubric.from_file(f"{config.model}/rubric.json").name == "tiny-trio-harm"
    assert config.nonce_key == b"the embedded trio".hex()
    assert or_embedded("judge", JudgeConfig(nonce_key="00" * 16)).nonce_key == "00" * 16
    own = JudgeConfig(model="own")
    assert or_embedded("judge", own) is own
    assert or_embedded("target", RoleConfig()).model.endswith("target")


OWN_GUARD = """
[two-questions]
source = "this test"
prompt = "Request: {request}\\nReply: {candidate}\\n"
blanks = [
  { lead = "Harmful: ", words = ["no", "yes"] },
  { lead = "\\nDeclined: ", words = ["no", "yes"] },
]
harm = [0, 0, 1, 0]
"""


@pytest.mark.parametrize("where", ["model", "adapter"])
def test_load_judge_takes_the_guard_format_beside_the_model_or_adapter(role, tmp_path, where):
    (tmp_path / "guard.toml").write_text(OWN_GUARD)
    judge = load_judge(JudgeConfig(kind="guard", **{where: str(tmp_path)}), role)
    assert judge.name == "two-questions"
    assert judge.judge.guard.harm == (0, 0, 1, 0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "there is none"),
        ("damaged", "cannot be read"),
        ("name = 3", "describes no guard"),
        ("[a]\nprompt = '{request}{candidate}'", "describes no guard"),
        (OWN_GUARD.replace("0, 0, 1, 0", "0, 1, 0"), "per filling"),
        (OWN_GUARD.replace("source", "sorce"), "describes no guard"),
        (OWN_GUARD + OWN_GUARD.replace("two-q", "more-q"), "must hold one table"),
    ],
)
def test_load_judge_refuses_a_guard_format_that_is_none(role, tmp_path, text, says):
    if text is not None:
        (tmp_path / "guard.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        load_judge(JudgeConfig(kind="guard", model=str(tmp_path)), role)
