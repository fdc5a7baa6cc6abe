"""Fewer trips to engines: what the next mixed steps will ask, if they go as the anchor would.

In most steps the mix takes what the anchor's best token translates to. So an anchor on an engine is
asked for its best tokens of all steps to come, along its own path, in one request; a target on an
engine for the numbers of all of them at once, and for the completion after the last. Each of these
is kept by the tokens that it follows: a step that goes another way finds nothing there, and asks
anew. Nothing that is mixed depends on what was guessed.
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
from alignbeam.decoding.remote import RemoteTokens
from alignbeam.engines.rows import Path

#: How likely a step must be to be reached as guessed, to be asked about beforehand; as many times
#: more as the engine is slower than it can be, for what was asked in vain keeps others waiting.
_WORTH: Final = 0.25
#: Share of right guesses that is assumed before any was seen, and what one guess weighs in it.
_AT_FIRST: Final = 0.9
_WEIGHT: Final = 0.02


class Foresight:
    """Asks beforehand, as far as it is worth it by what became of earlier guesses.

    Attributes
    ----------
    rate : float
        Share of guesses that came true, of late.
    """

    def __init__(self) -> None:
        self.rate = _AT_FIRST

    def reach(self, slowness: float) -> int:
        """How many steps beyond the next one an engine is asked about; see ``Pace``."""
        worth = min(1.0, _WORTH * slowness)
        return int(math.log(worth) / math.log(min(max(self.rate, 0.01), 0.99)))

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
        if isinstance(target, RemoteTokens):
            further = self.reach(target.slowness)
        wanted: list[tuple[int, Path, Sequence[int]]] = []
        guesses = []
        for row, beam in enumerate(beams):
            config = beam.request.config
            table = mixer.table(config.fallback, "step")
            path: Path = ()
            for numbers in anchor.told(row):
                wanted.append((row, path, list(translate(numbers.best(config.top_b), table))))
                guess = table[numbers.chosen]
                if not path:
                    guesses.append(guess)
                if guess < 0 or guess in target.role.end_ids:
                    break
                path = (*path, guess)
                if len(path) > further:
                    break
                if len(path) > left[row]:
                    if isinstance(target, RemoteTokens):
                        target.begin_after(row, beam, path)
                    break
        if isinstance(target, RemoteTokens):
            target.learn(wanted)
        return guesses

    def saw(self, guesses: Sequence[int], choices: Sequence[Choice]) -> None:
        """Learn from what became of guesses."""
        for guess, choice in zip(guesses, choices, strict=True):
            self.rate += _WEIGHT * ((choice.token_ids[:1] == (guess,)) - self.rate)


def _steps_after_this(beam: Beam) -> int:
    request = beam.request
    return min(request.config.mix_steps, request.max_new_tokens) - len(beam.token_ids) - 1
