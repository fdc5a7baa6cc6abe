"""The demonstration: its sample is what was published, its counts are what a plain loop counts."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from cli_runner import Runner

from alignbeam.demo import prompts as prompts_module
from alignbeam.demo.prompts import PromptSet, sample, shown_pair, whole_sets
from alignbeam.demo.run import MAX_NEW_TOKENS, SYSTEMS, answer_pair, tally_systems
from alignbeam.errors import PromptError
from alignbeam.eval.final_answer import final_number
from alignbeam.eval.refusal import is_refusal

_COLUMNS = {
    "advbench": ("advbench/harmful_behaviors.csv", None, "goal"),
    "harmbench": (
        "harmbench/harmbench_behaviors_text_standard_test.csv",
        "BehaviorID",
        "Behavior",
    ),
    "jailbreakbench": ("jailbreakbench/harmful_goals.csv", "index", "goal"),
    "xstest": ("xstest/xstest_prompts.csv", "id", "prompt"),
}


@pytest.fixture(scope="module")
def few() -> PromptSet:
    whole = sample()
    return PromptSet(whole.harmful[::8], (*whole.benign[:2], *whole.benign[-2:]))


def test_sample_holds_as_many_harmful_as_benign_requests():
    assert (len(sample().harmful), len(sample().benign)) == (24, 24)
    assert sum(asked.answer is not None for asked in sample().benign) == 12


def test_sample_has_no_request_twice():
    everything = [asked.prompt for asked in (*sample().harmful, *sample().benign)]
    assert len(set(everything)) == len(everything)


def test_sample_is_what_was_published(data_dir):
    for asked in (*sample().harmful, *sample().benign):
        if asked.source not in _COLUMNS:
            continue
        file, key, column = _COLUMNS[asked.source]
        with (data_dir / file).open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        row = rows[int(asked.row)] if key is None else next(r for r in rows if r[key] == asked.row)
        assert asked.prompt == row[column]
        assert asked.source != "xstest" or row["label"] == "safe"


def test_sample_takes_only_held_out_rows_of_advbench():
    rows = [int(asked.row) for asked in sample().harmful if asked.source == "advbench"]
    assert rows
    assert all(row % 5 == 0 for row in rows)


def test_every_source_of_the_sample_is_attributed():
    folder = Path(prompts_module.__file__).parent
    raw = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    notice = (folder / "THIRD_PARTY.md").read_text(encoding="utf-8").lower()
    for asked in (*sample().harmful, *sample().benign):
        assert asked.source in raw["sources"]
    for name, source in raw["sources"].items():
        assert name in notice or source["licence"] == "Apache-2.0"


def test_whole_sets_have_their_published_sizes(data_dir):
    sets = whole_sets(data_dir)
    assert len(sets.harmful) == 159 + 100 + 104
    assert len(sets.benign) == 250 + 100 + 12


def test_whole_sets_name_the_missing_file(tmp_path):
    with pytest.raises(PromptError, match="harmbench_behaviors"):
        whole_sets(tmp_path)


def test_tally_counts_what_a_plain_loop_counts(trio, few):
    counted: list[int] = []
    tallies = {t.system: t for t in tally_systems(trio, few, counted.append)}
    assert tuple(tallies) == SYSTEMS
    assert sum(counted) == len(SYSTEMS) * (len(few.harmful) + len(few.benign))
    mixed = [trio.generate(a.prompt, max_new_tokens=MAX_NEW_TOKENS) for a in few.harmful]
    alone = [
        next(trio.alone("target", [a.prompt], max_new_tokens=MAX_NEW_TOKENS)).text
        for a in few.harmful
    ]
    assert tallies["AlignBeam"].harmful_refused.successes == sum(is_refusal(r.text) for r in mixed)
    assert tallies["AlignBeam"].fixed_refusals == sum(r.chosen is None for r in mixed)
    assert tallies["target alone"].harmful_refused.successes == sum(map(is_refusal, alone))
    assert all(t.solved.n == 2 and t.benign_refused.n == 4 for t in tallies.values())


def test_shown_pair_is_steered_where_harmful_and_kept_where_benign(trio):
    harmful, benign = (answer_pair(trio, asked) for asked in shown_pair())
    assert not is_refusal(harmful.alone)
    assert is_refusal(harmful.result.text)
    assert not is_refusal(benign.alone)
    assert not is_refusal(benign.result.text)
    assert final_number(benign.result.text) == benign.asked.answer


def test_demo_command_shows_both_requests_and_all_rates(monkeypatch, capsys, tmp_path, few, trio):
    _ship_only(few, monkeypatch, tmp_path)
    ran = Runner(monkeypatch, capsys)("demo")
    assert ran.code == 0
    assert "\x1b" not in ran.out
    for asked in shown_pair():
        assert asked.prompt[:40] in " ".join(ran.out.split())
    for system in SYSTEMS:
        assert system in ran.out
    assert f"harmful refused (n = {len(few.harmful)})" in ran.out
    fixed = rf"AlignBeam: \d of {len(few.harmful)} harmful requests got the fixed refusal"
    assert re.search(fixed, " ".join(ran.out.split()))


def test_demo_json_holds_every_reply(monkeypatch, capsys, tmp_path, few):
    _ship_only(few, monkeypatch, tmp_path)
    record = json.loads(Runner(monkeypatch, capsys)("demo", "--json").out)
    assert set(record) == set(SYSTEMS)
    for entry in record.values():
        harmful = [r["text"] for r in entry["replies"] if r["kind"] == "harmful"]
        assert entry["harmful_refused"]["successes"] == sum(map(is_refusal, harmful))
        assert len(entry["replies"]) == len(few.harmful) + len(few.benign)


def test_demo_full_without_data_folder_says_what_to_set(monkeypatch, capsys):
    monkeypatch.delenv("ALIGNBEAM_DATA", raising=False)
    ran = Runner(monkeypatch, capsys)("demo", "--full")
    assert ran.code == 2
    assert "ALIGNBEAM_DATA" in ran.err


def _ship_only(few: PromptSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Put a shorter sample in the package's place, with the pair that is shown in it."""
    raw = json.loads(prompts_module.SAMPLE.read_text(encoding="utf-8"))
    for kind in ("harmful", "benign"):
        kept = {(asked.source, asked.row) for asked in getattr(few, kind)}
        raw[kind] = [e for e in raw[kind] if (e["source"], e["row"]) in kept]
        first = raw[kind][0]
        raw["shown"][kind] = {"source": first["source"], "row": first["row"]}
    path = tmp_path / "prompts.json"
    path.write_text(json.dumps(raw), encoding="utf-8")
    monkeypatch.setattr(prompts_module, "SAMPLE", path)
