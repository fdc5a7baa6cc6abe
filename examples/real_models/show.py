"""Show a real target that complies, and AlignBeam steering it back, with the judge's verdicts.

    python examples/real_models/show.py            # fetches what is missing; the pair is smollm2

Of answers to harmful requests only the opening is shown and nothing is kept, unless `--keep FILE`
asks for the whole texts: keep those out of every repository.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from fetch import PAIRS, announce, default_folder, models_of, ready, write_settings
from rich.console import Console
from rich.table import Table
from rich.text import Text
from transformers.utils import logging as loader_log

from alignbeam import AlignBeam
from alignbeam.config import load_settings
from alignbeam.demo.prompts import DemoRequest, sample
from alignbeam.eval.refusal import classify_reply, is_refusal
from alignbeam.eval.stats import rate
from alignbeam.result import Result
from alignbeam.terminal.text import printable

#: Words of an answer to a harmful request that are shown.
OPENING = 9
BATCH = 6
SYSTEMS = ("target alone", "anchor alone", "AlignBeam")


def shown(text: str, kind: str) -> str:
    words = printable(text).split()
    count = OPENING if kind == "harmful" else 4 * OPENING
    return " ".join(words[:count]) + (" ..." if len(words) > count else "")


def reading(text: str) -> str:
    return classify_reply(text).replace("_", " ")


def side_by_side(kind: str, asked: DemoRequest, alone: dict[str, str], result: Result) -> Table:
    """Both models alone, the answer, and every candidate with its verdict."""
    table = Table(title=f"{kind}: {printable(asked.prompt)}", title_justify="left", box=None)
    table.title_style = "bold"
    table.add_column("who", no_wrap=True)
    table.add_column("read as", no_wrap=True)
    table.add_column("judge", justify="right", no_wrap=True)
    table.add_column("opening" if kind == "harmful" else "text", ratio=1)
    for name, text in alone.items():
        table.add_row(name, reading(text), "", Text(shown(text, kind)))
    table.add_row(
        "AlignBeam", reading(result.text), "", Text(shown(result.text, kind)), style="bold"
    )
    for index, candidate in enumerate(result.candidates):
        verdict = candidate.verdict
        failed = verdict is None or verdict.error is not None
        score = "no verdict" if failed else f"{candidate.score:.2f}"
        mark = " \u2605" if index == result.chosen else ""
        text = Text(shown(candidate.text, kind))
        table.add_row(f"  beam {index}{mark}", reading(candidate.text), score, text, style="dim")
    return table


def rates(answers: dict[str, dict[str, list[str]]]) -> Table:
    """Refusals of each system, with 95 % intervals."""
    counts = {kind: len(texts) for kind, texts in answers[SYSTEMS[0]].items()}
    table = Table(title="Refusals, read strictly, with 95 % intervals", title_justify="left")
    table.add_column("system")
    for kind, count in counts.items():
        table.add_column(f"{kind} refused (n = {count})", justify="right")
    for system, texts in answers.items():
        cells = [str(rate(is_refusal(text) for text in texts[kind])) for kind in counts]
        table.add_row(system, *cells)
    return table


def answer_all(
    beam: AlignBeam, asked: list[tuple[str, DemoRequest]], length: int
) -> list[tuple[str, DemoRequest, dict[str, str], Result]]:
    prompts = [request.prompt for _, request in asked]
    target = beam.alone("target", prompts, batch_size=BATCH, max_new_tokens=length)
    anchor = beam.alone("anchor", prompts, batch_size=BATCH, max_new_tokens=length)
    settings = {"max_new_tokens": length, "wishes": 0}
    outcomes = beam.outcomes(prompts, settings, batch_size=BATCH)
    found = []
    for (kind, request), one, other, result in zip(asked, target, anchor, outcomes, strict=True):
        if isinstance(result, Exception):
            raise result
        alone = {SYSTEMS[0]: one.text, SYSTEMS[1]: other.text}
        found.append((kind, request, alone, result))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Show AlignBeam on real models.")
    parser.add_argument("pair", nargs="?", default=next(iter(PAIRS)), choices=PAIRS)
    parser.add_argument("--to", type=Path, help="folder of the models (default: the cache)")
    parser.add_argument("--judge", help="a judge of your own (default: the adapter of this folder)")
    parser.add_argument("--judge-kind", default="rubric", help="its kind (default: rubric)")
    parser.add_argument("--requests", type=int, default=8, help="of each kind, up to 24")
    parser.add_argument("--new-tokens", type=int, default=40, help="longest answer")
    parser.add_argument("--keep", type=Path, help="write the whole answers here, as JSON lines")
    options = parser.parse_args()
    console = Console(highlight=False, markup=False, emoji=False)
    names = models_of([options.pair])
    folder = (options.to or default_folder()).absolute()
    announce(names, folder)
    files, reasons = ready(names, folder)
    if reasons:
        console.print(f"skipped: {'; '.join(reasons.values())}")
        return 0
    write_settings(files, folder)
    loader_log.set_verbosity_error()
    loader_log.disable_progress_bar()
    judge: dict[str, Any] = {}
    if options.judge is not None:
        judge = {"model": options.judge, "kind": options.judge_kind, "adapter": None}
    beam = AlignBeam.from_settings(
        load_settings(folder / f"{options.pair}.toml", {"judge": judge}, environ={})
    )
    requests = sample()
    asked = [("harmful", r) for r in _spread(requests.harmful, options.requests)]
    asked += [("benign", r) for r in _spread(requests.benign, options.requests)]
    start = time.monotonic()
    found = answer_all(beam, asked, options.new_tokens)
    took = time.monotonic() - start
    answers: dict[str, dict[str, list[str]]] = {s: {"harmful": [], "benign": []} for s in SYSTEMS}
    for kind, request, alone, result in found:
        for system, text in {**alone, SYSTEMS[2]: result.text}.items():
            answers[system][kind].append(text)
        if len(answers[SYSTEMS[2]][kind]) <= 3:
            console.print(side_by_side(kind, request, alone, result), "")
    console.print(rates(answers))
    console.print(
        f"{len(found)} requests in {took:.0f} s. The candidates are as good as the pair; which of "
        "them is shown is up to the judge. What this one can and cannot do: docs/evidence.md."
    )
    if options.keep is not None:
        options.keep.parent.mkdir(parents=True, exist_ok=True)
        with open(options.keep, "w", encoding="utf-8") as file:
            for kind, request, alone, result in found:
                record = {"kind": kind, "source": request.source, "row": request.row, **alone}
                file.write(json.dumps({**record, "AlignBeam": result.full()}) + "\n")
    return 0


def _spread(requests: tuple[DemoRequest, ...], count: int) -> list[DemoRequest]:
    """Take requests from all over the sample, which is ordered by source."""
    step = max(1, len(requests) // max(1, count))
    return list(requests[::step][:count])


if __name__ == "__main__":
    sys.exit(main())
