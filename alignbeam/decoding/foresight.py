"""Fewer trips to engines: what the next mixed steps will ask, if they go as the anchor would.

In most steps the mix takes what the anchor's best token translates to. So an anchor on an engine is
asked for its best tokens of all steps to come, along its own path, in one request; a target on an
engine for the numbers of all of them at once, and for the completion after the last. Where that is
too much work, it is asked for the numbers of one step, and of the next ones along its own path:
mostly that is the anchor's, too. Each of these is kept by the tokens that it follows: a step that
goes another way finds nothing there, and asks anew. Nothing that is mixed depends on what was
guessed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

from alignbeam.decoding.beam import Beam
from alignbeam.decoding.choice import Choice
from alignbeam.decoding.mixing import Mixer
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.numbers import translate
from alignbeam.decoding.remote import RemoteTokens, Wanted
from alignbeam.engines.rows import Path

#: How likely a step must be to be reached as guessed, to be asked about by a question of its own;
#: as many times more as the engine is slower than it can be, for what was asked in vain keeps
#: others waiting.
_WORTH: Final = 0.25
#: How likely it must be to be asked about along the target's own path: that costs the engine a
#: token, a question the end of a prompt.
_WORTH_ALONG: Final = 0.2
#: Share of right guesses that is assumed before any was seen, and what one guess weighs in it.
_AT_FIRST: Final = 0.9
_WEIGHT: Final = 0.02


class Rate:
    """Share of guesses of one kind that came true, of late."""

    def __init__(self) -> None:
        self._rate = _AT_FIRST

    def saw(self, true: bool) -> None:
        """Learn from what became of a guess."""
        self._rate += _WEIGHT * (true - self._rate)

    def reach(self, worth: float) -> int:
        """Return how many guesses in a row come true as likely as ``worth``."""
        return int(math.log(worth) / math.log(min(max(self._rate, 0.01), 0.99)))


class Foresight:
    """Asks beforehand, as far as it is worth it by what became of earlier guesses.

    Attributes
    ----------
    taken : Rate
        How often the mix takes what the anchor's best token translates to.
    shared : Rate
        How often that is the target's own best token.
    """

    def __init__(self) -> None:
        self.taken, self.shared = Rate(), Rate()

    def reach(self, slowness: float) -> int:
        """How many steps beyond the next one get a question of their own; see ``Pace``."""
        return self.taken.reach(min(1.0, _WORTH * slowness))

    def ask(
        self,
        anchor: NextTokens,
        target: NextTokens,
        beams: Sequence[Beam],
        mixer: Mixer,
    ) -> list[int]:
        """Ask engines for what this mixed step needs, and for what the next ones may need.

        Parameters
        ----------
        anchor, target : NextTokens
            One row per beam.
        beams : sequence of Beam
            Mixing.
        mixer : Mixer
            Has the tables.

        Returns
        -------
        list of int
            The token that each beam is guessed to take, -1 where there is no guess; empty where
            none of this helps.
        """
        if not isinstance(anchor, RemoteTokens):
            return []
        left = [_steps_after_this(beam) for beam in beams]
        further = self.reach(anchor.slowness)
        anchor.top(
            max(beam.request.config.top_b for beam in beams), [min(n, further) for n in left]
        )
        engine = target if isinstance(target, RemoteTokens) else None
        further = 0 if engine is None else self.reach(engine.slowness)
        wanted: list[Wanted] = []
        guesses = []
        for row, beam in enumerate(beams):
            table = mixer.table(beam.request.config.fallback, "step")
            names, path = _told(anchor, target, row, beam, table)
            guesses.append(path[0] if path else -1)
            if engine is not None:
                wanted += self._questions(engine, row, names, path, further)
                if left[row] < len(path) <= further:
                    engine.begin_after(row, beam, path)
        if engine is not None:
            engine.learn(wanted)
        return guesses

    def saw(self, guesses: Sequence[int], choices: Sequence[Choice], target: NextTokens) -> None:
        """Learn from what became of guesses."""
        for row, (guess, choice) in enumerate(zip(guesses, choices, strict=True)):
            self.taken.saw(choice.token_ids[:1] == (guess,))
            if isinstance(target, RemoteTokens):
                self.shared.saw(target.best_token(row) == guess)

    def _questions(
        self,
        target: RemoteTokens,
        row: int,
        names: Sequence[Sequence[int]],
        path: Path,
        further: int,
    ) -> list[Wanted]:
        """Return one question for each of the next steps, and have the last ask for more of them.

        Parameters
        ----------
        names : sequence of sequence of int
            What is wanted at this step and at those after it.
        path : tuple of int
            What leads from one to the next.
        further : int
            How many get a question beyond this step's.
        """
        asked = [Wanted(row, path[:n], names[n]) for n in range(min(1 + further, len(names)))]
        for n in range(len(asked), min(len(asked) + self.shared.reach(_WORTH_ALONG), len(names))):
            last = asked[-1]
            together = tuple(dict.fromkeys((*last.names, *names[n])))
            if len(together) > target.names_along:
                break
            asked[-1] = last._replace(names=together, ahead=last.ahead + 1)
        return asked


def _told(
    anchor: RemoteTokens, target: NextTokens, row: int, beam: Beam, table: Sequence[int]
) -> tuple[list[list[int]], Path]:
    """Return what the anchor has told of a row's next steps, in the target's tokens.

    Returns
    -------
    names : list of list of int
        Per step, what its best tokens translate to.
    path : tuple of int
        Per step, what its best one does; without the last where that goes nowhere.
    """
    names: list[list[int]] = []
    path: Path = ()
    for numbers in anchor.told(row):
        names.append(list(translate(numbers.best(beam.request.config.top_b), table)))
        guess = table[numbers.chosen]
        if guess < 0 or guess in target.role.end_ids:
            break
        path = (*path, guess)
        if len(path) > _steps_after_this(beam):
            break
    return names, path


def _steps_after_this(beam: Beam) -> int:
    request = beam.request
    return min(request.config.mix_steps, request.max_new_tokens) - len(beam.token_ids) - 1
