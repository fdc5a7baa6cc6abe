"""The embedded trio on three real vLLM servers, each a process that tests may stop or kill."""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest
from engine_process import EngineProcess

from alignbeam.embedded import embedded_model

#: A server on two busy cores: imports, weights, and compiling what is compiled once.
START_S = 600.0


def vllm_python() -> str:
    """Return the interpreter that has vLLM (ALIGNBEAM_VLLM); skips where there is none."""
    python = os.environ.get("ALIGNBEAM_VLLM", "")
    if not Path(python).is_file():
        pytest.skip("no vLLM: make engines")
    return python


class VllmServer(EngineProcess):
    """See ``EngineProcess``."""

    def __init__(
        self,
        python: str,
        model: str,
        served: str,
        log: Path,
        url: str | None = None,
        flags: Sequence[str] = (),
        threads: int = 1,
    ) -> None:
        command = [
            *(python, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1"),
            *("--model", model, "--served-model-name", served, "--dtype", "float32"),
            *("--enforce-eager", "--max-logprobs", "200", "--max-num-seqs", "64"),
            # By default a worker of its own spins for a second after each step, which starves
            # the other engines on few cores, and blocks of 128 tokens hold no short prompt.
            *("--distributed-executor-backend", "uni", "--block-size", "32"),
            *flags,
        ]
        environ = {
            "OMP_NUM_THREADS": str(threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else "uni" is not heeded
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        super().__init__(command, log, start_s=START_S, url=url, environ=environ)

    def kill_core(self) -> None:
        """End what holds the weights and no more, as the kernel does when memory runs out."""
        os.kill(self._core(), signal.SIGKILL)

    def starve(self) -> None:
        """Give what holds the weights no more memory than it has."""
        resource.prlimit(self._core(), resource.RLIMIT_AS, (1, 1))

    def _core(self) -> int:
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                group = int((folder / "stat").read_text().rpartition(")")[2].split()[2])
                core = b"EngineCore" in (folder / "cmdline").read_bytes()
            except OSError:  # it has ended meanwhile
                continue
            if core and group == self._process.pid:
                return int(folder.name)
        raise RuntimeError("no engine core")


def serve_trio(python: str, folder: Path) -> dict[str, VllmServer]:
    """Start the three side by side, and wait for all."""
    servers = {
        role: VllmServer(python, embedded_model(role), role, folder / f"{role}.log")
        for role in ("target", "anchor", "judge")
    }
    for server in servers.values():
        server.wait()
    return servers
