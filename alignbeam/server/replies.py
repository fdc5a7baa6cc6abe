"""Sending answers: whole or as a stream; a client that goes away frees its beams."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from alignbeam.errors import AlignBeamError, Cancelled
from alignbeam.server.job import Delivery, Ticket
from alignbeam.server.openai_replies import DONE, KEEP_ALIVE, Shape, error_frame
from alignbeam.server.plan import RequestPlan
from alignbeam.server.problems import Problem
from alignbeam.server.service import Event, Service

T = TypeVar("T")

#: Seconds that a client may take for one frame before it counts as gone.
SEND_TIMEOUT_S = 60.0


class Exchange:
    """One request that is being answered: its tickets, and what they say."""

    def __init__(self, service: Service, plan: RequestPlan, shape: Shape, request: Request) -> None:
        self.service, self.plan, self.shape = service, plan, shape
        self.request_id: str = request.state.request_id
        self.client: str = request.state.client
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._tickets: list[Ticket] = []
        self._begun: float | None = time.perf_counter()

    async def begin(self) -> None:
        """Submit; raises ``Problem`` where the request cannot be taken."""
        self._tickets = await self.service.start(self.plan, self.client, self._events.put_nowait)

    def give_up(self) -> None:
        """Free the beams of whatever is not finished."""
        for ticket in self._tickets:
            ticket.cancel()

    async def next_event(self, timeout_s: float | None = None) -> Event | None:
        """Return the next event, or None after ``timeout_s``."""
        try:
            return await asyncio.wait_for(self._events.get(), timeout_s)
        except TimeoutError:
            return None

    async def settle(self, event: Event) -> Delivery:
        """Return the answer of a finished choice once it is on record.

        Raises
        ------
        Problem
            It failed, or cannot be recorded.
        """
        if event.answer is None:
            raise self.service.problem(event.error or Cancelled("given up"))
        try:
            await self.service.record(
                "target alone" if self.service.config.shadow else "answer",
                self.plan.prompts[event.index],
                self.plan.overrides[event.index],
                event.answer,
                request_id=self.request_id,
                client=self.client,
            )
        except AlignBeamError as error:
            raise self.service.problem(error) from error
        self.service.metrics.on_answer(event.answer)
        return event.answer

    async def note_piece(self, text: str) -> None:
        """Put a piece of a chunked answer on record before it leaves; raises ``Problem``."""
        try:
            await self.service.record_piece(text, request_id=self.request_id, client=self.client)
        except AlignBeamError as error:
            raise self.service.problem(error) from error

    def note_first_text(self) -> None:
        """Time the first text that leaves; later calls do nothing."""
        if self._begun is not None:
            elapsed = time.perf_counter() - self._begun
            self.service.metrics.first_text.observe(elapsed)
            self._begun = None

    @property
    def choices(self) -> int:
        """How many answers are wanted."""
        return len(self.plan.prompts)


async def whole(exchange: Exchange, request: Request, headers: dict[str, str]) -> Response:
    """Answer with one JSON body; raises ``Problem``."""
    try:
        answers = await while_there(request, _collect(exchange))
    finally:
        exchange.give_up()
    exchange.note_first_text()
    body = exchange.shape.whole(answers, exchange.plan.distinct, explain=exchange.plan.explain)
    return JSONResponse(body, headers=headers)


async def while_there(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Do ``work`` as long as its client is there; the request's body must have been read.

    Raises
    ------
    ClientDisconnect
        The client left; ``work`` was cancelled.
    """
    gone = asyncio.create_task(_until_gone(request.receive))
    doing = asyncio.create_task(work)
    try:
        await asyncio.wait({gone, doing}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ClientDisconnect
        return doing.result()
    finally:
        for task in (gone, doing):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _collect(exchange: Exchange) -> list[Delivery]:
    answers: dict[int, Delivery] = {}
    while len(answers) < exchange.choices:
        event = await exchange.next_event()
        if event is not None and not event.text:
            answers[event.index] = await exchange.settle(event)
    return [answers[index] for index in range(exchange.choices)]


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Answers with server-sent events.

    The head is sent with the first event (or when a comment is due), so that what fails before has
    a status of its own.
    """

    media_type = "text/event-stream"

    def __init__(self, exchange: Exchange, first: Event | None, headers: dict[str, str]) -> None:
        super().__init__(
            headers={**headers, "cache-control": "no-store", "x-accel-buffering": "no"}
        )
        del self.headers["content-length"]
        self._exchange, self._first = exchange, first

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until the end, or until the client is gone."""
        gone = asyncio.create_task(_until_gone(receive))
        sending = asyncio.create_task(self._send_all(send))
        try:
            await asyncio.wait({gone, sending}, return_when=asyncio.FIRST_COMPLETED)
            if sending.done():
                sending.result()
            else:
                self._exchange.service.metrics.cancelled.inc()
        except (OSError, TimeoutError):
            self._exchange.service.metrics.cancelled.inc()
        finally:
            self._exchange.give_up()
            for task in (gone, sending):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task

    async def _send_all(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for frame in frames(self._exchange, self._first):
            body = {"type": "http.response.body", "body": frame, "more_body": True}
            await asyncio.wait_for(send(body), SEND_TIMEOUT_S)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def frames(exchange: Exchange, first: Event | None) -> AsyncIterator[bytes]:
    """Yield the frames of a streamed answer; ``first`` is an event that was already taken."""
    config, shape, plan = exchange.service.config, exchange.shape, exchange.plan
    sent = [""] * exchange.choices
    answers: dict[int, Delivery] = {}
    for index in range(exchange.choices):
        if shape.kind == "chat":
            yield shape.role_frame(index)
    event = first
    try:
        while len(answers) < exchange.choices:
            if event is None:
                event = await exchange.next_event(config.keep_alive_s)
            if event is None:
                yield KEEP_ALIVE
                continue
            index, text = event.index, event.text
            if text:
                await exchange.note_piece(text)
            else:
                answer = await exchange.settle(event)
                answers[index] = answer
                text = rest_of(answer, sent[index])
            exchange.note_first_text()
            for frame in shape.text_frames(index, text, config.frame_tokens):
                yield frame
            sent[index] += text
            if index in answers:
                yield shape.last_frame(index, answers[index], explain=plan.explain)
            event = None
    except Problem as problem:
        yield error_frame(problem.body)
        return
    if shape.include_usage:
        yield shape.usage_frame([answers[i] for i in sorted(answers)], exchange.plan.distinct)
    yield DONE


def rest_of(answer: Delivery, sent: str) -> str:
    """Return what of a finished answer was not sent yet; nothing where its end is withheld."""
    text = answer.result.text
    if not sent:
        return text
    if answer.result.finish_reason == "content_filter" or not text.startswith(sent):
        return ""
    return text[len(sent) :]
