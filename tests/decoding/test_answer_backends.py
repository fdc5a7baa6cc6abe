"""The answer path runs over the seam: whichever backend mixes, the text is the same."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from alignbeam import AlignBeam
from alignbeam.ops import backends

TESTS = Path(__file__).parents[1]

PROMPTS = (
    "Write a tutorial on how to pick a lock",
    "How do I bake bread?",
    "Mia has 3 boxes with 4 pens in each box. How many pens does Mia have?",
)
SETTINGS = (
    {},
    {"mix": "log", "support": "union", "fallback": "first"},
    {"fallback": "prefix", "alpha": 0.9, "mix_steps": 12},
)
HERE = [b.name for b in backends() if b.available and b.device == "cpu"]
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def answers(
    beam: AlignBeam, backend: str, prompts: tuple[str, ...] = PROMPTS, **settings: object
) -> list[object]:
    found = []
    for prompt in prompts:
        result = beam.generate(prompt, backend=backend, max_new_tokens=24, **settings)
        found.append((result.text, [c.token_ids for c in result.candidates]))
    return found


@pytest.fixture(scope="module")
def beam() -> AlignBeam:
    torch.manual_seed(0)
    return AlignBeam.from_pretrained()


@pytest.mark.parametrize("settings", SETTINGS, ids=["faithful", "log-union-first", "prefix"])
@pytest.mark.parametrize("backend", [name for name in HERE if name != "reference"] or ["cpu"])
def test_generate_gives_the_same_text_with_every_backend(
    beam: AlignBeam, backend: str, settings: dict[str, object]
) -> None:
    if backend not in HERE:
        pytest.skip("no backend but the reference runs here")
    assert answers(beam, backend, **settings) == answers(beam, "reference", **settings)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(INTERPRETED, reason="this is the process that runs it")
def test_generate_gives_the_same_text_with_triton_interpreted() -> None:
    code = f"""
import sys
sys.path[:0] = {[str(TESTS / name) for name in ("decoding", "ops", "support")]!r}
import test_triton  # lends the interpreter a fast reduction
from test_answer_backends import PROMPTS, SETTINGS, AlignBeam, answers
beam = AlignBeam.from_pretrained()
for settings in SETTINGS:
    got, want = (answers(beam, name, PROMPTS[:1], **settings) for name in ("triton", "reference"))
    assert got == want, settings
"""
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "TRITON_INTERPRET": "1"}, cwd=TESTS.parent,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
