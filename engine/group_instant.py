"""Group operations that happen in all volume files or in none, whatever crashes between any two steps.

The rules (STORE section 4), each with the simulation that fails without it (``tests.simulation.group_mutations``):

* **One callback.** All members flip in one step of the loop. So a write that was issued only after another one, on
  another member, had been acknowledged is in no group snapshot without that other one.
* **Prepare, then commit.** Every file has promised its part, durably, before the catalogue's one transaction decides.
  That transaction is the commit; what follows it (``accept``) is completed at open where a crash came between, and
  what was promised and never decided on is dropped at open.
* **Delete**: the catalogue's transaction first, then the members in their files; resumed at open.
* **Roll back**: writes are held; what the members hold becomes a group snapshot; the catalogue's transaction decides;
  the files follow; only then are writes let go. At open a decision that was not carried out is, before anybody may
  write. A file tells by itself whether it was: a member that has changed since, or has another parent than the kept
  snapshot, is left alone.
* **Clone**: the volumes are announced, made, and belong to their group by one transaction; announced ones without a
  group are removed at open.
* A member whose file is missing or damaged at open keeps its decisions for the day it is back; the others go on.

This module knows volumes, stores and decisions. Names, limits and what users are told are in ``engine.groups``.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import TYPE_CHECKING, Protocol

from engine.catalog_groups import GroupCloneRow, GroupRow, GroupSnapshotRow, Point, RollbackRow
from engine.errors import EngineError, InvalidState, NotSupported, TimedOut
from engine.stores import GroupStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence

    from engine.files import Clock
    from engine.stores import Flip, Frozen
    from engine.volume import Volume

log = logging.getLogger(__name__)

FLIP_TRIES = 100
"""Rounds of making room in one file after the other; more than one is needed only while others fill a journal."""


def _nothing(*_: object) -> None:
    """Nobody wants to know."""


class Decisions(Protocol):
    """The catalogue: each call is one transaction, durable when it returns. See ``engine.catalog_groups``."""

    async def group_snapshots(self) -> list[GroupSnapshotRow]: ...
    async def add_group_snapshot(self, row: GroupSnapshotRow) -> None: ...
    async def doom_group_snapshot(self, guid: str) -> None: ...
    async def remove_points(self, guids: Sequence[str]) -> None: ...
    async def group_rollbacks(self) -> list[RollbackRow]: ...
    async def begin_rollback(self, rows: Sequence[RollbackRow]) -> None: ...
    async def end_rollback(self, volume_ids: Sequence[str]) -> None: ...
    async def group_clones(self) -> list[GroupCloneRow]: ...
    async def begin_clones(self, rows: Sequence[GroupCloneRow]) -> None: ...
    async def end_clones(self, volume_ids: Sequence[str]) -> None: ...
    async def add_group(self, row: GroupRow) -> None: ...


class Members(Protocol):
    """Where volumes are found, made and removed: the pool."""

    def stores(self) -> Iterable[GroupStore]:
        """The files that are open."""
        ...

    def find(self, volume_id: str) -> Volume | None:
        """The volume, if it is served."""
        ...

    def may_return(self, volume_id: str) -> bool:
        """Whether a volume that is not served is in a file that is only missing or damaged."""
        ...

    async def make_clone(self, source: Volume, snapshot: Frozen, name: str, volume_id: str) -> Volume: ...
    async def remove_clone(self, volume: Volume) -> None: ...


class GroupInstants:
    """See the module. The caller lets one operation at a time in, and nothing else that changes the set of volumes."""

    def __init__(self, decisions: Decisions, members: Members, clock: Clock) -> None:
        self._decisions = decisions
        self._members = members
        self._clock = clock

    # --- snapshot ---------------------------------------------------------------------------------------------

    async def snapshot(self, group: str, name: str, volumes: Sequence[Volume]) -> GroupSnapshotRow:
        """Freeze all of ``volumes`` at one instant, as snapshot ``name`` of each; it exists when this returns.

        Raises AlreadyExists (a snapshot of that name), OutOfSpace, StoreFailed, NotSupported, TimedOut: then no member
        has it.
        """
        points = tuple(Point(volume.volume_id, str(uuid.uuid4())) for volume in volumes)
        row = GroupSnapshotRow(str(uuid.uuid4()), group, name, self._clock.time(), points)
        stores = _by_store(volumes)
        flips: dict[GroupStore, list[Flip]] = {store: [] for store in stores}
        await self._make_room(stores)
        try:
            self._flip_all(stores, {point.volume_id: point.guid for point in points}, name, flips)
            await self._prepare(flips)
            await self._decisions.add_group_snapshot(row)
        except BaseException:
            await self._drop(flips)
            raise
        await self._accept({store: [flip.snapshot for flip in made] for store, made in flips.items()})
        return row

    async def _make_room(self, stores: Mapping[GroupStore, Sequence[Volume]]) -> None:
        """Return in the step of the loop in which every file has room for its members' flips."""
        for _ in range(FLIP_TRIES):
            for store, members in stores.items():
                await store.prepare_flips(len(members))
            if all(store.ready_to_flip(len(members)) for store, members in stores.items()):
                return
        raise TimedOut("the members' journals have no room at the same time; try again when less is written")

    def _flip_all(
        self,
        stores: Mapping[GroupStore, Sequence[Volume]],
        guids: Mapping[str, str],
        name: str,
        flips: dict[GroupStore, list[Flip]],
    ) -> None:
        """The instant: synchronous, so that no write of any member is admitted between two flips. Raises what the
        first ``flip`` that is refused raises; ``flips`` has those before it."""
        for store, members in stores.items():
            for volume in members:
                flips[store].append(store.flip(volume.head, name, guid=guids[volume.volume_id]))

    async def _prepare(self, flips: Mapping[GroupStore, Sequence[Flip]]) -> None:
        await _all(store.prepare(made) for store, made in flips.items())

    async def _accept(self, promised: Mapping[GroupStore, Sequence[Frozen]]) -> None:
        """Complete what was decided. A file that cannot does it when it is opened again."""
        for store, snapshots in promised.items():
            try:
                await store.accept(snapshots)
            except EngineError as error:
                log.error("a group snapshot is completed when its member's file is opened again: %s", error)

    async def _drop(self, flips: Mapping[GroupStore, Sequence[Flip]]) -> None:
        """As if it had not been tried. A file that cannot does it when it is opened again."""
        for store, made in flips.items():
            if not made:
                continue
            try:
                await store.drop([flip.snapshot for flip in made])
            except EngineError as error:
                log.error("a group snapshot that failed is removed when its member's file is opened again: %s", error)

    # --- delete -----------------------------------------------------------------------------------------------

    async def delete(self, row: GroupSnapshotRow, decided: Callable[[], None] = _nothing) -> None:
        """Remove a group snapshot with all its members' snapshots. ``decided`` is called once it does not exist.

        Raises, after that, StoreFailed and the like of a member's file: it goes on when that is opened again.
        """
        await self._decisions.doom_group_snapshot(row.guid)
        decided()
        await self._finish_delete(row.points)

    async def _finish_delete(self, points: Sequence[Point]) -> None:
        gone: list[str] = []
        errors: list[EngineError] = []
        for point in points:
            try:
                if await self._delete_point(point):
                    gone.append(point.guid)
            except EngineError as error:
                errors.append(error)
        await self._decisions.remove_points(gone)
        if errors:
            raise errors[0]

    async def _delete_point(self, point: Point) -> bool:
        """Whether it is gone for good."""
        volume = self._members.find(point.volume_id)
        if volume is None:
            return not self._members.may_return(point.volume_id)
        snapshot = find_point(volume, point.guid)
        if snapshot is not None:
            await volume.head.store.delete_snapshot(snapshot)
        return True

    # --- rollback ---------------------------------------------------------------------------------------------

    async def roll_back(
        self,
        row: GroupSnapshotRow,
        volumes: Sequence[Volume],
        keep_as: str,
        kept_is_there: Callable[[GroupSnapshotRow], None] = _nothing,
    ) -> GroupSnapshotRow:
        """All of ``volumes`` read as in the group snapshot from now on; what they hold becomes one named ``keep_as``,
        which is returned. Whoever reads or writes meanwhile waits, then initiators get their unit attentions.
        ``kept_is_there`` is called as soon as it is, whatever follows.

        Raises as ``snapshot``, and InvalidState or InUse (a mirror runs from a member, or to it), before anything is
        decided. Raises StoreFailed afterwards: the member whose file failed is rolled back when that is opened again.
        """
        targets = {point.volume_id: point.guid for point in row.points}
        async with contextlib.AsyncExitStack() as held:
            for volume in volumes:
                await held.enter_async_context(volume.quiesced())
            for volume in volumes:
                if volume.taps:
                    raise InvalidState(f"volume {volume.name}", "the source of a mirror", "its mirrors fractured first")
                volume.require_own_content()
            kept = await self.snapshot(row.group, keep_as, volumes)
            kept_is_there(kept)
            rows = [RollbackRow(point.volume_id, targets[point.volume_id], point.guid) for point in kept.points]
            await self._decisions.begin_rollback(rows)
            try:
                await self._finish_rollback(rows)
            finally:  # also where a member's file failed: initiators of the others have another content now
                for volume in volumes:
                    volume.rebind(volume.head)
        return kept

    async def _finish_rollback(self, rows: Sequence[RollbackRow]) -> None:
        """Carry out what was decided, as often as it takes. The caller lets nobody write before it returns."""
        done: list[str] = []
        errors: list[EngineError] = []
        for row in rows:
            try:
                if await self._replace(row):
                    done.append(row.volume_id)
            except EngineError as error:
                errors.append(error)
        await self._decisions.end_rollback(done)
        if errors:
            raise errors[0]

    async def _replace(self, row: RollbackRow) -> bool:
        """Whether nothing is left to do."""
        volume = self._members.find(row.volume_id)
        if volume is None:
            return not self._members.may_return(row.volume_id)
        snapshot, kept = find_point(volume, row.guid), find_point(volume, row.kept)
        if snapshot is None or kept is None:
            log.error("volume %s is not rolled back as decided: snapshot %s is gone", volume.name, row.guid)
        else:
            await _grouping(volume).replace_content(volume.head, snapshot, kept)
        return True

    # --- clone ------------------------------------------------------------------------------------------------

    async def clone(self, row: GroupSnapshotRow, names: Mapping[str, str], group: str) -> GroupRow:
        """Linked clones of all of a group snapshot, named by ``names`` (by the volume ids of their sources), and the
        group ``group`` of them: all or nothing."""
        made = [(point, str(uuid.uuid4())) for point in row.points]
        rows = [GroupCloneRow(volume_id, point.volume_id) for point, volume_id in made]
        begun = 0
        await self._decisions.begin_clones(rows)
        try:
            for point, volume_id in made:
                source, snapshot = self._frozen(point)
                begun += 1
                await self._members.make_clone(source, snapshot, names[point.volume_id], volume_id)
            new = GroupRow(group, self._clock.time(), tuple(volume_id for _, volume_id in made))
            await self._decisions.add_group(new)
        except BaseException:
            # What is not there of those that were begun may still be found when their file is opened again.
            there = [row for row in rows[:begun] if self._members.find(row.volume_id) is not None]
            await self._remove_clones([*there, *rows[begun:]])
            raise
        return new

    def _frozen(self, point: Point) -> tuple[Volume, Frozen]:
        volume = self._members.find(point.volume_id)
        snapshot = None if volume is None else find_point(volume, point.guid)
        if volume is None or snapshot is None:
            raise InvalidState("the group snapshot", "not complete: a member's snapshot is not there", "all of them")
        return volume, snapshot

    async def _remove_clones(self, rows: Sequence[GroupCloneRow]) -> None:
        gone: list[str] = []
        for row in rows:
            volume = self._members.find(row.volume_id)
            try:
                if volume is not None:
                    await self._members.remove_clone(volume)
                if volume is not None or not self._members.may_return(row.source_id):
                    gone.append(row.volume_id)
            except EngineError as error:
                log.error("a clone without its group is removed when its file is opened again: %s", error)
        await self._decisions.end_clones(gone)

    # --- at open ----------------------------------------------------------------------------------------------

    async def restore(self) -> list[GroupSnapshotRow]:
        """Complete what was decided and drop what was not, before anybody uses a member; the group snapshots there are.

        A member that cannot be served, or fails at it, keeps what was decided for the next time.
        """
        rows = await self._decisions.group_snapshots()
        decided = {point.guid for row in rows if not row.doomed for point in row.points}
        for store in self._members.stores():
            found = store.prepared()
            with _logged("a decision on a group snapshot"):
                await self._complete(store, [snapshot for snapshot in found if snapshot.guid in decided])
                await self._forget(store, [snapshot for snapshot in found if snapshot.guid not in decided])
        await self._resume_rollbacks()
        await self._resume_deletions([row for row in rows if row.doomed])
        await self._remove_clones(await self._decisions.group_clones())
        return [row for row in rows if not row.doomed]

    async def _complete(self, store: GroupStore, snapshots: Sequence[Frozen]) -> None:
        await store.accept(snapshots)

    async def _forget(self, store: GroupStore, snapshots: Sequence[Frozen]) -> None:
        if snapshots:
            await store.drop(snapshots)

    async def _resume_rollbacks(self) -> None:
        with _logged("a group rollback"):
            await self._finish_rollback(await self._decisions.group_rollbacks())

    async def _resume_deletions(self, rows: Sequence[GroupSnapshotRow]) -> None:
        for row in rows:
            with _logged("the deletion of a group snapshot"):
                await self._finish_delete(row.points)


def find_point(volume: Volume, guid: str) -> Frozen | None:
    """The snapshot of a volume with that guid."""
    return volume.head.store.snapshot_with(volume.volume_id, guid)


def _grouping(volume: Volume) -> GroupStore:
    """Raises NotSupported: its store cannot take part."""
    store = volume.head.store
    if not isinstance(store, GroupStore):
        raise NotSupported(f"volume {volume.name} is in a store that cannot be part of a group")
    return store


def _by_store(volumes: Sequence[Volume]) -> dict[GroupStore, list[Volume]]:
    stores: dict[GroupStore, list[Volume]] = {}
    for volume in volumes:
        stores.setdefault(_grouping(volume), []).append(volume)
    return stores


async def _all(calls: Iterable[Coroutine[object, object, None]]) -> None:
    """Run all, and wait for all, whatever one of them raises."""
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


@contextlib.contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except EngineError as error:
        log.error("%s is completed when its member's file is opened again: %s", what, error)
