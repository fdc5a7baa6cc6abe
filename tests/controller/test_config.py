"""Settings: every value checked, unknown keys refused, sources merged in the stated order."""

from __future__ import annotations

import json
import math
import re

import pytest

from alignbeam.config import (
    BeamConfig,
    EvalConfig,
    JudgeConfig,
    RoleConfig,
    ServerConfig,
    from_assignments,
    from_flat,
    load_settings,
    read_value,
)
from alignbeam.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("alpha", -0.01),
        ("alpha", 1.01),
        ("alpha", math.nan),
        ("alpha", "0.5"),
        ("alpha", True),
        ("mix_steps", -1),
        ("mix_steps", 1.5),
        ("beams", 0),
        ("beams", 9),
        ("top_b", 0),
        ("top_b", 257),
        ("mix", "lineal"),
        ("support", "both"),
        ("fallback", "keep"),
        ("threshold", 0.9),
        ("threshold", 5.1),
        ("on_unsafe", "allow"),
        ("max_new_tokens", 0),
        ("temperature", -1.0),
        ("top_p", 0.0),
        ("top_k", -1),
        ("seed", -1),
        ("stop", ("",)),
        ("stop", (3,)),
        ("stop", ("a", "\ud800")),
        ("backend", "abacus"),
        ("wishes", 21),
    ],
)
def test_beam_config_refuses_value_out_of_range(name, value):
    with pytest.raises(ConfigError, match=name):
        BeamConfig(**{name: value})


def test_beam_config_refuses_more_mixed_than_new_tokens():
    with pytest.raises(ConfigError, match=r"mix_steps \(6\) must not exceed max_new_tokens \(5\)"):
        BeamConfig(mix_steps=6, max_new_tokens=5)


def test_replace_names_the_nearest_setting_for_an_unknown_one():
    with pytest.raises(ConfigError, match="did you mean 'alpha'"):
        BeamConfig().replace(alpa=0.1)


def test_replace_checks_the_new_value():
    assert BeamConfig().replace(alpha=0.25).alpha == 0.25
    with pytest.raises(ConfigError, match="alpha"):
        BeamConfig().replace(alpha=2)


@pytest.mark.parametrize(
    ("settings", "values", "complaint"),
    [
        (BeamConfig, {"stop": [3]}, "stop must hold non-empty strings, got 3"),
        (BeamConfig, {"stop": None}, "stop must be a list of strings, got None"),
        (BeamConfig, {"refusal_text": None}, "refusal_text must be a string, got None"),
        (RoleConfig, {"model": 7}, "model must be a string, got 7"),
        (RoleConfig, {"dtype": "int8"}, "dtype must be one of auto, float32, bfloat16, float16"),
        (RoleConfig, {"quantization": "4bit"}, "quantization must be a table, got '4bit'"),
        (RoleConfig, {"thinking": 1}, "thinking must be true or false, got 1"),
        (JudgeConfig, {"timeout_s": -1}, "timeout_s must be in 0..86400, got -1"),
        (ServerConfig, {"port": 70_000}, "port must be in 0..65535, got 70000"),
        (ServerConfig, {"drain_s": 0}, "drain_s must be in 0.01..86400, got 0"),
        (ServerConfig, {"allow": ["threshold"]}, "allow must hold any of alpha, mix_steps"),
        (ServerConfig, {"max_header_bytes": 65_537}, "max_header_bytes must be in 1..65536"),
        (EvalConfig, {"limit": 0}, "limit must be at least 1, got 0"),
    ],
)
def test_annotation_of_a_field_is_what_is_checked(settings, values, complaint):
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        settings(**values)
    with pytest.raises(ConfigError, match=r"^\[there\]: " + re.escape(complaint)):
        settings.from_mapping(values, where="[there]")


def test_list_and_single_string_become_a_tuple_and_none_stays():
    assert BeamConfig(stop="a").stop == ("a",)
    assert BeamConfig.from_mapping({"stop": ["a", "b"]}).stop == ("a", "b")
    assert ServerConfig(allow=["alpha"]).allow == ("alpha",)
    assert JudgeConfig(timeout_s=None).timeout_s is None
    assert BeamConfig(alpha=1).alpha == 1


def test_role_config_refuses_device_beside_device_map():
    with pytest.raises(ConfigError, match="exclude each other"):
        RoleConfig(device="cpu", device_map="auto")


@pytest.mark.parametrize("kind", [RoleConfig, JudgeConfig])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("tokenizer", "folder"),
        ("served_name", "model"),
        ("key_env", "ENGINE_KEY"),
        ("connect_s", 1.0),
        ("read_s", 60.0),
    ],
)
def test_role_config_refuses_what_only_an_engine_is_asked_with(kind, name, value):
    with pytest.raises(ConfigError, match=f"{name} is of an engine, and no url is set"):
        kind(model="folder", **{name: value})
    for engine in ({"url": "http://h"}, {"model": "http://h"}):
        assert getattr(kind(**engine, **{name: value}), name) == value


