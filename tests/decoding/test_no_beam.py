"""A steering that opens no beam fails its request, and nobody else's."""

from __future__ import annotations

import pytest

from alignbeam import AlignBeam
from alignbeam.decoding.anchor import AnchorSteer
from alignbeam.errors import DecodingFailed
from alignbeam.judge import CallableJudge
from alignbeam.server.scheduler import Scheduler

SHORT = {"max_new_tokens": 8}


@pytest.fixture
def silent(trio, monkeypatch):
    """The trio, whose steering opens nothing for requests of this text."""
    real = AnchorSteer.open

    def open_(self, target):
        openings = real(self, target)
        texts = [request.messages[-1]["content"] for request in self._requests]
        return [() if t == "silence" else o for t, o in zip(texts, openings, strict=True)]

    monkeypatch.setattr(AnchorSteer, "open", open_)
    judge = CallableJudge(lambda messages, text: 1.0, "lenient")
    return AlignBeam(trio.target, trio.anchor, judge, bridge=trio.bridge)


@pytest.mark.parametrize("unsteered", [False, True])
def test_request_without_a_beam_fails_alone(silent, unsteered):
    settings = {**SHORT, "unsteered": unsteered}
    with pytest.raises(DecodingFailed, match="opened no beam"):
        silent.generate("silence", **settings)
    scheduler = Scheduler(silent)
    try:
        tickets = [scheduler.submit(p, settings) for p in ("Hello", "silence", "2 + 2 = ?")]
        with pytest.raises(DecodingFailed, match="opened no beam"):
            tickets[1].future.result(60)
        assert all(tickets[i].future.result(60).result.text for i in (0, 2))
        assert scheduler.healthy
        assert scheduler.running == 0
    finally:
        scheduler.stop()
