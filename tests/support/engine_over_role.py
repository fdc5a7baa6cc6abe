"""A model in this process behind the part of an engine's HTTP API that alignbeam uses: vLLM's.

The numbers are the model's own, so what is decoded over it must equal what is decoded in process.
That the real vLLM speaks like this is what ``make engines`` holds.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import torch
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from alignbeam.models.role import Role

Json = dict[str, Any]


class OverRole:
    """Serves a role until closed, in the way of one kind of engine.

    Attributes
    ----------
    url : str
    asked : list of dict
        Bodies of the completions so far.
    spoil : callable
        Given each answer or event before it is sent; returns what is sent.
    instead : callable or None
        Given the body of each completion; the response that it returns is sent in place of the
        answer.
    aborted : int
        Streams whose reader went away.
    """

    #: Where completions are asked for.
    path: str
    #: Whose the models are that it lists.
    owner: str | None = None

    def __init__(self, role: Role, served: str = "model", key: str = "") -> None:
        self.role, self.served, self._key = role, served, key
        self.asked: list[Json] = []
        self.spoil: Callable[[Json], Json] = lambda answer: answer
        self.instead: Callable[[Json], Response | None] = lambda body: None
        self.status = 200
        self.pause_s = self.token_s = 0.0
        self.aborted = 0
        self._model = threading.Lock()
        self._port = 0
        self._app = Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._models),
                Route("/tokenize", self._tokenize, methods=["POST"]),
                Route(self.path, self._complete, methods=["POST"]),
                *self.routes(),
            ]
        )
        self.start()

    def routes(self) -> list[Route]:
        """What only this kind of engine has."""
        return []

    def card(self) -> Json:
        """What it lists of its model."""
        return {"max_model_len": self.role.window}

    def refusal(self, body: Json) -> Response | None:
        """Return what it says to a question that it does not take."""

    async def answer(self, body: Json) -> Response:
        """Return what it says to one that it takes."""
        raise NotImplementedError

    async def _complete(self, request: Request) -> Response:
        body = await request.json()
        self.asked.append(body)
        await asyncio.sleep(self.pause_s)
        if (other := self.instead(body)) is not None:
            return other
        if self.status != 200:
            return refused(self.status, "The engine is dead")
        return self.refusal(body) or await self.answer(body)

    def said(self, answer: Json) -> Response:
        """Return an answer as it is sent."""
        return Response(json.dumps(self.spoil(answer)), media_type="application/json")

    def start(self) -> None:
        """Listen; on the port of before where there was one."""
        config = uvicorn.Config(
            self._app, host="127.0.0.1", port=self._port, log_level="error", access_log=False,
            timeout_graceful_shutdown=1, lifespan="off",
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            assert self._thread.is_alive(), "the engine did not start"
            time.sleep(0.01)
        self._port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self._port}"

    def close(self) -> None:
        self._server.should_exit = self._server.force_exit = True
        self._thread.join(10)

    # Routes --------------------------------------------------------------------------------

    async def _health(self, request: Request) -> Response:
        await asyncio.sleep(self.pause_s)
        return Response(status_code=self.status)

    async def _models(self, request: Request) -> Response:
        if self._key and request.headers.get("authorization") != f"Bearer {self._key}":
            return refused(401, "Unauthorized")
        card = {"id": self.served, "owned_by": self.owner, "root": "nowhere", **self.card()}
        return JSONResponse({"data": [card]})

    async def _tokenize(self, request: Request) -> Response:
        body = await request.json()
        ids = self.role.tokenizer.encode(
            body.get("prompt") or body.get("content"), add_special_tokens=False
        )
        return JSONResponse({"tokens": ids, "max_model_len": self.role.window})

    def logits(self, ids: list[int]) -> torch.Tensor:
        """The model's, after ``ids``."""
        with self._model:
            return self.role.next_token_logits([ids])[0]


class EngineOverRole(OverRole):
    """vLLM."""

    path = "/v1/completions"

    def __init__(self, role: Role, served: str = "model", max_logprobs: int = 64, key: str = ""):
        self.max_logprobs, self.fingerprint = max_logprobs, "first"
        super().__init__(role, served, key)

    def refusal(self, body: Json) -> Response | None:
        if body["model"] != self.served:
            return refused(404, f"The model `{body['model']}` does not exist.")
        names = body.get("logprob_token_ids")
        if names and max(names) >= self.role.width:
            return refused(400, f"out-of-vocab token ids. Vocabulary size: {self.role.width}")
        if not names and (body.get("logprobs") or 0) > self.max_logprobs:
            return refused(400, f"greater than max allowed: {self.max_logprobs}")
        return None

    async def answer(self, body: Json) -> Response:
        if body.get("stream"):
            return StreamingResponse(self._events(body), media_type="text/event-stream")
        choices = [self._choice(n, ids, body) for n, ids in enumerate(body["prompt"])]
        return self.said(
            {"model": self.served, "system_fingerprint": self.fingerprint, "choices": choices}
        )

    async def _events(self, body: Json):
        ids, new, interval = list(body["prompt"]), [], body["stream_interval"]
        try:
            for n in range(body["max_tokens"]):
                logits = self.logits(ids)
                token = _take(logits, body, seed=body["seed"] + n)
                ids.append(token)
                new.append(token)
                ended = token in body["stop_token_ids"]
                last = ended or n + 1 == body["max_tokens"]
                if last or n == 0 or len(new) >= interval:
                    choice = {"index": 0, "token_ids": new, "finish_reason": None}
                    event: Json = {"model": self.served, "choices": [choice]}
                    if last:
                        choice["finish_reason"] = "stop" if ended else "length"
                        event["system_fingerprint"] = self.fingerprint
                    yield f"data: {json.dumps(self.spoil(event))}\n\n"
                    new = []
                if last:
                    break
                await asyncio.sleep(self.token_s)
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise

    def _choice(self, index: int, ids: list[int], body: Json) -> Json:
        tokens, tables = [], []
        for n in range(body["max_tokens"]):
            logits = self.logits([*ids, *tokens])
            logprobs = logits.log_softmax(-1)
            token = _take(logits, body, seed=body["seed"] + n)
            shown = body.get("logprob_token_ids")
            if not shown:
                order = logits.sort(descending=True, stable=True).indices
                shown = order[: body["logprobs"]].tolist()
            told = (token, *shown)
            tables.append({f"token_id:{i}": max(float(logprobs[i]), -9999.0) for i in told})
            tokens.append(token)
            if token in self.role.end_ids:
                break
        said = {"tokens": [f"token_id:{t}" for t in tokens], "top_logprobs": tables}
        return {"index": index, "logprobs": said, "finish_reason": "length"}


def _take(logits: torch.Tensor, body: Json, seed: int) -> int:
    logits = logits.clone()
    for token_id, value in body.get("logit_bias", {}).items():
        logits[int(token_id)] += value
    if allowed := body.get("allowed_token_ids"):
        logits[[i for i in range(len(logits)) if i not in allowed]] = float("-inf")
    if body["temperature"] == 0:
        return int(logits.argmax())
    generator = torch.Generator().manual_seed(seed % 2**63)
    return int((logits / body["temperature"]).softmax(-1).multinomial(1, generator=generator))


def refused(status: int, message: str) -> Response:
    return JSONResponse({"error": {"message": message, "code": status}}, status)
