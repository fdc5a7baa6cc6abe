"""A configuration file that explains itself: complete, true, and read back as what it tells."""

from __future__ import annotations

import re
import tomllib
from dataclasses import fields
from datetime import UTC, date, datetime, time
from pathlib import Path

import pytest

from alignbeam.config import JudgeConfig, Settings, load_settings, names_of, settings_file
from alignbeam.config.described import meanings
from alignbeam.errors import ConfigError
from alignbeam.judge import GUARDS
from alignbeam.judge.load import OWN_GUARD

PAGE = Path(__file__).parents[2] / "docs" / "settings.toml"
AT = [datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), date(2026, 1, 2), time(3, 4)]
TABLES = {field.name: getattr(Settings(), field.name) for field in fields(Settings)}


def told(**overrides):
    return settings_file(vars(load_settings(overrides=overrides, environ={})))


@pytest.mark.parametrize("table", TABLES)
def test_every_setting_is_explained_and_nothing_else_is(table):
    found = meanings(type(TABLES[table]))
    assert set(found) == set(TABLES[table].known_keys())
    assert all(words.endswith(".") and "``" not in words for words in found.values())


def test_every_kind_of_judge_is_named():
    named = set(re.findall(r"`\"?([\w-]+)\"?`", meanings(JudgeConfig)["kind"]))
    assert {"rubric", OWN_GUARD, *GUARDS} <= named


def test_page_of_the_defaults_is_what_the_command_prints():
    assert PAGE.read_text(encoding="utf-8") == settings_file(TABLES), (
        "write it anew: alignbeam settings > docs/settings.toml"
    )


def test_defaults_are_comments_and_become_the_defaults_where_they_are_taken_in():
    text = settings_file(TABLES)
    assert tomllib.loads(text) == {table: {} for table in TABLES}
    taken = re.sub(r"^# (\w+ = (?!\.\.\.))", r"\1", text, flags=re.MULTILINE)
    read = tomllib.loads(taken)
    assert len(read["server"]) > 30
    for table, values in read.items():
        assert type(TABLES[table]).from_mapping(values) == TABLES[table]


def test_what_is_set_stands_for_itself_and_is_read_back(tmp_path):
    given = {
        "beam": {"alpha": 0.3, "stop": ["\n", 'a"b'], "refusal_text": "No. \x7f é"},
        "target": {
            "model": "folder",
            "quantization": {"load_in_4bit": True, "n": [1, 2], "at": AT},
        },
        "server": {"min_alpha": 0.2},
    }
    path = tmp_path / "alignbeam.toml"
    path.write_text(told(**given), encoding="utf-8")
    assert load_settings(path, environ={}) == load_settings(overrides=given, environ={})
    assert "alpha = 0.3  # a number in 0..1; default: 0.5" in path.read_text(encoding="utf-8")


def test_secrets_are_not_shown():
    text = told(
        judge={"nonce_key": "0badc0de" * 4}, target={"url": "http://user:hunter2@engine:8000"}
    )
    assert "0badc0de" not in text
    assert "hunter2" not in text
    assert text.count("it is set, and not shown") == 2


def test_only_what_is_named_is_told():
    assert names_of(["beam.top-b", "fold_turns"]) == [
        "beam.top_b",
        "target.fold_turns",
        "anchor.fold_turns",
        "judge.fold_turns",
    ]
    assert len(names_of(["gate"])) == len(TABLES["gate"].known_keys())
    text = settings_file(TABLES, names_of(["top_b", "limit"]))
    assert re.findall(r"^\[(\w+)\]$", text, re.MULTILINE) == ["beam", "eval"]
    assert re.findall(r"^# (\w+) =", text, re.MULTILINE) == ["top_b", "limit"]
    assert names_of(["judge-kind"]) == ["judge.kind"]
    for wrong, right in (("treshold", "threshold"), ("sever", "server")):
        with pytest.raises(ConfigError, match=f"did you mean '{right}'"):
            names_of([wrong])
