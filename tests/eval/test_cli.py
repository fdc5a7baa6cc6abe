"""``alignbeam eval`` and ``alignbeam sweep``: what a person types, and what comes of it."""

from __future__ import annotations

import json

import pytest
from cli_runner import Runner

from alignbeam.eval.run.files import RunFiles


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return Runner(monkeypatch, capsys)


@pytest.fixture
def suite(tmp_path):
    """Two methods on four word problems with the embedded models."""
    path = tmp_path / "own.toml"
    path.write_text(
        """
        batch_size = 2
        [beam]
        max_new_tokens = 8
        [[datasets]]
        name = "word-problems"
        limit = 4
        [[methods]]
        method = "target"
        [[methods]]
        method = "alignbeam"
        [[scorers]]
        kind = "strict"
        [[scorers]]
        kind = "judge"
        """
    )
    return path


def test_eval_writes_a_run_prints_its_figures_and_is_taken_up_again(run, suite, tmp_path):
    first = run("eval", "--suite", suite)
    assert first.code == 0, first.err
    assert "right answers (n = 4)" in first.out
    assert "alignbeam" in first.out
    assert "answering: 8 in all" in first.err
    assert "8/8" in first.err
    files = RunFiles(tmp_path / "runs" / "own")
    assert len(files.generations()) == 8
    again = run("eval", "--suite", suite)
    assert again.code == 0
    assert "8 already there" in again.err
    assert again.out == first.out


@pytest.mark.parametrize("role", ["target", "anchor", "judge"])
def test_eval_refuses_a_role_on_an_engine_and_says_what_to_set(run, suite, role):
    """Before anything is loaded or asked: nothing listens there."""
    ran = run("eval", "--suite", suite, f"--{role}", "http://127.0.0.1:9")
    assert (ran.code, ran.out) == (2, "")
    assert f"set {role}.model in place of {role}.url" in ran.err


def test_eval_splits_into_generating_and_scoring(run, suite, tmp_path):
    out = tmp_path / "out"
    early = run("eval", "--suite", suite, "-o", out, "--score-only")
    assert early.code == 2
    assert "not complete" in early.err
    assert run("eval", "--suite", suite, "-o", out, "--generate-only").code == 0
    assert RunFiles(out).scores() == []
    assert run("eval", "--suite", suite, "-o", out, "--score-only").code == 0
    # Refusal is scored on utility samples too: a refused problem is worth seeing.
    assert {s.kind for s in RunFiles(out).scores()} == {"refusal", "utility"}


def test_eval_dry_run_prices_and_writes_nothing(run, suite, tmp_path):
    priced = run("eval", "--suite", suite, "--dry-run")
    assert priced.code == 0
    assert "together" in priced.out
    assert "s a sample" in priced.out
    assert not (tmp_path / "runs").exists()


def test_eval_narrows_by_limit_method_and_settings(run, suite, tmp_path):
    given = ["--limit", 2, "--method", "target", "--max-new-tokens", 6, "--no-progress"]
    ran = run("eval", "--suite", suite, *given)
    assert ran.code == 0
    assert "answering" not in ran.err
    generations = RunFiles(tmp_path / "runs" / "own").generations()
    assert len(generations) == 2
    assert all(g.new_tokens <= 6 for g in generations)


def test_option_wins_over_environment_over_file_over_suite(run, suite, tmp_path, monkeypatch):
    file = tmp_path / "own.settings.toml"
    file.write_text("[beam]\nmax_new_tokens = 7\nbeams = 2\nseed = 4\n[eval]\nlimit = 3\n")
    monkeypatch.setenv("ALIGNBEAM_BEAM_BEAMS", "1")
    monkeypatch.setenv("ALIGNBEAM_BEAM_SEED", "5")
    ran = run("eval", "--suite", suite, "--config", file, "--set", "seed=6", "--generate-only")
    assert ran.code == 0, ran.err
    files = RunFiles(tmp_path / "runs" / "own")
    generations = files.generations()
    assert len(generations) == 2 * 3
    assert max(g.new_tokens for g in generations) == 7
    assert {g.method_settings.get("beams") for g in generations} == {None, 1}
    assert files.manifest()["suite"]["seed"] == 6


