"""An engine of its own process, which tests may stop or kill; each kind says how it is started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import httpx2


class EngineProcess:
    """One model behind one process group.

    Parameters
    ----------
    command : sequence of str
        The server, but for its port.
    log : Path
        Where its output goes.
    start_s : float
        How long ``wait`` waits.
    url : str or None
        Where it listens; None is a free port.
    environ : mapping of str to str
        What its environment has besides this one's.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        start_s: float,
        url: str | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        self._command = ["nice", "-n", "5", *command]
        self._log, self._start_s, self._environ = log, start_s, environ or {}
        self.url = url or f"http://127.0.0.1:{_free_port()}"
        self.start()

    def start(self) -> None:
        """Start the process; see ``wait``."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*self._command, "--port", self.url.rpartition(":")[2]],
                env={**os.environ, **self._environ}, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + self._start_s
        while time.monotonic() < deadline and self._process.poll() is None:
            if self.answers():
                return
            time.sleep(0.2)
        tail = self._log.read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"{' '.join(self._command[3:6])} did not start:\n{tail}")

    def answers(self) -> bool:
        """Whether it is there and can compute."""
        try:
            return httpx2.get(f"{self.url}/health", timeout=5).status_code == 200
        except httpx2.HTTPError:
            return False

    def signal(self, number: int) -> None:
        """Send a signal to the server and all its workers."""
        os.killpg(self._process.pid, number)

    def kill(self) -> None:
        """End all of it at once."""
        if self._process.poll() is None:
            self.signal(signal.SIGKILL)
        self._process.wait(30)


def start_again(servers: Iterable[EngineProcess]) -> None:
    """Start those that an earlier test broke, side by side."""
    broken = [server for server in servers if not server.answers()]
    for server in broken:
        server.kill()
        server.start()
    for server in broken:
        server.wait()


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port
