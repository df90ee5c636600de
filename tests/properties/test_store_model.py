"""The store against plain byte arrays: any sequence of operations reads as if each volume were a ``bytearray``.

No crashes here (``tests/simulation`` has them); reopening is a clean close or a kill, after which everything
acknowledged is there. Runs on the simulated machine, and a fixed set of sequences on the real file system.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import uuid
from dataclasses import dataclass
from pathlib import Path

import hypothesis.strategies as st
import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from engine.copy_job import CopyOptions, copy_extents
from engine.errors import InUse, InvalidState
from engine.files import StoreEnv, real_env
from engine.movers import ThreadMover
from engine.stores import ExtentState
from engine.tvol.check import check_file
from engine.tvol.chunk_map import LEAF_MASK, LEAF_SHIFT
from engine.tvol.file import TvolFile
from engine.tvol.layout import FIRST_CHUNK_ENTRY, LEAF_ENTRIES
from engine.tvol.partials import PARTIAL_SCALAR
from tests.support.map_leaves import resident_leaves
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import SimClock, SimLoop, SimWorkers

SECTOR = 512
CHUNK = 65536
MAX_SECTORS = 6 * CHUNK // SECTOR
PATH = Path("/pool/v.tvol")

sectors = st.integers(0, MAX_SECTORS - 1) | st.sampled_from([0, 127, 128, 129, 255, 256])
counts = st.integers(1, 300) | st.sampled_from([1, 8, 128, 256])
fills = st.integers(1, 255)
picks = st.integers(0, 1000)


@dataclass
class Volume:
    """A volume and what it should hold."""

    head: object
    data: bytearray
    staging: Volume | None = None


@dataclass
class Snapshot:
    """A snapshot and what it must hold for ever."""

    frozen: object
    data: bytes
    volume_id: str


class Model:
    """The operations, each done to the store and to the arrays; async so that any loop can run them."""

    def __init__(self, env: StoreEnv, path: Path) -> None:
        self.env = env
        self.path = path
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.names = iter(range(1, 1_000_000))

    async def create(self, size: int) -> None:
        self.store = await TvolFile.create(
            self.env, self.path, volume_name="vol", size_bytes=size, chunk_bytes=CHUNK, journal_bytes=CHUNK
        )
        head = self.store.volumes()[0]
        self.volumes[head.volume_id] = Volume(head, bytearray(size))

    def volume(self, pick: int) -> Volume:
        """A volume, or now and then its staging area."""
        volume = list(self.volumes.values())[pick % len(self.volumes)]
        if volume.staging is not None and pick % 3 == 0:
            return volume.staging
        return volume

    def snapshot_of(self, pick: int, volume_id: str | None = None) -> Snapshot | None:
        fit = [item for item in self.snapshots.values() if volume_id in (None, item.volume_id)]
        return fit[pick % len(fit)] if fit else None

    def extent(self, volume: Volume, sector: int, count: int) -> tuple[int, int]:
        size = len(volume.data)
        offset = sector * SECTOR % size
        return offset, min(count * SECTOR, size - offset)

    async def write(self, pick: int, sector: int, count: int, fill: int, *, fua: bool, atomic: bool) -> None:
        volume = self.volume(pick)
        offset, length = self.extent(volume, sector, count)
        write = volume.head.write_atomic if atomic else volume.head.write
        await write(offset, memoryview(bytes([fill]) * length), fua=fua)
        volume.data[offset : offset + length] = bytes([fill]) * length

    async def try_writes(self, pick: int, writes: list[tuple[int, int, int]]) -> None:
        volume = self.volume(pick)
        for sector, count, fill in writes:
            offset, length = self.extent(volume, sector, count)
            data = memoryview(bytes([fill]) * length)
            if not volume.head.try_write(offset, data):
                volume.head.end_pass()
                await volume.head.write(offset, data)
            volume.data[offset : offset + length] = data
        volume.head.end_pass()

    async def try_write_each(self, pick: int, writes: list[tuple[int, int]], count: int) -> None:
        """As many as the head takes together, the others one by one."""
        volume = self.volume(pick)
        count = min(count, len(volume.data) // SECTOR)
        length, places = count * SECTOR, len(volume.data) // SECTOR - count + 1
        offsets = [sector % places * SECTOR for sector, _ in writes]
        pieces = [bytes([fill]) * length + b"between" for _, fill in writes]
        done = volume.head.try_write_each(offsets, memoryview(b"".join(pieces)), length + 7, length)
        volume.head.end_pass()
        for number, (offset, piece) in enumerate(zip(offsets, pieces, strict=True)):
            if number >= done:
                await volume.head.write(offset, memoryview(piece)[:length])
            volume.data[offset : offset + length] = piece[:length]

    async def zero(self, pick: int, sector: int, count: int, *, discard: bool) -> None:
        volume = self.volume(pick)
        offset, length = self.extent(volume, sector, count)
        if discard:
            await volume.head.discard(offset, length)
        else:
            await volume.head.write_zeroes(offset, length)
        volume.data[offset : offset + length] = bytes(length)

    async def snapshot(self, pick: int) -> None:
        volume_id = list(self.volumes)[pick % len(self.volumes)]
        volume = self.volumes[volume_id]
        guid = str(uuid.UUID(int=next(self.names)))
        frozen = await self.store.snapshot(volume.head, f"s{next(self.names)}", guid=guid)
        assert frozen.guid == guid
        self.snapshots[guid] = Snapshot(frozen, bytes(volume.data), volume_id)

    async def flatten(self, pick: int) -> None:
        """What a volume inherits becomes its own; it hangs on others only as long as its snapshots do."""
        head = list(self.volumes.values())[pick % len(self.volumes)].head
        while (shared := await self.store.inherited(head)) is not None:
            mover = ThreadMover(self.env.workers)
            await copy_extents(shared, shared, options=CopyOptions(blank_target=True), mover=mover)
        assert await self.store.separate(head)
        assert self.store.origin(head) is None

    async def clone(self, pick: int) -> None:
        origin = self.snapshot_of(pick)
        if origin is not None:
            head = await self.store.clone(origin.frozen, f"c{next(self.names)}")
            self.volumes[head.volume_id] = Volume(head, bytearray(origin.data))

    async def rollback(self, pick: int) -> None:
        target = self.snapshot_of(pick)
        if target is None or self.volumes[target.volume_id].staging is not None:
            return
        volume = self.volumes[target.volume_id]
        known = set(self.snapshots)
        head = await self.store.rollback(volume.head, target.frozen)
        for frozen in self.store.snapshots(target.volume_id):
            if frozen.guid not in known:
                self.snapshots[frozen.guid] = Snapshot(frozen, bytes(volume.data), target.volume_id)
        assert head.volume_id == target.volume_id
        volume.head, volume.data = head, bytearray(target.data)

    async def delete_snapshot(self, pick: int) -> None:
        target = self.snapshot_of(pick)
        if target is not None:
            await self.store.delete_snapshot(target.frozen)
            del self.snapshots[target.frozen.guid]

    async def delete_volume(self, pick: int) -> None:
        volume_id = list(self.volumes)[pick % len(self.volumes)]
        has_snapshots = any(item.volume_id == volume_id for item in self.snapshots.values())
        if len(self.volumes) > 1 and not has_snapshots and self.volumes[volume_id].staging is None:
            try:
                await self.store.delete_volume(self.volumes[volume_id].head)
            except InUse:  # for clones of snapshots that are deleted themselves
                assert any(self.store.origin(volume.head) for volume in self.volumes.values())
            else:
                del self.volumes[volume_id]

    async def purge(self) -> None:
        try:
            await self.store.purge()
        except InvalidState:  # a deleted snapshot waits for the volumes that stand on it
            assert any(len(node.children) > 1 for node in self.store._core.family.deleted.values())

    async def resize(self, pick: int, count: int) -> None:
        volume = list(self.volumes.values())[pick % len(self.volumes)]
        size = count * SECTOR * 2
        await volume.head.resize(size)
        volume.data = volume.data[:size].ljust(size, b"\0")

    async def share(self, pick: int, source: int, source_chunk: int, chunk: int, count: int) -> None:
        origin, volume = self.snapshot_of(source), self.volume(pick)
        if origin is None:
            return
        unit = self.store.capabilities.share_unit
        rooms = [len(data) // unit for data in (origin.data, volume.data)]
        if not all(rooms):
            return
        source_at, at = source_chunk % rooms[0], chunk % rooms[1]
        count = min(count, rooms[0] - source_at, rooms[1] - at)
        shared = await self.store.share(origin.frozen, source_at * unit, volume.head, at * unit, count * unit)
        assert shared == count * unit
        volume.data[at * unit : at * unit + shared] = origin.data[source_at * unit : source_at * unit + shared]

    async def offload(self, pick: int, source: int, source_chunk: int, chunk: int, count: int) -> None:
        """As an offloaded copy: freeze, share, drop what was frozen, whose space comes back."""
        before = set(self.snapshots)
        await self.snapshot(source)
        (guid,) = set(self.snapshots) - before
        self.snapshots = {guid: self.snapshots.pop(guid), **self.snapshots}
        await self.share(pick, 0, source_chunk, chunk, count)
        await self.store.delete_snapshot(self.snapshots.pop(guid).frozen)
        await self.store.settled()

    async def stage(self, pick: int) -> None:
        volume_id = list(self.volumes)[pick % len(self.volumes)]
        volume = self.volumes[volume_id]
        if volume.staging is None:
            base = self.snapshot_of(pick, volume_id) if pick % 2 else None
            head = await self.store.begin_staging(volume.head, base.frozen if base else None)
            volume.staging = Volume(head, bytearray(base.data if base else len(volume.data)))
        elif pick % 3:
            guid = str(uuid.UUID(int=next(self.names)))
            staged = volume.staging
            head, frozen = await self.store.commit_staging(staged.head, f"r{next(self.names)}", guid=guid)
            self.snapshots[guid] = Snapshot(frozen, bytes(staged.data), volume_id)
            self.volumes[volume_id] = Volume(head, bytearray(staged.data))
        else:
            await self.store.abort_staging(volume.staging.head)
            volume.staging = None

    async def changed(self, pick: int, other: int) -> None:
        """Covers every difference; and a range not told is identical."""
        newer = self.snapshot_of(pick)
        older = self.snapshot_of(other)
        if newer is None or older is None or len(newer.data) != len(older.data):
            return
        told = [item async for item in self.store.changed(older.frozen, newer.frozen)]
        assert all(first.end <= second.offset for first, second in itertools.pairwise(told))
        rest = bytearray(newer.data)
        for item in told:
            rest[item.offset : item.end] = older.data[item.offset : item.end]
        assert bytes(rest) == older.data

    async def reopen(self, pick: int) -> None:
        await self.store.close()
        assert not check_file(self.path, files=self.env.files).findings
        await self.open_again()

    async def open_again(self) -> None:
        self.store = await TvolFile.open(self.env, self.path)
        assert {head.volume_id for head in self.store.volumes()} == set(self.volumes)
        assert {frozen.guid for frozen in self.store.snapshots()} == set(self.snapshots)
        for head in self.store.volumes():
            volume = self.volumes[head.volume_id]
            volume.head = head
            staging = self.store.staging(head.volume_id)
            assert (staging is None) == (volume.staging is None)
            if volume.staging is not None:
                volume.staging.head = staging
        for frozen in self.store.snapshots():
            self.snapshots[frozen.guid].frozen = frozen

    def nobody_else_has_what_is_written_in_place(self) -> None:
        """The in-place rule, as the hot path asks it, against all maps of the file."""
        family = self.store._core.family
        claims, partials = family.claims, family.claims.partials
        holders: dict[int, set[tuple[int, int]]] = {}
        for node in family.nodes.values():
            for number, leaf in enumerate(resident_leaves(self.store, node)):
                for slot in np.flatnonzero(leaf.array >= FIRST_CHUNK_ENTRY).tolist():
                    named = claims.chunks_of(claims.of_entries(leaf.array[slot : slot + 1]))
                    for chunk in named.tolist():
                        holders.setdefault(chunk, set()).add((node.id, number * LEAF_ENTRIES + slot))
        for volume in self.volumes.values():
            node = volume.head.node
            leaves = resident_leaves(self.store, node)
            for index in range(-(-node.size_bytes // CHUNK)):
                entry = leaves[index >> LEAF_SHIFT].view[index & LEAF_MASK]
                if PARTIAL_SCALAR <= entry < 0:
                    entry -= PARTIAL_SCALAR
                    assert partials.mask(entry)
                if entry >= FIRST_CHUNK_ENTRY and family.births.view[entry] > node.floor:
                    assert holders[entry] == {(node.id, index)}

    async def compare(self) -> None:
        """Everything reads as its array, and the extents say where there is data."""
        devices = [(item.frozen, item.data) for item in self.snapshots.values()]
        for volume in self.volumes.values():
            devices.append((volume.head, volume.data))
            if volume.staging is not None:
                devices.append((volume.staging.head, volume.staging.data))
        for device, data in devices:
            assert device.size_bytes == len(data)
            buffer = bytearray(len(data))
            await device.read(0, memoryview(buffer))
            assert buffer == data
            position = 0
            for item in await device.extents(0, len(data)):
                assert item.offset == position
                position = item.end
                assert item.state is ExtentState.DATA or not any(data[item.offset : item.end])
            assert position == len(data)


class StoreMachine(RuleBasedStateMachine):
    """Hypothesis drives the model on the simulated machine."""

    def __init__(self) -> None:
        super().__init__()
        self.files = SimFileSystem(random.Random(1), cold_read_chance=0.1)
        self.model = Model(self.new_process(), PATH)
        self.do(self.model.create(MAX_SECTORS * SECTOR))

    def new_process(self) -> StoreEnv:
        self.loop = SimLoop(turns_max=10_000_000)
        return StoreEnv(self.files, SimWorkers(self.loop, random.Random(2)), SimClock(self.loop))

    def do(self, coro) -> None:
        self.loop.run_until_complete(coro)
        assert not self.loop.errors

    @rule(pick=picks, sector=sectors, count=counts, fill=fills, fua=st.booleans(), atomic=st.booleans())
    def write(self, pick, sector, count, fill, fua, atomic):
        self.do(self.model.write(pick, sector, count, fill, fua=fua, atomic=atomic))

    @rule()
    def purge(self):
        self.do(self.model.purge())

    @rule(pick=picks, writes=st.lists(st.tuples(sectors, counts, fills), min_size=1, max_size=4))
    def try_writes(self, pick, writes):
        self.do(self.model.try_writes(pick, writes))

    @rule(pick=picks, writes=st.lists(st.tuples(sectors, fills), min_size=1, max_size=6), count=counts)
    def try_write_each(self, pick, writes, count):
        self.do(self.model.try_write_each(pick, writes, count))

    @rule(pick=picks, sector=sectors, count=counts, discard=st.booleans())
    def zero(self, pick, sector, count, discard):
        self.do(self.model.zero(pick, sector, count, discard=discard))

    @rule(pick=picks)
    def flush(self, pick):
        self.do(self.model.volume(pick).head.flush())

    @precondition(lambda self: len(self.model.snapshots) < 8)
    @rule(pick=picks)
    def snapshot(self, pick):
        self.do(self.model.snapshot(pick))

    @precondition(lambda self: len(self.model.volumes) < 4)
    @rule(pick=picks)
    def clone(self, pick):
        self.do(self.model.clone(pick))

    @rule(pick=picks)
    def flatten(self, pick):
        self.do(self.model.flatten(pick))

    @rule(pick=picks)
    def rollback(self, pick):
        self.do(self.model.rollback(pick))

    @rule(pick=picks)
    def delete_snapshot(self, pick):
        self.do(self.model.delete_snapshot(pick))

    @rule(pick=picks)
    def delete_volume(self, pick):
        self.do(self.model.delete_volume(pick))

    @rule(pick=picks, count=st.integers(8, MAX_SECTORS // 2))
    def resize(self, pick, count):
        self.do(self.model.resize(pick, count))

    @rule(pick=picks, source=picks, source_chunk=picks, chunk=picks, count=st.integers(1, 6))
    def share(self, pick, source, source_chunk, chunk, count):
        self.do(self.model.share(pick, source, source_chunk, chunk, count))

    @rule(pick=picks, source=picks, source_chunk=picks, chunk=picks, count=st.integers(1, 6))
    def offload(self, pick, source, source_chunk, chunk, count):
        self.do(self.model.offload(pick, source, source_chunk, chunk, count))

    @rule(pick=picks)
    def stage(self, pick):
        self.do(self.model.stage(pick))

    @rule(pick=picks, other=picks)
    def changed(self, pick, other):
        self.do(self.model.changed(pick, other))

    @rule(pick=picks)
    def reopen(self, pick):
        self.do(self.model.reopen(pick))

    @rule()
    def kill(self):
        self.files.kill()
        self.loop.close()
        self.files.restart_process()
        self.model.env = self.new_process()
        assert not check_file(PATH, files=self.files).findings
        self.do(self.model.open_again())

    @invariant()
    def reads_as_the_arrays(self):
        self.do(self.model.compare())

    @invariant()
    def in_place_only_what_is_ones_own(self):
        self.model.nobody_else_has_what_is_written_in_place()

    def teardown(self):
        self.files.kill()
        self.loop.close()


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


async def test_random_operations_on_the_real_file_system(tmp_path):
    rng = random.Random(20261121)
    env = real_env()
    model = Model(env, tmp_path / "v.tvol")
    await model.create(MAX_SECTORS * SECTOR)

    def pick():
        return rng.randrange(1000)

    def extent():
        return rng.randrange(MAX_SECTORS), rng.choice((1, 8, 128, rng.randint(1, 300)))

    for step in range(300):
        kind = rng.randrange(14)
        if kind < 4:
            atomic = rng.random() < 0.1
            await model.write(pick(), *extent(), rng.randint(1, 255), fua=rng.random() < 0.1, atomic=atomic)
        elif kind == 4:
            await model.try_writes(pick(), [(*extent(), rng.randint(1, 255)) for _ in range(3)])
        elif kind == 5:
            await model.zero(pick(), *extent(), discard=rng.random() < 0.5)
        elif kind == 6 and len(model.snapshots) < 8:
            await model.snapshot(pick())
        elif kind == 7:
            await rng.choice((model.delete_snapshot, model.delete_volume, model.rollback))(pick())
        elif kind == 8 and len(model.volumes) < 4:
            await model.clone(pick())
        elif kind == 9:
            await rng.choice((model.stage, model.reopen))(pick())
        elif kind == 10:
            await asyncio.gather(*(model.volume(pick()).head.flush() for _ in range(3)))
        elif kind == 11:
            await model.changed(pick(), pick())
        elif kind == 12:
            await model.share(pick(), pick(), pick(), pick(), rng.randint(1, 6))
        elif kind == 13:
            await model.flatten(pick())
        if step % 20 == 0:
            await model.compare()
    await model.compare()
    await model.store.close()
    assert not check_file(model.path).findings
