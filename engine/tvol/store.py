"""The family as its users see it: devices, tree operations, comparisons. ``file.py`` opens and closes it.

Tree operations are one journal record each, applied in the same step of the loop, then flushed. This module has their
preconditions and the devices; what they do to the state is in ``tree.py``.

A snapshot's instant is its flip (``flip``: synchronous, so that several files can flip in one callback of the loop).
It is complete when the writes admitted before have ended, its seal is written and flushed (``seal``). Nobody waits for
it except its caller.
"""

from __future__ import annotations

import asyncio
import itertools
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.errors import (
    AlreadyExists,
    InUse,
    InvalidArgument,
    InvalidState,
    NotFound,
    OutOfRange,
    OutOfSpace,
    StoreFailed,
)
from engine.steady_clock import SteadyClock
from engine.stores import Extent, FamilySpace, Space, StoreCapabilities
from engine.tvol import layout
from engine.tvol.adoption import tree_of
from engine.tvol.chunk_map import ABSENT_LEAF, LEAF_SHIFT
from engine.tvol.device import STATES, NativeDevice, NativeSnapshot, add_extent, runs_of
from engine.tvol.flatten import Inherited, find_inherited, origin_of, separate
from engine.tvol.head import NativeHead
from engine.tvol.housekeeping import Housekeeper
from engine.tvol.layout import FIRST_CHUNK_ENTRY, MAX_NAME_BYTES, NodeFlag, NodeKind, RecordType
from engine.tvol.notes import NativeNotes
from engine.tvol.pages import GIVING_MARGIN
from engine.tvol.scrub import Scrubber, standing_on
from engine.tvol.sharing import share
from engine.tvol.snapshot_table import SnapshotTable
from engine.tvol.space import freed_by, pending_chunks, spaces

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from engine.stores import Frozen, Head
    from engine.tvol.chunk_map import Leaf
    from engine.tvol.core import Core
    from engine.tvol.epoch import Epoch
    from engine.tvol.nodes import Node
    from engine.tvol.scrub import Finding, RepairSource


NOT_COMPLETE = NodeFlag.UNSEALED | NodeFlag.PREPARED
"""Snapshots with one of these do not exist for users, or not yet."""


@dataclass(frozen=True, slots=True)
class NativeFlip:
    """A snapshot whose instant has passed; ``seal`` completes it."""

    snapshot: NativeSnapshot
    epoch: Epoch


