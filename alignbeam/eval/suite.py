"""A suite: data sets, methods, scorers and settings, read from a TOML file and checked."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast, get_args

from alignbeam.config import BeamConfig, EvalConfig, GateConfig, JudgeConfig, RoleConfig, suggest
from alignbeam.errors import ConfigError
from alignbeam.eval.datasets import DATASETS, DataSet, Part, dataset
from alignbeam.eval.methods import METHODS
from alignbeam.eval.methods.judged import AlignBeamMethod, Judged
from alignbeam.eval.run.records import Label
from alignbeam.models.conversation import Message

_FOLDER: Final = Path(__file__).parent / "suites"

#: Suites that ship with the package.
SUITES: Final = ("quick", "standard", "full", "paper", "real")

#: Scorers that need no model; any other kind is a judge's (``JudgeConfig.kind``).
TEXT_SCORERS: Final = ("strict", "strings")
#: The judge that selects, asked about the answers of every method.
SELECTING_JUDGE: Final = "judge"

_ROLES: Final = ("target", "anchor", "judge", "antiexpert", "guard")


@dataclass(frozen=True, kw_only=True)
class DataChoice:
    """A data set of a suite, and how much of it.

    Attributes
    ----------
    declared : DataSet
    limit : int or None
        Samples drawn with the suite's seed; None takes all.
    part : {"all", "tuning", "held-out"}
        Half of the set that they are drawn from.
    skip : int
        The first so many of the draw are left out: what a suite with that limit asks.
    template : callable or None
        Makes the request that is asked of a sample's own.
    """

    declared: DataSet
    limit: int | None = None
    part: Part = "all"
    skip: int = 0
    template: Callable[[str], list[Message]] | None = None


@dataclass(frozen=True, kw_only=True)
class MethodChoice:
    """A method of a suite: its label in the run, its name, and what it is set to."""

    label: str
    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class ScorerChoice:
    """A scorer of a suite; ``model`` is set for judges other than the selecting one."""

    kind: str
    model: JudgeConfig | None = None


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One target (and whatever else differs) of a suite with several.

    Attributes
    ----------
    name : str
    models : mapping of role to RoleConfig
    settings : mapping of method label to settings
        What this pair needs differently.
    """

    name: str
    models: Mapping[str, RoleConfig] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """What an evaluation asks, of which methods, and how it scores.

    Attributes
    ----------
    name, description : str
    seed : int
        Of the draw of samples and of every sampled answer.
    batch_size : int
        Requests answered together.
    beam : mapping
        Fields of ``BeamConfig`` that hold for every method.
    datasets, methods, scorers : tuple
    models : mapping of role to RoleConfig
        Roles ``target``, ``anchor``, ``judge``; also ``antiexpert`` and ``guard``.
    pairs : tuple of Pair
        Empty for a single pair of models.
    published : tuple of mapping
        Published figures to stand beside the measured ones: ``pair``, ``dataset``, ``method``,
        ``measure``, ``value`` (percent).
    """

    name: str
    description: str = ""
    seed: int = 0
    batch_size: int = 16
    beam: Mapping[str, Any] = field(default_factory=dict)
    datasets: tuple[DataChoice, ...] = ()
    methods: tuple[MethodChoice, ...] = ()
    scorers: tuple[ScorerChoice, ...] = ()
    models: Mapping[str, RoleConfig] = field(default_factory=dict)
    pairs: tuple[Pair, ...] = ()
    published: tuple[Mapping[str, Any], ...] = ()

    def limited(self, limit: int | None) -> Suite:
        """Return the suite with at most ``limit`` samples of each set."""
        if limit is None:
            return self
        if limit < 1:
            raise ConfigError(f"limit must be at least 1, got {limit}")
        lower = tuple(
            dataclasses.replace(d, limit=limit if d.limit is None else min(limit, d.limit))
            for d in self.datasets
        )
        return dataclasses.replace(self, datasets=lower)

    def with_embedded_models(self) -> Suite:
        """Return the suite with the embedded models in place of all of its own."""
        kept = tuple(s for s in self.scorers if s.model is None)
        return dataclasses.replace(self, models={}, scorers=kept)

    def settled(self, given: Mapping[str, Mapping[str, Any]]) -> Suite:
        """Return the suite under settings that win over its own.

        What a method has from ``BeamConfig`` goes into the settings of every method that has it, as
        does ``[gate]``; what it does not (length, sampling, kernel) holds for all methods.

        Parameters
        ----------
        given : mapping of table to mapping
            As ``alignbeam.config.merged_tables`` gives it.

        Raises
        ------
        ConfigError
            A value of the wrong type or range.
        """
        run = EvalConfig.from_mapping(given.get("eval", {}), where="[eval]")
        beam = dict(given.get("beam", {}))
        BeamConfig.from_mapping({**self.beam, **beam}, where="[beam]")
        gate = dict(given.get("gate", {}))
        GateConfig.from_mapping(gate, where="[gate]")
        through = {**beam, "gate": gate} if gate else beam
        methods = tuple(
            dataclasses.replace(m, settings={**m.settings, **_known_to(m.method, through)})
            for m in self.methods
        )
        rest = {k: v for k, v in beam.items() if k not in (*AlignBeamMethod.known_keys(), "seed")}
        models = dict(self.models)
        for role in ("target", "anchor", "judge"):
            if given.get(role):
                blank = JudgeConfig() if role == "judge" else RoleConfig()
                models[role] = models.get(role, blank).replace(**given[role])
        settled = dataclasses.replace(
            self,
            seed=beam.get("seed", self.seed),
            batch_size=run.batch_size or self.batch_size,
            beam={**self.beam, **rest},
            methods=methods,
            models=models,
        )
        return settled.limited(run.limit)

    def only(self, methods: Sequence[str] = (), datasets: Sequence[str] = ()) -> Suite:
        """Return the suite with these methods and sets only; none named keeps all.

        Raises
        ------
        ConfigError
            A name that the suite does not have.
        """
        kept_methods = _chosen(methods, {m.label: m for m in self.methods}, "method", self.name)
        sets = {d.declared.name: d for d in self.datasets}
        kept_sets = _chosen(datasets, sets, "data set", self.name)
        return dataclasses.replace(self, methods=kept_methods, datasets=kept_sets)

    def for_pair(self, pair: Pair) -> Suite:
        """Return the suite of one pair."""
        methods = tuple(
            dataclasses.replace(m, settings={**m.settings, **pair.settings.get(m.label, {})})
            for m in self.methods
        )
        models = {**self.models, **pair.models}
        return dataclasses.replace(self, methods=methods, models=models, pairs=())


