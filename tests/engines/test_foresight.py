"""What engines are asked beforehand: fewer trips where it comes so, and no other answer ever."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from tiny_models import random_pair, random_role

from alignbeam import AlignBeam, BeamConfig
from alignbeam.decoding.foresight import Foresight, Rate
from alignbeam.decoding.remote import Wanted
from alignbeam.engines.dialect import GREEDY, Numbers
from alignbeam.engines.pace import Pace
from alignbeam.engines.rows import RemoteRows
from alignbeam.engines.vllm import MAX_NAMES, Vllm
from alignbeam.judge import CallableJudge

CONFIG = BeamConfig(mix_steps=6, beams=3, top_b=20, max_new_tokens=14)
QUESTIONS = ("Hello!", "What is 2+2?", "Wie geht's?")


@pytest.fixture(scope="module")
def pair():
    return random_pair()


def asked_by(served, pair, **settings):
    """The tokens of each question's candidates, and what the two engines were asked for them."""
    (target, asks_target), (anchor, asks_anchor) = (served(role) for role in pair)
    beam = AlignBeam(asks_target, asks_anchor, CallableJudge(lambda *_: 1.0), CONFIG)
    begin = len(target.asked), len(anchor.asked)
    results = beam.generate_batch(QUESTIONS, settings)
    found = [[c.token_ids for c in r.candidates] for r in results]
    return found, target.asked[begin[0] :], anchor.asked[begin[1] :]


def here(pair, **settings):
    beam = AlignBeam(*pair, CallableJudge(lambda *_: 1.0), CONFIG)
    return [[c.token_ids for c in r.candidates] for r in beam.generate_batch(QUESTIONS, settings)]


def test_steps_that_go_as_the_anchor_would_share_their_trips(served, pair):
    found, target, anchor = asked_by(served, pair, alpha=1.0)
    assert found == here(pair, alpha=1.0)
    # One request for a step of all beams would be mix_steps for each question.
    assert len(anchor) < CONFIG.mix_steps * len(QUESTIONS)
    assert max(len(body["prompt"]) for body in target if not body.get("stream")) > CONFIG.beams
    streams = [body for body in target if body.get("stream")]
    assert len(streams) < 2 * CONFIG.beams * len(QUESTIONS)


def test_steps_that_go_another_way_ask_anew_and_drop_what_was_begun(served, pair):
    found, target, _ = asked_by(served, pair, alpha=0.0)
    assert found == here(pair, alpha=0.0)
    streams = [body for body in target if body.get("stream")]
    assert len(streams) > CONFIG.beams * len(QUESTIONS)


def test_reach_follows_what_became_of_guesses():
    rate = Rate()
    assert rate.reach(0.25) > BeamConfig().mix_steps

    def see(true, times):
        for _ in range(times):
            rate.saw(true)
        return rate.reach(0.25)

    assert see(False, 200) == 0
    assert 0 < see(True, 50) < 4
    assert see(True, 1000) > 100


def test_a_busy_engine_is_asked_in_vain_less_often():
    foresight = Foresight()
    reaches = [foresight.reach(slowness) for slowness in (1.0, 1.5, 2.0, 3.0, 4.0, 100.0)]
    assert reaches == sorted(reaches, reverse=True)
    assert reaches[-2:] == [0, 0]


def busy(role):
    """Have an engine's completions seem to take longer than they did."""
    role.pace.saw(100, 1.0)
    for _ in range(30):
        role.pace.saw(100, 9.0)


def asked_while_busy(served, pair, **settings):
    """As ``asked_by``, of a busy target that was asked one question; what it was asked."""
    (target, asks_target), (_, asks_anchor) = (served(role) for role in pair)
    busy(asks_target)
    beam = AlignBeam(asks_target, asks_anchor, CallableJudge(lambda *_: 1.0), CONFIG)
    begin = len(target.asked)
    result = beam.generate(QUESTIONS[0], **settings)
    return [c.token_ids for c in result.candidates], target.asked[begin:]


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_target_that_is_busy_is_asked_no_more_than_it_must_and_answers_the_same(
    served, pair, alpha
):
    found, bodies = asked_while_busy(served, pair, alpha=alpha)
    assert found == here(pair, alpha=alpha)[0]
    streams = [body for body in bodies if body.get("stream")]
    assert 0 < len(streams) <= CONFIG.beams
    assert max(len(body["prompt"]) for body in bodies if not body.get("stream")) <= CONFIG.beams


