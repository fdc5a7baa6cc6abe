"""GSM8K through ``alignbeam eval``, inspect_ai and lm-eval: the same answers, byte for byte.

Six questions here; ``python bench/bench_harnesses.py`` asks fifty, also in batches.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[2] / "bench"))
import harnesses

_REASON = "not installed: pip install -c constraints.txt '.[inspect,lm-eval]'"


@pytest.fixture(scope="module")
def asked(data_dir):
    """The suite, its questions, and what ``alignbeam eval`` answers, one request at a time."""
    suite = harnesses.suite_of(6, batch_size=1)
    return suite, harnesses.questions(suite, data_dir), harnesses.through_eval(suite, data_dir)


@pytest.mark.parametrize("name", sorted(harnesses.OTHERS))
def test_gsm8k_answers_are_the_same_bytes_as_in_alignbeam_eval(name, asked):
    pytest.importorskip(name, reason=_REASON)
    suite, samples, own = asked
    assert len(set(own)) > 1
    assert [a.encode() for a in harnesses.OTHERS[name](samples, suite)] == [a.encode() for a in own]
