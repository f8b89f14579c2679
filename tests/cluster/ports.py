"""Ports that a cluster can have to itself."""

import contextlib
import random
import socket

EPHEMERAL_PORTS = 32768
"""From here on the kernel hands out ports to whoever asks for any, also while the API server is down."""
FIRST_NODE_PORT = 30000


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on, below those that the kernel hands out and a cluster's node ports."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        while len(found) < count:
            probe = held.enter_context(socket.socket())
            port = random.SystemRandom().randrange(EPHEMERAL_PORTS // 2, FIRST_NODE_PORT)
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
    return found
