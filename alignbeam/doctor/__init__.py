"""What to know of two models before they are deployed together: ``examine`` tells."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from alignbeam.config import Settings
from alignbeam.decoding.probe import HarmProbe, WeighedJudge
from alignbeam.doctor.canaries import canary_findings, canary_rows, judge_of
from alignbeam.doctor.memory import forecast
from alignbeam.doctor.report import (
    BackendRow,
    CanaryRow,
    Finding,
    KindRow,
    Level,
    OpeningRow,
    Report,
    SurvivalRow,
)
from alignbeam.doctor.samples import CANARIES, INJECTED
from alignbeam.doctor.side import Side, open_side, weights_folder
from alignbeam.doctor.survival import ATTACKS, survival_findings, survival_rows
from alignbeam.doctor.translation import (
    FALLBACKS,
    coverage_rows,
    opening_rows,
    translated_share,
)
from alignbeam.engines.roles import refuse_engines
from alignbeam.errors import ConfigError
from alignbeam.vocab.bridge import Bridge, Fallback

__all__ = ["Finding", "Report", "examine"]

#: Shares of the anchor (of its text's tokens, and of its probability) that must translate: a
#: judgement. Below the first, most steps lose what the anchor wanted.
UNSAFE_BELOW = 0.6
WARN_BELOW = 0.8

#: Below this share of whole refusal openings, steering towards a refusal cannot be relied on.
OPENINGS_UNSAFE_BELOW = 0.25


def examine(
    settings: Settings | None = None,
    *,
    load: bool | None = None,
    length: int = 2048,
    told: Callable[[str], object] = lambda words: None,
) -> Report:
    """Look at a target, an anchor and, if named, a judge.

    Parameters
    ----------
    settings : Settings or None
        As an answer would have them. A model is a folder (a tokenizer alone is enough) or hub id;
        target and anchor without one: the embedded trio, judge included. No judge named beside
        other models: none is looked at.
    load : bool or None
        Load the anchor's weights (for coverage by mass) and the judge's (for its canaries). None
        loads them for the embedded trio only.
    length : int
        Positions for the memory forecast.
    told : callable
        Given what is done now, in words: a judge on a CPU takes minutes.

    Raises
    ------
    ConfigError
        Only one of target and anchor is named.
    ModelLoadError, TokenizerError, BridgeError
        Something cannot be read, or the pair cannot be served at all.
    """
    settings = Settings() if settings is None else settings
    roles = {name: getattr(settings, name) for name in ("target", "anchor", "judge")}
    refuse_engines(roles, "alignbeam doctor")
    if (settings.target.model is None) != (settings.anchor.model is None):
        raise ConfigError("name both the target and the anchor, or neither for the embedded trio")
    embedded = settings.target.model is None
    load = embedded if load is None else load
    config = settings.beam
    weighed = load and settings.judge.probe is not None
    target_side = open_side("target", settings.target, load=weighed)
    anchor_side = open_side("anchor", settings.anchor, load=load)
    sides = [target_side, anchor_side]
    canaries: tuple[CanaryRow, ...] = ()
    survival: tuple[SurvivalRow, ...] = ()
    if embedded or settings.judge.model is not None:
        sides.append(open_side("judge", settings.judge, load=load))
        judge = judge_of(sides[-1], settings.judge)
        if judge is not None:
            if settings.judge.probe is not None:  # what stands between a candidate and its reader
                roles_here = [side.role for side in sides[:2]]
                judge = WeighedJudge(judge, HarmProbe.load(settings.judge.probe, roles_here))
            told("asking the judge about canaries")
            canaries = canary_rows(judge)
            for row in survival_rows(judge, config.threshold, (*CANARIES, INJECTED)):
                survival += (row,)
                told(f"asking the judge, {len(survival)} of {len(ATTACKS)} kinds of attack done")
    told("building the bridge, and measuring it")
    bridge = Bridge.build(anchor_side.vocabulary, target_side.vocabulary, config.fallback)
    coverage = coverage_rows(bridge, anchor_side)
    openings = opening_rows(bridge, anchor_side.vocabulary, target_side.vocabulary)
    backends = backend_rows()
    findings = [
        *_side_findings(sides),
        *_pair_findings(target_side, anchor_side),
        *_coverage_findings(bridge, coverage),
        *_opening_findings(openings, config.fallback),
        *_backend_findings(backends),
        *canary_findings(canaries, config.threshold),
        *survival_findings(survival),
        *_cache_findings(bridge, anchor_side, target_side),
    ]
    if not canaries:
        findings.append(
            Finding("note", "judge", "not tried: name one with --judge and load it with --load")
        )
    return Report(
        sides=tuple(side.report() for side in sides),
        coverage=coverage,
        fallback=config.fallback,
        openings=openings,
        backends=backends,
        memory=tuple(
            forecast(
                side.name,
                side.config,
                weights_folder(getattr(settings, side.name), side.name),
                rows=config.rows,
                length=length,
            )
            for side in sides
        ),
        canaries=canaries,
        survival=survival,
        bridge=bridge.fingerprint,
        findings=tuple(findings),
    )


def backend_rows() -> tuple[BackendRow, ...]:
    """Return every kernel backend, and why one is not available."""
    from alignbeam.ops import backends

    return tuple(
        BackendRow(str(name), str(device), bool(available), str(reason or ""))
        for name, device, available, reason in backends()
    )


def _side_findings(sides: list[Side]) -> Iterator[Finding]:
    for side in sides:
        if not side.vocabulary.end_ids:
            yield Finding(
                "unsafe",
                side.name,
                "nothing names an end token, so its answers would never end: set eos_token_id in "
                "generation_config.json",
            )
        if not side.has_template:
            yield Finding(
                "warn",
                side.name,
                "no chat template: the plain 'User: ... Assistant:' form is used; set "
                f"{side.name}.chat_template if the model was trained on another",
            )
        if side.folded:
            yield Finding(
                "note",
                side.name,
                f"the chat template does not take {', or '.join(side.folded)}: the text is put "
                "into a turn that it takes",
            )
        if side.refused:
            yield Finding(
                "warn",
                side.name,
                f"the chat template does not take {', or '.join(side.refused)}: requests with it "
                f"fail; {side.name}.fold_turns = true puts the text into a turn that it takes",
            )


def _pair_findings(target: Side, anchor: Side) -> Iterator[Finding]:
    if target.source == anchor.source:
        yield Finding(
            "warn", "pair", "target and anchor are the same model: nothing would be steered"
        )


def _cache_findings(bridge: Bridge, anchor: Side, target: Side) -> Iterator[Finding]:
    """Compare the tables in use, which may come from the cache, with the same built anew."""
    anew = Bridge.build(anchor.vocabulary, target.vocabulary, bridge.fallback, cache_dir=False)
    if anew.fingerprint != bridge.fingerprint:
        yield Finding(
            "unsafe",
            "bridge",
            f"the cached tables (fingerprint {bridge.fingerprint[:16]}) are not those of this pair "
            f"({anew.fingerprint[:16]}): delete the cache's bridges, and find out who wrote them",
        )


def _coverage_findings(bridge: Bridge, rows: tuple[KindRow, ...]) -> Iterator[Finding]:
    of_text, of_mass = translated_share(bridge, rows)
    named = [("of the anchor's tokens in the sample text", of_text)]
    if of_mass is None:
        yield Finding(
            "note", "coverage", "by probability: not measured, as it needs the anchor (--load)"
        )
    else:
        named.append(("of the anchor's probability", of_mass))
    advice = "" if bridge.fallback == "prefix" else "; try --set fallback=prefix"
    for what, share in named:
        text = f"{100 * share:.1f} % {what} translate under fallback {bridge.fallback!r}"
        if share < UNSAFE_BELOW:
            yield Finding("unsafe", "coverage", f"only {text}{advice}")
        elif share < WARN_BELOW:
            yield Finding("warn", "coverage", f"only {text}")


def _opening_findings(rows: tuple[OpeningRow, ...], fallback: Fallback) -> Iterator[Finding]:
    lost = [row.text for row in rows if row.lost_at[fallback] is not None]
    if not lost:
        return
    level: Level = "warn"
    if len(rows) - len(lost) < OPENINGS_UNSAFE_BELOW * len(rows):
        level = "unsafe"
    kept_by = {name: sum(row.lost_at[name] is None for row in rows) for name in FALLBACKS}
    best = max(FALLBACKS, key=kept_by.__getitem__)
    advice = (
        f"; --set fallback={best} keeps {kept_by[best]}"
        if kept_by[best] > kept_by[fallback]
        else ""
    )
    yield Finding(
        level,
        "refusals",
        f"{len(lost)} of {len(rows)} usual refusal openings do not survive translation whole under "
        f"fallback {fallback!r} ({', '.join(lost)}){advice}",
    )


def _backend_findings(rows: tuple[BackendRow, ...]) -> Iterator[Finding]:
    if not any(row.available and row.name != "reference" for row in rows):
        yield Finding(
            "warn", "backends", "only the slow reference is available; the table says what mends it"
        )
