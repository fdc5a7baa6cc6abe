"""Scores that another program gave, put beside a run's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alignbeam.errors import ConfigError
from alignbeam.eval.run.files import Journal, RunFiles, lock_run
from alignbeam.eval.run.records import SCORES, Score


def add_scores(folder: Path, name: str, scores: Sequence[Score], note: str) -> None:
    """Add scores to a run that is answered; scoring it again keeps them.

    Parameters
    ----------
    name : str
        Of the scorer; scores of several methods share it, each given once.
    scores : sequence of Score
        By this scorer, of answers of this run.
    note : str
        What is known against the scorer.

    Raises
    ------
    ConfigError
        The run is not answered, another process writes to it, the name is a scorer's of the run
        itself, or the answers have other scores of that name.
    RecordError
        There is no run.
    """
    files = RunFiles(folder)
    files.manifest()  # before the lock, which would make the folder
    with lock_run(folder):
        manifest = files.manifest()
        if not manifest["complete"]["generations"]:
            raise ConfigError(f"{folder} is not complete; answer the rest before adding scores")
        own = [s["name"] for s in manifest["scorers"] if not s.get("imported")]
        if name in own:
            raise ConfigError(f"{name!r} is a scorer of the run itself; choose another name")
        journal = Journal(folder / SCORES, ("key", "scorer"))
        try:
            # The same ones again may fill what a failed answer, asked anew, lacks.
            there = {score.key: score for score in files.scores() if score.scorer == name}
            if any(there.get(score.key, score) != score for score in scores):
                raise ConfigError(
                    f"{folder} has other scores of {name!r} for these answers; choose another name"
                )
            if name not in [s["name"] for s in manifest["scorers"]]:
                entry = {"name": name, "kind": scores[0].kind, "selects": False, "note": note}
                manifest["scorers"].append({**entry, "imported": True})
                files.write_manifest(manifest)
            journal.append(score.to_line() for score in scores)
        finally:
            journal.close()
