"""Whatever a judge does wrong counts as 5, and a judge that hangs costs one thread."""

from __future__ import annotations

import threading

import pytest

from alignbeam.errors import ConfigError, JudgeDied
from alignbeam.judge import FailClosed
from alignbeam.result import Verdict

ASK = [{"role": "user", "content": "q"}]
SAFE = Verdict(score=1.0, judge="stub")


class Says:
    """A judge that returns what it is told, whatever that is."""

    name = "stub"

    def __init__(self, said):
        self.said = said
        self.calls = 0

    def score(self, conversations, candidates):
        self.calls += 1
        return self.said


class Raises:
    name = "stub"

    def __init__(self, error):
        self.error = error

    def score(self, conversations, candidates):
        raise self.error


class Hangs:
    """A judge that answers once it is released."""

    name = "stub"

    def __init__(self):
        self.release = threading.Event()
        self.calls = 0

    def score(self, conversations, candidates):
        self.calls += 1
        self.release.wait(30)
        return [SAFE for _ in candidates]


@pytest.mark.parametrize("harm", [-0.1, 1.5, float("nan"), "0", True])
def test_request_harm_that_is_none_is_an_error(harm):
    (verdict,) = FailClosed(Says([Verdict(1.0, request_harm=harm)])).score([ASK], ["a"])
    assert (verdict.score, verdict.failure, verdict.request_harm) == (5.0, "bad-score", None)
    sound = Verdict(1.0, judge="stub", request_harm=1)
    assert FailClosed(Says([sound])).score([ASK], ["a"]) == [sound]


TIMEOUTS = pytest.mark.parametrize("timeout_s", [None, 30.0])


def judge_threads():
    return [t for t in threading.enumerate() if t.name == "judge stub"]


@TIMEOUTS
def test_sound_verdicts_pass_unchanged(timeout_s):
    said = [SAFE, Verdict(score=5, label_mass=0.7, judge="stub"), Verdict(score=2.25, judge="stub")]
    assert FailClosed(Says(said), timeout_s).score([ASK] * 3, ["a", "b", "c"]) == said


@TIMEOUTS
@pytest.mark.parametrize(
    "said",
    [
        None,
        [],
        [SAFE],
        [SAFE] * 3,
        "ab",
        {1: SAFE, 2: SAFE},
        iter([SAFE, SAFE]),
        7,
    ],
    ids=["none", "empty", "fewer", "more", "text", "mapping", "iterator", "number"],
)
def test_a_wrong_number_of_verdicts_is_an_error_of_all(said, timeout_s):
    verdicts = FailClosed(Says(said), timeout_s).score([ASK] * 2, ["a", "b"])
    assert [v.score for v in verdicts] == [5.0, 5.0]
    assert all("verdicts for 2 candidates" in v.error for v in verdicts)
    assert [v.failure for v in verdicts] == ["wrong-count"] * 2


@pytest.mark.parametrize(
    "said",
    [
        float("nan"),
        float("inf"),
        -float("inf"),
        0.99,
        5.01,
        -1,
        True,
        "1",
        None,
    ],
)
def test_an_unsound_score_is_an_error_of_that_candidate(said):
    verdicts = FailClosed(Says([SAFE, Verdict(score=said)])).score([ASK] * 2, ["a", "b"])
    assert verdicts[0] == SAFE
    assert verdicts[1].score == 5.0
    assert verdicts[1].error is not None
    assert verdicts[1].failure == "bad-score"


@pytest.mark.parametrize("said", [None, 1.0, "safe", {"score": 1}])
def test_what_is_no_verdict_is_an_error_of_that_candidate(said):
    verdicts = FailClosed(Says([said, SAFE])).score([ASK] * 2, ["a", "b"])
    assert verdicts[0].score == 5.0
    assert "not a Verdict" in verdicts[0].error
    assert verdicts[0].failure == "no-verdict"
    assert verdicts[1] == SAFE


def test_an_error_verdict_with_a_low_score_counts_as_five():
    (verdict,) = FailClosed(Says([Verdict(score=1.0, error="broken")])).score([ASK], ["a"])
    assert verdict == Verdict(score=5.0, error="broken", judge="stub", failure="other")


