"""Fewer trips to engines: what the next mixed steps will ask, if they go as the anchor would.

In most steps the mix takes what the anchor's best token translates to. So an anchor on an engine is
asked for its best tokens of all steps to come, along its own path, in one request; a target on an
engine for the numbers of all of them at once, and for the completion after the last. Each of these
is kept by the tokens that it follows: a step that goes another way finds nothing there, and asks
anew. Nothing that is mixed depends on what was guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignbeam.config import BeamConfig
from alignbeam.decoding.beam import Beam
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.decoding.numbers import translate
from alignbeam.decoding.remote import RemoteTokens
from alignbeam.engines.rows import Path


def look_ahead(
    anchor: NextTokens,
    target: NextTokens,
    beams: Sequence[Beam],
    table_of: Callable[[BeamConfig], Sequence[int]],
) -> None:
    """Ask engines for what this mixed step needs, and for what the next ones may need.

    Parameters
    ----------
    anchor, target : NextTokens
        One row per beam.
    beams : sequence of Beam
        Mixing.
    table_of : callable
        Returns the table [Va] of ordinary steps.
    """
    if not isinstance(anchor, RemoteTokens):
        return
    further = [_steps_after_this(beam) for beam in beams]
    anchor.top(max(beam.request.config.top_b for beam in beams), further)
    if not isinstance(target, RemoteTokens):
        return
    wanted: list[tuple[int, Path, Sequence[int]]] = []
    for row, beam in enumerate(beams):
        config = beam.request.config
        path: Path = ()
        table = table_of(config)
        for numbers in anchor.told(row):
            wanted.append((row, path, list(translate(numbers.best(config.top_b), table))))
            guess = table[numbers.chosen]
            if guess < 0 or guess in target.role.end_ids:
                break
            path = (*path, guess)
            if len(path) > further[row]:
                target.begin_after(row, beam, path)
                break
    target.learn(wanted)


def _steps_after_this(beam: Beam) -> int:
    request = beam.request
    return min(request.config.mix_steps, request.max_new_tokens) - len(beam.token_ids) - 1
