"""Write the tables of measured figures in the README and in ``docs``.

``python bench/render_tables.py`` fills between the markers ``<!-- results:NAME -->`` and
``<!-- end:NAME -->``; ``--check`` only says whether anything would change (exit code 1). A table
without rows stays empty: no figure is typed by hand.
"""

from __future__ import annotations

import argparse
import math
import re
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import render_evaluation
import render_mix_topk
import rows
from markdown_table import markdown_table

from alignbeam.eval.stats import wilson

REPO = Path(__file__).resolve().parent.parent
Row = dict[str, Any]


def fill(text: str, name: str, body: str) -> str:
    """Put ``body`` between the markers of ``name``."""
    pattern = rf"(<!-- results:{name} -->\n).*?(<!-- end:{name} -->)"
    filled, count = re.subn(
        pattern, lambda m: m[1] + (body + "\n" if body else "") + m[2], text, flags=re.DOTALL
    )
    if count != 1:
        raise SystemExit(f"the page must hold the markers of {name} once, found {count}")
    return filled


#: What a sceptic compares: the methods that the first screen shows, by the defaults ...
_ROWS = {
    "target": "the target alone",
    "post-hoc-guard": "the target, then a guard: the same judge blocks",
    "alignbeam": "**AlignBeam**: 6 mixed tokens, 3 beams, the same judge",
}
#: ... and with a probe of the request, by the labels of ``probed.toml``.
_PROBED_ROWS = {
    "post-hoc-guard": "with a probe: the guard",
    "best-of-k": "with a probe: best of 3 of the target, the same judge picks",
    "least steered": "with a probe: **AlignBeam**, the target's own answer where it is safe",
}
#: The targets that the first screen shows: their runs, by the defaults and with a probe.
_TARGETS = {
    "SmolLM2-135M": ("eval_real_smollm2.json", "eval_probed_smollm2.json"),
    "its specialist": ("eval_real_specialist.json", "eval_probed_specialist.json"),
}
_WANTED = ("harmful refused", "benign refused", "word problems")


def systems() -> str:
    """Safety, over-refusal and work side by side, on real models: suites ``real``, ``probed``."""
    lines, heads, commits = [], [""], {}
    for number, said_of in enumerate((_ROWS, _PROBED_ROWS)):
        names = {named: of[number] for named, of in _TARGETS.items()}
        if not all((rows.RESULTS / name).is_file() for name in names.values()):
            continue
        columns = []
        for named, name in names.items():
            digest = render_evaluation.digest_of(name)
            commits[digest["manifest"]["environment"]["commit"]] = digest
            columns += [
                (f"{named}: {head}, %", found)
                for head, found in render_evaluation.columns_of(digest)
                if head.startswith(_WANTED)
            ]
        heads = ["", *(head for head, _ in columns)]
        lines += [
            [said, *(render_evaluation.share(found[method]) for _, found in columns)]
            for method, said in said_of.items()
            if all(method in found for _, found in columns)
        ]
    if not lines:
        return ""
    return (
        f"{markdown_table(heads, lines)}\n\n"
        "Public weights that nobody here trained, steered by Qwen2.5-Coder-0.5B-Instruct; the "
        "specialist is a LoRA on word problems. Held-out prompts, untuned defaults but in the rows "
        "with a probe, whose thresholds were chosen on other prompts of the first target (best of "
        "3 has AlignBeam's); greedy, 95 % intervals; a reply that refuses and then complies counts "
        "as complied. "
        f"Commits {', '.join(commits)}. {render_evaluation.reader(next(iter(commits.values())))}"
    )


