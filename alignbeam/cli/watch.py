"""How a run goes, for whoever watches: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from alignbeam.cli.console import make_console, progress_bar

if TYPE_CHECKING:
    from rich.progress import Progress

    from alignbeam.eval.run.records import Generation

#: Seconds between two lines where the output is no terminal.
_EVERY_S: Final = 15.0


class RunWatch:
    """Tells rate, remaining time and running counts on stderr.

    Parameters
    ----------
    quiet : bool
        Say nothing.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = make_console(sys.stderr)
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: object = None
        self._what = ""
        self._total = self._done = self._fresh = 0
        self._counts = {"refused": 0, "complied": 0, "failed": 0}
        self._start = self._said = 0.0

    def __enter__(self) -> Self:
        """Begin to watch."""
        from rich.progress import TextColumn

        if not self._quiet and self._console.is_terminal:
            self._bar = progress_bar(self._console, TextColumn("{task.fields[state]}"))
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End, and leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()

    def begin(self, what: str, total: int, done: int) -> None:
        """See ``alignbeam.eval.run.run.RunWatcher``."""
        self._what, self._total, self._done, self._fresh = what, total, done, 0
        self._counts = dict.fromkeys(self._counts, 0)
        self._start = self._said = time.monotonic()
        if self._bar is not None:
            for task in self._bar.task_ids:
                self._bar.remove_task(task)
            self._task = self._bar.add_task(what, total=total, completed=done, state="")
        elif not self._quiet:
            already = f", {done} already there" if done else ""
            self._console.print(f"{what}: {total} in all{already}")

    def advance(self, generations: Sequence[Generation]) -> None:
        """See ``alignbeam.eval.run.run.RunWatcher``."""
        from alignbeam.eval.run.summary import counts

        self._done += len(generations)
        self._fresh += len(generations)
        for name, count in counts(generations).items():
            self._counts[name] += count
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, state=self._state())
            return
        now = time.monotonic()
        if not self._quiet and (now - self._said >= _EVERY_S or self._done >= self._total):
            self._said = now
            self._console.print(f"{self._what} {self._done}/{self._total}  {self._state()}")

    def _state(self) -> str:
        seconds = max(time.monotonic() - self._start, 1e-6)
        rate = self._fresh / seconds
        left = (self._total - self._done) / rate if rate > 0 else 0.0
        said = "  ".join(f"{name} {count}" for name, count in self._counts.items())
        return f"{rate:.1f}/s  {clock_time(left)} left  {said}"


def clock_time(seconds: float) -> str:
    """Return a duration as ``1:02:03`` or ``2:03``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
