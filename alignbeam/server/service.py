"""From a checked request to jobs, and from their answers to what may be sent.

Knows limits, shadow mode, the audit log and the metrics; nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from alignbeam.config import ServerConfig
from alignbeam.controller import AlignBeam
from alignbeam.decoding.beam import Request
from alignbeam.engines.role import RemoteRole
from alignbeam.errors import AlignBeamError, Cancelled, EngineFault, JudgeUnavailable
from alignbeam.result import plain
from alignbeam.server.audit import AuditLog, Quota, candidates_of, cut, hashed, text_hash
from alignbeam.server.canaries import check_judge
from alignbeam.server.job import Delivery, Release, Ticket
from alignbeam.server.metrics import Metrics
from alignbeam.server.plan import Messages, Planner, RequestPlan
from alignbeam.server.problems import Problem, problem_of
from alignbeam.server.scheduler import Scheduler
from alignbeam.server.turns import Turns

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to choice ``index`` of a request."""

    index: int
    text: str = ""
    answer: Delivery | None = None
    error: BaseException | None = None


class Service:
    """Answers requests on behalf of the routes.

    Parameters
    ----------
    beam : AlignBeam
    config : ServerConfig
    audit : AuditLog or None

    Raises
    ------
    CanaryFailed
        The judge does not tell safe from unsafe, or see ``attack_canaries``.
    """

    def __init__(
        self, beam: AlignBeam, config: ServerConfig, audit: AuditLog | None = None
    ) -> None:
        attacked = check_judge(beam.judge, beam.config.threshold, config.canary_attacks)
        self.beam, self.config, self.metrics = beam, config, Metrics()
        self.metrics.on_attacked(attacked)
        self.plan = Planner(beam.config, config, beam.target.width)
        self._audit, self._quota = audit, Quota(config.audit_client_bytes)
        self._fingerprint = beam.bridge.fingerprint
        self.scheduler = Scheduler(
            beam,
            max_batch_cells=config.max_batch_cells,
            max_queued=config.max_queued,
            max_queued_cells=config.max_queued_cells,
            client_share=config.client_share,
            chunk_tokens=config.chunk_tokens,
            fail_open=config.fail_open,
            watcher=self.metrics,
        )
        self.metrics.watch_queue(lambda: self.scheduler.queued, lambda: self.scheduler.running)
        self._turns = Turns(config.max_queued)
        self._shadows: set[asyncio.Task[None]] = set()

    # Plans to events -----------------------------------------------------------------------

    async def start(
        self, plan: RequestPlan, client: str, on_event: Callable[[Event], object]
    ) -> list[Ticket]:
        """Submit all choices of a plan; ``on_event`` is called on the event loop.

        Raises
        ------
        Problem
            One of them cannot be taken; then none is.
        """
        loop = asyncio.get_running_loop()
        shadow = self.config.shadow
        release: Release = "bare" if shadow else plan.release

        def on_text(index: int, text: str) -> None:
            loop.call_soon_threadsafe(on_event, Event(index, text=text))

        try:
            self._quota.check(client)
            requests: list[Request] = []
            each = len(plan.prompts) // plan.distinct
            for start in range(0, len(plan.prompts), each):
                choices = plan.overrides[start : start + each]
                settings = [self._alone(o) if shadow else o for o in choices]
                requests += await self._prepare(plan.prompts[start], settings, client, release)
            tickets = self.scheduler.put(requests, client=client, release=release, on_text=on_text)
        except AlignBeamError as error:
            raise self.problem(error, plan.field) from error
        for index, ticket in enumerate(tickets):
            future = asyncio.wrap_future(ticket.future)
            future.add_done_callback(
                lambda done, index=index: on_event(_settled(index, done))  # type: ignore[misc]
            )
        if shadow:
            for messages, overrides in zip(plan.prompts, plan.overrides, strict=True):
                task = asyncio.create_task(self._shadow(messages, overrides, client))
                self._shadows.add(task)
                task.add_done_callback(self._shadows.discard)
        return tickets

    async def _prepare(
        self,
        messages: Messages,
        choices: Sequence[dict[str, Any]],
        client: str,
        release: Release,
    ) -> list[Request]:
        """Render one prompt for so many answers, when it is its client's turn."""
        judged = release != "bare"
        prepare = partial(self.scheduler.prepare, messages, choices, judged=judged)
        return await self._turns.run(client, prepare)

    async def _submit(
        self, messages: Messages, overrides: dict[str, Any], client: str, release: Release
    ) -> Ticket:
        requests = await self._prepare(messages, [overrides], client, release)
        (ticket,) = self.scheduler.put(requests, client=client, release=release)
        return ticket

    def _alone(self, overrides: dict[str, Any]) -> dict[str, Any]:
        """Return the settings of the target alone."""
        return {**overrides, "mix_steps": 0, "beams": 1, "wishes": 0}

    async def _shadow(self, messages: Messages, overrides: dict[str, Any], client: str) -> None:
        """Do in the background what AlignBeam would have done, and write that down."""
        try:
            ticket = await self._submit(messages, overrides, client, "full")
            answer = await asyncio.wrap_future(ticket.future)
        except AlignBeamError as error:
            self.metrics.shadow.labels("failed").inc()
            _log.warning("shadow: %s", type(error).__name__)
            return
        blocked = answer.result.finish_reason == "content_filter"
        verdict = "would_block" if blocked else "would_answer"
        self.metrics.shadow.labels(verdict).inc()
        _log.info("shadow", extra={"verdict": verdict, "reason": answer.result.reason})
        try:
            await self.record("shadow", messages, overrides, answer, request_id="", client=client)
        except AlignBeamError as error:
            _log.error("shadow: %s", error)

    async def compare(
        self, plan: RequestPlan, *, request_id: str, client: str
    ) -> tuple[Delivery, Delivery]:
        """Return the target's own answer, judged by no one, and AlignBeam's. For the playground.

        Both are on record before they are returned.

        Raises
        ------
        Problem
            Either cannot be had.
        """
        tickets: list[Ticket] = []
        (messages,), (overrides,) = plan.prompts, plan.overrides
        try:
            self._quota.check(client)
            alone = self._alone(overrides)
            tickets.append(await self._submit(messages, alone, client, "bare"))
            tickets.append(await self._submit(messages, overrides, client, "full"))
            bare, full = [await asyncio.wrap_future(t.future) for t in tickets]
            for kind, answer in (("target alone", bare), ("answer", full)):
                who = {"request_id": request_id, "client": client}
                await self.record(kind, messages, overrides, answer, **who)
                self.metrics.on_answer(answer)
        except AlignBeamError as error:
            raise self.problem(error, plan.field) from error
        finally:
            for ticket in tickets:
                ticket.cancel()
        return bare, full

    # Answers -------------------------------------------------------------------------------

    async def record(
        self,
        kind: str,
        messages: Messages,
        overrides: dict[str, Any],
        answer: Delivery,
        *,
        request_id: str,
        client: str,
    ) -> None:
        """Write the audit record of an answer; it may leave only afterwards.

        Raises
        ------
        AuditUnavailable
            It cannot be written.
        """
        result = answer.result
        if self.config.log_prompts:
            said = {"request_id": request_id, "messages": messages, "text": result.text}
            _log.info(kind, extra=said)
        if self._audit is None:
            return
        if kind == "target alone":
            overrides = self._alone(overrides)
        settings = dataclasses.asdict(self.beam.config.replace(**overrides))
        entry: dict[str, Any] = {
            "kind": kind,
            "request_id": request_id,
            "client": client,
            "model": self.config.model_name,
            "bridge": self._fingerprint,
            "settings": {**settings, "stop": hashed(settings["stop"])},
            "prompt_sha256": text_hash("\n".join(m["content"] for m in messages)),
            "chosen": result.chosen,
            "reason": result.reason,
            "finish_reason": result.finish_reason,
            "fail_open": answer.fail_open,
            "gates": plain(result.gates, 6),
            "let_go": result.let_go,
            "candidates": candidates_of(
                result, text=self.config.audit_text, most=self.config.audit_text_chars
            ),
        }
        if self.config.audit_text:
            left = self.config.audit_text_chars
            entry["text"] = cut(result.text, left)
            entry["messages"] = []
            for message in messages:
                entry["messages"].append({**message, "content": cut(message["content"], left)})
                left = max(0, left - len(message["content"]))
        await self._write(self._audit, client, entry)

    async def record_piece(self, text: str, *, request_id: str, client: str) -> None:
        """Write down that a piece of a chunked answer leaves.

        Raises
        ------
        AuditUnavailable
            It cannot be written.
        """
        if self._audit is None:
            return
        entry = {
            "kind": "piece",
            "request_id": request_id,
            "client": client,
            "sha256": text_hash(text),
        }
        if self.config.audit_text:
            entry["text"] = cut(text, self.config.audit_text_chars)
        await self._write(self._audit, client, entry)

    async def _write(self, audit: AuditLog, client: str, entry: dict[str, Any]) -> None:
        async def charged() -> None:
            self._quota.add(client, await asyncio.to_thread(audit.write, entry))

        # A client that leaves meanwhile has had its line written, and pays for it.
        await asyncio.shield(charged())

    def problem(self, error: BaseException, field: str | None = None) -> Problem:
        """Turn the failure of a job into a reply, and count it; ``field`` held the prompt."""
        problem = problem_of(error, self.config.retry_after_s, field)
        if isinstance(error, Cancelled):
            self.metrics.cancelled.inc()
        elif problem.status >= 500:
            self.metrics.fail_closed.labels(problem.code).inc()
            words = str(error)
            if not self.config.log_prompts:
                # A failed judge may have quoted what it judged, an engine what it was asked.
                words = "" if isinstance(error, JudgeUnavailable) else words
                words = error.public if isinstance(error, EngineFault) else words
            detail = {"detail": words[:500]} if words else {}
            _log.warning("no answer: %s", problem.code, extra=detail)
        return problem

    @property
    def missing(self) -> list[str]:
        """Which roles their engines cannot play now."""
        roles = (self.beam.target, self.beam.anchor, self.beam.judge.role)
        down = [r.name for r in roles if isinstance(r, RemoteRole) and r.watch.why is not None]
        return [f"the {name}'s engine is down" for name in down]

    @property
    def degraded(self) -> list[str]:
        """Why ``/health`` says degraded."""
        reasons = []
        if self.config.fail_open:
            reasons.append("fail-open: answers may leave without a verdict")
        if self.config.shadow:
            reasons.append("shadow mode: the target answers unprotected")
        return reasons

    def close(self) -> None:
        """Stop decoding and close the audit log."""
        self._turns.close()
        self.scheduler.stop()
        if self._audit is not None:
            self._audit.close()


def _settled(index: int, done: asyncio.Future[Delivery]) -> Event:
    if done.cancelled():
        return Event(index, error=Cancelled("given up"))
    error = done.exception()
    return Event(index, error=error) if error is not None else Event(index, answer=done.result())
