"""Data sets as declarations (``sets/catalogue.toml``): source, columns, what each measures.

Only requests are read, never replies. A set is looked for in the data folder (``ALIGNBEAM_DATA``),
then in the cache, and is otherwise downloaded once where the catalogue has its ``url``. Nothing
harmful ships with the package.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import random
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from alignbeam.cache_folder import cache_folder, make_cache_folder
from alignbeam.data_file import Row, read_rows
from alignbeam.errors import ConfigError
from alignbeam.eval.download import MAX_BYTES, Progress, download, sha256_of
from alignbeam.eval.run.records import Label
from alignbeam.models.conversation import Prompt, as_messages

#: Halves of a set: one to choose settings on, the other to say what they are worth.
Part = Literal["all", "tuning", "held-out"]
_PACKAGED: Final = Path(__file__).parent / "sets"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes
    ----------
    sample_id : str
        Unique in its set.
    prompt : str or list of messages
        The user's message, or the conversation that ends in it.
    category : str
        The set's own; empty where it has none.
    reference : str or None
        The right answer, for utility sets.
    """

    sample_id: str
    prompt: Prompt
    category: str = ""
    reference: str | None = None


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """One set, or one split or half of one.

    Attributes
    ----------
    name : str
    label : {"harmful", "benign", "utility"}
    file : str
        Path in the data folder.
    sha256 : str or None
        Of that file; a file with another hash is refused. None where its bytes were not at hand
        when this was written: the hash of the first download is then held to ever after.
    url : str
        Where to fetch the file (``download``), pinned to a commit where that is known; empty
        where it must be laid out by hand (see ``source``).
    max_bytes : int
        A longer file is not fetched.
    prompt, ident, category, reference : str
        Columns; ``ident`` empty takes the row number from 0. Several columns for an id are
        joined: ``"a+b"``.
    keep : (str, str) or None
        Column and the value that a row must have there.
    every : int
        Keep rows 0, every, 2 * every, ...
    form : str
        Names the function that makes a ``Sample`` of a row, where columns alone do not say it.
    scoring : {"", "number", "letter"}
        How utility answers are read.
    measures, source, licence : str
        For the report.
    """

    name: str
    label: Label
    file: str
    measures: str
    source: str
    licence: str
    sha256: str | None = None
    url: str = ""
    max_bytes: int = MAX_BYTES
    prompt: str = "prompt"
    ident: str = ""
    category: str = ""
    reference: str = ""
    keep: tuple[str, str] | None = None
    every: int = 1
    form: str = ""
    scoring: str = ""

    def samples(self, path: Path) -> list[Sample]:
        """Read all samples of this set from its file, in file order.

        Raises
        ------
        ConfigError
            A column is missing, an id occurs twice, or nothing is there.
        """
        found: dict[str, Sample] = {}
        lines: dict[str, str] = {}
        for number, row in enumerate(read_rows(path)):
            try:
                if self.keep is not None and str(row[self.keep[0]]) != self.keep[1]:
                    continue
                if number % self.every:
                    continue
                name = "-".join(_cell(row, c) for c in self.ident.split("+") if c) or str(number)
                sample = _FORMS[self.form](name, row) if self.form else self._plain(name, row)
            except (KeyError, TypeError, ValueError, IndexError) as error:
                why = f"{type(error).__name__} {error}"
                if isinstance(error, ConfigError):
                    why = f"{error}; prompt, ident, category and reference of the set name columns"
                raise ConfigError(f"{row.where} is no row of {self.name}: {why}") from error
            name = sample.sample_id
            if name in found:
                raise ConfigError(f"two rows have the id {name!r}: {lines[name]} and {row.where}")
            found[name], lines[name] = sample, row.where
        if not found:
            raise ConfigError(f"{path}: 0 samples of {self.name}")
        return list(found.values())

    def _plain(self, name: str, row: Row) -> Sample:
        return Sample(
            name,
            _request(row[self.prompt]),
            str(row[self.category]) if self.category and row[self.category] is not None else "",
            _cell(row, self.reference) if self.reference else None,
        )


def _request(value: Any) -> Prompt:
    messages = as_messages(value)
    return value if isinstance(value, str) else messages


def _cell(row: Row, column: str) -> str:
    value = row[column]
    if value is None or not str(value).strip():
        raise ValueError(f"nothing stands in its column {column!r}")
    return str(value)


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no request but {value!r}")
    return value


def _gsm8k(name: str, row: Row) -> Sample:
    """Read what stands behind ``####``, and not the calculation before it."""
    return Sample(name, _text(row["question"]), "", row["answer"].split("####")[1].strip())


