"""The doctor: what it measures against what is there, what it calls unsafe, how it exits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from cli_runner import Runner, save_models
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import (
    ARCHITECTURES,
    BLANK_TEMPLATE,
    CHAT_TEMPLATE,
    byte_level_tokenizer,
    random_model,
    random_pair,
    sentencepiece_tokenizer,
)
from tokenizers import Tokenizer, models
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from alignbeam.config import JudgeConfig, RoleConfig, Settings
from alignbeam.controller import load_judge_of
from alignbeam.decoding.probe import HarmProbe, States
from alignbeam.decoding.refusals import REFUSAL_OPENINGS
from alignbeam.doctor import examine
from alignbeam.doctor.canaries import canary_findings
from alignbeam.doctor.memory import cache_bytes, count_parameters, estimate_parameters
from alignbeam.doctor.report import CanaryRow, OpeningRow
from alignbeam.doctor.samples import CANARIES
from alignbeam.doctor.side import Side
from alignbeam.doctor.survival import ATTACKS, survival_findings, survival_rows
from alignbeam.doctor.translation import FALLBACKS, Walk, coverage_rows, opening_rows
from alignbeam.embedded import or_embedded
from alignbeam.engines.roles import role_of
from alignbeam.errors import ConfigError, ModelLoadError
from alignbeam.models.render import Renderer
from alignbeam.vocab import bridge_cache
from alignbeam.vocab.bridge import Bridge, Kind
from alignbeam.vocab.matching import Tables
from alignbeam.vocab.vocabulary import Vocabulary


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return save_models(tmp_path_factory.mktemp("models")).parent


@pytest.fixture
def cli(monkeypatch, capsys) -> Runner:
    return Runner(monkeypatch, capsys)


def _vocabulary(tokenizer: object) -> Vocabulary:
    return Vocabulary.of(tokenizer, opening=Renderer(tokenizer, "model").opening())


def _settings(target: object, anchor: object, judge: object = None, **of_target: str) -> Settings:
    target, anchor, judge = (None if m is None else str(m) for m in (target, anchor, judge))
    return Settings(
        target=RoleConfig(model=target, **of_target),
        anchor=RoleConfig(model=anchor),
        judge=JudgeConfig(model=judge),
    )


def _lost(rows: tuple[OpeningRow, ...], fallback: str) -> dict[str, str]:
    found = {row.text: row.lost_at[fallback] for row in rows}
    return {text: token for text, token in found.items() if token is not None}


# -- translation -------------------------------------------------------------------------------


def test_openings_all_survive_between_equal_tokenizers():
    anchor, target = (_vocabulary(byte_level_tokenizer()) for _ in range(2))
    bridge = Bridge.build(anchor, target, "exact")
    rows = opening_rows(bridge, anchor, target)
    assert [row.text for row in rows] == list(REFUSAL_OPENINGS)
    assert [_lost(rows, name) for name in FALLBACKS] == [{}, {}, {}, {}]


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=12))
def test_any_plain_text_survives_when_multi_tokens_are_spelled(text):
    anchor = _vocabulary(byte_level_tokenizer())
    target = _vocabulary(sentencepiece_tokenizer(template=CHAT_TEMPLATE))
    walk = Walk(Bridge.build(anchor, target, "first"), anchor, target)
    assert walk.lost_at(text.encode()) is None


def test_openings_lost_where_the_target_cuts_contractions_elsewhere(vocabs_dir):
    anchor, target = (_real(vocabs_dir, name) for name in ("llama-bpe", "phi-3"))
    bridge = Bridge.build(anchor, target, "drop")
    rows = opening_rows(bridge, anchor, target)
    # Llama-3 has the token 'm, Phi-3 writes ' and m: the wish is dropped, or spelled in two.
    assert _lost(rows, "drop")["I'm sorry"] == "'m"
    assert "I cannot" not in _lost(rows, "drop")
    assert _lost(rows, "first") == {}


def test_coverage_counts_sample_text_as_a_plain_loop_does(vocabs_dir):
    from alignbeam.doctor.samples import ANSWERS

    anchor, target = (_real(vocabs_dir, name) for name in ("gpt-2", "llama-spm"))
    bridge = Bridge.build(anchor, target, "drop")
    ids = [
        i
        for _, answer in ANSWERS
        for i in anchor.tokenizer.encode(answer, add_special_tokens=False)
    ]
    side = Side("anchor", "gpt-2", anchor, has_template=False)
    rows = {row.kind: row for row in coverage_rows(bridge, side)}
    for kind in Kind:
        share = sum(int(bridge.kinds[i]) == kind for i in ids) / len(ids)
        assert rows[kind.name].text_share == pytest.approx(share, abs=1e-12)
        assert rows[kind.name].mass is None
    assert sum(row.count for row in rows.values()) == bridge.anchor_width


def test_coverage_by_mass_sums_to_one_with_the_anchor_loaded():
    target, anchor = random_pair()
    side = Side("anchor", "anchor", anchor.vocabulary, anchor.has_template, role=anchor)
    rows = coverage_rows(Bridge.build(anchor.vocabulary, target.vocabulary, "drop"), side)
    assert sum(row.mass for row in rows if row.mass is not None) == pytest.approx(1)
    padding = next(row for row in rows if row.kind == "NONE")
    assert padding.mass is not None
    assert padding.mass > 0


def _real(vocabs: Path, name: str) -> Vocabulary:
    from alignbeam.models.loading import load_tokenizer

    return _vocabulary(load_tokenizer(str(vocabs / name)))


# -- memory ------------------------------------------------------------------------------------


def test_parameters_counted_from_headers_equal_the_models(folder):
    model = AutoModelForCausalLM.from_pretrained(folder / "target")
    assert count_parameters(folder / "target") == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x04" + b"\0" * 7 + b"{{{{"])
def test_parameters_not_counted_from_a_damaged_file(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    assert count_parameters(tmp_path) is None


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3", "mistral"])
def test_parameters_estimated_close_to_the_models(architecture):
    model = random_model(architecture, 500)
    actual = sum(p.numel() for p in model.parameters())
    assert estimate_parameters(model.config) == pytest.approx(actual, rel=0.02)


#: Models that keep states besides keys and values, or nothing else, or under other names.
WITHOUT_PLAIN_CACHE = {
    "jamba", "lfm2", "mamba", "mamba2", "mpt", "qwen3_next", "recurrent_gemma",
}  # fmt: skip


@pytest.mark.parametrize("architecture", sorted(set(ARCHITECTURES) - WITHOUT_PLAIN_CACHE))
def test_cache_forecast_equals_the_cache_of_a_forward(architecture):
    model = random_model(architecture, 500)
    rows, length = 3, 7
    with torch.inference_mode():
        cache = model(input_ids=torch.zeros(rows, length, dtype=torch.long)).past_key_values
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    forecast = cache_bytes(model.config.get_text_config(), rows, length)
    assert forecast is not None
    # A model with one shared KV head has less than its configuration's head count says.
    assert forecast >= 2 * numbers
    if architecture != "falcon":
        assert forecast == 2 * numbers


# -- the judge ---------------------------------------------------------------------------------


def _rows(*scores: float) -> list[CanaryRow]:
    return [CanaryRow(c.name, s, 1.0, None) for c, s in zip(CANARIES, scores, strict=True)]


def test_canaries_in_order_give_no_finding():
    assert list(canary_findings(_rows(1.2, 4.5, 4.0, 1.1), 2.5)) == []


@pytest.mark.parametrize("scores", [(4.0, 3.9, 4.5, 1.0), (1.0, 4.0, 4.0, 4.0), (2, 2, 2, 2)])
def test_canaries_out_of_order_are_unsafe(scores):
    (finding,) = canary_findings(_rows(*scores), 2.5)
    assert (finding.level, finding.topic) == ("unsafe", "judge")


def test_canaries_on_the_wrong_side_of_the_threshold_warn():
    low, high = canary_findings(_rows(1.0, 2.4, 4.0, 2.0), 2.5), _rows(2.6, 4.0, 4.0, 1.0)
    assert [f.level for f in low] == ["warn"]
    assert [f.level for f in canary_findings(high, 2.5)] == ["warn"]


def test_canary_that_cannot_be_judged_is_unsafe():
    rows = _rows(1.2, 4.5, 4.0, 1.1)
    rows[0] = CanaryRow(rows[0].name, 5.0, 0.1, "label mass 0.1")
    (finding,) = canary_findings(rows, 2.5)
    assert finding.level == "unsafe"
    assert "label mass 0.1" in finding.text


# -- as a whole --------------------------------------------------------------------------------


def test_examine_embedded_trio_finds_nothing_unsafe():
    said = []
    report = examine(told=said.append)
    assert said[0] == "asking the judge about canaries"
    assert said[-2:] == [
        f"asking the judge, {len(ATTACKS)} of {len(ATTACKS)} kinds of attack done",
        "building the bridge, and measuring it",
    ]
    assert not report.unsafe
    assert [side.name for side in report.sides] == ["target", "anchor", "judge"]
    assert all(side.end_tokens and side.has_template for side in report.sides)
    assert all(row.mass is not None for row in report.coverage)
    assert [row.name for row in report.canaries] == [canary.name for canary in CANARIES]
    assert all(row.counted for row in report.memory)


def test_examine_asks_the_judge_as_its_probe_weighs_it(tmp_path):
    """A probe that finds nothing harmful lets everything pass, and the doctor must see that."""
    role = role_of("anchor", or_embedded("anchor", RoleConfig()))
    states = States(role, 1)
    blind = HarmProbe(states, torch.zeros(states.size), -20.0)
    blind.save(tmp_path / "blind.probe", "the anchor")
    judge = JudgeConfig(probe=str(tmp_path / "blind.probe"))
    report = examine(Settings(judge=judge))
    assert all(row.passed == row.harmful > 0 for row in report.survival)
    assert any("not above the threshold" in f.text for f in report.findings)
    with pytest.raises(ConfigError, match="no file"):
        examine(Settings(judge=judge.replace(probe=str(tmp_path / "nowhere.probe"))))


def test_examine_reads_a_folder_with_a_tokenizer_only(tmp_path):
    for name, tokenizer in (
        ("target", byte_level_tokenizer()),
        ("anchor", sentencepiece_tokenizer()),
    ):
        tokenizer.save_pretrained(tmp_path / name)
    report = examine(_settings(tmp_path / "target", tmp_path / "anchor"))
    assert all(side.width is None for side in report.sides)
    assert all(row.parameters is None for row in report.memory)
    assert all(row.mass is None for row in report.coverage)
    assert {f.topic for f in report.findings if f.level == "note"} == {"coverage", "judge"}


def test_examine_warns_of_a_missing_template_and_an_equal_pair(tmp_path):
    byte_level_tokenizer(template=None).save_pretrained(tmp_path)
    report = examine(_settings(tmp_path, tmp_path))
    warned = {f.topic for f in report.findings if f.level == "warn"}
    assert {"target", "anchor", "pair"} <= warned


def test_examine_takes_a_template_from_the_settings(tmp_path):
    byte_level_tokenizer(template=None).save_pretrained(tmp_path)
    (tmp_path / "own.jinja").write_text(BLANK_TEMPLATE, encoding="utf-8")
    own = str(tmp_path / "own.jinja")
    report = examine(_settings(tmp_path, tmp_path, chat_template=own))
    assert (report.sides[0].has_template, report.sides[0].opening) == (True, " ")
    assert "target" not in {f.topic for f in report.findings}


def test_examine_anchor_without_end_token_is_unsafe(tmp_path):
    byte_level_tokenizer().save_pretrained(tmp_path / "target")
    endless = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(ByteLevel.alphabet())}, merges=[])
    )
    endless.pre_tokenizer, endless.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    PreTrainedTokenizerFast(tokenizer_object=endless).save_pretrained(tmp_path / "anchor")
    report = examine(_settings(tmp_path / "target", tmp_path / "anchor"))
    assert report.unsafe
    assert any("end token" in f.text for f in report.findings if f.level == "unsafe")


def test_examine_random_judge_is_unsafe(folder):
    report = examine(_settings(folder / "target", folder / "anchor", folder / "judge"), load=True)
    assert any(f.level == "unsafe" and f.topic == "judge" for f in report.findings)


def test_examine_refuses_half_a_pair():
    with pytest.raises(ConfigError, match="both the target and the anchor"):
        examine(_settings("./somewhere", None))


def test_doctor_refuses_a_role_on_an_engine_and_says_what_to_set(cli, folder):
    """Before anything is loaded or asked: nothing listens there."""
    ran = cli("doctor", folder / "target", "http://127.0.0.1:9")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)
    assert "set anchor.model in place of anchor.url" in ran.err


def test_examine_names_a_missing_folder():
    with pytest.raises(ModelLoadError, match="does not exist"):
        examine(_settings("./nowhere", "./nowhere"))


def test_doctor_prints_every_table_and_exits_by_safety(cli, folder):
    pair = [folder / "target", folder / "anchor"]
    ran = cli("doctor", *pair)
    titles = ("Models", "Anchor tokens", "Refusal openings", "Kernel backends", "Memory", "about")
    assert all(title in ran.out for title in titles)
    assert ran.code == int("unsafe: see above" in ran.out)
    assert cli("doctor", *pair, "--judge", folder / "judge", "--load").code == 1


def test_doctor_json_agrees_with_the_report(cli, folder):
    ran = cli("doctor", folder / "target", folder / "anchor", "--set", "fallback=first", "--json")
    record = json.loads(ran.out)
    assert record["fallback"] == "first"
    assert record["unsafe"] == any(f["level"] == "unsafe" for f in record["findings"])
    assert [side["name"] for side in record["sides"]] == ["target", "anchor"]
    assert {row["name"] for row in record["backends"]} >= {"cpu", "reference"}


def test_doctor_bad_input_is_one_line_and_exit_code_two(cli):
    ran = cli("doctor", "./nowhere", "./nowhere")
    assert (ran.code, ran.out, ran.err.count("\n")) == (2, "", 1)


# -- what the judge survives --------------------------------------------------------------------


def test_judge_of_the_trio_survives_every_attack_and_one_view_does_not():
    before = JudgeConfig(views=("conversation",), unreadable="score")
    one, all_of = (list(survival_rows(load_judge_of(c), 2.5)) for c in (before, JudgeConfig()))
    assert [row.attack for row in all_of] == list(ATTACKS)
    assert [row.attack for row in all_of if row.passed] == []
    assert any(row.passed for row in one)
    assert [f.level for f in survival_findings(one)] == ["warn"]
    assert list(survival_findings(all_of)) == []
    assert all_of[0].withheld == 0


def test_poisoned_bridge_in_the_cache_is_unsafe(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path))
    settings = _settings(folder / "target", folder / "anchor")
    sound = examine(settings)
    (path,) = (tmp_path / "bridges").glob("*.safetensors")
    bridge = load_file(path)
    tables = Tables(**bridge)
    tables.matches[7] = (tables.matches[7] + 1) % 5
    bridge_cache.save(path.parent, path.stem, tables)
    found = examine(settings)
    assert found.bridge != sound.bridge
    assert [f.topic for f in found.findings if f.level == "unsafe" and f.topic == "bridge"]
    assert not [f for f in sound.findings if f.topic == "bridge"]
