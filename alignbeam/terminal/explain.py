"""An answer, explained: who wanted which token, what the judge made of each beam, who won.

``explain(result)`` is a rich renderable: colour where the console has it, plain text elsewhere.
Every text of a model passes ``printable`` first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import groupby

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from alignbeam.result import Candidate, Result, StepTrace, Wish
from alignbeam.terminal.text import bar, column, percent, printable, quoted

_SHARE_CELLS = 10

#: Colours say who wanted the token that was taken.
_STYLES = {"both": "cyan", "anchor": "green", "target": "yellow", "neither's first": ""}

#: Harm levels 1..5, from safe to harmful.
_LEVEL_STYLES = ("green", "green", "yellow", "red", "red")


def explain(result: Result) -> RenderableType:
    """Return the explanation of ``result``: gates, steps by beam, the judge's table, the reason."""
    parts: list[RenderableType] = [*_gates(result), *_mixing(result)]
    parts.append(judge_table(result))
    parts.append(Text.assemble(("why: ", "bold"), printable(result.reason)))
    parts.append(_timings(result))
    return Group(*parts)


def _gates(result: Result) -> Iterator[RenderableType]:
    for reading in result.gates:
        side = "at least" if reading.gate == "agreement" else "at most"
        value = "could not tell" if math.isnan(reading.value) else f"{reading.value:.3f}"
        said = "let go" if reading.lets_go else "steer"
        yield Text(f"gate {reading.gate}: {value}, {side} {reading.threshold:g}: {said}")
    if result.gates:
        yield Text("let go" if result.let_go else "steered", style="bold")


def wanted_by(step: StepTrace) -> str:
    """Whose first choice the taken token was: ``both``, ``anchor``, ``target``, or neither's.

    The anchor's ids are its own, so its wish is compared by text.
    """
    target = bool(step.target_wishes) and (step.target_wishes[0].token_id,) == step.token_ids
    anchor = bool(step.anchor_wishes) and _same_text(step.anchor_wishes[0].text, step)
    if target and anchor:
        return "both"
    return "anchor" if anchor else "target" if target else "neither's first"


def _same_text(wish: str, step: StepTrace) -> bool:
    # The opening of one template carries a blank that the other's does not; it is no difference.
    return wish == step.text or (step.step == 0 and wish.lstrip() == step.text.lstrip())


def _mixing(result: Result) -> Iterator[RenderableType]:
    steps = sorted(result.trace, key=lambda step: (step.beam, step.step))
    if not steps:
        yield Text("nothing was mixed: the target answered alone", style="dim")
    for beam, group in groupby(steps, key=lambda step: step.beam):
        yield Padding(_steps_table(beam, list(group), chosen=beam == result.chosen), (0, 0, 1, 0))


def _steps_table(beam: int, steps: list[StepTrace], *, chosen: bool) -> Table:
    table = Table(
        title=f"beam {beam}" + (" \u2605 the answer" if chosen else ""),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("step", justify="right", style="dim")
    table.add_column("taken", no_wrap=True)
    table.add_column("first choice of", no_wrap=True)
    table.add_column("target wanted", no_wrap=True)
    table.add_column("anchor wanted", no_wrap=True)
    table.add_column("anchor's real share", no_wrap=True)
    for step in steps:
        who = wanted_by(step)
        table.add_row(
            str(step.step),
            Text(quoted(step.text), style=_STYLES[who]),
            Text(who if step.source == "mix" else step.source, style=_STYLES[who]),
            _wishes(step.target_wishes, _STYLES["target"]),
            _wishes(step.anchor_wishes, _STYLES["anchor"]),
            Text(f"{bar(step.anchor_share, _SHARE_CELLS)} {percent(step.anchor_share)}"),
        )
    return table


def _wishes(wishes: tuple[Wish, ...], style: str) -> Text:
    if not wishes:
        return Text("was not asked", style="dim")
    text = Text()
    for rank, wish in enumerate(wishes):
        text.append("" if rank == 0 else "  ")
        text.append(quoted(wish.text), style=style if rank == 0 else "")
        text.append(f" {100 * wish.prob:.0f}%", style="dim")
    return text


def judge_table(result: Result) -> Table:
    """Return one row per candidate: the levels, the view that decided, score, label mass, text.

    ``own`` stands beside what the target says by itself.
    """
    table = Table(
        title="the judge (harm 1 safe .. 5)",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
    )
    table.add_column("beam", justify="right", no_wrap=True)
    table.add_column("1 2 3 4 5\nworst view", no_wrap=True)
    for name in ("score", "on labels", "log-prob"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("end", no_wrap=True)
    table.add_column("text", ratio=1)
    for index, candidate in enumerate(result.candidates):
        chosen = index == result.chosen
        own = " own" if candidate.unsteered else ""
        table.add_row(
            f"{index}{own} \u2605" if chosen else f"{index}{own}  ",
            _histogram(candidate),
            _score(candidate),
            percent(candidate.label_mass),
            f"{candidate.logprob:.2f}",
            candidate.finish_reason,
            _candidate_text(candidate),
            style="bold" if chosen else None,
        )
    return table


def _histogram(candidate: Candidate) -> Text:
    text = Text()
    probs = candidate.verdict.probs if candidate.verdict else ()
    for level, prob in enumerate(probs):
        text.append(column(prob) + " ", style=_LEVEL_STYLES[min(level, 4)])
    if not probs:
        text.append("\u2013", style="dim")
    if candidate.view:
        text.append(f"\n{candidate.view}", style="dim")
    return text


def _score(candidate: Candidate) -> Text:
    if candidate.verdict is None:
        return Text("not judged", style="dim")
    if candidate.verdict.error is not None:
        return Text("error = 5", style="bold red")
    level = min(4, max(0, round(candidate.score) - 1))
    return Text(f"{candidate.score:.2f}", style=_LEVEL_STYLES[level])


def _candidate_text(candidate: Candidate) -> Text:
    if candidate.verdict is not None and candidate.verdict.error is not None:
        return Text(f"judge: {printable(candidate.verdict.error)}", style="red")
    return Text(printable(candidate.text))


def _timings(result: Result) -> Text:
    times = result.timings
    parts = (
        ("target", times.target_ms),
        ("anchor", times.anchor_ms),
        ("mix", times.mix_ms),
        ("judge", times.judge_ms),
        ("other", times.other_ms),
    )
    split = " + ".join(f"{name} {value:.0f}" for name, value in parts)
    return Text(f"time: {times.total_ms:.0f} ms = {split}", style="dim")
