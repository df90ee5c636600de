"""The oracle of one volume file: which volumes and snapshots must, may and must not exist, and what they hold.

Structural calls (snapshot, clone, rollback, delete, resize, staging) promise durability when they return. Until
then the world may be as before or as after; ``Family.found`` decides which from what a reopened store shows, and
raises ``Violation`` when it shows neither.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.stores import SeparableStore
from tests.support.volume_oracle import Content, Violation, Windows

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.stores import Frozen, Head, VolumeStore

    Reader = Callable[[Head | Frozen, Windows], Awaitable[bytearray]]

SECTOR = 512


@dataclass(slots=True)
class Volume:
    """One volume as it should be."""

    volume_id: str
    name: str
    size_bytes: int
    windows: Windows
    content: Content
    writer: int
    head: Head | None = None
    users: int = 0
    exclusive: bool = False
    other: Change | None = None
    """What a structural call under way would make of it."""
    staging: Staging | None = None
    write_through: bool = False
    """Its write cache is off: what is acknowledged is durable."""


@dataclass(slots=True)
class Change:
    """The volume after a structural call that has not returned."""

    content: Content
    size_bytes: int
    windows: Windows


@dataclass(slots=True)
class Staging:
    """An open staging area."""

    content: Content
    windows: Windows
    size_bytes: int
    writer: int
    certain: bool = False
    head: Head | None = None
    commit: str | None = None
    """guid of the recovery point that a commit under way would make."""
    aborting: bool = False
    users: int = 0
    write_through: bool = False


@dataclass(slots=True)
class Snapshot:
    """One snapshot as it should be."""

    guid: str
    volume_id: str
    size_bytes: int
    windows: Windows
    content: Content
    certain: bool = False
    doomed: bool = False
    promised: bool = False
    """Its file has promised it to a group snapshot."""
    pinned: bool = False
    frozen: Frozen | None = None
    users: int = 0
    holds: set[str] = field(default_factory=set)
    """Owners whose hold was promised."""
    maybe_holds: set[str] = field(default_factory=set)
    """Owners of whom a call under way may make or end a hold."""


@dataclass(slots=True)
class MaybeClone:
    """A clone whose creation has not returned."""

    name: str
    size_bytes: int
    windows: Windows
    content: Content
    writer: int


class Family:
    """Everything in one volume file."""

    def __init__(self) -> None:
        self.numbers = itertools.count(1)
        self.number = 0
        self.writers = itertools.count(1)
        self.volumes: dict[str, Volume] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.maybe_clones: dict[str, MaybeClone] = {}
        self.maybe_deleted: set[str] = set()
        self.rolling_back: dict[str, Content] = {}
        """volume_id -> what the automatic snapshot of a rollback under way would hold."""
        self.apart: set[str] = set()
        """Volumes that have left their origin."""
        self.story: list[str] | None = None
        """What happened, for a reader; None: nobody reads it."""

    def tell(self, line: str) -> None:
        if self.story is not None:
            self.story.append(line)

    def next(self) -> int:
        """The number of a new operation."""
        self.number = next(self.numbers)
        return self.number

    def adopt(self, head: Head, windows: Windows, content: Content, writer: int) -> Volume:
        volume = Volume(head.volume_id, head.name, head.size_bytes, windows, content, writer, head)
        self.volumes[head.volume_id] = volume
        return volume

    def crashed(self, *, power_lost: bool) -> None:
        for volume in self.volumes.values():
            volume.content.crashed(power_lost=power_lost)
            if volume.other is not None:
                volume.other.content.crashed(power_lost=power_lost)
            if volume.staging is not None:
                volume.staging.content.crashed(power_lost=power_lost)
                volume.staging.head = None
                volume.staging.users = 0
            volume.users = 0
            volume.exclusive = False
            volume.write_through = False
            volume.head = None
        for clone in self.maybe_clones.values():
            clone.content.crashed(power_lost=power_lost)
        for snapshot in self.snapshots.values():
            snapshot.frozen = None
            snapshot.users = 0

    async def found(self, store: VolumeStore, read: Reader, *, durable: bool) -> None:
        """Compare with a store that has just been opened, read all of it, and forget what is decided now.

        ``durable``: the machine lost power, so what is read now has nothing volatile left in it.
        """
        self._match_volumes(store.volumes())
        self._match_origins(store)
        self._match_snapshots(store.snapshots())
        for volume in self.volumes.values():
            self._match_staging(volume, store.staging(volume.volume_id))
        for snapshot in self.snapshots.values():
            self._match_holds(snapshot, store)
            await self._read_snapshot(snapshot, read)
        for volume in self.volumes.values():
            await self._read_volume(volume, read, durable=durable)
            if volume.staging is not None and volume.staging.head is not None:
                content = volume.staging.content
                data = await read(volume.staging.head, volume.staging.windows)
                floor = (content.cached_base, content.cached_floor)
                content.observed(
                    content.verify(data, 0, floor, f"staging of {volume.name!r}"), self.number, durable=durable
                )

    def _match_volumes(self, heads: Sequence[Head]) -> None:
        present = {head.volume_id: head for head in heads}
        for head in heads:
            if head.volume_id in self.volumes:
                continue
            clone = self.maybe_clones.pop(head.name, None)
            if clone is None:
                raise Violation(f"volume {head.name!r} exists, but was deleted or never made")
            self.adopt(head, clone.windows, clone.content, clone.writer)
        self.maybe_clones.clear()
        for volume_id, volume in list(self.volumes.items()):
            head = present.get(volume_id)
            if head is not None:
                volume.head = head
            elif volume_id in self.maybe_deleted:
                del self.volumes[volume_id]
            else:
                raise Violation(f"volume {volume.name!r} is gone")
        self.maybe_deleted.clear()

    def _match_origins(self, store: VolumeStore) -> None:
        assert isinstance(store, SeparableStore)
        for head in store.volumes():
            if head.volume_id in self.apart and store.origin(head) is not None:
                raise Violation(f"volume {head.name!r} hangs on {store.origin(head)} again")

    def _match_snapshots(self, frozen: Sequence[Frozen]) -> None:
        present = {item.guid: item for item in frozen}
        if len(present) != len(frozen):
            raise Violation("two snapshots have one guid")
        for guid, item in present.items():
            if item.volume_id not in self.volumes:
                raise Violation(f"snapshot {item.name!r} exists, but its volume was deleted with it")
            if guid in self.snapshots:
                self.snapshots[guid].frozen = item
                continue
            volume = self.volumes.get(item.volume_id)
            if volume is None or item.volume_id not in self.rolling_back:
                raise Violation(f"snapshot {item.name!r} exists, but was deleted or never made")
            content = self.rolling_back.pop(item.volume_id)
            self.snapshots[guid] = Snapshot(
                guid, item.volume_id, item.size_bytes, volume.windows, content, certain=True
            )
            self.snapshots[guid].frozen = item
        self.rolling_back.clear()
        for guid, snapshot in list(self.snapshots.items()):
            if guid in present:
                snapshot.certain = True
                snapshot.doomed = False
            elif snapshot.doomed or not snapshot.certain or snapshot.volume_id not in self.volumes:
                del self.snapshots[guid]
            else:
                raise Violation(f"snapshot {guid} is gone")

    def _match_holds(self, snapshot: Snapshot, store: VolumeStore) -> None:
        assert snapshot.frozen is not None
        found = {hold.owner for hold in store.notes.holds(snapshot.frozen)}
        if found - snapshot.maybe_holds != snapshot.holds - snapshot.maybe_holds:
            raise Violation(f"snapshot {snapshot.frozen.name!r} has holds of {found} instead of {snapshot.holds}")
        snapshot.holds, snapshot.maybe_holds = found, set()

    def _match_staging(self, volume: Volume, head: Head | None) -> None:
        staging = volume.staging
        if staging is None:
            if head is not None:
                raise Violation(f"volume {volume.name!r} has a staging area that was ended or never begun")
            return
        committed = staging.commit is not None and staging.commit in self.snapshots
        if head is None and staging.certain and not committed and not staging.aborting:
            raise Violation(f"the staging area of volume {volume.name!r} is gone")
        if head is not None and committed:
            raise Violation(f"volume {volume.name!r} has a recovery point and still the staging area it was made from")
        if committed:
            assert volume.other is not None
            volume.content, volume.size_bytes = volume.other.content, volume.other.size_bytes
            volume.windows, volume.other = volume.other.windows, None
        elif staging.commit is not None:
            volume.other = None
        if head is None:
            volume.staging = None
        else:
            staging.head, staging.certain, staging.aborting, staging.commit = head, True, False, None

    async def _read_snapshot(self, snapshot: Snapshot, read: Reader) -> None:
        assert snapshot.frozen is not None
        what = f"snapshot {snapshot.frozen.name!r}"
        if snapshot.frozen.size_bytes != snapshot.size_bytes:
            raise Violation(f"{what} has {snapshot.frozen.size_bytes} bytes instead of {snapshot.size_bytes}")
        data = await read(snapshot.frozen, snapshot.windows)
        content = snapshot.content
        values = content.verify(data, 0, (content.cached_base, content.cached_floor), what)
        content.observed(values, self.number, durable=True)
        snapshot.pinned = True

    async def _read_volume(self, volume: Volume, read: Reader, *, durable: bool) -> None:
        assert volume.head is not None
        what = f"volume {volume.name!r}"
        candidates = [Change(volume.content, volume.size_bytes, volume.windows)]
        if volume.other is not None:
            candidates.append(volume.other)
        failure: Violation | None = None
        for candidate in candidates:
            if candidate.size_bytes != volume.head.size_bytes:
                failure = failure or Violation(
                    f"{what} has {volume.head.size_bytes} bytes instead of {candidate.size_bytes}"
                )
                continue
            data = await read(volume.head, candidate.windows)
            content = candidate.content
            try:
                values = content.verify(data, 0, (content.cached_base, content.cached_floor), what)
            except Violation as error:
                failure = error
                continue
            content.observed(values, self.number, durable=durable)
            volume.content, volume.size_bytes, volume.windows = content, candidate.size_bytes, candidate.windows
            volume.other = None
            return
        assert failure is not None
        raise failure
