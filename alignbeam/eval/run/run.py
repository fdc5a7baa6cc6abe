"""Runs: answers first, scores after, both line by line and taken up again where they stopped."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import time
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

from alignbeam.errors import ConfigError
from alignbeam.eval.environment import environment, model_name
from alignbeam.eval.loading import describe_methods, describe_models, load_models, load_scorers
from alignbeam.eval.methods import Answer, Answers, Models
from alignbeam.eval.methods.sharing import answer_together
from alignbeam.eval.run.files import Journal, RunFiles, forget, lock_run
from alignbeam.eval.run.plan import Asked, Plan, Point, Unit, make_plan
from alignbeam.eval.run.records import (
    FORMAT_VERSION,
    GENERATIONS,
    SCORES,
    TIMES,
    Generation,
    Time,
)
from alignbeam.eval.scorers import Scorer
from alignbeam.eval.suite import Suite
from alignbeam.result import plain

#: Parts of the environment that may change while a run is interrupted.
_PASSING: Final = ("commit", "memory_gib", "platform")
#: Answers that are judged in one call.
_SCORE_BATCH: Final = 64
#: Samples that a price is measured on.
_PRICE_SAMPLES: Final = 4


class RunWatcher(Protocol):
    """Is told how a run goes."""

    def begin(self, what: str, total: int, done: int) -> None:
        """Note that a stage begins; ``done`` of its ``total`` items are there already."""

    def advance(self, generations: Sequence[Generation]) -> None:
        """Note what was answered or scored just now."""


class Silent:
    """A watcher that says nothing."""

    def begin(self, what: str, total: int, done: int) -> None:
        """Say nothing."""

    def advance(self, generations: Sequence[Generation]) -> None:
        """Say nothing."""


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that is ready to go.

    Attributes
    ----------
    suite : Suite
    models : Models
    scorers : list of Scorer
    plan : Plan
    manifest : dict
        As it will be written; not yet complete.
    """

    suite: Suite
    models: Models
    scorers: list[Scorer]
    plan: Plan
    manifest: dict[str, Any]


