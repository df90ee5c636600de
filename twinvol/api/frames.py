"""Lines of the socket API, and its address. Imports nothing slow."""

from __future__ import annotations

import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOCKET_NAME = "twinvol.sock"

MAX_REQUEST_BYTES = 1 << 20
"""A request is names, numbers and short lists."""

MAX_ANSWER_BYTES = 16 << 20
"""The longest answer is a page of extents (``engine.changed_blocks.MAX_EXTENTS``), about 2 MiB."""

MAX_CONCURRENT = 64
"""Requests of one connection that run at a time; further ones wait in the socket."""

_SUN_PATH_MAX = 107
"""Bytes of a Unix socket's address, without its terminating zero (unix(7))."""


class DaemonUnreachable(Exception):
    """No daemon serves the pool, or the connection broke before the answer."""


@contextlib.contextmanager
def socket_address(pool: Path) -> Iterator[str]:
    """An address for ``bind`` or ``connect`` that fits, however long the pool's path is. Valid within the block."""
    path = pool / SOCKET_NAME
    if len(os.fsencode(path)) <= _SUN_PATH_MAX:
        yield str(path)
        return
    folder = os.open(pool, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{SOCKET_NAME}"
    finally:
        os.close(folder)


def encode(message: dict[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Raises ValueError: not one JSON object."""
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ValueError("not a JSON object")
    return message
