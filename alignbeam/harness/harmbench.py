"""HarmBench's JSON files: test cases in, completions out, classified completions in.

``{behavior_id: [test_case, ...]}`` holds test cases, ``{behavior_id: [{"test_case": ...,
"generation": ...}, ...]}`` completions, and a classified file adds ``"label"`` to each: 1 where
the classifier saw the behaviour, 0 where it did not.

Source
------
Mazeika et al., HarmBench, arXiv 2402.04249; its ``docs/evaluation_pipeline.md``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from alignbeam.data_file import parse_json, read_text
from alignbeam.errors import ConfigError
from alignbeam.eval.run.records import Generation, Score

#: Parts a behaviour's id from the number of its test case, where it has several.
_PART: Final = "/"
#: Harm of a completion that the classifier labelled 0 and 1, on the scale of our judges.
_SAFE, _HARMFUL = 1.0, 5.0


@dataclass(frozen=True, slots=True)
class Completion:
    """One completion of one test case.

    Attributes
    ----------
    test_case, generation : str
    label : int or None
        1: the classifier saw the behaviour; 0: it did not; None: not classified. Any other
        number is a classifier that could not tell.
    """

    test_case: str
    generation: str
    label: int | None = None


Completions = Mapping[str, Sequence[Completion]]


def read_cases(path: Path) -> dict[str, list[str]]:
    """Read a file of test cases.

    Raises
    ------
    ConfigError
        It is no such file, or holds something else than text (HarmBench's multimodal cases).
    """
    found: dict[str, list[str]] = {}
    for behavior, cases in _behaviors(path).items():
        for case in cases:
            if not isinstance(case, str) or not case.strip():
                raise ConfigError(
                    f"{path}: a test case of {behavior!r} must be text, got {case!r:.60}; "
                    "multimodal cases cannot be asked here"
                )
        found[behavior] = list(cases)
    return found


def read_completions(path: Path) -> dict[str, list[Completion]]:
    """Read a file of completions, classified or not.

    Raises
    ------
    ConfigError
        It is no such file; names the behaviour and what is wrong with it.
    """
    return {
        behavior: [_completion(row, f"{path}: {behavior!r}, completion {i}") for i, row in rows]
        for behavior, rows in ((b, enumerate(found)) for b, found in _behaviors(path).items())
    }


def requests_of(cases: Mapping[str, Sequence[str]]) -> list[dict[str, str]]:
    """Return test cases as the rows of a data set of one's own: ``id`` and ``prompt``.

    A behaviour with one test case keeps its id; several are numbered, ``behavior/0``.
    """
    return [
        {"id": behavior if len(texts) == 1 else f"{behavior}{_PART}{i}", "prompt": text}
        for behavior, texts in cases.items()
        for i, text in enumerate(texts)
    ]


def pick(generations: Sequence[Generation], method: str, dataset: str | None) -> list[Generation]:
    """Return a method's answers to HarmBench's requests, in the run's order.

    Parameters
    ----------
    method : str
        Label in the run.
    dataset : str or None
        None takes the run's only set whose name begins with ``harmbench``.

    Raises
    ------
    ConfigError
        No such method or set, or several sets to choose from.
    """
    methods = list(dict.fromkeys(g.method for g in generations))
    if method not in methods:
        raise ConfigError(f"the run has no method {method!r}; it has {', '.join(methods)}")
    sets = list(dict.fromkeys(g.dataset for g in generations))
    if dataset is None:
        near = [name for name in sets if name.startswith("harmbench")]
        if len(near) != 1:
            what = f"several of HarmBench ({', '.join(near)})" if near else "none of HarmBench"
            raise ConfigError(f"of its sets ({', '.join(sets)}) the run has {what}; name --dataset")
        (dataset,) = near
    elif dataset not in sets:
        raise ConfigError(f"the run has no data set {dataset!r}; it has {', '.join(sets)}")
    return [g for g in generations if g.method == method and g.dataset == dataset]


def completions_of(generations: Sequence[Generation]) -> dict[str, list[Completion]]:
    """Return answers as completions; those of one behaviour stay in order.

    Raises
    ------
    ConfigError
        An answer is missing: an empty one in its place would count as harmless.
    """
    found: dict[str, list[Completion]] = {}
    for g in generations:
        if g.answer is None:
            raise ConfigError(
                f"{g.method} has no answer to {g.sample_id} ({g.error}); mend the cause and run "
                "again, or leave failed samples out with --skip-failed"
            )
        found.setdefault(behavior_of(g), []).append(Completion(_asked(g), g.answer))
    return found


def to_json(completions: Completions) -> str:
    """Return completions as HarmBench writes them."""
    rows = {
        behavior: [_row(completion) for completion in found]
        for behavior, found in completions.items()
    }
    return json.dumps(rows, indent=4, ensure_ascii=False) + "\n"


def scores_of(
    generations: Sequence[Generation], classified: Completions, scorer: str
) -> list[Score]:
    """Return the labels of classified completions as scores of the answers they belong to.

    Parameters
    ----------
    generations : sequence of Generation
        Of one method and set (``pick``); every answered one needs a label.
    scorer : str
        Name of the classifier in the run.

    Raises
    ------
    ConfigError
        A label is missing, or belongs to another request or answer. HarmBench cuts a generation
        to the length that its classifier reads, so the beginning has to be the answer's.
    """
    waiting = {behavior: list(found) for behavior, found in classified.items()}
    scores = []
    for g in generations:
        behavior = behavior_of(g)
        if g.answer is None:
            scores.append(Score(g.key, scorer, "harm", "error", None, g.error or ""))
            continue
        queue = waiting.get(behavior, [])
        if not queue:
            raise ConfigError(f"no label for {g.sample_id}: classify all completions of the export")
        completion = queue.pop(0)
        if completion.label is None:
            raise ConfigError(f'{behavior!r} has a completion without "label"; classify the file')
        if completion.test_case != _asked(g) or not _begins(g.answer, completion.generation):
            raise ConfigError(
                f"the completion of {behavior!r} is not the run's answer to {g.sample_id}: "
                "another method, set or run; label what was exported from this one"
            )
        scores.append(_score(g.key, scorer, completion.label))
    left = [behavior for behavior, queue in waiting.items() if queue]
    if left:
        raise ConfigError(f"labels that no answer belongs to: {', '.join(left[:5])}")
    return scores


def behavior_of(generation: Generation) -> str:
    """Return the behaviour that a request belongs to."""
    return generation.sample_id.partition(_PART)[0]


def _behaviors(path: Path) -> dict[str, list[Any]]:
    found = parse_json(read_text(path), str(path))
    if not isinstance(found, dict) or not found:
        raise ConfigError(f"{path} must be a JSON object with a list for each behaviour")
    for behavior, rows in found.items():
        if not isinstance(rows, list) or not rows:
            raise ConfigError(f"{path}: {behavior!r} must have a list with something in it")
        if _PART in behavior:
            raise ConfigError(f"{path}: the behaviour id {behavior!r} must not hold {_PART!r}")
    return found


def _completion(row: object, where: str) -> Completion:
    if not isinstance(row, dict):
        raise ConfigError(f"{where} must be an object, got {type(row).__name__}")
    for key in ("test_case", "generation"):
        if not isinstance(row.get(key), str):
            raise ConfigError(f'{where}: "{key}" must be text, got {row.get(key)!r:.60}')
    label = row.get("label")
    if label is not None and not isinstance(label, int):
        raise ConfigError(f'{where}: "label" must be 1 or 0, got {label!r:.60}')
    return Completion(row["test_case"], row["generation"], None if label is None else int(label))


def _row(completion: Completion) -> dict[str, Any]:
    row = {"test_case": completion.test_case, "generation": completion.generation}
    return row if completion.label is None else {**row, "label": completion.label}


def _asked(generation: Generation) -> str:
    return generation.messages[-1]["content"]


def _begins(answer: str, generation: str) -> bool:
    """Whether one is the other's beginning; a tokenizer's round trip may change blanks."""
    whole, head = ("".join(text.split()) for text in (answer, generation))
    return whole.startswith(head) and bool(head) == bool(whole)


def _score(key: str, scorer: str, label: int) -> Score:
    if label == 1:
        return Score(key, scorer, "harm", "harmful", _HARMFUL)
    if label == 0:
        return Score(key, scorer, "harm", "safe", _SAFE)
    return Score(key, scorer, "harm", "error", None, f"label {label}")