def judges() -> str:
    """Whether judges tell compliance from the rest, on real replies: ``measure_judge.py``."""
    found = rows.read("judge_real")
    if not found:
        return ""
    found.sort(key=lambda row: -row["compliance"])
    groups = list(dict.fromkeys(group for row in found for group in row["against"]))
    lines = []
    for row in found:
        cells = [row["judge"], str(row["compliance"]), str(row["against"][groups[0]][3])]
        for group in groups:
            value = row["against"].get(group)
            cells.append(f"{value[0]:.2f} [{value[1]:.2f}, {value[2]:.2f}]" if value else "")
        cells += [f"{100 * row['withheld'].get(g, 0):.0f}" for g in ("compliance", *groups[1:])]
        lines.append([*cells, f"{row['least_mass']:.2f}", f"{row['seconds_a_verdict']:.2f}"])
    heads = ["judge", "complying replies", "others"]
    heads += [f"AUROC against {group}" for group in groups]
    heads += [f"above 2.5: {group}, %" for group in ("compliance", *groups[1:])]
    first = found[0]
    commits = ", ".join(dict.fromkeys(row["machine"]["commit"] for row in found))
    others = ", ".join(dict.fromkeys(f"of {' and '.join(row['runs'])}" for row in found[1:]))
    sampled = f" The other rows: asked anew about replies {others}." if others else ""
    return (
        f"{markdown_table([*heads, 'least label mass', 's a verdict'], lines)}\n\n"
        f"The first row: every reply and candidate of the runs {' and '.join(first['runs'])}, "
        f"judged in batches of 16 requests.{sampled} All views, 1 thread, a shared machine (the "
        f"times are no better than that), {first['machine']['cpu']}, commit {commits}."
    )


def judge_attacks() -> str:
    """What hides harm from the adapter judge: ``measure_judge.py --attacks``."""
    found = [row for row in rows.read("judge_real") if row["attacks"]]
    if not found:
        return ""
    parts = []
    for row in found:
        lines = [
            [attack, f"{passed} of {harmful}", f"{withheld} of {safe}"]
            for attack, (passed, harmful, withheld, safe) in row["attacks"].items()
        ]
        heads = [f"written around it ({row['judge']})", "complying replies pass", "benign withheld"]
        parts.append(markdown_table(heads, lines))
    commit = found[0]["machine"]["commit"]
    few = found[0]["attacks"]["nothing"][1]
    parts.append(
        "What attackers may write around a request and its reply (`python bench/measure_judge.py "
        "--attacks`); replies of these runs, held fixed, threshold 2.5, all views, commit "
        f"{commit}. Few: 1 of {few} is {wilson(1, few)}."
    )
    return "\n\n".join(parts)


def beams() -> str:
    """Where AlignBeam's refusals come from: ``measure_beams.py``."""
    found = rows.read("beams_real")
    if not found:
        return ""
    lines = []
    for row in found:
        n = row["requests"]
        counts = (row["first"], row["some"], row["every"], row["chosen"], row["withheld"])
        name = f"`{row['run']}`, {row['label']} (n = {n})"
        lines.append([name, f"`{row['method']}`", *(str(wilson(count, n)) for count in counts)])
    heads = ["requests", "method", "first candidate refuses", "some candidate", "every candidate"]
    heads += ["chosen, and refuses", "none may be shown"]
    return (
        f"{markdown_table(heads, lines)}\n\nPercent with 95 % Wilson intervals. "
        f"Commit {found[0]['machine']['commit']}."
    )


def verdict_costs() -> str:
    """What a verdict of the adapter judge costs: ``bench_verdict.py``."""
    found = rows.read("verdict_real")
    if not found:
        return ""
    lines = [
        [
            str(row["threads"]),
            str(row["candidates"]),
            *(f"{row[key]:.2f}" for key in ("wall_s_p50", "wall_s_least", "cpu_s_p50")),
            f"{row['load'][0]:.1f} to {row['load'][1]:.1f}",
        ]
        for row in found
    ]
    heads = ["threads", "candidates a call", "s a verdict", "least", "CPU-s a verdict", "load"]
    first = found[0]
    return (
        f"{markdown_table(heads, lines)}\n\n"
        f"What a verdict costs (`python bench/bench_verdict.py`), {first['judge']}: medians over "
        f"calls, {first['verdicts']} verdicts a row. A verdict is "
        f"{first['readings']:.1f} readings of {first['tokens']:.0f} tokens in all, of which "
        f"{first['fed']:.0f} are computed with the candidates of one request together and "
        f"{found[-1]['fed']:.0f} with those of eight, in {first['forwards']:.0f} and "
        f"{found[-1]['forwards']:.0f} forwards a call, padding included. "
        f"{first['machine']['cores']} cores, {first['machine']['cpu']}, commit "
        f"{first['machine']['commit']}."
    )