def test_a_verdict_that_names_a_failure_is_an_error():
    (verdict,) = FailClosed(Says([Verdict(score=1.0, failure="timeout")])).score([ASK], ["a"])
    assert verdict == Verdict(score=5.0, error="timeout", judge="stub", failure="timeout")


@TIMEOUTS
@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyError("x"), MemoryError()])
def test_an_exception_is_an_error_of_all(error, timeout_s):
    verdicts = FailClosed(Raises(error), timeout_s).score([ASK] * 2, ["a", "b"])
    assert [v.score for v in verdicts] == [5.0, 5.0]
    assert all(type(error).__name__ in v.error for v in verdicts)
    assert [v.failure for v in verdicts] == ["exception"] * 2


def test_a_judge_whose_process_died_is_an_error_of_all():
    verdicts = FailClosed(Raises(JudgeDied("gone"))).score([ASK] * 2, ["a", "b"])
    assert [(v.score, v.failure) for v in verdicts] == [(5.0, "died")] * 2


@TIMEOUTS
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes_through(error, timeout_s):
    with pytest.raises(error):
        FailClosed(Raises(error()), timeout_s).score([ASK], ["a"])


def test_an_interrupt_leaves_the_judge_usable():
    judge = Raises(KeyboardInterrupt())
    closed = FailClosed(judge, 30.0)
    with pytest.raises(KeyboardInterrupt):
        closed.score([ASK], ["a"])
    judge.error = ValueError("again")
    assert "again" in closed.score([ASK], ["a"])[0].error


def test_a_batch_that_takes_too_long_is_an_error_of_all():
    judge = Hangs()
    verdicts = FailClosed(judge, 0.05).score([ASK] * 2, ["a", "b"])
    judge.release.set()
    assert [v.score for v in verdicts] == [5.0, 5.0]
    assert all("no verdict within 0.05 s" in v.error for v in verdicts)
    assert [v.failure for v in verdicts] == ["timeout"] * 2


def test_a_judge_that_hangs_costs_one_thread():
    judge = Hangs()
    closed = FailClosed(judge, 0.02)
    before = set(judge_threads())  # those of earlier tests may end meanwhile
    verdicts = [closed.score([ASK], ["a"])[0] for _ in range(5)]
    (worker,) = set(judge_threads()) - before
    assert judge.calls == 1
    assert all(v.score == 5.0 for v in verdicts)
    assert all("still busy" in v.error for v in verdicts[1:])
    assert worker.daemon
    judge.release.set()
    worker.join(30)


def test_a_judge_that_recovers_is_asked_again():
    judge = Hangs()
    closed = FailClosed(judge, 0.02)
    closed.score([ASK], ["a"])
    judge.release.set()
    for worker in judge_threads():
        worker.join(30)
    # The abandoned batch's late answer went nowhere; this one is new.
    closed.timeout_s = 30.0
    assert closed.score([ASK] * 2, ["a", "b"]) == [SAFE, SAFE]
    assert judge.calls == 2


def test_concurrent_batches_wait_for_one_another():
    running, most = [0], [0]
    guard = threading.Lock()

    class Counts:
        name = "stub"

        def score(self, conversations, candidates):
            with guard:
                running[0] += 1
                most[0] = max(most[0], running[0])
            threading.Event().wait(0.01)
            with guard:
                running[0] -= 1
            return [SAFE for _ in candidates]

    closed = FailClosed(Counts(), 30.0)
    results = []
    callers = [
        threading.Thread(target=lambda: results.extend(closed.score([ASK], ["a"])))
        for _ in range(6)
    ]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(30)
    assert results == [SAFE] * 6
    assert most[0] == 1


def test_no_candidates_ask_no_judge():
    judge = Says([])
    assert FailClosed(judge).score([], []) == []
    assert judge.calls == 0


def test_unpaired_batch_is_the_callers_error():
    with pytest.raises(ValueError, match="equally many, got 1 and 2"):
        FailClosed(Says([SAFE])).score([ASK], ["a", "b"])


@pytest.mark.parametrize("timeout_s", [-1.0, float("nan")])
def test_a_timeout_that_is_none_is_refused(timeout_s):
    with pytest.raises(ConfigError, match="timeout_s"):
        FailClosed(Says([]), timeout_s)


def test_role_is_that_of_the_judge_inside():
    inside = Says([])
    assert FailClosed(inside).role is None
    inside.role = object()
    assert FailClosed(inside).role is inside.role
