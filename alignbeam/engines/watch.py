"""Whether an engine is there, and whether it is still the one that was checked."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final

from alignbeam.engines.scope import io_loop
from alignbeam.errors import EngineBusy, EngineFault, EngineShortfall, EngineUnavailable

if TYPE_CHECKING:
    from alignbeam.engines.role import RemoteRole

_log = logging.getLogger(__name__)

#: Seconds between two looks at an engine, and between two checks that it is still the same.
LOOK_S: Final = 2.0
CHECK_S: Final = 30.0
#: Looks in vain after which an engine counts as down.
_MISSES: Final = 2


class Watch:
    """Looks after one role's engine, and opens or closes its breaker.

    Parameters
    ----------
    role : RemoteRole

    Attributes
    ----------
    prints : set of str
        What every engine that was found to be the one at the start calls itself.
    probe : dict of int to float
        Log-probabilities of some ids after a fixed prompt, as they were at the start.
    """

    def __init__(self, role: RemoteRole) -> None:
        self._role = weakref.ref(role)
        self.prints: set[str] = set()
        self.probe: dict[int, float] = {}
        self._seen: set[str] = set()
        self._checked = self._since = 0.0
        self._lock = asyncio.Lock()
        self._task: Any = None

    @property
    def why(self) -> str | None:
        """Why the role cannot be played now; None where it can."""
        role = self._role()
        return None if role is None else role.client.breaker.why

    def begin(self) -> None:
        """Look from now on, as long as the role lives."""
        self._task = asyncio.run_coroutine_threadsafe(self._look(), io_loop())

    async def recognise(
        self, answer: Mapping[str, Any], *, checking: bool = False, signed_later: bool = False
    ) -> None:
        """Refuse an answer of another model than was checked at the start.

        An engine that calls itself otherwise than any before (a new version, another parallelism)
        is checked first; one that does not call itself anything, once it may have been started
        again: when a connection was opened since the last check.

        Parameters
        ----------
        answer : mapping
        checking : bool
            It is part of a check.
        signed_later : bool
            It is a piece of an answer of which a later one says who gave it.

        Raises
        ------
        EngineFault
            It is another model, or cannot be checked.
        """
        role = self._role()
        if role is None:
            return
        model, print_ = role.dialect.identity(answer)
        if model not in (None, role.dialect.served):
            raise role.client.fault(
                f"an answer of {str(model)[:80]!r}, not of {role.dialect.served!r}"
            )
        if not isinstance(print_, str | None):
            raise role.client.fault("a name of itself that is no text")
        if checking:
            if print_ is not None:
                self._seen.add(print_)
            return
        if (signed_later and print_ is None) or self._known(role, print_):
            return
        try:
            await self.check(lambda: not self._known(role, print_))
        except EngineShortfall as error:
            role.client.breaker.trip(str(error))
            raise EngineFault(str(error), role.name) from error
        if print_ is not None and print_ not in self.prints:
            raise role.client.fault("an answer of an engine that cannot be checked")

    def _known(self, role: RemoteRole, print_: str | None) -> bool:
        same_connection = role.client.opened < self._since
        if print_ is None:
            return same_connection
        return print_ in self.prints and (role.dialect.signs or same_connection)

    async def check(self, needed: Callable[[], bool] = lambda: True) -> None:
        """Check that the engine is the one of the start; what it calls itself is then known.

        A busy engine is asked again, and others' checks have their turn meanwhile.

        Parameters
        ----------
        needed : callable
            Asked when it is this check's turn.

        Raises
        ------
        EngineUnavailable, EngineFault, EngineShortfall
            It is not there, or not the same.
        """
        role = self._role()
        if role is not None:
            await role.client.patiently(lambda: self._check(role, needed))

    async def _check(self, role: RemoteRole, needed: Callable[[], bool]) -> None:
        from alignbeam.engines import check

        async with self._lock:
            if not needed():
                return
            self._seen.clear()
            since = time.monotonic()
            await check.compare(role)
            self.prints |= self._seen
            self._checked, self._since = time.monotonic(), since

    async def _look(self) -> None:
        missed = 0
        while (role := self._role()) is not None:
            client = role.client
            try:
                await client.get("/health", checking=True)
                missed = 0
                if client.breaker.why is not None or time.monotonic() - self._checked > CHECK_S:
                    await self.check()
                    if client.breaker.why is not None:
                        _log.warning("the %s's engine is back", role.name)
                    client.breaker.close()
            except EngineBusy:
                pass  # not gone, and not found to be the same
            except EngineUnavailable as error:
                missed += 1
                if missed >= _MISSES and client.breaker.why is None:
                    _log.error("%s", error)
                    client.breaker.trip(str(error))
            except Exception as error:  # a watch that ended would leave the breaker as it is
                if client.breaker.why != str(error):
                    _log.error("%s", error)
                client.breaker.trip(str(error))
            del role
            await asyncio.sleep(LOOK_S)
