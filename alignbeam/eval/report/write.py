"""A report's folder: page, pictures and tables."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from alignbeam.errors import ConfigError
from alignbeam.eval.report.extra import check_extra
from alignbeam.eval.report.page import render_page
from alignbeam.eval.report.pictures import write_pictures
from alignbeam.eval.report.snapshot import find_runs
from alignbeam.eval.report.tables import write_tables


def write_report(
    runs: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]
) -> tuple[list[Path], list[str]]:
    """Write ``report.html``, ``figures/`` and ``tables/`` over runs.

    Parameters
    ----------
    runs : sequence of path
        Folders written by ``alignbeam eval`` or ``alignbeam sweep``; a folder of such folders
        stands for all of them.
    out : path
        Files of the same names are overwritten, all others are left alone.

    Returns
    -------
    written : list of Path
        The page first.
    warnings : list of str
        What the runs lack.

    Raises
    ------
    ConfigError
        No run there, ``out`` is no folder, or the extra ``report`` is missing.
    RecordError
        A run that cannot be read.
    """
    check_extra()
    found, folder = find_runs(runs), Path(out)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; --out must name a folder")
    page = render_page(found)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "report.html"
    path.write_text(page, encoding="utf-8")
    written = [path, *write_pictures(found, folder / "figures")]
    written += write_tables(found, folder / "tables")
    return written, [f"{run.ident}: {words}" for run in found for words in run.warnings()]
