"""The link to a target volume at a peer.

Fulfils ``engine.links.MirrorLink`` by asking the peer, where a ``LocalLink`` does it (``engine.peers.incoming``). What
is durable when is what it is there; an acknowledgement that came back says so, and ``PeerUnreachable`` says nothing
about what was asked.

* ``disconnect`` does not wait: what is on its way may still arrive, and is refused or has ended when the next
  ``connect`` returns. The connection number sees to that.
* Calls are sent in the order of their first steps, and begin in that order at the peer.
* Strips of a copy go by bulk connections, all else by the control connection.
* A staging area that may hold something is asked first what differs: one that started as a recovery point, and one that
  an earlier attempt has written. So what the target has, and no ledger yet, is not sent again, whoever was killed.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from engine.errors import EngineError, InvalidState, NotFound, PeerUnreachable, Superseded, WriteProtected
from engine.hash_tree import leaf_digests
from engine.links import Ack, LinkState, MirrorWrite
from engine.peers.client import BULK_PER_MIRROR
from engine.peers.frames import MAX_DATA_BYTES, FrameError, FrameType, digests_bytes, flag_of, number_of
from engine.peers.rate import TokenBucket
from engine.peers.serving import EXTENTS_WINDOW_BYTES, MAX_DIGESTED_BYTES
from engine.peers.strips import MAX_PIECE_BYTES, MAX_STRIP_BYTES, Strip
from engine.peers.writes import MAX_WRITES, encode_apply, encode_ordered
from engine.stores import Extent, ExtentState
from engine.strips import Moved
from engine.volume import ChangeKind

if TYPE_CHECKING:
    import uuid
    from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence

    from engine.files import Clock
    from engine.lease import SourceLease
    from engine.peers.client import PeerClient
    from engine.stores import BlockDevice, BulkSource, ReadLease

T = TypeVar("T")


class PeerLink:
    """See the module.

    Args:
        replica_id: by which the peer knows the target.
        target_name: for people.
        may_fail_over: whether the target may take the source's place, and so gets leases (``engine.lease``).
    """

    def __init__(
        self, client: PeerClient, replica_id: uuid.UUID, target_name: str, clock: Clock, *, may_fail_over: bool = True
    ) -> None:
        self._clock = clock
        self._may_fail_over = may_fail_over
        self.client = client
        self.replica_id = replica_id
        self.bucket = TokenBucket()
        self.superseded: Callable[[], None] = lambda: None
        """Called in the step in which the peer says that the target has taken the source's place."""
        self.failure: EngineError | None = None
        """What the last connection failed by; None while it has not."""
        self.given_up = False
        """The target is left as it is: what ends the relation there is not asked for any more."""
        self.places = asyncio.Semaphore(BULK_PER_MIRROR)
        self._name = target_name
        self._connection = 0
        self._may_hold = False
        self._step_bytes = MAX_STRIP_BYTES
        self.brought_bytes = 0
        """Into staging areas, by all rounds."""

    @property
    def target_name(self) -> str:
        return self._name

    @property
    def connection(self) -> int:
        """The number of the present connection; 0: there is none."""
        return self._connection

    async def connect(self) -> LinkState:
        self._connection = 0
        answer = await self.ask("connect", connection=None)
        points = answer.get("points")
        if not isinstance(points, list) or not all(isinstance(point, str) for point in points):
            raise FrameError("an answer without fitting points")
        ack = _ack(answer)
        self._connection = ack.connection
        self.failure = None
        return LinkState(ack, points, flag_of(answer, "staging"))

    async def disconnect(self) -> None:
        connection, self._connection = self._connection, 0
        self.client.lessors.pop(self.replica_id, None)
        if connection:
            self.client.tell("disconnect", replica=str(self.replica_id), connection=connection)

    async def changed(self, older: str | None, newer: str | None) -> list[Extent]:
        found: list[Extent] = []
        offset: int | None = 0
        while offset is not None:
            answer = await self.ask("changed", older=older, newer=newer, offset=offset)
            found += [Extent(offset, length) for offset, length in _pairs(answer.get("extents"))]
            last, offset = offset, None if answer.get("next") is None else number_of(answer, "next")
            if offset is not None and offset <= last:
                raise FrameError("an answer that does not get on")
        return found

    async def freeze_head(self, guid: str) -> None:
        await self.ask("freeze_head", guid=guid)

    async def begin_staging(self, base: str | None, size_bytes: int) -> BlockDevice:
        self._may_hold = base is not None
        return self._staging(await self.ask("begin_staging", base=base, size_bytes=size_bytes))

    async def resume_staging(self) -> BlockDevice:
        self._may_hold = True
        return self._staging(await self.ask("resume_staging"))

    async def abort_staging(self) -> None:
        await self._clear("abort_staging")

    async def commit_staging(self, guid: str) -> None:
        await self.ask("commit_staging", guid=guid)

    # --- the stream ------------------------------------------------------------------------------------------------

    def apply_now(self, write: MirrorWrite, /) -> Ack | None:
        """Nothing can be at a peer within one step."""
        return None

    async def apply(self, write: MirrorWrite, /) -> Ack:
        if write.data is not None and len(write.data) > MAX_DATA_BYTES:
            return await self._apply_long(write)
        return await self._watched(
            self.client.write(FrameType.APPLY, encode_apply(self.replica_id, self._connection, write))
        )

    async def apply_in_order(self, writes: Sequence[MirrorWrite], /) -> Ack:
        acks = []
        for batch in _batches(part for write in writes for part in _parts(write)):
            payload = encode_ordered(self.replica_id, self._connection, batch)
            acks.append(await self._watched(self.client.write(FrameType.ORDERED, payload)))
        if any(ack != acks[0] for ack in acks):
            raise InvalidState(f"target {self._name}", "another one than before", "the same")
        return acks[0]

    async def flush(self) -> Ack:
        return _ack(await self.ask("flush"))

    async def mark(self, guid: str) -> Ack:
        return _ack(await self.ask("mark", guid=guid))

    @property
    def grants_lease(self) -> bool:
        return self._may_fail_over

    def serve_lease(self, lease: SourceLease, /) -> None:
        served = self._connection

        def grant(connection: int) -> bool:
            asked_here = connection == served == self._connection
            return asked_here and lease.grant(self._clock.boottime())

        self.client.lessors[self.replica_id] = grant
        length_us = int(lease.length_s * 1e6)
        self.client.tell("lease", replica=str(self.replica_id), connection=served, length_us=length_us)

    async def demote(self) -> None:
        with contextlib.suppress(NotFound):  # a volume that is no replica any more claims nothing for one
            await self.ask("demote", connection=None)

    # --- recovery points -------------------------------------------------------------------------------------------

    async def point(self, guid: str) -> BlockDevice:
        answer = await self.ask("point", point=guid)
        return PeerDevice(self, guid, number_of(answer, "size_bytes"))

    async def keep_points(self, guids: Collection[str]) -> None:
        await self._clear("keep_points", guids=sorted(guids))

    async def _clear(self, op: str, **fields: Any) -> None:
        """Nothing to do where the target is given up, or has given us up (``replica detach`` was said there)."""
        if self.given_up:
            return
        try:
            await self.ask(op, connection=None, **fields)
        except NotFound:
            self.given_up = True

    # --- inside ----------------------------------------------------------------------------------------------------

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """A request about this replica. ``connection`` None: of no connection; by default of the present one."""
        fields.setdefault("connection", self._connection)
        return await self._watched(self.client.request(op, replica=str(self.replica_id), **fields))

    async def bring(self, extent: Extent, take: Callable[[], Awaitable[_Source]], unit: int, *, compare: bool) -> Moved:
        """One strip into the staging area. ``take``: gives the source once it is this strip's turn."""
        moved = Moved()
        at = extent.offset
        while at < extent.end:
            async with self.places:
                part = Extent(at, min(self._step_bytes, extent.end - at))
                moved.add(await self._bring_part(part, extent, take, unit, compare=compare or self._may_hold))
            at = part.end
        return moved

    async def _bring_part(
        self, part: Extent, extent: Extent, take: Callable[[], Awaitable[_Source]], unit: int, *, compare: bool
    ) -> Moved:
        """Smaller parts after the link broke, so that it gets on over one that breaks again and again."""
        strip = Strip(self.replica_id, self._connection, part.offset, part.length)
        try:
            async with self.client.bulk() as sender:
                source = await take()
                try:
                    shifted = _Part(source, part.offset - extent.offset)
                    moved = await self._watched(
                        self.client.in_thread(
                            lambda: sender.send(strip, shifted, unit, self._pace, compare=compare), sender.stream.wake
                        )
                    )
                finally:
                    source.release()
        except PeerUnreachable:
            self._step_bytes = max(MAX_PIECE_BYTES, self._step_bytes // 4)
            raise
        self._step_bytes = min(MAX_STRIP_BYTES, self._step_bytes * 2)
        self.brought_bytes += part.length
        return moved

    async def flush_staging(self) -> None:
        """What was brought before the call is durable when it returns."""
        await self.ask("flush_staging", point=None)

    def _pace(self, size: int) -> None:
        self.client.pace(size, self.bucket)

    async def _watched(self, work: Awaitable[T]) -> T:
        try:
            return await work
        except EngineError as error:
            self.failure = error
            if isinstance(error, Superseded):
                self.superseded()
            raise

    async def _apply_long(self, write: MirrorWrite) -> Ack:
        """In several frames, which are on their way at once and applied in order as far as they overlap."""
        if write.atomic:
            raise InvalidState(f"an atomic write of {write.length} bytes", "too long for a peer", "a shorter one")
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self.apply(part)) for part in _parts(write)]
        acks = await asyncio.gather(*tasks)
        if any(ack != acks[0] for ack in acks):
            raise InvalidState(f"target {self._name}", "another one than before", "the same")
        return acks[0]

    def _staging(self, answer: dict[str, Any]) -> PeerStaging:
        return PeerStaging(self, number_of(answer, "size_bytes"), number_of(answer, "unit_bytes"))


