"""A small page at ``/``: the target alone and AlignBeam, side by side. Off by default.

It is the one place where text leaves that no judge has seen (the target's own answer), which is
why an operator must ask for it; the page and its route stand behind the same gate as all others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import Response

from alignbeam.server.openai_replies import explanation
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
    alpha: Annotated[float, Field(ge=0, le=1)]
    mix_steps: Annotated[int, Field(ge=1)]
    beams: Annotated[int, Field(ge=1)]
    max_tokens: Annotated[int, Field(ge=1)]


def add_routes(
    app: FastAPI,
    service: Service,
    read: Callable[[Request, type[Question]], Awaitable[Question]],
) -> None:
    """Serve the page, and what it asks."""
    page = _PAGE.read_bytes()

    async def show() -> Response:
        headers = {"content-security-policy": _POLICY, "cache-control": "no-store"}
        return Response(page, media_type="text/html; charset=utf-8", headers=headers)

    async def ask(request: Request) -> dict[str, Any]:
        asked = await read(request, Question)
        tokens = min(asked.max_tokens, service.config.max_tokens)
        overrides: dict[str, Any] = {
            name: min(max(getattr(asked, name), low), high)
            for name, (low, high) in service.plan.bounds.items()
        }
        overrides["mix_steps"] = min(overrides["mix_steps"], tokens)
        overrides |= {"max_new_tokens": tokens, "wishes": 1}
        messages = [{"role": "user", "content": asked.prompt}]
        bare, full = await service.compare(messages, overrides, request.state.client)
        return {
            "target": bare.result.text,
            "text": full.result.text,
            "finish_reason": full.result.finish_reason,
            "threshold": service.beam.config.threshold,
            "alignbeam": explanation(full),
        }

    app.add_api_route("/", show, methods=["GET"], include_in_schema=False)
    app.add_api_route("/playground", ask, methods=["POST"], include_in_schema=False)
