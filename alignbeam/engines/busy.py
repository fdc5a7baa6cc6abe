"""How an engine, or what stands before it, says that it has no room now, and for how long."""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime
from typing import Final

#: Longest time to stay away that is believed, seconds.
_LONGEST_S: Final = 60.0
#: What vLLM (--max-num-queued-reqs, --max-num-queued-tokens) and SGLang (--max-queued-requests)
#: say with 503 where they are full: without Retry-After, and not where they are dead or loading.
_FULL: Final = re.compile("currently busy|backlog limit|queue is full|queue timeout")
#: Characters of an engine's own words that are looked at.
_READ: Final = 300


def busy_s(status: int, said: object, retry_after: str | None) -> float | None:
    """Return for how many seconds an answer says to stay away; None where it is not of a busy one.

    Parameters
    ----------
    status : int
    said : object
        What the answer holds: an error, where ``status`` does not say so.
    retry_after : str or None
        The header. A 503 without it is of an engine that is dead or loads, or of a balancer that
        has none, unless it says otherwise.
    """
    told = _seconds(retry_after)
    if status == 429 or (status == 503 and told is not None) or _full(status, said):
        return told or 0.0
    return None


def _full(status: int, said: object) -> bool:
    error = said.get("error", said) if isinstance(said, dict) else None
    if not isinstance(error, dict) or not isinstance(words := error.get("message"), str):
        return False
    # A stream has begun with 200 before there is room for it, and may tell of none in an event.
    return 503 in (status, error.get("code")) and _FULL.search(words[:_READ]) is not None


def _seconds(retry_after: str | None) -> float | None:
    """Return what the header says, a number of seconds or a date; None where that is neither."""
    told = (retry_after or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", told):
        return min(float(told), _LONGEST_S)
    try:
        until = parsedate_to_datetime(told).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return min(max(until - time.time(), 0.0), _LONGEST_S)
