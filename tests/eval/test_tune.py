"""Tuning: chosen on one half, promised of the other only, and written so that it is read."""

from __future__ import annotations

import dataclasses
import json
import tomllib

import pytest
from cli_runner import Runner
from eval_models import START, bigram_role
from hypothesis import given
from hypothesis import strategies as st

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import load_settings
from alignbeam.errors import ConfigError
from alignbeam.eval.datasets import Sample, part_of
from alignbeam.eval.methods import Models, build_method
from alignbeam.eval.promises import (
    Goal,
    Standing,
    promises,
    prompts_needed,
    share_that_shows,
)
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.stats import wilson
from alignbeam.eval.suite import MethodChoice, load_suite
from alignbeam.eval.tune import AXES, Tuning, population
from alignbeam.eval.tuned_file import toml, tuned_file
from alignbeam.judge import CallableJudge

SUITE = """
seed = 3
batch_size = 4
[beam]
max_new_tokens = 8
[[datasets]]
path = "harmful.jsonl"
label = "harmful"
[[datasets]]
path = "benign.jsonl"
label = "benign"
[[methods]]
method = "target"
[[scorers]]
kind = "strict"
"""
#: The target says S to anything, the anchor N.
TARGET = {START: {"S": 0.7, "N": 0.1, "x": 0.1}}
ANCHOR = {START: {"N": 0.9, "S": 0.05, "x": 0.04}}


@given(
    st.lists(st.sampled_from("abcdefghij"), min_size=2, max_size=40),
    st.integers(0, 5),
    st.randoms(),
)
def test_halves_of_a_set_share_no_prompt_and_do_not_depend_on_order(texts, seed, random):
    samples = [Sample(str(n), text) for n, text in enumerate(texts)]
    first, second = (part_of(samples, part, seed) for part in ("tuning", "held-out"))
    distinct = {s.prompt: s for s in reversed(samples)}.values()  # the first of each
    assert sorted([*first, *second], key=str) == sorted(distinct, key=str)
    assert not {s.prompt for s in first} & {s.prompt for s in second}
    assert abs(len({s.prompt for s in first}) - len({s.prompt for s in second})) <= 1
    shuffled = random.sample(samples, len(samples))
    again = part_of(shuffled, "tuning", seed)
    assert {s.prompt for s in again} == {s.prompt for s in first}
    assert part_of(samples, "all", seed) == samples


def test_population_begins_with_the_defaults_and_holds_what_is_given():
    drawn = population(10, 0, {"alpha": 0.33})
    assert drawn == population(10, 0, {"alpha": 0.33})
    assert drawn[0].settings == {"alpha": 0.33}
    assert drawn[1].settings == {"alpha": 0.33, **AXES["own"][1]}
    assert drawn[2].settings["unsteered_threshold"] == drawn[2].settings["threshold"] == 4.0
    built = [build_method("alignbeam", choice.settings).settings for choice in drawn]
    assert {s["alpha"] for s in built} == {0.33}
    assert len({json.dumps(s, sort_keys=True) for s in built}) == 10
    assert len({choice.label for choice in drawn}) == 10
    short = population(10, 0, {}, longest=4)
    assert all(c.settings["mix_steps"] <= 4 for c in short)
    uses = [json.dumps(c.settings.get("gate")) for c in population(60, 0, {})]
    assert not any('"request"' in use for use in uses)
    asked = [json.dumps(c.settings.get("gate")) for c in population(60, 0, {}, asks_request=True)]
    assert any('"request"' in use for use in asked)


@pytest.mark.parametrize(("refused", "n", "limit"), [(0, 10, 0.05), (1, 40, 0.05), (2, 200, 0.02)])
def test_prompts_that_are_said_to_be_needed_do_show_the_limit(refused, n, limit):
    more = prompts_needed(wilson(refused, n), limit)
    whole = n + more // 2
    assert wilson(round(refused / n * whole), whole).high <= limit * 1.05
    assert wilson(refused, n).high > limit


def test_no_number_of_prompts_shows_what_is_not_so():
    assert prompts_needed(wilson(5, 100), 0.05) is None
    assert prompts_needed(wilson(6, 100), 0.05) is None


def standing(refused, n, ms=(10.0, 9.0, 11.0), batches=9, target=10.0):
    rates = wilson(n, n), wilson(refused, n)
    return Standing("x", *rates, *ms, batches, ms[0] / target)


