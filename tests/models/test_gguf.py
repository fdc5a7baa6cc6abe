"""GGUF files are models of every role, read exactly and once; others are refused by name."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import length_scorer
from transformers import AutoTokenizer

from alignbeam import AlignBeam, RoleConfig
from alignbeam.doctor.side import open_side, weights_folder
from alignbeam.errors import ModelLoadError
from alignbeam.judge import CallableJudge
from alignbeam.models.role import Role

gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")

from gguf_files import tiny_llama, write_gguf, write_tokenizer  # noqa: E402

Q8_0 = gguf.GGMLQuantizationType.Q8_0
PROMPT = "What is the capital of France? Tom has 12 apples."


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGNBEAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gguf"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good file."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    write_gguf(path, *tiny_llama())
    return path


def load(path: Path | str) -> Role:
    return Role.from_config("target", RoleConfig(model=str(path), device="cpu"))


def refusal(path: Path | str) -> str:
    with pytest.raises(ModelLoadError) as caught:
        load(path)
    return str(caught.value)


def assert_same_prompts_and_logits(role: Role, model: Any, tokenizer: Any) -> None:
    plain = Role("target", model, tokenizer)
    ids = plain.render(PROMPT)
    assert role.render(PROMPT) == ids
    assert (role.opening, role.end_ids[0]) == (plain.opening, plain.end_ids[0])
    torch.testing.assert_close(role.rows([ids]).logits, plain.rows([ids]).logits)


@pytest.mark.parametrize("quantised", [None, Q8_0])
@pytest.mark.parametrize("padding", [0, 7])
def test_gguf_gives_prompts_and_logits_of_the_model_it_was_written_from(
    tmp_path: Path, quantised: Any, padding: int
) -> None:
    model, tokenizer = tiny_llama(padding)
    wanted = write_gguf(tmp_path / "tiny.gguf", model, tokenizer, quantised=quantised)
    role = load(tmp_path / "tiny.gguf")
    model.load_state_dict(wanted)
    assert role.width == len(tokenizer) + padding
    assert role.vocabulary.text_bytes[len(tokenizer) :] == [None] * padding
    assert_same_prompts_and_logits(role, model, tokenizer)


def test_gguf_is_taken_for_every_role_and_answers(whole: Path) -> None:
    anchor = RoleConfig(model=str(whole.parent), device="cpu")
    beam = AlignBeam.from_pretrained(
        RoleConfig(model=str(whole), device="cpu"), anchor, CallableJudge(length_scorer, "length")
    )
    assert beam.generate("Hi", max_new_tokens=8, on_unsafe="safest").candidates
    side = open_side("target", RoleConfig(model=str(whole)), load=False)
    assert side.vocabulary.end_ids == beam.target.end_ids
    assert (side.config.vocab_size, side.source) == (beam.target.width, str(whole))
    kept = weights_folder(RoleConfig(model=str(whole)), "target")
    assert kept is not None
    assert list(kept.glob("*.safetensors"))


def test_gguf_is_converted_once_and_anew_when_the_file_changes(
    whole: Path, tmp_path: Path, cache: Path
) -> None:
    copy = tmp_path / "copy.gguf"
    shutil.copyfile(whole, copy)
    load(whole)
    (kept,) = (p for p in cache.iterdir() if p.is_dir())
    before = kept.stat().st_mtime_ns, kept.stat().st_ino
    load(copy)
    assert (kept.stat().st_mtime_ns, kept.stat().st_ino) == before
    model, tokenizer = tiny_llama(3)
    write_gguf(copy, model, tokenizer)
    assert_same_prompts_and_logits(load(copy), model, tokenizer)
    assert len([p for p in cache.iterdir() if p.is_dir()]) == 2


def test_gguf_conversion_that_lost_its_weights_is_made_again(whole: Path, cache: Path) -> None:
    load(whole)
    (weights,) = cache.glob("*/*.safetensors")
    weights.unlink()
    load(whole)
    assert weights.is_file()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs owners and modes of files")
def test_gguf_is_not_loaded_from_a_cache_that_others_can_change(whole: Path, cache: Path) -> None:
    load(whole)
    cache.chmod(0o777)
    assert "can be changed by other users" in refusal(whole)


def test_gguf_of_a_hub_repository_is_found_by_its_name(whole: Path, tmp_path: Path) -> None:
    """A repository as the hub's client keeps it, read without a network in a fresh process."""
    repository = tmp_path / "hub" / "hub" / "models--someone--tiny-gguf"
    commit = "0" * 40
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shutil.copyfile(whole, repository / "snapshots" / commit / "tiny.Q8_0.gguf")
    code = (
        "from alignbeam import Role, RoleConfig\n"
        "def load(m): return Role.from_config('target', RoleConfig(model=m, device='cpu'))\n"
        "print(load('someone/tiny-gguf:tiny.Q8_0.gguf').width)\n"
        "try: load('someone/tiny-gguf:other.gguf')\n"
        "except Exception as e: print(type(e).__name__, e)\n"
    )
    environ = {**os.environ, "HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False
    )
    width, error = done.stdout.splitlines()[-2:]
    assert width == str(load(whole).width), done.stderr
    assert error.startswith(
        "ModelLoadError cannot load the target: cannot fetch other.gguf of someone/tiny-gguf: "
    )


