"""Data sets as declarations: where each comes from, what its columns mean, what it measures.

Only requests are read, never replies. A set is looked for in the data folder (``ALIGNBEAM_DATA``),
then in the cache, and is otherwise downloaded once. Nothing harmful ships with the package.
"""

from __future__ import annotations

import csv
import difflib
import io
import json
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from alignbeam.errors import ConfigError
from alignbeam.eval.download import Progress, download, sha256_of
from alignbeam.eval.run.records import Label

_PACKAGED: Final = Path(__file__).parent / "sets"


@dataclass(frozen=True, slots=True)
class Sample:
    """One request.

    Attributes
    ----------
    sample_id : str
        Unique in its set.
    prompt : str
        The user's message.
    category : str
        The set's own; empty where it has none.
    reference : str or None
        The right answer, for utility sets.
    """

    sample_id: str
    prompt: str
    category: str = ""
    reference: str | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """A file on the network.

    Attributes
    ----------
    url : str
        Pinned to a commit where ``pinned``.
    sha256 : str or None
        Of the file; None where its bytes were not at hand when this was written. The commit in
        the address then pins it, and the hash of the first download is held to ever after.
    """

    url: str
    sha256: str | None = None


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
        Of that file; a file with another hash is refused.
    origin : Origin or None
        Where to fetch the file; None where it must be laid out by hand (see ``source``).
    prompt, ident, category, reference : str
        Columns; ``ident`` empty takes the row number from 0. Several columns for an id are
        joined: ``"a+b"``.
    keep : (str, str) or None
        Column and the value that a row must have there.
    every : int
        Keep rows 0, every, 2 * every, ...
    form : callable or None
        Makes a ``Sample`` of a row, where columns alone do not say it.
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
    origin: Origin | None = None
    prompt: str = "prompt"
    ident: str = ""
    category: str = ""
    reference: str = ""
    keep: tuple[str, str] | None = None
    every: int = 1
    form: Callable[[str, Mapping[str, Any]], Sample] | None = field(default=None, compare=False)
    scoring: str = ""

    def samples(self, path: Path) -> list[Sample]:
        """Read all samples of this set from its file, in file order.

        Raises
        ------
        ConfigError
            A column is missing, an id occurs twice, or nothing is there.
        """
        found: list[Sample] = []
        for number, row in enumerate(_rows(path)):
            if self.keep is not None and str(row.get(self.keep[0])) != self.keep[1]:
                continue
            if number % self.every:
                continue
            try:
                ident = "-".join(str(row[c]) for c in self.ident.split("+")) if self.ident else ""
                name = ident or str(number)
                found.append(self.form(name, row) if self.form else self._plain(name, row))
            except (KeyError, TypeError, ValueError, IndexError) as error:
                raise ConfigError(
                    f"{path}: row {number} is no row of {self.name}: {type(error).__name__} {error}"
                ) from error
        names = {sample.sample_id for sample in found}
        if not found or len(names) != len(found):
            raise ConfigError(f"{path}: {len(found)} samples of {self.name}, {len(names)} ids")
        return found

    def _plain(self, name: str, row: Mapping[str, Any]) -> Sample:
        return Sample(
            name,
            _text(row[self.prompt]),
            str(row[self.category]) if self.category else "",
            str(row[self.reference]) if self.reference else None,
        )


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"no request but {value!r}")
    return value


def _gsm8k(name: str, row: Mapping[str, Any]) -> Sample:
    """Read what stands behind ``####``, and not the calculation before it."""
    return Sample(name, _text(row["question"]), "", row["answer"].split("####")[1].strip())


def _medqa(name: str, row: Mapping[str, Any]) -> Sample:
    options = row["options"]
    lines = [f"{letter}. {options[letter]}" for letter in sorted(options)]
    asked = "\n".join([_text(row["question"]), *lines, "Answer with the letter of one option."])
    return Sample(name, asked, str(row.get("meta_info", "")), str(row["answer_idx"]))


