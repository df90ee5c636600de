"""What is in a snapshot or volume, and what changed since an older snapshot: for backup tools, in pages.

A diff compares two frozen points, so that its pages are about one instant however long they are asked for. The volume
as it is now is not one: the first page freezes it in a hidden snapshot, the *point*, which the following pages name.
The point goes with the last page, or when nobody has asked for a page for ``IDLE_S``, or with the daemon; asking for a
page of it then is refused, never answered from another instant.

With digests each extent of data is cut at multiples of ``PIECE_BYTES`` and has the xxh3_128 of each 64 KiB, which are
the leaves of the hash tree where the extent begins at one: a reader of the exposed snapshot compares without trusting
the way. Digests are of what is read now.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.api import DiffInfo, ExtentInfo
from engine.errors import InvalidArgument, InvalidState, NotFound
from engine.hash_tree import DIGEST_BYTES, LEAF_BYTES
from engine.names import DIFF_PREFIX
from engine.stores import BulkSource, Extent, ExtentState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from engine.pool import Pool
    from engine.stores import Frozen
    from engine.volume import Volume

IDLE_S = 300.0
MAX_POINTS = 16
"""Diffs of volumes as they are now, in a pool at a time."""
MAX_EXTENTS = 20_000
"""Of a page: about 2 MiB."""
MAX_DIGESTED = 1024
"""Of a page with digests: at most 1 GiB is read for it."""
PIECE_BYTES = 1 << 20
LANES = 4
_EXTENTS_A_TURN = 512


@dataclass(slots=True)
class _Point:
    volume: Volume
    frozen: Frozen
    asked_at: float
    pages: int = 0
    """Pages of it that are being made."""


class ChangedBlocks:
    """See the module."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._points: dict[str, _Point] = {}
        self._numbers = itertools.count(1)

    async def page(
        self,
        volume: str,
        older: str | None,
        newer: str | None,
        *,
        offset: int,
        limit: int,
        digests: bool,
        point: str | None,
    ) -> DiffInfo:
        """See ``EngineApi.snapshot_diff``."""
        source = self._pool.volume(volume)
        if newer is not None and point is not None:
            raise InvalidArgument("a diff up to a snapshot has no point of its own")
        if offset < 0 or limit < 1:
            raise InvalidArgument(f"a page begins at 0 or later and has 1 extent or more, not {offset} and {limit}")
        first = None if older is None else self._pool.snapshot(source, older)
        limit = min(limit, MAX_DIGESTED if digests else MAX_EXTENTS)
        if newer is not None:
            second = self._pool.snapshot(source, newer)
            extents, following = await self._extents(source, first, second, offset, limit, cut=digests)
            return await self._answer(volume, older, newer, second, extents, following, digests=digests)
        async with self._frozen(source, point) as (name, frozen):
            extents, following = await self._extents(source, first, frozen, offset, limit, cut=digests)
            info = await self._answer(volume, older, None, frozen, extents, following, digests=digests, point=name)
        if following is None:
            await self._drop(name)
        return info

    async def drop_idle(self) -> None:
        """Give up points whose pages nobody asks for any more."""
        now = self._pool.env.clock.monotonic()
        for name, point in list(self._points.items()):
            if not point.pages and now - point.asked_at > IDLE_S:
                await self._drop(name)

    async def drop_of(self, volume: Volume) -> None:
        """The volume is about to be deleted."""
        for name, point in list(self._points.items()):
            if point.volume is volume:
                await self._drop(name)

    # --- the point of a volume as it is -----------------------------------------------------------------------

    @asynccontextmanager
    async def _frozen(self, volume: Volume, name: str | None) -> AsyncIterator[tuple[str, Frozen]]:
        """The point called ``name``, or a new one; it stays at least for the while."""
        if name is None:
            name = await self._freeze(volume)
        found = self._points.get(name)
        if found is None or found.volume is not volume:
            raise NotFound(f"point of a diff of volume {volume.name} (it is over; begin again)", name)
        found.pages += 1
        try:
            yield name, found.frozen
        except BaseException:
            found.pages -= 1
            if not found.pages:
                await self._drop(name)
            raise
        found.pages -= 1
        found.asked_at = self._pool.env.clock.monotonic()

    async def _freeze(self, volume: Volume) -> str:
        if len(self._points) >= MAX_POINTS:
            raise InvalidState(
                "the pool", f"serving {MAX_POINTS} diffs of volumes as they are", "a free place, or a snapshot to diff"
            )
        volume.require_usable()
        store = volume.head.store
        taken = {snapshot.name for snapshot in store.snapshots(volume.volume_id)}
        name = next(name for n in self._numbers if (name := f"{DIFF_PREFIX}{n}") not in taken)
        frozen = await store.snapshot(volume.head, name, hidden=True)
        self._points[name] = _Point(volume, frozen, self._pool.env.clock.monotonic())
        return name

    async def _drop(self, name: str) -> None:
        point = self._points.pop(name, None)
        if point is not None:
            await point.volume.head.store.delete_snapshot(point.frozen)

    # --- extents ----------------------------------------------------------------------------------------------

    async def _extents(
        self, volume: Volume, older: Frozen | None, newer: Frozen, offset: int, limit: int, *, cut: bool
    ) -> tuple[list[Extent], int | None]:
        """At most ``limit`` extents from ``offset`` on, and where the next one begins."""
        found: list[Extent] = []
        async for extent in volume.head.store.changed(older, newer, offset):
            for piece in _pieces(extent) if cut else (extent,):
                if len(found) == limit:
                    return found, piece.offset
                found.append(piece)
                if not len(found) % _EXTENTS_A_TURN:
                    await asyncio.sleep(0)  # the data path's turn
        return found, None

    async def _answer(
        self,
        volume: str,
        older: str | None,
        newer: str | None,
        frozen: Frozen,
        extents: list[Extent],
        following: int | None,
        *,
        digests: bool,
        point: str | None = None,
    ) -> DiffInfo:
        known = await self._digests(frozen, extents) if digests else {}
        return DiffInfo(
            volume=volume,
            older=older,
            newer=newer,
            extents=[
                ExtentInfo(each.offset, each.length, each.state.value, known.get(each.offset)) for each in extents
            ],
            changed_bytes=sum(extent.length for extent in extents),
            next_offset=following,
            point=None if following is None else point,
            size_bytes=frozen.size_bytes,
        )

    async def _digests(self, frozen: Frozen, extents: list[Extent]) -> dict[int, list[str]]:
        """The digests of each extent of data, by its offset."""
        found: dict[int, list[str]] = {}
        left = iter([extent for extent in extents if extent.state is ExtentState.DATA])

        async def lane() -> None:
            for extent in left:
                found[extent.offset] = await self._digests_of(frozen, extent)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES):
                    group.create_task(lane())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors
        return found

    async def _digests_of(self, frozen: Frozen, extent: Extent) -> list[str]:
        assert isinstance(frozen, BulkSource)
        lease = await frozen.lease_read(extent.offset, extent.length)
        try:
            digests = await self._pool.env.mover.digest(extent.length, lease)
        finally:
            lease.release()
        return [digests[at : at + DIGEST_BYTES].hex() for at in range(0, len(digests), DIGEST_BYTES)]


def _pieces(extent: Extent) -> Iterator[Extent]:
    """An extent of data cut so that its digests are of the same places whatever it begins with; others as they are."""
    at = extent.offset
    while at < extent.end:
        end = extent.end
        if extent.state is ExtentState.DATA:
            unit = LEAF_BYTES if at % LEAF_BYTES else PIECE_BYTES
            end = min(end, at - at % unit + unit)
        yield Extent(at, end - at, extent.state)
        at = end
