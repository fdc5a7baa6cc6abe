"""The record of a run's models: whatever decides an answer is in it, and no place of a file."""

from __future__ import annotations

import dataclasses
import json

import pytest

from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.eval.environment import describe_role

CHANGED = {
    "chat_template": "{{ messages }}",
    "thinking": True,
    "fold_turns": True,
    "quantization": {"load_in_4bit": True},
    "label_mass_floor": 0.4,
    "views": ("conversation",),
    "unreadable": "score",
    "probe": "mine.probe",
}
#: What the record tells by what it came to, or leaves out: see the module.
ELSEWHERE = {
    *("model", "revision", "adapter", "dtype", "device", "device_map", "system_prompt", "kind"),
    *("url", "tokenizer", "served_name", "key_env", "connect_s", "read_s"),
    *("nonce_key", "timeout_s"),  # a hash of the one, below; the other only ends a verdict
}


def told(trio, config):
    return describe_role(trio.target, config, embedded=True)


def test_every_setting_of_a_role_is_in_the_record_or_known_not_to_be():
    assert {f.name for f in dataclasses.fields(JudgeConfig)} == CHANGED.keys() | ELSEWHERE


@pytest.mark.parametrize("name", CHANGED)
def test_setting_that_is_not_the_default_is_told(trio, name):
    plain = told(trio, JudgeConfig())
    assert CHANGED.keys().isdisjoint(plain)
    changed = told(trio, JudgeConfig(**{name: CHANGED[name]}))
    assert json.loads(json.dumps(changed)) == plain | {
        name: list(CHANGED[name]) if name == "views" else CHANGED[name]
    }


@pytest.mark.parametrize("name", ["probe", "chat_template"])
def test_file_is_told_by_what_it_holds(trio, tmp_path, name):
    records = []
    for folder, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        path = tmp_path / folder
        path.write_bytes(content)
        records.append(told(trio, JudgeConfig(**{name: str(path)})))
    assert records[0] == records[1] != records[2]
    assert str(tmp_path) not in json.dumps(records)


def test_secret_is_told_by_its_hash_alone(trio):
    records = [told(trio, JudgeConfig(nonce_key=key * 4)) for key in ("0badc0de", "deadbeef")]
    assert records[0] != records[1]
    assert "0badc0de" not in json.dumps(records)
    assert told(trio, JudgeConfig(timeout_s=3)) == told(trio, RoleConfig())
