"""What a run will do, decided before it does anything: units of work, keys, canonical order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from alignbeam.eval.datasets import DataSet, Sample, locate, part_of, take
from alignbeam.eval.download import Progress, sha256_of
from alignbeam.eval.methods import Method, build_method
from alignbeam.eval.methods.sharing import shares_work
from alignbeam.eval.run.records import FORMAT_VERSION
from alignbeam.eval.suite import Suite
from alignbeam.models.conversation import Message, as_messages
from alignbeam.version import __version__


@dataclass(frozen=True)
class Asked:
    """A sample with the set it was drawn from.

    Attributes
    ----------
    dataset : DataSet
    sample : Sample
        As it is asked.
    bare : list of messages or None
        The set's own request, where a template made another of it.
    """

    dataset: DataSet
    sample: Sample
    bare: list[Message] | None = None

    @property
    def messages(self) -> list[dict[str, str]]:
        """The request as messages."""
        return as_messages(self.sample.prompt)


@dataclass(frozen=True)
class Point:
    """A method under a label."""

    label: str
    method: Method


#: Points that are answered together, because their work is the same; mostly one.
Unit = tuple[Point, ...]


@dataclass(frozen=True)
class Plan:
    """All that a run asks.

    Attributes
    ----------
    asked : list of Asked
        In canonical order: by set as the suite names them, then by file order.
    units : list of Unit
        In the suite's order.
    batch_size : int
    base : mapping
        What decides every answer, whatever the method: models, seed, common settings.
    """

    asked: list[Asked]
    units: list[Unit]
    batch_size: int
    base: Mapping[str, Any]

    @property
    def points(self) -> list[Point]:
        """All points, in canonical order."""
        return [point for unit in self.units for point in unit]

    @property
    def bare(self) -> dict[tuple[str, str], list[Message]]:
        """The sets' own requests by data set and sample id, where a template made others."""
        found = ((a.dataset.name, a.sample.sample_id, a.bare) for a in self.asked)
        return {(name, ident): bare for name, ident, bare in found if bare is not None}

    def batches(self) -> Iterator[list[Asked]]:
        """Yield samples that are asked together: never of two sets, and always the same ones."""
        for _, of_set in groupby(self.asked, lambda asked: asked.dataset.name):
            samples = list(of_set)
            for start in range(0, len(samples), self.batch_size):
                yield samples[start : start + self.batch_size]

    def key(self, point: Point, asked: Asked) -> str:
        """SHA-256 (hex) of everything that decides one answer."""
        deciding = point.method.depends_on
        models = self.base["models"]
        material = {
            **self.base,
            "models": models if deciding is None else {name: models.get(name) for name in deciding},
            "label": point.label,
            "method": point.method.name,
            "settings": point.method.settings,
            "dataset": asked.dataset.name,
            "sample": dataclasses.asdict(asked.sample),
        }
        text = json.dumps(material, sort_keys=True, allow_nan=False)
        return hashlib.sha256(text.encode()).hexdigest()

    def all_keys(self) -> list[str]:
        """Return all keys, in canonical order: by method, then by sample."""
        return [self.key(point, asked) for point in self.points for asked in self.asked]


def make_plan(
    suite: Suite,
    models: Mapping[str, Any],
    *,
    data: Path | None = None,
    progress: Progress = lambda done, total: None,
) -> tuple[Plan, list[dict[str, Any]]]:
    """Read the sets and lay out the work.

    Parameters
    ----------
    models : mapping
        What the models are (``loading.describe_models``).
    data : Path or None
        Data folder; None takes ``ALIGNBEAM_DATA``.

    Returns
    -------
    plan : Plan
    datasets : list of mapping
        For the manifest.

    Raises
    ------
    ConfigError, DownloadError
        A set that is not to be had.
    """
    asked: list[Asked] = []
    described = []
    for choice in suite.datasets:
        declared = choice.declared
        path = locate(declared, data, progress=progress)
        there = declared.samples(path)
        drawn = take(part_of(there, choice.part, suite.seed), choice.limit, suite.seed, choice.skip)
        for sample in drawn:
            if choice.template is None:
                asked.append(Asked(declared, sample))
                continue
            bare = as_messages(sample.prompt)
            under = dataclasses.replace(sample, prompt=choice.template(bare[-1]["content"]))
            asked.append(Asked(declared, under, bare))
        described.append(
            {
                "name": declared.name,
                "label": declared.label,
                "count": len(drawn),
                "of": len(there),
                "measures": declared.measures,
                "source": declared.source,
                "licence": declared.licence,
                "sha256": sha256_of(path),
            }
        )
    points = [Point(m.label, build_method(m.method, m.settings)) for m in suite.methods]
    base = {
        "format": FORMAT_VERSION,
        "alignbeam": __version__,
        "models": models,
        "beam": dict(suite.beam),
        "seed": suite.seed,
        "batch_size": suite.batch_size,
    }
    return Plan(asked, _units(points), suite.batch_size, base), described


def _units(points: Sequence[Point]) -> list[Unit]:
    """Group points whose work can be shared; a group stands where its first point stood."""
    groups: list[list[Point]] = []
    for point in points:
        for group in groups:
            if shares_work(group[0].method, point.method):
                group.append(point)
                break
        else:
            groups.append([point])
    return [tuple(group) for group in groups]
