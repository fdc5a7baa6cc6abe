"""Suites and sweeps: read, checked, narrowed, and laid out."""

from __future__ import annotations

from pathlib import Path

import pytest

from alignbeam.errors import ConfigError
from alignbeam.eval.methods import METHODS, build_method
from alignbeam.eval.methods.judged import AlignBeamMethod
from alignbeam.eval.run.plan import make_plan
from alignbeam.eval.suite import SUITES, load_suite, suite_from
from alignbeam.eval.sweep import AXES, parse_axis, sweep_suite

PROBED = Path(__file__).resolve().parents[2] / "bench" / "probed.toml"
OWN = """
[[datasets]]
path = "own.jsonl"
label = "harmful"
[[methods]]
method = "target"
[[methods]]
method = "alignbeam"
label = "mine"
settings = { alpha = 0.3 }
"""


@pytest.mark.parametrize("name", SUITES)
def test_shipped_suite_is_sound(name):
    suite = load_suite(name)
    assert suite.name == name
    for pair in suite.pairs or (None,):
        one = suite if pair is None else suite.for_pair(pair)
        for choice in one.methods:
            build_method(choice.method, choice.settings)
    assert {"strict", "strings"} <= {s.kind for s in suite.scorers}


def test_suite_of_a_probe_asks_what_the_suite_of_real_models_asks():
    assert load_suite(str(PROBED)).datasets == load_suite("real").datasets


@pytest.mark.parametrize("name", ["standard", "full", "paper"])
def test_shipped_suite_runs_every_method(name):
    assert {m.method for m in load_suite(name).methods} == set(METHODS)


def test_paper_suite_spells_out_the_papers_settings():
    suite = load_suite("paper")
    assert len(suite.pairs) == 5
    settings = {}
    for pair in suite.pairs:
        one = suite.for_pair(pair)
        assert one.models["anchor"].model == "Qwen/Qwen2.5-3B-Instruct"
        mine = next(m for m in one.methods if m.method == "alignbeam")
        settings[pair.name] = build_method("alignbeam", mine.settings).settings
    assert {s["mix_steps"] for n, s in settings.items() if n != "deepseek-math"} == {6}
    assert settings["deepseek-math"]["mix_steps"] == 20
    for s in settings.values():
        assert (s["alpha"], s["beams"], s["top_b"], s["threshold"]) == (0.5, 3, 50, 2.5)
    sets = {d.declared.name for d in suite.datasets}
    assert {row["dataset"] for row in suite.published} <= sets
    assert all(d.limit is None for d in suite.datasets)


def write(tmp_path, text, rows='{"prompt": "x"}\n'):
    (tmp_path / "own.jsonl").write_text(rows)
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return str(path)


def test_own_suite_reads_its_set_beside_itself(tmp_path):
    suite = load_suite(write(tmp_path, OWN))
    plan, described = make_plan(suite, {})
    assert [a.sample.prompt for a in plan.asked] == ["x"]
    assert [p.label for p in plan.points] == ["target", "mine"]
    assert described[0]["count"] == described[0]["of"] == 1
    assert len(set(plan.all_keys())) == 2


def test_suite_may_ask_one_half_of_a_set():
    datasets = [{"name": "word-problems", "part": part} for part in ("tuning", "held-out")]
    made = [suite_from({"datasets": [d], "methods": [{"method": "target"}]}, "") for d in datasets]
    tuning, held = ({a.sample.sample_id for a in make_plan(s, {})[0].asked} for s in made)
    whole = make_plan(load_suite("standard").only((), ["word-problems"]), {})[0].asked
    assert tuning | held == {a.sample.sample_id for a in whole}
    assert not tuning & held


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (OWN + "\n[bean]\nalpha = 1\n", "did you mean 'beam'"),
        (OWN + '\n[beam]\nalhpa = "x"\n', "did you mean 'alpha'"),
        (OWN.replace("path =", "pth ="), "unknown key 'label'|unknown key 'pth'"),
        (OWN.replace('"harmful"', '"bad"'), "label must be one of"),
        (OWN.replace('"harmful"', '"harmful"\npart = "test"'), "part must be one of"),
        (OWN.replace('label = "mine"', 'label = "target"'), "target occurs twice"),
        (OWN + '[[scorers]]\nkind = "wildguard"\n', "needs a model"),
        (OWN.replace('label = "harmful"', 'label = "utility"'), "needs scoring"),
        (OWN + "\nbatch_size = 0\n", "unknown|batch_size"),
        ("batch_size = 0\n" + OWN, "batch_size must be at least 1"),
        ("[[methods]]\nmethod = 'target'\n", "at least one data set"),
        ("not toml", "not valid TOML"),
        (OWN + "[[pairs]]\nname = '../up'\n", "name of a folder"),
        (OWN + "[models.traget]\nmodel = 'x'\n", "did you mean 'target'"),
    ],
)
def test_suite_with_a_mistake_is_refused_with_its_reason(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says):
        load_suite(write(tmp_path, text))


