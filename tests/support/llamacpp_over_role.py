"""A model in this process behind the part of llama.cpp's HTTP API that alignbeam uses.

Holes included: a token whose bytes end within a character is left out of what is said of tokens.
That the real server speaks like this is what ``make llamacpp`` holds.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import torch
from engine_over_role import Json, OverRole, refused
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

_LOWEST = -3.4028234663852886e38


class LlamaCppOverRole(OverRole):
    """llama.cpp; ``eog`` are the ids that end an answer for it, which need not be the role's."""

    path = "/completion"
    owner = "llamacpp"

    def __init__(self, role, served="model", key="", eog=None):
        self.eog = role.end_ids[:1] if eog is None else eog
        super().__init__(role, served, key)

    def routes(self) -> list[Route]:
        return [Route("/props", self._props)]

    def card(self) -> Json:
        return {"meta": {"n_vocab": self.role.width, "n_ctx_train": self.role.window}}

    async def _props(self, request: Request) -> Response:
        told = {"default_generation_settings": {"n_ctx": self.role.window}}
        return JSONResponse(told | {"model_path": str(Path("nowhere.gguf"))})

    def refusal(self, body: Json) -> Response | None:
        if len(body["prompt"]) >= self.role.window:
            return refused(400, "the request exceeds the available context size")
        if not all(0 <= i < self.role.width for i in body["prompt"]):
            return refused(400, "Prompt contains invalid tokens")
        return None

    async def answer(self, body: Json) -> Response:
        tokens, told, text, stop = [], [], b"", "limit"
        for n in range(body["n_predict"]):
            logits = self.logits([*body["prompt"], *tokens])
            token, kept = _sample(logits, body, body["seed"] + n)
            tokens.append(token)
            text += self.role.bytes_of(token)
            if body.get("n_probs") and not _half(text):
                told.append(self._told(token, logits, kept, body))
            if token in self.eog:
                stop = "eos"
                break
            if len(body["prompt"]) + len(tokens) >= self.role.window:
                break
            await asyncio.sleep(self.token_s)
        said = {"model": self.served, "tokens": tokens, "stop_type": stop, "content": "?"}
        if told:
            said["completion_probabilities"] = told
        return self.said({name: said[name] for name in body["response_fields"] if name in said})

    def _told(self, token: int, logits: torch.Tensor, kept: dict[int, float], body: Json) -> Json:
        if body.get("post_sampling_probs"):
            best = sorted((i for i, p in kept.items() if p > 0), key=lambda i: -kept[i])
            top = [self._piece(i) | {"prob": kept[i]} for i in best[: body["n_probs"]]]
            return self._piece(token) | {"prob": kept[token], "top_probs": top}
        logprobs = logits.log_softmax(-1)
        order = logits.sort(descending=True).indices[: body["n_probs"]].tolist()
        own, *rest = (max(float(logprobs[i]), _LOWEST) for i in (token, *order))
        pairs = zip(order, rest, strict=True)
        top = [self._piece(i) | {"logprob": value} for i, value in pairs]
        return self._piece(token) | {"logprob": own, "top_logprobs": top}

    def _piece(self, token: int) -> Json:
        return {"id": token, "bytes": list(self.role.bytes_of(token))}


def _sample(logits: torch.Tensor, body: Json, seed: int) -> tuple[int, dict[int, float]]:
    """Return the sampled id, and the shares of all ids that the samplers leave."""
    logits = logits.float().clone()
    for token_id, bias in body.get("logit_bias", []):
        logits[token_id] += float("-inf") if bias is False else bias
    for sampler in body["samplers"]:
        if sampler == "temperature":
            if body["temperature"] == 0:
                return int(logits.argmax()), {}
            logits /= body["temperature"]
        elif sampler == "top_k" and body["top_k"] > 0:
            least = logits.topk(min(body["top_k"], len(logits))).values[-1]
            logits[logits < least] = float("-inf")
        elif sampler == "top_p":
            order = logits.softmax(-1).sort(descending=True)
            beyond = order.values.cumsum(-1) - order.values >= body["top_p"]
            logits[order.indices[beyond]] = float("-inf")
    shares = logits.softmax(-1)
    generator = torch.Generator().manual_seed(seed)
    token = int(shares.multinomial(1, generator=generator))
    left = logits.isfinite().nonzero().flatten().tolist()
    return token, {i: float(shares[i]) for i in left}


def _half(text: bytes) -> bool:
    """Whether bytes end within a character."""
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return error.end == len(text) and error.reason == "unexpected end of data"
    return False
