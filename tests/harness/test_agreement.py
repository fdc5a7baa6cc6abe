"""Questions through ``alignbeam eval``, inspect_ai and lm-eval: the same answers, byte for byte.

Six of the packaged set here; ``python bench/bench_harnesses.py`` asks fifty of GSM8K, also in
batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
import harnesses


@pytest.fixture(scope="module")
def asked():
    """The suite, its questions, and what ``alignbeam eval`` answers, one request at a time."""
    suite = harnesses.suite_of(6, batch_size=1, name="word-problems")
    return suite, harnesses.questions(suite), harnesses.through_eval(suite)


@pytest.mark.parametrize("name", sorted(harnesses.OTHERS))
def test_answers_are_the_same_bytes_as_in_alignbeam_eval(name, asked):
    pytest.importorskip(name, reason=f"no {name}: make test-harness")
    suite, samples, own = asked
    assert len(set(own)) > 1
    assert [a.encode() for a in harnesses.OTHERS[name](samples, suite)] == [a.encode() for a in own]
