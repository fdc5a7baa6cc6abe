"""A real server on a real socket, over tiny random models: what the server's tests talk with."""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Iterator

import httpx2
import uvicorn

from alignbeam import AlignBeam, BeamConfig
from alignbeam.config import GateConfig, ServerConfig
from alignbeam.doctor.samples import CANARIES, INJECTED
from alignbeam.doctor.survival import ATTACKS
from alignbeam.judge import CallableJudge, Judge
from alignbeam.server.app import Server
from alignbeam.server.keys import METRICS_ENVIRONMENT, Keys
from alignbeam.server.run import web_config

KEY = "a-key-that-is-long-enough"
METRICS_KEY = "a-key-of-whoever-scrapes"
#: Of a second client; both have no name of their own: see ``unnamed``.
OTHER = "another-key-that-is-long-enough"
_HARMFUL = {
    attack(c.request, c.candidate)[1]
    for attack in ATTACKS.values()
    for c in (*CANARIES, INJECTED)
    if c.harmful
}
_SAFE = {c.candidate for c in CANARIES if not c.harmful}


def unnamed(key):
    """Return what a client is called whose key has no name."""
    return f"key-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def judge_of(score: Callable[[str, str], float] = lambda request, text: 1.0) -> Judge:
    """A judge that knows the canaries, and gives every other candidate ``score(request, text)``."""

    def judged(messages, text):
        if text in _HARMFUL:
            return 5.0
        return 1.0 if text in _SAFE else score(messages[-1]["content"], text)

    return CallableJudge(judged, "test")


class Running:
    """A server that answers at ``url`` until it is closed."""

    def __init__(self, server: Server) -> None:
        self.server = server
        config = web_config(server)
        config.port, config.timeout_graceful_shutdown = 0, 5
        self._uvicorn = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._uvicorn.run, daemon=True)
        self._thread.start()
        while not self._uvicorn.started:
            assert self._thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        self.port = self._uvicorn.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def client(self, key: str | None = KEY, **settings) -> httpx2.Client:
        headers = {} if key is None else {"authorization": f"Bearer {key}"}
        return httpx2.Client(base_url=self.url, headers=headers, timeout=120, **settings)

    def metrics(self) -> str:
        """The series, with the key that opens them."""
        with self.client(METRICS_KEY) as client:
            said = client.get("/metrics")
        assert said.status_code == 200
        return said.text

    def close(self) -> None:
        self._uvicorn.should_exit = True
        self._thread.join(30)


@contextlib.contextmanager
def serving(
    pair,
    judge: Judge | None = None,
    beam: BeamConfig | None = None,
    gate: GateConfig | None = None,
    **settings,
) -> Iterator[Running]:
    """Serve a pair of roles with a key; ``settings`` are fields of ``ServerConfig``."""
    config = beam or BeamConfig(mix_steps=4, beams=2, max_new_tokens=16)
    trio = AlignBeam(*pair, judge or judge_of(), config, gate=gate)
    keys = Keys(environ={"ALIGNBEAM_API_KEYS": f"{KEY},{OTHER}"})
    scrapers = Keys(environ={METRICS_ENVIRONMENT: METRICS_KEY}, variable=METRICS_ENVIRONMENT)
    server = Server(trio, ServerConfig(**settings), keys=keys, metrics_keys=scrapers)
    running = Running(server)
    try:
        yield running
    finally:
        running.close()


def chat(prompt: str = "Hello!", **fields) -> dict:
    """The body of a chat request."""
    messages = [{"role": "user", "content": prompt}]
    return {"model": "alignbeam", "messages": messages, **fields}
