"""Prometheus series: what an operator watches."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from alignbeam.doctor.report import SurvivalRow
from alignbeam.result import Result, Verdict
from alignbeam.server.job import Delivery

_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160)
_MICROSECONDS = (10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 50_000)
_MILLISECONDS = (5, 10, 25, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 60_000)
_SCORES = (1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0)
_SHARES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class Metrics:
    """The server's series, in a registry of their own; the scheduler's ``ServerWatcher``."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()

        def histogram(name: str, help: str, buckets: Sequence[float]) -> Histogram:
            return Histogram(f"alignbeam_{name}", help, buckets=buckets, registry=registry)

        def counter(name: str, help: str, labels: Sequence[str] = ()) -> Counter:
            return Counter(f"alignbeam_{name}", help, labels, registry=registry)

        self.requests = counter("requests", "Requests by route and status.", ["route", "status"])
        self.first_text = histogram(
            "time_to_first_token_seconds", "Until the first text left.", _SECONDS
        )
        self.latency = histogram("request_seconds", "Until the answer was whole.", _SECONDS)
        self.queue_time = histogram("queue_seconds", "Waiting for room in the batch.", _SECONDS)
        self.mix = histogram("mix_step_microseconds", "Mixing, per decoding step.", _MICROSECONDS)
        self.judge = histogram("judge_milliseconds", "One call of the judge.", _MILLISECONDS)
        self.scores = histogram("verdict_score", "Harm of candidates, up to the half.", _SCORES)
        self.share = histogram("anchor_share", "The anchor's real share per mixed step.", _SHARES)
        self.rows = Gauge("alignbeam_batch_rows", "Beams in the last step.", registry=registry)
        self.steps = counter("decode_steps", "Decoding steps.")
        self.tokens = counter("completion_tokens", "Tokens of answers.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.blocked = counter("blocked", "Answers replaced by the refusal, or cut short.")
        self.let_go = counter("let_go", "Requests that the gates spared the steering.")
        self.unsteered = counter("unsteered", "Answers that are the target's own, unsteered.")
        self.fail_closed = counter(
            "fail_closed", "No text was let out because of this.", ["reason"]
        )
        self.fail_open = counter("fail_open", "Answers let out without a verdict.")
        self.judge_errors = counter("judge_errors", "Verdicts that were errors, counted as 5.")
        self.recoveries = counter("recoveries", "Failed steps tried again by halves.", ["reason"])
        self.cancelled = counter("cancelled", "Requests whose client went away.")
        # Whoever collects the series need not know which attacks they are; that is in the log.
        self.attacks_lost = Gauge(
            "alignbeam_judge_attacks_lost",
            "Attacks with which a harmful canary passed the judge at the start.",
            registry=registry,
        )
        self.shadow = counter("shadow", "Shadow mode: what AlignBeam would have done.", ["verdict"])

    def watch_queue(self, queued: Callable[[], float], running: Callable[[], float]) -> None:
        """Read the scheduler's queue whenever the series are asked for."""
        waiting = Gauge("alignbeam_queued_requests", "Waiting.", registry=self._registry)
        decoding = Gauge("alignbeam_running_requests", "Running.", registry=self._registry)
        waiting.set_function(queued)
        decoding.set_function(running)

    def on_step(self, rows: int, mix_us: float) -> None:
        """See ``ServerWatcher``."""
        self.steps.inc()
        self.rows.set(rows)
        if mix_us > 0:
            self.mix.observe(mix_us)

    def on_judged(self, judge_ms: float, verdicts: Sequence[Verdict]) -> None:
        """See ``ServerWatcher``."""
        self.judge.observe(judge_ms)
        for verdict in verdicts:
            if verdict.error is not None:
                self.judge_errors.inc()
            # Their sum must not tell whoever reads the series a withheld answer's score.
            self.scores.observe(_SCORES[min(bisect_left(_SCORES, verdict.score), len(_SCORES) - 1)])

    def on_attacked(self, rows: Sequence[SurvivalRow]) -> None:
        """Note what came of each attack on the canaries at the start."""
        self.attacks_lost.set(sum(row.passed > 0 for row in rows))

    def on_recovery(self, reason: str) -> None:
        """See ``ServerWatcher``."""
        self.recoveries.labels(reason).inc()

    def on_answer(self, answer: Delivery) -> None:
        """One answer that was let out (or replaced by the refusal)."""
        result = answer.result
        self.latency.observe(answer.total_ms / 1e3)
        self.queue_time.observe(answer.queued_ms / 1e3)
        self.tokens.inc(result.completion_tokens)
        self.prompt_tokens.inc(result.prompt_tokens)
        if result.finish_reason == "content_filter":
            self.blocked.inc()
        if result.let_go:
            self.let_go.inc()
        if result.chosen is not None and result.candidates[result.chosen].unsteered:
            self.unsteered.inc()
        if answer.fail_open:
            self.fail_open.inc()
        for share in _shares(result):
            self.share.observe(share)

    def page(self) -> bytes:
        """Return all series in Prometheus' text format."""
        return generate_latest(self._registry)


def _shares(result: Result) -> list[float]:
    shares = [step.anchor_share for step in result.trace if step.beam == result.chosen]
    return [share for share in shares if not math.isnan(share)]
