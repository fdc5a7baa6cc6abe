"""From a checked request to jobs, and from their answers to what may be sent.

Knows limits, shadow mode, the audit log and the metrics; nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from alignbeam.controller import AlignBeam
from alignbeam.errors import AlignBeamError, Cancelled, JudgeUnavailable
from alignbeam.judge import Judge
from alignbeam.server.audit import AuditLog, candidates_of, text_hash
from alignbeam.server.canaries import check_canaries
from alignbeam.server.job import Answer, Release, Ticket
from alignbeam.server.metrics import Metrics
from alignbeam.server.openai_requests import ChatRequest, CompletionRequest, Extension
from alignbeam.server.problems import Problem, problem_of
from alignbeam.server.scheduler import Scheduler
from alignbeam.server.settings import ServerConfig

_log = logging.getLogger(__name__)

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to choice ``index`` of a request."""

    index: int
    text: str = ""
    answer: Answer | None = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What a request comes to: one prompt and its settings per choice.

    Attributes
    ----------
    distinct : int
        How many different prompts there are; each has as many choices.
    """

    prompts: tuple[Messages, ...]
    overrides: tuple[dict[str, Any], ...]
    release: Release
    explain: bool
    distinct: int


class Service:
    """Answers requests on behalf of the routes.

    Parameters
    ----------
    beam : AlignBeam
    judge : Judge
        With its timeout.
    config : ServerConfig
    audit : AuditLog or None

    Raises
    ------
    CanaryFailed
        The judge does not tell safe from unsafe.
    """

    def __init__(
        self, beam: AlignBeam, judge: Judge, config: ServerConfig, audit: AuditLog | None = None
    ) -> None:
        check_canaries(judge, beam.config.threshold)
        self.beam, self.config, self.metrics = beam, config, Metrics()
        self._audit = audit
        self._fingerprint = beam.bridge.fingerprint
        self.scheduler = Scheduler(
            beam,
            judge=judge,
            max_batch_cells=config.max_batch_cells,
            max_queued=config.max_queued,
            max_queued_cells=config.max_queued_cells,
            chunk_tokens=config.chunk_tokens,
            fail_open=config.fail_open,
            watcher=self.metrics,
        )
        self.metrics.watch_queue(lambda: self.scheduler.queued, lambda: self.scheduler.running)
        longest = max(len(b) for b in beam.target.token_bytes if b is not None)
        self._max_text_bytes = beam.target.window * longest
        # Tokenizers are not made for several threads at once.
        self._tokenizing = asyncio.Lock()
        self._shadows: set[asyncio.Task[None]] = set()

    # Requests to plans ---------------------------------------------------------------------

    def plan_chat(self, request: ChatRequest) -> Plan:
        """Check a chat request against the operator's limits.

        Raises
        ------
        Problem
            400 or 404, naming the field.
        """
        if len(request.messages) > self.config.max_messages:
            raise _over("messages", self.config.max_messages)
        for i, (one, two) in enumerate(
            zip(request.messages, request.messages[1:], strict=False), start=1
        ):
            if one.role == two.role == "assistant":
                raise Problem(
                    400, "invalid_prompt", "Two assistant messages in a row.", f"messages.{i}"
                )
        messages = [message.plain() for message in request.messages]
        limit = request.max_completion_tokens or request.max_tokens
        return self._plan(request, [messages], limit, "messages")

    def plan_completion(self, request: CompletionRequest) -> Plan:
        """Check a completion request; each prompt becomes one user message."""
        prompts = [request.prompt] if isinstance(request.prompt, str) else request.prompt
        messages = [[{"role": "user", "content": prompt}] for prompt in prompts]
        return self._plan(request, messages, request.max_tokens, "prompt")

    def _plan(
        self,
        request: ChatRequest | CompletionRequest,
        prompts: Sequence[Messages],
        limit: int | None,
        field: str,
    ) -> Plan:
        config = self.config
        if request.model != config.model_name:
            raise Problem(
                404, "model_not_found", f"The model here is called {config.model_name}.", "model"
            )
        choices = request.n or 1
        if choices * len(prompts) > config.max_choices:
            raise _over("n" if choices > 1 else field, config.max_choices)
        if len(request.stops) > config.max_stops:
            raise _over("stop", config.max_stops)
        if any(not stop for stop in request.stops):
            raise Problem(400, "invalid_value", "stop: empty strings end nothing", "stop")
        if limit is not None and limit > config.max_tokens:
            raise _over("max_tokens", config.max_tokens)
        for messages in prompts:
            self._check_text(messages, field)
        extension = request.alignbeam or Extension()
        settings = self._extension(extension)
        base = self.beam.config
        if limit is not None:
            settings["max_new_tokens"] = limit
        tokens = settings.get("max_new_tokens", min(base.max_new_tokens, config.max_tokens))
        settings["max_new_tokens"] = tokens
        mix_steps = settings.get("mix_steps", base.mix_steps)
        settings["mix_steps"] = min(mix_steps, tokens)  # short answers are mixed whole
        if request.temperature is not None:
            settings["temperature"] = float(request.temperature)
        if request.top_p is not None:
            settings["top_p"] = float(request.top_p)
        if request.stops:
            settings["stop"] = request.stops
        settings["wishes"] = 1  # the trace is where the shares come from
        seed = secrets.randbits(62) if request.seed is None else request.seed % 2**62
        each: list[dict[str, Any]] = [{**settings, "seed": seed + i} for i in range(choices)]
        return Plan(
            tuple(list(m) for m in prompts for _ in each),
            tuple(o for _ in prompts for o in each),
            extension.policy or config.release,
            extension.explain,
            len(prompts),
        )

    def _check_text(self, messages: Messages, field: str) -> None:
        """Refuse before tokenising what cannot fit the window however it is tokenised."""
        size = sum(len(m["content"].encode("utf-8", "surrogatepass")) for m in messages)
        if size > self._max_text_bytes:
            raise Problem(
                400,
                "prompt_too_long",
                f"{size} bytes of text cannot fit the window of {self.beam.target.window} tokens.",
                field,
            )

    def _extension(self, extension: Extension) -> dict[str, Any]:
        """Return the settings of a request's own ``alignbeam`` object, as far as it is open."""
        config = self.config
        bounds: dict[str, tuple[float, float]] = {
            "alpha": (config.min_alpha, 1),
            "mix_steps": (config.min_mix_steps, config.max_mix_steps),
            "beams": (1, config.max_beams),
        }
        settings: dict[str, Any] = {}
        for name in extension.model_fields_set:
            value = getattr(extension, name)
            if value is None or value is False:
                continue
            place = f"alignbeam.{name}"
            if name not in config.allow:
                raise Problem(400, "not_allowed", f"{place} is not open on this server.", place)
            if name in bounds:
                low, high = bounds[name]
                if not low <= value <= high:
                    raise Problem(
                        400, "invalid_value", f"{place} must be in {low:g}..{high:g}.", place
                    )
                settings[name] = value
        return settings

    # Plans to events -----------------------------------------------------------------------

    async def start(
        self, plan: Plan, client: str, on_event: Callable[[Event], object]
    ) -> list[Ticket]:
        """Submit all choices of a plan; ``on_event`` is called on the event loop.

        Raises
        ------
        Problem
            One of them cannot be taken; then none is.
        """
        loop = asyncio.get_running_loop()
        tickets: list[Ticket] = []
        release: Release = "bare" if self.config.shadow else plan.release
        try:
            for index, (messages, overrides) in enumerate(
                zip(plan.prompts, plan.overrides, strict=True)
            ):

                def on_text(text: str, index: int = index) -> None:
                    loop.call_soon_threadsafe(on_event, Event(index, text=text))

                settings = self._alone(overrides) if self.config.shadow else overrides
                ticket = await self._submit(messages, settings, client, release, on_text)
                tickets.append(ticket)
        except AlignBeamError as error:
            for ticket in tickets:
                ticket.cancel()
            self._note_refusal(error)
            raise problem_of(error, self.config.retry_after_s) from error
        except asyncio.CancelledError:
            for ticket in tickets:
                ticket.cancel()
            raise
        for index, ticket in enumerate(tickets):
            future = asyncio.wrap_future(ticket.future)
            future.add_done_callback(
                lambda done, index=index: on_event(_settled(index, done))  # type: ignore[misc]
            )
        if self.config.shadow:
            for messages, overrides in zip(plan.prompts, plan.overrides, strict=True):
                task = asyncio.create_task(self._shadow(messages, overrides, client))
                self._shadows.add(task)
                task.add_done_callback(self._shadows.discard)
        return tickets

    async def _submit(
        self,
        messages: Messages,
        overrides: dict[str, Any],
        client: str,
        release: Release,
        on_text: Callable[[str], object] = lambda _: None,
    ) -> Ticket:
        async with self._tokenizing:
            return await asyncio.to_thread(
                self.scheduler.submit,
                messages,
                overrides,
                client=client,
                release=release,
                on_text=on_text,
            )

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
        verdict: Literal["would_block", "would_answer"] = (
            "would_block" if blocked else "would_answer"
        )
        self.metrics.shadow.labels(verdict).inc()
        _log.info("shadow", extra={"verdict": verdict, "reason": answer.result.reason})
        try:
            await self.record("shadow", messages, overrides, answer, request_id="", client=client)
        except AlignBeamError as error:
            _log.error("shadow: %s", error)

    async def compare(
        self, messages: Messages, overrides: dict[str, Any], client: str
    ) -> tuple[Answer, Answer]:
        """Return the target's own answer, judged by no one, and AlignBeam's. For the playground.

        Raises
        ------
        Problem
            Either cannot be had.
        """
        tickets: list[Ticket] = []
        try:
            alone = self._alone(overrides)
            tickets.append(await self._submit(messages, alone, client, "bare"))
            tickets.append(await self._submit(messages, overrides, client, "full"))
            bare, full = [await asyncio.wrap_future(t.future) for t in tickets]
        except AlignBeamError as error:
            self._note_refusal(error)
            raise problem_of(error, self.config.retry_after_s) from error
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
        answer: Answer,
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
            "settings": settings,
            "prompt_sha256": text_hash("\n".join(m["content"] for m in messages)),
            "chosen": result.chosen,
            "reason": result.reason,
            "finish_reason": result.finish_reason,
            "fail_open": answer.fail_open,
            "candidates": candidates_of(result, text=self.config.audit_text),
        }
        if self.config.audit_text:
            entry["messages"] = messages
            entry["text"] = result.text
        await asyncio.to_thread(self._audit.write, entry)

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
            entry["text"] = text
        await asyncio.to_thread(self._audit.write, entry)

    def problem(self, error: BaseException) -> Problem:
        """Turn the failure of a job into a reply, and count it."""
        self._note_refusal(error)
        return problem_of(error, self.config.retry_after_s)

    def _note_refusal(self, error: BaseException) -> None:
        problem = problem_of(error, self.config.retry_after_s)
        if isinstance(error, Cancelled):
            self.metrics.cancelled.inc()
        elif problem.status >= 500:
            self.metrics.fail_closed.labels(problem.code).inc()
            # A failed judge may have quoted what it judged.
            quotes = isinstance(error, JudgeUnavailable) and not self.config.log_prompts
            detail = {} if quotes else {"detail": str(error)[:500]}
            _log.warning("no answer: %s", problem.code, extra=detail)

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
        self.scheduler.stop()
        if self._audit is not None:
            self._audit.close()


def _over(field: str, limit: int) -> Problem:
    return Problem(400, "too_many", f"{field}: this server takes at most {limit}.", field)


def _settled(index: int, done: asyncio.Future[Answer]) -> Event:
    if done.cancelled():
        return Event(index, error=Cancelled("given up"))
    error = done.exception()
    return Event(index, error=error) if error is not None else Event(index, answer=done.result())
