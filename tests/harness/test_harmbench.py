"""HarmBench's files: a run's answers out, test cases and labels in, and every way to be wrong."""

from __future__ import annotations

import json

import pytest
from cli_runner import Runner

from alignbeam.errors import ConfigError
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.summary import figures
from alignbeam.harness.harmbench import (
    completions_of,
    pick,
    read_cases,
    read_completions,
    requests_of,
    scores_of,
    to_json,
)

CASES = {
    "pens_left": ["How many pens are left if 3 of 5 are given away?"],
    "sum_small": ["What is 2 plus 3?", "Add \u201c2\u201d and 3.", "2 + 3 = ?"],
}
SUITE = """
batch_size = 4
[beam]
max_new_tokens = 8
[[datasets]]
name = "harmbench-own"
path = "cases.jsonl"
label = "harmful"
ident = "id"
[[methods]]
method = "target"
[[methods]]
method = "alignbeam"
[[scorers]]
kind = "strict"
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A run over imported test cases, by the command line alone: cases in, completions out."""
    folder = tmp_path_factory.mktemp("harmbench")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ALIGNBEAM_CACHE", str(folder / "cache"))
        (folder / "test_cases.json").write_text(json.dumps(CASES), encoding="utf-8")
        (folder / "own.toml").write_text(SUITE)
        for command in (
            ["harmbench", "import-cases", "test_cases.json", "-o", "cases.jsonl"],
            ["eval", "--suite", "own.toml", "--no-progress"],
            ["harmbench", "export", "runs/own", "-o", "completions.json"],
        ):
            patch.setattr("sys.argv", ["alignbeam", *command])
            from alignbeam.cli import main

            assert main() == 0
    return folder


@pytest.fixture
def run(monkeypatch, capsys, written):
    monkeypatch.chdir(written)
    return Runner(monkeypatch, capsys)


def _labelled(folder, label=lambda behavior, i: i % 2):
    completions = json.loads((folder / "completions.json").read_text(encoding="utf-8"))
    return {
        behavior: [{**row, "label": label(behavior, i)} for i, row in enumerate(found)]
        for behavior, found in completions.items()
    }


def _generations(folder, method="alignbeam"):
    return pick(RunFiles(folder / "runs" / "own").generations(), method, None)


def test_export_holds_every_test_case_with_the_answer_to_it(written):
    exported = json.loads((written / "completions.json").read_text(encoding="utf-8"))
    assert {b: [row["test_case"] for row in rows] for b, rows in exported.items()} == CASES
    answers = [row["generation"] for rows in exported.values() for row in rows]
    assert answers == [g.answer for g in _generations(written)]
    assert all(
        set(row) == {"test_case", "generation"} for rows in exported.values() for row in rows
    )


def test_completions_survive_writing_and_reading(written, tmp_path):
    completions = completions_of(_generations(written))
    path = tmp_path / "again.json"
    path.write_text(to_json(completions), encoding="utf-8")
    assert read_completions(path) == completions
    path.write_text(json.dumps(_labelled(written)), encoding="utf-8")
    labels = [c.label for found in read_completions(path).values() for c in found]
    assert labels == [0, 0, 1, 0]


def test_requests_number_the_cases_of_a_behaviour_that_has_several():
    assert [row["id"] for row in requests_of(CASES)] == [
        "pens_left",
        "sum_small/0",
        "sum_small/1",
        "sum_small/2",
    ]


def test_labels_become_scores_that_another_scoring_keeps(run, written):
    folder = written / "runs" / "own"
    (written / "results.json").write_text(json.dumps(_labelled(written)), encoding="utf-8")
    ran = run("harmbench", "import-labels", "results.json", "runs/own")
    assert ran.code == 0, ran.err
    assert "harmful by harmbench-classifier (n = 4): 25.0 %" in ran.out
    files = RunFiles(folder)
    (own,) = [f for f in figures(files) if f.measure == "harmful" and f.dataset == "harmful"]
    assert (own.method, own.rate.value) == ("alignbeam", 0.25)
    before = (folder / "scores.jsonl").read_bytes()
    assert run("eval", "--suite", "own.toml", "--score-only", "--no-progress").code == 0
    assert (folder / "scores.jsonl").read_bytes() == before
    (entry,) = [s for s in files.manifest()["scorers"] if s.get("imported")]
    assert (entry["name"], entry["selects"]) == ("harmbench-classifier", False)
    # The same labels again add nothing; others are not mixed with them.
    assert run("harmbench", "import-labels", "results.json", "runs/own").code == 0
    assert (folder / "scores.jsonl").read_bytes() == before
    other = _labelled(written, lambda b, i: 1)
    (written / "results.json").write_text(json.dumps(other), encoding="utf-8")
    again = run("harmbench", "import-labels", "results.json", "runs/own")
    assert again.code == 2
    assert "choose another name" in again.err
    assert (
        run("harmbench", "import-labels", "results.json", "runs/own", "--name", "strict").code == 2
    )


