"""Blocking work on threads, one piece at a time for each client: nobody waits for another's."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TypeVar

from alignbeam.server.problems import Overloaded

T = TypeVar("T")

#: Clients whose work is done at once; more of them wait for a thread.
_THREADS = 8


@dataclass(slots=True)
class _Line:
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    length: int = 0


class Turns:
    """Lines of work, one per client; used from one event loop.

    Parameters
    ----------
    most : int
        Pieces of work that one client may have at a time, the one being done included.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._lines: dict[str, _Line] = {}
        self._pool = ThreadPoolExecutor(_THREADS, "alignbeam prompts")

    async def run(self, client: str, work: Callable[[], T]) -> T:
        """Do ``work`` when it is its client's turn.

        Given up while it waits, it is never begun. A thread cannot be stopped, so given up later it
        keeps its client's turn until it is done: leaving and coming again gains nothing.

        Raises
        ------
        Overloaded
            The client has too much waiting already.
        """
        line = self._lines.setdefault(client, _Line())
        if line.length >= self._most:
            raise Overloaded(f"{line.length} of your requests are being read; try again later")
        line.length += 1
        try:
            await line.turn.acquire()
        except asyncio.CancelledError:
            self._leave(client, line)
            raise

        def done(_: object) -> None:
            line.turn.release()
            self._leave(client, line)

        doing = asyncio.get_running_loop().run_in_executor(self._pool, work)
        doing.add_done_callback(done)
        await asyncio.wait({doing})  # which, unlike awaiting it, leaves it alone when cancelled
        return doing.result()

    def close(self) -> None:
        """Begin nothing any more."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _leave(self, client: str, line: _Line) -> None:
        line.length -= 1
        if not line.length:
            del self._lines[client]