def _sorry_bench(name: str, row: Mapping[str, Any]) -> Sample:
    turns = row["turns"]
    return Sample(str(row["question_id"]), _text(turns[0]), str(row["category"]))


_HARMBENCH: Final = "busycalibrating/AdversariaLLM @ f970939273ea17b491fadf6001fddc36ed3ae3ff"
_RAW: Final = "https://raw.githubusercontent.com"


def _declared() -> list[DataSet]:
    advbench: dict[str, Any] = {
        "file": "advbench/harmful_behaviors.csv",
        "sha256": "6cd1a5c63c07610d7eb67307772ee5606017ee950b5770ab288a2c487489d3e1",
        "prompt": "goal",
        "source": "uw-nsl/SafeDecoding @ 5b77507dea95031b6a067e6d5a136831103ae193 (as CSV)",
        "licence": "MIT",
    }
    harmbench: dict[str, Any] = {
        "prompt": "Behavior",
        "ident": "BehaviorID",
        "category": "SemanticCategory",
        "source": _HARMBENCH,
        "licence": "MIT",
    }
    xstest: dict[str, Any] = {
        "file": "xstest/xstest_prompts.csv",
        "sha256": "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
        "origin": Origin(
            f"{_RAW}/paul-rottger/exaggerated-safety/"
            "d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d/xstest_prompts.csv",
            "11783fb294ed017473ee53c207d71f2161c7672c8d0b037501e78387f801cb5a",
        ),
        "ident": "id",
        "category": "type",
        "source": "paul-rottger/exaggerated-safety @ d7bb5bd738c1fcbc36edd83d5e7d1b71a3e2d84d",
        "licence": "CC-BY-4.0",
    }
    return [
        DataSet(
            name="advbench",
            label="harmful",
            measures="refusal of short harmful instructions (Zou et al. 2023); many are near twins",
            **advbench,
        ),
        DataSet(
            name="advbench-heldout",
            label="harmful",
            every=5,
            measures="every fifth row of AdvBench, which the embedded trio was not trained on",
            **advbench,
        ),
        DataSet(
            name="harmbench",
            label="harmful",
            file="harmbench/harmbench_behaviors_text_standard.csv",
            sha256="79fdb863bf7d6778fba24cb087e0aa0eb7d65dd09e86acede41a95effb877d04",
            measures="refusal, HarmBench-Standard (Mazeika et al. 2024), validation and test",
            **harmbench,
        ),
        DataSet(
            name="harmbench-test",
            label="harmful",
            file="harmbench/harmbench_behaviors_text_standard_test.csv",
            sha256="c96edb922dac0f2060e17962f6989190045d0e2620b5846645ae725b556780d1",
            measures="refusal, HarmBench-Standard, test split",
            **harmbench,
        ),
        DataSet(
            name="harmbench-val",
            label="harmful",
            file="harmbench/harmbench_behaviors_text_standard_val.csv",
            sha256="13fe6e9a46306192a747eda3131517ec96c1bd4888956f030b4f69ec8faa1a96",
            measures="refusal, HarmBench-Standard, validation split",
            **harmbench,
        ),
        DataSet(
            name="jailbreakbench-harmful",
            label="harmful",
            file="jailbreakbench/harmful_goals.csv",
            sha256="f5a50664dd9626da9fa84bdc32cd7a9f1dc56bd592dc6d47120d0029261711cd",
            prompt="goal",
            ident="index",
            category="category",
            measures="refusal (Chao et al. 2024); pairs with jailbreakbench-benign by id",
            source="JailbreakBench/artifacts @ 909e68c01d94222b8ad2e397a017e2e12e2adb73",
            licence="MIT",
        ),
        DataSet(
            name="jailbreakbench-benign",
            label="benign",
            file="jailbreakbench/benign-behaviors.csv",
            sha256="c0958ac974fb6629527aeff6c81c88154a877190d07313ac377d36951fde5d3e",
            origin=Origin(
                f"{_RAW}/Baisayan/hack/2b37da1c255e43e16a74ecd3e51c99ea992b5237/"
                "data/benign-behaviors.csv",
                "c0958ac974fb6629527aeff6c81c88154a877190d07313ac377d36951fde5d3e",
            ),
            prompt="goal",
            ident="index",
            category="category",
            measures="over-refusal: benign requests in the words of the harmful ones",
            source="JailbreakBench/JBB-Behaviors",
            licence="MIT",
        ),
        DataSet(
            name="xstest-safe",
            label="benign",
            keep=("label", "safe"),
            prompt="prompt",
            measures="over-refusal: safe requests that look unsafe (Röttger et al. 2024)",
            **xstest,
        ),
        DataSet(
            name="xstest-unsafe",
            label="harmful",
            keep=("label", "unsafe"),
            prompt="prompt",
            measures="refusal of XSTest's unsafe contrasts",
            **xstest,
        ),
        DataSet(
            name="medsafetybench",
            label="harmful",
            file="medsafetybench/test.csv",
            sha256="2d4f57828af70227096942f6d6865986975853a02763d000b13b27ec87917aba",
            prompt="harmful_medical_request",
            ident="request_source+category+row",
            category="category",
            measures="refusal of harmful medical requests (Han et al. 2024), test split",
            source="AI4LIFE-GROUP/med-safety-bench @ 191aa7954b82458079425292730d6cb28a89565d",
            licence="MIT; its README asks for research use only",
        ),
        DataSet(
            name="gsm8k",
            label="utility",
            file="gsm8k/test.jsonl",
            sha256="3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            origin=Origin(
                f"{_RAW}/openai/grade-school-math/3101c7d5072418e28b9008a6636bde82a006892c/"
                "grade_school_math/data/test.jsonl",
                "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            ),
            form=_gsm8k,
            scoring="number",
            measures="grade-school mathematics, last number of the answer (Cobbe et al. 2021)",
            source="openai/grade-school-math @ 3101c7d5072418e28b9008a6636bde82a006892c",
            licence="MIT",
        ),
        DataSet(
            name="word-problems",
            label="utility",
            file="word_problems.jsonl",
            sha256="ea5fb3839d9b4468c290bb2396fbce81b50ec6a9709bfe903861327f0b451144",
            prompt="question",
            ident="id",
            reference="answer",
            scoring="number",
            measures="one- and two-step word problems, held out from the embedded trio's training",
            source="this project, examples/tiny_trio/word_problems.py",
            licence="Apache-2.0",
        ),
        DataSet(
            name="medqa",
            label="utility",
            file="medqa/test.jsonl",
            origin=Origin(
                "hf://datasets/GBaker/MedQA-USMLE-4-options@main/phrases_no_exclude_test.jsonl"
            ),
            form=_medqa,
            scoring="letter",
            measures="medical examination questions, letter of the option (Jin et al. 2021)",
            source="GBaker/MedQA-USMLE-4-options on the Hugging Face hub; commit not pinned here",
            licence="CC-BY-4.0 (dataset card; not checked here)",
        ),
        DataSet(
            name="strongreject",
            label="harmful",
            file="strongreject/strongreject_dataset.csv",
            origin=Origin(
                f"{_RAW}/alexandrasouly/strongreject/main/strongreject_dataset/"
                "strongreject_dataset.csv"
            ),
            prompt="forbidden_prompt",
            category="category",
            measures="refusal of specific harmful requests (Souly et al. 2024)",
            source="alexandrasouly/strongreject; commit not pinned here",
            licence="MIT (third-party card; not checked here)",
        ),
        DataSet(
            name="or-bench-hard",
            label="benign",
            file="or-bench/or-bench-hard-1k.csv",
            origin=Origin("hf://datasets/bench-llm/or-bench@main/or-bench-hard-1k.csv"),
            category="category",
            measures="over-refusal: 1,319 hard benign requests (Cui et al. 2024)",
            source="bench-llm/or-bench on the Hugging Face hub; commit not pinned here",
            licence="CC-BY-4.0 (dataset card; not checked here)",
        ),
        DataSet(
            name="sorry-bench",
            label="harmful",
            file="sorry-bench/question.jsonl",
            form=_sorry_bench,
            measures="refusal over 45 categories of harm (Xie et al. 2024)",
            source="sorry-bench/sorry-bench-202406 on the Hugging Face hub: gated, fetch by hand",
            licence="its own; research use after agreeing to terms",
        ),
        DataSet(
            name="wildjailbreak-harmful",
            label="harmful",
            file="wildjailbreak/eval.csv",
            prompt="adversarial",
            keep=("data_type", "adversarial_harmful"),
            measures="refusal under jailbreak wordings (Jiang et al. 2024), evaluation split",
            source="allenai/wildjailbreak on the Hugging Face hub: gated, fetch by hand",
            licence="ODC-BY",
        ),
        DataSet(
            name="wildjailbreak-benign",
            label="benign",
            file="wildjailbreak/eval.csv",
            prompt="adversarial",
            keep=("data_type", "adversarial_benign"),
            measures="over-refusal under jailbreak wordings, evaluation split",
            source="allenai/wildjailbreak on the Hugging Face hub: gated, fetch by hand",
            licence="ODC-BY",
        ),
    ]


