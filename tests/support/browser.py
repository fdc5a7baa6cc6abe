"""A real headless browser: as much of the WebDriver protocol as the tests need."""

from __future__ import annotations

import base64
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

WAIT_S = 120
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
TAB, RIGHT, ENTER, ESCAPE = "\ue004", "\ue014", "\ue007", "\ue00c"
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--window-size=1100,1250",
]  # fmt: skip


class Browser:
    """One session; its methods raise where the page or the driver complains."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._driver = subprocess.Popen(
            ["chromedriver", f"--port={port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._http = httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S)
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                if self._http.get("/status").json()["value"]["ready"]:
                    break
            except httpx2.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        options = {
            "binary": shutil.which("chromium"),
            "args": [*FLAGS, f"--user-data-dir={folder}"],
        }
        wanted = {"alwaysMatch": {"goog:chromeOptions": options, "goog:loggingPrefs":
                                  {"browser": "ALL"}}}  # fmt: skip
        session = self._http.post("/session", json={"capabilities": wanted}).json()["value"]
        self._base = f"/session/{session['sessionId']}"

    def _call(self, path, **body):
        said = self._http.post(self._base + path, json=body).json()["value"]
        assert not (isinstance(said, dict) and "error" in said), said
        return said

    def go(self, url):
        self._call("/url", url=url)

    def run(self, script):
        return self._call("/execute/sync", script=script, args=[])

    def find(self, selector):
        return self._call("/element", using="css selector", value=selector)[ELEMENT]

    def keys(self, text):
        """Type into whatever has the focus."""
        actions = [{"type": t, "value": c} for c in text for t in ("keyDown", "keyUp")]
        self._call("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def click(self, x, y):
        """Move to a point of the window, and click there."""
        moves = [
            {"type": "pointerMove", "duration": 50, "x": int(x), "y": int(y)},
            {"type": "pause", "duration": 200},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        ]
        self._call("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": moves}])

    def emulate(self, width, height):
        """Pretend to be a phone: headless windows are never narrower than 500 pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": True}
        self._call("/goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)

    def wait_for(self, script):
        deadline = time.monotonic() + WAIT_S
        while not self.run(f"return {script}"):
            assert time.monotonic() < deadline, script
            time.sleep(0.05)

    def complaints(self):
        entries = self._call("/se/log", type="browser")
        return [e["message"] for e in entries if e["level"] == "SEVERE" and "favicon" not in
                e["message"]]  # fmt: skip

    def screenshot(self):
        return base64.b64decode(self._http.get(self._base + "/screenshot").json()["value"])

    def close(self):
        self._http.delete(self._base)
        self._http.close()
        self._driver.terminate()
        self._driver.wait(30)


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """Open a browser, or skip the test with a reason."""
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("no chromium with chromedriver")
    browser = Browser(folder)
    try:
        yield browser
    finally:
        browser.close()