def test_suite_of_an_unknown_name_is_refused_with_a_hint():
    with pytest.raises(ConfigError, match="did you mean 'standard'"):
        load_suite("standart")


def test_suite_is_narrowed_by_limit_method_and_set():
    suite = load_suite("standard").limited(3).only(["alignbeam", "target"], ["gsm8k"])
    assert [m.label for m in suite.methods] == ["target", "alignbeam"]
    assert [(d.declared.name, d.limit) for d in suite.datasets] == [("gsm8k", 3)]
    with pytest.raises(ConfigError, match="no method 'rian'"):
        load_suite("standard").only(["rian"])
    with pytest.raises(ConfigError, match="limit"):
        load_suite("standard").limited(0)


def test_settings_of_every_table_win_over_the_suites_own():
    paper = load_suite("paper")
    pair = next(p for p in paper.pairs if p.name == "deepseek-math")
    given = {
        "beam": {"mix_steps": 3, "threshold": 3.5, "max_new_tokens": 9, "seed": 7},
        "target": {"device": "cpu"},
        "anchor": {"model": "a"},
        "judge": {"kind": "wildguard"},
        "eval": {"limit": 2, "batch_size": 5},
    }
    before = paper.for_pair(pair)
    after = before.settled(given)
    settings = {m.label: build_method(m.method, m.settings).settings for m in after.methods}
    assert settings["alignbeam"]["mix_steps"] == 3
    assert settings["best-of-k"]["threshold"] == settings["post-hoc-guard"]["threshold"] == 3.5
    assert (after.beam["max_new_tokens"], after.seed) == (9, 7)
    assert {"mix_steps", "threshold", "seed"}.isdisjoint(after.beam)
    assert after.models["target"] == before.models["target"].replace(device="cpu")
    assert after.models["anchor"].model == "a"
    assert after.models["judge"].kind == "wildguard"
    assert ({d.limit for d in after.datasets}, after.batch_size) == ({2}, 5)
    assert before.settled({}) == before


def test_setting_of_a_baseline_that_only_shares_a_name_stays():
    suite = load_suite("standard").settled({"beam": {"alpha": 0.9}})
    alphas = {m.label: dict(m.settings).get("alpha") for m in suite.methods}
    assert (alphas["alignbeam"], alphas["proxy-tuning"], alphas["safedecoding"]) == (0.9, 0.5, None)


def test_set_is_not_called_as_all_sets_of_a_label_are(tmp_path):
    for name in ("harmful", "other"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "x"}\n')
    sets = ['path = "harmful.jsonl"\nlabel = "harmful"', 'path = "other.jsonl"\nlabel = "harmful"']
    suite = "".join(f"[[datasets]]\n{one}\n" for one in sets) + '[[methods]]\nmethod = "target"\n'
    path = tmp_path / "suite.toml"
    path.write_text(suite)
    names = [choice.declared.name for choice in load_suite(str(path)).datasets]
    assert names == ["harmful.jsonl", "other"]
    path.write_text(suite.replace('label = "harmful"', 'label = "harmful"\nname = "benign"', 1))
    with pytest.raises(ConfigError, match="'benign' stands for all sets of a label"):
        load_suite(str(path))


