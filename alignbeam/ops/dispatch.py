"""Which backend runs an op on a device, and why."""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from alignbeam.errors import BackendUnavailable
from alignbeam.ops.spec import MixResult, check_mix_topk

_log = logging.getLogger(__name__)

Run = Callable[..., MixResult]


class BackendStatus(NamedTuple):
    """One line of `backends`."""

    name: str
    device: str
    available: bool
    detail: str
    """What it is, or why it cannot run and what mends it."""


@dataclass(frozen=True)
class Backend:
    """A backend by name: where its function lives, and what keeps it from running."""

    name: str
    module: str
    function: str
    reason: Callable[[str], str | None]
    """Given a device type: None if it can run there; else why not, and what mends it."""
    detail: Callable[[], str]
    checks: bool = False
    """Whether the function checks its arguments itself; for the others, `load` does it."""

    def load(self) -> Run:
        """Import the backend's function."""
        run = cast("Run", getattr(import_module(self.module), self.function))
        return run if self.checks else _checked(run)


def _checked(run: Run) -> Run:
    @functools.wraps(run)
    def check_and_run(
        anchor_logits: Tensor, target_logits: Tensor, table: Tensor, **options: Any
    ) -> MixResult:
        check_mix_topk(anchor_logits, target_logits, table, **options)
        return run(anchor_logits, target_logits, table, **options)

    return check_and_run


def _no_gpu(device: str) -> str | None:
    if device == "cuda" and not torch.cuda.is_available():
        return "torch sees no GPU"
    return None


def _cpu_reason(device: str) -> str | None:
    from alignbeam.ops import build

    if device != "cpu":
        return "it takes tensors on cpu only"
    return build.cpu_extension().reason


def _cpu_detail() -> str:
    from alignbeam.ops import build

    extension = build.cpu_extension()
    return f"C++ ({extension.require().cpu_isa()}), {extension.origin}"


def _cuda_reason(device: str) -> str | None:
    from alignbeam.ops import build

    if device != "cuda":
        return "it takes tensors on cuda only"
    return _no_gpu(device) or build.gpu_extension(torch.cuda.get_device_capability()).reason


def _cuda_detail() -> str:
    from alignbeam.ops import build

    extension = build.gpu_extension(torch.cuda.get_device_capability())
    return f"CUDA ({extension.require().cuda_archs}), {extension.origin}"


def _triton_reason(device: str) -> str | None:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device not in (("cuda", "cpu") if interpreted else ("cuda",)):
        return "it takes tensors on cuda only (on cpu, for tests, under TRITON_INTERPRET=1)"
    if find_spec("triton") is None:
        return "triton is not installed; pip install triton"
    return _no_gpu(device)


_BACKENDS = {
    backend.name: backend
    for backend in (
        Backend(
            "cpu", "alignbeam.ops.native", "mix_topk_cpu", _cpu_reason, _cpu_detail, checks=True
        ),
        Backend(
            "cuda", "alignbeam.ops.native", "mix_topk_cuda", _cuda_reason, _cuda_detail, checks=True
        ),
        Backend(
            "triton",
            "alignbeam.ops.triton_kernels",
            "mix_topk",
            _triton_reason,
            lambda: f"Triton {version('triton')}",
        ),
        Backend(
            "reference",
            "alignbeam.ops.reference",
            "mix_topk",
            _no_gpu,
            lambda: "torch in float64: the definition, slow",
        ),
    )
}

# What "auto" tries, by bench/results/mix_topk_cpu.jsonl and mix_topk_cuda.jsonl.
_ORDER = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}
_ANYWHERE = ("reference",)


def backends() -> list[BackendStatus]:
    """List the backends of each device in the order "auto" tries them; what `doctor` prints.

    Builds or loads what a call would build or load, so that the answer is the truth.
    """
    lines = []
    for device, names in _ORDER.items():
        for name in names:
            backend = _BACKENDS[name]
            reason = backend.reason(device)
            detail = backend.detail() if reason is None else reason
            lines.append(BackendStatus(name, device, reason is None, detail))
    return lines


@functools.lru_cache(maxsize=64)
def resolve(device: str, requested: str = "auto") -> Run:
    """Return the function to call for tensors on ``device`` ("cpu", "cuda", ...).

    Raises
    ------
    ValueError
        ``requested`` is not a backend's name.
    BackendUnavailable
        ``requested`` cannot run here.
    """
    if requested != "auto":
        if requested not in _BACKENDS:
            names = ", ".join(["auto", *_BACKENDS])
            raise ValueError(f"mix_topk: backend must be one of {names}, got {requested!r}")
        backend = _BACKENDS[requested]
        reason = backend.reason(device)
        if reason is not None:
            raise BackendUnavailable(
                f"mix_topk: backend {requested!r} cannot run on {device}: {reason}"
            )
        return backend.load()
    for name in _ORDER.get(device, _ANYWHERE):
        reason = _BACKENDS[name].reason(device)
        if reason is None:
            return _BACKENDS[name].load()
        _log.warning("mix_topk: backend %r cannot run on %s: %s", name, device, reason)
    raise BackendUnavailable(f"mix_topk: no backend can run on {device}")
