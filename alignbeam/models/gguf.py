"""GGUF files as checkpoints: dequantised once, through transformers, into a cached folder.

The life of a conversion: hash the file, look in the cache, check the header, take the key's lock,
look again, convert in a temporary folder beside, rename. What is then loaded is safetensors, as of
every other model.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
import shutil
import tempfile
import warnings
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import torch
import transformers
from filelock import FileLock
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from alignbeam.cache_folder import cache_folder, make_cache_folder, untrusted
from alignbeam.errors import ModelLoadError, how_to_install
from alignbeam.models.gguf_header import Header, read_header, without_vocabulary
from alignbeam.models.gguf_tokenizer import read_tokenizer

_log = logging.getLogger(__name__)

#: Raise it with every change of what a conversion holds.
_FORMAT: Final = 1
_HUB_FILE: Final = re.compile(r"([\w.-]+/[\w.-]+):([^:]+\.gguf)", re.IGNORECASE)
_NEEDS: Final = (
    f"reading GGUF files needs the packages gguf and accelerate: {how_to_install('gguf')}"
)
_INSTEAD: Final = "take the model's own checkpoint in place of the GGUF file"
#: Types of weights that are no blocks: what they are kept as. Blocks become bfloat16.
_PLAIN: Final = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
#: Tensors that change positions, which transformers reads past.
_POSITIONS: Final = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def checkpoint_folder(path: str, name: str, revision: str | None = None) -> str | None:
    """Return the folder of safetensors that a GGUF model was, or now is, converted to.

    Parameters
    ----------
    path : str
        A ``.gguf`` file, a folder with one and no checkpoint, or ``hub/id:file.gguf``.
    name : str
        Name of the role, for errors.
    revision : str or None
        Commit of a hub repository.

    Returns
    -------
    str or None
        None where ``path`` is nothing of GGUF.

    Raises
    ------
    ModelLoadError
        There is no such file, or it cannot be read or converted; says what to do.
    """
    try:
        file = _file_of(path, revision)
        return None if file is None else str(_converted(file))
    except ModelLoadError as error:
        raise ModelLoadError(f"cannot load the {name}: {error}") from error.__cause__


def _file_of(path: str, revision: str | None) -> Path | None:
    here = Path(path).expanduser()
    if here.suffix.lower() == ".gguf":
        if here.is_file():
            return here
        if hub := _HUB_FILE.fullmatch(path):
            return _from_hub(hub[1], hub[2], revision)
        raise ModelLoadError(f"the file {path} does not exist")
    if not here.is_dir() or (here / "config.json").exists():
        return None
    found = sorted(p for p in here.iterdir() if p.suffix.lower() == ".gguf")
    if len(found) > 1:
        names = ", ".join(p.name for p in found)
        raise ModelLoadError(f"{path} holds several GGUF files ({names}); name one of them")
    return found[0] if found else None


def _from_hub(repository: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # the library's errors and its transport's share no base
        raise ModelLoadError(f"cannot fetch {file} of {repository}: {error}") from error


def _converted(file: Path) -> Path:
    if any(importlib.util.find_spec(package) is None for package in ("gguf", "accelerate")):
        raise ModelLoadError(_NEEDS)
    cache = cache_folder("gguf")
    if cache is None:
        raise ModelLoadError("there is no home folder to convert it into; set ALIGNBEAM_CACHE")
    final = cache / _key(file)
    if _whole(final):
        return final
    header = read_header(file)
    _refuse_unreadable(file, header)
    try:
        make_cache_folder(cache)
        with FileLock(cache / f"{final.name}.lock"):
            if _whole(final):
                return final
            _check_space(cache, header)
            with tempfile.TemporaryDirectory(dir=cache) as work:
                ready = Path(work) / "ready"
                ready.mkdir(mode=0o700)
                _convert(file, header, ready)
                if final.exists():  # what is there is no whole conversion
                    shutil.rmtree(final)
                ready.rename(final)
    except OSError as error:
        raise ModelLoadError(
            f"cannot keep the converted {file} in {cache} ({error}); set ALIGNBEAM_CACHE to a "
            "folder of your own with room"
        ) from error
    return final


def _key(file: Path) -> str:
    stat = file.stat()
    parts = [
        _FORMAT,
        _sha256(file, stat.st_size, stat.st_mtime_ns),
        transformers.__version__,
        version("gguf"),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


@lru_cache(maxsize=16)
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """SHA-256 of a file; read once, as long as size and time of change stay."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _whole(folder: Path) -> bool:
    """Whether a conversion is there; one that others can change is refused."""
    levels = [folder.parent.parent, folder.parent, folder, *folder.glob("*")]
    if fault := untrusted(*levels):
        raise ModelLoadError(f"nothing is loaded from a cache that is not this user's: {fault}")
    there = [(folder / name).is_file() for name in ("config.json", "tokenizer.json")]
    return all(there) and any(folder.glob("*.safetensors"))


