"""The scheduler: joining, leaving, giving up, failing, and always the answers of one alone."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
import torch
from tiny_models import byte_level_tokenizer, length_scorer, random_pair, random_role

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import GateConfig
from alignbeam.decoding.batch import Batch
from alignbeam.decoding.clock import Clock
from alignbeam.decoding.decode import decode
from alignbeam.decoding.engine import Engine
from alignbeam.errors import (
    Cancelled,
    ConfigError,
    DecodingFailed,
    JudgeUnavailable,
    OutOfMemory,
    PromptError,
)
from alignbeam.judge import CallableJudge
from alignbeam.models.rows import Rows
from alignbeam.result import Verdict
from alignbeam.server.job import Job
from alignbeam.server.problems import Draining, Overloaded, TooLarge
from alignbeam.server.scheduler import Scheduler

PROMPTS = [f"{word} {'and so on ' * (n % 4)}" for n, word in enumerate("abcdefghijkl")]
WAIT_S = 120


def judged(scorer=None):
    scorer = scorer or (lambda messages, text: length_scorer(messages[-1]["content"], text))
    return CallableJudge(scorer, "test")


@pytest.fixture(scope="module")
def pair():
    return random_pair()


@pytest.fixture(scope="module")
def beam(pair):
    config = BeamConfig(mix_steps=4, beams=3, max_new_tokens=24)
    return AlignBeam(*pair, judged(), config)


@pytest.fixture
def running(beam):
    """Make schedulers that end with the test."""
    made = []

    def make(beam=beam, **settings):
        scheduler = Scheduler(beam, **settings)
        made.append(scheduler)
        return scheduler

    yield make
    for scheduler in made:
        scheduler.stop()


def texts(tickets):
    return [ticket.future.result(WAIT_S).result.text for ticket in tickets]


def test_verdict_on_a_beginning_is_none_on_what_follows(beam):
    request = beam.prepare("Hello!")
    engine = Engine(beam.target, beam.steering, Clock([]))
    engine.add([request])
    job = Job(request, "", "chunked", lambda text: None, Future(), 4)
    job.to_judge()
    job.verdicts.update({one.index: Verdict(1.0) for one in request.beams})
    assert all(candidate.passes(1.0) for candidate in job.candidates())
    engine.step()
    job.to_judge()
    assert {candidate.failure for candidate in job.candidates()} == {"not-judged"}


@pytest.mark.parametrize(
    "architecture", ["llama", "gpt2", "mistral", "gemma3_text", "bloom", "falcon", "mpt", "mamba"]
)
@pytest.mark.parametrize("order", [1, -1])
def test_rows_join_equals_rows_that_were_prefilled_together(architecture, order):
    role = random_role("target", architecture)
    prompts = [[5, 6, 7], [9, 10, 11, 12, 13, 14], [3, 4]][::order]
    grown = Rows(role, prompts[:2])
    grown.extend([[21], [22]])
    grown.extend([[23, 24], []], [1, 0])
    grown.select([1, 0, 1])
    late = Rows(role, prompts[2:])
    grown.join(late)
    for _ in range(3):
        grown.extend([[30 + i] for i in range(4)])
    together = [role.forward_alone(ids) for ids in grown.ids]
    assert len(grown.ids) == 4
    torch.testing.assert_close(grown.logits, torch.cat(together), rtol=1e-4, atol=1e-4)


def test_rows_join_forgets_columns_that_nobody_holds():
    role = random_role("target", "llama")
    rows = Rows(role, [list(range(3, 60)), [5, 6]])
    rows.select([1])
    rows.join(Rows(role, [[7, 8, 9]]))
    assert rows._mask.shape[1] == 3
    rows.extend([[4], [4]])
    torch.testing.assert_close(
        rows.logits,
        torch.cat([role.forward_alone(ids) for ids in rows.ids]),
        rtol=1e-4,
        atol=1e-4,
    )


def test_batch_resume_goes_on_where_a_batch_was_left(beam):
    models = beam.target, beam.steering
    whole = [beam.prepare(p) for p in PROMPTS[:3]]
    decode(*models, whole, Clock([]))
    for steps in (0, 2, 9):
        parted = [beam.prepare(p) for p in PROMPTS[:3]]
        batch = Batch.prime(*models, parted, Clock([]))
        for _ in range(steps):
            batch.step()
        left = [r for r in parted if any(b.live for b in r.beams)]
        batch = Batch.resume(*models, left, Clock([]))
        while batch.live():
            batch.step()
        for one, other in zip(whole, parted, strict=True):
            assert [b.token_ids for b in one.beams] == [b.token_ids for b in other.beams]


def test_scheduler_answers_what_each_request_gets_alone(beam, running):
    overrides = [
        {"beams": 1 + n % 4, "mix_steps": n % 6, "alpha": 0.1 * (n % 7), "max_new_tokens": 8 + n}
        for n in range(len(PROMPTS))
    ]
    alone = [beam.generate(p, **o) for p, o in zip(PROMPTS, overrides, strict=True)]
    scheduler = running(max_batch_cells=1500)
    tickets = [scheduler.submit(p, o) for p, o in zip(PROMPTS, overrides, strict=True)]
    for ticket, want in zip(tickets, alone, strict=True):
        got = ticket.future.result(WAIT_S).result
        assert (got.text, got.finish_reason, got.chosen) == (
            want.text,
            want.finish_reason,
            want.chosen,
        )
        assert [c.token_ids for c in got.candidates] == [c.token_ids for c in want.candidates]


def test_scheduler_lets_requests_join_a_batch_that_runs(beam, running):
    alone = [beam.generate(p).text for p in PROMPTS]
    stepped, rows = threading.Event(), []

    class Watch:
        def on_step(self, count, mix_us):
            rows.append(count)
            stepped.set()

        def on_judged(self, judge_ms, verdicts):
            assert judge_ms > 0

        def on_recovery(self, reason):
            raise AssertionError(reason)

    scheduler = running(watcher=Watch())
    tickets = []
    for prompt in PROMPTS:
        stepped.clear()
        tickets.append(scheduler.submit(prompt, {}))
        assert stepped.wait(WAIT_S)
    assert texts(tickets) == alone
    assert max(rows) > 3


def test_scheduler_frees_the_beams_of_a_request_that_is_given_up(beam, running):
    entered, go_on = threading.Event(), threading.Event()
    rows = []

    class Watch:
        def on_step(self, count, mix_us):
            rows.append(count)
            entered.set()
            assert go_on.wait(WAIT_S)

        def on_judged(self, judge_ms, verdicts): ...

        def on_recovery(self, reason): ...

    scheduler = running(watcher=Watch())
    endless = {"max_new_tokens": 400, "beams": 4}
    given_up = scheduler.submit(PROMPTS[0], endless)
    assert entered.wait(WAIT_S)
    given_up.cancel()
    before = len(rows)
    go_on.set()
    with pytest.raises(Cancelled):
        given_up.future.result(WAIT_S)
    assert len(rows) == before  # no further step was taken for it
    assert scheduler.running == 0
    assert texts([scheduler.submit(PROMPTS[1], {})]) == [beam.generate(PROMPTS[1]).text]


def test_scheduler_gives_the_others_their_answers_when_some_are_cancelled(beam, running):
    alone = [beam.generate(p, max_new_tokens=20).text for p in PROMPTS]
    scheduler = running()
    tickets = [scheduler.submit(p, {"max_new_tokens": 20}) for p in PROMPTS]
    for ticket in tickets[::3]:
        ticket.cancel()
    kept = [i for i in range(len(tickets)) if i % 3]
    assert texts([tickets[i] for i in kept]) == [alone[i] for i in kept]


def test_scheduler_refuses_at_once_when_the_line_is_full(running, stuck, beam):
    hold, judge = stuck
    slow = AlignBeam(beam.target, beam.anchor, judge, beam.config, bridge=beam.bridge)
    scheduler = running(slow, max_batch_cells=200, max_queued=2)
    held = scheduler.submit("a", {"max_new_tokens": 20})
    waiting = []

    def ask_on():
        while len(waiting) < 50:
            waiting.append(scheduler.submit("a", {"max_new_tokens": 20, "beams": 3}))

    with pytest.raises(Overloaded):
        ask_on()
    hold.set()
    assert len(texts([held, *waiting])) == 1 + len(waiting)


@pytest.fixture
def stuck():
    """A judge that waits until it is told to speak."""
    hold = threading.Event()

    def wait(messages, text):
        hold.wait(WAIT_S)
        return 1.0

    yield hold, judged(wait)
    hold.set()


def test_scheduler_refuses_a_request_that_could_never_run(running):
    scheduler = running(max_batch_cells=100)
    with pytest.raises(TooLarge, match="exceed the 100"):
        scheduler.submit("a", {"beams": 8, "max_new_tokens": 50})


def test_scheduler_refuses_bad_requests_before_they_wait(running):
    scheduler = running()
    with pytest.raises(PromptError):
        scheduler.submit("  ", {})
    with pytest.raises(ConfigError):
        scheduler.submit("a", {"alpha": 2})
    assert scheduler.queued == 0


def test_scheduler_lets_clients_take_turns(beam, running):
    done = []
    scheduler = running(max_batch_cells=220)
    many = [scheduler.submit("a", {}, client="many") for _ in range(8)]
    one = scheduler.submit("b", {}, client="one")
    for name, ticket in [*(("many", t) for t in many), ("one", one)]:
        ticket.future.add_done_callback(lambda _, name=name: done.append(name))
    texts([*many, one])
    assert done.index("one") <= 4


def test_scheduler_fails_a_request_alone_whose_decoding_breaks(beam, running):
    """The anchor breaks whenever it sees the poisoned prompt: only that request fails."""
    alone = [beam.generate(p).text for p in PROMPTS[:4]]
    poison = beam.anchor.render("poison")
    forward = beam.anchor.forward

    def breaking(ids, mask, positions, cache):
        if any(row[-len(poison) :] == poison for row in ids.tolist()):
            raise RuntimeError("a kernel broke")
        return forward(ids, mask, positions, cache)

    scheduler = running()
    beam.anchor.forward = breaking
    try:
        good = [scheduler.submit(p, {}) for p in PROMPTS[:2]]
        bad = scheduler.submit("poison", {})
        good += [scheduler.submit(p, {}) for p in PROMPTS[2:4]]
        with pytest.raises(DecodingFailed):
            bad.future.result(WAIT_S)
        assert texts(good) == alone
    finally:
        del beam.anchor.forward


def test_scheduler_halves_the_batch_when_memory_runs_out(beam, running):
    alone = [beam.generate(p).text for p in PROMPTS]
    forward = beam.target.forward

    def scarce(ids, mask, positions, cache):
        if ids.shape[0] > 7:
            raise torch.OutOfMemoryError("no memory for so many rows")
        return forward(ids, mask, positions, cache)

    scheduler = running()
    beam.target.forward = scarce
    try:
        assert texts([scheduler.submit(p, {}) for p in PROMPTS]) == alone
        with pytest.raises(OutOfMemory):
            scheduler.submit("a", {"beams": 8}).future.result(WAIT_S)
        assert texts([scheduler.submit(PROMPTS[0], {})]) == alone[:1]
    finally:
        del beam.target.forward


def test_scheduler_releases_nothing_when_the_judge_fails_on_all(pair, running):
    def broken(messages, text):
        raise RuntimeError("judge is down")

    beam = AlignBeam(*pair, judged(broken), BeamConfig(max_new_tokens=16))
    for release in ("full", "chunked"):
        pieces = []
        scheduler = running(beam, chunk_tokens=2)
        ticket = scheduler.submit("a", {}, release=release, on_text=pieces.append)
        with pytest.raises(JudgeUnavailable):
            ticket.future.result(WAIT_S)
        assert pieces == []


def test_scheduler_fail_open_answers_and_says_so(pair, running):
    def broken(messages, text):
        raise RuntimeError("judge is down")

    beam = AlignBeam(*pair, judged(broken), BeamConfig(max_new_tokens=16))
    answer = running(beam, fail_open=True).submit("a", {}).future.result(WAIT_S)
    assert answer.fail_open
    assert answer.result.text == max(answer.result.candidates, key=lambda c: c.logprob).text
    assert answer.result.reason.startswith("fail-open")


def test_scheduler_fail_open_lets_no_unsteered_answer_pass(pair, running):
    def broken(messages, text):
        raise RuntimeError("judge is down")

    config = BeamConfig(max_new_tokens=8, unsteered=True, selection="least_steered")
    beam = AlignBeam(*pair, judged(broken), config)
    result = running(beam, fail_open=True).submit("a", {}).future.result(WAIT_S).result
    assert [c.unsteered for c in result.candidates] == [False, False, False, True]
    assert result.chosen != 3


@pytest.mark.parametrize("release", ["full", "chunked"])
def test_scheduler_answers_with_the_targets_own_as_a_batch_does(pair, running, release):
    config = BeamConfig(max_new_tokens=24, unsteered=True, selection="least_steered")
    beam = AlignBeam(*pair, judged(lambda messages, text: 1.0), config)
    scheduler = running(beam, chunk_tokens=4)
    tickets = [scheduler.submit(p, {}, release=release) for p in PROMPTS[:4]]
    wanted = [r.text for r in beam.generate_batch(PROMPTS[:4])]
    assert texts(tickets) == wanted
    assert all(t.future.result().result.chosen == 3 for t in tickets)


def test_scheduler_counts_the_row_of_the_targets_own(pair, running):
    config = BeamConfig(max_new_tokens=20, beams=2, unsteered=True)
    beam = AlignBeam(*pair, judged(), config)
    with pytest.raises(TooLarge, match="times 3 beams"):
        running(beam, max_batch_cells=60).submit("a", {})


@pytest.mark.parametrize("fail_open", [False, True])
def test_scheduler_never_shows_what_was_given_up(pair, running, fail_open):
    """The judge likes one beginning best, then breaks: only the beam of that may leave."""
    seen = []

    def verdict(messages, text):
        seen.append(text)
        if len(seen) > 3:
            raise RuntimeError("judge is down")
        return 1.5 if len(seen) == 2 else 4.0

    config = BeamConfig(max_new_tokens=40, mix_steps=4, early_every=4)
    beam = AlignBeam(*pair, judged(verdict), config)
    future = running(beam, fail_open=fail_open).submit("abc", {}).future
    if not fail_open:
        with pytest.raises(JudgeUnavailable):
            future.result(WAIT_S)
        return
    result = future.result(WAIT_S).result
    assert [c.finish_reason == "dropped" for c in result.candidates] == [True, False, True]
    assert result.chosen == 1
    assert len(seen) == 4  # the whole of what is left, and nothing else


@pytest.mark.parametrize("use", ["request", "divergence", ("request", "agreement")])
def test_scheduler_lets_go_what_a_batch_lets_go(pair, running, use):
    def verdict(messages, text):
        return Verdict(1.0, request_harm=0.0 if "a" in messages[-1]["content"] else 0.9)

    config = BeamConfig(max_new_tokens=16, mix_steps=4)
    gate = GateConfig(use=use, divergence=1.0, agreement=0.0)
    beam = AlignBeam(*pair, judged(verdict), config, gate=gate)
    wanted = beam.generate_batch(PROMPTS[:5])
    scheduler = running(beam, chunk_tokens=4)
    tickets = [
        scheduler.submit(p, {}, release="chunked" if n % 2 else "full")
        for n, p in enumerate(PROMPTS[:5])
    ]
    assert texts(tickets) == [r.text for r in wanted]
    found = [t.future.result().result for t in tickets]
    for one, other in zip(found, wanted, strict=True):
        assert [g.gate for g in one.gates] == [g.gate for g in other.gates]
        assert [g.value for g in one.gates] == pytest.approx([g.value for g in other.gates])
    assert [r.let_go for r in found] == [r.let_go for r in wanted]
    assert any(r.let_go for r in found)


def test_scheduler_steers_where_the_gates_judge_hangs_and_cancels_who_leaves(pair, running):
    free = threading.Event()

    def verdict(messages, text):
        if "can't help" in text:
            free.wait(WAIT_S)
        return 1.0

    config = BeamConfig(max_new_tokens=8, mix_steps=4)
    beam = AlignBeam(*pair, judged(verdict), config, gate=GateConfig(use="request", request=1.0))
    scheduler = running(beam)
    leaves, stays = scheduler.submit("a", {}), scheduler.submit("b", {})
    leaves.cancel()
    with pytest.raises(Cancelled):
        leaves.future.result(WAIT_S)
    free.set()
    result = stays.future.result(WAIT_S).result
    assert not result.let_go
    assert result.trace


def test_scheduler_chunked_releases_judged_pieces_that_make_the_answer(pair, running):
    seen = []

    def lenient(messages, text):
        seen.append(text)
        return 1.0

    beam = AlignBeam(*pair, judged(lenient), BeamConfig(max_new_tokens=60, mix_steps=4))
    pieces = []
    scheduler = running(beam, chunk_tokens=6)
    ticket = scheduler.submit(
        "abc", {"beams": 3, "stop": ("zzzz",)}, release="chunked", on_text=pieces.append
    )
    answer = ticket.future.result(WAIT_S)
    assert len(pieces) >= 2
    assert answer.released == "".join(pieces)
    assert answer.result.text.startswith(answer.released)
    for end in range(1, len(pieces) + 1):
        assert any(text.startswith("".join(pieces[:end])) for text in seen)


def test_scheduler_chunked_holds_back_what_may_become_a_stop_string_longer_than_the_text(
    pair, running
):
    seen, released, stop = [], [], "z" * 30

    def lenient(messages, text):
        seen.append(text)
        return 1.0

    def release(piece):
        released.append((piece, max(len(text.encode()) for text in seen)))

    beam = AlignBeam(*pair, judged(lenient), BeamConfig(max_new_tokens=60, mix_steps=4, beams=1))
    ticket = running(beam, chunk_tokens=6).submit(
        "abc", {"stop": (stop,)}, release="chunked", on_text=release
    )
    answer = ticket.future.result(WAIT_S)
    assert answer.released == "".join(piece for piece, _ in released) != ""
    assert answer.result.text.startswith(answer.released)
    told = 0
    for piece, read in released:
        told += len(piece.encode())
        assert told <= max(0, read - len(stop) + 1)


def test_scheduler_chunked_tells_the_steps_of_the_beam_that_was_released(pair, running):
    rejected = []

    def choosy(messages, text):
        if not rejected:
            rejected.append(text)
        return 5.0 if text.startswith(rejected[0]) else 1.0

    beam = AlignBeam(*pair, judged(choosy), BeamConfig(max_new_tokens=30, mix_steps=4))
    ticket = running(beam, chunk_tokens=6).submit("abc", {"beams": 2}, release="chunked")
    result = ticket.future.result(WAIT_S).result
    own = [step for step in result.trace if step.beam == result.chosen]
    assert result.chosen == 1
    assert [step["text"] for step in result.public()["steps"]] == [step.text for step in own]


def test_scheduler_chunked_ends_at_the_first_unsafe_piece(pair, running):
    def strict(messages, text):
        return 1.0 if len(text.encode()) < 40 else 5.0

    beam = AlignBeam(*pair, judged(strict), BeamConfig(max_new_tokens=400, mix_steps=3))
    pieces = []
    scheduler = running(beam, chunk_tokens=5)
    prompts = iter(PROMPTS)
    while not pieces:  # some random answers are long from the start
        ticket = scheduler.submit(next(prompts), {}, release="chunked", on_text=pieces.append)
        answer = ticket.future.result(WAIT_S)
    assert answer.result.finish_reason == "content_filter"
    assert len("".join(pieces).encode()) < 40
    assert scheduler.running == 0


def test_scheduler_stop_fails_what_is_left(beam, running):
    scheduler = running()
    tickets = [scheduler.submit(p, {"max_new_tokens": 400}) for p in PROMPTS]
    scheduler.stop()
    assert not scheduler.healthy
    with pytest.raises(Draining):
        scheduler.submit("a", {})
    for ticket in tickets:
        if not ticket.future.exception(WAIT_S):
            continue
        with pytest.raises(Cancelled):
            ticket.future.result(0)


def test_scheduler_keeps_controls_in_user_text_harmless(beam, running):
    forged = f"x{byte_level_tokenizer().eos_token}y"
    assert texts([running().submit(forged, {})]) == [beam.generate(forged).text]
