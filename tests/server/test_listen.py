"""The address is taken before anything loads."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from alignbeam.errors import ConfigError
from alignbeam.server.listen import bound

HOST = "127.0.0.1"


@pytest.fixture
def taken():
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


@pytest.mark.parametrize("host", [HOST, "localhost"])
def test_port_that_is_taken_is_refused(taken, host):
    with (
        pytest.raises(ConfigError, match=rf"cannot listen on {host}, port {taken}.*--port"),
        bound(host, taken),
    ):
        pass


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_host_of_another_machine_is_refused(host):
    with pytest.raises(ConfigError, match="name another --host"), bound(host, 0):
        pass


def test_who_connects_before_the_models_are_loaded_is_turned_away():
    with bound(HOST, 0) as (taken,):
        port = taken.getsockname()[1]
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, port), timeout=5)
        taken.listen()
        socket.create_connection((HOST, port), timeout=5).close()
    with bound(HOST, port):  # let go, and free at once
        pass


def test_serve_says_that_its_port_is_taken_before_it_loads_a_model(taken):
    environ = {k: v for k, v in os.environ.items() if not k.startswith("ALIGNBEAM_SERVER")}
    asked = ["serve", "--port", str(taken), "--target", "./no-such-folder"]
    done = subprocess.run(
        [sys.executable, "-m", "alignbeam", *asked],
        env=environ, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"alignbeam: error: cannot listen on {HOST}, port {taken}")
    assert done.stderr.count("\n") == 1
