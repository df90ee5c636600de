"""The target's side of a bulk connection: strips of staging areas, through a blocking TLS socket in its own thread.

    STRIP [WANT] PIECE ... END -> ANSWER or FAILURE      (FAILURE in the place of WANT ends the strip)

A strip is received whole into this connection's buffer, each piece compared with its digests as it comes. Then it is
written, read back and compared, as the copy loop does it on one machine. So a link that stalls holds no place of the
store, and what an ANSWER stands for is in the staging area with the digests that the source made.

Pieces of single blocks come only where this side was asked what it has. With what is there already they become the
source's leaf, so the whole leaf is read back and compared. What cannot be read here, since it has rotted, is wanted.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from engine.errors import EngineError, MediumError, OutOfRange
from engine.hash_tree import DIGEST_BYTES, LEAF_BYTES, ZERO_LEAF_DIGEST, block_digests, leaf_digests
from engine.peers.frames import BULK_TO_TARGET, FrameError, FrameType, digests_bytes, encode_json
from engine.peers.serving import failure_payload
from engine.peers.strips import MAX_STRIP_BYTES, PIECE_FIXED_BYTES, Strip, Wants, encode_want, parse_piece
from engine.stores import BulkSource, BulkTarget, Extent, ExtentState
from engine.strips import Buffers, compare, pieces, zero_digests

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from engine.files import Workers
    from engine.peers.bulk import BulkStream
    from engine.peers.incoming import Incoming, IncomingReplica
    from engine.stores import Head, ReadLease, WriteLease

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
                    wants = self._in_loop(self._wanted(strip, strip.digests))
                except EngineError as error:
                    self._stream.send(FrameType.FAILURE, request, failure_payload(error))
                    continue
                self._stream.send(FrameType.WANT, request, encode_want(wants))
            found = self._receive(strip)
            try:
                self._in_loop(self._store(strip, found))
            except EngineError as error:
                self._stream.send(FrameType.FAILURE, request, failure_payload(error))
            else:
                self._stream.send(FrameType.ANSWER, request, encode_json({}))

    def _receive(self, strip: Strip) -> list[Piece]:
        """The pieces of a strip, in order, without overlap; their bytes are in the buffer."""
        found: list[Piece] = []
        while True:
            kind, _, length = self._stream.read_header(_REST)
            if kind is FrameType.END:
                return found
            fixed = self._stream.read(min(PIECE_FIXED_BYTES, length))
            offset, size = parse_piece(fixed, length, strip)
            if found and offset < found[-1][0].end:
                raise FrameError("pieces that are not in order")
            digests = self._stream.read(digests_bytes(size))
            view = self._bytes_of(strip, Extent(offset, size))
            self._stream.read_into(view)
            if leaf_digests(view) != digests:
                raise FrameError(f"the piece at {offset} came with other bytes than it was sent with")
            found.append((Extent(offset, size), digests))

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

    async def _wanted(self, strip: Strip, digests: bytes) -> Wants:
        """What the staging area has otherwise than the source, whose leaves have ``digests``."""
        replica = self._incoming.get(self._peer, str(strip.replica))
        with replica.working(strip.connection):
            staging = self._staging(strip, replica)
            there = await staging.extents(strip.offset, strip.length)
            if all(extent.state is not ExtentState.DATA for extent in there):
                zeroes = zero_digests(Extent(strip.offset, strip.length))
                return [
                    None if mine == source else b"" for mine, source in zip(*map(_each, (zeroes, digests)), strict=True)
                ]
            assert isinstance(staging, BulkSource)
            try:
                lease = await staging.lease_read(strip.offset, strip.length)
                try:
                    return await self._workers.run(lambda: self._compare(strip.length, lease, _each(digests)))
                finally:
                    lease.release()
            except MediumError:  # what is written in its place is whole again
                return [b""] * len(_each(digests))

    def _compare(self, length: int, lease: ReadLease, digests: list[bytes]) -> Wants:
        """Leaf by leaf, in a worker."""
        wants: Wants = []
        for piece in pieces(Extent(0, length)):
            view = self._buffers.back[: piece.length]
            lease.read(piece.offset, view)
            for at, mine in zip(range(0, piece.length, LEAF_BYTES), _each(leaf_digests(view)), strict=True):
                if mine == digests[len(wants)]:
                    wants.append(None)
                else:
                    wants.append(b"" if mine == ZERO_LEAF_DIGEST else block_digests(view[at : at + LEAF_BYTES]))
        return wants

    async def _store(self, strip: Strip, found: list[Piece]) -> None:
        """Write, read back, compare, publish. Raises IntegrityError, and what the store raises."""
        replica = self._incoming.get(self._peer, str(strip.replica))
        with replica.working(strip.connection):
            staging = self._staging(strip, replica)
            unit = self._incoming.unit_bytes(replica)
            units = [piece for piece in found if _is_whole(strip, piece[0], unit)]
            if units and not await self._store_units(strip, units, staging):
                units = []
            rest = [piece for piece in found if piece not in units]
            for extent, _ in rest:
                await staging.write(extent.offset, self._bytes_of(strip, extent))
            if rest:
                await self._read_back(strip, rest, staging)

    async def _store_units(self, strip: Strip, found: list[Piece], staging: Head) -> bool:
        """Whole units of the store, in one go. False: it wants single writes here."""
        lease = await staging.lease_write(strip.offset, strip.length) if isinstance(staging, BulkTarget) else None
        if lease is None:
            return False
        try:
            await self._workers.run(lambda: self._write(strip, found, lease))
            await lease.publish([(extent.offset - strip.offset, extent.length) for extent, _ in found])
        finally:
            lease.release()
        return True

    def _write(self, strip: Strip, found: list[Piece], lease: WriteLease) -> None:
        for extent, digests in found:
            at, back = extent.offset - strip.offset, self._buffers.back[: extent.length]
            lease.write(at, self._bytes_of(strip, extent))
            lease.read(at, back)
            compare(extent, extent, digests, back)

    async def _read_back(self, strip: Strip, found: list[Piece], staging: Head) -> None:
        """What was written in parts of units: pieces, or where they are parts of leaves the leaves."""
        whole = Extent(strip.offset, strip.length)
        checks = found if strip.digests is None else _leaves(strip, strip.digests, [extent for extent, _ in found])
        assert isinstance(staging, BulkSource)
        lease = await staging.lease_read(whole.offset, whole.length)

        def check() -> None:
            for extent, digests in checks:
                back = self._buffers.back[: extent.length]
                lease.read(extent.offset - strip.offset, back)
                compare(extent, extent, digests, back)

        try:
            await self._workers.run(check)
        finally:
            lease.release()


def _each(digests: bytes) -> list[bytes]:
    return [digests[at : at + DIGEST_BYTES] for at in range(0, len(digests), DIGEST_BYTES)]


def _is_whole(strip: Strip, extent: Extent, unit: int) -> bool:
    return (extent.offset - strip.offset) % unit == 0 and extent.length % unit == 0


def _leaves(strip: Strip, digests: bytes, extents: list[Extent]) -> list[Piece]:
    """The leaves that extents of a strip are in, with the digests that the strip came with."""
    numbers = {
        leaf
        for extent in extents
        for leaf in range((extent.offset - strip.offset) // LEAF_BYTES, -(-(extent.end - strip.offset) // LEAF_BYTES))
    }
    each, found = _each(digests), []
    for leaf in sorted(numbers):
        at = leaf * LEAF_BYTES
        found.append((Extent(strip.offset + at, min(LEAF_BYTES, strip.length - at)), each[leaf]))
    return found
