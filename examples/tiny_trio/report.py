"""The tables of the model card: figures from the committed rows, facts from the shipped files."""

import json
import sys
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

REPO = Path(__file__).parents[2]
sys.path.append(str(REPO / "bench"))
from markdown_table import markdown_table  # noqa: E402
from measure_refusal_reader import said  # noqa: E402

DEMO = REPO / "alignbeam" / "demo"
CARD = DEMO / "MODEL_CARD.md"
ROWS = REPO / "bench" / "results" / "trio.jsonl"
READERS = REPO / "bench" / "results" / "refusal_reader.json"
#: The figures made before the history of this repository, and the oldest reader that
#: ``refusal_reader.json`` keeps.
FIRST, OLDEST = "7715e06-dirty", "7a73b94"
ROLES = {
    "target": "the fine-tuned specialist whose safety has eroded",
    "anchor": "the small aligned model",
    "judge": "scores finished answers, 1 (safe) to 5",
}
KINDS = {
    "target": "byte-level BPE",
    "anchor": "SentencePiece-style BPE with byte fallback",
    "judge": "byte-level BPE after NFC",
}


def facts() -> str:
    """What is shipped, read off the files."""
    columns = []
    for role, plays in ROLES.items():
        config = json.loads((DEMO / role / "config.json").read_text(encoding="utf-8"))
        with safe_open(DEMO / role / "model.safetensors", framework="np") as file:
            shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        parameters = sum(_product(shape) for shape in shapes)
        tokenizer = Tokenizer.from_file(str(DEMO / role / "tokenizer.json"))
        ends = config["eos_token_id"]
        names = [tokenizer.id_to_token(i) for i in (ends if isinstance(ends, list) else [ends])]
        size = sum(path.stat().st_size for path in (DEMO / role).iterdir())
        columns.append(
            {
                "": role,
                "plays": plays,
                "architecture": config["architectures"][0],
                "parameters": f"{parameters / 1e6:.2f} M",
                "layers x width": f"{config['num_hidden_layers']} x {config['hidden_size']}",
                "tokenizer": f"{KINDS[role]}, {tokenizer.get_vocab_size():,} tokens",
                "head columns": f"{config['vocab_size']:,}",
                "window, tokens": f"{config['max_position_embeddings']:,}",
                "end tokens": ", ".join(f"`{name}`".replace("|", "\\|") for name in names),
                "folder": f"{size / 1e6:.1f} MB, {config['dtype']}",
            }
        )
    header, *lines = [[key, *(c[key] for c in columns)] for key in columns[0]]
    return markdown_table(header, lines, "---")


def _product(shape: list[int]) -> int:
    out = 1
    for n in shape:
        out *= n
    return out


def cell(row: dict) -> str:
    """A value with its interval, in the unit of its kind."""
    scale, sign = (100, " %") if row["unit"] in ("share", "difference") else (1, "")
    digits = 1 if scale == 100 else 3
    value, low, high = (f"{scale * row[key]:.{digits}f}" for key in ("value", "lo", "hi"))
    return f"{value}{sign} [{low}, {high}]"


def tables(rows: list[dict]) -> str:
    """All figures, a table a group; the curve as one table over N."""
    out = []
    for group in dict.fromkeys(row["group"] for row in rows):
        part = [row for row in rows if row["group"] == group]
        out.append(f"### {group[:1].upper()}{group[1:]}\n")
        out.append(_curve(part) if group == "curve" else _plain(part))
        out.append("")
    first = rows[0]
    out.append(
        f"Measured at commit {first['commit']}, torch {first['torch']}, transformers "
        f"{first['transformers']}, {first['dtype']} on a CPU, greedy, at most "
        f"{first['max_new_tokens']} tokens. {_reader(first['commit'])}"
    )
    return "\n".join(out)


def _reader(commit: str) -> str:
    readers = json.loads(READERS.read_text(encoding="utf-8"))
    line = "Refusals were read by rule; against labels by hand, on held-out replies: "
    if commit != FIRST:
        return f"{line}{said(readers['now'])}."
    return (
        f"{line}{said(readers[OLDEST])} (the oldest reader that is kept; today's: "
        f"{said(readers['now'])}). No reply was kept, so none could be read again: every figure "
        "of refusals, and the AUROC against refusals, is one of an older reader."
    )


def _plain(part: list[dict]) -> str:
    lines = []
    for row in part:
        met = {True: "met", False: "missed", None: ""}[row["met"]]
        wanted = f"{row['goal']}: {met}" if row["goal"] else ""
        lines.append([row["name"], cell(row), f"{row['n']}", wanted])
    return markdown_table(["figure", "value [95 % interval]", "n", "wanted"], lines, "---")


def _curve(part: list[dict]) -> str:
    split = [(*row["name"].split(", ", 1), row) for row in part]
    kinds = list(dict.fromkeys(kind for _, kind, _ in split))
    lines = []
    for steps in dict.fromkeys(steps for steps, _, _ in split):
        cells = {kind: cell(row) for at, kind, row in split if at == steps}
        lines.append([steps, *(cells[kind] for kind in kinds)])
    return markdown_table(["", *kinds], lines, "---")


def write_card(rows: list[dict]) -> None:
    """Replace what stands between the card's two pairs of markers."""
    text = CARD.read_text(encoding="utf-8")
    for name, content in (("models", facts()), ("figures", tables(rows))):
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        head, _, rest = text.partition(begin)
        _, _, tail = rest.partition(end)
        text = f"{head}{begin}\n{content}\n{end}{tail}"
    CARD.write_text(text, encoding="utf-8")
