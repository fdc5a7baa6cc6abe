"""The tables of a configuration file, as frozen dataclasses: what may be set, and to what."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args
from urllib.parse import urlsplit

from alignbeam.config.beam import MAX_BEAMS, BeamConfig, BeamCount, Count, Share, Whole
from alignbeam.config.checked import CheckedSettings, Range
from alignbeam.config.gate import GateConfig
from alignbeam.errors import ConfigError
from alignbeam.result import ViewName

#: How the address of an engine begins.
_ADDRESS = ("http://", "https://")
#: Fields of ``RoleConfig`` that say how an engine is spoken to, and what only a model here has.
_OF_ENGINES = ("tokenizer", "served_name", "key_env", "connect_s", "read_s")
_OF_WEIGHTS = ("model", "adapter", "dtype", "device", "device_map", "quantization")

#: Beyond the operator's own header limit the server's parser itself gives up.
MAX_HEADER_BYTES = 65_536

#: Whoever guesses the key can write the marks that close what the judge reads.
_NONCE_KEY = "([0-9a-fA-F]{2}){16,}"

Seconds = Annotated[float, Range(0.01, 86_400)]


@dataclass(frozen=True, kw_only=True)
class RoleConfig(CheckedSettings):
    """How one model is loaded and prompted, or where the engine is that serves it.

    Attributes
    ----------
    model : str or None
        Folder, hub id, ``.gguf`` file or ``hub/id:file.gguf``; not set, the embedded
        demonstration model of that role. An ``http://`` or ``https://`` address is taken for
        ``url``.
    url : str or None
        Address of an inference engine that serves the model; then nothing is loaded here.
    tokenizer : str or None
        Folder, hub id or ``.gguf`` file of the tokenizer of an engine's model; not set, what
        the engine says it was started with.
    served_name : str or None
        What the engine calls the model; not set, its only one.
    key_env : str or None
        Name of the environment variable that holds the engine's API key.
    connect_s, read_s : float
        Seconds to reach an engine, and seconds without a byte of its answer, or in which a busy
        one is asked again; for a whole answer, or a stream's next piece, it has twice that.
    revision : str or None
        Commit of a hub repository; pin it.
    adapter : str or None
        PEFT adapter (folder or hub id) put on top; needs the ``peft`` package. A tokenizer beside
        it counts in place of the model's.
    dtype : str
        ``"auto"`` (what the checkpoint holds; float32 on a CPU), ``"float32"``, ``"bfloat16"``
        or ``"float16"``.
    device : str or None
        Such as ``"cpu"`` or ``"cuda:1"``; not set, a GPU where there is one.
    device_map : str or None
        Handed to transformers (needs ``accelerate``); excludes ``device``.
    quantization : mapping or None
        Keyword arguments of ``BitsAndBytesConfig``, such as ``{load_in_4bit = true}``.
    system_prompt : str or None
        Put before the conversation, for this role only.
    chat_template : str or None
        Jinja text, the path of a ``.jinja`` file, or the name of one of the tokenizer's own
        templates; not set, the one called ``default``.
    thinking : bool
        Leave a template's thinking mode on. The first tokens must be the answer's, so: False.
    fold_turns : bool or None
        Where the template does not take a system message, two turns of one role in a row, or an
        assistant's turn at the head: put the text into a turn that it takes. Not set: for the
        anchor and the judge, while a target's template refuses such requests.
    """

    model: str | None = None
    url: str | None = None
    tokenizer: str | None = None
    served_name: str | None = None
    key_env: str | None = None
    connect_s: Seconds = 2.0
    read_s: Seconds = 30.0
    revision: str | None = None
    adapter: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: str | None = None
    device_map: str | None = None
    quantization: Mapping[str, Any] | None = None
    system_prompt: str | None = None
    chat_template: str | None = None
    thinking: bool = False
    fold_turns: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.device is not None and self.device_map is not None:
            raise ConfigError("device and device_map exclude each other; set one of them")
        if self.model is not None and self.model.startswith(_ADDRESS):
            if self.url is not None:
                raise ConfigError("model is an address, and url another; set one of them")
            object.__setattr__(self, "url", self.model)
            object.__setattr__(self, "model", None)
        if self.url is None:
            for name in self._given(_OF_ENGINES):
                raise ConfigError(f"{name} is of an engine, and no url is set; set url, too")
            return
        _check_url(self.url)
        for name in self._given(_OF_WEIGHTS):
            raise ConfigError(f"{name} and url exclude each other: the engine has the model")

    def _given(self, names: Iterable[str]) -> list[str]:
        """Return those of ``names`` that are not as they are by default."""
        return [name for name in names if getattr(self, name) != getattr(RoleConfig, name)]


def _check_url(url: str) -> None:
    """Refuse an address at which there can be no engine; says nothing of a password in it."""
    if not url.startswith(_ADDRESS):
        raise ConfigError(f"url must begin with http:// or https://, got {url!r}")
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"url is no address: {error}") from None
    if not parts.hostname:
        raise ConfigError("url names no host; write it like http://engine:8000")
    try:
        port = parts.port
    except ValueError:
        port = 0
    if port == 0:
        raise ConfigError(f"url must have a port in 1..65535, or none, for {parts.hostname}")


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(RoleConfig):
    """How the judge is loaded and asked: all of ``RoleConfig``, and what only it has.

    Attributes
    ----------
    kind : str
        ``"rubric"`` (a ``rubric.json`` in the judge's folder takes the place of the one built in);
        ``"guard"``, the format that the judge's folder, or its adapter's, holds as ``guard.toml``;
        or that of a published guard: ``llama-guard-3``, ``wildguard``, ``qwen3guard``,
        ``shieldgemma``, ``granite-guardian``, ``harmbench`` or ``yes-no``.
    label_mass_floor : float
        A verdict with less probability on its labels is an error, 0..1.
    timeout_s : float or None
        Seconds for one batch of candidates; beyond, every verdict of the batch is an error.
    nonce_key : str or None
        Hexadecimal key of the marks around what a rubric judge reads, 16 bytes at least; not set,
        one is drawn. A fixed key makes runs repeatable, and must then be as secret as the
        verdicts are to be trusted.
    views : tuple of str
        What the judge is shown of each candidate; the worst verdict counts. ``"conversation"``
        must be among them. See ``docs/algorithm.md``.
    unreadable : {"reject", "score"}
        A candidate in an encoding, of non-words, or in a script that the judge was not shown to
        read: counts as 5, or is scored like any other.
    probe : str or None
        A file of `alignbeam probe`: what a target or anchor in this process makes of the request
        weighs every verdict. See ``alignbeam.decoding.probe``.
    """

    kind: str = "rubric"
    label_mass_floor: Share = 0.5
    timeout_s: Annotated[float, Range(0, 86_400)] | None = None
    nonce_key: str | None = field(default=None, repr=False)
    views: tuple[ViewName, ...] = get_args(ViewName)
    unreadable: Literal["reject", "score"] = "reject"
    probe: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if "conversation" not in self.views or len(set(self.views)) < len(self.views):
            raise ConfigError(
                "judge.views must hold 'conversation', or nobody would read the whole, and no "
                "name twice"
            )
        if self.nonce_key is not None and not re.fullmatch(_NONCE_KEY, self.nonce_key):
            raise ConfigError(
                "nonce_key must be hexadecimal, two digits a byte, 16 bytes at least: "
                "openssl rand -hex 16 makes one"
            )


@dataclass(frozen=True, kw_only=True)
class ServerConfig(CheckedSettings):
    """How the server listens, what it admits, and what it writes down.

    Attributes
    ----------
    host, port : str, int
        Where it listens; anything but loopback needs an API key.
    model_name : str
        What ``/v1/models`` calls the protected target.
    api_keys_file : str or None
        One key per line, optionally ``name: key``; ``sha256:<hex>`` in place of a key keeps it
        hashed, and a name may have several. ``ALIGNBEAM_API_KEYS`` (comma-separated) adds to them.
    metrics_keys_file : str or None
        Keys in the same form that open ``/metrics`` and nothing else; ``ALIGNBEAM_METRICS_KEYS``
        adds to them. Without any, ``/metrics`` is closed wherever clients need a key.
    release : {"full", "chunked"}
        When streamed text leaves: once the whole answer was judged, or each piece once the answer
        up to its end was.
    chunk_tokens : int
        Length of the pieces of chunked answers.
    frame_tokens : int
        Words per streamed frame of a finished answer.
    keep_alive_s : float
        Seconds between the comments that keep a waiting stream open.
    allow : tuple of str
        What a request's ``alignbeam`` object may set: any of ``alpha``, ``mix_steps``, ``beams``,
        ``policy``, ``explain``.
    min_alpha, min_mix_steps, min_beams : float, int, int; or None
        Floors for a request's own values; not set, what ``[beam]`` says, so that a request can
        only strengthen the protection.
    max_beams, max_mix_steps, max_tokens, max_choices, max_stops : int
        Ceilings; ``[beam] beams`` must not exceed its own.
    stop_ends : bool
        Whether the stop strings of a request may end its decoding, which saves the tokens after
        them. Then whoever names stop strings has a say in what the judge reads, and learns from the
        time that an answer took whether they stand in text that is withheld.
    max_messages, max_body_bytes, max_header_bytes : int
        Ceilings of what is read at all.
    client_bytes_per_s : int
        Bytes a second that one client's bodies may have for long: reading them holds up everybody's
        answers. What comes faster waits for a second, and is sent away then.
    max_connections, max_connections_per_address : int
        Connections at a time, and of one address (all clients, where they come through a proxy).
        What comes beyond takes the place of a silent one, or is closed at once; probes
        (``/health``, ``/ready``, ``/metrics``) have room of their own.
    head_timeout_s : float
        Seconds that a connection may stay without a whole request head, and a client may take to
        read the end of an answer.
    max_batch_cells : int
        Rows of the target's cache times the longest of them, in tokens, that decode together.
    max_queued, max_queued_cells : int
        Requests that may wait, and the tokens times candidates that they may need.
    client_share : float
        How much of the batch, of the queue, and of a batch's worth before the judge one client may
        take; the rest is there for the others.
    retry_after_s : int
        What an overloaded server tells its clients.
    judge_timeout_s : float
        Seconds for one call of the judge, which is about a few candidates of one client; beyond,
        their verdicts are errors. A smaller ``[judge] timeout_s`` wins.
    canary_attacks : {"warn", "refuse", "off"}
        What happens at the start where a harmful canary passes the judge once there is around it
        what an attacker may write: a warning in the log, no start (nor a start again, see
        ``judge_process``), or it is not tried.
    judge_process : bool
        Run the judge in a process of its own, which is started again when it dies, and asked the
        canaries again before it judges.
    drain_s : float
        Seconds that requests in flight get after SIGTERM.
    audit_file : str or None
        Audit log (JSONL). An answer that cannot be recorded does not leave.
    audit_text : bool
        Put prompts and answers into the audit log; else only their hashes.
    audit_text_chars : int
        Characters that the audit log keeps of each text, and of a conversation.
    audit_max_bytes, audit_keep : int
        Size at which the log is rotated, and how many old ones are kept.
    audit_client_bytes : int
        What one client's answers may add to it within an hour; beyond, its requests are refused.
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
    port: Annotated[int, Range(0, 65_535)] = 8000
    model_name: str = "alignbeam"
    api_keys_file: str | None = None
    metrics_keys_file: str | None = None
    release: Literal["full", "chunked"] = "full"
    chunk_tokens: Count = 32
    frame_tokens: Count = 8
    keep_alive_s: Seconds = 10.0
    allow: tuple[Literal["alpha", "mix_steps", "beams", "policy", "explain"], ...] = (
        "alpha",
        "mix_steps",
        "beams",
        "explain",
    )
    min_alpha: Share | None = None
    min_mix_steps: Whole | None = None
    min_beams: BeamCount | None = None
    max_beams: BeamCount = MAX_BEAMS
    max_mix_steps: Whole = 64
    max_tokens: Count = 4096
    max_choices: Count = 8
    max_stops: Whole = 4
    stop_ends: bool = False
    max_messages: Count = 256
    max_body_bytes: Count = 1 << 20
    max_header_bytes: Annotated[int, Range(1, MAX_HEADER_BYTES)] = 16_384
    client_bytes_per_s: Count = 4 << 20
    max_connections: Count = 1024
    max_connections_per_address: Count = 512
    head_timeout_s: Seconds = 30.0
    max_batch_cells: Count = 65_536
    max_queued: Count = 256
    max_queued_cells: Count = 1 << 20
    client_share: Annotated[float, Range(0.05, 1)] = 0.75
    retry_after_s: Count = 1
    judge_timeout_s: Seconds = 60.0
    canary_attacks: Literal["warn", "refuse", "off"] = "warn"
    judge_process: bool = False
    drain_s: Seconds = 25.0
    audit_file: str | None = None
    audit_text: bool = False
    audit_text_chars: Count = 65_536
    audit_max_bytes: Count = 64 << 20
    audit_keep: Whole = 10
    audit_client_bytes: Count = 128 << 20
    shadow: bool = False
    fail_open: bool = False
    playground: bool = False
    log_prompts: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.model_name.strip():
            raise ConfigError("model_name must not be blank: clients name the model by it")
        if self.audit_text and self.audit_file is None:
            raise ConfigError("audit_text needs audit_file, the audit log that it is put into")
        for name in ("beams", "mix_steps"):
            least, most = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if least is not None and least > most:
                raise ConfigError(f"min_{name} ({least}) is above max_{name} ({most})")

    @property
    def on_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False


@dataclass(frozen=True, kw_only=True)
class EvalConfig(CheckedSettings):
    """How ``alignbeam eval`` and ``sweep`` go through a suite; None leaves it to the suite.

    Attributes
    ----------
    batch_size : int or None
        Requests answered together.
    limit : int or None
        Most samples of each set.
    """

    batch_size: Count | None = None
    limit: Count | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything a configuration file holds: a field is a table."""

    beam: BeamConfig = field(default_factory=BeamConfig)
    gate: GateConfig = field(default_factory=GateConfig)
    target: RoleConfig = field(default_factory=RoleConfig)
    anchor: RoleConfig = field(default_factory=RoleConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