def load_suite(name: str) -> Suite:
    """Read a suite by name, or from a TOML file of one's own.

    Raises
    ------
    ConfigError
        No such suite, no valid TOML, an unknown key, or a value out of range.
    """
    path = _FOLDER / f"{name}.toml" if name in SUITES else Path(name).expanduser()
    if name not in SUITES and not path.is_file():
        raise ConfigError(f"there is no suite {name!r} and no such file{suggest(name, SUITES)}")
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error
    return suite_from(tables, str(path), path.parent)


def suite_from(tables: Mapping[str, Any], where: str, folder: Path = Path()) -> Suite:
    """Build a suite from parsed tables; ``folder`` is where relative paths begin.

    Raises
    ------
    ConfigError
    """
    known = {f.name for f in dataclasses.fields(Suite)}
    _known_keys(tables, known, where)
    beam = dict(tables.get("beam", {}))
    BeamConfig.from_mapping(beam, where=f"{where} [beam]")
    suite = Suite(
        name=str(tables.get("name", Path(where).stem)),
        description=str(tables.get("description", "")),
        seed=int(tables.get("seed", 0)),
        batch_size=int(tables.get("batch_size", 16)),
        beam=beam,
        datasets=tuple(_data_choice(t, where, folder) for t in tables.get("datasets", [])),
        methods=tuple(_method_choice(t, where) for t in tables.get("methods", [])),
        scorers=tuple(_scorer(t, where) for t in tables.get("scorers", [])),
        models=_models(tables.get("models", {}), where),
        pairs=tuple(_pair(t, where) for t in tables.get("pairs", [])),
        published=tuple(tables.get("published", [])),
    )
    if not suite.datasets or not suite.methods:
        raise ConfigError(f"{where}: a suite needs at least one data set and one method")
    if suite.batch_size < 1:
        raise ConfigError(f"{where}: batch_size must be at least 1, got {suite.batch_size}")
    _unique([d.declared.name for d in suite.datasets], "data set", where)
    _unique([m.label for m in suite.methods], "method label", where)
    _unique([p.name for p in suite.pairs], "pair", where)
    return suite