def _medqa(name: str, row: Row) -> Sample:
    options = row["options"]
    lines = [f"{letter}. {options[letter]}" for letter in sorted(options)]
    asked = "\n".join([_text(row["question"]), *lines, "Answer with the letter of one option."])
    return Sample(name, asked, str(row.get("meta_info", "")), str(row["answer_idx"]))


def _sorry_bench(name: str, row: Row) -> Sample:
    turns = row["turns"]
    return Sample(str(row["question_id"]), _text(turns[0]), str(row["category"]))


#: How a row becomes a sample where columns alone do not say it.
_FORMS: Final[dict[str, Callable[[str, Row], Sample]]] = {
    "gsm8k": _gsm8k,
    "medqa": _medqa,
    "sorry-bench": _sorry_bench,
}


def _declared() -> dict[str, DataSet]:
    tables = tomllib.loads((_PACKAGED / "catalogue.toml").read_text(encoding="utf-8"))
    sets = {}
    for name, table in tables.items():
        values = {**tables.get(table.pop("like", ""), {}), **table}
        if "keep" in values:
            values["keep"] = tuple(values["keep"])
        sets[name] = DataSet(name=name, **values)
    return sets


#: All declared sets, by name.
DATASETS: Final = _declared()


def dataset(name: str) -> DataSet:
    """Return a declared set.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(f"unknown data set {name!r}; {hint}known: {', '.join(sorted(DATASETS))}")
    return DATASETS[name]


def data_folder() -> Path | None:
    """Return the folder that ``ALIGNBEAM_DATA`` names, or None."""
    given = os.environ.get("ALIGNBEAM_DATA", "")
    return Path(given) if given else None


def locate(
    declared: DataSet,
    folder: Path | None = None,
    *,
    fetch: bool = True,
    progress: Progress = lambda done, total: None,
) -> Path:
    """Find a set's file, checked against its hash; download it where it is nowhere.

    Parameters
    ----------
    folder : Path or None
        Data folder; None takes ``ALIGNBEAM_DATA``.
    fetch : bool
        Whether a download is allowed.

    Raises
    ------
    ConfigError
        It is not there and cannot be fetched, or its hash is another.
    DownloadError
        The download failed, or brought another file.
    """
    own = Path(declared.file)
    data = folder if folder is not None else data_folder()
    cache = cache_folder("data")
    folders = [_PACKAGED, *(known for known in (data, cache) if known is not None)]
    for path in (known / own for known in folders):
        if not path.is_file():
            continue
        found = sha256_of(path)
        if declared.sha256 is not None and found != declared.sha256:
            raise ConfigError(
                f"{path} is not the pinned file of {declared.name}: SHA-256 {found}, wanted "
                f"{declared.sha256}; fetch it again from {declared.source}"
            )
        return path
    if own.is_absolute():
        raise ConfigError(f"there is no file {own} to read the set {declared.name} from")
    if not declared.url:
        why = f"get it from {declared.source}"
    elif not fetch:
        why = "downloads are switched off"
    elif cache is None:
        why = "there is no home folder to fetch it into; set ALIGNBEAM_CACHE"
    else:
        make_cache_folder(cache)
        path = cache / own
        download(
            declared.url, path, declared.sha256, max_bytes=declared.max_bytes, progress=progress
        )
        return path
    raise ConfigError(
        f"data set {declared.name} is not here ({declared.file} in "
        f"{data or 'ALIGNBEAM_DATA, which is not set'}); {why}"
    )


def part_of(samples: Sequence[Sample], part: Part, seed: int) -> list[Sample]:
    """Return one half of a set, in file order, or ``"all"`` of it as it is.

    The same prompt is never in both halves, nor twice in one: counted as several, a prompt that a
    file repeats would narrow every interval. The halves depend on the seed and the prompts alone.
    """
    if part == "all":
        return list(samples)

    def place(sample: Sample) -> str:
        text = json.dumps([seed, as_messages(sample.prompt)], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()

    found: dict[str, Sample] = {}
    for sample in samples:
        found.setdefault(place(sample), sample)
    first = set(sorted(found)[: len(found) // 2])
    return [sample for at, sample in found.items() if (at in first) == (part == "tuning")]


def take(samples: Sequence[Sample], limit: int | None, seed: int, skip: int = 0) -> list[Sample]:
    """Draw ``limit`` samples without replacement, in file order; all of them with None.

    The draw depends on the seed and the ids alone, and a smaller limit is a part of a larger one.
    With ``skip`` the first so many of the draw are left out: what a run with that limit asked.
    """
    limit = len(samples) if limit is None else limit
    if skip == 0 and limit >= len(samples):
        return list(samples)
    order = list(range(len(samples)))
    random.Random(f"alignbeam {seed}").shuffle(order)
    return [samples[i] for i in sorted(order[skip : skip + limit])]
