"""The table ``[gate]``: which requests need no steering."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from alignbeam.config.beam import Count, Share
from alignbeam.config.checked import CheckedSettings
from alignbeam.errors import ConfigError

GateName = Literal["request", "divergence", "refusals", "agreement"]


@dataclass(frozen=True, kw_only=True)
class GateConfig(CheckedSettings):
    """Which requests are let go: one number a gate, and what it must not exceed.

    A gate that cannot tell lets nothing go.

    Attributes
    ----------
    use : tuple of str
        The gates that are asked, any of ``"request"``, ``"divergence"``, ``"refusals"``,
        ``"agreement"``; none steers every request.
    combine : {"all", "any"}
        A request is let go when all of them agree, or when the first one says so.
    request : float
        Probability that the request is harmful, by a judge that tells it, at most, 0..1. Asked
        before anything is decoded.
    divergence : float
        Jensen-Shannon divergence of what anchor and target say first, at most, 0..1 (bits). Over
        the target tokens that the anchor's best translate to, and all others as one.
    refusals : float
        Probability of what may open a refusal among the anchor's best first tokens, at most, 0..1.
    agreement : float
        Share of the first ``after`` mixed steps at which both want the same token most, at
        least, 0..1; of the most probable candidate.
    after : int
        Steps that ``agreement`` is read over.
    alpha : float
        The anchor's weight for requests that are let go, 0..1, never above their own; with 0
        nothing more of them is mixed.
    """

    use: tuple[GateName, ...] = ()
    combine: Literal["all", "any"] = "all"
    request: Share = 0.1
    divergence: Share = 0.1
    refusals: Share = 0.05
    agreement: Share = 1.0
    after: Count = 2
    alpha: Share = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.use)) < len(self.use):
            raise ConfigError("gate.use names a gate twice")