def test_sweep_goes_around_the_settings_that_were_given(run, suite, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNBEAM_BEAM_ALPHA", "0.25")
    given = ["--set", "beams=1", "--set", "eval.limit=1", "--generate-only"]
    ran = run("sweep", "--suite", suite, "--axis", "alpha=0.25,0.5", *given)
    assert ran.code == 0, ran.err
    generations = RunFiles(tmp_path / "runs" / "sweep-own").generations()
    assert {g.method for g in generations} == {"target", "alignbeam", "alignbeam[alpha=0.5]"}
    mixed = [g.method_settings for g in generations if g.method != "target"]
    assert {(s["alpha"], s["beams"]) for s in mixed} == {(0.25, 1), (0.5, 1)}


def test_eval_names_mistakes_in_one_line(run, suite, tmp_path):
    for args, says in (
        (["--suite", "qick"], "did you mean 'quick'"),
        (["--suite", suite, "--method", "nobody"], "no method 'nobody'"),
        (["--suite", "quick", "--dataset", "jailbreakbench-harmful", "--data", tmp_path], "is not"),
        (["--suite", suite, "--target", "./nowhere"], "does not exist"),
        (["--suite", suite, "--set", "alhpa=1"], "did you mean 'alpha'"),
        (["--suite", suite, "--set", "alpha=2"], "alpha must be in 0..1"),
    ):
        ran = run("eval", *args)
        assert ran.code == 2
        assert says in ran.err
        assert "Traceback" not in ran.err


def test_eval_exits_with_one_where_a_sample_failed(run, suite, tmp_path):
    rows = [{"prompt": "What is 2 plus 3?"}, {"prompt": "word " * 5000}]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = suite.read_text().replace('name = "word-problems"', 'path = "long.jsonl"')
    suite.write_text(text.replace("limit = 4", 'label = "benign"'))
    ran = run("eval", "--suite", suite)
    assert ran.code == 1
    assert "2 samples failed" in ran.err
    errors = [g.error for g in RunFiles(tmp_path / "runs" / "own").generations() if g.error]
    assert len(errors) == 2
    assert all("window" in error for error in errors)


def test_sweep_runs_its_points_beside_the_target(run, suite, tmp_path):
    ran = run("sweep", "--suite", suite, "--axis", "alpha=0.0,0.5", "--axis", "beams=1,3")
    assert ran.code == 0, ran.err
    files = RunFiles(tmp_path / "runs" / "sweep-own")
    labels = {g.method for g in files.generations()}
    assert labels == {"target", "alignbeam", "alignbeam[alpha=0.0]", "alignbeam[beams=1]"}
    assert [row["axis"] for row in files.manifest()["sweep"]] == ["alpha", "beams"]
    assert "shared by several points" in ran.out


def test_sweep_refuses_a_bad_axis(run, suite):
    ran = run("sweep", "--suite", suite, "--axis", "alpha")
    assert ran.code == 2
    assert "written like alpha=0,0.5,1" in ran.err


def test_paper_suite_runs_end_to_end_with_the_trio_in_place_of_the_weights(run, data_dir, tmp_path):
    given = ["--embedded", "--limit", 1, "--max-new-tokens", 24, "--data", data_dir]
    sets = ["--dataset", "advbench", "--dataset", "xstest-safe", "--dataset", "gsm8k"]
    methods = ["--method", "target", "--method", "alignbeam"]
    ran = run("eval", "--suite", "paper", *given, *sets, *methods, "-o", tmp_path / "paper")
    assert ran.code == 0, ran.err
    pairs = sorted(p.name for p in (tmp_path / "paper").iterdir())
    assert pairs == ["deepseek-math", "finance-llama", "llama-base", "medllama", "qwen3-base"]
    steps = {
        g.method_settings["mix_steps"]
        for g in RunFiles(tmp_path / "paper" / "deepseek-math").generations()
        if g.method == "alignbeam"
    }
    assert steps == {20}
    assert "Published and measured" in ran.out
    assert "38.1 %" in ran.out
    assert "of 5 pairs" in ran.out
    assert "not run" in ran.out
