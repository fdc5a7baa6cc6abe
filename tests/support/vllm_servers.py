"""The embedded trio on three real vLLM servers, each a process that tests may stop or kill."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import httpx2
import pytest

from alignbeam.embedded import embedded_model

#: A server on two busy cores: imports, weights, and compiling what is compiled once.
START_S = 600.0


def vllm_python() -> str:
    """Return the interpreter that has vLLM (ALIGNBEAM_VLLM); skips where there is none."""
    python = os.environ.get("ALIGNBEAM_VLLM", "")
    if not Path(python).is_file():
        pytest.skip("no vLLM: make engines")
    return python


class VllmServer:
    """One model behind one process group.

    Attributes
    ----------
    url : str
        Where it listens: a free port unless given.
    """

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
        self._command = [
            *("nice", "-n", "5", python, "-m", "vllm.entrypoints.openai.api_server"),
            *("--model", model, "--served-model-name", served, "--dtype", "float32"),
            *("--enforce-eager", "--max-logprobs", "200", "--max-num-seqs", "64"),
            # By default a worker of its own spins for a second after each step, which starves
            # the other engines on few cores, and blocks of 128 tokens hold no short prompt.
            *("--distributed-executor-backend", "uni", "--block-size", "32"),
            *("--host", "127.0.0.1"),
            *flags,
        ]
        self._log, self._threads = log, threads
        self.url = url or f"http://127.0.0.1:{_free_port()}"
        self.start()

    def start(self) -> None:
        """Start the process; see ``wait``."""
        settings = {
            "OMP_NUM_THREADS": str(self._threads),
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # else "uni" is not heeded
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", self.url.rpartition(":")[2]],
                env={**os.environ, **settings}, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            if self.answers():
                return
            time.sleep(0.5)
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"vLLM did not start:\n{tail}")

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its workers."""
        os.killpg(self._process.pid, number)

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

    def answers(self) -> bool:
        """Whether it is there and can compute."""
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def kill(self) -> None:
        """End all of it at once."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self._process.wait(30)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def serve_trio(python: str, folder: Path) -> dict[str, VllmServer]:
    """Start the three side by side, and wait for all."""
    servers = {
        role: VllmServer(python, embedded_model(role), role, folder / f"{role}.log")
        for role in ("target", "anchor", "judge")
    }
    for server in servers.values():
        server.wait()
    return servers
