"""The op in obvious torch and float64: the definition that every backend is held against."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from alignbeam.ops.spec import Flags, MixResult

_NEVER = float("-inf")


def mix_topk(
    anchor_logits: Tensor,
    target_logits: Tensor,
    table: Tensor,
    *,
    alpha: float | Tensor,
    top_b: int,
    top_k: int,
    mix: str,
    support: str,
) -> MixResult:
    """Define `alignbeam.ops.mix_topk`: arguments already checked, one row at a time, in float64.

    Probabilities are kept as logarithms, so that an unlikely token is unlikely and not impossible.
    """
    rows = anchor_logits.shape[0]
    device = anchor_logits.device
    out = MixResult(
        token_ids=torch.full((rows, top_k), -1, dtype=torch.int64, device=device),
        logprobs=torch.full((rows, top_k), _NEVER, dtype=torch.float32, device=device),
        anchor_mass=torch.full((rows,), math.nan, dtype=torch.float32, device=device),
        translated_mass=torch.full((rows,), math.nan, dtype=torch.float32, device=device),
        target_mass=torch.full((rows,), math.nan, dtype=torch.float32, device=device),
        flags=torch.zeros(rows, dtype=torch.int32, device=device),
    )
    alphas = alpha.tolist() if isinstance(alpha, Tensor) else [as_float32(alpha)] * rows
    for row in range(rows):
        _mix_row(
            out,
            row,
            anchor_logits[row],
            target_logits[row],
            table,
            alphas[row],
            top_b,
            mix,
            support,
        )
    return out


def _mix_row(
    out: MixResult,
    row: int,
    anchor_logits: Tensor,
    target_logits: Tensor,
    table: Tensor,
    alpha: float,
    top_b: int,
    mix: str,
    support: str,
) -> None:
    """Mix one row, ``anchor_logits`` [Va] with ``target_logits`` [Vt], into ``out``."""
    x = anchor_logits.double()
    y = target_logits.double()
    if not (0.0 <= alpha <= 1.0 and _is_distribution(x) and _is_distribution(y)):
        return _refuse(out, row)
    log_p = torch.log_softmax(x, dim=0)
    log_q = torch.log_softmax(y, dim=0)

    top = torch.sort(x, descending=True, stable=True).indices[:top_b]  # T
    to = table[top].long()
    if bool(((to < -1) | (to >= len(y))).any()):
        return _refuse(out, row)
    translated = to >= 0
    out.anchor_mass[row] = log_p[top].exp().sum()
    out.translated_mass[row] = log_p[top][translated].exp().sum()

    log_a = torch.full_like(log_q, _NEVER)
    ids = torch.unique(to[translated])  # S, ascending
    for target_id in ids.tolist():
        log_a[target_id] = torch.logsumexp(log_p[top][to == target_id], dim=0)
    if support == "union":
        ids = torch.arange(len(y), device=y.device)
    out.target_mass[row] = log_q[ids].exp().sum()

    log_f = _log_mix(log_a, log_q, alpha, mix)
    log_total = torch.logsumexp(log_f[ids], dim=0)
    if math.isinf(float(log_total)):  # S is empty, or nothing in it has any probability
        ids = torch.arange(len(y), device=y.device)
        out.flags[row] = int(Flags.EMPTY_SUPPORT)
        alpha, log_f, log_total = 0.0, log_q, torch.zeros_like(log_total)
    # At alpha = 0, F is q and sorts as the logits do, which cannot round two of them into a tie.
    order = y if alpha == 0.0 else log_f
    top_k = out.token_ids.shape[1]
    best = ids[torch.sort(order[ids], descending=True, stable=True).indices[:top_k]]
    out.token_ids[row, : len(best)] = best
    out.logprobs[row, : len(best)] = (log_f[best] - log_total).float()


def _log_mix(log_a: Tensor, log_q: Tensor, alpha: float, mix: str) -> Tensor:
    """Return log f(d) for every target id, float64 [Vt]."""
    if alpha == 0.0:
        return log_q
    if alpha == 1.0:
        return log_a
    if mix == "linear":
        return torch.logaddexp(math.log(alpha) + log_a, math.log1p(-alpha) + log_q)
    return alpha * log_a + (1.0 - alpha) * log_q


def _is_distribution(logits: Tensor) -> bool:
    """Tell whether softmax of ``logits`` exists: no NaN, no +inf, not all -inf."""
    return bool(torch.isfinite(logits.max()))


def _refuse(out: MixResult, row: int) -> None:
    out.logprobs[row] = math.nan
    out.flags[row] = int(Flags.NON_FINITE)


def as_float32(alpha: float) -> float:
    """Round as the backends do, which take alpha as float32."""
    return float(torch.tensor(alpha, dtype=torch.float32))
