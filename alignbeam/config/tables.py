"""The tables of a configuration file, as frozen dataclasses: what may be set, and to what."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from alignbeam.config.checked import CheckedSettings, Range
from alignbeam.errors import ConfigError

#: K rows of KV cache are kept per request; more than this is a mistake, or an attack.
MAX_BEAMS = 8

Share = Annotated[float, Range(0, 1)]
#: A harm score, from harmless to worst.
Harm = Annotated[float, Range(1, 5)]
#: A difference of two harm scores.
Margin = Annotated[float, Range(0, 4)]
Whole = Annotated[int, Range(0)]
Count = Annotated[int, Range(1)]
Seconds = Annotated[float, Range(0.01, 86_400)]
#: How many of the anchor's best tokens are translated.
AnchorTokens = Annotated[int, Range(1, 256)]
BeamCount = Annotated[int, Range(1, MAX_BEAMS)]


@dataclass(frozen=True, kw_only=True)
class BeamConfig(CheckedSettings):
    """How one request is answered.

    Attributes
    ----------
    alpha : float
        Weight of the anchor in the mix, 0..1.
    mix_steps : int
        N, how many generated tokens are mixed, the priming one included; 0 leaves the target
        alone.
    beams : int
        K, how many candidates are completed and judged, 1..8.
    top_b : int
        B, how many of the anchor's next tokens are translated each step, 1..256.
    mix : {"linear", "log"}
        Weighted mean of probabilities (the paper), or of log-probabilities.
    support : {"anchor", "union"}
        Only translated tokens may be chosen (the paper), or every target token.
    fallback : {"drop", "first", "exact"}
        What becomes of anchor tokens without a byte-identical target token (``Bridge``).
    threshold : float
        A candidate whose score is at most this may be shown, 1..5.
    tie_margin : float
        Scores this close to the lowest count as equal to it, 0..4. An expected value over five
        levels differs a little between any two texts; what it differs by is no judgement. 0
        compares scores as they are.
    on_unsafe : {"refuse", "safest", "raise"}
        When no candidate passes: answer ``refusal_text``, return the lowest score all the same
        (as far as it is a real verdict), or raise ``UnsafeAnswer`` (which a server answers like
        ``"refuse"``).
    refusal_text : str
        The fixed refusal.
    max_new_tokens : int
        Longest answer, in target tokens; shorter where the target's window ends first.
    temperature : float
        0 is greedy; above, tokens after the mixed ones are sampled.
    top_p, top_k : float, int
        Nucleus and top-k filters of the sampling; 1 and 0 switch them off.
    seed : int
        Each beam draws from its own generator, made of this and the beam's index.
    stop : tuple of str
        Strings that end an answer; they are not part of it.
    backend : str
        Kernel backend of ``mix_topk``.
    wishes : int
        How many tokens of each model a step's trace keeps; 0 keeps no trace.
    """

    alpha: Share = 0.5
    mix_steps: Whole = 6
    beams: BeamCount = 3
    top_b: AnchorTokens = 50
    mix: Literal["linear", "log"] = "linear"
    support: Literal["anchor", "union"] = "anchor"
    fallback: Literal["drop", "first", "exact"] = "drop"
    threshold: Harm = 2.5
    tie_margin: Margin = 0.25
    on_unsafe: Literal["refuse", "safest", "raise"] = "refuse"
    refusal_text: str = "I'm sorry, but I can't help with that."
    max_new_tokens: Count = 256
    temperature: Annotated[float, Range(0, 100)] = 0.0
    top_p: Share = 1.0
    top_k: Whole = 0
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    stop: tuple[str, ...] = ()
    backend: Literal["auto", "cpu", "cuda", "triton", "reference"] = "auto"
    wishes: Annotated[int, Range(0, 20)] = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.top_p == 0:
            raise ConfigError("top_p must be above 0; for greedy decoding set temperature = 0")
        if self.mix_steps > self.max_new_tokens:
            raise ConfigError(
                f"mix_steps ({self.mix_steps}) must not exceed max_new_tokens "
                f"({self.max_new_tokens}); lower the one or raise the other"
            )


@dataclass(frozen=True, kw_only=True)
class RoleConfig(CheckedSettings):
    """How one model is loaded and prompted.

    Attributes
    ----------
    model : str or None
        Folder, hub id, ``.gguf`` file or ``hub/id:file.gguf``; None is the embedded demonstration
        model of that role.
    revision : str or None
        Commit of a hub repository; pin it.
    adapter : str or None
        PEFT adapter (folder or hub id) put on top; needs the ``peft`` package. A tokenizer beside
        it counts in place of the model's.
    dtype : str
        ``"auto"`` (what the checkpoint holds; float32 on a CPU), ``"float32"``, ``"bfloat16"``
        or ``"float16"``.
    device : str or None
        Such as ``"cpu"`` or ``"cuda:1"``; None takes a GPU where there is one.
    device_map : str or None
        Handed to transformers (needs ``accelerate``); excludes ``device``.
    quantization : mapping or None
        Keyword arguments of ``BitsAndBytesConfig``, such as ``{load_in_4bit = true}``.
    system_prompt : str or None
        Put before the conversation, for this role only.
    chat_template : str or None
        Jinja text, the path of a ``.jinja`` file, or the name of one of the tokenizer's own
        templates; None is the one called ``default``.
    thinking : bool
        Leave a template's thinking mode on. The first tokens must be the answer's, so: False.
    fold_turns : bool or None
        Where the template does not take a system message, two turns of one role in a row, or an
        assistant's turn at the head: put the text into a turn that it takes. None: for the anchor
        and the judge, while a target's template refuses such requests.
    """

    model: str | None = None
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


@dataclass(frozen=True, kw_only=True)
class JudgeConfig(RoleConfig):
    """How the judge is loaded and asked: all of ``RoleConfig``, and what only it has.

    Attributes
    ----------
    kind : str
        ``"rubric"``, or the name of a guard format (``alignbeam.judge.GUARDS``).
    label_mass_floor : float
        A verdict with less probability on its labels is an error, 0..1.
    timeout_s : float or None
        Seconds for one batch of candidates; beyond, every verdict of the batch is an error.
    nonce_key : str or None
        Hexadecimal key of the marks around what a rubric judge reads; None draws one. A fixed key
        makes runs repeatable, and must then be as secret as the verdicts are to be trusted.
    """

    kind: str = "rubric"
    label_mass_floor: Share = 0.5
    timeout_s: Annotated[float, Range(0, 86_400)] | None = None
    nonce_key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonce_key is not None and not re.fullmatch("([0-9a-fA-F]{2})+", self.nonce_key):
            raise ConfigError("nonce_key must be hexadecimal, two digits a byte")


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
    min_alpha, min_mix_steps, min_beams : float, int, int; or None
        Floors for a request's own values; None is what ``[beam]`` says, so that a request can only
        strengthen the protection.
    max_beams, max_mix_steps, max_tokens, max_choices, max_stops : int
        Ceilings.
    max_messages, max_body_bytes, max_header_bytes : int
        Ceilings of what is read at all.
    max_connections, max_connections_per_address : int
        Connections at a time, and of one address (all clients, where they come through a proxy).
        What comes beyond takes the place of a silent one, or is closed at once; probes
        (``/health``, ``/ready``, ``/metrics``) have room of their own.
    head_timeout_s : float
        Seconds that a connection may stay without a whole request head, and a client may take to
        read the end of an answer.
    max_batch_cells, max_queued, max_queued_cells, client_share
        See ``alignbeam.server.scheduler.Scheduler``.
    retry_after_s : int
        What an overloaded server tells its clients.
    judge_timeout_s : float
        Seconds for one call of the judge, which is about a few candidates of one client; beyond,
        their verdicts are errors. A smaller ``[judge] timeout_s`` wins.
    judge_process : bool
        Run the judge in a process of its own, which is started again when it dies.
    drain_s : float
        Seconds that requests in flight get after SIGTERM.
    audit_file : str or None
        Audit log (JSONL). An answer that cannot be recorded does not leave.
    audit_text : bool
        Put prompts and answers into the audit log; else only their hashes.
    audit_text_chars : int
        Characters that it keeps of each text, and of a conversation.
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
    max_messages: Count = 256
    max_body_bytes: Count = 1 << 20
    max_header_bytes: Count = 16_384
    max_connections: Count = 1024
    max_connections_per_address: Count = 512
    head_timeout_s: Seconds = 30.0
    max_batch_cells: Count = 65_536
    max_queued: Count = 256
    max_queued_cells: Count = 1 << 20
    client_share: Annotated[float, Range(0.05, 1)] = 0.75
    retry_after_s: Count = 1
    judge_timeout_s: Seconds = 60.0
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
    target: RoleConfig = field(default_factory=RoleConfig)
    anchor: RoleConfig = field(default_factory=RoleConfig)
    judge: JudgeConfig = field(default_factory=JudgeConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
