"""The rules about space, played on purpose: the pool's quota and reserve, and a full disk. As ``directed``."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.errors import OutOfSpace
from engine.files import HostSpace, StoreEnv
from engine.pool_space import PoolSpace, SpaceLimits
from engine.tvol.file import TvolFile
from engine.tvol.layout import LEAF_ENTRIES
from tests.simulation.directed import CHUNK, PATH, HeldWorkers
from tests.simulation.disk import PLENTY
from tests.support.sim_files import Fault, SimFileSystem, enospc
from tests.support.sim_loop import SimClock, SimLoop
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.tvol.head import NativeHead

CHUNKS = 64
LEAVES = 300
ROOM = 40
METADATA = 16
"""Chunks that metadata takes at a time; it may do so at any moment, and beside the quota."""


class Scene:
    """A volume in a pool whose quota leaves ``ROOM`` chunks."""

    def __init__(self, files: SimFileSystem, store: TvolFile, space: PoolSpace) -> None:
        self.files = files
        self.store = store
        self.space = space
        self.head: NativeHead = store.volumes()[0]

    def payload(self) -> int:
        """Chunks that the file has beside metadata."""
        metadata = self.store.info().metadata_bytes + 2 * CHUNK  # the journal and the superblocks
        return (self.files.used_bytes() - metadata) // CHUNK

    async def fill(self, first: int = 0) -> int:
        """Write chunk after chunk until there is no space; how many there were."""
        for index in range(first, CHUNKS):
            try:
                await self.write(index)
            except OutOfSpace:
                return index - first
        raise Violation("nothing stops writers")

    async def allow(self, chunks: int) -> None:
        """Set the quota to so much more than is used."""
        await self.store.settled()
        await self.head.flush()
        await self.store.settled()
        await self.space.set_limits(SpaceLimits(self.files.used_bytes() + chunks * CHUNK, 0))

    async def write(self, index: int, letter: bytes = b"a") -> None:
        await self.head.write(index * CHUNK, memoryview(letter * CHUNK))


def _play(scene: Callable[[Scene], Awaitable[None]], *, chunks: int = CHUNKS) -> None:
    files = SimFileSystem(random.Random(1))

    async def main(loop: SimLoop) -> None:
        workers = HeldWorkers(loop)
        space = PoolSpace(
            SpaceLimits(reserve_bytes=0), workers, lambda: HostSpace(PLENTY, PLENTY, files.used_bytes()), _nobody
        )
        await space.measure()
        store = await TvolFile.create(
            StoreEnv(files, workers, SimClock(loop), room=space),
            PATH,
            volume_name="vol",
            size_bytes=chunks * CHUNK,
            chunk_bytes=CHUNK,
            journal_bytes=CHUNK,
        )
        await store.settled()
        await space.set_limits(SpaceLimits(files.used_bytes() + ROOM * CHUNK, 0))
        await scene(Scene(files, store, space))
        await store.close()

    loop = SimLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        files.kill()
        loop.close()


async def _nobody(*_: object) -> None:
    """Nobody is told."""


def a_quota_that_is_kept() -> None:
    """Writers of new chunks are stopped at it; what needs none goes on; what comes back is used again."""

    async def scene(it: Scene) -> None:
        written = await it.fill()
        if written > ROOM or it.payload() > ROOM:
            raise Violation(f"{written} chunks were written within a quota of {ROOM}")
        if written < ROOM - 1:
            raise Violation(f"only {written} of {ROOM} chunks of the quota could be used")
        await it.write(0, b"b")
        snapshot = await it.store.snapshot(it.head, "s")
        try:
            await it.write(0, b"c")
        except OutOfSpace:
            pass
        else:
            raise Violation("a chunk that a snapshot shares was written without room for another")
        await it.store.delete_snapshot(snapshot)
        await it.store.settled()
        await it.allow(0)  # metadata has taken what it needed, beside the quota
        if await it.fill(ROOM):
            raise Violation("a quota that is used up lets writers go on")
        await it.head.discard(CHUNK, (METADATA + 4) * CHUNK)
        if not 4 <= await it.fill(ROOM) <= METADATA + 4:
            raise Violation("what a discard gave back could not be used")

    _play(scene)


def a_grant_from_before_the_last_measurement() -> None:
    """What was granted and not spent is void when the host was measured anew, since it is granted anew."""

    async def scene(it: Scene) -> None:
        await it.write(0)
        await it.space.set_limits(SpaceLimits(it.files.used_bytes(), 0))
        if await it.fill(1):
            raise Violation("the quota was passed by what had been granted under another")

    _play(scene)


def writers_beside_each_other() -> None:
    """Grants that a measurement does not show yet count as used."""

    async def scene(it: Scene) -> None:
        granted = 0
        while given := it.space.grant(CHUNK, CHUNK):
            granted += given
            if granted > 2 * ROOM * CHUNK:
                break
        if granted > ROOM * CHUNK:
            raise Violation(f"{granted // CHUNK} chunks were granted within a quota of {ROOM}")

    _play(scene)


def a_write_right_after_a_deletion() -> None:
    """It finds no room, and waits for what the deletion has on its way."""

    async def scene(it: Scene) -> None:
        await it.fill()
        snapshot = await it.store.snapshot(it.head, "s")
        await it.allow(METADATA + 4)
        for index in range(METADATA + 4):
            await it.write(index, b"b")
        await it.allow(0)
        if await it.fill(ROOM):
            raise Violation("a quota that is used up lets writers go on")
        await it.store.delete_snapshot(snapshot)
        try:
            await it.write(ROOM)
        except OutOfSpace as error:
            raise Violation("a write did not wait for what a deletion gives back") from error

    _play(scene)


def a_full_disk_that_snapshots_wear_down() -> None:
    """Snapshots on a disk without any room, until there is none for them either: deletions and discards still work."""

    async def scene(it: Scene) -> None:
        await it.fill()
        it.files.quota_bytes = it.files.used_bytes()
        made = []
        for number in range(200):
            try:
                made.append(await it.store.snapshot(it.head, f"s{number}"))
            except OutOfSpace:
                break
        try:
            await it.head.discard(0, 8 * CHUNK)
            for snapshot in made:
                await it.store.delete_snapshot(snapshot)
            await it.store.settled()
            await it.write(ROOM)
        except OutOfSpace as error:
            raise Violation(f"after {len(made)} snapshots on a full disk: {error}") from error

    _play(scene)


def a_map_that_outgrows_the_metadata() -> None:
    """Each write makes a leaf, until there is no page for another: then a discard and a deletion have theirs."""

    async def scene(it: Scene) -> None:
        await it.space.set_limits(SpaceLimits(reserve_bytes=0))
        snapshot = await it.store.snapshot(it.head, "s")
        it.files.faults.append(Fault("allocate", enospc, forever=True))
        written = 0
        try:
            while written < LEAVES:
                await it.write(written * LEAF_ENTRIES)
                written += 1
        except OutOfSpace:
            pass
        if written == LEAVES:
            raise Violation("pages never ran out")
        try:
            for index in range(4):
                await it.head.discard(index * LEAF_ENTRIES * CHUNK, CHUNK)
                await it.head.flush()
            await it.store.delete_snapshot(snapshot)
        except OutOfSpace as error:
            raise Violation(f"without pages for writers: {error}") from error

    _play(scene, chunks=LEAVES * LEAF_ENTRIES)
