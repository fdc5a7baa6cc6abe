"""Concurrent requests answered together: whoever comes first asks for all that wait."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread

from alignbeam.controller import AlignBeam
from alignbeam.errors import AlignBeamError
from alignbeam.models.conversation import Message
from alignbeam.result import Result


@dataclass
class _Waiting:
    prompt: list[Message]
    overrides: Mapping[str, Any]
    outcome: Result | Exception | None = None


class Batcher:
    """Turns requests of concurrent tasks into batches of ``AlignBeam.outcomes``.

    The models are busy with one batch at a time, in a thread of their own; requests that arrive
    meanwhile are the next batch. Nothing waits for a batch to fill up.

    Parameters
    ----------
    beam : AlignBeam
    batch_size : int
        Most requests of one batch.
    """

    def __init__(self, beam: AlignBeam, batch_size: int) -> None:
        self._beam = beam
        self._size = batch_size
        self._queue: list[_Waiting] = []
        self._models = anyio.Lock()

    async def answer(self, prompt: list[Message], overrides: Mapping[str, Any]) -> Result:
        """Answer one request.

        Raises
        ------
        AlignBeamError
            See ``AlignBeam.generate``.
        """
        mine = _Waiting(prompt, overrides)
        self._queue.append(mine)
        try:
            # Tasks that are ready to ask get to do so before the first batch leaves.
            await anyio.lowlevel.checkpoint()
            while mine.outcome is None:
                async with self._models:
                    if mine.outcome is None:
                        await self._answer_batch()
        finally:
            if mine in self._queue:  # cancelled before its turn
                self._queue.remove(mine)
        if isinstance(mine.outcome, Exception):
            raise mine.outcome
        return mine.outcome

    async def _answer_batch(self) -> None:
        batch, self._queue = self._queue[: self._size], self._queue[self._size :]
        outcomes: Sequence[Result | Exception]
        try:
            outcomes = await anyio.to_thread.run_sync(self._generate, batch)
        except Exception as error:  # whatever it is, each of the batch must get it
            outcomes = [error] * len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            waiting.outcome = outcome

    def _generate(self, batch: Sequence[_Waiting]) -> list[Result | AlignBeamError]:
        return list(
            self._beam.outcomes(
                [waiting.prompt for waiting in batch],
                [waiting.overrides for waiting in batch],
                batch_size=len(batch),
            )
        )
