"""Reading a checkpoint: weights from safetensors only, and no code that it brings is ever run.

GGUF files become safetensors first (``alignbeam.models.gguf``). Nothing else in the package imports
transformers' models.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import cached_file

from alignbeam.config import RoleConfig
from alignbeam.errors import ModelLoadError, TokenizerError, how_to_install
from alignbeam.models.gguf import checkpoint_folder

#: Where configurations say how many positions a model has; the first that is there counts.
_WINDOW_KEYS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
#: Somewhere in the name of every file that a tokenizer is read from.
_OF_TOKENIZERS: Final = re.compile(r"token|vocab|merges|\.model$|tekken")
#: A reason is told up to so many characters: a loader may list every weight of a model.
_REASON_LENGTH: Final = 1200


def checkpoint_of(path: str, *, name: str = "model", revision: str | None = None) -> str:
    """Return the folder or hub id to read a model from: ``path``, or what its GGUF file became.

    Raises
    ------
    ModelLoadError
        There is no such folder or file, or the GGUF file cannot be read.
    """
    converted = checkpoint_folder(path, name, revision)
    if converted is not None:
        return converted
    here = Path(path).expanduser()
    looks_local = path.startswith((".", "/", "~")) or "\\" in path
    if here.is_file():
        raise ModelLoadError(f"the {name}'s model {path} is a file; name its folder, or a .gguf")
    if looks_local and not here.is_dir():
        raise ModelLoadError(f"the {name}'s folder {path} does not exist")
    return str(here) if looks_local else path


def tokenizer_source(config: RoleConfig, name: str) -> tuple[str, str | None]:
    """Return where a role's tokenizer is, and of which revision: its adapter's counts first.

    Fine-tuning may add tokens, and the adapter then brings the tokenizer that has them.

    Raises
    ------
    ModelLoadError
        The adapter cannot be asked.
    """
    own = str(config.model), config.revision
    if config.adapter is None:
        return own
    _peft_for(config.adapter)
    try:
        return (config.adapter, None) if _found(config.adapter, "tokenizer.json", None) else own
    except Exception as error:  # transformers raises several for what is neither folder nor id
        raise ModelLoadError(
            f"the {name}'s adapter {config.adapter} cannot be found: {_reason(error)}"
        ) from error


def load_tokenizer(path: str, *, name: str = "model", revision: str | None = None) -> Any:
    """Load a fast tokenizer from a folder or hub id; never runs its code.

    Raises
    ------
    ModelLoadError
        Nothing there, or not a tokenizer.
    TokenizerError
        There is one, but it has no fast (declared) form.
    """
    folder = checkpoint_of(path, name=name, revision=revision)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, revision=revision, trust_remote_code=False
        )
    except Exception as error:  # transformers and tokenizers raise plain Exception for bad files
        there = [file.name for file in Path(folder).iterdir()] if Path(folder).is_dir() else None
        if there is not None and not any(map(_OF_TOKENIZERS.search, there)):
            raise ModelLoadError(f"the {name}'s folder {path} holds no tokenizer") from error
        raise ModelLoadError(
            f"cannot load the {name}'s tokenizer from {path}: {_reason(error)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(
            f"the {name}'s tokenizer ({type(tokenizer).__name__}) has no tokenizer.json; "
            "convert it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    return tokenizer


def load_generation_config(path: str, revision: str | None = None) -> Any:
    """Load a model's generation config; None where there is none."""
    try:
        return GenerationConfig.from_pretrained(path, revision=revision)
    except (OSError, ValueError):
        return None


def load_weights(name: str, config: RoleConfig) -> Any:
    """Load the causal LM of a role, its adapter on top, on its device.

    Raises
    ------
    ModelLoadError
        What cannot be loaded, and why.
    """
    path = checkpoint_of(str(config.model), name=name, revision=config.revision)
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
    except ModelLoadError:
        raise
    except Exception as error:  # every library on the way has exceptions of its own
        raise ModelLoadError(
            f"cannot load the {name} from {config.model}: {_reason(error)}"
        ) from error
    if config.adapter is not None:
        model = _with_adapter(model, config.adapter, name)
    if "device_map" in keywords:
        return model
    try:
        return model.to(device)
    except Exception as error:  # torch's own are many
        raise ModelLoadError(f"cannot put the {name} on {device}: {_reason(error)}") from error


