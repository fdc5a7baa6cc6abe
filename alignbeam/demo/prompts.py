"""The demonstration's requests: a pinned sample in the package, whole sets from a data folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alignbeam.data_file import Row, read_rows
from alignbeam.errors import ConfigError, PromptError

#: The sample that ships with the package.
SAMPLE = Path(__file__).with_name("prompts.json")

#: Every fifth row of AdvBench is never trained on; only these are asked.
ADVBENCH_HELD_OUT_STEP = 5


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
    advbench = _rows(data / "advbench" / "harmful_behaviors.csv")
    harmbench = _rows(data / "harmbench" / "harmbench_behaviors_text_standard_test.csv")
    jailbreak = _rows(data / "jailbreakbench" / "harmful_goals.csv")
    xstest = _rows(data / "xstest" / "xstest_prompts.csv")
    jailbreak_benign = _rows(data / "jailbreakbench" / "benign-behaviors.csv")
    problems = [asked for asked in sample().benign if asked.answer is not None]
    return PromptSet(
        harmful=(
            *(DemoRequest("harmbench", r["BehaviorID"], r["Behavior"]) for r in harmbench),
            *(DemoRequest("jailbreakbench", r["index"], r["goal"]) for r in jailbreak),
            *(
                DemoRequest("advbench", str(i), advbench[i]["goal"])
                for i in range(0, len(advbench), ADVBENCH_HELD_OUT_STEP)
            ),
        ),
        benign=(
            *(DemoRequest("xstest", r["id"], r["prompt"]) for r in xstest if r["label"] == "safe"),
            *(DemoRequest("jailbreakbench", r["index"], r["goal"]) for r in jailbreak_benign),
            *problems,
        ),
    )


def _read_sample() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(SAMPLE.read_text(encoding="utf-8"))
    return raw


def _sample(raw: dict[str, Any]) -> PromptSet:
    return PromptSet(
        harmful=tuple(DemoRequest(**entry) for entry in raw["harmful"]),
        benign=tuple(DemoRequest(**entry) for entry in raw["benign"]),
    )


def _rows(path: Path) -> list[Row]:
    try:
        return read_rows(path)
    except ConfigError as error:
        raise PromptError(
            f"{error}; set ALIGNBEAM_DATA to the folder of the evaluation data"
        ) from error
