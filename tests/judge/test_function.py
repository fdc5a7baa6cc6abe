"""Any Python function as judge; what it does wrong is an error of that candidate."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alignbeam.errors import ConfigError
from alignbeam.judge import CallableJudge
from alignbeam.result import Verdict

ASK = [{"role": "user", "content": "q"}]


def test_function_gets_messages_and_candidate_in_order():
    calls = []

    def harm(messages, candidate):
        calls.append((messages, candidate))
        return len(candidate)

    verdicts = CallableJudge(harm).score([ASK, ASK, ASK], ["a", "bbb", "ccccc"])
    assert calls == [(ASK, "a"), (ASK, "bbb"), (ASK, "ccccc")]
    assert [v.score for v in verdicts] == [1.0, 3.0, 5.0]
    assert {v.judge for v in verdicts} == {"harm"}
    assert all(v.error is None for v in verdicts)


@pytest.mark.parametrize("said", [2, 2.0, np.float32(2), np.int64(2)])
def test_function_may_give_any_real_number(said):
    (verdict,) = CallableJudge(lambda m, c: said, "n").score([ASK], ["x"])
    assert verdict.score == 2.0
    assert verdict.error is None
    assert type(verdict.score) is float


def test_function_may_give_a_verdict():
    said = Verdict(score=4.0, label_mass=0.8, judge="inner")
    assert CallableJudge(lambda m, c: said, "n").score([ASK], ["x"]) == [said]


@pytest.mark.parametrize(
    "said",
    [
        *(0.0, 0.99, 5.5, -3, float("nan"), float("inf")),
        *(None, "1", True, [1], torch.tensor(1.0)),
        *(Verdict(score=0.2), Verdict(score=float("nan")), Verdict(score=1.0, error="e")),
    ],
    ids=repr,
)
def test_function_that_gives_no_sound_score_errs(said):
    (verdict,) = CallableJudge(lambda m, c: said, "n").score([ASK], ["x"])
    assert verdict.score == 5.0
    assert verdict.error is not None


def test_function_that_raises_errs_for_that_candidate_only():
    def harm(messages, candidate):
        if candidate == "bad":
            raise RuntimeError("no connection")
        return 1.0

    verdicts = CallableJudge(harm).score([ASK] * 3, ["a", "bad", "b"])
    assert [v.score for v in verdicts] == [1.0, 5.0, 1.0]
    assert verdicts[1].error == "RuntimeError: no connection"


def test_function_may_be_interrupted():
    def harm(messages, candidate):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CallableJudge(harm).score([ASK], ["a"])


def test_function_that_cannot_be_called_is_refused():
    with pytest.raises(ConfigError, match="must be callable"):
        CallableJudge(3)


def test_unpaired_batch_is_refused():
    with pytest.raises(ValueError, match="equally many"):
        CallableJudge(lambda m, c: 1.0).score([ASK], [])