_COUNTED = (("harmful", "refused"), ("benign", "refused"), ("problems", "solved"))


def thresholds() -> str:
    """What other thresholds would have chosen: ``measure_thresholds.py``."""
    found = rows.read("thresholds_real")
    if not found:
        return ""
    parts = []
    for run in dict.fromkeys(row["run"] for row in found):
        points = {(r["method"], r["threshold"]): r for r in found if r["run"] == run}
        methods = list(dict.fromkeys(method for method, _ in points))
        lines = []
        for threshold in dict.fromkeys(threshold for _, threshold in points):
            cells = [f"{threshold:g}"]
            for method in methods:
                row = points[method, threshold]
                cells += [
                    f"{100 * row[f'{kind}_{what}'] / row[kind]:.0f}" if row[kind] else ""
                    for kind, what in _COUNTED
                ]
            lines.append(cells)
        heads = [f"{method}: {kind}" for method in methods for kind, _ in _COUNTED]
        parts.append(markdown_table([f"`{run}`, threshold", *heads], lines))
    parts.append(
        "Harmful and benign refused, word problems solved, in percent. Least steered: "
        "`selection = \"least_steered\"` chooses among AlignBeam's candidates and the target's own "
        "answer, which passes where it scores 1.5 or less. "
        f"Commit {found[0]['machine']['commit']}."
    )
    return "\n\n".join(parts)


def decode() -> str:
    """What an answer costs: ``bench/bench_decode.py``, on a CPU and on a GPU."""
    tables = [answers(rows.read(name)) for name in ("decode", "decode_cuda")]
    return "\n\n".join(table for table in tables if table)


def answers(found: list[Row]) -> str:
    """One machine's answers, and the conditions."""
    found = [row for row in found if row["system"] != "plain"]
    lines = [
        [
            f"{row['models']}, {row['device']}, K = {row['beams']}: {row['system']}",
            f"{row['total_ms_p50']:.0f}",
            f"{row['ratio_to_plain_p50']:.2f}",
            f"{row['ratio_to_best_of_k_p50']:.2f}",
            *(f"{row[f'{part}_ms']:.1f}" for part in _PARTS),
        ]
        for row in found
    ]
    if not lines:
        return ""
    header = ["answer", "ms (p50)", "x plain target", "x best-of-K", *_PARTS]
    first = found[0]
    machine = first["machine"]
    where = machine["gpu"] or f"{machine['cpu']}, {first['threads']} threads"
    turns = "runs, one system at a time" if machine["gpu"] else "interleaved runs"
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Conditions: {where}; {first['new_tokens']} new tokens, "
        f"N = {max(row['mix_steps'] for row in found)}, medians of {first['runs']} "
        f"{turns}, {first['dtype']}, torch {machine['torch']}, commit {machine['commit']}. "
        "`best_of_k` samples K answers of the target for the same judge. Columns on the right: "
        "milliseconds by part."
    )


def kernel() -> str:
    """What one mixing step costs on a CPU: ``bench/bench_mix_topk.py``."""
    parts = [part for name in ("cpu", "cpu_amd") for part in on_cpu(rows.read(f"mix_topk_{name}"))]
    if parts:
        parts.append(
            "The best peer is the fastest of what a capable reader would write: top-k on logits "
            "with two log-sum-exps, and torch.compile of it and of the plain version. [Targets met "
            "and missed, all inputs, peers and thread counts](../bench/results/mix_topk.md)."
        )
    if (rows.RESULTS / "mix_topk_cpu.svg").is_file():
        parts.append("![how many times longer each peer takes](../bench/results/mix_topk_cpu.svg)")
    return "\n\n".join(parts)


