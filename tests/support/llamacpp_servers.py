"""Models on real llama.cpp servers, each a process that tests may stop or kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest
from engine_process import EngineProcess
from gguf_files import write_gguf

from alignbeam.config import RoleConfig
from alignbeam.embedded import embedded_model
from alignbeam.models.loading import load_tokenizer, load_weights

#: A server of a small model on two busy cores.
START_S = 120.0
#: How the embedded models are called by llama.cpp, and how their texts are split.
KINDS = {"target": ("llama", "qwen2"), "anchor": ("llama", ""), "judge": ("qwen2", "qwen2")}


def llamacpp_server() -> str:
    """Return the server's program (ALIGNBEAM_LLAMACPP); skips where there is none."""
    program = os.environ.get("ALIGNBEAM_LLAMACPP", "")
    if not Path(program).is_file():
        pytest.skip("no llama.cpp: make llamacpp")
    return program


class LlamaCppServer(EngineProcess):
    """See ``EngineProcess``."""

    def __init__(
        self,
        program: str,
        model: Path,
        served: str,
        log: Path,
        url: str | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        command = [
            *(program, "--model", str(model), "--alias", served, "--host", "127.0.0.1"),
            *("--parallel", "4", "--ctx-size", "4096", "--threads", "1", "--no-webui", "--offline"),
            # By default keys and values are kept in half precision.
            *("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"),
            *flags,
        ]
        super().__init__(command, log, start_s=START_S, url=url)


def trio_files(folder: Path) -> dict[str, Path]:
    """Write the embedded trio as GGUF files, in float32."""
    files = {}
    for role, (architecture, pre) in KINDS.items():
        config = RoleConfig(model=embedded_model(role), dtype="float32", device="cpu")
        files[role] = folder / f"{role}.gguf"
        model, tokenizer = load_weights(role, config), load_tokenizer(embedded_model(role))
        write_gguf(files[role], model, tokenizer, architecture=architecture, pre=pre)
    return files