def test_role_config_refuses_a_dtype_beside_url():
    with pytest.raises(ConfigError, match="dtype and url exclude each other"):
        RoleConfig(url="http://h", dtype="float16")
    assert RoleConfig(url="http://h", dtype="auto", revision="abc").revision == "abc"


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://", "no host"),
        ("https://:8000/v1", "no host"),
        ("http://h:99999", "a port"),
        ("http://h:0", "a port"),
        ("http://h:abc", "a port"),
        ("http://[::1", "no address"),
    ],
)
@pytest.mark.parametrize("name", ["url", "model"])
def test_role_config_refuses_a_url_that_nobody_can_reach(name, url, complaint):
    with pytest.raises(ConfigError, match=f"^url .*{complaint}"):
        RoleConfig(**{name: url})


@pytest.mark.parametrize(
    "url", ["http://h", "https://h:1/v1", "http://[::1]:65535", "http://u:p@h"]
)
def test_role_config_takes_a_url_with_a_host(url):
    assert RoleConfig(url=url).url == url


@pytest.mark.parametrize("name", ["beams", "mix_steps"])
def test_server_config_refuses_a_floor_above_its_ceiling(name):
    ServerConfig(**{f"min_{name}": 3, f"max_{name}": 3})
    with pytest.raises(ConfigError, match=rf"min_{name} \(5\) is above max_{name} \(3\)"):
        ServerConfig(**{f"min_{name}": 5, f"max_{name}": 3})


def test_a_setting_outside_of_its_table_is_told_where_it_belongs(tmp_path):
    path = tmp_path / "alignbeam.toml"
    path.write_text("alpha = 0.3\n")
    with pytest.raises(ConfigError, match=r"unknown table \[alpha\]; it belongs under \[beam\]"):
        load_settings(path)


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_beam_config_refuses_a_blank_refusal(text):
    with pytest.raises(ConfigError, match="refusal_text must say something"):
        BeamConfig(refusal_text=text)


def test_beam_config_refuses_bounds_of_beginnings_that_cross():
    with pytest.raises(ConfigError, match=r"early_safe \(4.0\) must not exceed early_harm \(1.0\)"):
        BeamConfig(early_safe=4.0, early_harm=1.0)
    assert BeamConfig(early_safe=2.0, early_harm=2.0).early_harm == 2.0


@pytest.mark.parametrize("name", ["", "  "])
def test_server_config_refuses_a_model_without_a_name(name):
    with pytest.raises(ConfigError, match="model_name must not be blank"):
        ServerConfig(model_name=name)


def test_server_config_refuses_audit_text_without_an_audit_log():
    with pytest.raises(ConfigError, match=r"audit_text needs audit_file"):
        ServerConfig(audit_text=True)
    assert ServerConfig(audit_text=True, audit_file="audit.jsonl").audit_text


def test_judge_config_refuses_floor_outside_unit_interval():
    with pytest.raises(ConfigError, match="label_mass_floor"):
        JudgeConfig(label_mass_floor=1.5)


@pytest.mark.parametrize("key", ["", "0", "0g" * 16, " ".join(["00"] * 16), "0" * 33, 17])
def test_judge_config_refuses_a_nonce_key_that_is_not_hexadecimal(key):
    with pytest.raises(ConfigError, match="nonce_key"):
        JudgeConfig(nonce_key=key)


def test_judge_config_refuses_a_nonce_key_that_can_be_guessed():
    with pytest.raises(ConfigError, match=r"nonce_key must be hexadecimal, .* 16 bytes at least"):
        JudgeConfig(nonce_key="00" * 15)
    assert JudgeConfig(nonce_key="0f" * 16).nonce_key == "0f" * 16


def test_judge_config_does_not_show_its_nonce_key():
    assert "0badc0de" not in repr(JudgeConfig(nonce_key="0badc0de" * 4))


def test_load_settings_merges_overrides_over_environment_over_file(tmp_path):
    path = tmp_path / "alignbeam.toml"
    path.write_text(
        '[beam]\nalpha = 0.1\nbeams = 2\nmix_steps = 4\nstop = ["a"]\n[target]\nmodel = "m"\n'
    )
    settings = load_settings(
        path,
        {"beam": {"alpha": 0.3}},
        {
            "ALIGNBEAM_BEAM_ALPHA": "0.2",
            "ALIGNBEAM_BEAM_BEAMS": "5",
            "ALIGNBEAM_JUDGE_KIND": "wildguard",
        },
    )
    assert settings.beam == BeamConfig(alpha=0.3, beams=5, mix_steps=4, stop=("a",))
    assert settings.target.model == "m"
    assert settings.judge.kind == "wildguard"