def on_cpu(found: list[Row]) -> list[str]:
    """One machine's steps, their conditions, and what its memory allows."""
    main = render_mix_topk.pick(found, op="mix_topk", kind="peaked")
    if not main:
        return []
    first = main[0]
    machine = first["machine"]
    parts = []
    for dtype in dict.fromkeys(row["dtype"] for row in main):
        group = render_mix_topk.pick(
            main, dtype=dtype, threads=first["threads"], timer=first["timer"]
        )
        parts.append(
            f"{dtype}, {machine['cpu']}, {first['isa']}, {first['threads']} thread:\n\n"
            f"{render_mix_topk.headline(group)}"
        )
    parts.append(
        f"Conditions: {first['anchor_width']:,} anchor logits -> {first['target_width']:,} "
        "target logits (Qwen2.5 -> Llama-3), B = 50, K = 3, peaked logits; medians, peers in "
        f"turns in one process, {'CPU' if first['basis'] == 'cpu' else 'wall'} time "
        f"({first['timer']}); torch {machine['torch']}, commit {machine['commit']}, "
        f"{machine['utc'][:10]}."
    )
    return [*parts, render_mix_topk.memory_bound(found)]


def kernel_cuda() -> str:
    """What one mixing step costs on a GPU, and what was measured before there were rows."""
    return cuda_page(rows.read("mix_topk_cuda"), rows.read("mix_topk_prototype"))


def cuda_page(found: list[Row], before: list[Row]) -> str:
    """The kernel as it is, where it was measured; then the figures from before."""
    parts = ["The kernel as it is now has not been timed on a GPU yet."]
    if render_mix_topk.pick(found, op="mix_topk", kind="peaked"):
        machine = found[0]["machine"]
        cold = render_mix_topk.pick(found, timer="graph, cold L2")
        dtypes = dict.fromkeys(row["dtype"] for row in cold if row["op"] == "mix_topk")
        parts = [
            *(render_mix_topk.cuda_table(cold, dtype) for dtype in dtypes),
            f"Conditions: {machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, "
            f"torch {machine['torch']}, triton {machine['triton']}, commit {machine['commit']}, "
            f"{machine['utc'][:10]}; Qwen2.5 -> Llama-3, B = 50, K = 3, peaked logits, medians in "
            "a CUDA graph with the L2 cache cold. [Hot caches, host times, other "
            "inputs](../bench/results/mix_topk.md).",
            render_mix_topk.cuda_targets(found),
        ]
    if before:
        machine = before[0]["machine"]
        parts.append(
            f"**Not this code's figures.** A prototype, measured on an {machine['gpu']} on "
            f"{machine['utc'][:10]} (driver {machine['driver']}, torch {machine['torch']}, same "
            "protocol), and the CUDA kernel of that day, which is superseded: what a GPU rewards, "
            "and what the kernel is held to."
        )
        parts += [_before(before, dtype) for dtype in dict.fromkeys(r["dtype"] for r in before)]
    return "\n\n".join(parts)


_BEFORE = {
    "prototype": "prototype",
    "superseded": "CUDA kernel of that day (superseded)",
    "smart_eager": "top-k on logits, two log-sum-exps, merge",
    "compile_smart_eager": "the same, torch.compile",
    "flashinfer": "FlashInfer 0.7.2 top-k, eager merge",
    "flashinfer_compiled": "FlashInfer 0.7.2 top-k, compiled merge",
    "copy": "device copy of the anchor's logits",
}


def _before(before: list[Row], dtype: str) -> str:
    found = render_mix_topk.pick(before, dtype=dtype)
    columns = list(dict.fromkeys((row["kind"], row["rows"]) for row in found))
    lines = []
    for system, called in _BEFORE.items():
        us = {(r["kind"], r["rows"]): r["p50_us"] for r in found if r["system"] == system}
        if us:
            lines.append([called, *(f"{us[at]:,g}" if at in us else "" for at in columns)])
    if dtype == "bf16":
        gates = render_mix_topk.CUDA_US
        cells = [
            f"{gates[count][0]} / {gates[count][1]}" if kind == "peaked" else ""
            for kind, count in columns
        ]
        lines.append(["gate / stretch", *cells])
    heads = [f"R = {n}" + ("" if kind == "peaked" else f", {kind} rows") for kind, n in columns]
    return markdown_table([f"{dtype}, us a call", *heads], lines)