def _data_choice(table: Mapping[str, Any], where: str, folder: Path) -> DataChoice:
    place = f"{where} [[datasets]]"
    limit = table.get("limit")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"{place}: limit must be an integer of at least 1, got {limit!r}")
    part = table.get("part", "all")
    if part not in get_args(Part):
        raise ConfigError(f"{place}: part must be one of {', '.join(get_args(Part))}")
    skip = table.get("skip", 0)
    if not isinstance(skip, int) or isinstance(skip, bool) or skip < 0:
        raise ConfigError(f"{place}: skip must be an integer of at least 0, got {skip!r}")
    own = {"path", "label", "prompt", "ident", "category", "reference", "scoring", "measures"}
    if "path" not in table:
        _known_keys(table, {"name", "limit", "part", "skip"}, place)
        declared = dataset(str(table.get("name", "")))
        return DataChoice(declared=declared, limit=limit, part=part, skip=skip)
    _known_keys(table, {"name", "limit", "part", "skip", *own}, place)
    path = (folder / str(table["path"])).resolve()
    label = table.get("label")
    if label not in get_args(Label):
        raise ConfigError(f"{place}: label must be one of {', '.join(get_args(Label))}")
    # A label's own name is that of all its sets together.
    name = str(table.get("name", path.name if path.stem in get_args(Label) else path.stem))
    if name in get_args(Label):
        raise ConfigError(f"{place}: {name!r} stands for all sets of a label; choose another name")
    if name in DATASETS:
        raise ConfigError(f"{place}: {name!r} is the name of a published set; choose another")
    columns: dict[str, Any] = {
        k: str(table[k]) for k in own - {"path", "label", "measures"} if k in table
    }
    declared = DataSet(
        name=name,
        label=cast(Label, label),
        file=str(path),
        measures=str(table.get("measures", "a set of one's own")),
        source=path.name,
        licence="not stated",
        **columns,
    )
    if label == "utility" and declared.scoring not in ("number", "letter"):
        raise ConfigError(f'{place}: a utility set needs scoring = "number" or "letter"')
    return DataChoice(declared=declared, limit=limit, part=part, skip=skip)


def _method_choice(table: Mapping[str, Any], where: str) -> MethodChoice:
    place = f"{where} [[methods]]"
    _known_keys(table, {"method", "label", "settings"}, place)
    name = str(table.get("method", ""))
    return MethodChoice(
        label=str(table.get("label", name)), method=name, settings=dict(table.get("settings", {}))
    )


def _scorer(table: Mapping[str, Any], where: str) -> ScorerChoice:
    kind = str(table.get("kind", ""))
    if kind in TEXT_SCORERS or kind == SELECTING_JUDGE:
        _known_keys(table, {"kind"}, f"{where} [[scorers]]")
        return ScorerChoice(kind=kind)
    model = JudgeConfig.from_mapping(dict(table), where=f"{where} [[scorers]]")
    if model.model is None:
        known = ", ".join((*TEXT_SCORERS, SELECTING_JUDGE))
        raise ConfigError(f"{where} [[scorers]]: kind {kind!r} needs a model; without one: {known}")
    return ScorerChoice(kind=kind, model=model)


def _models(tables: Mapping[str, Any], where: str) -> dict[str, RoleConfig]:
    _known_keys(tables, set(_ROLES), f"{where} [models]")
    judged = ("judge", "guard")
    return {
        role: (JudgeConfig if role in judged else RoleConfig).from_mapping(
            values, where=f"{where} [models.{role}]"
        )
        for role, values in tables.items()
    }


def _pair(table: Mapping[str, Any], where: str) -> Pair:
    place = f"{where} [[pairs]]"
    _known_keys(table, {"name", "models", "settings"}, place)
    name = str(table.get("name", ""))
    if not name or any(c in name for c in "/\\") or name.startswith("."):
        raise ConfigError(f"{place}: name must be usable as the name of a folder, got {name!r}")
    models = _models(table.get("models", {}), place)
    return Pair(name=name, models=models, settings=dict(table.get("settings", {})))


def _known_keys(table: Mapping[str, Any], known: set[str], where: str) -> None:
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{suggest(key, known)}")


def _known_to(method: str, beam: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of ``BeamConfig`` that a method has under the same name and meaning."""
    kind = METHODS.get(method)
    if kind is None or not issubclass(kind, Judged):
        return {}
    return {k: v for k, v in beam.items() if k in kind.known_keys()}


def _unique(names: Sequence[str], what: str, where: str) -> None:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{where}: {what} {', '.join(twice)} occurs twice")


def _chosen(names: Sequence[str], there: Mapping[str, Any], what: str, suite: str) -> Any:
    for name in names:
        if name not in there:
            known = ", ".join(there)
            raise ConfigError(f"suite {suite} has no {what} {name!r}; it has {known}")
    return tuple(v for k, v in there.items() if not names or k in names)