class PeerDevice:
    """A recovery point or staging area at a peer, as ``engine.stores.BlockDevice``. ``guid`` None: the staging area."""

    def __init__(self, link: PeerLink, guid: str | None, size_bytes: int) -> None:
        self._link = link
        self._guid = guid
        self._size_bytes = size_bytes

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    @property
    def read_only(self) -> bool:
        return self._guid is not None

    def try_read(self, _offset: int, _view: memoryview, /) -> bool:
        return False

    def try_write(self, _offset: int, _data: memoryview, /) -> bool:
        return False

    def end_pass(self) -> None:
        """Nothing was written within a step."""

    async def read(self, offset: int, view: memoryview, /) -> None:
        for at in range(0, len(view), MAX_DATA_BYTES):
            part = view[at : at + MAX_DATA_BYTES]
            payload = await self._link.client.read(
                replica=str(self._link.replica_id), point=self._guid, offset=offset + at, length=len(part)
            )
            data = memoryview(payload)[digests_bytes(len(part)) :]
            if len(data) != len(part) or leaf_digests(data) != payload[: digests_bytes(len(part))]:
                raise FrameError(f"what was read at {offset + at} came with other bytes than it was sent with")
            part[:] = data

    async def digests(self, offset: int, length: int, /) -> bytes:
        """See ``engine.stores.SelfDigesting``: made where the data is."""
        made = b""
        for at in range(offset, offset + length, MAX_DIGESTED_BYTES):
            size = min(MAX_DIGESTED_BYTES, offset + length - at)
            answer = await self._ask("digests", offset=at, length=size)
            try:
                digests = bytes.fromhex(str(answer.get("digests")))
            except ValueError:
                digests = b""
            if len(digests) != digests_bytes(size):
                raise FrameError("digests of another length")
            made += digests
        return made

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        found: list[Extent] = []
        for at in range(offset, offset + length, EXTENTS_WINDOW_BYTES):
            size = min(EXTENTS_WINDOW_BYTES, offset + length - at)
            answer = await self._ask("extents", offset=at, length=size)
            for start, part, state in _extents(answer):
                if found and found[-1].state is state and found[-1].end == start:
                    found[-1] = Extent(found[-1].offset, found[-1].length + part, state)
                else:
                    found.append(Extent(start, part, state))
        return found

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        raise WriteProtected("a recovery point")

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        raise WriteProtected("a recovery point")

    async def discard(self, offset: int, length: int, /) -> None:
        raise WriteProtected("a recovery point")

    async def flush(self) -> None:
        """A recovery point is durable."""

    async def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return await self._link.ask(op, point=self._guid, **fields)


