"""Places that cannot be written to are refused before any work, in one line with the option."""

from __future__ import annotations

import pytest
from cli_runner import Runner

from alignbeam.cli.outputs import check_file, check_folder
from alignbeam.errors import ConfigError


@pytest.fixture
def cli(monkeypatch, capsys, tmp_path) -> Runner:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file.jsonl").write_text("mine\n")
    (tmp_path / "mine.csv").write_text("prompt\nHello\n")
    return Runner(monkeypatch, capsys)


# Loading this model fails, and comes later.
NO_MODEL = ["--set", "target.model=./nowhere"]
TUNE = ["tune", "--benign", "mine.csv", "--harmful", "mine.csv", "--max-over-refusal", "5%"]


@pytest.mark.parametrize("place", ["/proc/ro", "file.jsonl", "file.jsonl/run"])
@pytest.mark.parametrize(
    ("command", "option"),
    [
        (["eval", "--suite", "quick", *NO_MODEL], "--out"),
        (["sweep", "--suite", "quick", *NO_MODEL], "--out"),
        (["attack", "--harmful", "mine.csv", *NO_MODEL], "--folder"),
        ([*TUNE, *NO_MODEL], "--folder"),
        ([*TUNE, *NO_MODEL], "--out"),
        (["report", "no-such-run"], "--out"),
    ],
)
def test_output_that_cannot_be_written_is_refused_first(cli, tmp_path, command, option, place):
    ran = cli(*command, option, place)
    assert ran.code == 2
    assert ran.err.startswith("alignbeam: error: ")
    assert ran.err.count("\n") == 1
    assert option in ran.err
    assert (tmp_path / "file.jsonl").read_text() == "mine\n"


def test_trying_a_place_leaves_it_as_it_was(tmp_path):
    check_folder(tmp_path / "a" / "b")
    check_file(tmp_path / "c.toml")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "d").mkdir()
    (tmp_path / "e").write_text("kept")
    check_folder(tmp_path / "d")
    check_file(tmp_path / "e")
    assert (tmp_path / "d").is_dir()
    assert (tmp_path / "e").read_text() == "kept"
    with pytest.raises(ConfigError, match="Is a directory"):
        check_file(tmp_path / "d")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (["--max-over-refusal", "few"], "--max-over-refusal is written like 5% or 0.05, got"),
        (["--max-latency", "fast"], "--max-latency is written like 1.2x or 1.2, got"),
    ],
)
def test_limit_that_is_no_number_is_answered_with_its_own_form(cli, option, says):
    ran = cli(*TUNE, *NO_MODEL, *option)
    assert (ran.code, ran.out) == (2, "")
    assert says in ran.err


@pytest.mark.parametrize(
    ("command", "known"),
    [
        (["attack", "--harmful", "harmbnch-val"], "harmbench-val, harmbench"),
        ([*TUNE, "--benign", "xstest"], "benign sets: jailbreakbench-benign, xstest-safe"),
    ],
)
def test_set_that_is_neither_known_nor_a_file_is_refused_with_those_known(cli, command, known):
    ran = cli(*command, *NO_MODEL)
    assert (ran.code, ran.out) == (2, "")
    for name in known.split(", "):
        assert name in ran.err


@pytest.mark.parametrize(
    ("command", "default"),
    [("eval", "the suite's"), ("sweep", "the suite's"), ("generate", "256")],
)
def test_help_says_which_length_an_answer_has_unless_told(cli, command, default, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    words = " ".join(cli(command, "--help").out.replace("│", " ").split())
    assert any(f"in target tokens (default{colon} {default})" in words for colon in ("", ":"))


def test_doctor_says_that_a_folder_holds_no_tokenizer(cli, tmp_path):
    (tmp_path / "empty").mkdir()
    ran = cli("doctor", "empty", "empty")
    assert (ran.code, ran.out) == (2, "")
    assert "the target's folder empty holds no tokenizer" in ran.err
