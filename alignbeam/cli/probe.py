"""``alignbeam probe``: fit what reads a request's harm off a model's own states."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from alignbeam.cli import options
from alignbeam.cli.console import make_console, quiet_loader
from alignbeam.cli.outputs import check_file
from alignbeam.cli.sets import Column, Data, NoProgress, set_table, small_suite
from alignbeam.errors import ConfigError

EPILOG = """Examples:

alignbeam probe --config alignbeam.toml --harmful bad.csv --harmless good.csv --to my.probe

alignbeam probe --of target --harmful harmbench-val --harmless good.csv --to target.probe

alignbeam serve --config alignbeam.toml --set judge.probe=my.probe

Harmless requests that look harmful are what it learns most from: bring yours. Fit it to the model
that will be loaded, with its system prompt and adapter.
"""


@options.with_settings("target", "anchor")
def probe(
    context: typer.Context,
    harmful: Annotated[
        list[str],
        typer.Option("--harmful", metavar="FILE|NAME", help="Requests to refuse; repeatable."),
    ],
    harmless: Annotated[
        list[str],
        typer.Option("--harmless", metavar="FILE|NAME", help="Requests to answer; repeatable."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="The file that is written.")],
    of: Annotated[
        Literal["anchor", "target"], typer.Option("--of", help="Which role it plays.")
    ] = "anchor",
    layer: Annotated[
        int | None, typer.Option("--layer", min=1, help="Layer to read (default: the middle one).")
    ] = None,
    column: Column = "prompt",
    data: Data = None,
    no_progress: NoProgress = False,
) -> None:
    """Fit a reader of how harmful a request is, on the states of your anchor or target."""
    from alignbeam.config import RoleConfig, load_settings
    from alignbeam.embedded import or_embedded
    from alignbeam.engines.roles import role_of
    from alignbeam.eval.probe import fit_probe
    from alignbeam.eval.stats import auroc_interval
    from alignbeam.models.role import Role

    overrides = options.overrides_from(context.params)
    settings = load_settings(context.params["config"], overrides)
    config: RoleConfig = getattr(settings, of)
    if config.url is not None:
        raise ConfigError(f"a probe reads a model in this process; {of}.url names an engine")
    check_file(to, "--to")
    bad = _requests(harmful, "harmful", column, data)
    good = _requests(harmless, "benign", column, data)
    if both := set(bad) & set(good):
        raise ConfigError(f"{len(both)} requests are both harmful and harmless")
    console = make_console(sys.stderr)
    quiet_loader()
    with console.status(f"loading the {of}"):
        role = role_of(of, or_embedded(of, config))
    if not isinstance(role, Role):  # an engine; refused above
        raise TypeError(f"the {of} is not in this process")
    with console.status("") as status:

        def told(done: int, count: int) -> None:
            if not no_progress:
                status.update(f"read {done:,} of {count:,} requests")

        fitted = fit_probe(role, bad, good, layer, told)
    low, high = auroc_interval(fitted.auroc, len(bad), len(good))
    fitted.probe.save(to, Path(str(config.model or "the embedded model")).name)
    print(
        f"AUROC {fitted.auroc:.3f} [{low:.3f}, {high:.3f}] on requests that it was not fitted to, "
        f"of these sets ({len(bad):,} harmful, {len(good):,} harmless); others may be harder"
    )
    console.print(f"wrote {to}; use it with --set judge.probe={to}")


def _requests(named: list[str], label: str, column: str, data: Path | None) -> list[str]:
    from alignbeam.eval.datasets import locate
    from alignbeam.models.conversation import as_messages

    tables = [set_table(text, label, column) for text in named]
    found: list[str] = []
    for choice in small_suite("probe", tables, 1, ["strict"]).datasets:
        for sample in choice.declared.samples(locate(choice.declared, data)):
            found.append(as_messages(sample.prompt)[-1]["content"])
    return list(dict.fromkeys(found))
