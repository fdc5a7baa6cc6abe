"""One mixed step from numbers: the formula of ``ops.mix_topk`` without either model's logits.

What it needs of the anchor are its ``top_b`` best tokens, of the target the log-probabilities of
the tokens that these translate to, and the target's own best, which answer for all the rest: a
token outside the support is at most as probable in the mix as a better one of the target's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from alignbeam.config import BeamConfig
from alignbeam.decoding.choice import Choice, compensated
from alignbeam.ops.reference import as_float32

#: An id and its log-probability, nats.
Pair = tuple[int, float]

_NEVER = -math.inf


def translate(top: Sequence[Pair], table: Sequence[int]) -> dict[int, float]:
    """Return log a(d) of each target id d that the anchor's best tokens translate to."""
    parts: dict[int, list[float]] = {}
    for token_id, logprob in top:
        if (to := table[token_id]) >= 0:
            parts.setdefault(to, []).append(logprob)
    return {to: log_sum(each) for to, each in parts.items()}


def mix(
    top: Sequence[Pair],
    table: Sequence[int],
    log_q: Mapping[int, float],
    target_best: Callable[[int], list[Pair]],
    config: BeamConfig,
    top_k: int,
) -> Choice:
    """Mix one row.

    Parameters
    ----------
    top : sequence of (id, log p)
        The anchor's ``top_b`` best, by log-probability, of equals the lower id first.
    table : sequence of int [Va]
        As in ``ops.mix_topk``.
    log_q : mapping of int to float
        log q of the target ids that ``top`` translates to.
    target_best : callable
        Given a count, the target's own best ids and their log q.
    config : BeamConfig
        ``alpha``, ``mix``, ``support`` and ``compensate``.
    top_k : int

    Source
    ------
    algorithm.md section 3.
    """
    alpha = as_float32(config.alpha)
    log_a = translate(top, table)
    translated = log_sum([logprob for token_id, logprob in top if table[token_id] >= 0])
    union = config.support == "union"
    target_mass = 1.0 if union else math.fsum(math.exp(log_q[to]) for to in log_a)
    if config.compensate and config.mix == "linear":
        alpha = compensated(alpha, math.exp(translated), target_mass)
    log_f = {to: _log_mix(log_a[to], log_q[to], alpha, config.mix) for to in log_a}
    log_total = log_sum(list(log_f.values()))
    if union and (config.mix == "linear" or alpha == 0.0):
        # Outside the translated set f(d) = (1 - alpha) q(d), and all of q adds up to 1.
        log_total = _log_mix(translated, 0.0, alpha, config.mix)
    empty = log_total == _NEVER
    if empty:
        log_f, log_total = dict(target_best(top_k)), 0.0
    elif union and alpha < 1.0 and (config.mix == "linear" or alpha == 0.0):
        for token_id, value in target_best(top_k):
            log_f.setdefault(token_id, _log_mix(_NEVER, value, alpha, config.mix))
    best = sorted(log_f.items(), key=lambda pair: (-pair[1], pair[0]))[:top_k]
    return Choice(
        token_ids=tuple(token_id for token_id, _ in best),
        logprobs=tuple(value - log_total for _, value in best),
        anchor_mass=math.fsum(math.exp(logprob) for _, logprob in top),
        translated_mass=math.exp(translated),
        target_mass=target_mass,
        alpha=alpha,
        empty_support=empty,
        non_finite=False,
    )


def _log_mix(log_a: float, log_q: float, alpha: float, how: str) -> float:
    """Return log f of one id."""
    if alpha == 0.0:
        return log_q
    if alpha == 1.0:
        return log_a
    if how == "linear":
        return log_sum([math.log(alpha) + log_a, math.log1p(-alpha) + log_q])
    return alpha * log_a + (1.0 - alpha) * log_q


def log_sum(values: Sequence[float]) -> float:
    """Return the log of a sum of exponentials; -inf of none."""
    highest = max(values, default=_NEVER)
    if highest == _NEVER:
        return _NEVER
    return highest + math.log(math.fsum(math.exp(value - highest) for value in values))