@pytest.mark.parametrize(
    ("table", "key", "values"),
    [
        ("beam", "alpha", (0.1, 0.2, 0.3)),
        ("target", "model", ("a", "b", "c")),
        ("anchor", "system_prompt", ("a", "b", "c")),
        ("judge", "kind", ("a", "b", "c")),
        ("server", "port", (1, 2, 3)),
        ("server", "allow", (["alpha"], ["beams"], ["explain"])),
        ("eval", "limit", (1, 2, 3)),
    ],
)
def test_option_wins_over_environment_over_file_in_every_table(tmp_path, table, key, values):
    def read(**sources):
        value = getattr(getattr(load_settings(**sources), table), key)
        return list(value) if isinstance(value, tuple) else value

    path = tmp_path / "alignbeam.toml"
    path.write_text(f"[{table}]\n{key} = {json.dumps(values[0])}\n")
    environ = {f"ALIGNBEAM_{table}_{key}".upper(): json.dumps(values[1])}
    overrides = from_flat(from_assignments([f"{table}.{key}={json.dumps(values[2])}"]))
    assert read(path=path, environ={}) == values[0]
    assert read(path=path, environ=environ) == values[1]
    assert read(path=path, environ=environ, overrides=overrides) == values[2]


def test_environment_names_itself_in_an_error():
    with pytest.raises(ConfigError, match=r"environment: \[server\]: unknown setting 'prot'"):
        load_settings(environ={"ALIGNBEAM_SERVER_PROT": "1"})


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("alpha = 3", "alpha must be in 0..1, got 3"),
        ('beams = "x"', "beams must be an integer, got 'x'"),
        ("alhpa = 1", "unknown setting 'alhpa'"),
    ],
)
def test_a_wrong_value_is_said_with_its_source(tmp_path, line, complaint):
    path = tmp_path / "alignbeam.toml"
    path.write_text(f"[beam]\n{line}\n")
    complaint = re.escape(complaint)
    with pytest.raises(ConfigError, match=rf"^{path}: \[beam\]: {complaint}"):
        load_settings(path, environ={})
    key, _, value = line.partition(" = ")
    environ = {f"ALIGNBEAM_BEAM_{key}".upper(): value}
    with pytest.raises(ConfigError, match=rf"^environment: \[beam\]: {complaint}"):
        load_settings(environ=environ)


def test_from_flat_sorts_names_into_tables():
    flat = {
        "alpha": 0.3,
        "beam.top-b": 9,
        "target": "t",
        "judge_kind": "wildguard",
        "judge.system_prompt": "s",
        "server.port": 1,
        "eval.limit": 2,
        "dtype": "float32",
    }
    assert from_flat(flat) == {
        "beam": {"alpha": 0.3, "top_b": 9},
        "target": {"model": "t", "dtype": "float32"},
        "anchor": {"dtype": "float32"},
        "judge": {"kind": "wildguard", "system_prompt": "s", "dtype": "float32"},
        "server": {"port": 1},
        "eval": {"limit": 2},
    }
    assert from_flat({"alpha": 0.1, "beam.alpha": 0.2}) == {"beam": {"alpha": 0.2}}


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("alhpa", "did you mean 'alpha'"),
        ("beam.alhpa", "did you mean 'beam.alpha'"),
        ("port", "did you mean 'server.port'"),
        ("jugde.kind", "did you mean 'judge.kind'"),
        ("zzz", "known: alpha, anchor, .* TABLE.KEY of"),
    ],
)
def test_from_flat_names_the_nearest_for_an_unknown_name(name, complaint):
    with pytest.raises(ConfigError, match=complaint):
        from_flat({name: 1})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.3", 0.3),
        ("true", True),
        ('["a", "b"]', ["a", "b"]),
        ('"7"', "7"),
        ("wildguard", "wildguard"),
        ("", ""),
        ("1\nw = 2", "1\nw = 2"),
    ],
)
def test_read_value_reads_toml_else_text(text, value):
    assert read_value(text) == value


def test_from_assignments_keeps_what_follows_the_first_equals_sign():
    assert from_assignments(["refusal_text=a = b", "stop="]) == {
        "refusal_text": "a = b",
        "stop": "",
    }
    for bad in ("alpha", "=1", " =1"):
        with pytest.raises(ConfigError, match="written like"):
            from_assignments([bad])


def test_load_settings_leaves_other_alignbeam_variables_alone():
    load_settings(environ={"ALIGNBEAM_CACHE": "x", "ALIGNBEAM_DATA": "y"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[beem]\nalpha = 1\n", r"unknown table \[beem\]; did you mean 'beam'"),
        ("[beam]\nalhpa = 1\n", r"\[beam\]: unknown setting 'alhpa'; did you mean 'alpha'"),
        ("beam = 3\n", "must be a table"),
        ("[beam\n", "not valid TOML"),
    ],
)
def test_load_settings_names_the_fault_of_a_file(tmp_path, text, message):
    path = tmp_path / "alignbeam.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        load_settings(path, environ={})


def test_load_settings_names_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        load_settings(tmp_path / "none.toml", environ={})