def bridge() -> str:
    """How long a bridge takes: ``bench/bench_bridge.py``."""
    found = rows.read("bridge")
    lines = [
        [
            f"{row['anchor']} -> {row['target']}",
            f"{row['anchor_width']:,}",
            f"{row['cold_ms_p50']:,.0f}",
            f"{row['load_ms_p50']:.0f}",
            f"{row['reload_ms_p50']:.1f}",
        ]
        for row in found
    ]
    if not lines:
        return ""
    header = ["bridge", "anchor ids", "built, ms", "from the cache, ms", "again in a process, ms"]
    machine = found[0]["machine"]
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Conditions: {machine['cpu']}, medians of {found[0]['runs']} "
        f"fresh processes, tokenizers loaded beforehand, commit {machine['commit']}."
    )


def translation() -> str:
    """What each fallback translates: ``bench/bench_translation.py``."""
    found = rows.read("translation")
    if not found:
        return ""
    samples = list(dict.fromkeys(row["sample"] for row in found))
    by_sample = {sample: [row for row in found if row["sample"] == sample] for sample in samples}
    texts = [sample for sample in samples if not sample.startswith("probability")]
    fallbacks = list(found[0]["mass"])
    lines = []
    for fallback in fallbacks:
        cells = []
        for sample in texts:
            of_pair = {
                f"{row['anchor']} -> {row['target']}": row["mass"][fallback]
                for row in by_sample[sample]
            }
            worst = min(of_pair, key=of_pair.__getitem__)
            lowest = _percent(of_pair[worst])
            cells.append(lowest if of_pair[worst] == 1 else f"{lowest} ({worst})")
            cells.append(_percent(statistics.median(of_pair.values())))
        lines.append([f"`{fallback}`", *cells])
    heads = [f"{sample}, {what}" for sample in texts for what in ("lowest of all pairs", "median")]
    parts = [markdown_table(["translated, %", *heads], lines)]
    for sample in texts[-1:]:
        drop = {(row["anchor"], row["target"]): row["mass"]["drop"] for row in by_sample[sample]}
        names = list(dict.fromkeys(anchor for anchor, _ in drop))
        lines = [
            [anchor, *(_percent(drop[anchor, to]) if anchor != to else "" for to in names)]
            for anchor in names
        ]
        parts.append(markdown_table([f"`drop`, {sample}, %: from", *names], lines))
    lines = [
        [
            f"{row['anchor']} -> {row['target']}",
            row["sample"],
            str(row["positions"]),
            *(_percent(row["mass"][fallback] / row["anchor_mass"]) for fallback in fallbacks),
        ]
        for row in found
        if row["sample"] not in texts
    ]
    if lines:
        heads = ["models", "of the anchor's", "positions", *(f"`{f}`, %" for f in fallbacks)]
        parts.append(markdown_table(heads, lines))
    counts = " and ".join(f"{by_sample[sample][0]['positions']:,} ({sample})" for sample in texts)
    return "\n\n".join(parts) + (
        f"\n\nThe first two tables: tokens of sample texts, {counts} of {found[0]['anchor']}'s. "
        "The third: next-token probabilities inside gsm8k questions, averaged. "
        f"Commits {', '.join(dict.fromkeys(row['machine']['commit'] for row in found))}."
    )


def _percent(share: float) -> str:
    """Rounded down, so that 100 is all of it (rows have six digits)."""
    return "100" if share >= 1 - 5e-6 else f"{math.floor(1000 * share) / 10:.1f}"


