"""Reading a checkpoint: weights from safetensors only, and no code that it brings is ever run.

Nothing else in the package imports transformers' models.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

from alignbeam.config import RoleConfig
from alignbeam.errors import ModelLoadError, TokenizerError

#: Where configurations say how many positions a model has; the first that is there counts.
_WINDOW_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def load_tokenizer(path: str, *, name: str = "model", revision: str | None = None) -> Any:
    """Load a fast tokenizer from a folder or hub id; never runs its code.

    Raises
    ------
    ModelLoadError
        Nothing there, or not a tokenizer.
    TokenizerError
        There is one, but it has no fast (declared) form.
    """
    _check_folder(path, name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise plain Exception for bad files
        raise ModelLoadError(
            f"cannot load the {name}'s tokenizer from {path}: {_first_line(error)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"the {name}'s tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; "
            "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return tokenizer


def load_weights(name: str, config: RoleConfig) -> Any:
    """Load the causal LM of a role, its adapter on top, on its device.

    Raises
    ------
    ModelLoadError
        What cannot be loaded, and why.
    """
    path = str(config.model)
    _check_folder(path, name)
    device = config.device
    if device is None and config.device_map is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    on_cpu = device is not None and torch.device(device).type == "cpu"
    named = "float32" if config.dtype == "auto" and on_cpu else config.dtype
    dtype: Any = "auto" if named == "auto" else getattr(torch, named)
    keywords: dict[str, Any] = {"dtype": dtype, "revision": config.revision}
    if config.device_map is not None:
        keywords["device_map"] = config.device_map
    if config.quantization is not None:
        from transformers import BitsAndBytesConfig

        keywords["quantization_config"] = BitsAndBytesConfig(**config.quantization)
        keywords.setdefault("device_map", device)
    try:
        if _found(path, "adapter_config.json", config.revision):  # transformers would take it
            _check_adapter(path, config.revision)
        model = AutoModelForCausalLM.from_pretrained(
            path, trust_remote_code=False, use_safetensors=True, **keywords
        )
        if config.adapter is not None:
            model = _with_adapter(model, config.adapter)
        if "device_map" not in keywords:
            model = model.to(device)
    except ModelLoadError:
        raise
    except Exception as error:  # every library on the way has exceptions of its own
        raise ModelLoadError(f"cannot load the {name} from {path}: {_first_line(error)}") from error
    return model


def _with_adapter(model: Any, adapter: str) -> Any:
    try:
        from peft import PeftModel
    except ImportError as error:
        raise ModelLoadError(
            f"adapter {adapter} needs the peft package: pip install peft"
        ) from error
    _check_adapter(adapter)
    return PeftModel.from_pretrained(model, adapter).get_base_model()


def _check_adapter(adapter: str, revision: str | None = None) -> None:
    """Refuse weights that are a pickle, which peft takes where there is nothing else."""
    if not _found(adapter, "adapter_model.safetensors", revision):
        raise ModelLoadError(
            f"adapter {adapter} has no adapter_model.safetensors; a pickle (adapter_model.bin) is "
            "not loaded: load it with peft where you trust it, and save_pretrained() it again"
        )


def _found(source: str, name: str, revision: str | None) -> bool:
    # A missing file, and what cannot be asked for, is None; the loader behind says the latter.
    found = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found is not None


def _check_folder(path: str, name: str) -> None:
    looks_local = path.startswith((".", "/", "~")) or "\\" in path
    if looks_local and not Path(path).expanduser().is_dir():
        raise ModelLoadError(f"the {name}'s folder {path} does not exist")


def window_of(config: Any) -> int | None:
    """Return how many positions a model has, where its configuration tells."""
    found = (getattr(config, key, None) for key in _WINDOW_KEYS)
    return next((int(window) for window in found if window), None)


def template_text(template: str | None) -> str | None:
    """Return a chat template's text: as it is, or read from a ``.jinja`` file.

    Raises
    ------
    ModelLoadError
        The file cannot be read.
    """
    if template is None or not template.endswith(".jinja"):
        return template
    try:
        return Path(template).read_text(encoding="utf-8")
    except OSError as error:
        raise ModelLoadError(f"cannot read chat template {template}: {error.strerror}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0]
