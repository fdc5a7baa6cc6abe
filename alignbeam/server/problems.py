"""Every way of saying no, in the shape that OpenAI clients read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from alignbeam.errors import (
    AlignBeamError,
    ConfigError,
    DecodingFailed,
    EngineBusy,
    EngineFault,
    EngineUnavailable,
    JudgeUnavailable,
    NonFiniteLogits,
    OutOfMemory,
    PromptError,
)


class Overloaded(AlignBeamError, RuntimeError):
    """The queue is full; try again later."""


class Draining(AlignBeamError, RuntimeError):
    """The server is about to stop and takes no new request."""


class TooLarge(PromptError):
    """A request that could never run here: its tokens times beams exceed the operator's bound."""


class AuditUnavailable(AlignBeamError, RuntimeError):
    """The audit record cannot be written, so the answer must not leave."""


class AuditQuota(AlignBeamError, RuntimeError):
    """A client's records would push others' out of the audit log, for ``wait_s`` seconds yet."""

    def __init__(self, wait_s: float) -> None:
        super().__init__("your requests fill the audit log too fast; come again later")
        self.wait_s = wait_s


@dataclass(eq=False)
class Problem(Exception):
    """A reply that is an error.

    Attributes
    ----------
    status : int
        HTTP status.
    code : str
        Stable name, for programs.
    message : str
        For people; never holds text of a prompt or an answer.
    param : str or None
        The field at fault.
    """

    status: int
    code: str
    message: str
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> dict[str, Any]:
        """The reply's JSON."""
        return {
            "error": {
                "message": self.message,
                "type": _TYPES.get(self.status, "invalid_request_error"),
                "param": self.param,
                "code": self.code,
            }
        }


_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "service_unavailable_error",
}

#: Status and code of our own errors, the first class that fits.
_KNOWN: tuple[tuple[type[AlignBeamError], int, str], ...] = (
    (TooLarge, 400, "request_too_large"),
    (PromptError, 400, "invalid_prompt"),
    # What a client may set was checked before (``plan``): this is the operator's.
    (ConfigError, 500, "misconfigured"),
    (Overloaded, 503, "overloaded"),
    (AuditQuota, 429, "audit_quota"),
    (Draining, 503, "shutting_down"),
    (JudgeUnavailable, 503, "judge_unavailable"),
    (AuditUnavailable, 503, "audit_unavailable"),
    (OutOfMemory, 503, "out_of_memory"),
    (EngineBusy, 503, "engine_busy"),
    (EngineFault, 503, "engine_fault"),
    (EngineUnavailable, 503, "engine_unavailable"),
    (DecodingFailed, 500, "decoding_failed"),
    (NonFiniteLogits, 500, "non_finite_logits"),
)

#: What the server's own failures say to clients; their details are for the log.
_SPOKEN = {
    "misconfigured": "This server's own settings keep it from answering; its operator must act.",
    "judge_unavailable": "No judge could check this answer, so it is withheld. Try again later.",
    "audit_unavailable": "The answer cannot be recorded, so it is withheld. Try again later.",
    "out_of_memory": "Not enough memory for this request. Ask for fewer tokens or beams.",
    "engine_busy": "An engine behind this server has no room now. Try again later.",
    "engine_fault": "An engine behind this server cannot be trusted; no answer is given.",
    "engine_unavailable": "An engine behind this server does not answer. Try again later.",
    "decoding_failed": "A model failed while answering; no answer is given.",
    "non_finite_logits": "A model gave numbers that are none; no answer is given.",
}


def problem_of(error: BaseException, retry_after_s: int, field: str | None = None) -> Problem:
    """Turn what the scheduler raised into a reply; ``field`` is where the prompt was."""
    for kind, status, code in _KNOWN:
        if isinstance(error, kind):
            message = _SPOKEN.get(code, str(error))
            if isinstance(error, AuditQuota | EngineBusy):
                retry_after_s = max(retry_after_s, math.ceil(error.wait_s))
            headers = {"retry-after": str(retry_after_s)} if status in (429, 503) else {}
            if not isinstance(error, PromptError):
                field = None
            elif kind is PromptError:
                code = error.code
            return Problem(status, code, message, field, headers)
    return Problem(500, "internal_error", "Something broke; the log has the details.")
