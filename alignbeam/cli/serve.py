"""``alignbeam serve``: the OpenAI-compatible server."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from alignbeam.cli import options
from alignbeam.errors import ConfigError, how_to_install

EPILOG = """Examples:

alignbeam serve

ALIGNBEAM_API_KEYS="$(openssl rand -hex 24)" alignbeam serve --host 0.0.0.0

alignbeam serve --config alignbeam.toml --playground

alignbeam serve --set server.release=chunked --set server.audit_file=audit.jsonl

curl http://127.0.0.1:8000/v1/models
"""


def _option(name: str, help: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel="Server", show_default=False)


@options.with_settings()
def serve(
    context: typer.Context,
    host: Annotated[
        str | None,
        _option("--host", "Where to listen (default 127.0.0.1); elsewhere only with an API key."),
    ] = None,
    port: Annotated[int | None, _option("--port", "(default 8000)")] = None,
    playground: Annotated[bool, _option("--playground", "A page to try it at /.")] = False,
    shadow: Annotated[
        bool,
        _option("--shadow", "The target answers; verdicts are only logged and counted."),
    ] = False,
    fail_open: Annotated[
        bool,
        _option("--fail-open", "DANGEROUS: answer although the judge is unavailable."),
    ] = False,
) -> None:
    """Serve the OpenAI API: change base_url, and every answer is judged before it leaves."""
    try:
        from alignbeam.server.run import serve as run
    except ImportError as error:
        raise ConfigError(
            f"serving needs the server extra ({error.name} is missing): {how_to_install('server')}"
        ) from error
    own = {
        "server.host": host,
        "server.port": port,
        "server.playground": playground or None,
        "server.shadow": shadow or None,
        "server.fail_open": fail_open or None,
    }
    run(options.settings_from(context.params, own))
