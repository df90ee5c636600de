"""Random users of a store: readers, writers, and those who snapshot, clone, roll back, delete and stage.

Each tells the oracle *before* a call what may happen, and *after* it what is certain. A call that raises a
refusal (in use, wrong state, no space) has done nothing certain: what it wrote stays possible, not promised.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.copy_job import CopyOptions, copy_extents
from engine.errors import (
    InUse,
    InvalidState,
    MediumError,
    NotFound,
    OutOfRange,
    OutOfSpace,
    StoreFailed,
    WriteProtected,
)
from engine.movers import ThreadMover
from engine.stores import BurstTarget
from engine.tvol.scrub import Found
from tests.simulation.family import SECTOR, Change, Family, MaybeClone, Snapshot, Staging, Volume
from tests.simulation.promises import promise
from tests.support.sim_loop import SimClock
from tests.support.volume_oracle import Content, Violation, Windows, moved, tagged

if TYPE_CHECKING:
    import random

    from engine.stores import Frozen, Head
    from engine.tvol.file import TvolFile
    from engine.tvol.head import NativeHead
    from engine.tvol.scrub import Finding
    from tests.support.sim_files import SimFileSystem
    from tests.support.sim_loop import SimWorkers

REFUSALS = (InUse, InvalidState, NotFound, OutOfSpace, WriteProtected)
SNAPSHOTS_MAX = 8
CANNOT_BE_READ = (Found.TRANSIENT, Found.MAP_LOST, Found.DIGESTS_LOST, Found.UNREADABLE_UNKNOWN)
"""What a scrub says where the host could not read once."""
HELD_S = 1e9
"""Longer than any life, whatever its clock says."""
VOLUMES_MAX = 3

IO = (
    "write",
    "try_write",
    "fua",
    "zeroes",
    "discard",
    "flush",
    "read",
    "churn",
    "lease",
    "atomic",
    "share",
    "purge",
    "scrub",
)
STRUCTURE = (
    "snapshot",
    "delete",
    "clone",
    "rollback",
    "resize",
    "drop",
    "staging",
    "changed",
    "offload",
    "hold",
    "promise",
    "flatten",
)


@dataclass(frozen=True, slots=True)
class Mood:
    """What clients prefer to do, as weights of ``IO`` and ``STRUCTURE``."""

    io: tuple[int, ...]
    structure: tuple[int, ...]


MOODS = {
    "mixed": Mood((20, 25, 5, 5, 6, 8, 8, 1, 6, 8, 6, 1, 2), (10, 6, 2, 3, 2, 1, 4, 1, 4, 3, 4, 3)),
    "reading while chunks die": Mood((8, 8, 8, 1, 16, 4, 30, 0, 1, 3, 2, 1, 3), (10, 8, 1, 1, 0, 0, 0, 0, 2, 0, 1, 1)),
    "filling the journal": Mood((3, 6, 3, 0, 0, 10, 1, 30, 1, 2, 1, 1, 2), (10, 8, 1, 1, 0, 0, 1, 0, 1, 1, 2, 1)),
    "snapshots come and go": Mood((10, 30, 2, 2, 4, 1, 4, 1, 4, 8, 6, 1, 4), (20, 24, 2, 2, 0, 1, 2, 0, 6, 8, 8, 3)),
    "sharing": Mood((10, 25, 2, 2, 6, 6, 6, 0, 4, 4, 30, 1, 2), (10, 14, 3, 4, 2, 2, 4, 1, 40, 2, 3, 1)),
    "scrubbing": Mood((12, 25, 3, 3, 6, 4, 4, 1, 4, 6, 4, 1, 25), (12, 14, 2, 2, 2, 1, 3, 0, 6, 2, 2, 1)),
    "clones come and go": Mood((10, 30, 2, 2, 4, 1, 4, 1, 4, 8, 6, 1, 4), (12, 10, 14, 2, 2, 3, 2, 0, 4, 1, 1, 30)),
}


async def read_all(device: Head | Frozen, windows: Windows) -> bytearray:
    """Every window of a device, one after the other."""
    buffer = bytearray(windows.sectors * SECTOR)
    view = memoryview(buffer)
    position = 0
    for offset, length in windows.parts:
        await device.read(offset, view[position : position + length])
        position += length
    return buffer


class Client:
    """One user, doing ``steps`` random things to the family."""

    def __init__(
        self,
        rng: random.Random,
        store: TvolFile,
        family: Family,
        files: SimFileSystem,
        workers: SimWorkers,
        mood: Mood,
    ) -> None:
        self.rng = rng
        self.workers = workers
        self.mood = mood
        self.store = store
        self.family = family
        self.files = files
        self.failed = False
        """The store said StoreFailed: nothing further succeeds until it is reopened."""

    async def run(self, steps: int, *, structural: float) -> None:
        for _ in range(steps):
            if self.files.dead or self.failed:
                return
            try:
                if self.rng.random() < structural:
                    await self._structural()
                else:
                    await self._io()
            except REFUSALS:
                continue
            except StoreFailed:
                self.failed = True
            except MediumError:
                self.failed = self.store.failed is not None

    def _decided(self) -> bool:
        """Whether a structural call that ended has an end that is known: not in a dead process or a failed store."""
        return not self.files.dead and self.store.failed is None

    # Input and output

    async def _io(self) -> None:
        volume = self._pick_volume()
        if volume is None:
            return
        volume.users += 1
        try:
            target: Volume | Staging = volume
            staging = volume.staging
            if staging is not None and staging.head is not None and self.rng.random() < 0.5:
                target = staging
            await self._one_io(target)
        finally:
            volume.users -= 1

    async def _one_io(self, target: Volume | Staging) -> None:
        head = target.head
        assert head is not None
        kind = self.rng.choices(IO, self.mood.io)[0]
        content = target.content
        if kind == "flush":
            captured = content.flushing()
            number = self.family.next()
            self.family.tell(f"{number} {head.name} flush")
            await head.flush()
            if not self.files.dead:
                self.family.tell(f"{number} done")
                content.flushed(captured)
        elif kind == "read":
            await self._read(head, target)
        elif kind == "purge":
            self.family.tell(f"{self.family.next()} purge")
            await self.store.purge()
        elif kind == "scrub":
            await self._scrub(head)
        elif kind == "try_write":
            await self._try_writes(head, target)
        elif kind == "churn":
            await self._churn(head, target)
        elif kind == "lease":
            await self._lease(head, target)
        elif kind == "share":
            await self._share(head, target)
        else:
            await self._change(kind, head, target, self._extent(target.windows))

    async def _scrub(self, head: NativeHead) -> None:
        """Nothing rots here, so whatever a scrub finds is a false alarm; but what cannot be read it has to tell."""
        number = self.family.next()
        make_only = self.rng.random() < 0.3
        self.family.tell(f"{number} {head.name} scrub{' (new ones only)' if make_only else ''}")

        async def pace(length: int) -> None:
            for _ in range(self.rng.choice((0, 0, 1, 5))):
                await asyncio.sleep(0)

        def report(finding: Finding) -> None:
            if self.files.struck["read: simulated EIO"] and finding.found in CANNOT_BE_READ:
                return
            raise Violation(f"a scrub without rot says: {finding}")

        scrubber = self.store.scrubber(head, pace=pace, report=report, make_only=make_only)
        await scrubber.run(0, -(-self.store.scrub_bytes(head) // self.store.chunk_bytes))
        if not self.files.dead:
            self.family.tell(f"{number} done: {scrubber.counts}")

    async def write_somewhere(self) -> None:
        """One write of a chunk, to be done now. Raises OutOfSpace."""
        volume = self._pick_volume()
        if volume is None or self.files.dead or self.store.failed is not None:
            return
        volume.users += 1
        try:
            assert volume.head is not None
            start = self.rng.randrange(volume.windows.sectors) // 128 * 128
            await self._change("write", volume.head, volume, self.rng.choice(volume.windows.within(start, 128)))
        except (InvalidState, NotFound, StoreFailed, MediumError):
            return
        finally:
            volume.users -= 1

    async def _lease(self, head: NativeHead, target: Volume | Staging) -> None:
        """A range handed to one worker, as the copy loop does: written, then published in whole or in part."""
        start = self.rng.randrange(target.windows.sectors) // 128 * 128
        start, offset, length = self.rng.choice(target.windows.within(start, 128 * self.rng.randint(1, 4)))
        number = self.family.next()
        self.family.tell(
            f"{number} {head.name} lease {offset}+{length} sectors {start}..{start + length // SECTOR - 1}"
        )
        lease = await head.lease_write(offset, length)
        if lease is None:
            return
        try:
            data = memoryview(tagged(number, start, length // SECTOR, target.writer))
            unit = lease.unit_bytes
            ranges = [(at, unit) for at in range(0, length, unit) if self.rng.random() < 0.9]
            for at, size in ranges:
                await self.workers.run(lambda at=at, size=size: lease.write(at, data[at : at + size]))
            if self.files.dead:
                return
            await lease.publish(ranges)
        finally:
            if not self.files.dead:
                lease.release()
        if not self.files.dead:
            self.family.tell(f"{number} done")
            for at, size in ranges:
                first = start + at // SECTOR
                target.content.acknowledged(
                    first, first + size // SECTOR, number, value=number, durable=target.write_through
                )

    async def _share(self, head: NativeHead, target: Volume | Staging, snapshot: Snapshot | None = None) -> None:
        """A range of a snapshot, of this volume or another, at another place or the same."""
        snapshot = snapshot or self._pick_snapshot()
        if snapshot is None:
            return
        snapshot.users += 1
        try:
            await self._pin(snapshot)
            if self.files.dead or target.head is not head or snapshot.frozen is None:
                return
            unit = self.store.capabilities.share_unit
            count = self.rng.choice((1, 1, 2, 4, 13))
            source_start, source_offset, source_length = self._units(snapshot.windows, unit, count)
            start, offset, length = self._units(target.windows, unit, count)
            if self.rng.random() < 0.3 and snapshot.windows == target.windows:
                start, offset, length = source_start, source_offset, source_length
            length = min(length, source_length)
            sectors = length // SECTOR
            tokens = snapshot.content.cached_base[source_start : source_start + sectors]
            tokens = moved(tokens, source_start, start)
            number = self.family.next()
            self.family.tell(
                f"{number} {head.name} share {offset}+{length} sectors {start}..{start + sectors - 1} from "
                f"{snapshot.frozen.name} {source_offset}"
            )
            target.content.sharing(start, tokens, number)
            shared = await self.store.share(snapshot.frozen, source_offset, head, offset, length)
            if not self.files.dead:
                self.family.tell(f"{number} done")
                assert shared == length
                target.content.acknowledged(start, start + sectors, number, value=tokens, durable=target.write_through)
        finally:
            snapshot.users -= 1

    def _units(self, windows: Windows, unit: int, count: int) -> tuple[int, int, int]:
        """Up to ``count`` whole chunks of a window: (sector in the windows, offset, length), of none length 0."""
        begin = 0
        choices = []
        for offset, length in windows.parts:
            first, end = -(-offset // unit), (offset + length) // unit
            choices.extend((chunk, min(count, end - chunk), begin - offset // SECTOR) for chunk in range(first, end))
            begin += length // SECTOR
        if not choices:
            return 0, 0, 0
        chunk, count, shift = self.rng.choice(choices)
        return chunk * unit // SECTOR + shift, chunk * unit, count * unit

    async def _churn(self, head: Head, target: Volume | Staging) -> None:
        """Much journal for little data: chunks are given back and taken anew."""
        for _ in range(self.rng.randint(5, 60)):
            if self.files.dead:
                return
            start = self.rng.randrange(target.windows.sectors) // 128 * 128
            (start, offset, length), *_ = target.windows.within(start, 128)
            await self._change(self.rng.choice(("discard", "zeroes")), head, target, (start, offset, length))
            if self.files.dead:
                return
            await self._pass(head, target, [(start, offset, min(length, 4096))])

    async def _change(
        self, kind: str, head: NativeHead, target: Volume | Staging, extent: tuple[int, int, int]
    ) -> None:
        content = target.content
        start, offset, length = extent
        end = start + length // SECTOR
        number = self.family.next()
        self.family.tell(f"{number} {head.name} {kind} {offset}+{length} sectors {start}..{end - 1}")
        if kind in ("write", "fua", "atomic"):
            data = tagged(number, start, end - start, target.writer)
            if kind == "atomic":
                content.atomic[number] = (start, end)
                await head.write_atomic(offset, memoryview(data))
            else:
                await head.write(offset, memoryview(data), fua=kind == "fua")
            if not self.files.dead:
                self.family.tell(f"{number} done")
                content.acknowledged(start, end, number, value=number, durable=kind == "fua" or target.write_through)
            return
        content.zeroing(start, end, number)
        if kind == "zeroes":
            fua = self.rng.random() < 0.2
            await head.write_zeroes(offset, length, fua=fua)
            if not self.files.dead:
                self.family.tell(f"{number} done")
                content.acknowledged(start, end, number, value=0, durable=fua or target.write_through)
        else:
            unit = self.store.chunk_bytes
            try:
                await head.discard(offset, length)
            except OutOfSpace as error:
                if (offset | length) % unit == 0:
                    raise Violation(f"a discard of whole chunks lacks space: {error}") from error
                raise
            if not self.files.dead:
                self.family.tell(f"{number} done")
                content.acknowledged(start, end, number, value=0, durable=target.write_through)

    async def _try_writes(self, head: Head, target: Volume | Staging) -> None:
        extents = [self._extent(target.windows) for _ in range(self.rng.randint(1, 4))]
        if self.rng.random() < 0.5:
            length = min(length for _, _, length in extents)
            await self._pass(head, target, [(start, offset, length) for start, offset, _ in extents], together=True)
        else:
            await self._pass(head, target, extents)

    async def _pass(
        self, head: Head, target: Volume | Staging, extents: list[tuple[int, int, int]], *, together: bool = False
    ) -> None:
        """A pass of the loop: some writes, the journal once, then the answers. ``together``: as a burst."""
        writes = []
        for start, offset, length in extents:
            number, sectors = self.family.next(), length // SECTOR
            writes.append((number, start, start + sectors, offset, tagged(number, start, sectors, target.writer)))
            self.family.tell(f"{number} {head.name} try_write {offset}+{length} sectors {start}..{start + sectors - 1}")
        done = 0
        if together:
            assert isinstance(head, BurstTarget)
            data, length = memoryview(b"".join(write[-1] for write in writes)), extents[0][2]
            done = head.try_write_each([offset for _, offset, _ in extents], data, length, length)
        else:
            for _, _, _, offset, alone in writes:
                if not head.try_write(offset, memoryview(alone)):
                    break
                done += 1
                if self.files.dead:
                    return
        if self.files.dead:
            return
        head.end_pass()
        if self.files.dead:
            return
        for number, start, end, _, _ in writes[:done]:
            self.family.tell(f"{number} done")
            target.content.acknowledged(start, end, number, value=number, durable=target.write_through)
        for number, start, end, offset, alone in writes[
            done : done + 1
        ]:  # it was declined; those behind it are not made
            await head.write(offset, memoryview(alone))
            if not self.files.dead:
                self.family.tell(f"{number} done")
                target.content.acknowledged(start, end, number, value=number, durable=target.write_through)

    async def _read(self, head: Head, target: Volume | Staging) -> None:
        start, offset, length = self._extent(target.windows)
        end = start + length // SECTOR
        content = target.content
        floor = content.floor_of(start, end)
        buffer = bytearray(length)
        if self.rng.random() < 0.5 or not head.try_read(offset, memoryview(buffer)):
            await head.read(offset, memoryview(buffer))
        if not self.files.dead:
            content.verify(buffer, start, floor, "a read")

    def _extent(self, windows: Windows) -> tuple[int, int, int]:
        """A random extent: (sector in the windows, offset, length). Sizes from one sector to several chunks."""
        total = windows.sectors
        count = self.rng.choice((1, 1, 8, 8, 8, 64, 128, 128, 200, 300))
        start = self.rng.randrange(total)
        if count >= 8 and self.rng.random() < 0.7:
            start -= start % (128 if count >= 128 else 8)
        count = min(count, total - start)
        return self.rng.choice(windows.within(start, count))

    # Structure

    async def _structural(self) -> None:
        kind = self.rng.choices(STRUCTURE, self.mood.structure)[0]
        await getattr(self, f"_{kind}")()

    def _pick_volume(self, *, alone: bool = False) -> Volume | None:
        fit = [v for v in self.family.volumes.values() if not v.exclusive and v.head is not None]
        if alone:
            fit = [volume for volume in fit if volume.users == 0]
        return self.rng.choice(fit) if fit else None

    def _pick_snapshot(self, volume_id: str | None = None) -> Snapshot | None:
        fit = [
            s
            for s in self.family.snapshots.values()
            if s.certain and not s.doomed and s.frozen is not None and volume_id in (None, s.volume_id)
        ]
        return self.rng.choice(fit) if fit else None

    def _guid(self) -> str:
        return str(uuid.UUID(int=self.rng.getrandbits(128), version=4))

    async def _offload(self) -> None:
        """What an offloaded copy does: freeze the source, share, drop the frozen state."""
        snapshot = await self._snapshot()
        volume = self._pick_volume()
        if snapshot is None or volume is None or self.files.dead:
            return
        assert volume.head is not None
        volume.users += 1
        try:
            await self._share(volume.head, volume, snapshot)
        finally:
            volume.users -= 1
        if not self.files.dead and snapshot.guid in self.family.snapshots and not snapshot.doomed:
            await self._delete(snapshot)

    async def _snapshot(self) -> Snapshot | None:
        await self.store.prepare_flip()  # so that the flip is in the first step of ``snapshot``, as asked below
        if self.files.dead:
            return None
        volume = self._pick_volume()
        if volume is None or len(self.family.snapshots) >= SNAPSHOTS_MAX:
            return None
        volume.users += 1
        try:
            await self.store.prepare_flip()
        except REFUSALS:
            volume.users -= 1
            raise
        guid = self._guid()
        name = f"s{self.family.next()}"
        head = volume.head
        assert head is not None
        content = volume.content.frozen_at(self.family.number)
        snapshot = Snapshot(guid, volume.volume_id, volume.size_bytes, volume.windows, content)
        self.family.snapshots[guid] = snapshot
        self.family.tell(f"{self.family.number} {head.name} snapshot {name}")
        try:
            frozen = await self.store.snapshot(head, name, guid=guid)
        except REFUSALS:
            del self.family.snapshots[guid]
            raise
        finally:
            volume.users -= 1
        if self.files.dead:
            return None
        snapshot.frozen = frozen
        snapshot.certain = True
        self.family.tell(f"snapshot {name} done")
        if self.rng.random() < 0.5:
            snapshot.users += 1
            await self._pin(snapshot)
            snapshot.users -= 1
        return snapshot

    async def _pin(self, snapshot: Snapshot) -> None:
        """Read a snapshot whole: what it shows now it must show for ever."""
        frozen = snapshot.frozen
        if frozen is None:
            return
        data = await read_all(frozen, snapshot.windows)
        if self.files.dead:
            return
        content = snapshot.content
        what = f"snapshot {frozen.name!r}"
        values = content.verify(data, 0, (content.cached_base, content.cached_floor), what)
        content.observed(values, self.family.number, durable=True)

    async def _delete(self, snapshot: Snapshot | None = None) -> None:
        snapshot = snapshot or self._pick_snapshot()
        if snapshot is None or snapshot.users:
            return
        volume = self.family.volumes.get(snapshot.volume_id)
        if volume is not None and volume.exclusive:
            return
        snapshot.doomed = True
        assert snapshot.frozen is not None
        self.family.tell(f"delete snapshot {snapshot.frozen.name}")
        try:
            await self.store.delete_snapshot(snapshot.frozen)
        except OutOfSpace as error:
            raise Violation(f"a deletion lacks space: {error}") from error
        except REFUSALS:
            snapshot.doomed = False
            raise
        if not self.files.dead:
            self._deleted_free(snapshot)
            self.family.snapshots.pop(snapshot.guid, None)

    def _deleted_free(self, snapshot: Snapshot) -> None:
        promised = snapshot.holds - snapshot.maybe_holds
        if promised:
            raise Violation(f"snapshot {snapshot.guid} was deleted, though {promised} hold it")

    async def _promise(self) -> None:
        if len(self.family.snapshots) < SNAPSHOTS_MAX:
            await promise(self, REFUSALS)

    async def _hold(self) -> None:
        """Hold a snapshot, or give it free."""
        snapshot = self._pick_snapshot()
        if snapshot is None or snapshot.frozen is None:
            return
        owner = self.rng.choice(("backup", "test"))
        if owner in snapshot.maybe_holds:
            return
        snapshot.maybe_holds.add(owner)
        hold = owner not in snapshot.holds or self.rng.random() < 0.2
        self.family.tell(f"{'hold' if hold else 'release'} {snapshot.frozen.name} for {owner}")
        try:
            if hold:
                now = max(self.store._core.env.clock.time(), SimClock.EPOCH)  # no later process is ahead of that
                expiry = now + HELD_S if self.rng.random() < 0.5 else None
                await self.store.notes.hold(snapshot.frozen, owner, expiry)
            else:
                await self.store.notes.release(snapshot.frozen, owner)
            if not self.files.dead:
                (snapshot.holds.add if hold else snapshot.holds.discard)(owner)
        finally:
            if self._decided():
                snapshot.maybe_holds.discard(owner)

    async def _clone(self) -> None:
        snapshot = self._pick_snapshot()
        if snapshot is None or len(self.family.volumes) + len(self.family.maybe_clones) >= VOLUMES_MAX:
            return
        snapshot.users += 1
        writer = next(self.family.writers)
        name = f"c{self.family.next()}"
        content = snapshot.content.heir(writer, self.family.number)
        maybe = MaybeClone(name, snapshot.size_bytes, snapshot.windows, content, writer)
        self.family.maybe_clones[name] = maybe
        self.family.tell(f"clone {name} of {snapshot.frozen.name if snapshot.frozen else None}")
        try:
            assert snapshot.frozen is not None
            head = await self.store.clone(snapshot.frozen, name)
        finally:
            snapshot.users -= 1
            if self._decided():
                self.family.maybe_clones.pop(name, None)
        if not self.files.dead:
            self.family.adopt(head, snapshot.windows, content, writer)

    async def _flatten(self) -> None:
        """A copy of what a clone inherits, while everybody goes on using it; then it leaves its origin."""
        volume = self._pick_volume()
        if volume is None:
            return
        head = volume.head
        assert head is not None
        self.family.tell(f"flatten {volume.name}")
        try:
            for _ in range(self.rng.randint(1, 2)):
                shared = await self.store.inherited(head)
                if shared is None or self.files.dead:
                    break
                mover = ThreadMover(self.workers)
                await copy_extents(shared, shared, options=CopyOptions(blank_target=True), mover=mover)
        except OutOfRange:  # it became smaller
            return
        if not self.files.dead and await self.store.separate(head) and not self.files.dead:
            self.family.tell(f"{volume.name} is apart")
            self.family.apart.add(volume.volume_id)

    async def _rollback(self) -> None:
        volume = self._pick_volume(alone=True)
        snapshot = self._pick_snapshot(volume.volume_id) if volume is not None else None
        if volume is None or snapshot is None or volume.staging is not None:
            return
        if len(self.family.snapshots) >= SNAPSHOTS_MAX:
            return
        assert volume.head is not None
        assert snapshot.frozen is not None
        volume.exclusive = True
        snapshot.users += 1
        self.family.apart.discard(volume.volume_id)  # a snapshot older than a staging area may hang on the origin
        number = self.family.next()
        self.family.tell(f"{number} {volume.name} rollback to {snapshot.frozen.name}")
        self.family.rolling_back[volume.volume_id] = kept = volume.content.frozen_at(number)
        content = snapshot.content.heir(volume.writer, number)
        volume.other = Change(content, snapshot.size_bytes, snapshot.windows)
        before = {item.guid for item in self.store.snapshots(volume.volume_id)}
        old_size, old_windows = volume.size_bytes, volume.windows
        try:
            head = await self.store.rollback(volume.head, snapshot.frozen)
            if self.files.dead:
                return
            for item in self.store.snapshots(volume.volume_id):
                if item.guid not in before and item.guid not in self.family.snapshots:
                    new = Snapshot(item.guid, volume.volume_id, old_size, old_windows, kept, certain=True, frozen=item)
                    self.family.snapshots[item.guid] = new
            volume.head, volume.content, volume.size_bytes = head, content, snapshot.size_bytes
            volume.windows = snapshot.windows
        finally:
            if self._decided():
                self.family.rolling_back.pop(volume.volume_id, None)
                volume.other = None
                volume.exclusive = False
                snapshot.users -= 1

    async def _resize(self) -> None:
        volume = self._pick_volume(alone=True)
        if volume is None or len(volume.windows.parts) != 1 or volume.staging is not None:
            return
        assert volume.head is not None
        size = self.rng.randrange(1, 24) * 32768 + self.rng.choice((0, 0, SECTOR * 8))
        volume.exclusive = True
        number = self.family.next()
        self.family.tell(f"{number} {volume.name} resize {size}")
        windows = Windows(((0, size),))
        # Of a shrink that did not finish, the end may be cleared and still be there.
        volume.content.zeroing(windows.sectors, volume.content.sectors, number)
        change = Change(volume.content.resized(windows.sectors, number), size, windows)
        volume.other = change
        try:
            await volume.head.resize(size)
            if not self.files.dead:
                volume.content, volume.size_bytes, volume.windows = change.content, size, windows
        finally:
            if self._decided():
                volume.other = None
                volume.exclusive = False

    async def _drop(self) -> None:
        """Delete a whole volume with its snapshots, if it is not the last."""
        volume = self._pick_volume(alone=True)
        if volume is None or len(self.family.volumes) < 2:
            return
        its = [s for s in self.family.snapshots.values() if s.volume_id == volume.volume_id]
        if any(snapshot.users or snapshot.doomed or not snapshot.certain for snapshot in its):
            return
        assert volume.head is not None
        volume.exclusive = True
        for snapshot in its:
            snapshot.doomed = True
        self.family.maybe_deleted.add(volume.volume_id)
        self.family.tell(f"delete volume {volume.name}")
        try:
            await self.store.delete_volume(volume.head)
            if not self.files.dead:
                del self.family.volumes[volume.volume_id]
                for snapshot in its:
                    self._deleted_free(snapshot)
                    del self.family.snapshots[snapshot.guid]
        except REFUSALS:  # it has linked clones, or a snapshot is held
            for snapshot in its:
                snapshot.doomed = False
            raise
        finally:
            if self._decided():
                self.family.maybe_deleted.discard(volume.volume_id)
                volume.exclusive = False

    async def _staging(self) -> None:
        volume = self._pick_volume(alone=True)
        if volume is None or volume.head is None:
            return
        volume.exclusive = True
        try:
            if volume.staging is None:
                await self._begin_staging(volume)
            elif self.rng.random() < 0.5:
                await self._commit_staging(volume, volume.staging)
            else:
                assert volume.staging.head is not None
                volume.staging.aborting = True
                self.family.tell(f"{volume.name} abort staging")
                await self.store.abort_staging(volume.staging.head)
                if not self.files.dead:
                    volume.staging = None
        finally:
            if self._decided():
                volume.exclusive = False

    async def _begin_staging(self, volume: Volume) -> None:
        assert volume.head is not None
        base = self._pick_snapshot(volume.volume_id) if self.rng.random() < 0.7 else None
        writer = next(self.family.writers)
        number = self.family.next()
        if base is None:
            content, size, windows = (
                Content(volume.windows.sectors, {writer: 1 << 62}),
                volume.size_bytes,
                volume.windows,
            )
        else:
            content, size, windows = base.content.heir(writer, number), base.size_bytes, base.windows
        volume.staging = staging = Staging(content, windows, size, writer)
        self.family.tell(
            f"{number} {volume.name} begin staging on {base.frozen.name if base and base.frozen else None}"
        )
        try:
            head = await self.store.begin_staging(volume.head, base.frozen if base is not None else None)
        except REFUSALS:
            volume.staging = None
            raise
        if not self.files.dead:
            staging.head, staging.certain = head, True

    async def _commit_staging(self, volume: Volume, staging: Staging) -> None:
        assert staging.head is not None
        if len(self.family.snapshots) >= SNAPSHOTS_MAX:
            return
        guid = self._guid()
        name = f"r{self.family.next()}"
        frozen_content = staging.content.frozen_at(self.family.number)
        content = staging.content.heir(volume.writer, self.family.number)
        snapshot = Snapshot(guid, volume.volume_id, staging.size_bytes, staging.windows, frozen_content)
        self.family.snapshots[guid] = snapshot
        staging.commit = guid
        self.family.tell(f"{self.family.number} {volume.name} commit staging as {name}")
        volume.other = Change(content, staging.size_bytes, staging.windows)
        try:
            head, frozen = await self.store.commit_staging(staging.head, name, guid=guid)
        except REFUSALS:
            del self.family.snapshots[guid]
            staging.commit = volume.other = None
            raise
        if self.files.dead:
            return
        snapshot.frozen, snapshot.certain = frozen, True
        volume.head, volume.content, volume.staging, volume.other = head, content, None, None
        volume.size_bytes, volume.windows = staging.size_bytes, staging.windows

    async def _changed(self) -> None:
        """Ranges between two snapshots must cover every sector in which they differ."""
        older, newer = self._pick_snapshot(), self._pick_snapshot()
        if older is None or newer is None or older is newer or older.windows != newer.windows:
            return
        older.users += 1
        newer.users += 1
        try:
            await self._pin(older)
            await self._pin(newer)
            assert older.frozen is not None
            assert newer.frozen is not None
            told = [(e.offset, e.end) async for e in self.store.changed(older.frozen, newer.frozen)]
        finally:
            older.users -= 1
            newer.users -= 1
        if self.files.dead:
            return
        for sector in (older.content.cached_base != newer.content.cached_base).nonzero()[0].tolist():
            (_, offset, _), *_ = older.windows.within(sector, 1)
            assert any(start <= offset < end for start, end in told), f"changed() misses sector {sector}"
