"""The embedded trio on real llama.cpp servers: the numbers and tokens of this process.

The files hold float32, as this process does; what differs is the order of sums.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from engine_faults import (
    NONCE_KEY,
    killed_engine_fails_all_its_answers,
    killed_engine_withholds_and_a_new_one_is_taken,
    said,
    stalled_engine_is_too_slow_and_wakes_up,
    until,
)
from engine_process import start_again
from gguf_files import write_gguf
from llamacpp_servers import KINDS, LlamaCppServer, llamacpp_server, trio_files
from mixed_prompts import mixed_prompts, mixed_settings

from alignbeam import AlignBeam, BeamConfig
from alignbeam.cache_folder import cache_folder
from alignbeam.config import JudgeConfig, RoleConfig
from alignbeam.embedded import embedded_model
from alignbeam.engines.dialect import Query
from alignbeam.engines.role import RemoteRole
from alignbeam.errors import EngineShortfall, EngineUnavailable
from alignbeam.models.loading import load_tokenizer, load_weights
from alignbeam.models.role import Role

CONFIG = BeamConfig(max_new_tokens=48)
PROMPTS = mixed_prompts()
EACH = [{**settings, "max_new_tokens": 48} for settings in mixed_settings()]
QUESTIONS = ("What is the capital of France?", "Write a haiku about rain.", "What is 17 + 25?")
#: How far a log-probability may be from this process's, nats.
CLOSE = 2e-4


def real_file(name):
    """A published GGUF file; skips where there is none."""
    named = os.environ.get("ALIGNBEAM_REAL_MODELS")
    folder = Path(named) if named else cache_folder("real_models")
    for path in sorted(folder.glob("*.gguf")) if folder is not None else ():
        if path.stem.lower().replace(".", "_") == name:
            return path
    pytest.skip(f"no real weights: python examples/real_models/fetch.py {name}")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    llamacpp_server()
    return trio_files(tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def started(files, tmp_path_factory):
    log = tmp_path_factory.mktemp("llamacpp")
    servers = {
        role: LlamaCppServer(llamacpp_server(), file, role, log / role)
        for role, file in files.items()
    }
    try:
        for server in servers.values():
            server.wait()
        yield servers
    finally:
        for server in servers.values():
            server.kill()


@pytest.fixture
def servers(started):
    """The three, started again where an earlier test broke them."""
    start_again(started.values())
    return started


def config_of(servers, role, kind=RoleConfig, **settings):
    url, tokenizer = servers[role].url, embedded_model(role)
    return kind(url=url, tokenizer=tokenizer, read_s=60.0, **settings)


def judge_config(servers):
    return config_of(servers, "judge", JudgeConfig, nonce_key=NONCE_KEY)


def over(servers, read_s=60.0):
    return AlignBeam.from_pretrained(
        config_of(servers, "target").replace(read_s=read_s),
        config_of(servers, "anchor"),
        judge_config(servers),
        CONFIG,
    )


@pytest.fixture(scope="module")
def remote(started):
    return over(started)


def rows_of(beam, role):
    """Prompts as the role reads them, each with some tokens of an answer."""
    prepared = [beam.prepare(prompt) for prompt in PROMPTS[:12]]
    ids = [r.target_ids if role == "target" else r.anchor_ids for r in prepared]
    return [[*row, *range(40, 40 + n % 4)] for n, row in enumerate(ids)]


@pytest.mark.parametrize("name", ["target", "anchor"])
def test_named_and_best_log_probabilities_are_those_of_this_process(trio, servers, name):
    here = getattr(trio, name)
    role = RemoteRole.from_config(name, config_of(servers, name), 41 if name == "anchor" else 0)
    rows = rows_of(trio, name)
    logprobs = here.next_token_logits(rows).double().log_softmax(-1)
    # Every id of the vocabulary in turn: likely ones, impossible ones, bytes and padding.
    names = [list(range(n, here.width, len(rows) * 3))[:128] for n in range(len(rows))]
    for row, wanted, found in zip(logprobs, names, role.named_logprobs(rows, names), strict=True):
        assert found == pytest.approx(row[wanted].tolist(), abs=CLOSE)
    best = role.ask([Query(tuple(row), best=41) for row in rows])
    for row, numbers in zip(logprobs, best, strict=True):
        assert numbers.chosen == int(row.argmax())
        pairs = numbers.best(41)
        assert [v for _, v in pairs] == pytest.approx(row.topk(41).values.tolist(), abs=CLOSE)
        assert all(abs(v - float(row[i])) < CLOSE for i, v in pairs)


def test_numbers_are_before_any_sampler_whatever_is_sampled(servers):
    """What named ids are asked for with does not come back: bias, cut, or another token."""
    role = RemoteRole.from_config("target", config_of(servers, "target"))
    ids = tuple(role.tokenizer.encode("Hello, how are", add_special_tokens=False))
    plain, barred, only = role.ask(
        [
            Query(ids, best=16),
            Query(ids, best=16, forbidden=(7, 8, 9)),
            Query(ids, best=16, only=300),
        ]
    )
    assert only.chosen == 300
    for i, value in plain.best(16):
        assert barred.logprobs[i] == pytest.approx(value, abs=CLOSE)
        assert only.logprobs[i] == pytest.approx(value, abs=CLOSE)
    (again,) = role.ask([Query(ids, names=(300,))])
    assert again.logprobs[300] == pytest.approx(only.logprobs[300], abs=CLOSE)


def test_tokens_of_half_characters_are_neither_lost_nor_skipped(trio, servers):
    """The server leaves them out of its streams and of its log-probabilities."""
    role = RemoteRole.from_config("anchor", config_of(servers, "anchor"), 41)
    byte = next(i for i in range(role.width) if role.bytes_of(i) == b"\xf0")
    ids = role.tokenizer.encode("Hello", add_special_tokens=False)
    logprobs = trio.anchor.next_token_logits([ids]).double().log_softmax(-1)[0]
    ((found, other),) = role.named_logprobs([ids], [[byte, 40]])
    assert [found, other] == pytest.approx([float(logprobs[i]) for i in (byte, 40)], abs=CLOSE)
    smile = [i for b in "🙂".encode() for i in range(role.width) if role.bytes_of(i) == bytes([b])]
    prompt = [*ids, *smile[:2]]
    want = trio.anchor.next_token_logits([prompt]).argmax(-1).tolist()
    (numbers,) = role.ask([Query(tuple(prompt), best=5, ahead=3)])
    assert [numbers.chosen] == want


def test_fifty_mixed_requests_give_the_tokens_of_this_process(trio, remote):
    here = [said(r) for r in trio.outcomes(PROMPTS, EACH)]
    there = [said(r) for r in remote.outcomes(PROMPTS, EACH)]
    assert len(here) == 50
    assert there == here


@pytest.mark.parametrize("roles", [("anchor",), ("target",), ("judge",)])
def test_one_role_on_llamacpp_gives_the_tokens_of_this_process(trio, servers, roles):
    parts = {
        "target": lambda: config_of(servers, "target"),
        "anchor": lambda: config_of(servers, "anchor"),
        "judge": lambda: judge_config(servers),
    }
    mixed = AlignBeam.from_pretrained(
        *(parts[r]() if r in roles else None for r in ("target", "anchor", "judge")), CONFIG
    )
    want = [said(r) for r in trio.outcomes(PROMPTS[:10], EACH[:10])]
    assert [said(r) for r in mixed.outcomes(PROMPTS[:10], EACH[:10])] == want


def test_real_model_has_the_numbers_of_this_process(tmp_path):
    """What it read of a published file, in float32: there, blocks meet rounded numbers."""
    program, file = llamacpp_server(), real_file("smollm2-135m-instruct")
    here = Role.from_config("target", RoleConfig(model=str(file), dtype="float32", device="cpu"))
    write_gguf(tmp_path / "smollm2.gguf", here.model, here.tokenizer, pre="smollm")
    server = LlamaCppServer(program, tmp_path / "smollm2.gguf", "smollm2", tmp_path / "log")
    try:
        server.wait()
        config = RoleConfig(url=server.url, tokenizer=str(file), read_s=60.0)
        role = RemoteRole.from_config("target", config)
        rows = [here.render(question) for question in QUESTIONS]
        logprobs = here.next_token_logits(rows).double().log_softmax(-1)
        names = [list(range(n, here.width, here.width // 100)) for n in range(len(rows))]
        found = role.named_logprobs(rows, names)
    finally:
        server.kill()
    for row, wanted, values in zip(logprobs, names, found, strict=True):
        assert values == pytest.approx(row[wanted].tolist(), abs=1e-3)


def test_verdicts_are_those_of_this_process(trio, remote):
    here, there = (
        [c.score for r in beam.outcomes(PROMPTS[:10], EACH[:10]) for c in r.candidates]
        for beam in (trio, remote)
    )
    assert there == pytest.approx(here, abs=1e-3)


def test_draws_repeat_with_a_seed(remote):
    sampled = {"temperature": 1.0, "max_new_tokens": 24}
    one, again, other = (
        said(remote.generate("Hello!", seed=seed, **sampled))[1] for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other


@pytest.mark.parametrize("role", ["target", "anchor", "judge"])
def test_killed_engine_withholds_the_answer_and_a_new_one_is_taken(servers, role):
    killed_engine_withholds_and_a_new_one_is_taken(over(servers), servers, role)


def test_engine_killed_in_the_middle_of_its_answers_fails_them_all(servers):
    killed_engine_fails_all_its_answers(over(servers), servers["target"].kill)


def test_stalled_engine_is_too_slow_and_wakes_up(servers):
    stalled_engine_is_too_slow_and_wakes_up(config_of(servers, "target"), servers)


def another_model(files, folder):
    return files["anchor"], ()


def other_weights(files, folder):
    """The target after more training, say: the same shape and tokenizer."""
    config = RoleConfig(model=embedded_model("target"), dtype="float32", device="cpu")
    model, tokenizer = load_weights("target", config), load_tokenizer(embedded_model("target"))
    model.model.norm.weight.data *= 2
    architecture, pre = KINDS["target"]
    write_gguf(folder / "other.gguf", model, tokenizer, architecture=architecture, pre=pre)
    return folder / "other.gguf", ()


def fewer_positions(files, folder):
    return files["target"], ("--ctx-size", "256", "--parallel", "1")


@pytest.mark.parametrize(
    ("rollout", "why"),
    [
        (another_model, "has another tokenizer"),
        (other_weights, "serves another model than at the start"),
        (fewer_positions, "now has 256 positions"),
    ],
)
def test_engine_replaced_by_another_is_refused_at_its_first_answer(
    servers, files, tmp_path, rollout, why
):
    """Under the same name and address, sooner than anybody looks: no answer says who gave it."""
    beam = over(servers)
    beam.generate("Hello!", max_new_tokens=12)
    model, flags = rollout(files, tmp_path)
    servers["target"].kill()
    url = servers["target"].url
    other = LlamaCppServer(llamacpp_server(), model, "target", tmp_path / "log", url, flags)
    try:
        other.wait()
        with pytest.raises(EngineUnavailable):
            beam.generate("Hello!", max_new_tokens=12)
        until(lambda: beam.target.watch.why is not None and why in beam.target.watch.why)
        with pytest.raises(EngineUnavailable, match=why):
            beam.generate("Hello!", max_new_tokens=12)
    finally:
        other.kill()


def test_engine_started_again_with_the_same_model_is_taken_at_once(servers):
    beam = over(servers)
    want = said(beam.generate("Hello!", max_new_tokens=12))
    servers["target"].kill()
    servers["target"].start()
    servers["target"].wait()
    until(lambda: beam.target.watch.why is None)
    assert said(beam.generate("Hello!", max_new_tokens=12)) == want


def test_tokenizer_of_another_model_is_refused_at_the_start(servers):
    url = servers["target"].url
    with pytest.raises(EngineShortfall, match="another tokenizer"):
        RemoteRole.from_config("target", RoleConfig(url=url, tokenizer=embedded_model("judge")))


def test_file_that_the_server_was_started_with_names_the_tokenizer(servers, files):
    """Without a setting: server and this process see the same files."""
    role = RemoteRole.from_config("target", RoleConfig(url=servers["target"].url))
    assert role.source == str(files["target"])
