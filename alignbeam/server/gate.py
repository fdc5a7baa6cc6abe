"""The gate before every route: who may come in, and how much of it is read.

An ASGI middleware outside the framework, so that no route, known or unknown, can be reached around
it. Everything is denied but ``/health`` and ``/ready``.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import math
import re
import secrets
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from alignbeam.config import ServerConfig
from alignbeam.server.allowance import Allowance
from alignbeam.server.keys import Keys
from alignbeam.server.problems import Problem

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health", "/ready"})
#: Tells of all clients at once, so no client's key opens it.
METRICS = "/metrics"
#: What is answered on connections beyond the limit.
PROBES = OPEN_PATHS | {METRICS}
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}\Z")
#: Seconds that a client which sends too much is waited for before it is sent away.
_PATIENCE_S = 1.0
#: Seconds between two looks, at least: what it has left changes with its other requests.
_PAUSE_S = 0.01
#: Bytes of one message where no length is declared, at most: uvicorn reads on up to 64 KiB, and
#: asyncio reads 256 KiB at a time.
_AHEAD = 5 << 16
#: Characters of a path that the log keeps: whoever has no key must not fill the disk with it.
_LOGGED_PATH = 200
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})
_log = logging.getLogger("alignbeam.access")


class Gate:
    """Wraps an ASGI application.

    Parameters
    ----------
    app : ASGI application
    keys : Keys
        Empty only on loopback; then requests must name a loopback host, which keeps web pages
        that rebind their name from reaching the server through a browser.
    metrics_keys : Keys
        Open ``/metrics`` and nothing else. Where there are ``keys`` and none of these, nobody may
        read it.
    config : ServerConfig
    refused : callable
        Told the status of each request that is answered here.
    """

    def __init__(
        self,
        app: App,
        keys: Keys,
        metrics_keys: Keys,
        config: ServerConfig,
        refused: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._app, self._keys, self._metrics_keys = app, keys, metrics_keys
        self._config, self._refused = config, refused
        rate, saved = config.client_bytes_per_s, config.max_body_bytes
        self._allowance = Allowance(rate, max(rate, saved))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through, or answer it here."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        asked_id = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = asked_id if _REQUEST_ID.match(asked_id) else f"req-{secrets.token_hex(12)}"
        state = scope.setdefault("state", {})
        state["request_id"] = request_id
        begin, status = time.perf_counter(), 0
        # Who waits to be told to send a body, and is told no, may send its next request instead.
        unsent = b"100-continue" in headers.get(b"expect", b"").lower()

        async def asked() -> MutableMapping[str, Any]:
            nonlocal unsent
            unsent = False
            return await receive()

        async def watched(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
                if unsent:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        try:
            client = state["client"] = self._admit(scope, headers)
            declared = _declared(headers)
            if scope["path"] not in PROBES:
                # All of it: what is not read by a route comes over the connection all the same.
                await self._charge(client, declared or 0)
            body = asked if declared is not None else self._charged(asked, client)
            await self._app(scope, _bounded(body, self._config.max_body_bytes), watched)
        except Problem as problem:
            if status == 0:
                self._refused(problem.status)
                reply = JSONResponse(problem.body, problem.status, dict(problem.headers))
                await reply(scope, receive, watched)
        finally:
            _log.info(
                "request",
                extra={
                    "request_id": request_id,
                    "client": state.get("client"),
                    "method": scope["method"],
                    "path": scope["path"][:_LOGGED_PATH],
                    "status": status,
                    "ms": round((time.perf_counter() - begin) * 1e3, 1),
                },
            )

    def _admit(self, scope: Scope, headers: dict[bytes, bytes]) -> str:
        """Return the name of the client; raise ``Problem`` where it may not come in."""
        size = sum(len(name) + len(value) for name, value in scope["headers"])
        size += len(scope.get("raw_path") or b"") + len(scope.get("query_string", b""))
        if size > self._config.max_header_bytes:
            raise Problem(
                431, "headers_too_large", f"Headers exceed {self._config.max_header_bytes} bytes."
            )
        if b"content-length" in headers and b"transfer-encoding" in headers:
            # A proxy that goes by the other one sees other requests on this connection.
            what = "A body has a Content-Length or a Transfer-Encoding, not both."
            raise Problem(400, "invalid_body", what, headers={"connection": "close"})
        if (_declared(headers) or 0) > self._config.max_body_bytes:
            raise _too_large(self._config.max_body_bytes)
        if scope["state"].get("spare") and scope["path"] not in PROBES:
            headers_of = {"retry-after": str(self._config.retry_after_s), "connection": "close"}
            raise Problem(503, "overloaded", "All connections are in use.", headers=headers_of)
        if scope["path"] in OPEN_PATHS:
            return "anyone"
        self._check_origin(headers)
        metrics = scope["path"] == METRICS
        keys = self._metrics_keys if metrics else self._keys
        if not (keys.required or self._keys.required):
            host = headers.get(b"host", b"").decode("latin-1")
            if _host_name(host) not in _LOOPBACK_HOSTS:
                raise Problem(
                    403, "host_not_allowed", "Without an API key, ask by a loopback host."
                )
            return "local"
        name = keys.name_of(_presented(headers))
        if name is None:
            which = "key for the metrics, which is no client's" if metrics else "API key"
            raise Problem(
                401,
                "invalid_api_key",
                f"Missing or wrong {which}. Send it as: Authorization: Bearer KEY",
                # Basic alone: browsers do not ask for a password where Bearer stands beside it.
                headers={"www-authenticate": 'Basic realm="alignbeam"'},
            )
        return name

    async def _charge(self, client: str, count: int) -> None:
        """Take bytes off what a client has left, before they are read.

        One that owes some waits until it does not; raises ``Problem`` where that takes long.
        """
        patience_s = _PATIENCE_S
        while (wait_s := self._allowance.wait_s(client)) > 0:
            if patience_s <= 0:
                raise self._too_fast(wait_s)
            pause_s = min(max(wait_s, _PAUSE_S), patience_s)
            await asyncio.sleep(pause_s)
            patience_s -= pause_s
        self._allowance.spend(client, count)

    def _too_fast(self, wait_s: float) -> Problem:
        rate = self._config.client_bytes_per_s
        return Problem(
            429,
            "too_many_bytes",
            f"More than {rate} bytes a second came from this client.",
            # Kept, the connection would be read on to find the next request behind the body.
            headers={"retry-after": str(math.ceil(wait_s)), "connection": "close"},
        )

    def _charged(self, receive: Receive, client: str) -> Receive:
        """Charge a body of no declared length as it comes: the most that may come, then what did.

        Charged afterwards only, all that a client sends at once would be let through.
        """
        ahead, ended = min(_AHEAD, self._config.max_body_bytes), False

        async def charged() -> MutableMapping[str, Any]:
            nonlocal ended
            if ended:  # what comes is that the client left
                return await receive()
            await self._charge(client, ahead)
            count = 0
            try:
                message = await receive()
                count = len(message.get("body", b""))
            finally:
                self._allowance.spend(client, count - ahead)
            ended = not message.get("more_body", False)
            return message

        return charged

    def _check_origin(self, headers: dict[bytes, bytes]) -> None:
        origin = headers.get(b"origin")
        if origin is None:
            return
        host = headers.get(b"host", b"").decode("latin-1")
        try:
            asking = urlsplit(origin.decode("latin-1")).netloc
        except ValueError:
            asking = ""
        if not asking or asking != host:
            raise Problem(403, "cross_origin", "Other web pages may not ask this server.")


def _declared(headers: dict[bytes, bytes]) -> int | None:
    """Return how many bytes a body says it has, and None where it does not say."""
    length = headers.get(b"content-length", b"")
    return int(length.lstrip(b"0")[:19] or b"0") if length.isdigit() else None


def _too_large(limit: int) -> Problem:
    return Problem(413, "body_too_large", f"The body exceeds {limit} bytes.")


def _host_name(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _presented(headers: dict[bytes, bytes]) -> str:
    """Return the key of a request: Bearer, X-Api-Key, or the password of Basic (for browsers)."""
    scheme, _, value = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except ValueError:  # neither base64 nor, decoded, UTF-8
            return ""
    return headers.get(b"x-api-key", b"").decode("latin-1")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Count what is read; a body without a declared length is stopped at the limit too."""
    read = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > limit:
                raise _too_large(limit)
        return message

    return counted
