"""Running the server: sockets, signals, the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import math
import os
import signal
import socket
import sys
from types import FrameType

import uvicorn

from alignbeam.config import ServerConfig, Settings
from alignbeam.config.tables import MAX_HEADER_BYTES
from alignbeam.controller import AlignBeam
from alignbeam.embedded import warn_of_embedded
from alignbeam.errors import ConfigError
from alignbeam.judge import FailClosed, Judge
from alignbeam.server.app import Server
from alignbeam.server.connections import SPARE, limited
from alignbeam.server.judge_process import JudgeProcess
from alignbeam.server.keys import ENVIRONMENT, METRICS_ENVIRONMENT, Keys
from alignbeam.server.listen import bound, cannot_listen
from alignbeam.server.logs import configure_logs
from alignbeam.server.plan import check_ceilings

_log = logging.getLogger(__name__)

#: Seconds after ``drain_s`` in which what did not end is told so.
_TELL_S = 2
#: Open files beside the clients' connections: models, logs, the judge's pipe, engines.
_FILES = 512


class _Uvicorn(uvicorn.Server):
    """uvicorn with our signals: the first drains, the second exits at once."""

    def __init__(self, config: uvicorn.Config, server: Server) -> None:
        super().__init__(config)
        self._server = server

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say where it listens: uvicorn is silent about sockets that it did not bind."""
        await super().startup(sockets)
        for one in sockets or ():
            host, port = one.getsockname()[:2]
            shown = f"[{host}]" if ":" in host else host
            _log.info("listening on http://%s:%d (Ctrl-C ends)", shown, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Wait for the requests in flight, for ``drain_s``; tell the others to ask elsewhere."""
        expire = self._server.service.scheduler.expire
        late = asyncio.get_running_loop().call_later(self._server.config.drain_s, expire)
        await super().shutdown(sockets)
        late.cancel()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop; on the second signal, stop."""
        if self.should_exit:
            os._exit(128 + sig)
        self._server.draining = True
        # Not put down for uvicorn's own re-raising: a drained server has ended well.
        self.should_exit = True


def check_exposure(config: ServerConfig, keys: Keys) -> None:
    """Refuse to listen to the world without a key.

    Raises
    ------
    ConfigError
        The host is not loopback and there is no API key.
    """
    if not config.on_loopback and not keys:
        raise ConfigError(
            f"refusing to listen on {config.host} without an API key: set {ENVIRONMENT} or "
            "server.api_keys_file, or listen on 127.0.0.1"
        )


def web_config(server: Server) -> uvicorn.Config:
    """Return how uvicorn runs ``server``."""
    config = server.config
    return uvicorn.Config(
        server.gated,
        host=config.host,
        port=config.port,
        log_config=None,
        access_log=False,
        server_header=False,
        http=limited(config),
        ws="none",
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_graceful_shutdown=math.ceil(config.drain_s) + _TELL_S,
        timeout_keep_alive=math.ceil(config.head_timeout_s),
        lifespan="on",
    )


def serve(settings: Settings) -> None:
    """Load the models, check the judge, answer requests until a signal, and end the process.

    Raises
    ------
    ConfigError
        See ``check_ceilings``, ``check_exposure``, ``bound``, ``Keys``, ``AuditLog`` and
        ``AlignBeam``.
    CanaryFailed
        The judge does not tell safe from unsafe.
    ModelLoadError
        A model cannot be loaded.
    """
    configure_logs()
    config = settings.server
    _ignore_hangup()
    allow_files(config.max_connections)
    check_ceilings(settings.beam, config)
    keys = Keys(config.api_keys_file)
    metrics_keys = Keys(config.metrics_keys_file, variable=METRICS_ENVIRONMENT)
    check_exposure(config, keys)
    if config.fail_open:
        _banner("FAIL-OPEN: answers leave even when no judge could check them")
    if config.shadow:
        _banner("SHADOW MODE: the target answers unprotected; verdicts are only logged")
    with contextlib.ExitStack() as held:
        sockets = held.enter_context(bound(config.host, config.port))
        judge: Judge | None = None
        if config.judge_process and settings.judge.url is None:  # an engine is a process already
            warn_of_embedded(target=settings.target, judge=settings.judge)
            own = settings.judge.timeout_s
            seconds = config.judge_timeout_s if own is None else min(own, config.judge_timeout_s)
            process = held.enter_context(contextlib.closing(JudgeProcess(settings.judge, seconds)))
            judge = FailClosed(process, seconds)
        models = settings.target, settings.anchor, settings.judge if judge is None else judge
        beam = AlignBeam.from_pretrained(
            *models, settings.beam, gate=settings.gate, probe=settings.judge.probe
        )
        server = Server(beam, config, keys=keys, metrics_keys=metrics_keys)
        runner = _Uvicorn(web_config(server), server)
        # The models' objects stay: no collection need walk through them while requests wait.
        gc.collect()
        gc.freeze()
        try:
            runner.run(sockets)
        except OSError as error:
            if runner.started:
                raise
            # Another process listened first: a bound address is not yet one's own.
            raise cannot_listen(config.host, config.port, error) from error
    _log.info("stopped")
    # All is closed, and what is left (the interpreter taking the models apart) takes seconds on a
    # busy machine. A server that did not even start has said why.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0 if runner.started else 3)


def allow_files(connections: int) -> None:
    """Raise this process's limit on open files to what so many connections need.

    Without a free one nobody is let in, probes neither, and no judge can be started again.
    """
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    needed = connections + SPARE + _FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    except (OSError, ValueError):  # a sandbox, or macOS, where "no limit" is one all the same
        most = soft
    if most < needed:
        _log.warning(
            "at most %d files may be open here, %d are needed: lower server.max_connections or "
            "raise the limit (ulimit -n, LimitNOFILE=)", most, needed,
        )  # fmt: skip


def _ignore_hangup() -> None:
    """Live on when told that logs were rotated; a terminal may still end it."""
    if hasattr(signal, "SIGHUP") and not (sys.stdin and sys.stdin.isatty()):
        signal.signal(
            signal.SIGHUP,
            lambda *_: _log.info("SIGHUP: keys and audit log are followed without it"),
        )


def _banner(words: str) -> None:
    line = "!" * (len(words) + 8)
    print(f"{line}\n!!  {words}  !!\n{line}", file=sys.stderr, flush=True)
