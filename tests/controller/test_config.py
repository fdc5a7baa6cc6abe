"""Settings: every value checked, unknown keys refused, sources merged in the stated order."""

from __future__ import annotations

import math

import pytest

from alignbeam.config import BeamConfig, JudgeConfig, RoleConfig, load_settings
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


def test_role_config_refuses_device_beside_device_map():
    with pytest.raises(ConfigError, match="exclude each other"):
        RoleConfig(device="cpu", device_map="auto")


def test_judge_config_refuses_floor_outside_unit_interval():
    with pytest.raises(ConfigError, match="label_mass_floor"):
        JudgeConfig(label_mass_floor=1.5)


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
