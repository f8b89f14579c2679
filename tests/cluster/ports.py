"""Ports that a test or a cluster can have to itself."""

import contextlib
import random
import socket

EPHEMERAL_PORTS = 32768
"""From here on the kernel hands out ports to whoever asks for any, also while the API server is down."""
FIRST_NODE_PORT = 30000
_given: set[int] = set()


def free_port() -> int:
    """One of ``free_ports``."""
    return free_ports(1)[0]


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, below those that the kernel hands out and a cluster's node ports.

    A process is given none of them twice.
    """
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().randrange(EPHEMERAL_PORTS // 2, FIRST_NODE_PORT)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            if port not in _given:
                _given.add(port)
                found.append(port)
    return found
