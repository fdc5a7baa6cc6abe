"""A run as it lies in its folder, read once, with a word on everything that it lacks."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from alignbeam.errors import ConfigError
from alignbeam.eval.run.files import RunFiles
from alignbeam.eval.run.records import (
    FORMAT_VERSION,
    GENERATIONS,
    MANIFEST,
    SCORES,
    TIMES,
    Generation,
    RecordError,
    Score,
    Time,
)
from alignbeam.eval.run.summary import BASELINE

_NEEDED: Final = (
    *("name", "description", "kind", "complete", "suite", "methods", "datasets", "scorers"),
    *("models", "sweep", "pair", "environment", "created"),
)


class Snapshot(RunFiles):
    """The files of a run, each read once; scores and times without their answer are left out.

    A run that is still being written, or whose answers were torn by a kill, can hold such scores.

    Parameters
    ----------
    folder : path

    Raises
    ------
    RecordError
        There is no manifest, something cannot be read, or another version wrote it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        super().__init__(folder)
        self.ident = ""
        self._manifest = _checked(super().manifest(), self.folder / MANIFEST)
        self._generations = super().generations()
        self._keys = frozenset(g.key for g in self._generations)
        self._scores, self._times = super().scores(), super().times()

    def manifest(self) -> dict[str, Any]:
        """Return the manifest."""
        return self._manifest

    def generations(self) -> list[Generation]:
        """Return all answers; a torn last line is left out."""
        return self._generations

    def scores(self) -> list[Score]:
        """Return the scores of the answers that are there."""
        return [s for s in self._scores if s.key in self._keys]

    def times(self) -> list[Time]:
        """Return the times of the answers that are there."""
        return [t for t in self._times if t.key in self._keys]

    @property
    def title(self) -> str:
        """Name of the suite or sweep, and of the pair of models."""
        manifest = self.manifest()
        return str(manifest["name"]) + (f", {manifest['pair']}" if manifest["pair"] else "")

    @property
    def expected(self) -> int:
        """How many answers the whole run has."""
        manifest = self.manifest()
        return len(manifest["methods"]) * sum(int(d["count"]) for d in manifest["datasets"])

    def warnings(self) -> list[str]:
        """Return what a reader must know before believing a figure of this run."""
        manifest, notes = self.manifest(), []
        there, complete = len(self.generations()), manifest["complete"]
        again = "run the same command again to take it up"
        if not complete.get("generations") or there < self.expected:
            notes.append(
                f"This run is incomplete: {there} of {self.expected} answers are there; {again}. "
                "Methods may have been asked different samples."
            )
        if there and not self.scores():
            notes.append(
                "Nothing is scored yet, so there are no rates: run the same command again with "
                "--score-only."
            )
        elif there and not complete.get("scores"):
            notes.append(f"The scores are incomplete; {again}. Rates count what is scored.")
        notes += [
            f"The last line of {name} is torn, as a kill leaves it; it was left out."
            for name in (GENERATIONS, SCORES, TIMES)
            if _is_torn(self.folder / name)
        ]
        orphans = len(self._scores) - len(self.scores())
        if orphans:
            notes.append(f"{orphans} scores belong to no answer that is there; they were left out.")
        failed = sum(g.answer is None for g in self.generations())
        if failed:
            notes.append(f"{failed} answers failed; a failure counts against its method.")
        return notes

    def remarks(self) -> list[str]:
        """Return what this run cannot tell because it was not asked for."""
        manifest, notes = self.manifest(), []
        labels = {d["label"] for d in manifest["datasets"]}
        if "harmful" not in labels:
            notes.append("No harmful set was asked: nothing here tells of safety.")
        if "benign" not in labels:
            notes.append(
                "No benign set was asked, so over-refusal is unknown: a system that refuses "
                "everything would look best here."
            )
        if "utility" not in labels:
            notes.append("No utility set was asked: what safety costs in ability is unknown.")
        if BASELINE not in {m["label"] for m in manifest["methods"]}:
            notes.append(
                f"The method {BASELINE} did not run, so nothing can be compared with it: no "
                "p-values, no changed answers."
            )
        return notes


def find_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Snapshot]:
    """Open runs; a folder of runs (a suite with several pairs of models) stands for all of them.

    Each gets an ``ident``: its title in letters that suit a file name, unique among them.

    Raises
    ------
    ConfigError
        No such folder, or no run in it.
    RecordError
        A manifest that cannot be read.
    """
    paths: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise ConfigError(f"there is no folder {folder}; name one that `alignbeam eval` wrote")
        inside = sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
        found = [folder] if RunFiles(folder).has_manifest() else inside
        if not found:
            raise ConfigError(
                f"{folder} holds no run: no {MANIFEST}, and none in its folders; name a folder "
                "that `alignbeam eval` or `alignbeam sweep` wrote"
            )
        paths |= dict.fromkeys(p.resolve() for p in found)
    runs, taken = [Snapshot(path) for path in paths], set[str]()
    for run in runs:
        stem = re.sub(r"[^a-z0-9]+", "-", run.title.lower()).strip("-") or "run"
        names = [stem, *(f"{stem}-{number}" for number in range(2, len(runs) + 1))]
        run.ident = next(name for name in names if name not in taken)
        taken.add(run.ident)
    return runs


def _checked(manifest: dict[str, Any], path: Path) -> dict[str, Any]:
    if manifest.get("format") != FORMAT_VERSION:
        raise RecordError(
            f"{path} has format {manifest.get('format')!r}, this version reads "
            f"{FORMAT_VERSION}: report with the version that wrote it, or run it again"
        )
    missing = [key for key in _NEEDED if key not in manifest]
    if missing:
        raise RecordError(f"{path} lacks {', '.join(missing)}; it is no manifest of a run")
    return manifest


def _is_torn(path: Path) -> bool:
    """Whether a file ends without a line break, or in a line that is no JSON."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return False
    if not content:
        return False
    last = content.rstrip(b"\n").rpartition(b"\n")[2]
    return not (content.endswith(b"\n") and last.startswith(b"{") and last.endswith(b"}"))