def survival() -> str:
    """What hides harm from the embedded judge: ``bench/bench_judge.py``."""
    found = rows.read("judge_survival")
    if not found:
        return ""
    first = found[0]
    lines = [
        [
            row["attack"],
            *(str(row[key]) for key in ("passed_before", "passed", "withheld_before", "withheld")),
        ]
        for row in found
    ]
    header = [
        "written around it",
        f"harmful that pass, of {first['harmful']}: one view",
        "all views",
        f"harmless withheld, of {first['safe']}: one view",
        "all views",
    ]
    return (
        f"{markdown_table(header, lines)}\n\n"
        "The embedded trio's judge, threshold 2.5: complying answers of the target to AdvBench "
        "goals, and its answers to word problems, held fixed. One view: the whole conversation, "
        "the unreadable scored like all else. All views: the default. "
        f"Commit {first['machine']['commit']}."
    )


def verdicts() -> str:
    """What a verdict costs: ``bench/bench_judge.py``."""
    found = rows.read("judge_cost")
    if not found:
        return ""
    lines = [
        [
            str(row["candidates"]),
            str(row["readings"]),
            f"{row['alone_cpu_ms_p50']:.0f}",
            f"{row['shared_cpu_ms_p50']:.0f}",
            f"{row['greatest_difference']:.1e}",
        ]
        for row in found
    ]
    header = [
        "candidates",
        "readings",
        "each alone, CPU ms",
        "beginnings shared, CPU ms",
        "score differs",
    ]
    first = found[0]
    return (
        f"{markdown_table(header, lines)}\n\n"
        f"Conditions: the embedded judge's weights under the general rubric, a prompt of "
        f"{first['prompt_tokens']} tokens; medians of {first['runs']} runs or more in turns, 1 "
        f"thread, {first['machine']['cpu']}, commit {first['machine']['commit']}."
    )


def steering() -> str:
    """What less steering buys and costs: ``bench/bench_steering.py``."""
    found = rows.read("steering")
    if not found:
        return ""
    n = found[0]["requests"]
    lines = [
        [
            row["variant"],
            *(str(wilson(row[key], n)) for key in ("harmful_refused", "benign_refused")),
            *(str(row[key]) for key in ("own", "let_go", "changed")),
            f"{row['tokens']:,}",
        ]
        for row in found
    ]
    header = [
        "embedded trio",
        f"harmful refused (n = {n})",
        f"benign refused (n = {n})",
        f"the target's own, of {3 * n}",
        "let go",
        "answers that differ",
        "tokens decoded",
    ]
    return (
        f"{markdown_table(header, lines)}\n\n"
        "HarmBench, XSTest and word problems; strict reading of refusals, 95 % intervals. This "
        "judge reads replies only, and was trained on how this very target complies; so it says "
        f"little of what a stranger's judge would let pass. Commit {found[0]['machine']['commit']}."
    )


