"""Memory of the CUDA kernel: what a graph may refer to is never let go."""

from __future__ import annotations

import pytest
import torch

from alignbeam.ops import native


def test_arena_that_another_thread_made_meanwhile_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    arenas: dict[int, object] = {}
    theirs = object()

    class Arena:
        def __init__(self, index: int) -> None:
            arenas[index] = theirs  # while this one waits for its zeros

    real = torch.zeros
    monkeypatch.setattr(native, "_arenas", arenas)
    monkeypatch.setattr(native, "_Arena", Arena)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch, "zeros", lambda n, dtype, device: real(n, dtype=dtype))
    assert native._workspace(0, 8).numel() == 8
    assert arenas == {0: theirs}
