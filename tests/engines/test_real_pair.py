"""A real pair on two vLLM servers gives the tokens of this process, ties within rounding aside.

Weights are those of ``examples/real_models``: a folder named by ALIGNBEAM_REAL_MODELS that holds
them, as files of ``fetch.py`` or converted, else the cache that ``fetch.py`` fills.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from vllm_servers import VllmServer, vllm_python

from alignbeam import AlignBeam, BeamConfig
from alignbeam.cache_folder import cache_folder
from alignbeam.config import RoleConfig
from alignbeam.decoding.next_tokens import NextTokens
from alignbeam.judge import CallableJudge
from alignbeam.models.loading import checkpoint_of

TARGET, ANCHOR = "smollm2-135m-instruct", "qwen2_5-coder-0_5b-instruct"
CONFIG = BeamConfig(mix_steps=4, beams=2, max_new_tokens=16)
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "What is 17 + 25?",
    "Wie geht es dir?",
    "Name three primary colours.",
    "How do I boil an egg?",
    "Write a Python function that adds two numbers.",
    "Translate 'good morning' into Spanish.",
    "How does a lock work?",
    "What is the opposite of cold?",
)
#: How far the two best may be apart where rounding decides between them, nats.
TIE = 1e-3


def weights(name):
    """The model's folder; skips where there is none."""
    named = os.environ.get("ALIGNBEAM_REAL_MODELS")
    folder = Path(named) if named else cache_folder("real_models")
    for path in folder.iterdir() if folder is not None and folder.is_dir() else ():
        if path.name.lower().replace(".", "_").removesuffix("_gguf") != name:
            continue
        if path.is_dir():
            return str(path)
        return str(checkpoint_of(str(path), name=name))
    pytest.skip(f"no real weights: python examples/real_models/fetch.py {name}")


@pytest.fixture(scope="module")
def folders():
    return weights(TARGET), weights(ANCHOR)


@pytest.fixture(scope="module")
def urls(folders, tmp_path_factory):
    log = tmp_path_factory.mktemp("vllm")
    servers = [
        VllmServer(vllm_python(), model, name, log / name)
        for model, name in zip(folders, ("target", "anchor"), strict=True)
    ]
    try:
        for server in servers:
            server.wait()
        yield [server.url for server in servers]
    finally:
        for server in servers:
            server.kill()


def tokens(beam):
    results = beam.generate_batch(QUESTIONS)
    return [[c.token_ids for c in result.candidates] for result in results]


def gap(beam, question, ids):
    """How far the two best tokens after these are apart here, nats; openings may not differ."""
    if not ids:
        return float("inf")
    request = beam.prepare(question)
    role = beam.target
    target = NextTokens(role, role.next_token_logits([request.target_ids + list(ids)]))
    pairs = target.top(2)[0]
    if len(ids) < CONFIG.mix_steps:
        text = b"".join(map(role.bytes_of, ids)).removeprefix(role.opening)
        said = beam.steering.retokenizer.encode(beam.anchor.opening + text)
        logits = beam.anchor.next_token_logits([request.anchor_ids + said])
        mix = beam.steering.mix
        (choice,) = mix(NextTokens(beam.anchor, logits), target, [CONFIG], halves=0, top_k=2)
        return choice.logprobs[0] - choice.logprobs[1]
    return pairs[0][1] - pairs[1][1]


def test_real_pair_on_vllm_gives_the_tokens_of_this_process(folders, urls):
    judge = CallableJudge(lambda *_: 1.0)
    here = AlignBeam.from_pretrained(
        *(RoleConfig(model=folder, dtype="float32") for folder in folders), judge, CONFIG
    )
    there = AlignBeam.from_pretrained(
        *(
            RoleConfig(url=url, tokenizer=folder, read_s=300.0)
            for url, folder in zip(urls, folders, strict=True)
        ),
        judge,
        CONFIG,
    )
    ties = []
    for question, want, found in zip(QUESTIONS, tokens(here), tokens(there), strict=True):
        assert len(found) == len(want)
        for mine, theirs in zip(want, found, strict=True):
            if mine == theirs:
                continue
            at = next(
                n for n, pair in enumerate(zip(mine, theirs, strict=False)) if len({*pair}) > 1
            )
            ties.append((question, at, gap(here, question, mine[:at])))
    assert all(apart < TIE for _, _, apart in ties), ties
    assert len(ties) <= 1, ties
