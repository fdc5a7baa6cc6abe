"""Tiny models behind engines of this process, and roles that ask them."""

from __future__ import annotations

import contextlib

import pytest
from engine_over_role import EngineOverRole
from llamacpp_over_role import LlamaCppOverRole
from sglang_over_role import SGLangOverRole
from tiny_models import random_pair, swapped_pair

from alignbeam.config import RoleConfig
from alignbeam.engines.role import RemoteRole

#: More than any test's ``top_b``, and one.
BEST = 41


@pytest.fixture(scope="session")
def served(tmp_path_factory):
    """Return a way to put a role behind an engine: the engine, and the role that asks it."""
    with contextlib.ExitStack() as stack:

        def serve(role, best=None, kind=EngineOverRole, **settings):
            engine = kind(role, **settings)
            stack.callback(engine.close)
            return engine, ask(engine, role, best)

        def ask(engine, role, best=None, **settings):
            folder = tmp_path_factory.mktemp(role.name)
            role.tokenizer.save_pretrained(folder)
            role.model.generation_config.save_pretrained(folder)
            config = RoleConfig(url=engine.url, tokenizer=str(folder), **settings)
            if best is None:
                best = BEST if role.name == "anchor" else 0
            return RemoteRole.from_config(role.name, config, best)

        serve.ask = ask
        yield serve


#: Each kind of engine, and each pair once.
PAIRS = {
    "vllm": (EngineOverRole, random_pair),
    "vllm-swapped": (EngineOverRole, swapped_pair),
    "llamacpp": (LlamaCppOverRole, random_pair),
    "llamacpp-swapped": (LlamaCppOverRole, swapped_pair),
    "sglang": (SGLangOverRole, random_pair),
    "sglang-swapped": (SGLangOverRole, swapped_pair),
}


@pytest.fixture(scope="session", params=PAIRS)
def pairs(request, served):
    """A pair in this process, and the same pair on two engines."""
    kind, make = PAIRS[request.param]
    pair = make()
    return pair, tuple(served(role, kind=kind)[1] for role in pair)
