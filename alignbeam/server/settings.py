"""The ``[server]`` table: what an operator decides, every value checked."""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from alignbeam.config import MAX_BEAMS, _Checked, _choice, _integer, _number, _text
from alignbeam.errors import ConfigError

#: Fields of ``BeamConfig`` that the request's own OpenAI fields or the operator set; the
#: ``alignbeam`` object of a request reaches only what ``ServerConfig.allow`` names.
OPEN_TO_REQUESTS = ("alpha", "mix_steps", "beams", "policy", "explain")


@dataclass(frozen=True, kw_only=True)
class ServerConfig(_Checked):
    """How the server listens, what it admits, and what it writes down.

    Attributes
    ----------
    host, port : str, int
        Where it listens; anything but loopback needs an API key.
    model_name : str
        What ``/v1/models`` calls the protected target.
    api_keys_file : str or None
        One key per line, optionally ``name: key``; ``sha256:<hex>`` in place of a key keeps it
        hashed. ``ALIGNBEAM_API_KEYS`` (comma-separated) adds to them.
    release : {"full", "chunked"}
        When streamed text leaves; see ``alignbeam.server.job.Release``.
    chunk_tokens : int
        Length of the pieces of chunked answers.
    frame_tokens : int
        Words per streamed frame of a finished answer.
    keep_alive_s : float
        Seconds between the comments that keep a waiting stream open.
    allow : tuple of str
        What a request's ``alignbeam`` object may set: any of ``alpha``, ``mix_steps``, ``beams``,
        ``policy``, ``explain``.
    min_alpha, min_mix_steps : float, int
        Floors for a request's own values, so that nobody switches the protection off.
    max_beams, max_mix_steps, max_tokens, max_choices, max_stops : int
        Ceilings.
    max_messages, max_body_bytes, max_header_bytes : int
        Ceilings of what is read at all.
    max_connections : int
        Connections at a time; what comes beyond is closed at once.
    head_timeout_s : float
        Seconds that a connection may stay without a whole request head, and a client may take to
        read the end of an answer.
    max_batch_cells, max_queued, max_queued_cells
        See ``alignbeam.server.scheduler.Scheduler``.
    retry_after_s : int
        What an overloaded server tells its clients.
    judge_timeout_s : float
        Seconds for one call of the judge; beyond, its verdicts are errors.
    judge_process : bool
        Run the judge in a process of its own, which is started again when it dies.
    drain_s : float
        Seconds that requests in flight get after SIGTERM.
    audit_file : str or None
        Audit log (JSONL). An answer that cannot be recorded does not leave.
    audit_text : bool
        Put prompts and answers into the audit log; else only their hashes.
    audit_max_bytes, audit_keep : int
        Size at which the log is rotated, and how many old ones are kept.
    shadow : bool
        The target answers alone; AlignBeam's verdict is only logged and counted.
    fail_open : bool
        Answer although the judge is unavailable. For emergencies; announced everywhere.
    playground : bool
        Serve the playground page at ``/``.
    log_prompts : bool
        Put prompts and answers into the log.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    model_name: str = "alignbeam"
    api_keys_file: str | None = None
    release: Literal["full", "chunked"] = "full"
    chunk_tokens: int = 32
    frame_tokens: int = 8
    keep_alive_s: float = 10.0
    allow: tuple[str, ...] = ("alpha", "mix_steps", "beams", "explain")
    min_alpha: float = 0.1
    min_mix_steps: int = 1
    max_beams: int = MAX_BEAMS
    max_mix_steps: int = 64
    max_tokens: int = 4096
    max_choices: int = 8
    max_stops: int = 4
    max_messages: int = 256
    max_body_bytes: int = 1 << 20
    max_header_bytes: int = 16_384
    max_connections: int = 1024
    head_timeout_s: float = 30.0
    max_batch_cells: int = 65_536
    max_queued: int = 256
    max_queued_cells: int = 1 << 20
    retry_after_s: int = 1
    judge_timeout_s: float = 60.0
    judge_process: bool = False
    drain_s: float = 25.0
    audit_file: str | None = None
    audit_text: bool = False
    audit_max_bytes: int = 64 << 20
    audit_keep: int = 10
    shadow: bool = False
    fail_open: bool = False
    playground: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        _text("host", self.host, optional=False)
        _integer("port", self.port, 0, 65_535)
        _text("model_name", self.model_name, optional=False)
        _text("api_keys_file", self.api_keys_file)
        _choice("release", self.release, ("full", "chunked"))
        for name in (
            "chunk_tokens",
            "frame_tokens",
            "max_tokens",
            "max_choices",
            "max_messages",
            "max_body_bytes",
            "max_header_bytes",
            "max_connections",
            "max_batch_cells",
            "max_queued",
            "max_queued_cells",
            "retry_after_s",
            "audit_max_bytes",
        ):
            _integer(name, getattr(self, name), 1)
        _integer("max_beams", self.max_beams, 1, MAX_BEAMS)
        for name in ("max_mix_steps", "min_mix_steps", "max_stops", "audit_keep"):
            _integer(name, getattr(self, name), 0)
        _number("min_alpha", self.min_alpha, 0, 1)
        for name in ("keep_alive_s", "head_timeout_s", "judge_timeout_s", "drain_s"):
            _number(name, getattr(self, name), 0.01, 86_400)
        _text("audit_file", self.audit_file)
        for name in (
            "judge_process",
            "audit_text",
            "shadow",
            "fail_open",
            "playground",
            "log_prompts",
        ):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name} must be true or false, got {getattr(self, name)!r}")
        for name in self.allow:
            if name not in OPEN_TO_REQUESTS:
                raise ConfigError(f"allow must name any of {', '.join(OPEN_TO_REQUESTS)}: {name!r}")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


def load_server_config(
    path: str | Path | None = None, overrides: Mapping[str, Any] | None = None
) -> ServerConfig:
    """Merge ``overrides`` over the file's ``[server]`` table over the defaults.

    Raises
    ------
    ConfigError
        A file that cannot be read, an unknown key, a wrong type or a value out of range.
    """
    table: dict[str, Any] = {}
    if path is not None:
        try:
            with open(path, "rb") as file:
                table = tomllib.load(file).get("server", {})
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror or error}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not valid TOML: {error}") from error
        if not isinstance(table, dict):
            raise ConfigError(f"{path}: server must be a table, written [server]")
    return ServerConfig.from_mapping({**table, **(overrides or {})}, where="[server]")