def front() -> str:
    """The best that kept answers allow, and why no better: ``measure_front.py``."""
    found = rows.read("front_real")
    if not found:
        return ""

    def told(best: Row | None, row: Row) -> str:
        if best is None:
            return "none"
        of = " / ".join(
            f"{100 * best[f'{kind}_refused'] / row[kind]:.0f}" for kind in ("harmful", "benign")
        )
        return f"{of} ({', '.join(f'{v:g}' for v in best['settings'].values())})"

    names = ("guard", "faithful", "least steered")
    lines = [
        [
            f"`{row['run']}`",
            f"{100 * row['faithful_harmful'] / row['harmful']:.0f} / "
            f"{100 * row['faithful_benign'] / row['benign']:.0f}",
            f"at least {100 * row['harmful_limit']:.0f} / at most {100 * row['benign_limit']:.0f}",
            *(told(row["best"].get(name), row) for name in names),
        ]
        for row in found
    ]
    heads = ["harmful / benign refused, %", "faithful, untuned", "wanted", *names]
    lines_of_signals = [
        [
            name,
            *(
                f"{value:.2f} [{low:.2f}, {high:.2f}]"
                for value, low, high in (row["signals"][name] for row in found)
            ),
        ]
        for name in found[0]["signals"]
    ]
    runs = [f"`{row['run']}`" for row in found]
    limits = dict.fromkeys(limit for row in found for limit, *_ in row["halves"])
    halves = [
        {(limit, name): f"{100 * h:.0f} / {100 * b:.0f}" for limit, name, h, b in row["halves"]}
        for row in found
    ]
    lines_of_halves = [
        [f"{100 * limit:g}", *(of.get((limit, name), "none") for of in halves for name in names)]
        for limit in limits
    ]
    counts = ", ".join(
        f"{row['harmful']} and {row['benign']} of {run}"
        for row, run in zip(found, runs, strict=True)
    )
    heads_of_halves = [f"{run}: {name}" for run in runs for name in names]
    return (
        f"{markdown_table(heads, lines)}\n\n"
        "In brackets the thresholds under which each refuses most harm with no more benign "
        "requests refused than is wanted (`threshold`, `unsteered_threshold`), chosen on the "
        "very requests that are counted, which flatters all of them.\n\n"
        f"{markdown_table(['benign refused, at most, %', *heads_of_halves], lines_of_halves)}"
        "\n\nHarmful / benign refused, %: thresholds chosen under that limit on a random half of "
        "the requests, counted on the other half, means of 100 halvings.\n\n"
        f"{markdown_table(['harmful against benign requests, AUROC', *runs], lines_of_signals)}"
        f"\n\nHarmful and benign requests: {counts}; commit {found[0]['machine']['commit']}."
    )


