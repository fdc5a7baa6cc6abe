"""Fit a ``HarmProbe``: ridge logistic regression on a layer's states, calibrated out of fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from alignbeam.decoding.probe import HarmProbe, States
from alignbeam.errors import ConfigError
from alignbeam.eval.stats import auroc
from alignbeam.models.role import Role

#: Requests of each kind below which nothing can be said of others.
LEAST: Final = 20
_FOLDS: Final = 5
_RIDGE: Final = 0.1
_CHUNK: Final = 16
_STEPS: Final = 100
#: What counts as flat.
_FLAT: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Fitted:
    """A probe, and how well it tells requests apart that it was not fitted to."""

    probe: HarmProbe
    auroc: float


def fit_probe(
    role: Role,
    harmful: Sequence[str],
    harmless: Sequence[str],
    layer: int | None = None,
    told: Callable[[int, int], object] = lambda done, all_of_them: None,
) -> Fitted:
    """Fit a probe to requests of one user turn each.

    Parameters
    ----------
    role : Role
        Target or anchor, with the system prompt it is to be used with.
    harmful, harmless : sequence of str
        ``LEAST`` or more of each, and like what will be asked: harmless ones that look harmful
        are what a probe learns most from.
    layer : int or None
        None is the middle one.
    told : callable
        Given how many requests were read, and of how many.

    Raises
    ------
    ConfigError
        Too few requests, or no such layer.
    """
    if min(len(harmful), len(harmless)) < LEAST:
        raise ConfigError(
            f"a probe takes {LEAST} requests or more of each kind, got {len(harmful)} harmful and "
            f"{len(harmless)} harmless ones"
        )
    count = role.model.config.get_text_config().num_hidden_layers
    states = States(role, (count + 1) // 2 if layer is None else layer)
    requests = [*harmful, *harmless]
    read: list[Tensor] = []
    for start in range(0, len(requests), _CHUNK):
        chunk = requests[start : start + _CHUNK]
        ids = [role.render([{"role": "user", "content": text}]) for text in chunk]
        read.append(states.after(ids))
        told(min(start + _CHUNK, len(requests)), len(requests))
    x = torch.cat(read).double()
    y = torch.tensor([1.0] * len(harmful) + [0.0] * len(harmless), dtype=torch.double)
    weight, bias, apart = fit(x, y)
    return Fitted(HarmProbe(states, weight, bias), apart)


def fit(x: Tensor, y: Tensor) -> tuple[Tensor, float, float]:
    """Return weight [d], bias and out-of-fold AUROC for states x [n, d] and labels y [n] 0/1."""
    mean, scale = x.mean(0), x.std(0) + 1e-3
    x = (x - mean) / scale
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    margins = torch.empty_like(y)
    for fold in range(_FOLDS):
        left_out = order[fold::_FOLDS]
        rest = torch.cat([order[n::_FOLDS] for n in range(_FOLDS) if n != fold])
        margins[left_out] = _logistic(x[rest], y[rest], _RIDGE)(x[left_out])
    # J. Platt (1999): targets a little inside 0 and 1, or what is separable knows no doubt.
    ones = float(y.sum())
    inside = torch.where(y > 0, (ones + 1) / (ones + 2), 1 / (len(y) - ones + 2))
    line = _logistic(margins[:, None], inside, 0.0)
    slope, offset = line.weight[0], line.bias
    whole = _logistic(x, y, _RIDGE)
    weight = slope * whole.weight / scale
    bias = slope * whole.bias + offset - weight @ mean
    apart = auroc(margins[y > 0].tolist(), margins[y == 0].tolist())
    return weight.float(), float(bias), apart


@dataclass(frozen=True, slots=True)
class _Line:
    weight: Tensor
    bias: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def _logistic(x: Tensor, y: Tensor, ridge: float) -> _Line:
    """Return the minimiser of the mean cross-entropy and ``ridge |w|^2``, by Newton's method."""
    n = len(y)
    x = torch.cat([x, torch.ones(n, 1, dtype=x.dtype)], 1)
    penalty = torch.full((x.shape[1],), 2 * ridge, dtype=x.dtype)
    penalty[-1] = 0.0
    line = torch.zeros(x.shape[1], dtype=x.dtype)

    def loss(at: Tensor) -> Tensor:
        fits = torch.nn.functional.binary_cross_entropy_with_logits(x @ at, y)
        return fits + (penalty * at * at).sum() / 2

    now = loss(line)
    for _ in range(_STEPS):
        p = torch.sigmoid(x @ line)
        gradient = x.T @ (p - y) / n + penalty * line
        curve = (x * (p * (1 - p) / n)[:, None]).T @ x + torch.diag(penalty + _FLAT)
        step = torch.linalg.solve(curve, gradient)
        while (then := loss(line - step)) > now and step.abs().max() > _FLAT:
            step = step / 2
        line, before, now = line - step, now, then
        if before - now < _FLAT:
            break
    return _Line(line[:-1], line[-1])