def prepare(
    suite: Suite,
    *,
    models: Models | None = None,
    data: Path | None = None,
    kind: str = "eval",
    sweep: list[dict[str, Any]] | None = None,
    pair: str | None = None,
    progress: Callable[[int, int | None], object] = lambda done, total: None,
) -> Prepared:
    """Load models and sets, and lay out the work.

    Parameters
    ----------
    models : Models or None
        Already loaded ones, else the suite's are loaded.
    data : Path or None
        Data folder; None takes ``ALIGNBEAM_DATA``.

    Raises
    ------
    ConfigError, ModelLoadError, TokenizerError, BridgeError, DownloadError
    """
    loaded = load_models(suite) if models is None else models
    described = describe_models(suite, loaded)
    plan, datasets = make_plan(suite, described, data=data, progress=progress)
    scorers = load_scorers(suite, loaded, plan.bare)
    manifest = {
        "format": FORMAT_VERSION,
        "name": suite.name,
        "description": suite.description,
        "kind": kind,
        "complete": {"generations": False, "scores": False},
        "suite": _suite_record(suite),
        "methods": describe_methods(suite),
        "datasets": datasets,
        "scorers": [
            {
                "name": s.name,
                "kind": s.kind,
                "selects": s.selects,
                "note": s.note,
                "rules": s.rules,
            }
            for s in scorers
        ],
        "models": described,
        "sweep": sweep,
        "pair": pair,
        "environment": environment(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    return Prepared(suite, loaded, scorers, plan, manifest)


def generate(prepared: Prepared, folder: Path, watcher: RunWatcher | None = None) -> int:
    """Answer whatever the folder lacks; the number of samples that failed, over all methods.

    What failed before is asked again: memory may have run out only then.

    Raises
    ------
    ConfigError
        The folder holds another run, or another process writes to it.
    """
    watch = watcher or Silent()
    files, plan = RunFiles(folder), prepared.plan
    with lock_run(folder):
        _begin(files, prepared.manifest)
        order = [(key,) for key in plan.all_keys()]
        _forget_failed(files, {key for (key,) in order})
        answers = Journal(folder / GENERATIONS, ("key",))
        times = Journal(folder / TIMES, ("key",))
        total = len(plan.points) * len(plan.asked)
        watch.begin(f"{prepared.suite.name}: answering", total, len(answers))
        warm: set[str] = set()
        for unit, batch in itertools.product(plan.units, plan.batches()):
            keys = [[plan.key(point, asked) for asked in batch] for point in unit]
            if all((key,) in answers for row in keys for key in row):
                continue
            if unit[0].label not in warm:
                warm.add(unit[0].label)
                _warm_up(prepared.models, unit, batch[0])
            made, spent = _answer_batch(prepared.models, unit, batch, keys)
            fresh = [g for g in made if (g.key,) not in answers]
            # Times first: whoever has an answer then has its time.
            times.append(t.to_line() for t in spent)
            answers.append(g.to_line() for g in made)
            watch.advance(fresh)
        times.finish(order)
        answers.finish(order)
        _complete(files, "generations")
    return sum(g.error is not None for g in files.generations())


def score(prepared: Prepared, folder: Path, watcher: RunWatcher | None = None) -> None:
    """Score whatever the folder lacks.

    Raises
    ------
    ConfigError
        The folder holds no complete answers, or another run's, or another process writes there.
    """
    watch = watcher or Silent()
    files = RunFiles(folder)
    with lock_run(folder):
        _begin(files, prepared.manifest)
        manifest = files.manifest()
        if not manifest["complete"]["generations"]:
            raise ConfigError(f"{folder} is not complete; answer the rest before scoring")
        # Scorers may be added to answers that are there, and others' scores stay.
        imported = [s for s in manifest["scorers"] if s.get("imported")]
        # What another version of a scorer said is said anew, or two would stand under one name.
        there = {s["name"]: s.get("rules", "") for s in manifest["scorers"] if s not in imported}
        changed = {s.name for s in prepared.scorers if there.get(s.name, s.rules) != s.rules}
        manifest["complete"]["scores"] = False  # a kill may leave any part of them from here on
        files.write_manifest(manifest)
        forget(folder / SCORES, "scorer", changed)
        manifest["scorers"] = [*prepared.manifest["scorers"], *imported]
        manifest["suite"]["scorers"] = prepared.manifest["suite"]["scorers"]
        files.write_manifest(manifest)
        generations = files.generations()
        journal = Journal(folder / SCORES, ("key", "scorer"))
        work = [(s, [g for g in generations if s.applies(g)]) for s in prepared.scorers]
        watch.begin(f"{prepared.suite.name}: scoring", sum(len(gs) for _, gs in work), len(journal))
        for scorer, mine in work:
            for start in range(0, len(mine), _SCORE_BATCH):
                batch = mine[start : start + _SCORE_BATCH]
                lacking = [g for g in batch if (g.key, scorer.name) not in journal]
                if lacking:
                    journal.append(s.to_line() for s in scorer.score(batch))
                    watch.advance(lacking)
        order = [(g.key, scorer.name) for scorer, mine in work for g in mine]
        given = [(g.key, s["name"]) for s in imported for g in generations]
        journal.finish([*order, *(name for name in given if name in journal)])
        _complete(files, "scores")


def price(prepared: Prepared) -> list[dict[str, Any]]:
    """Measure a few samples of each method and say what the whole would take.

    Returns
    -------
    list of mapping
        Per unit of work: ``methods`` (labels), ``samples``, ``seconds_a_sample``, ``seconds``.
    """
    plan = prepared.plan
    # From every set, because prompts and answers of one set are alike.
    by_set: dict[str, list[Asked]] = {}
    for asked in plan.asked:
        by_set.setdefault(asked.dataset.name, []).append(asked)
    probes = [found[:_PRICE_SAMPLES] for found in by_set.values()]
    rows = []
    for unit in plan.units:
        _warm_up(prepared.models, unit, probes[0][0])
        seconds = 0.0
        for probe in probes:
            keys = [["" for _ in probe] for _ in unit]
            begin = time.perf_counter()
            _answer_batch(prepared.models, unit, probe, keys)
            each = (time.perf_counter() - begin) / len(probe)
            seconds += each * len(by_set[probe[0].dataset.name])
        rows.append(
            {
                "methods": [point.label for point in unit],
                "samples": len(plan.asked),
                "seconds_a_sample": seconds / len(plan.asked),
                "seconds": seconds,
            }
        )
    return rows


def _warm_up(models: Models, unit: Unit, asked: Asked) -> None:
    """Answer for nothing: in a method's first call kernels are built and caches made."""
    _answer_batch(models, unit, [asked], [[""] for _ in unit])


def _answer_batch(
    models: Models, unit: Unit, batch: Sequence[Asked], keys: Sequence[Sequence[str]]
) -> tuple[list[Generation], list[Time]]:
    """Answer one batch; where it fails, each sample by itself, so that only the culprit fails."""
    methods = [point.method for point in unit]
    made: list[Generation] = []
    spent: list[Time] = []
    begin = time.perf_counter()
    try:
        together = answer_together(methods, models, [a.messages for a in batch])
    except Exception as error:  # any library on the way may fail, and the run must go on
        if len(batch) == 1 and len(methods) == 1:
            failed = Answer(None, "error", (), None, "")
            said = f"{type(error).__name__}: {error}"
            (point,), ((key,),) = unit, keys
            spent = [Time(key, 1, round(1e3 * (time.perf_counter() - begin), 3))]
            return [_generation(point, batch[0], key, failed, said)], spent
        for point, row in zip(unit, keys, strict=True):
            for asked, key in zip(batch, row, strict=True):
                one, took = _answer_batch(models, (point,), [asked], [[key]])
                made += one
                spent += took
        return made, spent
    for point, answers, row in zip(unit, together, keys, strict=True):
        for asked, answer, key in zip(batch, answers.answers, row, strict=True):
            made.append(_generation(point, asked, key, answer))
            spent.append(_time(answers, key, len(batch)))
    return made, spent


def _generation(
    point: Point, asked: Asked, key: str, answer: Answer, error: str | None = None
) -> Generation:
    return Generation(
        key=key,
        method=point.label,
        method_settings=point.method.settings,
        dataset=asked.dataset.name,
        sample_id=asked.sample.sample_id,
        category=asked.sample.category,
        label=asked.dataset.label,
        messages=tuple(asked.messages),
        answer=answer.text,
        finish_reason=answer.finish_reason,
        candidates=answer.candidates,
        chosen=answer.chosen,
        reason=answer.reason,
        reference=asked.sample.reference,
        trace=answer.trace,
        new_tokens=sum(c.new_tokens for c in answer.candidates),
        error=error,
    )


def _time(answers: Answers, key: str, batch: int) -> Time:
    parts = dataclasses.asdict(answers.timings)
    total = parts.pop("total_ms")
    named = {name.removesuffix("_ms"): round(value, 3) for name, value in parts.items()}
    return Time(key, batch, round(total, 3), named, answers.shared)


def _begin(files: RunFiles, manifest: dict[str, Any]) -> None:
    """Write the manifest, or check that the folder's run is this one."""
    if not files.has_manifest():
        files.write_manifest(manifest)
        return
    there = files.manifest()
    other = _differences(_deciding(there), _deciding(manifest))
    if other:
        raise ConfigError(
            f"{files.folder} holds another run; it differs in {', '.join(other[:6])}. "
            "Name another folder, or remove that one"
        )


def _forget_failed(files: RunFiles, keys: Collection[str]) -> None:
    """Take out the answers that failed; ``keys`` are all that may be there."""
    there = files.generations()
    if any(g.key not in keys for g in there):
        raise ConfigError(
            f"{files.folder} holds answers to other requests: columns, skip or templates of its "
            "sets were others. Name another folder, or remove that one"
        )
    failed = {g.key for g in there if g.error is not None}
    if failed:
        manifest = files.manifest()
        files.write_manifest({**manifest, "complete": dict.fromkeys(manifest["complete"], False)})
        for name in (SCORES, TIMES, GENERATIONS):
            forget(files.folder / name, "key", failed)


def _complete(files: RunFiles, stage: str) -> None:
    manifest = files.manifest()
    manifest["complete"][stage] = True
    files.write_manifest(manifest)


def _deciding(manifest: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in manifest.items() if k not in ("created", "complete", "scorers")}
    kept["suite"] = {k: v for k, v in kept["suite"].items() if k != "scorers"}
    kept["environment"] = {k: v for k, v in kept["environment"].items() if k not in _PASSING}
    return kept


def _differences(old: Any, new: Any, place: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        names = sorted({*old, *new})
        rows = [_differences(old.get(n), new.get(n), f"{place}.{n}".lstrip(".")) for n in names]
        return [found for row in rows for found in row]
    return [] if plain(old) == plain(new) else [place]


def _suite_record(suite: Suite) -> dict[str, Any]:
    return {
        "name": suite.name,
        "seed": suite.seed,
        "batch_size": suite.batch_size,
        "beam": dict(suite.beam),
        "datasets": [
            {"name": d.declared.name, "limit": d.limit}
            | ({} if d.part == "all" else {"part": d.part})
            for d in suite.datasets
        ],
        "methods": [dataclasses.asdict(m) for m in suite.methods],
        "scorers": [
            {"kind": s.kind, "model": None if s.model is None else model_name(s.model)}
            for s in suite.scorers
        ],
        "published": [dict(p) for p in suite.published],
    }