def attacks() -> str:
    """What leaves under attack, worst first: ``alignbeam attack``, ``measure_attacks.py``."""
    found = rows.read("attacks")
    parts = []
    for models in dict.fromkeys(row["models"] for row in found):
        mine = [row for row in found if row["models"] == models]
        methods = list(dict.fromkeys(row["method"] for row in mine))
        cells = {(row["attack"], row["method"]): row for row in mine}

        def badness(attack: str, cells: Any = cells, methods: Any = methods) -> tuple[int, ...]:
            of = [cells[attack, method] for method in methods if method != "target"]
            return sum(r["harmful"] for r in of), sum(r["answered"] for r in of)

        names = sorted(dict.fromkeys(row["attack"] for row in mine), key=badness, reverse=True)
        lines = [
            [
                name,
                *(
                    f"{row['harmful']} / {row['answered']}"
                    for row in (cells[name, method] for method in methods)
                ),
            ]
            for name in names
        ]
        first = mine[0]
        n = first["requests"]
        heads = [f"{models}: harmful / not refused, of {n}", *methods]
        least, some = wilson(0, n), wilson(n // 4, n)
        parts.append(
            f"{markdown_table(heads, lines)}\n\n"
            f"At most {first['tokens']} tokens, commit {first['run_commit']}; 95 % intervals: "
            f"0 of {n} is {least}, {n // 4} of {n} is {some}."
        )
    return "\n\n".join(parts)


def tuned() -> str:
    """What ``alignbeam tune`` chose and what that is worth: ``measure_tuning.py``."""
    found = rows.read("tuned")
    if not found:
        return ""
    lines = [
        [
            row["models"],
            f"{100 * row['limit']:g} %",
            name,
            *(str(wilson(*row[f"{key}_{kind}"])) for kind in ("harmful", "benign")),
            f"{row[f'{key}_ms']:.0f}",
        ]
        for row in found
        for key, name in (
            ("target", "the target alone"),
            ("faithful", "default settings"),
            ("chosen", f"chosen: {row['settings']}"),
        )
    ]
    first = found[0]
    heads = [
        "models", "asked", "held-out half",
        f"harmful refused (n = {first['chosen_harmful'][1]})",
        f"benign refused (n = {first['chosen_benign'][1]})",
        "ms a sample",
    ]  # fmt: skip
    minutes = ", ".join(f"{row['minutes']:.1f} ({row['answers']:,})" for row in found)
    said = " ".join(f"{row['models']}: {row['said']}." for row in found)
    return (
        f"{markdown_table(heads, lines)}\n\n"
        f"{said} Minutes spent on answers (how many), one thread of a shared machine: {minutes}. "
        f"Commit {first['machine']['commit']}."
    )


def probe() -> str:
    """What a probe of requests gives back on prompts that chose nothing: ``measure_probe.py``."""
    found = [row for kept in ("real", "specialist", "trio") for row in rows.read(f"probe_{kept}")]
    counted = [row for row in found if "system" in row]
    if not counted:
        return ""
    plain = {row["run"]: row for row in counted if row["system"] == "faithful defaults"}
    alone = {row["run"]: row for row in counted if row["system"] == "target"}

    def share(row: Row, kind: str) -> str:
        value = str(wilson(row[f"{kind}_refused"], row[kind]))
        return value if row["system"] == "faithful defaults" else f"{value}, {p_of(row, kind)}"

    def p_of(row: Row, kind: str) -> str:
        p = row[f"p_{kind}"]
        return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"

    def within(row: Row) -> str:
        """Whether a row keeps what was asked for: 3 points of harm, half of the increase."""
        faithful, target = plain[row["run"]], alone[row["run"]]
        lost = (faithful["harmful_refused"] - row["harmful_refused"]) / row["harmful"]
        half = (faithful["benign_refused"] + target["benign_refused"]) / 2
        return "yes" if lost <= 0.03 and row["benign_refused"] <= half else "no"

    lines = [
        [
            row["run"],
            row["system"] + (", probe" if row["probe"] else ""),
            ", ".join(f"{value:g}" for value in row["settings"].values()),
            share(row, "harmful"),
            share(row, "benign"),
            "" if row["system"] in ("target", "faithful defaults") else within(row),
        ]
        for row in counted
    ]
    heads = ["models", "system", "thresholds", "harmful refused", "benign refused", "as wanted"]
    told = "; ".join(
        f"{row['run']}: {row['auroc']:.2f} [{row['low']:.2f}, {row['high']:.2f}] of "
        f"{row['harmful']} and {row['benign']}"
        for row in found
        if "auroc" in row
    )
    commits = ", ".join(dict.fromkeys(row["machine"]["commit"] for row in counted))
    return (
        f"{markdown_table(heads, lines)}\n\n"
        "Thresholds (`threshold`, `unsteered_threshold`) were chosen on other prompts of the same "
        "sets; the specialist's on the first target's runs. As wanted: at most 3 points of the "
        "faithful mode's refusals of harmful requests "
        "lost, at most half of the refusals of benign ones that it adds to the target's. Percent "
        "with 95 % intervals; p against the faithful defaults, McNemar's exact test. AUROC of the "
        f"probe, harmful against benign requests: {told}. Commits {commits}."
    )


_PARTS = ("target", "anchor", "mix", "judge", "other")

#: What is written between which markers, by page.
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"systems": systems},
    "docs/speed.md": {
        "decode": decode,
        "kernel": kernel,
        "kernel_cuda": kernel_cuda,
        "bridge": bridge,
        "verdicts": verdicts,
    },
    "docs/threat_model.md": {"survival": survival, "attacks": attacks},
    "docs/tuning.md": {
        "tuned": tuned,
        "probe": probe,
        "steering": steering,
        "front": front,
        "translation": translation,
    },
    "docs/evidence.md": {
        "judges": judges,
        "judge_attacks": judge_attacks,
        "verdict_costs": verdict_costs,
        "beams": beams,
        "thresholds": thresholds,
    },
}


def main() -> None:
    """Rewrite the pages, or check them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if stale")
    check = parser.parse_args().check
    stale = []
    for name, tables in PAGES.items():
        path = REPO / name
        old = new = path.read_text(encoding="utf-8")
        for table, make in tables.items():
            new = fill(new, table, make())
        if new != old:
            stale.append(name)
        if not check:
            path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"stale: {', '.join(stale)}; run python bench/render_tables.py")


if __name__ == "__main__":
    main()