def load_window(name: str, config: RoleConfig) -> int | None:
    """Read how many positions a role's model has, without its weights; see ``window_of``.

    Raises
    ------
    ModelLoadError
        Nothing there, or no configuration of a model.
    """
    path = checkpoint_of(str(config.model), name=name, revision=config.revision)
    try:
        found = AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=False)
    except Exception as error:  # every library on the way has exceptions of its own
        raise ModelLoadError(
            f"cannot load the {name} from {config.model}: {_reason(error)}"
        ) from error
    return window_of(found.get_text_config())


def _peft_for(adapter: str) -> Any:
    try:
        import peft
    except ImportError as error:
        raise ModelLoadError(
            f"adapter {adapter} needs the peft package: {how_to_install('adapters')}"
        ) from error
    return peft


def _with_adapter(model: Any, adapter: str, name: str) -> Any:
    peft = _peft_for(adapter)
    _check_adapter(adapter)
    try:
        rows = _embedding_rows(peft.load_peft_weights(adapter, device="cpu"))
        if rows is not None and rows != model.get_input_embeddings().weight.shape[0]:
            # What the new rows hold is read from the adapter next.
            model.resize_token_embeddings(rows, mean_resizing=False)
        adapted = peft.PeftModel.from_pretrained(model, adapter)
        if adapted.active_peft_config.is_prompt_learning:
            raise ModelLoadError("it is a learnt prompt, which is none of the model's weights")
        # Beside the weights it costs more than it holds: small products, casts, kernels. Into
        # narrow or quantised weights a small change would be rounded away.
        narrow = model.dtype != torch.float32 or getattr(model, "hf_quantizer", None) is not None
        merges = hasattr(adapted, "merge_and_unload") and not narrow
        return adapted.merge_and_unload() if merges else adapted.get_base_model()
    except Exception as error:  # every library on the way has exceptions of its own
        raise ModelLoadError(
            f"cannot put adapter {adapter} on the {name}: {_reason(error)}"
        ) from error


def _embedding_rows(weights: dict[str, Any]) -> int | None:
    """Return how many tokens the embeddings have that an adapter brings; None for none."""
    ends = ("embed_tokens.weight", "lm_head.weight", "wte.weight", "embed_in.weight")
    found = (len(tensor) for key, tensor in weights.items() if key.endswith(ends))
    return next(found, None)


def _check_adapter(adapter: str, revision: str | None = None) -> None:
    """Refuse what peft takes: a pickle where there is nothing else, the name of a module to run."""
    if not _found(adapter, "adapter_model.safetensors", revision):
        raise ModelLoadError(
            f"adapter {adapter} has no adapter_model.safetensors; a pickle (adapter_model.bin) is "
            "not loaded: load it with peft where you trust it, and save_pretrained() it again"
        )
    described = _found(adapter, "adapter_config.json", revision)
    try:
        settings = {} if described is None else json.loads(Path(described).read_bytes())
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"adapter {adapter}: no adapter_config.json: {error}") from error
    # Older versions of peft import whatever module an adapter names there.
    if not isinstance(settings, dict) or settings.get("megatron_config"):
        raise ModelLoadError(
            f"adapter {adapter} has a megatron_config, with which it names a module to import"
        )


def _found(source: str, name: str, revision: str | None) -> str | None:
    # A missing file, and what cannot be asked for, is None; the loader behind says the latter.
    found: str | None = cached_file(
        source,
        name,
        revision=revision,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return found


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


def _reason(error: BaseException) -> str:
    """Return all that an error says, as one line."""
    said = " ".join(str(error).split()) or type(error).__name__
    return said if len(said) <= _REASON_LENGTH else f"{said[:_REASON_LENGTH]} ..."
