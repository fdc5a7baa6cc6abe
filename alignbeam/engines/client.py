"""HTTP to one engine: time limits, retries where nothing was decided, a circuit breaker."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar

import httpx2

from alignbeam.engines.busy import busy_s
from alignbeam.errors import EngineBusy, EngineFault, EngineUnavailable

#: Pauses before a call is tried again, seconds. What is tried again decided nothing.
_PAUSES: Final = (0.05, 0.25)
#: The shortest of a busy engine, at first and doubled each time, and the longest, whatever it says.
_BUSY_PAUSE, _BUSY_PAUSE_MOST = 0.25, 5.0
#: Failures in a row after which calls fail at once.
_TRIPS: Final = 4
_DOWN: Final = frozenset({502, 503, 504})
#: Refusals that every question will meet: a key, a model, an address that is not there.
_ALWAYS: Final = frozenset({401, 403, 404})
#: Bytes of the longest answer, and of the longest event of a stream: ten times what is needed.
_MOST: Final = 32 << 20
_MOST_EVENT: Final = 1 << 20
#: Longest part of an engine's own words that goes into an error.
_QUOTED: Final = 300

Json = dict[str, Any]

_Said = TypeVar("_Said")


class Breaker:
    """Lets calls through until an engine has failed too often in a row.

    Attributes
    ----------
    why : str or None
        Why calls fail at once; None where they do not.
    """

    def __init__(self, trips: int = _TRIPS) -> None:
        self._trips, self._failures = trips, 0
        self.why: str | None = None

    def failed(self, why: str) -> None:
        """Count a failure."""
        self._failures += 1
        if self._failures >= self._trips:
            self.why = why

    def trip(self, why: str) -> None:
        """Open at once."""
        self.why = why

    def succeeded(self) -> None:
        """Count afresh, after an answer that could be read; one that is open stays open."""
        self._failures = 0

    def close(self) -> None:
        """Let calls through again; whoever calls this has checked the engine."""
        self._failures, self.why = 0, None


class EngineClient:
    """Speaks JSON over HTTP with one engine, on the event loop of ``engines.scope``.

    Proxies and credentials of the environment are not used, and redirects not followed: prompts go
    where they were configured to go and nowhere else. Of what comes, length and time are bounded,
    and nothing is unpacked.

    Parameters
    ----------
    name : str
        The role; stands in errors.
    url : str
        The engine's address, without ``/v1``.
    key : str or None
        Sent as bearer token.
    connect_s, read_s : float
        Seconds to connect, and without a byte of an answer, or busy; an answer, or an event of a
        stream, has twice that to be whole.

    Attributes
    ----------
    calls, sent, received : int
        HTTP requests so far, and bytes of their bodies and of the answers; checks aside.
    opened : float
        When the last connection was opened, by ``time.monotonic``.
    """

    def __init__(
        self, name: str, url: str, key: str | None, connect_s: float, read_s: float
    ) -> None:
        self.name, self.url = name, url.rstrip("/").removesuffix("/v1")
        self.breaker = Breaker()
        self.calls = self.sent = self.received = 0
        self.opened = 0.0
        self._headers = {"accept-encoding": "identity", "content-type": "application/json"}
        if key is not None:
            self._headers["authorization"] = f"Bearer {key}"
        self._timeout = httpx2.Timeout(read_s, connect=connect_s, pool=connect_s)
        self._busy_s, self._whole_s = read_s, connect_s + 2 * read_s
        self._http: httpx2.AsyncClient | None = None

    def _client(self) -> httpx2.AsyncClient:
        if self._http is None:
            self._http = httpx2.AsyncClient(
                base_url=self.url,
                headers=self._headers,
                timeout=self._timeout,
                limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
                verify=ssl.create_default_context(),
                trust_env=False,
            )
        return self._http

    async def _note(self, event: str, _: object) -> None:
        if event == "connection.connect_tcp.complete":
            self.opened = time.monotonic()

    async def get(self, path: str, *, checking: bool = False) -> Json:
        """GET one answer; see ``post``."""
        return await self._answer("GET", path, None, checking)

    async def post(self, path: str, body: Json, *, checking: bool = False) -> Json:
        """POST one question; tried again where the engine did not answer, or is busy.

        Parameters
        ----------
        checking : bool
            Past an open breaker, once, for whoever finds out whether it may be closed.

        Raises
        ------
        EngineUnavailable
            Down, slow, restarting, or the breaker is open.
        EngineBusy
            It has no room; this does not count towards the breaker.
        EngineFault
            It refuses the question, or what came is no JSON object.
        """
        return await self._answer("POST", path, body, checking)

    async def _answer(self, method: str, path: str, body: Json | None, checking: bool) -> Json:
        content = b"" if body is None else json.dumps(body).encode()
        if checking:
            return await self._once(method, path, content, counted=False)
        return await self._again(lambda: self._once(method, path, content, counted=True))

    async def patiently(self, ask: Callable[[], Awaitable[_Said]]) -> _Said:
        """Ask, and again as long as the engine is busy and there is time.

        It is asked when it says, or a little later, so that not all come at once. Where that is far
        away, it is asked within seconds all the same: its clock may be another.

        Raises
        ------
        EngineBusy
            It still is.
        """
        until, least = time.monotonic() + self._busy_s, _BUSY_PAUSE
        while True:
            try:
                return await ask()
            except EngineBusy as error:
                pause = min(max(error.wait_s, least), _BUSY_PAUSE_MOST) * random.uniform(1.0, 1.5)
                if time.monotonic() + pause > until:
                    raise
            await asyncio.sleep(pause)
            least *= 2

    async def _again(self, ask: Callable[[], Awaitable[_Said]]) -> _Said:
        """Ask, and again where the engine did not answer or is busy; failures are counted."""
        return await self.patiently(lambda: self._counted(ask))

    async def _counted(self, ask: Callable[[], Awaitable[_Said]]) -> _Said:
        for pause in (*_PAUSES, None):
            self._check_breaker()
            try:
                return await ask()
            except (EngineBusy, EngineFault):
                raise
            except EngineUnavailable as error:
                # A slow engine is not made faster by asking it twice.
                if pause is None or isinstance(error.__cause__, httpx2.ReadTimeout):
                    self.breaker.failed(str(error))
                    raise
                await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _once(self, method: str, path: str, content: bytes, *, counted: bool) -> Json:
        self.calls += counted
        self.sent += counted * len(content)
        try:
            async with (
                asyncio.timeout(self._whole_s),
                self._client().stream(
                    method, path, content=content, extensions={"trace": self._note}
                ) as response,
            ):
                said = await self._whole(response)
        except TimeoutError:
            raise self._unreachable(slow := httpx2.ReadTimeout("not whole in time")) from slow
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        self.received += counted * len(said)
        return self._read(response.status_code, said, response.headers.get("retry-after"))

    async def _whole(self, response: httpx2.Response) -> bytes:
        said = bytearray()
        async for piece in response.aiter_raw():
            said += piece
            if len(said) > _MOST:
                raise self.fault(f"an answer of more than {_MOST >> 20} MiB")
        return bytes(said)

    async def events(self, path: str, body: Json) -> AsyncIterator[Json]:
        """Yield the events of one streamed answer; tried again only before the first.

        Raises
        ------
        EngineUnavailable, EngineFault
            See ``post``; also where the stream breaks off, or holds an error.
        """
        content = json.dumps({**body, "stream": True}).encode()
        events, event = await self._again(lambda: self._begin(path, content))
        try:
            while event is not None:
                yield event
                event = await self._next(events)
        except (EngineBusy, EngineFault):
            raise
        except EngineUnavailable as error:
            self.breaker.failed(str(error))
            raise

    async def _begin(self, path: str, content: bytes) -> tuple[AsyncIterator[Json], Json | None]:
        """Return a stream's events to come, and the first."""
        events = self._stream(path, content)
        return events, await self._next(events)

    async def _next(self, events: AsyncIterator[Json]) -> Json | None:
        """Return the next event in time; None at the end. Comments do not count."""
        try:
            async with asyncio.timeout(self._whole_s):
                return await anext(events, None)
        except TimeoutError:
            raise self._unreachable(slow := httpx2.ReadTimeout("not whole in time")) from slow

    async def _stream(self, path: str, content: bytes) -> AsyncIterator[Json]:
        self.calls += 1
        self.sent += len(content)
        try:
            async with self._client().stream(
                "POST", path, content=content, extensions={"trace": self._note}
            ) as response:
                if response.status_code != 200:
                    told = response.headers.get("retry-after")
                    self._read(response.status_code, await self._whole(response), told)
                async for line in self._lines(response):
                    if line == b"data: [DONE]":
                        return
                    if line.startswith(b"data: "):
                        yield self._read(200, line[6:])
        except httpx2.HTTPError as error:
            raise self._unreachable(error) from error
        raise EngineUnavailable(f"the {self.name}'s engine broke off its answer", self.name)

    async def _lines(self, response: httpx2.Response) -> AsyncIterator[bytes]:
        held = b""
        async for piece in response.aiter_raw():
            self.received += len(piece)
            *whole, held = (held + piece).split(b"\n")
            if len(held) > _MOST_EVENT:
                raise self.fault(f"a piece of an answer of more than {_MOST_EVENT >> 20} MiB")
            for line in whole:
                yield line.removesuffix(b"\r")

    def _read(self, status: int, content: bytes, retry_after: str | None = None) -> Json:
        try:
            said = json.loads(content) if content else {}
        except (ValueError, RecursionError):
            said = None
        failed = status != 200 or (isinstance(said, dict) and "error" in said)
        if failed and (wait_s := busy_s(status, said, retry_after)) is not None:
            raise EngineBusy(f"the {self.name}'s engine is busy", self.name, wait_s)
        if status in _DOWN or (status >= 500 and not isinstance(said, dict)):
            raise EngineUnavailable(f"the {self.name}'s engine answers {status}", self.name)
        if failed:
            raise self.refused(status, said)
        if not isinstance(said, dict):
            raise self.fault("an answer that is no JSON object")
        return said

    def refused(self, status: int, said: object) -> EngineFault:
        """Return the error of a question that the engine does not take, in its own words."""
        error = said.get("error", said) if isinstance(said, dict) else said
        words = error.get("message", error) if isinstance(error, dict) else error
        failure = self.fault(str(status), str(words)[:_QUOTED])
        if status in _ALWAYS or status >= 500:
            self.breaker.failed(failure.public)
        return failure

    def fault(self, what: str, words: str = "") -> EngineFault:
        """Return the error of an engine that answers ``what``, in these words of its own."""
        return EngineFault(f"the {self.name}'s engine gave {what}", self.name, words)

    def _unreachable(self, error: httpx2.HTTPError) -> EngineUnavailable:
        how = "is too slow" if isinstance(error, httpx2.TimeoutException) else "does not answer"
        return EngineUnavailable(
            f"the {self.name}'s engine {how} ({type(error).__name__})", self.name
        )

    def _check_breaker(self) -> None:
        if self.breaker.why is not None:
            raise EngineUnavailable(self.breaker.why, self.name)
