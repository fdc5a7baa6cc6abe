"""A model in this process behind the part of SGLang's native API that alignbeam uses.

Written from SGLang's sources of 0.5, as ``alignbeam.engines.sglang`` is.
"""

from __future__ import annotations

import asyncio
import json

import torch
from engine_over_role import Json, OverRole, refused
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

#: Tokens per piece of a stream.
_INTERVAL = 3


class SGLangOverRole(OverRole):
    """SGLang; with ``incremental`` its streams' pieces hold the new tokens only."""

    path = "/generate"
    owner = "sglang"

    def __init__(self, role, served="model", key="", *, incremental=False, trims=False):
        self.incremental, self.trims, self.weight_version = incremental, trims, "default"
        super().__init__(role, served, key)

    async def _tokenize(self, request: Request) -> Response:
        text = (await request.json())["prompt"]
        ids = self.role.tokenizer.encode(text, add_special_tokens=False)
        # The tokenizer's own, not the engine's.
        return JSONResponse({"tokens": ids, "count": len(ids), "max_model_len": 7})

    def routes(self) -> list[Route]:
        return [Route("/get_model_info", self._info)]

    async def _info(self, request: Request) -> Response:
        return JSONResponse({"model_path": "nowhere", "tokenizer_path": "nowhere"})

    def refusal(self, body: Json) -> Response | None:
        if max(body["input_ids"]) >= self.role.width:
            return refused(
                400,
                f"The input_ids {body['input_ids']} contains values greater than the vocab size "
                f"({self.role.width}).",
            )
        return None

    async def answer(self, body: Json) -> Response:
        if body.get("stream"):
            return StreamingResponse(self._events(body), media_type="text/event-stream")
        ids, told = [], {"token": [], "top": [], "token_ids": []}
        params, named = body["sampling_params"], body.get("token_ids_logprob")
        for n in range(params["max_new_tokens"]):
            logits = self.logits([*body["input_ids"], *ids])
            token, shown = _sample(logits, params, n)
            ids.append(token)
            order = logits.sort(descending=True, stable=True).indices.tolist()
            best = order[: body.get("top_logprobs_num", 0)]
            told["token"].append([float(shown[token]), token, None])
            told["top"].append([[float(shown[i]), i, None] for i in best])
            told["token_ids"].append([[float(shown[i]), i, None] for i in named or []])
            if token in self.role.end_ids:
                break
        meta = self._meta(ids, {"type": "length", "length": len(ids)})
        if body.get("return_logprob"):
            meta["output_token_logprobs"] = told["token"]
            meta["output_top_logprobs"] = told["top"]
            if named:
                meta["output_token_ids_logprobs"] = told["token_ids"]
        return self.said({"output_ids": ids, "meta_info": meta})

    async def _events(self, body: Json):
        params, ids, sent = body["sampling_params"], [], 0
        try:
            for n in range(params["max_new_tokens"]):
                token, _ = _sample(self.logits([*body["input_ids"], *ids]), params, n)
                ids.append(token)
                finish = None
                if token in params["stop_token_ids"]:
                    finish = {"type": "stop", "matched": token}
                elif n + 1 == params["max_new_tokens"]:
                    finish = {"type": "length", "length": n + 1}
                if finish or n == 0 or len(ids) - sent >= _INTERVAL:
                    shown = ids[sent:] if self.incremental else list(ids)
                    event = {"output_ids": shown, "meta_info": self._meta(ids, finish)}
                    if finish and finish["type"] == "stop" and self.trims:
                        shown.pop()
                        event["meta_info"]["completion_tokens"] -= 1
                    yield f"data: {json.dumps(self.spoil(event))}\n\n"
                    sent = len(ids)
                if finish:
                    break
                await asyncio.sleep(self.token_s)
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, GeneratorExit):
            self.aborted += 1
            raise

    def _meta(self, ids: list[int], finish: Json | None) -> Json:
        return {
            "finish_reason": finish,
            "completion_tokens": len(ids),
            "weight_version": self.weight_version,
        }


def _sample(logits: torch.Tensor, params: Json, place: int) -> tuple[int, torch.Tensor]:
    """Return the token, and the log-probabilities that are told: after bias and temperature."""
    logits = logits.clone()
    for token_id, value in params.get("logit_bias", {}).items():
        logits[int(token_id)] += value
    if params["temperature"] == 0:
        return int(logits.argmax()), logits.log_softmax(-1)
    logits /= params["temperature"]
    generator = torch.Generator().manual_seed((params["sampling_seed"] + place) % 2**63)
    shares = logits.softmax(-1)
    return int(shares.multinomial(1, generator=generator)), logits.log_softmax(-1)
