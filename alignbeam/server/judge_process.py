"""A judge in a process of its own: when it crashes, hangs or is killed, the server lives on.

The parent keeps one child and speaks with it over a pipe. A child that dies, does not answer in
time, or says anything but the answer to the very batch that it was asked about, fails that batch
(``FailClosed`` makes that verdicts of 5) and is replaced; until the new one has loaded and shown
that it can tell safe from unsafe, batches wait for it within their own time.
"""

from __future__ import annotations

import itertools
import logging
import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Final

from alignbeam.config import JudgeConfig
from alignbeam.embedded import or_embedded
from alignbeam.errors import JudgeDied, ModelLoadError
from alignbeam.judge import load_judge
from alignbeam.judge.protocol import Conversation, Judge, check_lengths
from alignbeam.models.reader import Reader
from alignbeam.result import Verdict

_log = logging.getLogger(__name__)
_SPAWN = multiprocessing.get_context("spawn")
#: Seconds before a judge that could not be started is tried again; the last one from then on.
_PAUSES: Final = (1.0, 5.0, 15.0, 60.0)


class _Child:
    """One process with a judge in it, and the pipe to it: a ``Judge`` once it has loaded."""

    def __init__(self, config: JudgeConfig, threads: int, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._numbers = itertools.count()
        self.name = ""
        self.pipe, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(theirs, config, threads), daemon=True)
        self.process.start()
        theirs.close()

    def load(self, start_s: float) -> None:
        """Wait until it has loaded, and take its judge's name.

        Raises
        ------
        ModelLoadError
            It did not, with its reason.
        """
        try:
            if not self.pipe.poll(start_s):
                raise ModelLoadError(f"the judge's process did not load in {start_s:g} s")
            said = self.pipe.recv()
        except EOFError as error:
            raise ModelLoadError("the judge's process ended while it loaded") from error
        if isinstance(said, Exception):
            raise ModelLoadError(f"the judge's process: {said}")
        self.name = str(said)

    def ask(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict] | str:
        """Hand a batch over and take the answer to it; a child that is too slow is killed.

        A verdict must never count for another text than the one that it is about, so the child
        says again which batch its answer is to. A text in place of verdicts: its judge raised.
        """
        batch = ([[dict(m) for m in c] for c in conversations], list(candidates))
        # Writing blocks once the pipe is full, and reading in the middle of an answer; the pipe
        # itself knows no time limit.
        watch = threading.Timer(self._timeout_s, self.process.kill)
        watch.daemon = True
        watch.start()
        number = next(self._numbers)
        try:
            self.pipe.send((number, batch))
            answered, answer = self.pipe.recv()
        finally:
            watch.cancel()
        if answered != number:
            raise ValueError("an answer to another batch")
        return answer  # type: ignore[no-any-return]

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch. See ``Judge.score``."""
        return _told(self.ask(conversations, candidates))


class JudgeProcess:
    """A ``Judge`` that lives in a child process.

    Parameters
    ----------
    config : JudgeConfig
        Loaded in the child.
    timeout_s : float
        Seconds for one batch; a child that takes longer is killed and replaced.
    start_s : float
        Seconds that loading may take.
    threads : int
        Compute threads of the child; 0 leaves torch's own number.

    Attributes
    ----------
    trial : callable
        Given a child that is to take another's place, before it judges for anyone; raises where it
        is not to be trusted, and the next one is tried. Whoever makes a ``JudgeProcess`` tries the
        first child, as any judge, and sets this.

    Raises
    ------
    ModelLoadError
        The child could not load the judge; with its reason.
    """

    def __init__(
        self, config: JudgeConfig, timeout_s: float, start_s: float = 600.0, threads: int = 0
    ) -> None:
        self._config, self._timeout_s, self._start_s = config, timeout_s, start_s
        self._threads = threads
        # Prompts are refused here: the child is busy, and its answer would come late.
        named = or_embedded("judge", config)
        self._here = load_judge(named, Reader.without_weights("judge", named))
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._closed = threading.Event()
        self.trial: Callable[[Judge], object] = lambda judge: None
        self._child = self._start()
        try:
            self._child.load(start_s)
        except BaseException:  # it heeds no signal but this, and would be waited for at the end
            self._child.process.kill()
            raise
        self.name = self._child.name
        self._ready = True
        self._watch(self._child)

    @property
    def pid(self) -> int | None:
        """Process id of the current child."""
        return self._child.process.pid

    @property
    def alive(self) -> bool:
        """Whether a child is there that may judge."""
        return self._ready and self._child.process.is_alive()

    def readings(self, conversation: Conversation, candidate: str | int) -> int:
        """Count the rows that a verdict reads. See ``ModelJudge.readings``."""
        return self._here.readings(conversation, candidate)

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch. See ``Judge.score``.

        Raises
        ------
        JudgeDied
            The child ended, or took too long; or the new one did not come in time.
        RuntimeError
            The judge in the child raised.
        """
        check_lengths(conversations, candidates)
        with self._lock:
            # Whoever comes after must not fail by what another's batch did to the child; nor by a
            # child that died since, which the watch has not told of yet.
            if self._ready and not self._child.process.is_alive():
                self._replace()
            self._changed.wait_for(lambda: self._ready, self._timeout_s)
            if not self._ready:
                raise JudgeDied("the judge's process is not there")
            try:
                answer = self._child.ask(conversations, candidates)
            except Exception as error:  # whatever it was: what else is in the pipe is unknown
                self._replace()
                raise JudgeDied(f"the judge's process failed: {error!r}") from error
        return _told(answer)

    def close(self) -> None:
        """End the child."""
        self._closed.set()
        self._ready = False
        self._child.process.kill()
        self._child.process.join(5)

    def _start(self) -> _Child:
        return _Child(self._config, self._threads, self._timeout_s)

    def _watch(self, child: _Child) -> None:
        """Replace a child that dies between two batches, before anyone notices."""

        def watch() -> None:
            wait([child.process.sentinel])
            with self._lock:
                if self._ready and self._child is child:
                    self._replace()

        threading.Thread(target=watch, name="judge watch", daemon=True).start()

    def _replace(self) -> None:
        """Kill the child and start another in the background."""
        self._ready = False
        self._child.process.kill()
        self._child.pipe.close()
        if self._closed.is_set():
            return
        _log.error("the judge's process is gone; starting another")
        threading.Thread(target=self._again, name="judge restart", daemon=True).start()

    def _again(self) -> None:
        """Start children until one has loaded and stands its trial."""
        for pause in itertools.chain(_PAUSES, itertools.repeat(_PAUSES[-1])):
            self._child.process.join(5)  # or it stays a zombie until the next one is started
            try:
                # Known from its start on: whoever closes ends a child that loads, too.
                child = self._child = self._start()
                child.load(self._start_s)
                self.trial(child)
                break
            except Exception as error:  # no process, killed, no memory, garbage, no judge
                self._child.process.kill()
                if not self._closed.is_set():
                    _log.error("no other judge's process yet: %s", error)
                if self._closed.wait(pause):
                    return
        with self._lock:
            if self._closed.is_set():  # between its start and its being known
                child.process.kill()
                return
            self._ready = True
            self._changed.notify_all()
        self._watch(child)
        _log.warning("the judge's process is back")