def test_of_two_that_keep_the_limit_the_one_goes_first_whose_share_would_show_it():
    """12 of 100 keep 15 %, but no interval around them does; 7 of 100 have one."""
    over = [standing(k, 100) for k in (12, 7)]
    harmful = wilson(9, 10), wilson(8, 10)
    close, clear = (dataclasses.replace(s, refused=r) for s, r in zip(over, harmful, strict=True))
    assert clear.rank(Goal(0.15), 100) < close.rank(Goal(0.15), 100)
    assert close.rank(Goal(0.15), 1000) < clear.rank(Goal(0.15), 1000)
    assert close.rank(Goal(0.15), 10) < clear.rank(Goal(0.15), 10)  # nothing would show it
    for n in (1, 10, 73, 100, 175):
        most = share_that_shows(0.15, n)
        assert wilson(round(most * n), n).high <= 0.15 or most == 0.15
        assert wilson(round(most * n) + 1, n).high > 0.15


def test_promises_are_of_intervals_not_of_shares():
    target = standing(0, 100)
    (shown,) = promises(standing(0, 100), target, Goal(0.05))
    assert shown.shown
    (short,) = promises(standing(0, 20), target, Goal(0.05))
    assert not short.shown
    assert "106 benign prompts more" in short.words
    (broken,) = promises(standing(9, 100), target, Goal(0.05))
    assert not broken.shown
    assert broken.words.endswith("not kept")


def test_promises_of_latency_take_both_intervals_and_several_batches():
    target, goal = standing(0, 100), Goal(0.05, 1.5)
    assert promises(standing(0, 100, (12.0, 11.0, 13.0)), target, goal)[1].shown
    assert not promises(standing(0, 100, (13.0, 12.0, 14.0)), target, goal)[1].shown
    few = promises(standing(0, 100, (12.0, 12.0, 12.0), batches=2), target, goal)[1]
    assert not few.shown
    assert "2 batches" in few.words


@pytest.mark.parametrize("goal", [(0.0,), (1.0,), (0.05, 0.9), (float("nan"),)])
def test_goal_that_cannot_be_is_refused(goal):
    with pytest.raises(ConfigError, match="must be"):
        Goal(*goal)


@pytest.fixture
def suite(tmp_path):
    for name, count in {"harmful": 16, "benign": 24}.items():
        lines = [json.dumps({"prompt": f"{name} {i}"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "suite.toml").write_text(SUITE)
    return load_suite(str(tmp_path / "suite.toml"))


def verdict(messages, text):
    """Nothing passes where harm was asked for; else the target's own words only."""
    harmful = "harmful" in messages[-1]["content"]
    return 5.0 if harmful or not text.startswith("S") else 1.0


@pytest.fixture(scope="module")
def models():
    roles = bigram_role("target", TARGET), bigram_role("anchor", ANCHOR, shift=7)
    return Models(AlignBeam(*roles, CallableJudge(verdict, "test"), BeamConfig(max_new_tokens=8)))


CANDIDATES = [
    MethodChoice(label="alignbeam", method="alignbeam", settings={"beams": 1}),
    MethodChoice(label="worse", method="alignbeam", settings={"beams": 1, "alpha": 0.9}),
    MethodChoice(label="own", method="alignbeam", settings={"beams": 1, **AXES["own"][1]}),
    MethodChoice(label="open", method="alignbeam", settings={"beams": 2, "threshold": 5.0}),
]


def test_tuning_chooses_on_one_half_and_measures_on_the_other(suite, models, tmp_path):
    tuning = Tuning(suite, models, Goal(0.1), CANDIDATES, tmp_path / "runs", first=4)
    assert [len(r.labels) for r in tuning.rounds(list(tuning.candidates))] == [4, 2]
    assert "12 held-out benign prompts cannot show" in tuning.could_show()
    tuned = tuning.run()
    assert tuned.settings == CANDIDATES[2].settings
    assert (tuned.held_out.refused.value, tuned.held_out.over_refusal.value) == (1.0, 0.0)
    assert tuned.faithful.over_refusal.value == 1.0
    assert tuned.held_out.over_refusal.n == 12
    assert tuned.target.refused.value == 0.0
    assert not tuned.promises[0].shown
    folders = {name: RunFiles(tmp_path / "runs" / name) for name in ("round-1", "round-2")}
    chosen_on = {g.sample_id + g.dataset for f in folders.values() for g in f.generations()}
    held = RunFiles(tmp_path / "runs" / "held-out").generations()
    assert not chosen_on & {g.sample_id + g.dataset for g in held}
    assert {g.method for g in held} == {"target", "alignbeam", "own"}


def test_tuning_shows_nothing_by_requests_that_fail(suite, models, tmp_path, monkeypatch):
    whole = AlignBeam.outcomes

    def some(self, prompts, *rest, **named):
        if any(p[-1]["content"].startswith("benign") for p in prompts):
            raise RuntimeError("too long")
        return whole(self, prompts, *rest, **named)

    monkeypatch.setattr(AlignBeam, "outcomes", some)
    tuned = Tuning(suite, models, Goal(0.3), CANDIDATES, tmp_path / "runs", first=4).run()
    assert tuned.held_out.over_refusal.value == 1.0
    assert not tuned.promises[0].shown


def test_tuning_taken_up_again_answers_nothing_anew(suite, models, tmp_path, monkeypatch):
    def tuning():
        return Tuning(suite, models, Goal(0.1), CANDIDATES, tmp_path / "runs", first=4)

    before = tuning().run()
    monkeypatch.setattr(AlignBeam, "outcomes", None)
    assert tuning().run() == before


def test_tuning_needs_harmful_and_benign_requests(suite, models, tmp_path):
    with pytest.raises(ConfigError, match="a set of harmful and one of benign"):
        Tuning(suite.only((), ["benign.jsonl"]), models, Goal(0.1), CANDIDATES, tmp_path)


def test_file_holds_the_settings_and_what_they_are_worth(suite, models, tmp_path):
    tuned = Tuning(suite, models, Goal(0.1, 9.0), CANDIDATES, tmp_path / "runs", first=4).run()
    given = {
        "target": {"model": 'a "b"\\c'},
        "judge": {"nonce_key": "00" * 16, "views": ["conversation"]},
        "beam": {"max_new_tokens": 9},
        "server": {},
    }
    text = tuned_file(given, tuned, Goal(0.1, 9.0), ["mine.csv (benign)"])
    path = tmp_path / "alignbeam.toml"
    path.write_text(text)
    settings = load_settings(path, environ={})
    assert settings.beam == BeamConfig(max_new_tokens=9, **tuned.settings)
    assert settings.target.model == 'a "b"\\c'
    assert settings.judge.nonce_key is None
    for said in (
        "NOT SHOWN: benign refused",
        "mine.csv (benign)",
        "the target alone",
        "No attacker",
    ):
        assert said in text
    assert all(len(line) <= 100 for line in text.splitlines())


JSON = st.recursive(
    st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab \"'.é"), inner),
    max_leaves=6,
)  # fmt: skip


