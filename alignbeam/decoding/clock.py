"""Where the time goes: wall time split over named parts, nothing counted twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from alignbeam.result import Timings

Part = Literal["target", "anchor", "mix", "judge"]


class Clock:
    """Runs from its making; ``timings()`` splits what has passed.

    Parameters
    ----------
    devices : list of torch.device
        GPUs among them are waited for at the end of each part, so that a part is charged for the
        work that it started. The decoding loop reads every chosen token back anyway.
    """

    def __init__(self, devices: list[torch.device]) -> None:
        self._cuda = sorted({str(d) for d in devices if d.type == "cuda"})
        self._spent: dict[Part, float] = {"target": 0.0, "anchor": 0.0, "mix": 0.0, "judge": 0.0}
        self._part: Part | None = None
        self._start = self._since = time.perf_counter()

    @contextmanager
    def part(self, name: Part) -> Iterator[None]:
        """Charge the time inside to ``name``; a part inside a part has its time to itself."""
        outer = self._part
        self._turn_to(name)
        try:
            yield
        finally:
            self._turn_to(outer)

    def _turn_to(self, part: Part | None) -> None:
        """Charge what has passed to the part that ends here."""
        if self._part is not None:
            for device in self._cuda:
                torch.cuda.synchronize(device)
        now = time.perf_counter()
        if self._part is not None:
            self._spent[self._part] += now - self._since
        self._part, self._since = part, now

    def timings(self) -> Timings:
        """Return the split so far, milliseconds."""
        total = time.perf_counter() - self._start
        spent = {name: seconds * 1e3 for name, seconds in self._spent.items()}
        return Timings(
            target_ms=spent["target"],
            anchor_ms=spent["anchor"],
            mix_ms=spent["mix"],
            judge_ms=spent["judge"],
            other_ms=total * 1e3 - sum(spent.values()),
            total_ms=total * 1e3,
        )