class PeerStaging(PeerDevice):
    """The staging area at a peer; ``bring`` is the copy loop's way (``engine.stores.StripTarget``)."""

    def __init__(self, link: PeerLink, size_bytes: int, unit_bytes: int) -> None:
        super().__init__(link, None, size_bytes)
        self._unit_bytes = unit_bytes

    async def bring(self, strip: Extent, source: BulkSource, *, compare_first: bool) -> Moved:
        def take() -> Awaitable[ReadLease]:
            return source.lease_read(strip.offset, strip.length)

        return await self._link.bring(strip, take, self._unit_bytes, compare=compare_first)

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        for at in range(0, len(data), MAX_STRIP_BYTES):
            part = data[at : at + MAX_STRIP_BYTES]
            await self._link.bring(Extent(offset + at, len(part)), _Memory(part).take, self._unit_bytes, compare=False)
        if fua:
            await self.flush()

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        await self.discard(offset, length)
        if fua:
            await self.flush()

    async def discard(self, offset: int, length: int, /) -> None:
        await self._ask("discard_staging", offset=offset, length=length)

    async def flush(self) -> None:
        await self._link.flush_staging()


class _Source(Protocol):
    def read(self, at: int, view: memoryview, /) -> None: ...
    def release(self) -> None: ...


class _Part:
    """A source from an offset on."""

    def __init__(self, source: _Source, shift: int) -> None:
        self._source = source
        self._shift = shift

    def read(self, at: int, view: memoryview, /) -> None:
        self._source.read(at + self._shift, view)


