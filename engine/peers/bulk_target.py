"""The target's side of a bulk connection: strips of staging areas, through a blocking TLS socket in its own thread.

    STRIP [WANT] PIECE ... END -> ANSWER or FAILURE      (FAILURE in the place of WANT ends the strip)

A strip is received whole into this connection's buffer, each piece compared with its digests as it comes. Then it is
written, read back and compared, as the copy loop does it on one machine. So a link that stalls holds no place of the
store, and what an ANSWER stands for is in the staging area with the digests that the source made.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from engine.errors import EngineError, OutOfRange
from engine.hash_tree import leaf_digests
from engine.peers.frames import BULK_TO_TARGET, FrameError, FrameType, digests_bytes, encode_json
from engine.peers.serving import failure_payload
from engine.peers.strips import MAX_STRIP_BYTES, PIECE_FIXED_BYTES, Strip, encode_want, parse_piece
from engine.stores import BulkSource, BulkTarget, Extent
from engine.strips import Buffers, compare, digest_strip

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine.files import Workers
    from engine.peers.bulk import BulkStream
    from engine.peers.incoming import Incoming, IncomingReplica
    from engine.stores import Head, WriteLease

T = TypeVar("T")

IDLE_S = 120.0
"""A bulk connection that carries nothing for so long is closed."""

_STRIP_ONLY = frozenset({FrameType.STRIP})
_REST = BULK_TO_TARGET - _STRIP_ONLY

Piece = tuple[Extent, bytes]
"""An extent that came, and the digests of its leaves."""


class BulkReceiver:
    """See the module.

    Args:
        workers: for what touches files.
        loop: where maps are read and changed.
    """

    def __init__(
        self, stream: BulkStream, peer: str, incoming: Incoming, workers: Workers, loop: asyncio.AbstractEventLoop
    ) -> None:
        self._stream = stream
        self._peer = peer
        self._incoming = incoming
        self._workers = workers
        self._loop = loop
        self._buffer = memoryview(bytearray(MAX_STRIP_BYTES))
        self._buffers = Buffers()

    def run(self) -> None:
        """Serve strips until the connection ends: in a thread. Raises FrameError, PeerUnreachable, OSError."""
        while True:
            _, request, length = self._stream.read_header(_STRIP_ONLY, idle_s=IDLE_S)
            strip = Strip.parse(self._stream.read(length))
            if strip.digests is not None:
                try:
                    mine = self._in_loop(self._present(strip))
                except EngineError as error:
                    self._stream.send(FrameType.FAILURE, request, failure_payload(error))
                    continue
                self._stream.send(FrameType.WANT, request, encode_want(mine, strip.digests))
            pieces = self._receive(strip)
            try:
                self._in_loop(self._store(strip, pieces))
            except EngineError as error:
                self._stream.send(FrameType.FAILURE, request, failure_payload(error))
            else:
                self._stream.send(FrameType.ANSWER, request, encode_json({}))

    def _receive(self, strip: Strip) -> list[Piece]:
        """The pieces of a strip, in order, without overlap; their bytes are in the buffer."""
        pieces: list[Piece] = []
        while True:
            kind, _, length = self._stream.read_header(_REST)
            if kind is FrameType.END:
                return pieces
            fixed = self._stream.read(min(PIECE_FIXED_BYTES, length))
            offset, size = parse_piece(fixed, length, strip)
            if pieces and offset < pieces[-1][0].end:
                raise FrameError("pieces that are not in order")
            digests = self._stream.read(digests_bytes(size))
            view = self._bytes_of(strip, Extent(offset, size))
            self._stream.read_into(view)
            if leaf_digests(view) != digests:
                raise FrameError(f"the piece at {offset} came with other bytes than it was sent with")
            pieces.append((Extent(offset, size), digests))

    def _bytes_of(self, strip: Strip, extent: Extent) -> memoryview:
        at = extent.offset - strip.offset
        return self._buffer[at : at + extent.length]

    def _in_loop(self, work: Coroutine[None, None, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    # --- in the loop ------------------------------------------------------------------------------------------------

    def _staging(self, strip: Strip, replica: IncomingReplica) -> Head:
        staging = replica.staging()
        if strip.offset + strip.length > staging.size_bytes:
            raise OutOfRange(strip.offset, strip.length, staging.size_bytes)
        return staging

    async def _present(self, strip: Strip) -> bytes:
        """The digests of what the staging area has there."""
        replica = self._incoming.get(self._peer, str(strip.replica))
        with replica.working(strip.connection):
            staging = self._staging(strip, replica)
            assert isinstance(staging, BulkSource)
            lease = await staging.lease_read(strip.offset, strip.length)
            try:
                return await self._workers.run(lambda: digest_strip(strip.length, lease, self._buffers))
            finally:
                lease.release()

    async def _store(self, strip: Strip, pieces: list[Piece]) -> None:
        """Write, read back, compare, publish. Raises IntegrityError, and what the store raises."""
        replica = self._incoming.get(self._peer, str(strip.replica))
        with replica.working(strip.connection):
            staging = self._staging(strip, replica)
            lease = await staging.lease_write(strip.offset, strip.length) if isinstance(staging, BulkTarget) else None
            try:
                if lease is None or not _whole_units(strip, pieces, lease):
                    if lease is not None:
                        lease.release()
                        lease = None
                    await self._store_singly(strip, pieces, staging)
                    return
                taken = lease
                await self._workers.run(lambda: self._write(strip, pieces, taken))
                await lease.publish([(extent.offset - strip.offset, extent.length) for extent, _ in pieces])
            finally:
                if lease is not None:
                    lease.release()

    def _write(self, strip: Strip, pieces: list[Piece], lease: WriteLease) -> None:
        for extent, digests in pieces:
            at, back = extent.offset - strip.offset, self._buffers.back[: extent.length]
            lease.write(at, self._bytes_of(strip, extent))
            lease.read(at, back)
            compare(extent, extent, digests, back)

    async def _store_singly(self, strip: Strip, pieces: list[Piece], staging: Head) -> None:
        for extent, digests in pieces:
            back = self._buffers.back[: extent.length]
            await staging.write(extent.offset, self._bytes_of(strip, extent))
            await staging.read(extent.offset, back)
            compare(extent, extent, digests, back)


def _whole_units(strip: Strip, pieces: list[Piece], lease: WriteLease) -> bool:
    unit = lease.unit_bytes
    return all((extent.offset - strip.offset) % unit == 0 and extent.length % unit == 0 for extent, _ in pieces)
