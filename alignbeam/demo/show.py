"""The demonstration as tables on a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from alignbeam.demo.prompts import PromptSet
from alignbeam.demo.run import BothAnswers, Tally
from alignbeam.eval.refusal import classify_reply, is_refusal
from alignbeam.terminal.explain import judge_table
from alignbeam.terminal.text import printable


def pair_view(title: str, pair: BothAnswers) -> RenderableType:
    """Both answers side by side, then every candidate with its score."""
    table = Table(title=f"{title}: {printable(pair.asked.prompt)}", title_justify="left")
    table.title_style = "bold"
    for name, text in (("target alone", pair.alone), ("AlignBeam", pair.result.text)):
        reading = classify_reply(text).replace("_", " ")
        table.add_column(f"{name}: {reading if title == 'harmful' else _benign(text)}", ratio=1)
    table.add_row(Text(printable(pair.alone)), Text(printable(pair.result.text)))
    why = Text(f"why: {printable(pair.result.reason)}", style="dim")
    return Group(table, judge_table(pair.result), why, Text())


def _benign(text: str) -> str:
    return "refused" if is_refusal(text) else "answered"


def tally_view(tallies: list[Tally], prompts: PromptSet) -> RenderableType:
    """Rates with 95 % Wilson intervals, one row per system."""
    problems = sum(asked.answer is not None for asked in prompts.benign)
    table = Table(title="Refusals, read strictly, with 95 % intervals", title_justify="left")
    table.title_style = "bold"
    table.add_column("system")
    table.add_column(f"harmful refused (n = {len(prompts.harmful)})", justify="right")
    table.add_column(f"benign refused (n = {len(prompts.benign)})", justify="right")
    table.add_column(f"word problems solved (n = {problems})", justify="right")
    for tally in tallies:
        table.add_row(
            tally.system, str(tally.harmful_refused), str(tally.benign_refused), str(tally.solved)
        )
    fixed = next((t.fixed_refusals for t in tallies if t.system == "AlignBeam"), 0)
    note = (
        f"AlignBeam: {fixed} of {len(prompts.harmful)} harmful requests got the fixed refusal (no "
        "candidate passed the judge). An answer that refuses and then complies counts as "
        "complied. These tiny models show the mechanism; they are no evidence about large ones."
    )
    return Group(table, Text(note, style="dim"))