def test_gguf_that_is_not_there_or_not_alone_is_named(whole: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "no.gguf").endswith(f"the file {tmp_path / 'no.gguf'} does not exist")
    for name in ("a.gguf", "b.GGUF"):
        shutil.copyfile(whole, tmp_path / name)
    assert "holds several GGUF files (a.gguf, b.GGUF); name one of them" in refusal(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a file; name its folder, or a .gguf" in refusal(tmp_path / "model.safetensors")


@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.95, 1.0])
def test_truncated_gguf_is_refused_before_anything_is_converted(
    whole: Path, tmp_path: Path, cache: Path, share: float
) -> None:
    data = whole.read_bytes()
    short = tmp_path / "short.gguf"
    short.write_bytes(data[: min(int(len(data) * share), len(data) - 64)])
    said = refusal(short)
    assert str(short) in said
    assert "truncated" in said
    assert said.endswith("fetch it again")
    assert not cache.exists()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b"version https://git-lfs.github.com/spec/v1\n", "begins with b'vers'"),
        (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1"),
        (b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60), "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), "damaged or truncated"),
        (b"GGUF" + struct.pack("<IQQQ1sIIQ", 3, 0, 1, 1, b"k", 9, 10, 2**61), "beyond the end"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "holds no weights"),
    ],
)
def test_bad_gguf_is_refused_by_name(tmp_path: Path, data: bytes, reason: str) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(data)
    said = refusal(bad)
    assert said.startswith("cannot load the target: ")
    assert str(bad) in said
    assert reason in said


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architecture": "nosucharch"}, r"cannot read .* \(architecture 'nosucharch'\)"),
        ({"without": "blk.1.ffn_up.weight"}, "lacks weights of its architecture .*up_proj"),
        ({"split__count": 3}, "one part of 3; merge them first"),
        ({"general__type": "adapter"}, "no model but a adapter"),
    ],
)
def test_gguf_that_is_no_whole_known_model_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    write_gguf(tmp_path / "odd.gguf", *tiny_llama(), **changes)
    with pytest.raises(ModelLoadError, match=reason):
        load(tmp_path / "odd.gguf")


def test_any_damage_to_a_header_is_a_named_error_or_no_harm(whole: Path, tmp_path: Path) -> None:
    from alignbeam.models.gguf_header import read_header

    data = whole.read_bytes()
    hurt = tmp_path / "hurt.gguf"
    for at in range(4, 4000, 37):
        for value in (0x00, 0x80, 0xFF):
            hurt.write_bytes(data[:at] + bytes([value]) + data[at + 1 :])
            with contextlib.suppress(ModelLoadError):  # nothing else may be raised
                read_header(hurt)


@pytest.mark.parametrize(
    ("name", "pre"),
    [
        ("gpt-2", "gpt-2"),
        ("llama-bpe", "llama-bpe"),
        ("qwen2", "qwen2"),
        ("deepseek-coder", "deepseek-coder"),
        ("falcon", "falcon"),
        ("mpt", "mpt"),
        ("starcoder", "starcoder"),
        ("starcoder", "smollm"),
    ],
)
def test_tokenizers_of_gguf_files_split_texts_as_the_originals(
    tmp_path: Path, vocabs_dir: Path, name: str, pre: str
) -> None:
    from alignbeam.models.gguf_header import read_header
    from alignbeam.models.gguf_tokenizer import read_tokenizer

    original = AutoTokenizer.from_pretrained(vocabs_dir / name)
    writer = gguf.GGUFWriter(tmp_path / "vocabulary.gguf", "llama")
    write_tokenizer(writer, original, len(original), pre)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    read = read_tokenizer(tmp_path / "vocabulary.gguf", read_header(tmp_path / "vocabulary.gguf"))
    texts = (vocabs_dir / name / f"ggml-vocab-{name}.gguf.inp").open(newline="").read()
    for text in texts.split("\n__ggml_vocab_test__\n"):
        want = original.encode(text, add_special_tokens=False)
        assert read.encode(text, add_special_tokens=False) == want
    assert read.eos_token_id == original.eos_token_id


def test_unknown_way_of_splitting_is_warned_about(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", *tiny_llama(), pre="nobody-knows")
    with pytest.warns(RuntimeWarning, match="split by rule 'nobody-knows'"):
        load(tmp_path / "tiny.gguf")


def test_end_of_turn_of_a_gguf_ends_answers(tmp_path: Path) -> None:
    model, tokenizer = tiny_llama()
    turn = tokenizer.convert_tokens_to_ids("<|stop3|>")
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer, tokenizer__ggml__eot_token_id=turn)
    assert turn in load(tmp_path / "tiny.gguf").end_ids


def test_good_gguf_loads_without_a_warning(whole: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        load(whole)


def test_gguf_without_its_packages_names_the_extra(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install -c constraints.txt '.[gguf]'" in refusal(whole)


def test_converted_gguf_is_a_plain_checkpoint_of_bfloat16(tmp_path: Path, cache: Path) -> None:
    model, tokenizer = tiny_llama()
    write_gguf(tmp_path / "tiny.gguf", model, tokenizer, quantised=Q8_0)
    load(tmp_path / "tiny.gguf")
    (config,) = cache.glob("*/config.json")
    kept = json.loads(config.read_text())
    assert kept["dtype"] == "bfloat16"
    assert "quantization_config" not in kept
