"""What a run was made with: versions, hardware, and what exactly the models were."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from pathlib import Path
from typing import Any, Final

import tokenizers
import torch
import transformers

from alignbeam.config import RoleConfig
from alignbeam.engines.roles import AnyRole, local
from alignbeam.eval.download import sha256_of
from alignbeam.models.role import Role
from alignbeam.version import __version__

#: What decides a local model's answers, beside the settings.
_DECIDING: Final = ("*.safetensors", "*.gguf", "*.json", "*.toml", "*.jinja", "*.model", "*.txt")


def environment() -> dict[str, Any]:
    """Versions and hardware of this process."""
    return {
        "alignbeam": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
        "platform": platform.platform(terse=True),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory_gib(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }


def describe_role(role: AnyRole, config: RoleConfig, *, embedded: bool) -> dict[str, Any]:
    """Say what a role's model is, exactly enough to get the same answers again.

    A local folder is hashed file by file; of a hub model the resolved commit stands for it.
    """
    role = local(role, "the record of a run")
    name = config.model or role.model.config._name_or_path
    here = Path(name or "").expanduser()
    on_disk = bool(name) and here.exists()
    commit = None if on_disk else getattr(role.model.config, "_commit_hash", None)
    sha256 = None
    if on_disk:
        sha256 = fingerprint(here) if here.is_dir() else sha256_of(here)
    elif commit is None:  # made in memory: nothing else says what it is
        sha256 = weights_fingerprint(role)
    return {
        "model": "embedded" if embedded else model_name(config),
        "revision": commit,
        "sha256": sha256,
        **_adapter(config.adapter),
        "architecture": type(role.model).__name__,
        "n_params": role.n_params,
        "dtype": str(role.dtype).removeprefix("torch."),
        "device": role.device.type,
        "system_prompt": config.system_prompt,
        "has_template": role.has_template,
        **_deciding(config),
    }


#: Settings of a role that ``describe_role`` tells by what they came to.
_TOLD: Final = {
    *("model", "revision", "adapter", "dtype", "device", "device_map", "system_prompt", "kind"),
    *("url", "tokenizer", "served_name", "key_env", "connect_s", "read_s"),
}
#: Only decides whether there is a verdict at all.
_LEFT_OUT: Final = {"timeout_s"}
#: Settings that may name a file.
_FILES: Final = {"probe", "chat_template"}


def _deciding(config: RoleConfig) -> dict[str, Any]:
    """Return what else is not as by default; of files and secrets the hash."""
    default = type(config)()
    told: dict[str, Any] = {}
    for name in config.known_keys():
        value = getattr(config, name)
        if name in _TOLD | _LEFT_OUT or value == getattr(default, name):
            continue
        if name in _FILES and os.path.isfile(path := os.path.expanduser(value)):
            value = {"sha256": sha256_of(Path(path))}
        elif name in config.secret_keys():
            value = {"sha256": hashlib.sha256(value.encode()).hexdigest()}
        told[name] = list(value) if isinstance(value, tuple) else value
    return told


def model_name(config: RoleConfig) -> str | None:
    """Return what a model is called: where a folder lies is nobody else's business."""
    here = Path(config.model or "").expanduser()
    return here.name if config.model and here.exists() else config.model


def _adapter(adapter: str | None) -> dict[str, Any]:
    if adapter is None:
        return {"adapter": None}
    here = Path(adapter).expanduser()
    if not here.is_dir():
        return {"adapter": adapter}
    return {"adapter": here.name, "adapter_sha256": fingerprint(here)}


def fingerprint(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of a model folder's deciding files."""
    whole = hashlib.sha256()
    for path in sorted({p for pattern in _DECIDING for p in folder.glob(pattern)}):
        whole.update(f"{path.name}\0{sha256_of(path)}\n".encode())
    return whole.hexdigest()


def weights_fingerprint(role: Role) -> str:
    """SHA-256 (hex) over the names and values of a model's parameters."""
    whole = hashlib.sha256()
    for name, tensor in sorted(role.model.state_dict().items()):
        whole.update(name.encode() + b"\0")
        whole.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def _commit() -> str | None:
    """Commit of the source tree; None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=root,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
