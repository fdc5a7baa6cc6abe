"""A small page at ``/``: the target alone and AlignBeam, side by side. Off by default.

It is the one place where text leaves that no judge has seen (the target's own answer), which is
why an operator must ask for it; the page and its route stand behind the same gate as all others.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from alignbeam.config.beam import MAX_BEAMS
from alignbeam.server.openai_replies import explanation
from alignbeam.server.openai_requests import AlignBeamFields, ChatRequest
from alignbeam.server.replies import while_there
from alignbeam.server.service import Service

_PAGE = Path(__file__).with_name("playground.html")
_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Question(BaseModel):
    """What the page asks."""

    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: Annotated[str, Field(min_length=1)]
    alpha: Annotated[float, Field(ge=0, le=1)] | None = None
    mix_steps: Annotated[int, Field(ge=1)] | None = None
    beams: Annotated[int, Field(ge=1, le=MAX_BEAMS)] | None = None
    max_tokens: Annotated[int, Field(ge=1)]


def limits(service: Service) -> dict[str, tuple[float, float, float]]:
    """Return what the page's sliders may say: the lowest and highest value, and the operator's."""
    own, config = service.beam.config, service.config
    found = {}
    for name, (low, high) in service.plan.bounds.items():
        value = getattr(own, name)
        found[name] = (low, high, value) if name in config.allow else (value, value, value)
    most = min(256, config.max_tokens)
    return {**found, "max_tokens": (min(8, most), most, min(64, most))}


def add_routes(
    app: FastAPI,
    service: Service,
    read: Callable[[Request, type[Question]], Awaitable[Question]],
) -> None:
    """Serve the page, and what it asks."""
    page = _PAGE.read_text(encoding="utf-8").replace("/*limits*/", json.dumps(limits(service)))

    async def show() -> Response:
        headers = {"content-security-policy": _POLICY, "cache-control": "no-store"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def ask(request: Request) -> dict[str, Any]:
        asked = await read(request, Question)
        plan = service.plan.chat(
            ChatRequest(
                model=service.config.model_name,
                messages=[{"role": "user", "content": asked.prompt}],
                max_tokens=asked.max_tokens,
                alignbeam=AlignBeamFields(
                    alpha=asked.alpha, mix_steps=asked.mix_steps, beams=asked.beams
                ),
            )
        )
        state = request.state
        compared = service.compare(plan, request_id=state.request_id, client=state.client)
        bare, full = await while_there(request, compared)
        service.metrics.requests.labels(request.scope["path"], 200).inc()
        return {
            "target": bare.result.text,
            "text": full.result.text,
            "finish_reason": full.result.finish_reason,
            "threshold": service.beam.config.threshold,
            "alignbeam": explanation(full),
        }

    app.add_api_route("/", show, methods=["GET"], include_in_schema=False)
    app.add_api_route("/playground", ask, methods=["POST"], include_in_schema=False)
