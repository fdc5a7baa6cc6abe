"""Connections: how many, and how long one may stay without a whole request on it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_log = logging.getLogger(__name__)


def limited(max_connections: int, head_timeout_s: float) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with two limits that it has not.

    Parameters
    ----------
    max_connections : int
        What comes beyond is closed at once.
    head_timeout_s : float
        Seconds that a connection has, from its beginning and from the end of each answer, for the
        next request's head. uvicorn's own limit for idle connections starts only after an answer
        and ends with any byte, so a client that sends one byte now and then would stay for ever;
        so would one that never reads the end of its answer.
    """

    class Limited(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > max_connections:
                _log.warning("more than %d connections: one was closed", max_connections)
                transport.abort()
                return
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            self._wait_for_head()
            super().on_response_complete()

        def _wait_for_head(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(head_timeout_s, self._look)

        def _look(self) -> None:
            if self.cycle is None or self.cycle.response_complete:
                self.transport.abort()  # closing would wait for a client that does not read

    return Limited
