"""Models on real llama.cpp servers, each a process that tests may stop or kill."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest
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


class LlamaCppServer:
    """One model behind one process; the part of ``VllmServer`` that tests of faults use.

    Attributes
    ----------
    url : str
        Where it listens: a free port unless given.
    """

    def __init__(
        self,
        program: str,
        model: Path,
        served: str,
        log: Path,
        url: str | None = None,
        flags: Sequence[str] = (),
    ) -> None:
        self._command = [
            *("nice", "-n", "5", program, "--model", str(model), "--alias", served),
            *("--host", "127.0.0.1", "--parallel", "4", "--ctx-size", "4096"),
            *("--threads", "1", "--no-webui", "--offline"),
            # By default keys and values are kept in half precision.
            *("--cache-type-k", "f32", "--cache-type-v", "f32", "--flash-attn", "off"),
            *flags,
        ]
        self._log = log
        self.url = url or f"http://127.0.0.1:{_free_port()}"
        self.start()

    def start(self) -> None:
        """Start the process; see ``wait``."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", self.url.rpartition(":")[2]],
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.answers():
                return
            time.sleep(0.1)
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"llama.cpp did not start:\n{tail}")

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.killpg(self._process.pid, number)

    def answers(self) -> bool:
        """Whether it is there and has its model."""
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def kill(self) -> None:
        """End it at once."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self._process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def trio_files(folder: Path) -> dict[str, Path]:
    """Write the embedded trio as GGUF files, in float32."""
    files = {}
    for role, (architecture, pre) in KINDS.items():
        config = RoleConfig(model=embedded_model(role), dtype="float32", device="cpu")
        files[role] = folder / f"{role}.gguf"
        model, tokenizer = load_weights(role, config), load_tokenizer(embedded_model(role))
        write_gguf(files[role], model, tokenizer, architecture=architecture, pre=pre)
    return files