def test_busy_target_tells_further_steps_along_its_own_path(served, monkeypatch):
    twins = [random_role(name, "llama", padding=5) for name in ("target", "anchor")]

    def questions():
        found, bodies = asked_while_busy(served, twins)
        assert found == here(twins)[0]
        assert all(len(body.get("logprob_token_ids", ())) <= MAX_NAMES for body in bodies)
        return sum(len(body["prompt"]) for body in bodies if not body.get("stream"))

    monkeypatch.setattr(Vllm, "names_along", 4 * CONFIG.top_b)
    few = questions()
    monkeypatch.setattr(Vllm, "names_along", MAX_NAMES)  # no further than that many names reach
    fewer = questions()
    monkeypatch.setattr(Vllm, "names_along", CONFIG.top_b - 1)  # too few for another step
    many = questions()
    # The first step's question, and then one for each step of each beam.
    assert many == 1 + CONFIG.beams * (CONFIG.mix_steps - 1)
    assert few <= 1 + CONFIG.beams * 2
    assert fewer <= few < many


def test_steps_that_the_target_takes_its_own_way_are_not_asked_about_along_it():
    foresight, names = Foresight(), [[n] for n in range(6)]
    target = SimpleNamespace(names_along=3)

    def asked(further):
        return foresight._questions(target, 7, names, tuple(range(5)), further)

    (one,) = asked(0)
    assert one == Wanted(7, (), (0, 1, 2), ahead=2)
    first, second = asked(1)
    assert first == Wanted(7, (), [0])
    assert second == Wanted(7, (0,), (1, 2, 3), ahead=2)
    assert [w.path for w in asked(9)] == [tuple(range(n)) for n in range(6)]
    assert {w.ahead for w in asked(9)} == {0}
    for _ in range(200):
        foresight.shared.saw(False)
    assert asked(0) == [Wanted(7, (), [0])]


def test_pace_is_learnt_from_completions(served, pair):
    _, asks_target = served(pair[0])
    beam = AlignBeam(asks_target, pair[1], CallableJudge(lambda *_: 1.0), CONFIG)
    beam.generate(QUESTIONS[0], max_new_tokens=60)
    assert asks_target.pace._late > 0


def test_slowness_is_of_late_and_against_the_best():
    pace = Pace()
    assert pace.slowness == 1
    for tokens, seconds in ((0, 1.0), (-1, 1.0), (5, 0.0)):
        pace.saw(tokens, seconds)
    assert pace.slowness == 1
    pace.saw(100, 1.0)
    for _ in range(40):
        pace.saw(100, 4.0)
    assert pace.slowness == pytest.approx(4, rel=0.05)
    for _ in range(40):
        pace.saw(100, 1.0)
    assert pace.slowness == pytest.approx(1, rel=0.05)
    # What was once at best is forgotten where it is never met again.
    for _ in range(8000):
        pace.saw(100, 2.0)
    assert pace.slowness == pytest.approx(1, rel=0.05)


class Stream:
    def __init__(self, ids, *_):
        self.ids, self.closed = list(ids), False

    def close(self):
        self.closed = True


class Role:
    name = "target"
    stream = Stream


def known_after(rows, row=0):
    return {path: numbers.chosen for path, numbers in rows.known(row).items()}


@pytest.fixture
def rows():
    rows = RemoteRows(Role, [[1, 2]])
    for path, chosen in {(): 3, (3,): 4, (3, 4): 5, (9,): 8}.items():
        rows.known(0)[path] = Numbers(chosen)
    return rows


def test_row_that_grows_keeps_what_was_said_of_its_way(rows):
    rows.extend([[3]])
    assert known_after(rows) == {(): 4, (4,): 5}
    rows.replace_suffixes([2], [[3, 4]])
    assert known_after(rows) == {(): 5}
    rows.replace_suffixes([2], [[7]])
    assert known_after(rows) == {}
    assert rows.ids == [[1, 2, 7]]


def test_row_that_stays_keeps_all_and_forks_do_not_share(rows):
    rows.replace_suffixes([1], [[2]])
    rows.select([0, 0])
    rows.extend([[9], []])
    assert known_after(rows, 0) == {(): 8}
    assert known_after(rows, 1) == {(): 3, (3,): 4, (3, 4): 5, (9,): 8}


def test_completion_begun_beforehand_is_read_where_the_row_comes_there(rows):
    rows.begin(0, (3, 4), 5, GREEDY, 0)
    rows.extend([[3]])
    rows.extend([[4]])
    stream = rows.complete(0, 5, GREEDY, 0)
    assert stream.ids == [1, 2, 3, 4]
    rows.extend([[5]])
    assert rows.complete(0, 4, GREEDY, 0) is stream
    assert not stream.closed


@pytest.mark.parametrize("way", [[[3]], [[3, 5]], [[9]]])
def test_completion_begun_beforehand_is_dropped_where_the_row_goes_elsewhere(rows, way):
    rows.begin(0, (3, 4), 5, GREEDY, 0)
    (begun,) = [row.stream for row in rows._rows]
    rows.extend(way)
    stream = rows.complete(0, 5, GREEDY, 0)
    assert stream.ids == [1, 2, *way[0]]
    assert begun.closed
    rows.select([])
    assert stream.closed
