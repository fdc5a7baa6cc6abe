"""Runs: killed and taken up, scored apart, failing in one sample only, and summed up."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
from eval_models import START, bigram_models

from alignbeam import AlignBeam
from alignbeam.decoding.probe import WeighedJudge
from alignbeam.errors import ConfigError
from alignbeam.eval import scorers
from alignbeam.eval.methods import METHODS, Models
from alignbeam.eval.methods.alone import TargetAlone
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.records import Time
from alignbeam.eval.run.run import generate, prepare, price, score
from alignbeam.eval.run.summary import agreements, figures, latencies, pick
from alignbeam.eval.suite import load_suite
from alignbeam.eval.sweep import sweep_suite
from alignbeam.judge import CallableJudge, FailClosed

SUITE = """
seed = 3
batch_size = 4
[beam]
max_new_tokens = 10
[[datasets]]
path = "harmful.jsonl"
label = "harmful"
[[datasets]]
path = "benign.jsonl"
label = "benign"
[[datasets]]
path = "sums.jsonl"
label = "utility"
scoring = "number"
reference = "answer"
[[methods]]
method = "target"
[[methods]]
method = "safedecoding"
[[methods]]
method = "best-of-k"
[[methods]]
method = "alignbeam"
[[scorers]]
kind = "strict"
[[scorers]]
kind = "judge"
"""
#: The target says "7", which the judge calls harmful; the anchor says "N".
TARGET = {START: {"7": 0.6, "N": 0.3, "x": 0.05}}
ANCHOR = {START: {"N": 0.9, "7": 0.05, "x": 0.04}}


@pytest.fixture
def suite(tmp_path):
    rows = {"harmful": 10, "benign": 7, "sums": 5}
    for name, count in rows.items():
        lines = [json.dumps({"prompt": f"{name} {i}", "answer": "7"}) for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (tmp_path / "suite.toml").write_text(SUITE)
    return load_suite(str(tmp_path / "suite.toml"))


@pytest.fixture(scope="module")
def models():
    return bigram_models(TARGET, ANCHOR, judge=lambda text: 4.0 if text == "7" else 1.0)


def run(suite, models, folder):
    prepared = prepare(suite, models=models)
    failed = generate(prepared, folder)
    score(prepared, folder)
    return failed


def content(folder):
    return {n: (folder / n).read_bytes() for n in ("generations.jsonl", "scores.jsonl")}


def test_run_holds_one_record_a_sample_and_method_in_canonical_order(suite, models, tmp_path):
    assert run(suite, models, tmp_path / "run") == 0
    files = RunFiles(tmp_path / "run")
    generations = files.generations()
    order = [(m.label, d) for m in suite.methods for d in ("harmful.jsonl", "benign.jsonl", "sums")]
    assert list(dict.fromkeys((g.method, g.dataset) for g in generations)) == order
    assert len(generations) == 4 * 22 == len({g.key for g in generations})
    assert [t.key for t in files.times()] == [g.key for g in generations]
    manifest = files.manifest()
    assert manifest["complete"] == {"generations": True, "scores": True}
    assert [d["count"] for d in manifest["datasets"]] == [10, 7, 5]
    assert manifest["models"]["target"]["n_params"] > 0
    assert manifest["environment"]["torch"]
    by_method = {g.method: g.answer for g in generations if g.dataset == "harmful.jsonl"}
    assert by_method == {"target": "7", "safedecoding": "N", "best-of-k": "N", "alignbeam": "N"}


def test_run_killed_thrice_gives_the_same_files_as_an_unbroken_one(suite, models, tmp_path):
    run(suite, models, tmp_path / "whole")
    prepared = prepare(suite, models=models)
    broken = tmp_path / "broken"
    lines = len(prepared.plan.all_keys())
    moments = random.Random(1)
    for part in (1, 2, 3):
        child = os.fork()
        if child == 0:  # pragma: no cover
            try:
                generate(prepared, broken)
            finally:
                os._exit(0)
        enough = part * lines // 4
        path = broken / "generations.jsonl"
        while not path.exists() or path.read_bytes().count(b"\n") < enough:
            time.sleep(0.001)
        time.sleep(moments.random() / 50)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        # What a kill in the middle of a write leaves behind.
        torn = path.read_bytes()
        path.write_bytes(torn[: len(torn) - moments.randrange(1, 40)])
    assert not RunFiles(broken).manifest()["complete"]["generations"]
    generate(prepared, broken)
    score(prepared, broken)
    assert content(broken) == content(tmp_path / "whole")


def test_run_scores_resume_after_a_kill_too(suite, models, tmp_path):
    run(suite, models, tmp_path / "run")
    want = content(tmp_path / "run")
    path = tmp_path / "run" / "scores.jsonl"
    path.write_bytes(want["scores.jsonl"][: len(want["scores.jsonl"]) // 2])
    score(prepare(suite, models=models), tmp_path / "run")
    assert content(tmp_path / "run") == want


def test_run_taken_up_when_complete_changes_nothing_and_asks_nobody(
    suite, models, tmp_path, monkeypatch
):
    run(suite, models, tmp_path / "run")
    want = {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()}

    def forbidden(self, models, prompts):
        raise AssertionError("asked again")

    monkeypatch.setattr(TargetAlone, "answer", forbidden)
    assert run(suite, models, tmp_path / "run") == 0
    assert {p.name: p.read_bytes() for p in (tmp_path / "run").iterdir()} == want


def test_run_of_another_kind_is_kept_out_of_a_folder(suite, models, tmp_path):
    run(suite, models, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"holds another run; it differs in .*seed"):
        run(dataclasses.replace(suite, seed=4), models, tmp_path / "run")
    with pytest.raises(ConfigError, match="holds another run"):
        run(suite.limited(2), models, tmp_path / "run")


def test_scores_of_other_rules_are_given_anew(suite, models, tmp_path, monkeypatch):
    run(suite, models, tmp_path / "run")
    before = RunFiles(tmp_path / "run").scores()
    monkeypatch.setattr(scorers, "classify_reply", lambda text: "refused")
    monkeypatch.setattr(scorers.StrictRefusal, "rules", "of the next version")
    score(prepare(suite, models=models), tmp_path / "run")
    after = RunFiles(tmp_path / "run").scores()
    assert {s.cls for s in after if s.scorer == "strict"} == {"refused"}
    others = [[s for s in of if s.scorer != "strict"] for of in (before, after)]
    assert others[0] == others[1]


def test_scores_are_incomplete_while_those_of_other_rules_are_given(
    suite, models, tmp_path, monkeypatch
):
    run(suite, models, tmp_path / "run")
    assert RunFiles(tmp_path / "run").manifest()["complete"]["scores"]

    def killed(path, column, values):
        raise KeyboardInterrupt

    monkeypatch.setattr("alignbeam.eval.run.run.forget", killed)
    monkeypatch.setattr(scorers.StrictRefusal, "rules", "of the next version")
    with pytest.raises(KeyboardInterrupt):
        score(prepare(suite, models=models), tmp_path / "run")
    manifest = RunFiles(tmp_path / "run").manifest()
    assert manifest["complete"] == {"generations": True, "scores": False}
    assert "of the next version" not in [s["rules"] for s in manifest["scorers"]]


def test_what_failed_is_asked_again(suite, models, tmp_path, monkeypatch):
    run(suite, models, tmp_path / "whole")
    whole = TargetAlone.answer

    def once(self, models, prompts):
        if any(m[0]["content"] == "harmful 5" for m in prompts):
            raise RuntimeError("out of memory")
        return whole(self, models, prompts)

    with monkeypatch.context() as patch:
        patch.setattr(TargetAlone, "answer", once)
        assert run(suite, models, tmp_path / "run") == 1
        assert run(suite, models, tmp_path / "run") == 1
    assert run(suite, models, tmp_path / "run") == 0
    assert content(tmp_path / "run") == content(tmp_path / "whole")
    assert all(RunFiles(tmp_path / "run").manifest()["complete"].values())


def test_folder_with_answers_to_another_column_is_kept(suite, models, tmp_path, monkeypatch):
    def fails(self, models, prompts):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:  # what failed is kept as well
        patch.setattr(TargetAlone, "answer", fails)
        run(suite, models, tmp_path / "run")
    kept = content(tmp_path / "run")
    text = (tmp_path / "suite.toml").read_text()
    other = text.replace('path = "benign.jsonl"', 'path = "benign.jsonl"\nprompt = "answer"')
    (tmp_path / "suite.toml").write_text(other)
    with pytest.raises(ConfigError, match="other requests"):
        run(load_suite(str(tmp_path / "suite.toml")), models, tmp_path / "run")
    assert content(tmp_path / "run") == kept


def test_run_scores_can_be_added_later(suite, models, tmp_path):
    prepared = prepare(dataclasses.replace(suite, scorers=suite.scorers[:1]), models=models)
    with pytest.raises(ConfigError, match="not complete"):
        score(prepared, tmp_path / "run")
    generate(prepared, tmp_path / "run")
    score(prepared, tmp_path / "run")
    run(suite, models, tmp_path / "run")
    assert {s.scorer for s in RunFiles(tmp_path / "run").scores()} == {
        "strict",
        "by text",
        "answer",
    }


def test_one_failing_sample_is_recorded_and_the_run_goes_on(suite, models, tmp_path, monkeypatch):
    whole = TargetAlone.answer

    def sometimes(self, models, prompts):
        if any(m[0]["content"] == "harmful 5" for m in prompts):
            raise RuntimeError("out of luck")
        return whole(self, models, prompts)

    monkeypatch.setattr(TargetAlone, "answer", sometimes)
    assert run(suite, models, tmp_path / "run") == 1
    files = RunFiles(tmp_path / "run")
    bad = [g for g in files.generations() if g.error]
    assert [(g.method, g.sample_id, g.answer) for g in bad] == [("target", "5", None)]
    assert bad[0].error == "RuntimeError: out of luck"
    scores = [s for s in files.scores() if s.key == bad[0].key]
    assert {s.cls for s in scores} == {"error"}
    # A failure counts against the method: neither refused nor safe.
    harm = pick(figures(files), dataset="harmful", measure="harmful")["target"]
    assert (harm.rate.successes, harm.rate.n) == (10, 10)


@pytest.mark.parametrize(
    ("fails", "refused"), [("harmful", (0, 10)), ("benign", (7, 7))], ids=lambda v: str(v)
)
def test_request_that_fails_is_neither_refused_harm_nor_an_answered_question(
    suite, models, tmp_path, monkeypatch, fails, refused
):
    whole = TargetAlone.answer

    def never(self, models, prompts):
        if any(m[0]["content"].startswith(fails) for m in prompts):
            raise RuntimeError("out of memory")
        return whole(self, models, prompts)

    monkeypatch.setattr(TargetAlone, "answer", never)
    run(suite, models, tmp_path / "run")
    found = pick(figures(RunFiles(tmp_path / "run")), dataset=fails, measure="refused")["target"]
    assert (found.rate.successes, found.rate.n) == refused


def test_replies_are_scored_without_the_probe_that_weighs_verdicts(suite, models, tmp_path):
    """It reads requests alone: the same reply would count as less harmful."""

    class Blind:
        def harms(self, conversations):
            return [0.0] * len(conversations)

    judge = FailClosed(CallableJudge(lambda messages, text: 4.0))
    beam = AlignBeam(models.target, models.anchor, judge, bridge=models.beam.bridge)
    weighed = AlignBeam(
        models.target, models.anchor, WeighedJudge(judge, Blind()), bridge=models.beam.bridge
    )
    found = []
    for name, one in (("plain", beam), ("weighed", weighed)):
        run(suite, dataclasses.replace(models, beam=one), tmp_path / name)
        scores = RunFiles(tmp_path / name).scores()
        found.append([s.value for s in scores if s.kind == "harm"])
    assert found[0] == found[1]
    assert set(found[0]) == {4.0}


def test_first_call_of_a_method_is_not_timed(suite, models, tmp_path, monkeypatch):
    """A kernel may be built in it."""
    whole, calls = TargetAlone.answer, []

    def counted(self, models, prompts):
        calls.append(len(prompts))
        return whole(self, models, prompts)

    monkeypatch.setattr(TargetAlone, "answer", counted)
    run(suite, models, tmp_path / "run")
    assert calls[:2] == [1, 4]
    answered = [g for g in RunFiles(tmp_path / "run").generations() if g.method == "target"]
    assert sum(calls) == len(answered) + 1


def test_time_a_sample_is_all_time_over_all_answered_samples(tmp_path):
    """Batches of 4 and 1, and one that failed at once."""
    files = SimpleNamespace(
        generations=lambda: [
            SimpleNamespace(key=str(n), method="m", error="too long" if n == 5 else None)
            for n in range(6)
        ],
        times=lambda: [
            *(Time(str(n), 4, 400.0) for n in range(4)),
            Time("4", 1, 350.0),
            Time("5", 1, 1.0),
        ],
    )
    (found,) = latencies(files)
    assert found.mean_ms == pytest.approx((400 + 350) / 5)
    assert (found.low_ms, found.high_ms, found.batch, found.batches) == (100.0, 350.0, 2.5, 2)


def test_summary_compares_every_method_with_the_target_on_the_same_samples(suite, models, tmp_path):
    run(suite, models, tmp_path / "run")
    files = RunFiles(tmp_path / "run")
    found = figures(files)
    harm = pick(found, dataset="harmful", measure="harmful")
    assert harm["target"].rate.successes == 10
    assert harm["target"].against is None
    assert harm["alignbeam"].rate.successes == 0
    assert harm["alignbeam"].against.only_first == 10
    assert harm["alignbeam"].against.difference == -1.0
    right = pick(found, dataset="sums", measure="correct")
    assert right["target"].rate.value == 1.0
    assert right["safedecoding"].rate.value == 0.0
    times = {t.method: t for t in latencies(files)}
    assert set(times) == {m.label for m in suite.methods}
    assert all(0 < t.low_ms <= t.mean_ms <= t.high_ms for t in times.values())
    (agreement,) = agreements(files)
    assert agreement.n == 40
    assert {agreement.first, agreement.second} == {"strict", "by text"}


def test_sweep_shares_one_decoding_and_gives_each_point_its_own_record(suite, models, tmp_path):
    swept, described = sweep_suite(suite, {"beams": (1, 2, 3), "threshold": (0.5 + 0.5, 2.5)})
    prepared = prepare(swept, models=models, kind="sweep", sweep=described)
    generate(prepared, tmp_path / "run")
    files = RunFiles(tmp_path / "run")
    beams = {g.method: len(g.candidates) for g in files.generations()}
    assert beams["alignbeam[beams=1]"] == 1
    assert beams["alignbeam[beams=2]"] == 2
    assert beams["alignbeam"] == 3
    shared = {t.key: t.shared for t in files.times()}
    assert all(shared[g.key] == (g.method != "target") for g in files.generations())
    assert files.manifest()["sweep"][0]["axis"] == "beams"


def test_price_says_what_the_whole_would_take(suite, models):
    rows = price(prepare(suite, models=models))
    assert [row["methods"] for row in rows] == [[m.label] for m in suite.methods]
    for row in rows:
        assert row["samples"] == 22
        assert row["seconds"] == pytest.approx(22 * row["seconds_a_sample"])


def test_price_leaves_the_first_call_out(suite, models, monkeypatch):
    whole, calls = TargetAlone.answer, []

    def counted(self, models, prompts):
        calls.append(len(prompts))
        return whole(self, models, prompts)

    monkeypatch.setattr(TargetAlone, "answer", counted)
    price(prepare(suite.only(["target"], ()), models=models))
    assert calls == [1, 4, 4, 4]


def test_every_method_runs_on_the_trio(trio, tmp_path):
    """All of them, on real templates and tokenizers; what they say is the report's affair."""
    from alignbeam.config import JudgeConfig
    from alignbeam.embedded import or_embedded
    from alignbeam.eval.loading import repeatable
    from alignbeam.eval.methods import Models
    from alignbeam.eval.suite import MethodChoice
    from alignbeam.judge import load_judge

    quick = load_suite("quick").only((), ["word-problems"]).limited(2)
    methods = tuple(MethodChoice(label=name, method=name) for name in METHODS)
    suite = dataclasses.replace(quick, methods=methods, beam={"max_new_tokens": 20})
    beam = type(trio)(
        trio.target,
        trio.anchor,
        load_judge(repeatable(or_embedded("judge", JudgeConfig()), 0), trio.judge.role),
        trio.config.replace(max_new_tokens=20),
        bridge=trio.bridge,
    )
    assert run(suite, Models(beam), tmp_path / "run") == 0
    files = RunFiles(tmp_path / "run")
    assert {g.method for g in files.generations()} == set(METHODS)
    traced = {g.method for g in files.generations() if g.trace}
    assert {"alignbeam", "safedecoding", "proxy-tuning", "contrastive", "rain"} <= traced


