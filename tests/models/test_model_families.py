"""Roles around real model classes: rows, beams and adapters give what plain forwards give.

Whatever a class does about positions, windows and states, `Role` must cache it exactly, prefill
it again, or run it alone; never be silently wrong.
"""

from __future__ import annotations

import copy
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import (
    ARCHITECTURES,
    byte_level_tokenizer,
    end_ids_of,
    length_scorer,
    random_model,
    random_role,
    sentencepiece_tokenizer,
)
from transformers import PreTrainedModel

from alignbeam import AlignBeam, BeamConfig, RoleConfig
from alignbeam.errors import ModelLoadError, TokenizerError
from alignbeam.judge import CallableJudge
from alignbeam.models.role import Role

PROMPTS = ["Hi", "What is the capital of France? Tell me, please, in one long sentence."]


@cache
def role_of(architecture: str) -> Role:
    return random_role("target", architecture, padding=11)


def plain(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids]), use_cache=False).logits
    return logits[0, -1]


def assert_exact(role: Role, got: torch.Tensor, sequences: list[list[int]]) -> None:
    want = torch.stack([plain(role.model, ids) for ids in sequences])
    torch.testing.assert_close(got, want, rtol=0, atol=3e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_rows_equal_plain_forwards_through_a_long_history(architecture: str) -> None:
    """Left padding, forks, idle rows, crops and gaps, well past every sliding window."""
    role = role_of(architecture)
    rows = role.rows([[20, 21, 22], list(range(30, 50))])
    assert_exact(role, rows.logits, rows.ids)
    rows.select([0, 0, 1])
    for step in range(4):
        rows.extend([[60 + step], [70 + step], []])  # the third idles
        assert_exact(role, rows.logits, rows.ids)
    rows.extend([[80, 81, 82], [83], [84, 85]])
    assert_exact(role, rows.logits, rows.ids)
    starts = [3, 3, 20]
    rows.replace_suffixes(starts, [[60, 61, 90], [70, 71, 72, 73, 91], None])
    assert_exact(role, rows.logits, rows.ids)
    for step in range(9):
        rows.extend([[100 + step], [110 + step], [120 + step]])
    assert_exact(role, rows.logits, rows.ids)
    rows.replace_suffixes(starts, [None, [5], [6, 7]])
    rows.select([2, 1])
    rows.extend([[8], [9]])
    assert_exact(role, rows.logits, rows.ids)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_next_token_logits_equal_plain_forwards_in_one_padded_batch(architecture: str) -> None:
    role = role_of(architecture)
    sequences = [[7], list(range(20, 45)), [3, 4, 5, 6]]
    assert_exact(role, role.next_token_logits(sequences), sequences)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_batched_generation_equals_the_models_own_generate(architecture: str) -> None:
    """Target alone, two prompts of different lengths in one left-padded batch."""
    role = role_of(architecture)
    anchor = random_role("anchor", "llama", sentencepiece_tokenizer())
    beam = AlignBeam(role, anchor, safe_judge())
    results = beam.generate_batch(PROMPTS, {"mix_steps": 0, "beams": 1, "max_new_tokens": 14})
    for prompt, result in zip(PROMPTS, results, strict=True):
        ids = role.render(prompt)
        with torch.inference_mode():
            whole = role.model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=14,
                do_sample=False,
                eos_token_id=list(role.end_ids),
                pad_token_id=role.pad_id,
            )
        assert list(result.candidates[0].token_ids) == whole[0, len(ids) :].tolist()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_batch_equals_each_request_alone_as_target_and_as_anchor(architecture: str) -> None:
    settings = {"max_new_tokens": 9, "beams": 3, "mix_steps": 5}
    partner = sentencepiece_tokenizer()
    pairs = [
        (role_of(architecture), random_role("anchor", "qwen2", partner, seed=4)),
        (
            random_role("target", "llama", partner, seed=5),
            random_role("anchor", architecture, byte_level_tokenizer(), seed=6),
        ),
    ]
    for target, anchor in pairs:
        beam = AlignBeam(target, anchor, safe_judge())
        together = beam.generate_batch(PROMPTS, settings)
        for prompt, result in zip(PROMPTS, together, strict=True):
            alone = beam.generate(prompt, **settings)
            ours, theirs = ([c.token_ids for c in r.candidates] for r in (result, alone))
            assert ours == theirs


def safe_judge() -> CallableJudge:
    return CallableJudge(lambda messages, text: length_scorer(messages[-1]["content"], text))