#: All declared sets, by name.
DATASETS: Final[dict[str, DataSet]] = {d.name: d for d in _declared()}


def dataset(name: str) -> DataSet:
    """Return a declared set.

    Raises
    ------
    ConfigError
        There is none of that name.
    """
    if name not in DATASETS:
        near = difflib.get_close_matches(name, DATASETS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(DATASETS))}"
        raise ConfigError(f"unknown data set {name!r}; {hint}")
    return DATASETS[name]


def data_folder() -> Path | None:
    """Return the folder that ``ALIGNBEAM_DATA`` names, or None."""
    given = os.environ.get("ALIGNBEAM_DATA", "")
    return Path(given) if given else None


def cache_folder() -> Path:
    """Where downloaded sets are kept: ``$ALIGNBEAM_CACHE/data``, else ``~/.cache``."""
    given = os.environ.get("ALIGNBEAM_CACHE", "")
    return (Path(given) if given else Path.home() / ".cache" / "alignbeam") / "data"


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
    places = [_PACKAGED / own, own if own.is_absolute() else None]
    places += [data / own if data is not None else None, cache_folder() / own]
    for path in places:
        if path is None or not path.is_file():
            continue
        found = sha256_of(path)
        if declared.sha256 is not None and found != declared.sha256:
            raise ConfigError(
                f"{path} is not the pinned file of {declared.name}: SHA-256 {found}, wanted "
                f"{declared.sha256}; fetch it again from {declared.source}"
            )
        return path
    origin = declared.origin
    if origin is None or not fetch:
        why = f"get it from {declared.source}" if origin is None else "downloads are switched off"
        raise ConfigError(
            f"data set {declared.name} is not here ({declared.file} in "
            f"{data or 'ALIGNBEAM_DATA, which is not set'}); {why}"
        )
    target = cache_folder() / own
    download(origin.url, target, origin.sha256, progress=progress)
    return target


def take(samples: Sequence[Sample], limit: int | None, seed: int) -> list[Sample]:
    """Draw ``limit`` samples without replacement, in file order; all of them with None.

    The draw depends on the seed and the ids alone, and a smaller limit is a part of a larger one.
    """
    if limit is None or limit >= len(samples):
        return list(samples)
    order = list(range(len(samples)))
    random.Random(f"alignbeam {seed}").shuffle(order)
    return [samples[i] for i in sorted(order[:limit])]


def _rows(path: Path) -> list[Mapping[str, Any]]:
    """Rows of a CSV, JSON Lines or JSON file."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(text, newline="")))
    try:
        if path.suffix == ".jsonl":
            rows = [json.loads(line) for line in text.split("\n") if line.strip()]
        else:
            rows = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} is no JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ConfigError(f"{path} must hold JSON objects, one a row")
    return rows
