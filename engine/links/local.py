"""The link to a target volume of the same process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.errors import NotFound
from engine.links import Ack, LinkState
from engine.stores import AtomicTarget
from engine.volume import ChangeKind

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from engine.lease import SourceLease
    from engine.links import MirrorWrite
    from engine.stores import BlockDevice, Extent, Frozen, Head
    from engine.volume import Volume


def is_recovery_point(name: str, prefix: str) -> bool:
    """Whether a snapshot of that name is an instant of the source. A frozen head need not be one: it may have been cut
    off by a loss of power, or written by its users."""
    return name.startswith(f"{prefix}.") and not name.startswith(_frozen(prefix))


def _frozen(prefix: str) -> str:
    return f"{prefix}.head."


class LocalLink:
    """Fulfils ``MirrorLink`` for a volume that is open here.

    Overlapping writes keep their order because ``Head.write`` keeps that of its calls.

    Args:
        target: read-only for everybody else while it is a target.
        prefix: of the names of the recovery points that this mirror makes.
    """

    def __init__(self, target: Volume, prefix: str) -> None:
        self._target = target
        self._prefix = prefix
        self._connection = 0

    @property
    def target_name(self) -> str:
        return self._target.name

    async def connect(self) -> LinkState:
        self._connection += 1
        head = self._target.head
        points = [point.guid for point in head.store.snapshots(head.volume_id)]
        return LinkState(self._ack(), points, head.store.staging(head.volume_id) is not None)

    async def disconnect(self) -> None:
        """What is under way ends within the target's own store; a later snapshot there waits for it."""
        self._connection += 1

    async def changed(self, older: str | None, newer: str | None) -> list[Extent]:
        head = self._target.head
        before = None if older is None else self._point(older)
        return [e async for e in head.store.changed(before, head if newer is None else self._point(newer))]

    async def changed_page(self, older: str | None, newer: str | None, offset: int, limit: int) -> list[Extent]:
        """The first ``limit`` extents of ``changed`` from ``offset`` on."""
        head = self._target.head
        before = None if older is None else self._point(older)
        found: list[Extent] = []
        async for extent in head.store.changed(before, head if newer is None else self._point(newer), offset):
            found.append(extent)
            if len(found) == limit:
                break
        return found

    async def freeze_head(self, guid: str) -> None:
        head = self._target.head
        await head.store.snapshot(head, f"{_frozen(self._prefix)}{guid}", guid=guid, hidden=True)

    async def begin_staging(self, base: str | None, size_bytes: int) -> BlockDevice:
        await self.abort_staging()
        head = self._target.head
        staging = await head.store.begin_staging(head, None if base is None else self._point(base))
        if staging.size_bytes != size_bytes:
            await staging.resize(size_bytes)
        return staging

    async def resume_staging(self) -> BlockDevice:
        return self._staging()

    async def abort_staging(self) -> None:
        head = self._target.head
        staging = head.store.staging(head.volume_id)
        if staging is not None:
            await head.store.abort_staging(staging)

    async def commit_staging(self, guid: str) -> None:
        async with self._target.quiesced():
            store = self._target.head.store
            head, _ = await store.commit_staging(self._staging(), self._name(guid), guid=guid)
            self._target.rebind(head)

    def apply_now(self, write: MirrorWrite, /) -> Ack | None:
        head = self._target.head
        if write.data is None or write.fua or write.atomic or not head.try_write(write.offset, memoryview(write.data)):
            return None
        head.end_pass()
        return self._ack()

    async def apply(self, write: MirrorWrite, /) -> Ack:
        ack, head = self._ack(), self._target.head
        match write.kind:
            case ChangeKind.DATA:
                assert write.data is not None
                data = memoryview(write.data)
                if write.atomic and isinstance(head, AtomicTarget):
                    await head.write_atomic(write.offset, data, fua=write.fua)
                else:
                    await head.write(write.offset, data, fua=write.fua)
            case ChangeKind.ZEROES:
                await head.write_zeroes(write.offset, write.length, fua=write.fua)
            case ChangeKind.DISCARD:
                await head.discard(write.offset, write.length)
        return ack

    async def apply_in_order(self, writes: Sequence[MirrorWrite], /) -> Ack:
        ack, head = self._ack(), self._target.head
        for write in writes:
            later = write.fua or write.atomic
            if write.data is None or later or not head.try_write(write.offset, memoryview(write.data)):
                head.end_pass()
                await self.apply(write)
        head.end_pass()
        return ack

    async def flush(self) -> Ack:
        ack = self._ack()
        await self._target.head.flush()
        return ack

    async def mark(self, guid: str) -> Ack:
        ack = self._ack()
        await self._snapshot(guid)
        return ack

    @property
    def grants_lease(self) -> bool:
        """A target of the same process ends with its source."""
        return False

    def serve_lease(self, lease: SourceLease, /) -> None:
        raise AssertionError("nobody asks for a lease here")

    async def demote(self) -> None:
        return

    async def point(self, guid: str) -> BlockDevice:
        return self._point(guid)

    async def keep_points(self, guids: Collection[str]) -> None:
        store = self._target.head.store
        for point in store.snapshots(self._target.volume_id):
            if point.name.startswith(self._prefix) and point.guid not in guids:
                await store.delete_snapshot(point)

    async def _snapshot(self, guid: str) -> None:
        head = self._target.head
        await head.store.snapshot(head, self._name(guid), guid=guid, hidden=True)

    def _ack(self) -> Ack:
        return Ack(self._target.head.store.incarnation, self._connection)

    def _name(self, guid: str) -> str:
        return f"{self._prefix}.{guid}"

    def _point(self, guid: str) -> Frozen:
        head = self._target.head
        for point in head.store.snapshots(head.volume_id):
            if point.guid == guid:
                return point
        raise NotFound("recovery point", guid)

    def _staging(self) -> Head:
        head = self._target.head
        staging = head.store.staging(head.volume_id)
        if staging is None:
            raise NotFound("staging area", self._target.name)
        return staging
