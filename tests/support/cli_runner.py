"""The command line, run inside the test process, on random models saved to folders."""

from __future__ import annotations

import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from tiny_models import byte_level_tokenizer, end_ids_of, random_model, sentencepiece_tokenizer

from alignbeam.cli import main


@dataclass(frozen=True)
class Ran:
    """What one call left behind."""

    code: int
    out: str
    err: str


class Runner:
    """Calls ``alignbeam ARGS`` with a given standard input."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *args: object, stdin: bytes = b"") -> Ran:
        self._monkeypatch.setattr(sys, "argv", ["alignbeam", *map(str, args)])
        self._monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8")
        )
        self._capsys.readouterr()
        code = main()
        seen = self._capsys.readouterr()
        return Ran(code, seen.out, seen.err)


def save_models(folder: Path) -> Path:
    """Save a random target, anchor and judge, and a configuration that names them.

    The judge's weights are random, so its floor and threshold let everything pass, and one beam
    leaves it no choice: what is tested is the way to the answer, not the answer.
    """
    models = {
        "target": ("llama", byte_level_tokenizer()),
        "anchor": ("gpt_neox", sentencepiece_tokenizer()),
        "judge": ("llama", byte_level_tokenizer(460)),
    }
    lines = ["[beam]", "beams = 1", "max_new_tokens = 12", "threshold = 5", ""]
    for seed, (name, (architecture, tokenizer)) in enumerate(models.items()):
        place = folder / name
        ends = end_ids_of(tokenizer)
        model = random_model(
            architecture,
            len(tokenizer) + 3,
            seed=seed,
            end_ids=ends,
            max_position_embeddings=4096,
        )
        model.save_pretrained(place)
        tokenizer.save_pretrained(place)
        lines += [f"[{name}]", f'model = "{place}"']
    lines.append("label_mass_floor = 0.0")
    path = folder / "models.toml"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
