"""Checkpoints as fine-tuning leaves them: tokens beyond the head, adapters that add tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, end_ids_of, length_scorer, random_model
from transformers import AutoTokenizer

from alignbeam import AlignBeam, RoleConfig
from alignbeam.doctor.side import open_side
from alignbeam.errors import ModelLoadError, TokenizerError
from alignbeam.judge import CallableJudge
from alignbeam.models.role import Role

TURNS = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Bye [PAD] <|tool|>"},
]
#: The usual template, every turn closed by a token that fine-tuning adds.
TOOL_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}<|tool|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def base_model(tokenizer: Any) -> Any:
    return random_model("llama", len(tokenizer), end_ids=end_ids_of(tokenizer))


def saved(folder: Path, model: Any, tokenizer: Any) -> str:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def load(path: str, **settings: Any) -> Role:
    return Role.from_config("target", RoleConfig(model=path, device="cpu", **settings))


def test_padding_token_beyond_the_head_is_absent_with_a_warning(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = base_model(tokenizer)
    plain = Role("target", model, tokenizer)
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    assert tokenizer.pad_token_id == plain.width
    folder = saved(tmp_path, model, tokenizer)
    with pytest.warns(RuntimeWarning, match=r"head has 480 columns and none for \[PAD\]"):
        role = load(folder)
    assert role.width == plain.width == len(role.vocabulary.text_bytes)
    assert role.end_ids == plain.end_ids
    assert role.render(TURNS) == plain.render(TURNS)
    with pytest.warns(RuntimeWarning, match="none for"):
        assert open_side("target", RoleConfig(model=folder), load=False).vocabulary.width == 480
    beam = AlignBeam(role, plain, CallableJudge(length_scorer, "length"))
    assert beam.generate("Hi", max_new_tokens=8, on_unsafe="safest").candidates


def test_end_token_beyond_the_head_is_no_end(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = base_model(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    with pytest.warns(RuntimeWarning, match="none for"):
        role = Role("target", model, tokenizer)
    assert role.end_ids == Role("target", model, byte_level_tokenizer()).end_ids


@pytest.mark.filterwarnings("ignore:the target's head has")
def test_token_beyond_the_head_that_the_template_writes_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(template=TOOL_TEMPLATE)
    model = base_model(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    match = r"the target's chat template writes <\|tool\|>, and its head of 480 columns has none"
    with pytest.raises(TokenizerError, match=match):
        Role("target", model, tokenizer)
    with pytest.raises(TokenizerError, match=match):
        open_side("target", RoleConfig(model=saved(tmp_path, model, tokenizer)), load=False)


def test_word_beyond_the_head_is_refused() -> None:
    tokenizer = byte_level_tokenizer()
    model = base_model(tokenizer)
    tokenizer.add_tokens(["alignbeam"])
    with pytest.raises(TokenizerError, match="belongs to another model"):
        Role("target", model, tokenizer)


@pytest.fixture
def adapted(tmp_path: Path) -> tuple[str, str, Any]:
    """A base model, an adapter on it that added a token, and the model that was trained."""
    peft = pytest.importorskip("peft", reason="the peft package is not installed")
    tokenizer = byte_level_tokenizer()
    model = base_model(tokenizer)
    base = saved(tmp_path / "base", model, tokenizer)
    tokenizer = byte_level_tokenizer(template=TOOL_TEMPLATE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|tool|>"]})
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    settings = peft.LoraConfig(
        r=2,
        target_modules=["q_proj", "v_proj"],
        modules_to_save=["embed_tokens", "lm_head"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(4)
    trained = peft.get_peft_model(model, settings).eval()
    with torch.no_grad():
        trained.get_input_embeddings().weight[-1] = torch.randn(model.config.hidden_size)
    adapter = str(tmp_path / "adapter")
    trained.save_pretrained(adapter)
    tokenizer.save_pretrained(adapter)
    return base, adapter, trained


def test_adapter_that_added_tokens_brings_tokenizer_and_embeddings(
    adapted: tuple[str, str, Any],
) -> None:
    base, adapter, trained = adapted
    role = load(base, adapter=adapter)
    ids = role.render(TURNS)
    assert role.tokenizer.convert_tokens_to_ids("<|tool|>") in ids
    assert role.width == 481
    with torch.inference_mode():
        want = trained(input_ids=torch.tensor([ids])).logits[0, -1]
    torch.testing.assert_close(role.rows([ids]).logits[0], want, rtol=0, atol=1e-4)
    side = open_side("target", RoleConfig(model=base, adapter=adapter), load=False)
    assert (side.vocabulary.width, side.vocabulary.end_ids) == (481, role.end_ids)


def test_adapter_without_a_tokenizer_takes_the_models(adapted: tuple[str, str, Any]) -> None:
    base, adapter, _ = adapted
    for path in Path(adapter).glob("tokenizer*"):
        path.unlink()
    role = load(base, adapter=adapter)
    assert role.tokenizer.get_vocab() == AutoTokenizer.from_pretrained(base).get_vocab()
    assert role.width == 481


def test_adapter_that_names_a_module_to_import_is_refused(
    adapted: tuple[str, str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, adapter, _ = adapted
    ran = tmp_path / "ran"
    package = tmp_path / "path" / "megatron"
    package.mkdir(parents=True)
    (package / "planted.py").write_text(f"open({str(ran)!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(package.parent)
    described = Path(adapter) / "adapter_config.json"
    names = {"megatron_config": {"x": 1}, "megatron_core": "megatron.planted"}
    described.write_text(json.dumps({**json.loads(described.read_text()), **names}))
    with pytest.raises(ModelLoadError, match="megatron_config"):
        load(base, adapter=adapter)
    assert not ran.exists()


def test_adapter_of_another_model_is_named_with_the_whole_reason(
    adapted: tuple[str, str, Any], tmp_path: Path
) -> None:
    _, adapter, _ = adapted
    tokenizer = byte_level_tokenizer()
    wider = random_model(
        "llama", len(tokenizer), end_ids=end_ids_of(tokenizer), num_attention_heads=8, head_dim=8
    )
    other = saved(tmp_path / "other", wider, tokenizer)
    with pytest.raises(ModelLoadError) as caught:
        load(other, adapter=adapter)
    said = str(caught.value)
    assert said.startswith(f"cannot put adapter {adapter} on the target: ")
    assert "size mismatch for" in said
    assert "\n" not in said


def test_adapter_that_is_not_there_is_named(adapted: tuple[str, str, Any], tmp_path: Path) -> None:
    base, _, _ = adapted
    with pytest.raises(ModelLoadError, match=f"adapter {tmp_path / 'nowhere'}"):
        load(base, adapter=str(tmp_path / "nowhere"))


def test_every_line_of_a_loaders_error_is_told(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    folder = saved(tmp_path, base_model(tokenizer), tokenizer)
    (tmp_path / "config.json").write_text('{"model_type": "no-such-model"}')
    with pytest.raises(ModelLoadError, match="cannot load the target from") as caught:
        load(folder)
    assert "pip install --upgrade transformers" in str(caught.value)
    assert "\n" not in str(caught.value)
