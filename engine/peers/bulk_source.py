"""The source's side of a bulk connection: one strip of a frozen source, read, digested and sent in one thread.

``engine.peers.bulk_target`` has the protocol. Leaves of zeroes are not sent: they are the caller's to discard. Where
the target is to compare first, it is told the digests of the whole strip, and answers which leaves differ, with the
digests of what it has there in blocks of 4 KiB. Then what is sent is the blocks that differ; where more than half of a
unit of the volume does, the unit.
"""

from __future__ import annotations

import socket
import ssl
from typing import TYPE_CHECKING

from engine.errors import PermissionDenied
from engine.hash_tree import BLOCK_BYTES, DIGEST_BYTES, LEAF_BYTES, ZERO_LEAF, block_digests, leaf_digests
from engine.peers.bulk import BulkStream, tune, unreachable
from engine.peers.frames import (
    BULK_TO_SOURCE,
    HELLO_ONLY,
    FrameError,
    FrameType,
    Kind,
    decode_json,
    encode_json,
    failure_of,
    preamble,
)
from engine.peers.identity import fingerprint_of, same
from engine.peers.strips import Strip, Wants, decode_want, encode_piece
from engine.stores import Extent, ExtentState
from engine.strips import Buffers, Moved, digest_strip, pieces, runs_of
from engine.units import align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from engine.strips import Source

CONNECT_S = 10.0

ZERO_BLOCKS = block_digests(memoryview(ZERO_LEAF))


class BulkSender:
    """See the module. One thread at a time; made by ``open``."""

    def __init__(self, stream: BulkStream) -> None:
        self.stream = stream
        self._buffers = Buffers()
        self._requests = 0

    @classmethod
    def open(
        cls, address: tuple[str, int], context: ssl.SSLContext, pinned: list[str], opened: Callable[[BulkSender], None]
    ) -> BulkSender:
        """Connect: in a thread. ``pinned``: fingerprints, one of which the peer must have. ``opened``: called as soon
        as there is something to be woken.

        Raises PeerUnreachable, PermissionDenied, FrameError.
        """
        sock = None
        try:
            sock = socket.create_connection(address, CONNECT_S)
            tune(sock)
            sock.sendall(preamble(Kind.BULK))
            tls = context.wrap_socket(sock)
            sock = tls
            certificate = tls.getpeercert(binary_form=True) or b""
            if not any(same(fingerprint_of(certificate), each) for each in pinned):
                raise PermissionDenied("the peer has another certificate than the one that is pinned")
            sender = cls(BulkStream(tls))
            opened(sender)
            try:
                sender.stream.send(FrameType.HELLO, 0, encode_json({}))
                _, _, length = sender.stream.read_header(HELLO_ONLY, idle_s=CONNECT_S)
                sender.stream.read(length)
            except BaseException:
                sender.stream.close()
                raise
        except ssl.SSLError as error:
            _close(sock)
            raise PermissionDenied(f"no TLS with the peer: {error.reason or error}") from error
        except OSError as error:
            _close(sock)
            raise unreachable(error) from error
        except BaseException:
            _close(sock)
            raise
        return sender

    def send(self, strip: Strip, source: Source, unit: int, pace: Callable[[int], None], *, compare: bool) -> Moved:
        """Bring a strip over: in a thread. ``strip`` has no digests; ``source.read`` counts from its start.

        Args:
            unit: pieces are cut in whole units of so many bytes of the volume.
            pace: called with each number of bytes before they are sent; may wait.
            compare: leave what the target has already.

        Raises what the target answers, and PeerUnreachable: what became of the strip is not known.
        """
        try:
            return self._send(strip, source, unit, pace, compare=compare)
        except OSError as error:
            raise unreachable(error) from error

    def _send(self, strip: Strip, source: Source, unit: int, pace: Callable[[int], None], *, compare: bool) -> Moved:
        self._requests += 1
        if compare:
            moved = self._send_what_differs(strip, source, unit, pace)
        else:
            self.stream.send(FrameType.STRIP, self._requests, strip.serialize())
            moved = Moved()
            for piece in pieces(Extent(strip.offset, strip.length)):
                data = self._buffers.data[: piece.length]
                source.read(piece.offset - strip.offset, data)
                digests = leaf_digests(data)
                moved.digests += digests
                self._send_part(piece, piece, data, digests, unit, pace, moved)
        moved.equal_bytes = strip.length - moved.written_bytes - sum(zero.length for zero in moved.zeroes)
        self.stream.send(FrameType.END, self._requests)
        self._answer(FrameType.ANSWER)
        return moved

    def _send_what_differs(self, strip: Strip, source: Source, unit: int, pace: Callable[[int], None]) -> Moved:
        moved = Moved(digest_strip(strip.length, source, self._buffers))
        asked = Strip(strip.replica, strip.connection, strip.offset, strip.length, moved.digests)
        self.stream.send(FrameType.STRIP, self._requests, asked.serialize())
        wants = decode_want(self._answer(FrameType.WANT), strip.length)
        for piece in pieces(Extent(strip.offset, strip.length)):
            first, end = _leaves_of(piece, strip.offset)
            if all(there is None for there in wants[first:end]):
                continue
            data = self._buffers.data[: piece.length]
            source.read(piece.offset - strip.offset, data)
            digests = moved.digests[first * DIGEST_BYTES : end * DIGEST_BYTES]
            for part in _units(piece, unit):
                leaves = slice(*_leaves_of(part, strip.offset))
                within = data[part.offset - piece.offset : part.end - piece.offset]
                blocks = _differing_blocks(part, within, wants[leaves])
                if blocks is None:
                    self._send_part(part, piece, data, digests, unit, pace, moved)
                    continue
                for run in blocks:
                    at = run.offset - piece.offset
                    self._send_run(run, data[at : at + run.length], leaf_digests(data[at : at + run.length]), pace)
                    moved.written.append(run)
        return moved

    def _send_part(
        self,
        part: Extent,
        piece: Extent,
        data: memoryview,
        digests: bytes,
        unit: int,
        pace: Callable[[int], None],
        moved: Moved,
    ) -> None:
        within = data[part.offset - piece.offset : part.end - piece.offset]
        for run in runs_of(part, within, _digests_of(part, piece, digests), unit):
            if run.state is not ExtentState.DATA:
                moved.zeroes.append(run)
                continue
            at = run.offset - piece.offset
            self._send_run(run, data[at : at + run.length], _digests_of(run, piece, digests), pace)
            moved.written.append(run)

    def _send_run(self, run: Extent, data: memoryview, digests: bytes, pace: Callable[[int], None]) -> None:
        pace(run.length)
        self.stream.send_with(FrameType.PIECE, self._requests, encode_piece(run.offset, run.length, digests), data)

    def _answer(self, wanted: FrameType) -> bytes:
        kind, request, length = self.stream.read_header(BULK_TO_SOURCE)
        payload = self.stream.read(length)
        if request != self._requests:
            raise FrameError("an answer to another strip")
        if kind is FrameType.FAILURE:
            raise failure_of(decode_json(payload))
        if kind is not wanted:
            raise FrameError(f"{kind.name} where {wanted.name} has its place")
        return payload


