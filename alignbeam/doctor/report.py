"""What the doctor found: frozen records, and the verdict that the exit code carries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: ``unsafe`` is what should keep a pair of models from being deployed; ``warn`` deserves a look.
Level = Literal["note", "warn", "unsafe"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing worth saying, with what to do about it."""

    level: Level
    topic: str
    text: str


@dataclass(frozen=True, slots=True)
class SideReport:
    """One tokenizer (and model, where it was at hand).

    Attributes
    ----------
    name, source : str
        The role, and where it was read from.
    tokens, width : int, int or None
        ``len(tokenizer)``, and the logit columns of the head where the configuration tells.
    padded_columns : int
        Logit columns that no token has.
    end_tokens : tuple of str
        What ends an answer; the first is the end of a turn.
    has_template : bool
        Whether the tokenizer declares a chat template.
    opening : str
        What the template puts between the generation prompt and the answer.
    window : int or None
        Positions, where the configuration tells.
    """

    name: str
    source: str
    tokens: int
    width: int | None
    padded_columns: int
    end_tokens: tuple[str, ...]
    has_template: bool
    opening: str
    window: int | None


@dataclass(frozen=True, slots=True)
class KindRow:
    """How much of the anchor falls to one kind of translation.

    Attributes
    ----------
    kind : str
        EXACT, END, SINGLE, MULTI or NONE.
    count, share : int, float
        Anchor logit columns of this kind, and their share of all.
    text_share : float
        Share of the anchor's tokens of the sample text, 0..1.
    mass : float or None
        The anchor's probability on this kind, averaged over positions of the sample answers;
        None where the anchor's weights were not at hand.
    """

    kind: str
    count: int
    share: float
    text_share: float
    mass: float | None


@dataclass(frozen=True, slots=True)
class OpeningRow:
    """Whether one usual refusal opening survives translation, token by token.

    Attributes
    ----------
    text : str
        The opening.
    lost_at : dict of str to (str or None)
        By fallback: the anchor token that does not translate, or None where all do.
    """

    text: str
    lost_at: dict[str, str | None]


@dataclass(frozen=True, slots=True)
class BackendRow:
    """One kernel backend; ``reason`` says why it is not available, and what mends it."""

    name: str
    device: str
    available: bool
    reason: str


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Forecast for one role, in bytes; None where the configuration does not tell.

    Attributes
    ----------
    parameters : int or None
        Counted from the weights' headers, or estimated from the configuration.
    counted : bool
        Whether they were counted.
    weights_bytes : dict of str to int
        By number format.
    cache_bytes : int or None
        KV cache of ``rows`` rows of ``length`` positions, 16-bit numbers.
    rows, length : int
        Rows and positions of that forecast.
    """

    name: str
    parameters: int | None
    counted: bool
    weights_bytes: dict[str, int]
    cache_bytes: int | None
    rows: int
    length: int


@dataclass(frozen=True, slots=True)
class CanaryRow:
    """One case whose score is known beforehand; ``error`` where the judge could not tell."""

    name: str
    score: float
    label_mass: float
    error: str | None


@dataclass(frozen=True, slots=True)
class SurvivalRow:
    """How the judge's canaries fare with one attack around them.

    Attributes
    ----------
    attack : str
        What was written around request and candidate.
    passed, harmful : int
        Harmful canaries that pass, of how many.
    withheld, safe : int
        Safe canaries that do not pass, of how many.
    """

    attack: str
    passed: int
    harmful: int
    withheld: int
    safe: int


@dataclass(frozen=True, slots=True)
class Report:
    """Everything the doctor looked at; ``bridge`` is the fingerprint of the tables in use."""

    sides: tuple[SideReport, ...]
    coverage: tuple[KindRow, ...]
    fallback: str
    openings: tuple[OpeningRow, ...]
    backends: tuple[BackendRow, ...]
    memory: tuple[MemoryRow, ...]
    canaries: tuple[CanaryRow, ...]
    survival: tuple[SurvivalRow, ...]
    bridge: str
    findings: tuple[Finding, ...]

    @property
    def unsafe(self) -> bool:
        """Whether anything found should keep this pair from being deployed."""
        return any(finding.level == "unsafe" for finding in self.findings)
