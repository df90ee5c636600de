"""A control connection as both sides have it: frames over an asyncio transport, and nothing of what they mean.

Memory is bounded: a reader that does not take its answers is not read from either, and one incomplete frame is held.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from typing import TYPE_CHECKING

from engine.errors import EngineError, PeerUnreachable
from engine.peers.frames import FrameDecoder, FrameError, FrameType, encode

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from engine.peers.frames import Frame

log = logging.getLogger(__name__)

HANDSHAKE_S = 10.0
"""For the preamble, the TLS handshake and the HELLO."""

UNSENT_BYTES_MAX = 4 << 20
"""Answers that wait to be sent; above that nothing is read."""


class FrameConnection(asyncio.Protocol):
    """See the module.

    Args:
        allowed: what may come first.
        take: called with each frame, in order. What it raises ends the connection.
    """

    def __init__(self, allowed: Collection[FrameType], take: Callable[[Frame], None]) -> None:
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._decoder = FrameDecoder(allowed)
        self._take = take
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[EngineError] = loop.create_future()
        """Done once the connection is no more, with why."""
        self.heard_at = loop.time()
        self._held_by: set[str] = set()
        self.has_room = asyncio.Event()
        """Set while what is to be sent is taken, and once the connection is no more."""
        self.has_room.set()

    def allow(self, allowed: Collection[FrameType]) -> None:
        """What may come from now on."""
        self._decoder.allowed = allowed

    def certificate(self) -> bytes | None:
        """That of the other side, DER."""
        assert self._transport is not None
        tls = self._transport.get_extra_info("ssl_object")
        assert isinstance(tls, ssl.SSLObject)
        return tls.getpeercert(binary_form=True)

    def send(self, kind: FrameType, request: int = 0, payload: bytes = b"") -> None:
        """Nothing is sent once the connection is no more: ``ended`` says so."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(encode(kind, request, payload))

    def close(self, reason: EngineError | None = None) -> None:
        """End it, after what was sent is away where that is possible at once."""
        self._end(reason or PeerUnreachable("the connection was closed"))
        if self._transport is not None:
            self._transport.close()

    def abort(self, reason: EngineError) -> None:
        """End it now, whatever is under way."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    # --- asyncio.Protocol ------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(UNSENT_BYTES_MAX)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.heard_at = self._loop.time()
        if self.ended.done():
            return
        try:
            self._decoder.receive(data)
            for frame in self._decoder.frames():
                self._take(frame)
                if self.ended.done():
                    return
        except FrameError as error:
            self.close(error)

    def pause_writing(self) -> None:
        self.has_room.clear()
        self.hold("answers that are not taken")

    def resume_writing(self) -> None:
        self.has_room.set()
        self.go_on("answers that are not taken")

    def hold(self, why: str) -> None:
        """Read nothing more until ``go_on`` was said for the same reason."""
        if not self._held_by and self._transport is not None and not self._transport.is_closing():
            self._transport.pause_reading()
        self._held_by.add(why)

    def go_on(self, why: str) -> None:
        self._held_by.discard(why)
        if not self._held_by and self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(PeerUnreachable(f"the connection broke: {exc}" if exc else "the other side closed the connection"))

    def _end(self, reason: EngineError) -> None:
        if not self.ended.done():
            self.ended.set_result(reason)
        self.has_room.set()
