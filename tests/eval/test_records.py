"""Lines of a run: there and back, strict, and read after any kill."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records_made import GENERATION, fields

from alignbeam.errors import ConfigError
from alignbeam.eval.run.files import Journal, RunFiles, lock_run
from alignbeam.eval.run.records import (
    CandidateRecord,
    Generation,
    RecordError,
    Score,
    Time,
)


def test_records_come_back_as_they_went():
    for record in (
        GENERATION,
        Score("k1", "strict", "refusal", "refused", True, "detail"),
        Time("k1", 16, 12.5, {"target": 12.0, "other": 0.5}, True),
    ):
        line = record.to_line()
        assert "\n" not in line
        assert line.isascii()
        assert type(record).from_line(line) == record


@given(text=st.text(), answer=st.none() | st.text(), detail=st.text())
def test_records_hold_any_text(text, answer, detail):
    made = Generation(**{**fields(GENERATION), "sample_id": text, "answer": answer})
    assert Generation.from_line(made.to_line()) == made
    score = Score("k", "s", "harm", "error", None, detail)
    assert Score.from_line(score.to_line()) == score


def test_score_writes_its_class_under_that_name():
    assert json.loads(Score("k", "s", "utility", "wrong", False).to_line())["class"] == "wrong"


def test_records_write_nan_as_null():
    line = CandidateRecord("x", label_mass=float("nan"))
    made = Generation(**{**fields(GENERATION), "candidates": (line,)})
    assert Generation.from_line(made.to_line()).candidates[0].label_mass is None


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"key": "k", "scorer": "s"}'])
def test_records_refuse_what_is_no_record(line):
    for kind in (Generation, Score, Time):
        with pytest.raises(RecordError):
            kind.from_line(line)


def test_records_refuse_unknown_labels_and_classes():
    bad = json.loads(GENERATION.to_line())
    bad["label"] = "odd"
    with pytest.raises(RecordError, match="label"):
        Generation.from_line(json.dumps(bad))
    with pytest.raises(RecordError, match="class"):
        Score.from_line(Score("k", "s", "harm", "odd", None).to_line())


def line(key, text="x"):
    return json.dumps({"key": key, "text": text})


def test_journal_cuts_a_torn_last_line_at_every_byte(tmp_path):
    path = tmp_path / "j.jsonl"
    whole = b"".join(line(k).encode() + b"\n" for k in "abc")
    last = len(line("a")) + 1
    for cut in range(1, last):
        path.write_bytes(whole[:-cut])
        journal = Journal(path, ("key",))
        assert len(journal) == 2
        journal.append([line("c"), line("d")])
        journal.close()
        assert path.read_bytes() == whole + line("d").encode() + b"\n"


def test_journal_cuts_a_last_line_whose_content_was_lost(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_bytes(line("a").encode() + b"\n" + b"\0" * 20 + b"\n")
    journal = Journal(path, ("key",))
    assert len(journal) == 1
    journal.append([line("b")])
    journal.finish([("a",), ("b",)])
    assert path.read_text().splitlines() == [line("a"), line("b")]


def test_journal_refuses_damage_that_no_kill_makes(tmp_path):
    path = tmp_path / "j.jsonl"
    path.write_text(line("a") + "\nrubbish\n" + line("b") + "\n")
    with pytest.raises(RecordError, match="line 2 of 3"):
        Journal(path, ("key",))


def test_journal_keeps_the_first_of_two_lines_of_one_name(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", ("key",))
    journal.append([line("a", "first")])
    journal.append([line("a", "second"), line("b")])
    journal.finish([("b",), ("a",)])
    assert (tmp_path / "j.jsonl").read_text() == line("b") + "\n" + line("a", "first") + "\n"


def test_journal_does_not_finish_while_a_line_is_missing(tmp_path):
    journal = Journal(tmp_path / "j.jsonl", ("key",))
    journal.append([line("a")])
    with pytest.raises(RecordError, match="1 of 2 lines missing"):
        journal.finish([("a",), ("b",)])


def test_run_files_read_what_is_there_and_name_what_is_not(tmp_path):
    files = RunFiles(tmp_path)
    with pytest.raises(RecordError, match="holds no run"):
        files.manifest()
    assert files.generations() == []
    (tmp_path / "generations.jsonl").write_text(GENERATION.to_line() + "\n" + '{"key": "torn')
    assert files.generations() == [GENERATION]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RecordError, match="no JSON"):
        files.manifest()


def test_run_lock_leaves_alone_what_a_planted_link_points_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    (tmp_path / ".lock").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic link"):
        lock_run(tmp_path)
    assert precious.read_text() == "kept"


def test_run_leaves_alone_what_planted_links_point_to(tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("one line that is no record\n")
    run = tmp_path / "run"
    run.mkdir()
    (run / "generations.jsonl").symlink_to(precious)
    (run / "manifest.json.new").symlink_to(precious)
    with pytest.raises(ConfigError, match="link"):
        Journal(run / "generations.jsonl", ("key",))
    with pytest.raises(ConfigError, match="link"):
        RunFiles(run).write_manifest({})
    assert precious.read_text() == "one line that is no record\n"


def test_run_lock_keeps_a_second_writer_out(tmp_path):
    with lock_run(tmp_path), pytest.raises(ConfigError, match="another process"):
        lock_run(tmp_path)
    with lock_run(tmp_path):
        pass
