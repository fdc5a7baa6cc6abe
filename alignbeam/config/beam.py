"""The table ``[beam]``: how one request is answered."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from alignbeam.config.checked import CheckedSettings, Range
from alignbeam.errors import ConfigError

#: K rows of KV cache are kept per request; more than this is a mistake, or an attack.
MAX_BEAMS = 8

Share = Annotated[float, Range(0, 1)]
#: A harm score, from harmless to worst.
Harm = Annotated[float, Range(1, 5)]
#: A difference of two harm scores.
Margin = Annotated[float, Range(0, 4)]
Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
#: How many of the anchor's best tokens are translated.
AnchorTokens = Annotated[int, Range(1, 256)]
BeamCount = Annotated[int, Range(1, MAX_BEAMS)]


@dataclass(frozen=True, kw_only=True)
class BeamConfig(CheckedSettings):
    """How one request is answered.

    Attributes
    ----------
    alpha : float
        Weight of the anchor in the mix, 0..1.
    mix_steps : int
        N, how many generated tokens are mixed, the priming one included; 0 leaves the target
        alone.
    beams : int
        K, how many candidates are completed and judged, 1..8.
    top_b : int
        B, how many of the anchor's next tokens are translated each step, 1..256.
    mix : {"linear", "log"}
        Weighted mean of probabilities (the paper), or of log-probabilities.
    support : {"anchor", "union"}
        Only translated tokens may be chosen (the paper), or every target token.
    fallback : {"drop", "first", "exact", "prefix"}
        What becomes of anchor tokens without a byte-identical target token (``Bridge``).
    compensate : bool
        Give the anchor ``alpha`` of the mix even where little of what it says translates, or little
        of what the target says is in the support; for ``mix="linear"``, at a second call of the op.
    threshold : float
        A candidate whose score is at most this may be shown, 1..5.
    tie_margin : float
        Scores this close to the lowest count as equal to it, 0..4. An expected value over five
        levels differs a little between any two texts; what it differs by is no judgement. 0
        compares scores as they are.
    on_unsafe : {"refuse", "safest", "raise"}
        When no candidate passes: answer ``refusal_text``, return the lowest score all the same
        (as far as it is a real verdict), or raise ``UnsafeAnswer`` (which a server answers like
        ``"refuse"``).
    unsteered : bool
        One candidate more: what the target says by itself. It may be shown only where the judge
        finds it clearly safe.
    unsteered_threshold : float
        Up to which score that is, 1..5; ``threshold`` where that is lower.
    request_threshold : float
        The probability that the request is harmful, 0..1, above which nothing but the lowest
        score counts. Only some judges tell it (``Verdict.request_harm``).
    selection : {"safest", "least_steered"}
        Of the candidates that pass: the lowest score (the paper), or what the target says by
        itself (where ``unsteered`` has it asked), else the one that departs least from that.
    early_every : int
        Tokens after which the judge looks at what the candidates have become, and gives up those
        that cannot win; 0 looks at finished candidates only (the paper). Only for a target in
        this process.
    early_safe, early_harm : float
        Scores of a beginning that is clearly harmless (at most), and clearly harmful (above),
        1..5.
    early_margin : float
        A candidate is given up where its beginning scores this much above the lowest, 0..4.
    refusal_text : str
        The fixed refusal.
    max_new_tokens : int
        Longest answer, in target tokens; shorter where the target's window ends first.
    temperature : float
        0 is greedy; above, tokens after the mixed ones are sampled.
    top_p, top_k : float, int
        Nucleus and top-k filters of the sampling; 1 and 0 switch them off.
    seed : int
        Each beam draws from its own generator, made of this and the beam's index.
    stop : tuple of str
        Strings that end an answer; they are not part of it.
    stop_ends : bool
        Whether a stop string also ends the decoding, which is cheaper. Else the answer is decoded
        and judged as if there were none, and cut then: nothing but the cut depends on it.
    backend : str
        Kernel backend of ``mix_topk``.
    wishes : int
        How many tokens of each model a step's trace keeps; 0 keeps no trace.
    """

    alpha: Share = 0.5
    mix_steps: Whole = 6
    beams: BeamCount = 3
    top_b: AnchorTokens = 50
    mix: Literal["linear", "log"] = "linear"
    support: Literal["anchor", "union"] = "anchor"
    fallback: Literal["drop", "first", "exact", "prefix"] = "drop"
    compensate: bool = False
    threshold: Harm = 2.5
    tie_margin: Margin = 0.25
    on_unsafe: Literal["refuse", "safest", "raise"] = "refuse"
    unsteered: bool = False
    unsteered_threshold: Harm = 1.5
    request_threshold: Share = 0.5
    selection: Literal["safest", "least_steered"] = "safest"
    early_every: Whole = 0
    early_safe: Harm = 1.2
    early_harm: Harm = 4.5
    early_margin: Margin = 1.0
    refusal_text: str = "I'm sorry, but I can't help with that."
    max_new_tokens: Count = 256
    temperature: Annotated[float, Range(0, 100)] = 0.0
    top_p: Share = 1.0
    top_k: Whole = 0
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    stop: tuple[str, ...] = ()
    stop_ends: bool = True
    backend: Literal["auto", "cpu", "cuda", "triton", "reference"] = "auto"
    wishes: Annotated[int, Range(0, 20)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p == 0:
            raise ConfigError("top_p must be above 0; for greedy decoding set temperature = 0")
        if self.mix_steps > self.max_new_tokens:
            raise ConfigError(
                f"mix_steps ({self.mix_steps}) must not exceed max_new_tokens "
                f"({self.max_new_tokens}); lower the one or raise the other"
            )
        if self.early_safe > self.early_harm:
            raise ConfigError(
                f"early_safe ({self.early_safe}) must not exceed early_harm ({self.early_harm}): "
                "a beginning would be both; lower the one or raise the other"
            )
        if any("\ud800" <= letter <= "\udfff" for stop in self.stop for letter in stop):
            raise ConfigError("stop holds a lone surrogate, which no answer can hold; remove it")
        if not self.refusal_text.strip():
            raise ConfigError("refusal_text must say something: it is what a refused user gets")

    @property
    def rows(self) -> int:
        """Most candidates of a request, each with a row of the target's cache."""
        return self.beams + (self.unsteered and self.mix_steps > 0)
