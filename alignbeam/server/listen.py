"""Taking the address before the models load, so that one in use is said at once."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator
from typing import Any

from alignbeam.errors import ConfigError


@contextlib.contextmanager
def bound(host: str, port: int) -> Iterator[list[socket.socket]]:
    """Bind every address of ``host``, and let go at the end.

    Nobody listens yet: who connects while the models load is turned away.

    Raises
    ------
    ConfigError
        The port is taken, or the host is none of this machine.
    """
    with contextlib.ExitStack() as held:
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
            opened = (_bind(address) for address in dict.fromkeys(found))
            sockets = [held.enter_context(one) for one in opened if one is not None]
            if not sockets:
                raise OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
        except OSError as error:
            raise cannot_listen(host, port, error) from error
        yield sockets


def cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    """Return what to say of an address that cannot be had."""
    of_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
    other = "--host" if of_host else "--port"
    why = error.strerror or error
    return ConfigError(f"cannot listen on {host}, port {port}: {why}; name another {other}")


def _bind(address: Any) -> socket.socket | None:
    """Bind one of ``getaddrinfo``'s; None where this machine has no such family or address."""
    family, kind, protocol, _, place = address
    try:
        made = socket.socket(family, kind, protocol)
    except OSError:
        return None
    try:
        if sys.platform != "win32":  # where it would let two servers share the port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # its IPv4 half is another of these
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind(place)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRNOTAVAIL:
            return None
        raise
    return made
