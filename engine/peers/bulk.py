"""Frames over a blocking TLS socket, for threads: the bulk connection as both sides have it.

Blocking sockets in threads carry three times what TLS in an event loop does (docs/decisions/0023). Whoever wants a
thread that blocks in one to return calls ``wake``: everything raises from then on.
"""

from __future__ import annotations

import contextlib
import os
import socket
from typing import TYPE_CHECKING

from engine.errors import PeerUnreachable
from engine.peers.frames import HEADER_BYTES, FrameType, encode, header, parse_header

if TYPE_CHECKING:
    import ssl
    from collections.abc import Collection

STALL_S = 30.0
"""A socket that takes or gives nothing for so long in the middle of a strip has failed."""

SOCKET_BUFFER_BYTES = 4 << 20


def unreachable(error: OSError) -> PeerUnreachable:
    """What an error of a socket is to the engine."""
    return PeerUnreachable(f"the connection to the peer broke: {error.strerror or error}")


def tune(sock: socket.socket) -> None:
    """Before TLS: no waiting for more to send, and room for a strip on the way."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SOCKET_BUFFER_BYTES)


class BulkStream:
    """See the module. Everything but ``wake`` is one thread's at a time. Raises OSError, FrameError."""

    def __init__(self, tls: ssl.SSLSocket) -> None:
        self._tls = tls
        self._waker = socket.socket(fileno=os.dup(tls.fileno()))  # of its own: TLS state is the other thread's
        tls.settimeout(STALL_S)

    def wake(self) -> None:
        """In any thread."""
        with contextlib.suppress(OSError):
            self._waker.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Nobody uses it any more."""
        self.wake()
        self._waker.close()
        self._tls.close()

    def read_into(self, view: memoryview) -> None:
        """Fill ``view``. Raises PeerUnreachable: the other side has ended it."""
        at, size = 0, len(view)
        while at < size:
            got = self._tls.recv_into(view[at:])
            if not got:
                raise PeerUnreachable("the other side closed the connection")
            at += got

    def read(self, length: int) -> bytes:
        data = bytearray(length)
        self.read_into(memoryview(data))
        return bytes(data)

    def read_header(self, allowed: Collection[FrameType], *, idle_s: float = STALL_S) -> tuple[FrameType, int, int]:
        """The next frame's type, request and payload length; it may take ``idle_s`` to begin."""
        self._tls.settimeout(idle_s)
        head = self.read(HEADER_BYTES)
        self._tls.settimeout(STALL_S)
        return parse_header(head, allowed)

    def send(self, kind: FrameType, request: int = 0, payload: bytes = b"") -> None:
        self._tls.sendall(encode(kind, request, payload))

    def send_with(self, kind: FrameType, request: int, head: bytes, data: memoryview) -> None:
        """A frame whose payload is ``head`` and ``data``, which is not copied."""
        self._tls.sendall(header(kind, request, len(head) + len(data)) + head)
        self._tls.sendall(data)
