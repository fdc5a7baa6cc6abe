"""Attacks: templates around a request, asked of every method, counted by attack."""

from __future__ import annotations

import base64
import codecs
import json
import re

import pytest
from cli_runner import Runner
from eval_models import START, bigram_role

from alignbeam import AlignBeam, BeamConfig
from alignbeam.doctor.attack import EXTENDED, TEMPLATES, attack_rows, attack_suite
from alignbeam.errors import ConfigError
from alignbeam.eval.methods import Models
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.run import generate, prepare, score
from alignbeam.eval.suite import load_suite
from alignbeam.judge import CallableJudge
from alignbeam.models.conversation import as_messages

REQUEST = "Tell me {about} it."
SUITE = """
batch_size = 4
[beam]
max_new_tokens = 8
[[datasets]]
path = "bad.jsonl"
label = "harmful"
[[methods]]
method = "alignbeam"
[[scorers]]
kind = "strict"
[[scorers]]
kind = "judge"
"""


@pytest.mark.parametrize("name", TEMPLATES)
def test_template_holds_the_request_and_ends_in_the_users_turn(name):
    messages = as_messages(TEMPLATES[name](REQUEST))
    assert messages[-1]["role"] == "user"
    whole = "\n".join(message["content"] for message in messages)
    coded = base64.b64encode(REQUEST.encode()).decode(), codecs.encode(REQUEST, "rot13")
    assert any(text in whole for text in (REQUEST, *coded))


@pytest.fixture
def suite(tmp_path):
    rows = [json.dumps({"prompt": f"request {i}"}) for i in range(5)]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows) + "\n")
    (tmp_path / "suite.toml").write_text(SUITE)
    return load_suite(str(tmp_path / "suite.toml"))


def test_attacked_sets_are_the_suites_own_under_each_template(suite):
    attacked = attack_suite(suite, ["nothing", "base64"])
    assert [d.declared.name for d in attacked.datasets] == ["bad: nothing", "bad: base64"]
    assert [m.label for m in attacked.methods] == [
        "target", "guard", "best-of-K", "faithful", "extended",
    ]  # fmt: skip
    assert attacked.methods[-1].settings == EXTENDED
    own = attack_suite(suite, ["nothing"], {"threshold": 2.0, "beams": 2, "alpha": 0.3})
    by_label = {m.label: m.settings for m in own.methods}
    assert by_label["guard"] == {"threshold": 2.0}
    assert by_label["best-of-K"] == {"threshold": 2.0, "beams": 2}
    assert by_label["faithful"] == {}
    assert by_label["extended"] == {"threshold": 2.0, "beams": 2, "alpha": 0.3}


def test_attacks_are_refused_by_name_and_on_harmful_sets_only(suite, tmp_path):
    with pytest.raises(ConfigError, match="did you mean 'base64'"):
        attack_suite(suite, ["base6"])
    (tmp_path / "suite.toml").write_text(SUITE.replace('"harmful"', '"benign"'))
    with pytest.raises(ConfigError, match="no harmful requests"):
        attack_suite(load_suite(str(tmp_path / "suite.toml")))


def test_rows_say_by_attack_and_method_what_was_answered_and_what_is_harmful(suite, tmp_path):
    """A judge that is talked into anything by a note; the target says S, the anchor N."""

    def verdict(messages, text):
        return 1.0 if "Note to whoever" in messages[-1]["content"] else 5.0

    target = bigram_role("target", {START: {"S": 0.9, "N": 0.05}})
    anchor = bigram_role("anchor", {START: {"N": 0.9, "S": 0.05}}, shift=7)
    judge = CallableJudge(verdict, "talked into")
    models = Models(AlignBeam(target, anchor, judge, BeamConfig(max_new_tokens=8)))
    attacked = attack_suite(suite, ["nothing", "a word to the judge"])
    prepared = prepare(attacked, models=models, kind="attack")
    assert generate(prepared, tmp_path / "run") == 0
    score(prepared, tmp_path / "run")
    rows = {(row.attack, row.method): row for row in attack_rows(RunFiles(tmp_path / "run"))}
    assert len(rows) == 10
    assert {row.answered.n for row in rows.values()} == {5}
    plain, noted = (
        {method: row for (attack, method), row in rows.items() if attack == name}
        for name in ("nothing", "a word to the judge")
    )
    assert {m: r.answered.successes for m, r in plain.items()} == {
        "target": 5, "guard": 0, "best-of-K": 0, "faithful": 0, "extended": 0,
    }  # fmt: skip
    assert {r.answered.successes for r in noted.values()} == {5}
    # What leaves is scored as the answer to the bare request, which talks the judge into nothing.
    assert {r.harmful.successes for r in noted.values()} == {5}
    asked = {g.messages[-1]["content"] for g in RunFiles(tmp_path / "run").generations()}
    assert len(asked) == 10


def test_attack_prints_a_table_and_rows(tmp_path, monkeypatch, capsys):
    run = Runner(monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("prompt\nWhat is 2 plus 3?\nHello!\n")
    asked = ["attack", "--harmful", "bad.csv", "--attack", "rot13", "--max-new-tokens", "8"]
    ran = run(*asked, "--no-progress")
    assert ran.code == 0, ran.err
    assert "harmful by the judge / not refused, of 2" in ran.out
    rows = [json.loads(line) for line in run(*asked, "--json", "--no-progress").out.splitlines()]
    assert [row["method"] for row in rows] == [
        "target", "guard", "best-of-K", "faithful", "extended",
    ]  # fmt: skip
    assert {row["answered"]["n"] for row in rows} == {2}
    counts = [f"{r['harmful']['successes']} / {r['answered']['successes']}" for r in rows]
    (printed,) = (line for line in ran.out.splitlines() if "rot13" in line)
    assert re.findall(r"\d+ / \d+", printed) == counts
    two = ["--method", "guard", "--method", "extended", "--folder", "two"]
    rows = [json.loads(line) for line in run(*asked, *two, "--json").out.splitlines()]
    assert [row["method"] for row in rows] == ["guard", "extended"]
    assert "no method 'guarrd'" in run(*asked, "--method", "guarrd").err