def _refuse_unreadable(file: Path, header: Header) -> None:
    metadata = header.metadata
    if metadata.get("split.count", 1) > 1:
        raise ModelLoadError(
            f"{file} is one part of {metadata['split.count']}; merge them first: "
            "llama-gguf-split --merge FIRST_PART OUT.gguf"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ModelLoadError(f"{file} holds no model but a {kind}; {_INSTEAD}")
    if "token_embd.weight" not in header.tensors:
        raise ModelLoadError(f"{file} holds no weights, only a vocabulary; {_INSTEAD}")
    if not isinstance(metadata.get("general.architecture"), str):
        raise ModelLoadError(f"{file} does not say what architecture it is of; {_INSTEAD}")


def _check_space(cache: Path, header: Header) -> None:
    read = max(entry.end for entry in header.tensors.values())
    needed = header.n_params * _kept_as(header).itemsize + read
    free = shutil.disk_usage(cache).free
    if free < needed * 1.05:
        raise ModelLoadError(
            f"converting the model takes {needed / 1e9:.1f} GB in {cache}, where "
            f"{free / 1e9:.1f} GB are free; set ALIGNBEAM_CACHE to a folder with room"
        )


def _kept_as(header: Header) -> torch.dtype:
    kinds = {entry.kind for entry in header.tensors.values()}
    halves = kinds - {0}
    plain = len(halves) <= 1 and kinds <= _PLAIN.keys()
    return _PLAIN[next(iter(halves or kinds))] if plain else torch.bfloat16


def _convert(file: Path, header: Header, folder: Path) -> None:
    """Write safetensors, configuration and tokenizer of a GGUF file into ``folder``."""
    _log.warning("converting %s, once, for the cache", file)
    tokenizer = read_tokenizer(file, header)
    if lost := [name for name in header.tensors if name in _POSITIONS]:
        warnings.warn(
            f"{file} scales its rotary positions ({', '.join(lost)}), which transformers leaves "
            f"out, so long texts are read worse than by the original; {_INSTEAD}",
            RuntimeWarning,
            stacklevel=2,
        )
    slim = folder.with_name("slim.gguf")
    without_vocabulary(file, header, slim)
    model, info = _read_weights(file, header, slim)
    if missing := sorted(info["missing_keys"] | {key for key, *_ in info["mismatched_keys"]}):
        named = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise ModelLoadError(f"{file} lacks weights of its architecture ({named}); {_INSTEAD}")
    # They are weights like all others now: of no quantised kind, and to be saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=_ends(header, model.config.vocab_size),
        pad_token_id=tokenizer.pad_token_id,
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for written in folder.iterdir():
        written.chmod(0o600)


def _read_weights(file: Path, header: Header, slim: Path) -> tuple[Any, dict[str, Any]]:
    place = {"gguf_file": slim.name, "trust_remote_code": False}
    keywords: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # else they are dequantised anyway
        keywords["quantization_config"] = transformers.GgufConfig(dequantize=True)
    architecture = header.metadata["general.architecture"]
    try:
        config = AutoConfig.from_pretrained(str(slim.parent), **place)
        config.vocab_size = header.tensors["token_embd.weight"].shape[0]
        model, info = AutoModelForCausalLM.from_pretrained(
            str(slim.parent),
            config=config,
            dtype=_kept_as(header),
            output_loading_info=True,
            **place,
            **keywords,
        )
    except Exception as error:  # transformers and gguf raise whatever comes up
        raise ModelLoadError(
            f"transformers {transformers.__version__} cannot read {file} (architecture "
            f"{architecture!r}): {error}; {_INSTEAD}"
        ) from error
    return model, info


def _ends(header: Header, width: int) -> list[int]:
    keys = ("eos_token_id", "eot_token_id", "eom_token_id")
    found = (header.metadata.get(f"tokenizer.ggml.{key}") for key in keys)
    return list(dict.fromkeys(i for i in found if i is not None and 0 <= i < width))