def test_gate_of_a_configuration_reaches_the_methods_that_have_one():
    given = {"gate": {"use": ["divergence"], "divergence": 0.3}}
    before = load_suite("standard")
    for method, was in zip(before.settled(given).methods, before.methods, strict=True):
        built = build_method(method.method, method.settings)
        if isinstance(built, AlignBeamMethod):
            assert built.gate == given["gate"]
        else:  # a baseline's own number of that name stays
            assert built == build_method(was.method, was.settings)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"beam": {"alpha": 2}}, r"\[beam\]: alpha must be in 0..1"),
        ({"gate": {"divergence": 2}}, r"divergence must be in 0\.\.1"),
        ({"eval": {"limit": 0}}, r"\[eval\]: limit must be at least 1"),
        ({"judge": {"label_mass_floor": 2}}, "label_mass_floor must be in 0..1"),
    ],
)
def test_settings_over_a_suite_are_checked(given, complaint):
    with pytest.raises(ConfigError, match=complaint):
        load_suite("standard").settled(given)


def test_key_depends_on_everything_that_decides_the_answer(tmp_path):
    suite = load_suite(write(tmp_path, OWN))

    def keys(changed=suite, models=None):
        plan, _ = make_plan(changed, models or {"target": "a"})
        return plan.all_keys()

    from dataclasses import replace

    base = keys()
    assert base == keys()
    assert not set(base) & set(keys(models={"target": "b"}))
    assert not set(base) & set(keys(replace(suite, seed=1)))
    assert not set(base) & set(keys(replace(suite, batch_size=3)))
    assert not set(base) & set(keys(replace(suite, beam={"max_new_tokens": 9})))
    other = keys(load_suite(write(tmp_path, OWN.replace("0.3", "0.4"))))
    assert base[0] == other[0]
    assert base[1] != other[1]
    assert not set(base) & set(keys(load_suite(write(tmp_path, OWN, '{"prompt": "y"}\n'))))


def test_batches_never_mix_sets_and_cover_everything():
    suite = load_suite("quick").only((), ["word-problems"]).limited(10)
    plan, _ = make_plan(suite, {})
    batches = list(plan.batches())
    assert [a for batch in batches for a in batch] == plan.asked
    assert {len(b) for b in batches} == {10}


def test_sweep_has_every_axis_of_the_paper_and_its_centre_once():
    swept, described = sweep_suite(load_suite("standard"))
    labels = [m.label for m in swept.methods]
    assert len(labels) == len(set(labels))
    assert labels[:2] == ["target", "alignbeam"]
    assert [row["axis"] for row in described] == list(AXES)
    for row in described:
        methods = {p["method"] for p in row["points"]}
        assert methods <= set(labels)
        assert "alignbeam" in methods
    steps = next(row for row in described if row["axis"] == "mix_steps")
    assert [p["value"] for p in steps["points"]] == [0, 1, 2, 3, 6, 12, 20]


def test_sweep_points_differ_from_the_centre_in_their_axis_only():
    swept, described = sweep_suite(load_suite("standard"))
    settings = {m.label: build_method(m.method, m.settings).settings for m in swept.methods[1:]}
    centre = settings["alignbeam"]
    for row in described:
        for point in row["points"]:
            changed = {k for k, v in settings[point["method"]].items() if v != centre[k]}
            wanted = "bridge" if point["value"] == "text" else row["axis"]
            assert changed <= {wanted}
            assert bool(changed) == (point["method"] != "alignbeam")


def test_sweep_over_beams_shares_its_work():
    swept, _ = sweep_suite(load_suite("quick"), {"beams": (1, 2, 3, 8), "alpha": (0.0, 0.5)})
    plan, _ = make_plan(swept.only((), ["word-problems"]), {})
    groups = [[p.label for p in unit] for unit in plan.units]
    beams = [f"alignbeam[beams={k}]" for k in (1, 2, 8)]
    assert groups == [["target"], ["alignbeam", *beams], ["alignbeam[alpha=0.0]"]]


def test_sweep_refuses_unknown_axes_and_values():
    with pytest.raises(ConfigError, match="unknown axis 'aplha'"):
        sweep_suite(load_suite("quick"), {"aplha": (1,)})
    with pytest.raises(ConfigError, match="alpha must be in"):
        sweep_suite(load_suite("quick"), {"alpha": (2.0,)})


def test_parse_axis_reads_numbers_and_words():
    assert parse_axis("alpha=0,0.5, 1") == ("alpha", (0, 0.5, 1))
    assert parse_axis("mix-steps=1") == ("mix_steps", (1,))
    assert parse_axis("fallback=drop,text") == ("fallback", ("drop", "text"))
    for bad in ("alpha", "alpha=", "=1", "alpha=1,,2"):
        with pytest.raises(ConfigError, match="written like"):
            parse_axis(bad)