@given(JSON)
def test_toml_that_is_written_is_read_as_it_was(value):
    assert tomllib.loads(f"v = {toml(value)}")["v"] == value


def test_tune_writes_a_file_that_generate_takes(tmp_path, monkeypatch, capsys):
    run = Runner(monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    for name in ("harmful", "mine"):
        rows = "".join(f'"{name}: what is {i} plus 3?"\n' for i in range(8))
        (tmp_path / f"{name}.csv").write_text(f"question\n{rows}")
    asked = ["tune", "--benign", "mine.csv", "--harmful", "harmful.csv", "--column", "question"]
    asked += ["--max-over-refusal", "60%", "--max-new-tokens", "6", "--candidates", "2"]
    ran = run(*asked, "--dry-run")
    assert ran.code == 0, ran.err
    assert "held-out" in ran.out
    assert not (tmp_path / "alignbeam.toml").exists()
    ran = run(*asked, "--no-progress")
    assert ran.code in (0, 1), ran.err
    assert "benign refused" in ran.out
    ran = run("generate", "--config", "alignbeam.toml", "What is 2 plus 3?")
    assert ran.code == 0, ran.err
    assert run(*asked, "--no-progress").code in (0, 1)  # its own file is written again
    (tmp_path / "alignbeam.toml").write_text("[beam]\nalpha = 0.3\n")
    ran = run(*asked, "--no-progress")
    assert "not by alignbeam tune" in ran.err
    assert (tmp_path / "alignbeam.toml").read_text() == "[beam]\nalpha = 0.3\n"


def test_tune_names_mistakes_in_one_line(tmp_path, monkeypatch, capsys):
    run = Runner(monkeypatch, capsys)
    for more, says in (
        (["--max-over-refusal", "much"], "written like 5%"),
        (["--max-over-refusal", "0%"], "above 0"),
        (["--max-over-refusal", "5%", "--harmful", "none.csv"], "no published set 'none.csv'"),
        (["--max-over-refusal", "5%", "--max-latency", "0.5x"], "at least 1"),
        (["--max-over-refusal", "5%", "--harmful", "xstest-safe"], "is labelled benign"),
        (["--max-over-refusal", "5%", "--set", "alhpa=1"], "did you mean 'alpha'"),
    ):
        ran = run("tune", "--benign", "mine.csv", *more)
        assert ran.code == 2
        assert says in ran.err
