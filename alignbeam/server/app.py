"""The routes: OpenAI's, and what an operator asks."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from alignbeam.config import ServerConfig
from alignbeam.controller import AlignBeam
from alignbeam.server import openapi, playground
from alignbeam.server.audit import AuditLog
from alignbeam.server.bodies import Record, parse_as
from alignbeam.server.canaries import check_judge
from alignbeam.server.gate import METRICS, Gate
from alignbeam.server.judge_process import JudgeProcess
from alignbeam.server.keys import METRICS_ENVIRONMENT, Keys
from alignbeam.server.openai_replies import Kind, Shape
from alignbeam.server.openai_requests import ChatRequest, CompletionRequest
from alignbeam.server.plan import RequestPlan
from alignbeam.server.problems import Problem
from alignbeam.server.replies import EventStream, Exchange, while_there, whole
from alignbeam.server.service import Service
from alignbeam.version import __version__

#: Seconds in which a client must have sent its body.
BODY_TIMEOUT_S = 30.0


class Server:
    """The application with what it holds: the service, and whether it is about to stop.

    Parameters
    ----------
    beam : AlignBeam
        Not to be used by anyone else as long as the application lives, which lowers its judge's
        ``timeout_s``.
    config : ServerConfig or None
    keys, metrics_keys : Keys or None
        Read as ``config`` says where None.

    Attributes
    ----------
    gated : Gate
        The ASGI application, gate included.

    Raises
    ------
    CanaryFailed
        The judge does not tell safe from unsafe.
    ConfigError
        Keys or audit log cannot be read.
    """

    def __init__(
        self,
        beam: AlignBeam,
        config: ServerConfig | None = None,
        *,
        keys: Keys | None = None,
        metrics_keys: Keys | None = None,
    ) -> None:
        self.config = config = config or ServerConfig()
        keys = keys if keys is not None else Keys(config.api_keys_file)
        if metrics_keys is None:
            metrics_keys = Keys(config.metrics_keys_file, variable=METRICS_ENVIRONMENT)
        own = beam.judge.timeout_s
        most = config.judge_timeout_s
        beam.judge.timeout_s = most if own is None else min(own, most)
        judge = beam.judge.judge
        self._process = judge if isinstance(judge, JudgeProcess) else None
        if self._process is not None:
            # Nobody waits for what would be warned of once more.
            policy = config.canary_attacks if config.canary_attacks == "refuse" else "off"
            self._process.trial = lambda child: check_judge(
                beam.judge.around(child), beam.config.threshold, policy
            )
        audit = None
        if config.audit_file is not None:
            audit = AuditLog(config.audit_file, config.audit_max_bytes, config.audit_keep)
        self.service = Service(beam, config, audit)
        self.draining = False
        self.app = self._make_app()
        self.gated = Gate(self.app, keys, metrics_keys, config, self._count_refused)

    def _count_refused(self, status: int) -> None:
        # Whoever may not come in names no route: the series would be as many as paths are guessed.
        self.service.metrics.requests.labels("gate", status).inc()

    # Making it -----------------------------------------------------------------------------

    def _make_app(self) -> FastAPI:
        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.close)

        app = FastAPI(
            title="alignbeam",
            version=__version__,
            lifespan=lifespan,
            docs_url=None,
            redoc_url=None,
            redirect_slashes=False,  # a redirect would repeat the client's own Host header
            # Bodies are read by ``bodies``, so the framework's own 422 cannot occur.
            responses=openapi.PROBLEMS,
        )
        app.add_exception_handler(Problem, self._on_problem)
        app.add_exception_handler(HTTPException, self._on_http_error)
        app.add_exception_handler(ClientDisconnect, self._on_gone)
        app.add_exception_handler(Exception, _on_crash)
        route = app.add_api_route
        route("/v1/chat/completions", self.chat, **openapi.chat())
        route("/v1/completions", self.complete, **openapi.completion())
        route("/v1/models", self.models, **openapi.models())
        route("/v1/models/{name}", self.model, **openapi.model())
        route("/health", self.health, **openapi.status("Whether it works"))
        route("/ready", self.ready, **openapi.status("Whether to send requests"))
        route(METRICS, self.metrics, response_class=Response, **openapi.metrics())
        if self.config.playground:
            playground.add_routes(app, self.service, _read)
        described = openapi.document(app)
        app.openapi = lambda: described  # type: ignore[method-assign]
        return app

    def close(self) -> None:
        """Stop decoding; requests in flight fail."""
        self.service.close()
        if self._process is not None:
            self._process.close()

    # Routes --------------------------------------------------------------------------------

    async def chat(self, request: Request) -> Response:
        """Answer a conversation; the text was judged before it leaves."""
        body = await _read(request, ChatRequest)
        return await self._answer(request, "chat", body, self.service.plan.chat(body))

    async def complete(self, request: Request) -> Response:
        """Answer one or several prompts, each as a user's message."""
        body = await _read(request, CompletionRequest)
        return await self._answer(request, "text", body, self.service.plan.completion(body))

    async def _answer(
        self, request: Request, kind: Kind, body: ChatRequest | CompletionRequest, plan: RequestPlan
    ) -> Response:
        options = body.stream_options
        if options is not None and not body.stream:
            raise Problem(
                400, "invalid_value", "stream_options needs stream: true.", "stream_options"
            )
        usage = options is not None and options.include_usage
        shape = Shape(kind, self.config.model_name, usage)
        if not body.stream:
            plan = dataclasses.replace(plan, release="full")  # nothing leaves before the end
        exchange = Exchange(self.service, plan, shape, request)
        await while_there(request, exchange.begin())
        if not body.stream:
            return self._counted(request, await whole(exchange, request, self._headers()))
        try:
            # A client that leaves before anything was sent is seen here alone.
            first = await while_there(request, exchange.next_event(self.config.keep_alive_s))
            if first is not None and first.error is not None:
                raise self.service.problem(first.error)
        except BaseException:
            exchange.give_up()
            raise
        return self._counted(request, EventStream(exchange, first, self._headers()))

    def _headers(self) -> dict[str, str]:
        headers = {}
        if self.config.fail_open:
            headers["x-alignbeam-fail-open"] = "true"
        if self.config.shadow:
            headers["x-alignbeam-shadow"] = "true"
        return headers

    def _counted(self, request: Request, response: Response) -> Response:
        # Not the URL's path: some versions of starlette parse it out of the client's Host header.
        self.service.metrics.requests.labels(request.scope["path"], response.status_code).inc()
        return response

    async def models(self) -> dict[str, Any]:
        """List the one model there is."""
        return {"object": "list", "data": [self._model()]}

    async def model(self, name: str) -> dict[str, Any]:
        """Describe the model."""
        if name != self.config.model_name:
            raise Problem(
                404, "model_not_found", f"The model here is called {self.config.model_name}."
            )
        return self._model()

    def _model(self) -> dict[str, Any]:
        return {
            "id": self.config.model_name,
            "object": "model",
            "created": 0,
            "owned_by": "alignbeam",
        }

    async def health(self) -> Response:
        """Say whether all parts work: ok, degraded, or 503."""
        if down := self._down():
            return JSONResponse({"status": "down", "reasons": down}, 503)
        degraded = self.service.degraded
        return JSONResponse({"status": "degraded" if degraded else "ok", "reasons": degraded})

    async def ready(self) -> Response:
        """Say whether new requests are taken."""
        down = ["not taking requests"] if self.draining else self._down() or self.service.missing
        if down:
            return JSONResponse({"status": "down", "reasons": down}, 503)
        return JSONResponse({"status": "ok", "reasons": []})

    def _down(self) -> list[str]:
        """Return what of this process's own does not run."""
        down = []
        if not self.service.scheduler.healthy:
            down.append("the decoding has stopped")
        if self._process is not None and not self._process.alive:
            down.append("the judge's process is down")
        return down

    async def metrics(self) -> Response:
        """Return the Prometheus series."""
        return Response(
            self.service.metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8"
        )

    # Errors --------------------------------------------------------------------------------

    async def _on_problem(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Problem)
        known = request.scope["path"] in {r.path for r in self.app.routes if hasattr(r, "path")}
        route = request.scope["path"] if known else "other"
        self.service.metrics.requests.labels(route, error.status).inc()
        return JSONResponse(error.body, error.status, headers=dict(error.headers))

    async def _on_gone(self, request: Request, error: Exception) -> Response:
        self.service.metrics.cancelled.inc()
        return self._counted(request, Response(status_code=499))  # nobody reads it

    async def _on_http_error(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        names = {404: "not_found", 405: "method_not_allowed"}
        words = {404: "There is nothing here.", 405: "This route takes another method."}
        status = error.status_code
        problem = Problem(
            status,
            names.get(status, "bad_request"),
            words.get(status, str(error.detail)),
            headers=dict(error.headers or {}),
        )
        return JSONResponse(problem.body, status, headers=dict(problem.headers))


async def _on_crash(request: Request, error: Exception) -> Response:
    body = Problem(500, "internal_error", "Something broke; the log has the details.").body
    return JSONResponse(body, 500)


async def _read(request: Request, model: type[Record]) -> Record:
    """Read a request's body as ``model``; raises ``Problem``."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "unsupported_media_type", "Send application/json.")
    try:
        data = await asyncio.wait_for(request.body(), BODY_TIMEOUT_S)
    except TimeoutError as error:
        raise Problem(408, "body_timeout", "The body took too long to arrive.") from error
    return parse_as(model, data)
