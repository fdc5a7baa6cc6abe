"""Whose question is next where questions take unequal work."""

from __future__ import annotations

from collections.abc import Mapping


class Ledger:
    """Next is the client of whom least will have been done once its next question is answered.

    Self-clocked fair queueing (Golestani 1994): whoever comes begins where the last question to be
    answered ends. So nothing is made up for the time when a client asked nothing, and newcomers,
    however many there are, keep no large question waiting for ever.
    """

    def __init__(self) -> None:
        self._done: dict[str, int] = {}
        self._clock = 0

    def enter(self, client: str) -> None:
        """Begin with a client that had nothing to ask."""
        self._done[client] = max(self._done.get(client, 0), self._clock)

    def turn(self, work: Mapping[str, int]) -> str:
        """Return whose turn it is of those that have entered, given the work of their next."""
        client = min(work, key=lambda client: self._done[client] + work[client])
        self._clock = self._done[client] + work[client]
        # Of those that left only who is ahead need be remembered.
        self._done = {c: done for c, done in self._done.items() if c in work or done > self._clock}
        return client

    def charge(self, client: str, work: int) -> None:
        """Count what is done of a client."""
        self._done[client] += work