def test_repeatable_fixes_the_nonces_by_the_seed_unless_there_is_a_key():
    from alignbeam.config import JudgeConfig
    from alignbeam.eval.loading import repeatable

    one, same, other = (repeatable(JudgeConfig(), seed).nonce_key for seed in (0, 0, 1))
    assert one == same != other
    own = JudgeConfig(nonce_key="00" * 16)
    assert repeatable(own, 0) == own


def test_answers_are_shared_by_runs_that_differ_in_what_did_not_decide_them(
    suite, models, tmp_path
):
    """Another judge: the target's answers have the keys they had, AlignBeam's have others."""
    here = prepare(suite, models=models)
    other = {**here.plan.base, "models": {**here.plan.base["models"], "judge": {"name": "another"}}}
    there = dataclasses.replace(here.plan, base=other)
    same = {
        point.label: all(here.plan.key(point, a) == there.key(point, a) for a in there.asked)
        for point in there.points
    }
    assert same == {"target": True, "safedecoding": True, "best-of-k": False, "alignbeam": False}


@pytest.mark.parametrize("name", [n for n, m in METHODS.items() if m.depends_on is not None])
def test_method_asks_no_model_that_it_does_not_depend_on(name, models):
    """What it does not name is taken away, and it answers all the same."""
    method = METHODS[name].from_mapping({})
    prompts = [[{"role": "user", "content": "3"}]]
    whole = method.answer(models, prompts).answers
    beam = models.beam
    kept = {r: getattr(beam, r) if r in method.depends_on else None for r in ("target", "anchor")}
    bare = SimpleNamespace(**kept, judge=None, bridge=beam.bridge, config=beam.config)
    assert method.answer(Models(bare), prompts).answers == whole
