"""TCP ports for those who have to come back at the same place.

Port 0 gives one of the range from which the kernel also takes the ports of clients: while a daemon is restarted anybody
who connects to anything, another test with thousands of connections, say, may be given it. Below that range nobody is
given a port by chance.
"""

from __future__ import annotations

import random
import socket
from contextlib import closing
from pathlib import Path

_FIRST = 10_000
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")


def free_address(host: str = "127.0.0.1") -> str:
    """``host:port`` of a port that nobody listens on now, and that nobody is given who has not asked for it."""
    below = int(_RANGE.read_text().split()[0]) if _RANGE.exists() else 0
    for port in random.SystemRandom().sample(range(_FIRST, below), 100) if below > 2 * _FIRST else ():
        with closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
            return f"{host}:{port}"
    with closing(socket.socket()) as probe:  # a host with another range: better than nothing
        probe.bind((host, 0))
        return f"{host}:{probe.getsockname()[1]}"
