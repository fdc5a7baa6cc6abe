"""What one request asks of engines runs on one event loop, and is given up as a whole."""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
import hmac
import secrets
import threading
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import cache
from typing import Any, Final, TypeVar

from alignbeam.errors import Cancelled

_Answer = TypeVar("_Answer")


_LOCK: Final = threading.Lock()


def io_loop() -> asyncio.AbstractEventLoop:
    """Return the event loop of all engines' connections; its thread ends with the process."""
    with _LOCK:  # two loops would share connections that belong to one
        return _begun_loop()


@cache
def _begun_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="alignbeam engines", daemon=True).start()
    return loop


_KEY: Final = secrets.token_bytes(32)


def tenant_salt(tenant: str) -> str:
    """Return what keeps a tenant's prefixes in an engine's cache apart from the others'."""
    return hmac.new(_KEY, tenant.encode(), hashlib.sha256).hexdigest()


class Scope:
    """The calls of one request, from whichever thread decodes it.

    Parameters
    ----------
    salt : str
        Keeps prefixes in an engine's cache apart from other tenants'; empty shares them.
    """

    def __init__(self, salt: str = "") -> None:
        self.salt = salt
        self._lock = threading.Lock()
        self._calls: set[concurrent.futures.Future[Any]] = set()
        self._cancelled = False

    def start(self, call: Coroutine[Any, Any, _Answer]) -> concurrent.futures.Future[_Answer]:
        """Begin a call without waiting for it.

        Raises
        ------
        Cancelled
            The scope was cancelled.
        """
        with self._lock:
            if self._cancelled:
                call.close()
                raise Cancelled("given up")
            future = asyncio.run_coroutine_threadsafe(call, io_loop())
            self._calls.add(future)
        future.add_done_callback(self._calls.discard)
        return future

    def run(self, call: Coroutine[Any, Any, _Answer]) -> _Answer:
        """Wait for a call's answer; it raises what the call raises, or ``Cancelled``."""
        return self.begin(call)()

    def begin(self, call: Coroutine[Any, Any, _Answer]) -> Callable[[], _Answer]:
        """Begin a call; what is returned waits for its answer, as ``run`` does."""
        future = self.start(call)

        def wait() -> _Answer:
            try:
                return future.result()
            except concurrent.futures.CancelledError:
                raise Cancelled("given up") from None

        return wait

    def cancel(self) -> None:
        """Abort every call, and refuse those to come; an engine frees what it held for them."""
        with self._lock:
            self._cancelled = True
            calls = list(self._calls)
        for call in calls:
            call.cancel()


#: Of whoever asks on this thread; a scope that nobody cancels where none was entered.
scope: ContextVar[Scope] = ContextVar("scope", default=Scope())  # noqa: B039
