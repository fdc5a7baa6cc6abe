"""Decoding wherever the models are: a target in this process batches here, an engine's there."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from alignbeam.decoding.apart import ApartEngine
from alignbeam.decoding.beam import Request
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.engine import Engine
from alignbeam.decoding.steer import Steering
from alignbeam.engines.role import RemoteRole
from alignbeam.engines.roles import AnyRole


def engine_of(
    target: AnyRole,
    steering: Steering | None,
    clock: Clock,
    *,
    on_failure: Callable[[Exception, int], object] = lambda error, count: None,
    held: Callable[[Request], bool] = lambda request: False,
    wake: Callable[[], object] = lambda: None,
) -> Engine | ApartEngine:
    """Return what decodes for this target; see both classes for the arguments."""
    if isinstance(target, RemoteRole):
        return ApartEngine(target, steering, held, wake)
    return Engine(target, steering, clock, on_failure)


def decode(
    target: AnyRole,
    steering: Steering | None,
    requests: Sequence[Request],
    clock: Clock,
    should_cancel: Callable[[], bool] | None = None,
    between: Callable[[], object] = lambda: None,
) -> None:
    """Decode exactly these requests together; results and errors stay in the requests.

    ``between`` is called after each step of a target in this process.

    Raises
    ------
    Cancelled
        ``should_cancel``, asked between steps, said so.
    """
    if requests:
        engine = engine_of(target, steering, clock)
        engine.add(requests)
        engine.run(should_cancel, between)
