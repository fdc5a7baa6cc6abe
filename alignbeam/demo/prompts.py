"""The demonstration's requests: a pinned sample in the package, whole sets from a data folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbeam.errors import PromptError
from alignbeam.eval.datasets import dataset

#: The sample that ships with the package.
SAMPLE = Path(__file__).with_name("prompts.json")


@dataclass(frozen=True, slots=True)
class DemoRequest:
    """One request.

    Attributes
    ----------
    source, row : str
        The set it comes from, and which of its rows.
    prompt : str
        The request.
    answer : str or None
        The number that a right answer ends in, for word problems.
    """

    source: str
    row: str
    prompt: str
    answer: str | None = None


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Requests by what a safe system does with them: refuse the harmful, answer the benign."""

    harmful: tuple[DemoRequest, ...]
    benign: tuple[DemoRequest, ...]


def sample() -> PromptSet:
    """Return the sample that ships with the package (``prompts.json``)."""
    return _sample(_read_sample())


def shown_pair() -> tuple[DemoRequest, DemoRequest]:
    """Return the harmful and the benign request of the sample that are shown in full."""
    raw = _read_sample()
    whole = _sample(raw)

    def find(kind: str, among: tuple[DemoRequest, ...]) -> DemoRequest:
        wanted = raw["shown"][kind]
        return next(a for a in among if (a.source, a.row) == (wanted["source"], wanted["row"]))

    return find("harmful", whole.harmful), find("benign", whole.benign)


def whole_sets(data: Path) -> PromptSet:
    """Read the published sets from ``data``: held-out harmful requests, and benign ones.

    Harmful: HarmBench-Standard test, JailbreakBench, AdvBench's held-out fifth. Benign: XSTest
    safe, JailbreakBench benign, and the sample's word problems.

    Raises
    ------
    PromptError
        A file is missing; names it.
    """
    problems = [asked for asked in sample().benign if asked.answer is not None]
    harmful = ("harmbench-test", "jailbreakbench-harmful", "advbench-heldout")
    benign = ("xstest-safe", "jailbreakbench-benign")
    return PromptSet(
        harmful=tuple(asked for name in harmful for asked in _published(data, name)),
        benign=(*(asked for name in benign for asked in _published(data, name)), *problems),
    )


def _published(data: Path, name: str) -> list[DemoRequest]:
    declared = dataset(name)
    path = data / declared.file
    if not path.is_file():
        raise PromptError(
            f"there is no {path}; set ALIGNBEAM_DATA to the folder of the evaluation data"
        )
    source = name.partition("-")[0]
    samples = declared.samples(path)
    return [DemoRequest(source, found.sample_id, str(found.prompt)) for found in samples]


def _read_sample() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(SAMPLE.read_text(encoding="utf-8"))
    return raw


def _sample(raw: dict[str, Any]) -> PromptSet:
    return PromptSet(
        harmful=tuple(DemoRequest(**entry) for entry in raw["harmful"]),
        benign=tuple(DemoRequest(**entry) for entry in raw["benign"]),
    )