def test_labels_of_a_generation_cut_by_the_classifier_belong_to_its_answer(written, tmp_path):
    cut = _labelled(written)
    for rows in cut.values():
        for row in rows:
            row["generation"] = " " + row["generation"][: max(1, len(row["generation"]) // 2)]
    path = tmp_path / "cut.json"
    path.write_text(json.dumps(cut), encoding="utf-8")
    scores = scores_of(_generations(written), read_completions(path), "classifier")
    assert [s.cls for s in scores] == ["safe", "safe", "harmful", "safe"]
    assert [s.value for s in scores] == [1.0, 1.0, 5.0, 1.0]


def test_label_that_is_neither_counts_as_an_error(written, tmp_path):
    path = tmp_path / "odd.json"
    path.write_text(json.dumps(_labelled(written, lambda b, i: -1)), encoding="utf-8")
    scores = scores_of(_generations(written), read_completions(path), "classifier")
    assert {(s.cls, s.value) for s in scores} == {("error", None)}


def _spoil(labelled, how):
    rows = labelled["sum_small"]
    if how == "foreign answer":
        rows[0]["generation"] = "Something else entirely."
    elif how == "foreign case":
        rows[0]["test_case"] = "What is 9 plus 9?"
    elif how == "no label":
        del rows[1]["label"]
    elif how == "too few":
        rows.pop()
    elif how == "too many":
        rows.append(dict(rows[0]))
    return labelled


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("foreign answer", "not the run's answer to sum_small/0"),
        ("foreign case", "not the run's answer to sum_small/0"),
        ("no label", 'without "label"'),
        ("too few", "no label for sum_small/2"),
        ("too many", "no answer belongs to: sum_small"),
    ],
)
def test_labels_of_another_run_are_refused(written, tmp_path, how, says):
    path = tmp_path / "results.json"
    path.write_text(json.dumps(_spoil(_labelled(written), how)), encoding="utf-8")
    with pytest.raises(ConfigError, match=says):
        scores_of(_generations(written), read_completions(path), "classifier")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[", "is not JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "must be a JSON object"),
        ('{"a": "text"}', "must have a list"),
        ('{"a": []}', "must have a list"),
        ('{"a/b": ["text"]}', "must not hold '/'"),
        ('{"a": [""]}', "must be text"),
        ('{"a": [["picture.png", "text"]]}', "multimodal"),
    ],
)
def test_file_of_test_cases_that_is_none_is_refused(tmp_path, content, says):
    path = tmp_path / "cases.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=says):
        read_cases(path)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("text", "must be an object"),
        ({"test_case": "a"}, '"generation" must be text'),
        ({"test_case": None, "generation": "b"}, '"test_case" must be text'),
        ({"test_case": "a", "generation": "b", "label": "yes"}, '"label" must be 1 or 0'),
    ],
)
def test_file_of_completions_that_is_none_is_refused(tmp_path, row, says):
    path = tmp_path / "completions.json"
    path.write_text(json.dumps({"behaviour": [row]}))
    with pytest.raises(ConfigError, match=says):
        read_completions(path)


def test_command_line_names_mistakes_in_one_line(run, tmp_path):
    out = tmp_path / "out.json"
    for args, says in (
        (["export", "runs/own", "-o", out, "--method", "nobody"], "no method 'nobody'"),
        (["export", "runs/own", "-o", out, "--dataset", "gsm8k"], "no data set 'gsm8k'"),
        (["export", tmp_path / "nowhere", "-o", out], "holds no run"),
        (["export", "runs/own", "-o", tmp_path / "no" / "out.json"], "cannot write"),
        (["import-cases", "test_cases.json", "-o", out], "must end in .jsonl"),
        (["import-labels", "nowhere.json", "runs/own"], "cannot read"),
    ):
        ran = run("harmbench", *args)
        assert ran.code == 2
        assert says in ran.err
        assert "Traceback" not in ran.err
    assert not out.exists()
    assert not (tmp_path / "nowhere").exists()


def test_failed_sample_is_never_exported_as_an_empty_answer(run, written, tmp_path):
    cases = {"fine": ["What is 2 plus 3?"], "long": ["word " * 5000]}
    (tmp_path / "test_cases.json").write_text(json.dumps(cases))
    (tmp_path / "own.toml").write_text(SUITE)
    given = ["import-cases", tmp_path / "test_cases.json", "-o", tmp_path / "cases.jsonl"]
    assert run("harmbench", *given).code == 0
    ran = run("eval", "--suite", tmp_path / "own.toml", "-o", tmp_path / "run", "--generate-only")
    assert ran.code == 1
    out = tmp_path / "completions.json"
    refused = run("harmbench", "export", tmp_path / "run", "-o", out)
    assert refused.code == 2
    assert "no answer to long" in refused.err
    assert run("harmbench", "export", tmp_path / "run", "-o", out, "--skip-failed").code == 0
    completions = read_completions(out)
    assert list(completions) == ["fine"]
    labelled = {"fine": [{**json.loads(out.read_text())["fine"][0], "label": 0}]}
    (tmp_path / "results.json").write_text(json.dumps(labelled))
    ran = run("harmbench", "import-labels", tmp_path / "results.json", tmp_path / "run")
    # What failed counts against the method.
    assert ran.code == 0, ran.err
    assert "(n = 2): 50.0 %" in ran.out
