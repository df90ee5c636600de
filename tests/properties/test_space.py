"""What a deletion is predicted to give back is what it gives back, over random trees; and every chunk is accounted for.

Trees grow by writes, discards, snapshots, clones, rollbacks, shares within the family and staging; some of what is
deleted waits, because two others come from it. Predicted are one, several and all snapshots of a volume, and volumes.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import InUse
from engine.files import real_env
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import KIB

if TYPE_CHECKING:
    from engine.stores import Frozen, Head
    from engine.tvol.head import NativeHead

CHUNK = 64 * KIB
CHUNKS = 24
HOST_TOLERANCE = 64 * KIB
"""Of the file system for its own: extent trees of the file (4 KiB blocks, one for some hundred extents)."""


class Tree:
    """A family and a user of it, driven by one seed."""

    def __init__(self, seed: int, store: TvolFile, *, sharing: bool) -> None:
        self.rng = random.Random(seed)
        self.store = store
        self.sharing = sharing
        self.names = 0

    def name(self) -> str:
        self.names += 1
        return f"n{self.names}"

    async def grow(self, steps: int) -> None:
        kinds = ["write"] * 6 + [
            "discard",
            "snapshot",
            "snapshot",
            "snapshot",
            "clone",
            "rollback",
            "delete",
            "staging",
        ]
        for _ in range(steps):
            await getattr(self, self.rng.choice(kinds + ["share", "share"] * self.sharing))()

    def head(self) -> NativeHead:
        return self.rng.choice(self.store.volumes())

    def snapshot_of(self, head: Head | None = None) -> Frozen | None:
        found = self.store.snapshots(head and head.volume_id)
        return self.rng.choice(found) if found else None

    def extent(self) -> tuple[int, int]:
        first = self.rng.randrange(CHUNKS)
        return first * CHUNK, self.rng.randint(1, min(6, CHUNKS - first)) * CHUNK

    async def write(self) -> None:
        offset, length = self.extent()
        kind = self.rng.random()
        if kind < 0.3:
            offset, length = offset + 4096 * self.rng.randrange(15), 4096  # a partial chunk, if a snapshot has it
        elif kind < 0.5:
            offset, length = offset + 4096, length - 8192  # parts of the first and the last chunk
        await self.head().write(offset, memoryview(self.rng.randbytes(length)))

    async def discard(self) -> None:
        await self.head().discard(*self.extent())

    async def snapshot(self) -> None:
        await self.store.snapshot(self.head(), self.name())

    async def clone(self) -> None:
        source = self.snapshot_of()
        if source is not None and len(self.store.volumes()) < 4:
            await self.store.clone(source, self.name())

    async def rollback(self) -> None:
        head = self.head()
        source = self.snapshot_of(head)
        if source is not None and self.store.staging(head.volume_id) is None:
            await self.store.rollback(head, source)

    async def delete(self) -> None:
        source = self.snapshot_of()
        if source is not None:
            await self.store.delete_snapshot(source)

    async def share(self) -> None:
        source = self.snapshot_of()
        if source is not None:
            offset, length = self.extent()
            await self.store.share(
                source, self.rng.randrange(CHUNKS - length // CHUNK + 1) * CHUNK, self.head(), offset, length
            )

    async def staging(self) -> None:
        head = self.head()
        staging = self.store.staging(head.volume_id)
        if staging is None:
            await self.store.begin_staging(head, self.snapshot_of(head))
        elif self.rng.random() < 0.5:
            await staging.write(*(lambda at: (at[0], memoryview(self.rng.randbytes(at[1]))))(self.extent()))
        elif self.rng.random() < 0.5:
            await self.store.commit_staging(staging, self.name(), guid=self.name())
        else:
            await self.store.abort_staging(staging)

    def doomed(self) -> list[Frozen | Head]:
        """One, several, a range, or all snapshots of a volume; or a volume with all of them."""
        head = self.head()
        found = self.store.snapshots(head.volume_id)
        way = self.rng.randrange(4)
        if way == 0:
            return self.rng.sample(found, min(len(found), 1))
        if way == 1:
            return self.rng.sample(found, self.rng.randint(0, len(found)))
        if way == 2:
            first = self.rng.randint(0, len(found))
            return found[first : self.rng.randint(first, len(found))]
        staging = self.store.staging(head.volume_id)
        return [*found, head, *([staging] if staging else [])]

    async def delete_all(self, doomed: list[Frozen | Head]) -> bool:
        """False: they may not be deleted, and are still there."""
        head = next((each for each in doomed if each in self.store.volumes()), None)
        if head is not None:
            try:
                await self.store.delete_volume(head)
            except InUse:
                return False
        else:
            self.rng.shuffle(doomed)
            for snapshot in doomed:
                await self.store.delete_snapshot(snapshot)
        return True

    async def settle(self) -> None:
        """Everything freed is reusable and given back to the host."""
        for _ in range(2):
            await self.store.settled()
            await self.store.volumes()[0].flush()
        await self.store.settled()


async def predictions_come_true(path: Path, seed: int, *, sharing: bool) -> list[tuple[int, int]]:
    """Grow a tree and delete parts of it. Returns (predicted, what the host got back) of each deletion."""
    env = real_env(2)
    store = await TvolFile.create(
        env, path, volume_name="v", size_bytes=CHUNKS * CHUNK, chunk_bytes=CHUNK, journal_bytes=1 << 20
    )
    tree = Tree(seed, store, sharing=sharing)
    seen = []
    try:
        await tree.grow(40)
        for _ in range(6):
            doomed = tree.doomed()
            at_once = await store.freed_by(doomed)  # said while earlier deletions are still on their way
            await tree.settle()
            predicted = await store.freed_by(doomed)
            assert predicted == at_once
            before, blocks = await store.family_space(), on_host(path)
            assert before.pending_bytes == 0
            await _spaces_agree(store)
            if len(store.volumes()) == 1 and doomed and store.volumes()[0] in doomed:
                continue  # the last volume of a file goes with the file
            if not await tree.delete_all(doomed):
                continue
            during = await store.family_space()
            assert during.used_bytes == before.used_bytes - predicted, "it is on its way from the first moment on"
            await tree.settle()
            after = await store.family_space()
            assert before.used_bytes - after.used_bytes == predicted
            seen.append((predicted, blocks + before.metadata_bytes - on_host(path) - after.metadata_bytes))
            await tree.grow(8)
    finally:
        await store.close()
        await env.close()
        env.workers.close()
    report = check_file(path)
    assert not report.findings
    return seen


def on_host(path: Path) -> int:
    return path.stat().st_blocks * 512


async def _spaces_agree(store: TvolFile) -> None:
    """What is said of each node alone is what is said of its deletion; and parts are no more than the whole."""
    for head in store.volumes():
        snapshots = store.snapshots(head.volume_id)
        of_head, *of_snapshots = await store.spaces(head, snapshots)
        assert of_head.pinned_bytes == 0
        for snapshot, space in zip(snapshots, of_snapshots, strict=True):
            assert space.reclaimable_bytes == await store.freed_by([snapshot])
            assert min(space.unique_bytes, space.shared_bytes, space.pinned_bytes) >= 0  # a partial chunk holds two
            assert space == await store.space(snapshot)


@pytest.mark.parametrize("sharing", [False, True])
@given(seed=st.integers(0, 1 << 32))
@settings(max_examples=25, deadline=None)
def test_a_deletion_gives_back_what_was_predicted(sharing: bool, seed: int):
    with tempfile.TemporaryDirectory() as folder:
        for predicted, got in asyncio.run(predictions_come_true(Path(folder) / "v.tvol", seed, sharing=sharing)):
            assert got <= predicted + HOST_TOLERANCE