class _Memory:
    """Bytes as the source of a strip."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, at: int, view: memoryview, /) -> None:
        view[:] = self._data[at : at + len(view)]

    async def take(self) -> _Memory:
        return self

    def release(self) -> None:
        """They are the caller's."""


def _parts(write: MirrorWrite) -> Iterator[MirrorWrite]:
    """A write in pieces that one frame takes each."""
    data = write.data
    if data is None or len(data) <= MAX_DATA_BYTES:
        yield write
        return
    for at in range(0, len(data), MAX_DATA_BYTES):
        part = memoryview(data)[at : at + MAX_DATA_BYTES]
        yield MirrorWrite(write.sequence, ChangeKind.DATA, write.offset + at, len(part), part, write.fua)


def _batches(writes: Iterator[MirrorWrite]) -> Iterator[list[MirrorWrite]]:
    batch: list[MirrorWrite] = []
    size = 0
    for write in writes:
        length = 0 if write.data is None else len(write.data)
        if batch and (size + length > MAX_DATA_BYTES or len(batch) == MAX_WRITES):
            yield batch
            batch, size = [], 0
        batch.append(write)
        size += length
    if batch:
        yield batch


def _ack(answer: dict[str, Any]) -> Ack:
    return Ack(number_of(answer, "incarnation"), number_of(answer, "connection"))


def _pairs(rows: Any) -> list[tuple[int, int]]:
    """Offsets and lengths. Raises FrameError."""
    if not isinstance(rows, list):
        raise FrameError("an answer without extents")
    for row in rows:
        if not isinstance(row, list) or len(row) != 2 or not all(isinstance(n, int) and n >= 0 for n in row):
            raise FrameError("an answer without fitting extents")
    return [(offset, length) for offset, length in rows]


def _extents(answer: dict[str, Any]) -> list[tuple[int, int, ExtentState]]:
    rows = answer.get("extents")
    try:
        states = [ExtentState(row[2]) for row in rows or []]
        pairs = _pairs([row[:2] for row in rows or []])
    except (TypeError, ValueError, IndexError):
        raise FrameError("an answer without fitting extents") from None
    return [(offset, length, state) for (offset, length), state in zip(pairs, states, strict=True)]
