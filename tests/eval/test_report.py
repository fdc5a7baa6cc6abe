"""Reports of real runs: the figures are those of the summary, and hostile text stays text."""

from __future__ import annotations

import base64
import csv
import gzip
import itertools
import json
import re
import shutil

import pytest
from report_runs import HOSTILE, make_run, make_sweep

from alignbeam.errors import ConfigError
from alignbeam.eval.report import extra
from alignbeam.eval.report.content import pareto
from alignbeam.eval.report.page import render_page, script_json
from alignbeam.eval.report.pictures import spread
from alignbeam.eval.report.snapshot import Snapshot, find_runs
from alignbeam.eval.report.write import write_report
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.records import RecordError
from alignbeam.eval.run.summary import agreements, figures, latencies
from alignbeam.eval.stats import wilson

pytest.importorskip("plotly", reason="the extra [report] is not installed")
pytest.importorskip("matplotlib", reason="the extra [report] is not installed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("report"))


def page_data(page):
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def unpacked(text):
    return json.loads(gzip.decompress(base64.b64decode(text)))


def test_report_writes_page_pictures_and_tables(run, tmp_path):
    own = tmp_path / "out" / "mine.txt"
    own.parent.mkdir()
    own.write_text("kept")
    written, warnings = write_report([run, make_sweep(tmp_path)], tmp_path / "out")
    assert warnings == []
    assert own.read_text() == "kept"
    names = {path.relative_to(tmp_path / "out").as_posix() for path in written}
    assert {
        "report.html",
        "tables/figures.csv",
        "tables/times.csv",
        "tables/agreements.csv",
    } < names
    pictures = [path for path in written if path.parent.name == "figures"]
    assert sorted(path.suffix for path in pictures) == [".png", ".png", ".svg", ".svg"]
    for path in pictures:
        start = path.read_bytes()[:400]
        assert start.startswith(b"\x89PNG") or b"<svg" in start
        assert path.stat().st_size > 5000


def test_report_draws_a_run_whose_names_are_no_formula(run, tmp_path):
    copied = tmp_path / "run"
    shutil.copytree(run, copied)
    path = copied / "manifest.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps({**told, "name": "at most $5_{ or $x^"}))
    written, _ = write_report([copied], tmp_path / "out")
    assert {".png", ".svg"} <= {p.suffix for p in written}


def test_report_tables_hold_the_figures_of_the_summary(run, tmp_path):
    write_report([run], tmp_path)
    files = RunFiles(run)
    for name, records in (("figures", figures(files)), ("agreements", agreements(files)),
                          ("times", latencies(files))):  # fmt: skip
        with open(tmp_path / "tables" / f"{name}.csv", newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == len(records) > 0
        for row, record in zip(rows, records, strict=True):
            if name == "figures":
                rate, against = record.rate, record.against
                assert [float(row[k]) for k in ("successes", "n", "value", "low", "high")] == [
                    rate.successes, rate.n, rate.value, rate.low, rate.high]  # fmt: skip
                assert row["p_value"] == ("" if against is None else str(against.p_value))
            if name == "times":
                assert float(row["mean_ms"]) == record.mean_ms


def test_report_page_is_one_file_that_asks_for_nothing(run):
    page = render_page(find_runs([run]))
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!#)', outside)
    assert "default-src 'none'" in page
    assert "{{" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    # Two runs of the writer give the same bytes.
    assert page == render_page(find_runs([run]))


def test_report_page_keeps_hostile_answers_out_of_its_markup(run):
    page = render_page(find_runs([run]))
    assert HOSTILE not in page
    assert page.count("</script") == 3  # data, plotly, ours
    (told,) = page_data(page)["runs"]
    samples = unpacked(told["changes"]["samples"])
    assert any(HOSTILE in text for s in samples for _, text in s["messages"])


def test_script_json_cannot_end_its_element():
    text = script_json({"a": "</script><!--\u2028 & \ud800"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!--\u2028 & \ud800"}


def test_report_tells_which_answers_changed_and_how(run):
    (told,) = page_data(render_page(find_runs([run])))["runs"]
    files = RunFiles(run)
    base = {(g.dataset, g.sample_id): g.answer for g in files.generations() if g.method == "target"}
    steered = [g for g in files.generations() if g.method == "alignbeam"]
    changed = [g for g in steered if base[(g.dataset, g.sample_id)] != g.answer]
    assert told["changes"]["count"]["alignbeam"]["changed"] == len(changed) > 0
    rows = unpacked(told["changes"]["methods"]["alignbeam"])
    assert len(rows) == len(changed)
    assert {row["answer"] for row in rows} == {g.answer for g in changed}
    assert rows[0]["moved"]
    assert "→" in rows[0]["shift"]
    assert rows[0]["trace"]
    assert "target" not in told["changes"]["count"]


def test_report_keeps_fewer_answers_of_a_large_run(run):
    (whole,) = page_data(render_page(find_runs([run])))["runs"]
    (small,) = page_data(render_page(find_runs([run]), budget=10))["runs"]
    count = small["changes"]["count"]["alignbeam"]
    assert count["kept"] < count["changed"] == whole["changes"]["count"]["alignbeam"]["kept"]


def test_report_says_what_a_broken_run_lacks(run, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    manifest = json.loads((run / "manifest.json").read_text())
    manifest["complete"] = {"generations": False, "scores": False}
    (broken / "manifest.json").write_text(json.dumps(manifest))
    lines = (run / "generations.jsonl").read_bytes().splitlines(keepends=True)
    (broken / "generations.jsonl").write_bytes(b"".join(lines[:20]) + lines[20][:30])
    said = " ".join(Snapshot(broken).warnings())
    assert "incomplete: 20 of" in said
    assert "Nothing is scored" in said
    assert "generations.jsonl is torn" in said
    written, _ = write_report([broken], tmp_path / "out")
    assert "incomplete: 20 of" in written[0].read_text(encoding="utf-8")


def test_report_refuses_what_is_no_run(run, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        write_report([tmp_path / "nowhere"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="holds no run"):
        write_report([tmp_path / "empty"], tmp_path / "out")
    (tmp_path / "empty" / "manifest.json").write_text("{}")
    with pytest.raises(RecordError, match="format None"):
        write_report([tmp_path / "empty"], tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        write_report([run], tmp_path / "file")
    assert not (tmp_path / "out").exists()


def test_report_says_what_to_install(run, tmp_path, monkeypatch):
    monkeypatch.setattr(extra, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -c constraints.txt '\.\[report\]'"):
        write_report([run], tmp_path / "out")


def test_pareto_keeps_what_nothing_beats():
    def point(over, safe):
        return wilson(over, 10), wilson(safe, 10)

    points = {
        "a": point(0, 0),
        "b": point(2, 9),
        "c": point(3, 9),
        "d": point(2, 5),
        "e": point(5, 10),
    }
    assert pareto(points) == ["a", "b", "e"]


def test_spread_separates_names_and_stays_inside():
    placed = spread([0.0, 0.0, 0.1, 0.95, 1.0], 0.1, 0.0, 1.0)
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(placed))
    assert placed[0] >= -1e-9
    assert placed[-1] <= 1 + 1e-9