def assert_long_rows_are_exact(role: Role) -> None:
    """One row gets a gap; both then grow far past it, and one is taken back."""
    rows = role.rows([list(range(20, 32)), list(range(40, 55))])
    rows.extend([[1, 2, 3], [4]])
    for step in range(24):
        rows.extend([[60 + step], [90 + step]])
        assert_exact(role, rows.logits, rows.ids)
    rows.replace_suffixes([12, 15], [[7], [4, 8]])
    assert_exact(role, rows.logits, rows.ids)
    rows.select([1])
    rows.extend([[9]])
    assert_exact(role, rows.logits, rows.ids)
    sequences = [list(range(20, 70)), [3, 4]]
    assert_exact(role, role.next_token_logits(sequences), sequences)


def test_windows_counted_by_column_and_longer_than_the_probe_are_exact() -> None:
    assert_long_rows_are_exact(random_role("target", "gpt_neo", window_size=24))


def test_rotary_scaling_by_length_is_exact_on_both_sides_of_its_switch() -> None:
    """Past its switch such a model turns every token by other angles, cached ones included."""
    scaling = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 4,
        "long_factor": [4.0] * 4,
    }
    switch = {"original_max_position_embeddings": 32}
    role = random_role("target", "phi3", rope_parameters={**scaling, **switch}, **switch)
    assert role.cached_up_to == 32
    assert_long_rows_are_exact(role)


def test_recurrent_model_runs_alone_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    role = random_role("target", "mamba")
    with caplog.at_level("WARNING", logger="alignbeam.models.role"):
        assert role.rows_alone
    assert "every row is run by itself" in caplog.text


def test_every_declared_end_id_ends_a_beam() -> None:
    role = role_of("llama")
    tokenizer = role.tokenizer
    assert list(role.end_ids) == end_ids_of(tokenizer)
    model = random_model("llama", len(tokenizer), end_ids=role.end_ids)
    for end_id in role.end_ids:
        forced = forcing(model, end_id)
        beam = AlignBeam(
            Role("target", forced, tokenizer), random_role("anchor", "llama"), safe_judge()
        )
        result = beam.generate("Hi", mix_steps=0, beams=1, max_new_tokens=4)
        assert result.candidates[0].token_ids == (end_id,)
        assert result.candidates[0].finish_reason == "stop"
        assert result.candidates[0].text == ""


def forcing(model: Any, token_id: int) -> Any:
    """The same model with a head that always says ``token_id`` (a bias, as some heads have)."""
    forced = copy.deepcopy(model)
    head = forced.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
    head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
    with torch.no_grad():
        head.bias[token_id] = 9.0
    return forced


def test_pad_equal_to_eos_in_the_prompt_is_not_masked() -> None:
    """The end token also pads here; a prompt full of it must be read all the same."""
    role = role_of("llama")
    assert role.tokenizer.pad_token_id == role.tokenizer.eos_token_id == role.pad_id
    conversation = [
        {"role": "user", "content": "One."},
        {"role": "assistant", "content": "Two."},
        {"role": "user", "content": "Three?"},
    ]
    ids = role.render(conversation)
    assert ids.count(role.pad_id) == 3
    rows = role.rows([ids, role.render("x")])
    assert_exact(role, rows.logits, rows.ids)


def test_padded_head_columns_are_never_translated_but_take_their_mass() -> None:
    target = random_role("target", "llama", padding=7)
    anchor = random_role("anchor", "qwen2", sentencepiece_tokenizer(), padding=13)
    beam = AlignBeam(target, anchor, safe_judge())
    first_padded = len(anchor.tokenizer)
    assert beam.bridge.table.shape == (anchor.width,) == (first_padded + 13,)
    assert (beam.bridge.table[first_padded:] == -1).all()
    assert (beam.bridge.opening_table[first_padded:] == -1).all()
    assert int(beam.bridge.table.max()) < len(target.tokenizer) < target.width


def test_head_narrower_than_the_tokenizer_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    model = random_model("llama", len(tokenizer) - 1)
    with pytest.raises(TokenizerError, match="belongs to another model"):
        Role("target", model, tokenizer)


def saved(role: Role, folder: Path) -> Path:
    role.model.save_pretrained(folder, safe_serialization=True)
    role.tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "gemma3_text", "gpt2"])
