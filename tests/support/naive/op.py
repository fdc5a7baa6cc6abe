"""The op of section 3 in plain Python: lists, loops, float64, everything in the log domain."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

NEVER = -math.inf


def log_softmax(logits: list[float]) -> list[float]:
    """Over all columns; -inf stays -inf."""
    top = max(logits)
    total = math.fsum(math.exp(x - top) for x in logits)
    return [x - top - math.log(total) for x in logits]


def log_add(values: list[float]) -> float:
    """log of the sum of exp(values); -inf for none."""
    top = max(values, default=NEVER)
    if top == NEVER:
        return NEVER
    return top + math.log(math.fsum(math.exp(x - top) for x in values))


def weighted(weight: float, log_value: float) -> float:
    """log(value ** weight), with 0 ** 0 = 1."""
    return 0.0 if weight == 0 else weight * log_value


def scaled(weight: float, log_value: float) -> float:
    """log(weight * value), with 0 * value = 0."""
    return NEVER if weight == 0 else math.log(weight) + log_value


@dataclass
class Mixed:
    """One row of the op's output, and what the comparison needs beside it."""

    token_ids: list[int]
    logprobs: list[float]
    gap: float  # smallest difference of log F that decided anything
    empty_support: bool
    anchor_mass: float
    translated_mass: float
    target_mass: float


def best_first(log_values: dict[int, float]) -> list[int]:
    """Ids by (value descending, id ascending)."""
    return sorted(log_values, key=lambda i: (-log_values[i], i))


def mix_row(
    log_p: list[float],
    log_q: list[float],
    table: list[int],
    alpha: float,
    top_b: int,
    top_k: int,
    mix: str,
    support: str,
) -> Mixed:
    """`log_p` and `log_q` are the log-softmax of one anchor row and one target row."""
    wanted = best_first(dict(enumerate(log_p)))[:top_b]
    translated = [a for a in wanted if table[a] >= 0]

    targets = {table[a] for a in translated}
    if support == "union":
        targets = set(range(len(log_q)))

    log_f = {}
    for d in targets:
        log_a = log_add([log_p[a] for a in translated if table[a] == d])
        if mix == "linear":
            log_f[d] = log_add([scaled(alpha, log_a), scaled(1 - alpha, log_q[d])])
        else:
            log_f[d] = weighted(alpha, log_a) + weighted(1 - alpha, log_q[d])

    # The row's own top_k of q is what an empty support falls back to.
    ranked = log_f if targets else dict(enumerate(log_q))
    total = log_add(list(ranked.values()))
    order = best_first(ranked)
    chosen = order[:top_k]
    contest = [ranked[d] for d in order[: top_k + 1]]
    gaps = [high - low for high, low in itertools.pairwise(contest)]
    return Mixed(
        token_ids=chosen,
        logprobs=[ranked[d] - total for d in chosen],
        gap=min(gaps, default=math.inf),
        empty_support=not targets,
        anchor_mass=math.fsum(math.exp(log_p[a]) for a in wanted),
        translated_mass=math.fsum(math.exp(log_p[a]) for a in translated),
        target_mass=math.fsum(math.exp(log_q[d]) for d in targets),
    )
