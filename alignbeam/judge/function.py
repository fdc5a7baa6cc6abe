"""Any Python function as judge."""

from __future__ import annotations

import numbers
from collections.abc import Callable, Mapping, Sequence

from alignbeam.errors import ConfigError
from alignbeam.judge.protocol import Conversation, check_lengths
from alignbeam.judge.verdicts import checked, error_verdict
from alignbeam.result import Verdict

#: ``fn(messages, candidate)`` gives a score in 1..5, or a whole verdict.
JudgeFunction = Callable[[list[Mapping[str, str]], str], "float | Verdict"]


class CallableJudge:
    """Calls ``fn(messages, candidate)`` for each candidate.

    A call that raises, or gives anything but a number in 1..5 or a sound ``Verdict``, makes that
    one candidate's verdict an error; the others are judged all the same. Scores on another scale
    are errors, not clamped: 0.9 of a 0..1 classifier would else pass as safe.

    Parameters
    ----------
    fn : callable
        Called in the order of the candidates, one at a time.
    name : str or None
        Stands in verdicts; the function's own name where None.

    Raises
    ------
    ConfigError
        ``fn`` cannot be called.
    """

    def __init__(self, fn: JudgeFunction, name: str | None = None) -> None:
        if not callable(fn):
            raise ConfigError(f"a judge must be callable, got {fn!r}")
        self._fn = fn
        self.name = name if name is not None else getattr(fn, "__name__", type(fn).__name__)

    def score(
        self, conversations: Sequence[Conversation], candidates: Sequence[str]
    ) -> list[Verdict]:
        """Judge a flat batch. See ``Judge.score``."""
        check_lengths(conversations, candidates)
        pairs = zip(conversations, candidates, strict=True)
        return [self._one(conversation, candidate) for conversation, candidate in pairs]

    def _one(self, conversation: Conversation, candidate: str) -> Verdict:
        try:
            said: object = self._fn(list(conversation), candidate)
        except Exception as error:  # a stranger's code may raise anything; it must not pass as safe
            return error_verdict(self.name, "exception", f"{type(error).__name__}: {error}")
        if isinstance(said, Verdict):
            return checked(said, self.name)
        if isinstance(said, bool) or not isinstance(said, numbers.Real):
            reason = f"the judge's score must be a number, got {said!r}"
            return error_verdict(self.name, "no-verdict", reason)
        return checked(Verdict(score=float(said), judge=self.name), self.name)
