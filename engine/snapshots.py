"""Snapshots as users handle them: made, described, held, shown, pruned, deleted.

Which snapshots may go is asked in one place, ``_bound_by``: what is held, exposed, read by a job, or what a clone or a
writable view comes from stays. A deletion that a user asks for is refused with that reason (``delete``; ``force``
ends sessions and discards a view, never a hold); pruning leaves such a snapshot and says why.

A *branch* is what a rollback leaves: the snapshots from which the volume as it is now does not come. It is called by
its newest tip, the one that the rollback made of what the volume was then.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, TypeVar

from engine.api import SNAPSHOT_PAGE, HoldInfo, PrunedInfo, PruneInfo, SnapshotInfo, SnapshotPage
from engine.errors import AlreadyExists, InUse, InvalidArgument, NotFound
from engine.names import check_name
from engine.retention import Point, Retention, judge
from engine.space_report import with_spaces
from engine.volume import Identity

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from engine.exposure import Exposure
    from engine.pool import Pool
    from engine.retention import Verdict
    from engine.stores import Frozen, Hold
    from engine.views import Views
    from engine.volume import Volume

T = TypeVar("T")

SNAPSHOTS_PER_TURN = 16
"""Snapshots that are described in one turn of the loop: 1 to 2 ms."""

_ATTEMPTS = 3


class Snapshots:
    """See the module. Raises NotFound for volumes and snapshots that are not there."""

    def __init__(self, pool: Pool, exposure: Exposure, views: Views) -> None:
        self._pool = pool
        self._exposure = exposure
        self._views = views

    # --- looking ----------------------------------------------------------------------------------------------

    async def all(self, volume: str) -> list[SnapshotInfo]:
        """Oldest first, with the space that they take."""
        page = await _settled(lambda: self._page(self._pool.volume(volume)))
        return page.snapshots

    async def page(self, volume: str, cursor: str | None, limit: int) -> SnapshotPage:
        """See ``EngineApi.snapshot_page``."""
        if not 1 <= limit <= SNAPSHOT_PAGE:
            raise InvalidArgument(f"a page has 1 to {SNAPSHOT_PAGE} snapshots")
        return await _settled(lambda: self._page(self._pool.volume(volume), cursor, limit))

    async def _page(self, source: Volume, cursor: str | None = None, limit: int | None = None) -> SnapshotPage:
        expiries = await self._views.expiries()
        parents = self._parents(source)
        branches = self._branches(source, parents)
        everything = self._pool.snapshots(source)
        first = 0 if cursor is None else _behind(everything, cursor)
        snapshots = everything[first:][:limit]
        more = first + len(snapshots) < len(everything)
        infos = []
        for snapshot in snapshots:
            infos.append(self._info(source, snapshot, parents[snapshot.guid], branches.get(snapshot.guid), expiries))
            if not len(infos) % SNAPSHOTS_PER_TURN:
                await asyncio.sleep(0)  # the data path goes on meanwhile
        infos = await with_spaces(source, infos, snapshots)
        return SnapshotPage(infos, _cursor(snapshots[-1]) if more else None)

    async def one(self, volume: str, name: str) -> SnapshotInfo:
        wanted = self._pool.snapshot(self._pool.volume(volume), name).name
        for info in await self.all(volume):
            if info.name == wanted:
                return info
        raise NotFound("snapshot", f"{volume}@{name}")  # it was deleted meanwhile

    async def with_guid(self, volume: Volume, guid: str) -> SnapshotInfo:
        """Raises NotFound."""
        expiries = await self._views.expiries()
        snapshot = volume.head.store.snapshot_with(volume.volume_id, guid)
        if snapshot is None or snapshot.hidden or self._pool.groups.is_going(guid):
            raise NotFound("snapshot", f"{volume.name}@{guid}")
        parents = self._parents(volume)
        branch = self._branches(volume, parents).get(guid)
        info = self._info(volume, snapshot, parents[guid], branch, expiries)
        return (await with_spaces(volume, [info], [snapshot]))[0]

    def _info(
        self,
        volume: Volume,
        snapshot: Frozen,
        parent: Frozen | None,
        branch: str | None,
        expiries: Mapping[str, float | None],
    ) -> SnapshotInfo:
        luns = self._exposure.luns_of(volume.volume_id, snapshot.guid)
        views = self._views.of(volume, snapshot)
        shown = [lun for view in views for lun in self._exposure.luns_of(view.volume_id)]
        identity = Identity.of(snapshot.guid)
        notes = volume.head.store.notes
        return SnapshotInfo(
            volume=volume.name,
            name=snapshot.name,
            guid=snapshot.guid,
            size_bytes=snapshot.size_bytes,
            created_at=snapshot.created_at,
            serial=identity.serial,
            naa=f"{identity.naa:016x}",
            target=luns[0].target if luns else None,
            lun=luns[0].lun if luns else None,
            description=notes.description(snapshot),
            scheduled=notes.is_scheduled(snapshot),
            holds=[HoldInfo(hold.owner, hold.held_at, hold.expires_at) for hold in notes.holds(snapshot)],
            parent=None if parent is None else parent.name,
            branch=branch,
            view_target=shown[0].target if shown else None,
            view_lun=shown[0].lun if shown else None,
            group=self._pool.groups.group_of(snapshot.guid),
            view_expires_at=expiries.get(views[0].volume_id) if views else None,
        )

    def _parents(self, volume: Volume) -> dict[str, Frozen | None]:
        """By GUID: the snapshot that each of a volume's goes back to, of those that users see."""
        return {each.guid: self._seen_above(volume, each) for each in self._pool.snapshots(volume)}

    def _seen_above(self, volume: Volume, device: Frozen | None = None) -> Frozen | None:
        """The nearest snapshot above that users see, of the volume itself; of its head without ``device``."""
        notes = volume.head.store.notes
        above = notes.parent(volume.head if device is None else device)
        while above is not None and (above.hidden or self._pool.groups.is_going(above.guid)):
            above = notes.parent(above)
        return above if above is not None and above.volume_id == volume.volume_id else None

    def _branches(self, volume: Volume, parents: Mapping[str, Frozen | None]) -> dict[str, str]:
        """By GUID: the branch of each snapshot that is on one."""
        line = set()
        above = self._seen_above(volume)
        while above is not None:
            line.add(above.guid)
            above = parents[above.guid]
        inner = {parent.guid for parent in parents.values() if parent is not None}
        branches: dict[str, str] = {}
        for tip in self._pool.snapshots(volume):
            node: Frozen | None = tip if tip.guid not in inner else None
            while node is not None and node.guid not in line and node.guid not in branches:
                branches[node.guid] = tip.name
                node = parents[node.guid]
        return branches

    # --- making and marking -----------------------------------------------------------------------------------

    async def create(
        self, volume: str, name: str, *, expose: bool = False, description: str = "", scheduled: bool = False
    ) -> SnapshotInfo:
        source = self._pool.volume(volume)
        check_name("snapshot", name)
        if self._pool.has_snapshot(source, name):
            raise AlreadyExists("snapshot", f"{volume}@{name}")
        self._pool.reserved.require_free("snapshot", name, volume)
        if expose:
            self._exposure.require_exposable(volume, name)
        source.require_usable()
        snapshot = await source.head.store.snapshot(source.head, name, scheduled=scheduled)
        if description:
            await source.head.store.notes.describe(snapshot, description)
        if expose:
            await self._exposure.expose(source, snapshot)
        await self._event(volume, f"snapshot {name} created")
        return self._info(source, snapshot, self._seen_above(source, snapshot), None, {})

    async def describe(self, volume: str, name: str, text: str) -> SnapshotInfo:
        source = self._pool.volume(volume)
        await source.head.store.notes.describe(self._pool.snapshot(source, name), text)
        return await self.one(volume, name)

    async def hold(self, volume: str, name: str, owner: str, expires_at: float | None) -> SnapshotInfo:
        source = self._pool.volume(volume)
        await source.head.store.notes.hold(self._pool.snapshot(source, name), owner, expires_at)
        await self._event(volume, f"snapshot {name} held by {owner}")
        return await self.one(volume, name)

    async def release(self, volume: str, name: str, owner: str) -> SnapshotInfo:
        source = self._pool.volume(volume)
        await source.head.store.notes.release(self._pool.snapshot(source, name), owner)
        await self._event(volume, f"snapshot {name} released by {owner}")
        return await self.one(volume, name)

    async def expose(self, volume: str, name: str, *, writable: bool, expires_at: float | None) -> SnapshotInfo:
        source = self._pool.volume(volume)
        snapshot = self._pool.snapshot(source, name)
        if writable:
            await self._views.make(source, snapshot, expires_at)
        else:
            await self._exposure.expose(source, snapshot)
        return await self.one(volume, name)

    async def unexpose(self, volume: str, name: str, *, writable: bool, force: bool) -> SnapshotInfo:
        source = self._pool.volume(volume)
        snapshot = self._pool.snapshot(source, name)
        views = self._views.of(source, snapshot) if writable else []
        luns = [] if writable else self._exposure.luns_of(source.volume_id, snapshot.guid)
        for view in views:
            luns += self._exposure.luns_of(view.volume_id)
        if not luns:
            raise NotFound("writable view of snapshot" if writable else "exposed snapshot", f"{volume}@{name}")
        if not force:
            self._exposure.require_idle(luns, f"snapshot {volume}@{name}", hint="use --force")
        for view in views:
            await self._views.withdraw(view)
        if not writable:
            await self._exposure.withdraw(volume, luns)
        return await self.one(volume, name)

    # --- deleting ---------------------------------------------------------------------------------------------

    async def delete(self, volume: str, name: str, *, force: bool = False) -> None:
        source = self._pool.volume(volume)
        snapshot = self._pool.snapshot(source, name)
        self.require_deletable(source, snapshot, force=force)
        await self._delete(source, snapshot)
        await self._event(volume, f"snapshot {name} deleted")

    def require_volume_deletable(self, volume: Volume, *, force: bool) -> None:
        """Raises InUse: a snapshot of the volume is held, or has a writable view (without ``force``)."""
        for snapshot in self._pool.snapshots(volume):
            self._require_unheld(volume, snapshot)
        views = self._views.of(volume)
        if views and not force:
            raise InUse(f"there are writable views ({', '.join(view.name for view in views)}); unexpose them first")

    def _require_unheld(self, volume: Volume, snapshot: Frozen) -> None:
        holds = volume.head.store.notes.holds(snapshot)
        if holds:
            raise InUse(
                f"snapshot {volume.name}@{snapshot.name} is {_held(holds)}; release that first:"
                f" twinvol snapshot release {volume.name} {snapshot.name} '{holds[0].owner}'"
            )

    def require_deletable(self, volume: Volume, snapshot: Frozen, *, force: bool) -> None:
        """Raises InUse: who holds it. ``force`` is for sessions and views only."""
        what = f"snapshot {volume.name}@{snapshot.name}"
        self._require_unheld(volume, snapshot)
        self._pool.groups.require_single(snapshot, what)
        self._pool.jobs.require_unread(f"{volume.name}@{snapshot.name}")
        clones = self._pool.clones(volume, snapshot)
        if clones:
            raise InUse(f"{what} has linked clones ({', '.join(clones)}); delete them first")
        if not force:
            if self._views.of(volume, snapshot):
                raise InUse(f"{what} has a writable view; unexpose that first, or use --force")
            luns = self._exposure.luns_of(volume.volume_id, snapshot.guid)
            self._exposure.require_idle(luns, what, hint="use --force")

    async def _delete(self, volume: Volume, snapshot: Frozen) -> None:
        for view in self._views.of(volume, snapshot):
            await self._views.withdraw(view)
        await self._exposure.withdraw(volume.name, self._exposure.luns_of(volume.volume_id, snapshot.guid))
        await volume.head.store.delete_snapshot(snapshot)
        await self._exposure.forget([snapshot.guid])

    async def discard_views(self, volume: Volume) -> None:
        """The volume is about to be deleted."""
        for view in self._views.of(volume):
            await self._views.withdraw(view)

    # --- pruning ----------------------------------------------------------------------------------------------

    async def prune(self, volume: str, retention: Retention, *, manual: bool, dry_run: bool) -> PruneInfo:
        """Delete what a retention does not keep, or (``dry_run``) say what that would be."""
        source = self._pool.volume(volume)
        points, verdicts, doomed, freed = await _settled(lambda: self._judged(source, retention, manual=manual))
        kept: dict[str, str] = {} if dry_run else await self._delete_all(source, doomed)
        if doomed and not dry_run:
            await self._event(volume, f"{len(doomed) - len(kept)} snapshots pruned")
        return PruneInfo(
            volume=volume,
            dry_run=dry_run,
            freed_bytes=freed,
            snapshots=[
                PrunedInfo(
                    name=point.name,
                    created_at=point.created_at,
                    stays=verdict.stays or point.name in kept,
                    reasons=[kept[point.name]] if point.name in kept else verdict.reasons,
                )
                for point, verdict in zip(points, verdicts, strict=True)
            ],
        )

    async def _judged(
        self, volume: Volume, retention: Retention, *, manual: bool
    ) -> tuple[list[Point], list[Verdict], list[Frozen], int]:
        """The snapshots, what is to become of them, those that are to go, and what that gives back."""
        notes, snapshots = volume.head.store.notes, self._pool.snapshots(volume)
        points = []
        for each in snapshots:
            points.append(Point(each.name, each.created_at, notes.is_scheduled(each), self._bound_by(volume, each)))
            if not len(points) % SNAPSHOTS_PER_TURN:
                await asyncio.sleep(0)
        verdicts = judge(points, retention, manual=manual)
        doomed = [each for each, verdict in zip(snapshots, verdicts, strict=True) if not verdict.stays]
        freed = await volume.head.store.freed_by(doomed) if doomed else 0
        return points, verdicts, doomed, freed

    async def _delete_all(self, volume: Volume, doomed: Sequence[Frozen]) -> dict[str, str]:
        """Delete snapshots, oldest first; those that something bound meanwhile stay: by name, why."""
        kept: dict[str, str] = {}
        for snapshot in doomed:
            try:
                why = self._bound_by(volume, snapshot)
                if not why:
                    await self._delete(volume, snapshot)
            except InUse as error:
                why = str(error)
            except NotFound:
                continue  # somebody else has deleted it
            if why:
                kept[snapshot.name] = why
        return kept

    def _bound_by(self, volume: Volume, snapshot: Frozen) -> str:
        """Why a snapshot cannot be pruned; empty when it can."""
        holds = volume.head.store.notes.holds(snapshot)
        if holds:
            return _held(holds)
        clones = self._pool.clones(volume, snapshot)
        if clones:
            return f"origin of clone {', '.join(clones)}"
        if self._views.of(volume, snapshot):
            return "has a writable view"
        luns = self._exposure.luns_of(volume.volume_id, snapshot.guid)
        if luns:
            return f"exposed at {luns[0].target}"
        try:
            self._pool.groups.require_single(snapshot, f"snapshot {volume.name}@{snapshot.name}")
            self._pool.jobs.require_unread(f"{volume.name}@{snapshot.name}")
        except InUse as error:
            return str(error)
        return ""

    async def _event(self, volume: str, text: str) -> None:
        await self._pool.catalog.add_event(self._pool.env.clock.time(), "info", f"volume {volume}", text)


def _cursor(snapshot: Frozen) -> str:
    """Stands for a snapshot also when it is gone: the next is then the first one that is younger."""
    return f"{snapshot.created_at!r} {snapshot.guid}"


def _behind(snapshots: Sequence[Frozen], cursor: str) -> int:
    """Where the page behind a cursor begins. Raises InvalidArgument."""
    created_at, _, guid = cursor.partition(" ")
    try:
        moment = float(created_at)
    except ValueError:
        raise InvalidArgument(f"{cursor!r} is no cursor of a list of snapshots") from None
    for number, snapshot in enumerate(snapshots):
        if snapshot.guid == guid:
            return number + 1
    return next((number for number, each in enumerate(snapshots) if each.created_at > moment), len(snapshots))


async def _settled(look: Callable[[], Awaitable[T]]) -> T:
    """Look at all of a volume's snapshots; again where one was deleted meanwhile. Raises NotFound: the volume was."""
    for _ in range(_ATTEMPTS):
        with contextlib.suppress(NotFound):
            return await look()
    return await look()


def _held(holds: Sequence[Hold]) -> str:
    return "held by " + ", ".join(hold.owner for hold in holds)