def _told(answer: list[Verdict] | str) -> list[Verdict]:
    """Return the verdicts of a child's answer; raises what its judge raised."""
    if isinstance(answer, str):
        raise RuntimeError(answer)
    return answer


def _serve(pipe: Connection, config: JudgeConfig, threads: int) -> None:
    """Load the judge and answer batches until the parent goes away; runs in the child."""
    import signal

    import torch

    from alignbeam.controller import load_judge_of
    from alignbeam.server.logs import configure_logs

    configure_logs()
    # Sent to the whole group, these are for the parent, which drains, or heeds no hangup.
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if threads:
        torch.set_num_threads(threads)
    try:
        judge = load_judge_of(config).judge  # the parent's own fails closed
    except Exception as error:  # told to the parent, whatever it is
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))
        return
    pipe.send(judge.name)
    while True:
        try:
            number, (conversations, candidates) = pipe.recv()
        except (EOFError, OSError):
            os._exit(0)  # the parent is gone
        answer: list[Verdict] | str
        try:
            answer = judge.score(conversations, candidates)
        except Exception as error:  # told to the parent; its text may be the candidate's
            if "CUDA" in str(error) and not isinstance(error, torch.OutOfMemoryError):
                raise  # a broken CUDA context stays broken: only another process helps
            answer = f"{type(error).__name__} in the judge"
        pipe.send((number, answer))