class NativeStore:
    """One open family: its volumes, snapshots and clones."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._housekeeper = Housekeeper(core)
        self._closed = False
        self._sealing: set[asyncio.Task[None]] = set()
        self._heads: dict[int, NativeHead] = {}
        self._snapshots = SnapshotTable()
        self.on_snapshot: Callable[[NativeSnapshot, str], None] | None = None
        """Told of each sealed snapshot that is "created", or is about to be "deleted"."""
        self._untold: set[NativeSnapshot] = set()
        """Sealed, and not durable yet: of one that is deleted meanwhile nobody is told anything."""
        self.notes = NativeNotes(
            core, SteadyClock(core.env.clock), self._sealed_snapshot, self._native, self._snapshots.__getitem__
        )
        for node in sorted(core.family.nodes.values(), key=lambda node: node.generation):
            if node.live:
                self._add_device(node)

    async def close(self) -> None:
        """Wait for what is running, checkpoint and close; devices answer StoreFailed afterwards."""
        if self._closed:
            return
        self._closed = True
        core = self._core
        try:
            for head in self._heads.values():
                head.shut()
            for head in self._heads.values():
                await head.drained()
            await self._housekeeper.stop()
            while self._sealing:
                await asyncio.wait(list(self._sealing))
            await core.quiet()
            if not core.failed:
                end = core.family.births.count * core.chunk_bytes
                await core.env.workers.run(lambda: core.file.truncate(end))
                await core.checkpointer.run(clean=True)
        finally:
            await self._end("closed")

    async def _end(self, why: str) -> None:
        """Let nothing start any more, wait for what runs, and close the file as it is."""
        core = self._core
        core.fail(StoreFailed(f"{core.path} is {why}"))
        for device in self._devices():
            device.retire(why)
        await self._housekeeper.stop()
        await core.quiet()
        await core.idle()
        await core.checkpointer.idle()
        await core.env.workers.run(core.file.close)

    # --- looking ------------------------------------------------------------------------------------------------

    @property
    def capabilities(self) -> StoreCapabilities:
        return StoreCapabilities(
            fast_path=True,
            instant_epoch=True,
            instant_rollback=True,
            digests=True,
            recovery_points=True,
            share_unit=self.chunk_bytes,
        )

    @property
    def incarnation(self) -> int:
        """Grows with each open for writing."""
        return self._core.journal.incarnation

    @property
    def path(self) -> Path:
        return self._core.path

    def renamed(self, path: Path) -> None:
        """Whoever made the file has given it another name since; only messages use it."""
        self._core.file.path = path

    @property
    def chunk_bytes(self) -> int:
        return self._core.chunk_bytes

    @property
    def failed(self) -> StoreFailed | None:
        """Why the store takes no writes any more, if so."""
        return self._core.failed

    def volumes(self) -> list[NativeHead]:
        """The writable volumes, without staging areas, oldest first."""
        return [head for head in self._heads.values() if not head.staging]

    def volume(self, name: str) -> NativeHead:
        """Raises NotFound."""
        for head in self.volumes():
            if head.name == name:
                return head
        raise NotFound("volume", name)

    def snapshots(self, volume_id: str | None = None) -> list[NativeSnapshot]:
        """The sealed snapshots, hidden ones included, oldest first; of one volume or of all."""
        if volume_id is not None:
            return [s for s in self._snapshots.of(volume_id) if not s.node.flags & NOT_COMPLETE]
        found = (s for s in self._snapshots.values() if not s.node.flags & NOT_COMPLETE)
        return sorted(found, key=lambda s: s.node.generation)

    def snapshot_with(self, volume_id: str, guid: str) -> NativeSnapshot | None:
        """See ``engine.stores.VolumeStore``."""
        found = self._snapshots.with_guid(volume_id, guid)
        return None if found is None or found.node.flags & NOT_COMPLETE else found

    def snapshot_named(self, volume_id: str, name: str) -> NativeSnapshot:
        """Raises NotFound."""
        found = self._snapshots.named(volume_id, name)
        if found is None or found.node.flags & NOT_COMPLETE:
            raise NotFound("snapshot", name)
        return found

    async def space(self, node: Frozen | Head) -> Space:
        """Sums that the tree keeps; only in a file with shared chunks the node's own claims are looked at."""
        found = self._native(node).node
        if found.kind == NodeKind.HEAD:
            return (await self._spaces(found, []))[0]
        head = next(head for head in self.volumes() if head.volume_id == found.volume_id)
        return (await self._spaces(head.node, [found]))[1]

    async def spaces(self, head: Head, snapshots: Sequence[Frozen]) -> list[Space]:
        """See ``engine.stores.VolumeStore``."""
        return await self._spaces(self._native(head).node, [self._native(each).node for each in snapshots])

    async def _spaces(self, head: Node, snapshots: list[Node]) -> list[Space]:
        unit = self.chunk_bytes
        return [
            Space(each.mapped * unit, each.unique * unit, each.pinned * unit, each.reclaimable * unit)
            for each in await spaces(self._core, head, snapshots)
        ]

    async def freed_by(self, nodes: Sequence[Frozen | Head]) -> int:
        """See ``engine.stores.VolumeStore``."""
        return self.chunk_bytes * await freed_by(self._core, [self._native(each).node for each in nodes])

    async def family_space(self) -> FamilySpace:
        """See ``engine.stores.VolumeStore``."""
        core, unit = self._core, self.chunk_bytes
        free, unpunched = core.allocator.free_count + core.allocator.cleaning, core.allocator.dirty_count
        fixed = layout.JOURNAL_FIRST_CHUNK + core.journal.ring_bytes // unit
        metadata = fixed + core.pages.chunk_count + core.becoming_metadata
        taken = core.family.births.count - free - metadata
        pending = await pending_chunks(core)
        return FamilySpace((taken - pending) * unit, pending * unit, free * unit, unpunched * unit, metadata * unit)

    async def changed(self, older: Frozen | None, newer: Frozen | Head, offset: int = 0, /) -> AsyncIterator[Extent]:
        """Ranges from ``offset`` on whose pointers differ (discards included), in order; ``None``: against an empty
        device.

        Leaves that both maps share are skipped. Of a live head as ``newer`` it is the state while iterating.
        """
        new_node = self._native(newer).node
        old_node = self._native(older).node if older is not None else None
        claims = self._core.family.claims
        found: list[Extent] = []
        for number in range(offset >> self._core.chunk_shift >> LEAF_SHIFT, new_node.map.count):
            if number >= new_node.map.count:
                break  # a live head was shrunk
            old, new = await self._two_leaves(old_node, new_node, number)
            if new is old or (new.page and new.page == old.page):
                continue
            states = np.minimum(new.array, FIRST_CHUNK_ENTRY) + 1
            states[claims.chunks_of(new.array) == claims.chunks_of(old.array)] = 0
            for start, count, state in runs_of(states):
                first = ((number << LEAF_SHIFT) + start) << self._core.chunk_shift
                begin, end = max(first, offset), min(first + (count << self._core.chunk_shift), new_node.size_bytes)
                if state and begin < end:
                    add_extent(found, begin, end, STATES[state - 1])
            while len(found) > 1:
                yield found.pop(0)
            await asyncio.sleep(0)
            self._native(newer)  # raises NotFound: a deleted node loses its leaves in the background
            if older is not None:
                self._native(older)
        for extent in found:
            yield extent

    async def _two_leaves(self, old_node: Node | None, new_node: Node, number: int) -> tuple[Leaf, Leaf]:
        """The leaves of two maps, resident unless they are one, from between two changes of sealed snapshots."""
        maps = self._core.maps
        while True:
            versions = (old_node.map.version if old_node else 0, new_node.map.version)
            old = await maps.leaf(old_node, number) if old_node else ABSENT_LEAF
            new = await maps.leaf(new_node, number)
            is_same = new is old or (new.page and new.page == old.page)
            if not is_same and not (new.resident and old.resident):
                old = await maps.resident_leaf(old_node, number) if old_node else ABSENT_LEAF
                new = await maps.resident_leaf(new_node, number)
            if versions == (old_node.map.version if old_node else 0, new_node.map.version):
                return old, new

    def _native(self, device: Frozen | Head) -> NativeDevice:
        if not isinstance(device, NativeDevice):
            raise InvalidArgument(f"{device.name!r} is not of this store")
        known: NativeDevice | None = self._heads.get(device.node_id) or self._snapshots.get(device.node_id)
        found: NativeDevice = device
        if known is not found:
            self._core.check()
            raise NotFound("volume or snapshot", device.name)
        return found

    def _head(self, device: Head) -> NativeHead:
        found = self._native(device)
        if not isinstance(found, NativeHead):
            raise InvalidArgument(f"{device.name!r} is a snapshot")
        return found

    def _volume(self, device: Head) -> NativeHead:
        found = self._head(device)
        if found.staging:
            raise InvalidArgument(f"this is the staging area of {found.name!r}, not the volume")
        return found

    def _snapshot(self, device: Frozen) -> NativeSnapshot:
        found = self._native(device)
        if not isinstance(found, NativeSnapshot):
            raise InvalidArgument(f"{device.name!r} is not a snapshot")
        return found

    def _devices(self) -> list[NativeDevice]:
        return [*self._heads.values(), *self._snapshots.values()]

    def _add_device(self, node: Node) -> None:
        if node.kind == NodeKind.HEAD:
            self._heads[node.id] = NativeHead(self._core, node, self)
        else:
            self._snapshots.add(NativeSnapshot(self._core, node))

    def _drop_device(self, device: NativeDevice, reason: str = "deleted") -> None:
        self._heads.pop(device.node_id, None)
        self._snapshots.drop(device.node_id)
        device.retire(reason)

    def _new_node(self) -> int:
        return self._core.family.next_node

    def _tree_pages(self) -> int:
        """More pages than any tree operation adds to the next checkpoint (a map's top pages, a few besides), and those
        that it must leave to what gives space back."""
        return GIVING_MARGIN + 8 + self._core.family.largest_map // layout.TOP_ENTRIES

    # --- snapshots ----------------------------------------------------------------------------------------------

    async def snapshot(
        self, head: Head, name: str, *, guid: str | None = None, hidden: bool = False, scheduled: bool = False
    ) -> NativeSnapshot:
        """Freeze the volume at this instant (the flip is in the call's first step, if there is room for it as
        ``prepare_flip`` makes it) and return once durable.

        It is completed even if the caller is cancelled after its instant.
        Raises AlreadyExists, InvalidArgument, StoreFailed, OutOfSpace.
        """
        if not self._core.ready_for_tree_record(self._tree_pages()):
            self._check_snapshot(head, name, guid)
            await self.prepare_flip()
        flip = self.flip(head, name, guid=guid, hidden=hidden, scheduled=scheduled)
        # The sealing goes on if the caller is cancelled: the flip has happened and others may build on it.
        task = asyncio.create_task(self.seal(flip), name=f"seal {name}")
        self._sealing.add(task)
        task.add_done_callback(self._sealed)
        await asyncio.shield(task)
        return flip.snapshot

    def _sealed(self, task: asyncio.Task[None]) -> None:
        self._sealing.discard(task)
        if not task.cancelled():
            task.exception()  # the caller has it, or was cancelled

    async def prepare_flip(self) -> None:
        """Return when ``flip`` has the room it needs; call it before the next await."""
        await self._core.make_room(pages=self._tree_pages(), reserved=True)

    def flip(
        self, head: Head, name: str, *, guid: str | None = None, hidden: bool = False, scheduled: bool = False
    ) -> NativeFlip:
        """The snapshot's instant, synchronously: writes admitted before belong to it, later ones do not.

        ``seal`` must follow; a snapshot without it is dropped at the next open. Raises as ``snapshot``.
        """
        self._check_snapshot(head, name, guid)
        found = self._head(head)
        core, node_id = self._core, self._new_node()
        flags = NodeFlag.HIDDEN * hidden | NodeFlag.SCHEDULED * scheduled
        fixed = layout.SNAPSHOT_BEGIN.pack(found.node_id, node_id, flags, core.env.clock.time())
        core.log(RecordType.SNAPSHOT_BEGIN, fixed + layout.pack_text(guid or str(uuid.uuid4()), name))
        node = core.family.node(node_id)
        device = self._snapshots.add(NativeSnapshot(core, node))
        return NativeFlip(device, found.hand_over_epoch(node))

    async def seal(self, flip: NativeFlip) -> None:
        """Wait for the writes of the old epoch and make the snapshot durable. Raises StoreFailed, OutOfSpace."""
        await flip.epoch.drained()
        try:
            await self._core.make_room(reserved=True)
        except OutOfSpace:
            self._delete([flip.snapshot])  # one small record fits always; without a seal nobody has the snapshot
            self._housekeeper.wake()
            raise
        self._core.log(RecordType.SNAPSHOT_SEAL, layout.NODE_ID.pack(flip.snapshot.node_id))
        self._untold.add(flip.snapshot)
        await self._core.flush()
        if flip.snapshot in self._untold:
            self._untold.remove(flip.snapshot)
            self._tell(flip.snapshot, "created")

    def _tell(self, snapshot: NativeSnapshot, verb: str) -> None:
        if self.on_snapshot is not None:
            self.on_snapshot(snapshot, verb)

    def _check_snapshot(self, head: Head, name: str, guid: str | None) -> None:
        self._core.check()
        found = self._head(head)
        check_name(name)
        if self._snapshots.named(found.volume_id, name):
            raise AlreadyExists("snapshot", name)
        if guid is not None and self._snapshots.with_guid(found.volume_id, guid):
            raise AlreadyExists("recovery point", guid)
        if guid is not None:
            check_name(guid)

    async def share(self, source: Frozen, source_offset: int, target: Head, offset: int, length: int, /) -> int:
        """See ``engine.stores.VolumeStore``."""
        found, head = self._sealed_snapshot(source), self._head(target)
        if (source_offset | offset | length) & (self.chunk_bytes - 1):
            raise InvalidArgument(f"chunks of {self.chunk_bytes} bytes are shared as a whole")
        if source_offset < 0 or length < 0 or source_offset + length > found.size_bytes:
            raise OutOfRange(source_offset, length, found.size_bytes)
        if not length:
            return 0
        return await share(self._core, lambda: self._sealed_snapshot(source).node, source_offset, head, offset, length)

    async def delete_snapshot(self, snapshot: Frozen) -> None:
        """Remove a snapshot; its space comes back in the background. Clones of it keep what they share.

        Raises NotFound, InUse (it is held), StoreFailed, OutOfSpace.
        """
        found = self._sealed_snapshot(snapshot)
        await self._core.make_room(reserved=True)
        if found.node.live:
            self.notes.require_free([found.node])
            self._delete([found])
        await self._core.flush()
        self._housekeeper.wake()

    def _sealed_snapshot(self, snapshot: Frozen) -> NativeSnapshot:
        self._core.check()
        found = self._snapshot(snapshot)
        if found.node.flags & NOT_COMPLETE:
            raise InvalidState(f"snapshot {found.name!r}", "being made", "a complete one")
        return found

    def _delete(self, devices: list[NativeDevice]) -> None:
        """Mark nodes as deleted, all in one record, and end their devices."""
        complete = [d for d in devices if isinstance(d, NativeSnapshot) and not d.node.flags & NOT_COMPLETE]
        payload = b"".join(layout.NODE_ID.pack(device.node_id) for device in devices)
        self._housekeeper.deleted_seq = self._core.log(RecordType.DELETE, payload)
        for snapshot in complete:
            if snapshot not in self._untold:
                self._tell(snapshot, "deleted")
        self._untold.difference_update(complete)
        for device in devices:
            self._drop_device(device)

    # --- volumes ------------------------------------------------------------------------------------------------

    async def clone(self, source: Frozen, name: str, *, volume_id: str | None = None) -> NativeHead:
        """A linked clone: a new volume that shares the snapshot's chunks. ``volume_id``: a UUID that nobody else has.

        Raises AlreadyExists, InvalidArgument.
        """
        check_name(name)
        await self._core.make_room(pages=self._tree_pages())
        found = self._sealed_snapshot(source)
        if any(head.name == name for head in self.volumes()):
            raise AlreadyExists("volume", name)
        core, node_id = self._core, self._new_node()
        fixed = layout.CLONE.pack(found.node_id, node_id, core.env.clock.time())
        core.log(RecordType.CLONE, fixed + layout.pack_text(volume_id or str(uuid.uuid4()), name))
        head = self._heads[node_id] = NativeHead(core, core.family.node(node_id), self)
        await core.flush()
        return head

    def origin(self, head: Head) -> str | None:
        """What a volume was cloned from and still depends on, as VOLUME@SNAPSHOT. None: nothing."""
        above = origin_of(self._volume(head).node)
        if above is None:
            return None
        names = [other.name for other in self.volumes() if other.volume_id == above.volume_id]
        return f"{names[0] if names else above.volume_id}@{above.name}"

    def clones(self, device: Frozen | Head) -> list[NativeHead]:
        """The volumes that hang on a snapshot, or on any of a volume's."""
        node = self._native(device).node
        if node.kind is NodeKind.HEAD:
            others = [head for head in self.volumes() if head.volume_id != node.volume_id]
            return [each for each in others if (found := origin_of(each.node)) and found.volume_id == node.volume_id]
        below = {child.volume_id for child in node.children} - {node.volume_id}
        return [each for each in self.volumes() if each.volume_id in below and origin_of(each.node) is node]

    async def inherited(self, head: Head) -> Inherited | None:
        """See ``engine.stores.SeparableStore``."""
        return await find_inherited(self._core, self._volume(head), self._heads.get)

    async def separate(self, head: Head) -> bool:
        """See ``engine.stores.SeparableStore``. Raises StoreFailed, OutOfSpace."""
        return await separate(self._core, self._volume(head), self._housekeeper)

    async def rename(self, device: Head | Frozen, name: str) -> None:
        """Give a volume or snapshot another name, durably. Raises AlreadyExists, InvalidArgument."""
        check_name(name)
        await self._core.make_room(reserved=True)
        found = self._native(device)
        others = self.volumes() if isinstance(found, NativeHead) else self.snapshots(found.volume_id)
        if any(other.name == name and other is not found for other in others):
            raise AlreadyExists("volume" if isinstance(found, NativeHead) else "snapshot", name)
        before = found.name
        self._core.log(RecordType.RENAME, layout.NODE_ID.pack(found.node_id) + layout.pack_text(name))
        if isinstance(found, NativeSnapshot):
            self._snapshots.renamed(found, before)
        await self._core.flush()

    async def rollback(self, head: Head, to: Frozen) -> NativeHead:
        """The volume reads as ``to`` from now on; what it was stays as snapshot ``before-rollback-N``.

        The head's device stays the same object. Writes wait meanwhile; those admitted before are in that snapshot.
        Raises InvalidArgument (a snapshot of another volume), NotFound, StoreFailed, OutOfSpace.
        """
        found = self._volume(head)
        if self._sealed_snapshot(to).volume_id != found.volume_id:
            raise InvalidArgument(f"{to.name!r} is not a snapshot of {found.name!r}")
        taken = self._snapshots.named
        number = next(n for n in itertools.count(1) if not taken(found.volume_id, f"before-rollback-{n}"))
        self._shut_all([found])
        try:
            await found.drained()
            await self.snapshot(found, f"before-rollback-{number}")
            await self._core.make_room(pages=self._tree_pages(), reserved=True)
            target = self._sealed_snapshot(to)
            self._core.log(RecordType.ROLLBACK, layout.ROLLBACK.pack(found.node_id, target.node_id))
        finally:
            found.reopen()
        await self._core.flush()
        return found

    def _shut_all(self, heads: list[NativeHead]) -> None:
        """Hold the writes of heads for an operation that replaces their content; one such operation at a time."""
        for head in heads:
            if head.is_shut:
                raise InvalidState(
                    f"volume {head.name!r}", "being rolled back or replaced", "no such operation running"
                )
        for head in heads:
            head.shut()

    async def delete_volume(self, head: Head) -> None:
        """Delete a volume with its snapshots and staging area.

        Raises InUse, naming the linked clones of them, or who holds a snapshot.
        """
        found = self._volume(head)
        self._check_clones(found)
        devices = self._devices_of(found.volume_id)
        self.notes.require_free(device.node for device in devices)
        heads = [device for device in devices if isinstance(device, NativeHead)]
        self._shut_all(heads)
        try:
            for shut in heads:
                await shut.drained()
            await self._core.make_room(record_bytes=layout.record_length(4 * len(devices)), reserved=True)
            self._check_clones(found)
            devices = self._devices_of(found.volume_id)
            for device in devices:
                if isinstance(device, NativeSnapshot):
                    self._sealed_snapshot(device)
            self.notes.require_free(device.node for device in devices)
            self._delete(devices)
        finally:
            for shut in heads:
                shut.reopen()
        await self._core.flush()
        self._housekeeper.wake()

    def _devices_of(self, volume_id: str) -> list[NativeDevice]:
        return [device for device in self._devices() if device.volume_id == volume_id]

    def _check_clones(self, head: NativeHead) -> None:
        clones = []
        for other in self.volumes():
            above: Node | None = other.node
            while above and above.volume_id != head.volume_id:
                above = above.parent
            if above and other.volume_id != head.volume_id:
                clones.append(other.name)
        if clones:
            raise InUse(f"volume {head.name!r} has linked clones: {', '.join(sorted(clones))}; delete them first")

    # --- integrity ----------------------------------------------------------------------------------------------

    def scrubber(
        self,
        head: Head,
        *,
        pace: Callable[[int], Awaitable[None]],
        report: Callable[[Finding], None],
        repair: RepairSource | None = None,
        make_only: bool = False,
    ) -> Scrubber:
        """See ``engine.tvol.scrub``."""
        return Scrubber(
            self._core,
            self._head(head),
            pace=pace,
            report=report,
            rebind=self._rebind,
            repair=repair,
            make_only=make_only,
        )

    def scrub_bytes(self, head: Head) -> int:
        """How far a scrub of a volume has to go: it may be smaller than it was in one of its snapshots."""
        found = self._head(head).node
        return max(node.size_bytes for node in (found, *standing_on(self._core.family, found.volume_id)))

    def _rebind(self) -> None:
        for device in self._devices():
            device.rebind()

    @property
    def bad_chunks(self) -> int:
        """Chunks of the file that are marked bad."""
        return len(self._core.family.births.digests.bad)

    @property
    def digested_chunks(self) -> int:
        """Chunks of the file that have a digest."""
        return self._core.family.births.digests.made

    # --- staging ------------------------------------------------------------------------------------------------

    async def begin_staging(self, head: Head, base: Frozen | None) -> NativeHead:
        """A hidden writable area of ``head``'s volume, starting as ``base`` (or empty). Survives reopening.

        Raises InvalidState when the volume has one.
        """
        await self._core.make_room(pages=self._tree_pages())
        found = self._volume(head)
        if self.staging(found.volume_id):
            raise InvalidState(f"staging of {found.name!r}", "open", "none")
        core, node_id = self._core, self._new_node()
        base_id = self._sealed_snapshot(base).node_id if base is not None else 0
        core.log(
            RecordType.STAGING_BEGIN,
            layout.STAGING_BEGIN.pack(found.node_id, base_id, node_id, core.env.clock.time()),
        )
        staging = self._heads[node_id] = NativeHead(core, core.family.node(node_id), self)
        await core.flush()
        return staging

    def staging(self, volume_id: str) -> NativeHead | None:
        """The staging area of a volume, if one is open."""
        return next((h for h in self._heads.values() if h.staging and h.volume_id == volume_id), None)

    async def commit_staging(self, staging: Head, name: str, *, guid: str) -> tuple[NativeHead, NativeSnapshot]:
        """Freeze the staging area as recovery point ``guid`` and make it the volume's content: one atomic, durable
        step. What the head held is dropped; its device stays the same object. Raises as ``snapshot``."""
        found = self._staging_area(staging)
        head = next(h for h in self.volumes() if h.volume_id == found.volume_id)
        self._check_snapshot(head, name, guid)
        self._shut_all([found, head])
        try:
            await found.drained()
            await head.drained()
            await self._core.make_room(pages=2 * self._tree_pages(), reserved=True)
            self._check_snapshot(head, name, guid)
            core = self._core
            fixed = layout.STAGING_COMMIT.pack(found.node_id, head.node_id, self._new_node(), core.env.clock.time())
            self._housekeeper.deleted_seq = core.log(RecordType.STAGING_COMMIT, fixed + layout.pack_text(guid, name))
            self._drop_device(found, "committed")
            point = self._snapshots.add(NativeSnapshot(core, found.node))
        finally:
            found.reopen()
            head.reopen()
        await core.flush()
        self._housekeeper.wake()
        return head, point

    async def abort_staging(self, staging: Head) -> None:
        """Drop the staging area. Raises NotFound, StoreFailed."""
        found = self._staging_area(staging)
        self._shut_all([found])
        try:
            await found.drained()
            await self._core.make_room(reserved=True)
            self._delete([found])
        finally:
            found.reopen()
        await self._core.flush()
        self._housekeeper.wake()

    def _staging_area(self, device: Head) -> NativeHead:
        found = self._head(device)
        if not found.staging:
            raise InvalidArgument(f"{found.name!r} is not a staging area")
        return found

    def keepers(self, head: Head) -> list[str]:
        """See ``engine.stores.PurgingStore``: what lives in the same tree. Another tree in the file shares no node with
        it; what it was given by ``share`` is its own."""
        node = self._volume(head).node
        root = node
        while root.parent is not None:
            root = root.parent
        others = [each for each in tree_of(root) if each is not node and each.live]
        return [f"{'volume' if each.kind is NodeKind.HEAD else 'snapshot'} {each.name}" for each in others]

    async def purge(self) -> None:
        """No freed content can be read from the file when it returns.

        Freed chunks are given back to the host, or overwritten where it cannot punch holes. A deleted node with two
        children or more keeps its chunks for these: they are their content, and not freed. Raises InvalidState: space
        of deleted nodes is still to be reclaimed, and cannot be now. Raises StoreFailed.
        """
        core = self._core
        await self._reclaimed()
        while core.allocator.has_deferred:
            await core.quiet()
            await core.flush()
            core.release_freed()
        await self._housekeeper.idle()  # it may hold chunks that it is punching
        await core.punch_all()
        await core.zero_all()
        await core.flush()  # no sync of its own: one that fails may have lost what others wrote, and must be sticky

    async def _reclaimed(self) -> None:
        self._housekeeper.wake()
        await self._housekeeper.idle()
        if self._core.family.is_reclaiming():
            raise InvalidState(f"{self._core.path}", "not able to reclaim deleted snapshots now", "done with that")
        await self._core.flush()
        self._core.release_freed()

    async def settled(self) -> None:
        """Wait until nothing is left to do in the background (space of deleted nodes has come back)."""
        await self._housekeeper.idle()


def check_name(name: str) -> None:
    """Raises InvalidArgument for an identifier that the format cannot hold."""
    if not 0 < len(name.encode()) <= MAX_NAME_BYTES:
        raise InvalidArgument(f"a name has 1 to {MAX_NAME_BYTES} bytes")