def test_role_from_config_gives_the_saved_models_logits(architecture: str, tmp_path: Path) -> None:
    role = role_of(architecture)
    loaded = Role.from_config("target", RoleConfig(model=str(saved(role, tmp_path)), device="cpu"))
    assert loaded.end_ids == role.end_ids
    assert loaded.opening == role.opening
    ids = role.render(PROMPTS[1])
    assert loaded.render(PROMPTS[1]) == ids
    torch.testing.assert_close(loaded.rows([ids]).logits, role.rows([ids]).logits)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    role = role_of("llama")
    saved(role, tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(role.model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelLoadError, match="safetensors"):
        Role.from_config("target", RoleConfig(model=str(tmp_path), device="cpu"))


@pytest.mark.parametrize("where", ["adapter", "model"])
def test_pickled_adapter_is_refused(tmp_path: Path, where: str) -> None:
    """Given as an adapter, or as a model's folder, which transformers completes by itself."""
    peft = pytest.importorskip("peft", reason="the peft package is not installed")
    role = random_role("target", "llama", seed=8)
    base, adapter = saved(role, tmp_path / "base"), tmp_path / "adapter"
    role.model.name_or_path = str(base)
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")
    peft.get_peft_model(role.model, settings).save_pretrained(adapter)
    role.tokenizer.save_pretrained(adapter)
    given = {
        "adapter": {"model": str(base), "adapter": str(adapter)},
        "model": {"model": str(adapter)},
    }
    config = RoleConfig(device="cpu", **given[where])
    Role.from_config("target", config)
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"adapter .* has no adapter_model\.safetensors"):
        Role.from_config("target", config)


def test_adapter_changes_the_logits_as_merging_it_does(tmp_path: Path) -> None:
    peft = pytest.importorskip("peft", reason="the peft package is not installed")
    role = random_role("target", "llama", seed=8)
    base = saved(role, tmp_path / "base")
    settings = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM"
    )
    adapted = peft.get_peft_model(role.model, settings).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    ids = role.render("Hi")
    want = plain(adapted.merge_and_unload(), ids)
    config = RoleConfig(model=str(base), adapter=str(tmp_path / "adapter"), device="cpu")
    loaded = Role.from_config("target", config)
    torch.testing.assert_close(loaded.rows([ids]).logits[0], want, rtol=0, atol=1e-4)
    merged = {type(module).__module__.partition(".")[0] for module in loaded.model.modules()}
    assert "peft" not in merged
    narrow = Role.from_config("target", config.replace(dtype="bfloat16"))
    assert any(type(module).__module__.startswith("peft") for module in narrow.model.modules())
    torch.testing.assert_close(narrow.rows([ids]).logits[0].float(), want, rtol=0, atol=0.3)
    bare = Role.from_config("target", RoleConfig(model=str(base), device="cpu"))
    assert (bare.rows([ids]).logits[0] - want).abs().max() > 1e-2


def test_learnt_prompt_is_refused(tmp_path: Path) -> None:
    """It is no part of the weights: loaded like the others it would be left out silently."""
    peft = pytest.importorskip("peft", reason="the peft package is not installed")
    role = random_role("target", "llama", seed=8)
    base = saved(role, tmp_path / "base")
    settings = peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")
    peft.get_peft_model(role.model, settings).save_pretrained(tmp_path / "adapter")
    config = RoleConfig(model=str(base), adapter=str(tmp_path / "adapter"), device="cpu")
    with pytest.raises(ModelLoadError, match="learnt prompt"):
        Role.from_config("target", config)


def test_adapter_without_the_peft_package_names_the_cure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    base = saved(role_of("llama"), tmp_path)
    config = RoleConfig(model=str(base), adapter=str(tmp_path / "adapter"), device="cpu")
    with pytest.raises(ModelLoadError, match=r"pip install -c constraints.txt '\.\[adapters\]'"):
        Role.from_config("target", config)


def test_half_precision_rows_follow_the_uncached_choice() -> None:
    role = random_role("target", "llama", byte_level_tokenizer(), seed=3)
    role.model.to(torch.bfloat16)
    assert not role.rows_alone
    rows = role.rows([[5, 6, 7], [8, 9, 10, 11]])
    rows.extend([[12], [13]])
    want = torch.stack([plain(role.model, ids) for ids in rows.ids])
    assert rows.logits.dtype == torch.bfloat16
    torch.testing.assert_close(rows.logits, want, rtol=0, atol=0.25)


def test_vocabulary_object_shared_by_both_roles_is_served(tmp_path: Path) -> None:
    """Anchor and target of one family: an identity bridge, not an error."""
    tokenizer = byte_level_tokenizer()
    target = random_role("target", "llama", tokenizer, seed=1)
    anchor = random_role("anchor", "llama", tokenizer, seed=2)
    beam = AlignBeam(target, anchor, safe_judge(), BeamConfig(max_new_tokens=6))
    ordinary = [i for i, piece in enumerate(target.vocabulary.token_bytes) if piece is not None]
    assert beam.bridge.table[ordinary].tolist() == ordinary
    assert len(beam.generate("Hi").candidates) == 3
