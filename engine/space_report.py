"""What volumes and snapshots take, and what deleting them would give back, as ``EngineApi`` says it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.api import DeletionInfo, FamilySpaceInfo, PoolSpaceInfo, SnapshotSpace, SpaceInfo
from engine.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from engine.api import SnapshotInfo
    from engine.pool import Pool
    from engine.pool_space import SpaceLimits
    from engine.stores import Frozen, Head, Space
    from engine.volume import Volume

RANGE_SIGN = "%"
"""No name has it: ``a%b`` are the snapshots from a to b, in the order of their making; without a or b, from the oldest
or to the newest."""


async def pool_space(pool: Pool) -> PoolSpaceInfo:
    """The pool's limits and how near they are, measured now."""
    space = pool.space
    await space.measure()
    assert space.host is not None
    return PoolSpaceInfo(
        state=space.state,
        quota_bytes=space.limits.quota_bytes,
        reserve_bytes=space.reserve_bytes,
        reserve_is_set=space.limits.reserve_bytes is not None,
        warn_percent=space.limits.warn_percent,
        used_bytes=space.host.used_bytes,
        left_bytes=max(0, space.left_bytes),
        host_total_bytes=space.host.total_bytes,
        host_free_bytes=space.host.free_bytes,
    )


async def limit_pool(pool: Pool, limits: SpaceLimits) -> None:
    """Give the pool other limits, durably. Raises InvalidArgument."""
    await pool.catalog.put_space_limits(limits.check())
    await pool.space.set_limits(limits)
    quota = "none" if limits.quota_bytes is None else f"{limits.quota_bytes} bytes"
    text = f"quota set to {quota}, reserve to {pool.space.reserve_bytes} bytes, warning at {limits.warn_percent}%"
    await pool.catalog.add_event(pool.env.clock.time(), "info", "pool", text)


async def with_spaces(volume: Volume, infos: list[SnapshotInfo], snapshots: Sequence[Frozen]) -> list[SnapshotInfo]:
    """What is said of snapshots of a volume, in this order, with the bytes that they take."""
    _, *spaces = await volume.head.store.spaces(volume.head, snapshots)
    return [
        replace(
            info,
            mapped_bytes=space.mapped_bytes,
            unique_bytes=space.unique_bytes,
            shared_bytes=space.shared_bytes,
            pinned_bytes=space.pinned_bytes,
            reclaimable_bytes=space.reclaimable_bytes,
        )
        for info, space in zip(infos, spaces, strict=True)
    ]


def _snapshot_space(name: str, space: Space) -> SnapshotSpace:
    return SnapshotSpace(
        name,
        mapped_bytes=space.mapped_bytes,
        unique_bytes=space.unique_bytes,
        shared_bytes=space.shared_bytes,
        pinned_bytes=space.pinned_bytes,
        reclaimable_bytes=space.reclaimable_bytes,
    )


async def volume_space(pool: Pool, volume: Volume) -> SpaceInfo:
    """Of the volume, its snapshots and its family."""
    store, snapshots, path = volume.head.store, pool.snapshots(volume), pool.file_of(volume)
    own, *others = await store.spaces(volume.head, snapshots)
    everything: list[Frozen | Head] = [*store.snapshots(volume.volume_id), volume.head]
    staging = store.staging(volume.volume_id)
    if staging is not None:
        everything.append(staging)
    family = await store.family_space()
    return SpaceInfo(
        name=volume.name,
        size_bytes=volume.size_bytes,
        mapped_bytes=own.mapped_bytes,
        unique_bytes=own.unique_bytes,
        shared_bytes=own.shared_bytes,
        pinned_bytes=await store.freed_by(snapshots),
        reclaimable_bytes=await store.freed_by(everything),
        file_bytes=await asyncio.to_thread(bytes_on_host, path),
        snapshots=[_snapshot_space(each.name, space) for each, space in zip(snapshots, others, strict=True)],
        family=FamilySpaceInfo(
            used_bytes=family.used_bytes,
            pending_bytes=family.pending_bytes,
            free_bytes=family.free_bytes,
            unpunched_bytes=family.unpunched_bytes,
            metadata_bytes=family.metadata_bytes,
        ),
    )


def named_snapshots(pool: Pool, volume: Volume, names: Sequence[str]) -> list[Frozen]:
    """The snapshots that names and ranges (see ``RANGE_SIGN``) mean, each once, oldest first. Raises NotFound;
    InvalidArgument: a range from a newer snapshot to an older one."""
    snapshots = pool.snapshots(volume)
    places = {snapshot.name: place for place, snapshot in enumerate(snapshots)}

    def place(name: str) -> int:
        if name not in places:
            raise NotFound("snapshot", f"{volume.name}@{name}")
        return places[name]

    chosen: set[int] = set()
    for name in names:
        first, sign, last = name.partition(RANGE_SIGN)
        if not sign:
            chosen.add(place(name))
            continue
        begin, end = place(first) if first else 0, place(last) if last else len(snapshots) - 1
        if first and last and begin > end:
            raise InvalidArgument(f"snapshot {first} is newer than {last}; say {last}{RANGE_SIGN}{first}")
        chosen.update(range(begin, end + 1))
    return [snapshots[each] for each in sorted(chosen)]


async def deletion_of(volume: Volume, snapshots: Sequence[Frozen]) -> DeletionInfo:
    """What deleting these snapshots would give back."""
    freed = await volume.head.store.freed_by(snapshots)
    return DeletionInfo(volume.name, [each.name for each in snapshots], freed_bytes=freed, removed_file_bytes=None)


async def deletion_of_volume(pool: Pool, volume: Volume) -> DeletionInfo:
    """What deleting a volume with its snapshots would give back."""
    names = [snapshot.name for snapshot in pool.snapshots(volume)]
    space = await volume_space(pool, volume)
    alone = pool.is_alone(volume)
    freed = space.family.used_bytes if alone else space.reclaimable_bytes
    return DeletionInfo(volume.name, names, freed_bytes=freed, removed_file_bytes=space.file_bytes if alone else None)


def bytes_on_host(path: Path) -> int:
    """What a file takes there; nothing when it has just been deleted. Blocks."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