def _leaves_of(extent: Extent, strip_offset: int) -> tuple[int, int]:
    """The first leaf of an extent of a strip, and the one behind its last."""
    return (extent.offset - strip_offset) // LEAF_BYTES, align_up(extent.end - strip_offset, LEAF_BYTES) // LEAF_BYTES


def _units(piece: Extent, unit: int) -> Iterator[Extent]:
    """A piece in units of the volume."""
    at = piece.offset
    while at < piece.end:
        end = min(align_down(at, unit) + unit, piece.end)
        yield Extent(at, end - at)
        at = end


def _differing_blocks(part: Extent, data: memoryview, wants: Wants) -> list[Extent] | None:
    """The runs of blocks of a unit that differ. None: all of it is to be sent."""
    runs: list[Extent] = []
    for leaf, there in enumerate(wants):
        if there is None:
            continue
        at = leaf * LEAF_BYTES
        mine = block_digests(data[at : at + LEAF_BYTES])
        if not there or mine == ZERO_BLOCKS:
            return None
        for block in range(0, len(mine), DIGEST_BYTES):
            if mine[block : block + DIGEST_BYTES] == there[block : block + DIGEST_BYTES]:
                continue
            offset = part.offset + at + block // DIGEST_BYTES * BLOCK_BYTES
            length = min(BLOCK_BYTES, part.end - offset)
            if runs and runs[-1].end == offset:
                runs[-1] = Extent(runs[-1].offset, runs[-1].length + length)
            else:
                runs.append(Extent(offset, length))
    return None if 2 * sum(run.length for run in runs) > part.length else runs


def _digests_of(part: Extent, piece: Extent, digests: bytes) -> bytes:
    first = (part.offset - piece.offset) // LEAF_BYTES
    count = align_up(part.length, LEAF_BYTES) // LEAF_BYTES
    return digests[first * DIGEST_BYTES : (first + count) * DIGEST_BYTES]


def _close(sock: socket.socket | None) -> None:
    if sock is not None:
        sock.close()
