"""The judge's desk in the server: what waits for a verdict, and the thread that asks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from alignbeam.engines.scope import Scope, scope
from alignbeam.judge import FailClosed
from alignbeam.judge.reader import MAX_BATCH_TOKENS
from alignbeam.result import Verdict
from alignbeam.server.job import Job
from alignbeam.server.ledger import Ledger

#: What the judge reads in one call (``ModelJudge.readings``), and its tokens together, as far as
#: that is more than one candidate. More would fill no further forward, and make the others wait.
CALL_ROWS: Final = 32
CALL_CELLS: Final = MAX_BATCH_TOKENS
#: Times of one call that a candidate waits while calls fail.
PATIENCE: Final = 3


class ServerWatcher(Protocol):
    """Is told what happens; called from both threads."""

    def on_step(self, rows: int, mix_us: float) -> None:
        """One decoding step over ``rows`` beams, with ``mix_us`` of it in the mixing."""

    def on_judged(self, judge_ms: float, verdicts: Sequence[Verdict]) -> None:
        """One call of the judge."""

    def on_recovery(self, reason: str) -> None:
        """Note that a step failed and is tried again with fewer requests."""


@dataclass(slots=True)
class _Round:
    """The texts of one job that are to be judged together, and how many still wait."""

    job: Job
    whole: bool
    open: int


@dataclass(frozen=True, slots=True)
class _Question:
    """One candidate before the judge, and how many rows a verdict on it reads."""

    round: _Round
    index: int
    text: str
    rows: int
    since: float = field(default_factory=time.monotonic)

    @property
    def cells(self) -> int:
        """How many tokens that is at most."""
        return self.rows * self.round.job.length


class JudgeDesk:
    """Asks the judge about all that waits: each call is about one client's, the clients take turns.

    Next is the client of which least will have been read then, so a small question waits for the
    call that is being made and hardly another, however many clients send large ones; nothing is
    made up to one for the time when it asked nothing. A call is bounded, so nobody waits long for
    another's; and one that fails or takes too long fails nobody else's. Of a client that left
    nothing more is asked.

    Parameters
    ----------
    judge : FailClosed
    wake : threading.Condition
        Held around both trays, and told when one of them fills.
    watcher : ServerWatcher or None

    Attributes
    ----------
    finished : list of Job
        Decoded jobs without their last verdict; bounded by whoever admits, or a slow judge would
        let them pile up without end.
    closed : bool
        Set (with ``wake`` held) to end ``work``.
    """

    def __init__(
        self, judge: FailClosed, wake: threading.Condition, watcher: ServerWatcher | None
    ) -> None:
        self._judge, self._wake, self._watcher = judge, wake, watcher
        self._lines: dict[str, deque[_Question]] = {}
        self._read = Ledger()  # in tokens
        self.judged: deque[tuple[Job, bool]] = deque()
        self.finished: list[Job] = []
        self.closed = False

    def put(self, job: Job, *, whole: bool) -> None:
        """Have the text of a job's beams judged: as finished, or as far as it could leave."""
        job.to_judge()
        asked = job.asked()
        around = _Round(job, whole, len(asked))
        questions = [_Question(around, i, text, self._rows(job, text)) for i, text in asked]
        job.judge_rows = sum(question.rows for question in questions)
        with self._wake:
            if whole:
                self.finished.append(job)
            if job.client not in self._lines:
                self._lines[job.client] = deque()
                self._read.enter(job.client)
            self._lines[job.client].extend(questions)
            self._wake.notify_all()

    def take(self) -> list[tuple[Job, bool]]:
        """Return the jobs that got verdicts since, and of what; ``wake`` is held."""
        done = list(self.judged)
        self.judged.clear()
        for job, _ in done:
            job.judging = False
        return done

    def leave(self, job: Job) -> None:
        """Forget a job that was handed over."""
        with self._wake:
            self.finished.remove(job)

    def backlog(self, client: str) -> int:
        """Return how many tokens of a client's jobs the judge has to read; ``wake`` is held."""
        mine = (job for job in self.finished if job.client == client)
        return sum(job.judge_rows * job.length for job in mine)

    def _rows(self, job: Job, text: str) -> int:
        try:
            return self._judge.readings(job.request.messages, text)
        except Exception:  # it cannot be read: nothing is, and the verdict will say why
            return 1

    def work(self) -> None:
        """Ask until closed; runs on a thread of its own."""
        while True:
            with self._wake:
                while not self._lines and not self.closed:
                    self._wake.wait()
                if self.closed:
                    return
                asked = self._next_call()
            if asked:
                self._score(asked)

    def _next_call(self) -> list[_Question]:
        """Take a call's worth of the client whose turn it is; ``wake`` is held."""
        work = {client: line[0].cells if line else 0 for client, line in self._lines.items()}
        client = self._read.turn(work)
        line = self._lines[client]
        asked: list[_Question] = []
        rows = cells = 0
        while line:
            question = line[0]
            if question.round.job.cancelled.is_set():
                self._file(line.popleft(), None)
                continue
            rows += question.rows
            cells += question.cells
            if asked and (rows > CALL_ROWS or cells > CALL_CELLS):
                break
            asked.append(line.popleft())
            self._read.charge(client, question.cells)
        if not line:
            del self._lines[client]
        return asked

    def _score(self, asked: list[_Question]) -> None:
        begin = time.perf_counter()
        scope.set(Scope(asked[0].round.job.request.salt))  # all of them are one client's
        verdicts = self._judge.score(
            [q.round.job.request.messages for q in asked], [q.text for q in asked]
        )
        spent = (time.perf_counter() - begin) * 1e3
        if self._watcher is not None:
            self._watcher.on_judged(spent, verdicts)
        with self._wake:
            for job in {q.round.job for q in asked}:
                job.judge_ms += spent
            for question, verdict in zip(asked, verdicts, strict=True):
                self._file(question, verdict)
            if all(verdict.failure in ("timeout", "died") for verdict in verdicts):
                self._give_up(verdicts[0])

    def _file(self, question: _Question, verdict: Verdict | None) -> None:
        """Put a verdict down, or that none is wanted any more; ``wake`` is held."""
        around = question.round
        if verdict is not None:
            around.job.verdicts[question.index] = verdict
        around.open -= 1
        if not around.open:
            self.judged.append((around.job, around.whole))
            self._wake.notify_all()

    def _give_up(self, verdict: Verdict) -> None:
        """Answer what has waited for several calls' time: the judge hangs; ``wake`` is held.

        Else each of them would take a call's time to fail, one after another.
        """
        if self._judge.timeout_s is None:
            return
        oldest = time.monotonic() - PATIENCE * self._judge.timeout_s
        for client in list(self._lines):
            line = self._lines[client]
            while line and line[0].since < oldest:
                self._file(line.popleft(), verdict)
            if not line:
                del self._lines[client]
