"""Whether a request needs steering: what the gates have read of it, and what follows.

A gate is one number with one threshold; whoever has the number reads it (``Request.weigh``), at
the stage where there is one: before decoding, after the first step, after some steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from alignbeam.config import BeamConfig, GateConfig
from alignbeam.decoding.numbers import Pair, log_sum
from alignbeam.result import GateReading


class Gate:
    """The gates of one request.

    Parameters
    ----------
    config : GateConfig

    Attributes
    ----------
    readings : list of GateReading
        As they came.
    open : bool
        Whether the request was let go.
    agreed : int
        Steps so far at which both models wanted the same token most.
    """

    def __init__(self, config: GateConfig) -> None:
        self.config = config
        self.readings: list[GateReading] = []
        self.open = False
        self.agreed = 0

    def wants(self, name: str) -> bool:
        """Whether this gate is still to be read."""
        return (
            not self.open
            and name in self.config.use
            and all(reading.gate != name for reading in self.readings)
        )

    def read(self, name: str, value: float | None) -> None:
        """Put a number down; None is one that could not be had. See ``open``."""
        threshold: float = getattr(self.config, name)
        number = math.nan if value is None else value
        # NaN is on neither side of a threshold.
        fits = number >= threshold if name == "agreement" else number <= threshold
        self.readings.append(GateReading(name, number, threshold, fits))
        fitting = {reading.gate for reading in self.readings if reading.lets_go}
        whole = set(self.config.use)
        self.open = bool(fitting) if self.config.combine == "any" else fitting == whole

    def relaxed(self, config: BeamConfig) -> BeamConfig:
        """Return the settings of a request that was let go."""
        if self.config.alpha == 0:
            return config.replace(mix_steps=0)
        return config.replace(alpha=min(self.config.alpha, config.alpha))


def divergence(log_p: Mapping[int, float], log_q: Mapping[int, float]) -> float:
    """Return the Jensen-Shannon divergence of two distributions, bits, 0..1.

    ``JS = (KL(p || m) + KL(q || m)) / 2`` with ``m = (p + q) / 2``, over the tokens of ``log_p``
    and one outcome more that stands for all the others.

    Parameters
    ----------
    log_p, log_q : mapping of token to log-probability, nats
        The second has at least the tokens of the first.

    Source: J. Lin, IEEE Transactions on Information Theory 37 (1991).
    """
    ps = [math.exp(log_p[i]) for i in log_p]
    qs = [math.exp(log_q[i]) for i in log_p]
    for shares in (ps, qs):
        shares.append(max(0.0, 1.0 - math.fsum(shares)))
    terms = []
    for p, q in zip(ps, qs, strict=True):
        middle = (p + q) / 2
        terms += [share * math.log2(share / middle) for share in (p, q) if share > 0]
    return min(1.0, max(0.0, math.fsum(terms) / 2))


def mass(pairs: Sequence[Pair], chosen: Sequence[bool]) -> float:
    """Return the probability of the chosen ones."""
    return math.exp(log_sum([value for (_, value), yes in zip(pairs, chosen, strict=True) if yes]))
