"""Connections: how many, whose, and how long one may stay without a whole request on it."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections import Counter
from typing import Any, Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from alignbeam.config import ServerConfig

_log = logging.getLogger(__name__)

#: Connections beyond the limit, on which only probes are answered (``alignbeam.server.gate``).
SPARE: Final = 16
#: Seconds between two lines in the log about connections that were closed for others.
_LOG_S: Final = 60.0


class Crowd:
    """Who is connected, and who waits without a request: what makes room for newcomers.

    Whoever comes when all is full takes the place of the connection that has been silent for
    longest: where its own address has too many, of those; else of the address with the most silent
    ones. So silent connections shut nobody out, and whoever holds many loses them first.

    Parameters
    ----------
    most : int
        Connections at a time; ``SPARE`` more where none of them is silent.
    each : int
        Of one address.
    """

    def __init__(self, most: int, each: int) -> None:
        self._most, self._each = most, each
        self._held: Counter[str] = Counter()
        self._silent: dict[str, dict[Any, None]] = {}  # of each address, the longest first
        self._logged = -_LOG_S

    def enter(self, who: Any, address: str) -> tuple[bool, bool, Any]:
        """Take a newcomer in: whether it may stay, whether it is a spare one, and who must go."""
        gone, spare = None, False
        if self._held[address] >= self._each:
            gone = next(iter(self._silent.get(address, ())), None)
            if gone is None:
                self._tell()
                return False, False, None
            self.leave(gone, address)
        elif self._held.total() >= self._most:
            fullest = max(self._silent, key=lambda a: len(self._silent[a]), default=None)
            if fullest is not None:
                gone = next(iter(self._silent[fullest]))
                self.leave(gone, fullest)
            elif self._held.total() >= self._most + SPARE:
                self._tell()
                return False, False, None
            spare = self._held.total() >= self._most
        self._held[address] += 1
        self.falls_silent(who, address)
        if gone is not None:
            self._tell()
        return True, spare, gone

    def falls_silent(self, who: Any, address: str) -> None:
        """Note that a connection waits for its client's next request."""
        self.speaks(who, address)
        self._silent.setdefault(address, {})[who] = None

    def speaks(self, who: Any, address: str) -> None:
        """Note that a connection has a request."""
        line = self._silent.get(address, {})
        line.pop(who, None)
        if not line:
            self._silent.pop(address, None)

    def leave(self, who: Any, address: str) -> None:
        """Forget a connection that was in."""
        self.speaks(who, address)
        self._held[address] -= 1
        if not self._held[address]:
            del self._held[address]

    def _tell(self) -> None:
        now = time.monotonic()
        if now - self._logged >= _LOG_S:
            self._logged = now
            _log.warning("too many connections (%d): silent ones are closed", self._held.total())


def limited(config: ServerConfig) -> type[H11Protocol]:
    """Return uvicorn's HTTP protocol with limits that it has not: ``Crowd``'s, and one on time.

    Each connection has ``head_timeout_s``, from its beginning and from the end of each answer, for
    the next request's head. uvicorn's own limit for idle connections starts only after an answer
    and ends with any byte, so a client that sends one byte now and then would stay for ever; so
    would one that never reads the end of its answer.
    """
    crowd = Crowd(config.max_connections, config.max_connections_per_address)

    class Limited(H11Protocol):
        _deadline: asyncio.TimerHandle | None = None
        _address: str = ""
        _inside = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._address = _address_of(self.client)
            self._inside, spare, gone = crowd.enter(self, self._address)
            if gone is not None:
                gone.end()
            if not self._inside:
                transport.abort()
                return
            if spare:
                self.app_state = {**self.app_state, "spare": True}
            self._wait_for_head()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            if self._inside:
                self._inside = False
                crowd.leave(self, self._address)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._inside and not self._is_silent():
                crowd.speaks(self, self._address)

        def on_response_complete(self) -> None:
            self._wait_for_head()
            if self._inside:
                crowd.falls_silent(self, self._address)
            super().on_response_complete()
            if self._inside and not self._is_silent():  # the next request had come already
                crowd.speaks(self, self._address)

        def end(self) -> None:
            """Make room for another; the crowd has forgotten this one already."""
            self._inside = False
            self.transport.abort()

        def _wait_for_head(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
            self._deadline = self.loop.call_later(config.head_timeout_s, self._look)

        def _look(self) -> None:
            if self._is_silent():
                self.transport.abort()  # closing would wait for a client that does not read

        def _is_silent(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

    return Limited


def _address_of(client: tuple[str, int] | None) -> str:
    """Return whose a connection is: an IPv4 address, or the /64 that an IPv6 customer has."""
    if client is None:
        return ""
    try:
        address = ipaddress.ip_address(client[0])
    except ValueError:
        return client[0]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)
