"""The seam between the engine and whatever keeps blocks.

``BlockDevice`` is what a reader or writer of blocks needs (an iSCSI LUN, the copy loop); ``Head`` is a writable
one; ``VolumeStore`` makes, freezes, compares and removes them. ``engine.tvol`` is the native store; others fit
the same seam.

Two tiers. ``try_read`` and ``try_write`` run in the event loop's thread, never block and either do the whole
extent at once or promise nothing (return False: use the coroutine). The coroutines take everything else.

Rules that every implementation keeps:

* Extents are whole 512-byte sectors within the device, else ``OutOfRange``.
* A write is *acknowledged* when the coroutine returns, or when ``end_pass`` returns after ``try_write`` did:
  then it survives the process. It survives power loss once a later ``flush`` (or its own ``fua``) returned.
* Overlapping writes take effect in the order of the calls.
* All methods are called from the loop's thread.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from engine.files import BlockFile
    from engine.stores.place import Place
    from engine.strips import Moved


class ExtentState(enum.Enum):
    """What a range of a device holds."""

    DATA = "data"
    ZERO = "zero"  # reads zero, told apart from HOLE only because somebody wrote zeroes there
    HOLE = "hole"  # never written, or discarded; reads zero


@dataclass(frozen=True, slots=True)
class Extent:
    """A byte range of a device, in whole sectors."""

    offset: int
    length: int
    state: ExtentState = ExtentState.DATA

    @property
    def end(self) -> int:
        return self.offset + self.length


@dataclass(frozen=True, slots=True)
class Space:
    """Bytes of one node, in whole chunks.

    ``mapped``: what the node's map refers to; of these, ``unique``: what no other node refers to. ``pinned``: what the
    volume itself refers to no longer, so that only snapshots keep it (of a snapshot that a rollback left in a branch:
    what was written in that branch). ``reclaimable``: what comes back if this node alone is deleted now: ``unique``,
    or nothing while two or more other nodes come from it.
    """

    mapped_bytes: int
    unique_bytes: int
    pinned_bytes: int = 0
    reclaimable_bytes: int = 0

    @property
    def shared_bytes(self) -> int:
        """What other nodes refer to, too. A partial chunk is one place of the map, and holds two chunks."""
        return max(0, self.mapped_bytes - self.unique_bytes)


@dataclass(frozen=True, slots=True)
class FamilySpace:
    """Bytes of one family, in whole chunks: each of its chunks counts in exactly one of these.

    ``used``: what volumes and snapshots refer to. ``pending``: freed, and coming back in the background; not to be used
    yet. ``free``: to be used by the next write; of these, the host has ``unpunched`` not back yet. ``metadata``: maps,
    journal and superblocks, with what is reserved for them.
    """

    used_bytes: int
    pending_bytes: int
    free_bytes: int
    unpunched_bytes: int
    metadata_bytes: int


@dataclass(frozen=True, slots=True)
class Hold:
    """While it is valid its snapshot cannot be deleted. Times are seconds since the epoch; without an expiry: None."""

    owner: str
    held_at: float
    expires_at: float | None


@dataclass(frozen=True, slots=True)
class StoreCapabilities:
    """What a store can do by itself; the engine supplies or refuses the rest."""

    fast_path: bool
    instant_epoch: bool
    instant_rollback: bool
    digests: bool
    recovery_points: bool
    share_unit: int = 0
    """``VolumeStore.share`` takes whole units of so many bytes; 0: the store cannot share, the caller copies."""


class BlockDevice(Protocol):
    """Something with blocks. A frozen one answers writes with ``WriteProtected``."""

    @property
    def size_bytes(self) -> int: ...
    @property
    def read_only(self) -> bool: ...

    def try_read(self, offset: int, view: memoryview, /) -> bool:
        """Fill ``view`` from ``offset`` now, or return False having promised nothing."""
        ...

    def try_write(self, offset: int, data: memoryview, /) -> bool:
        """Write ``data`` now, or return False having done nothing. ``end_pass`` must follow before the answer."""
        ...

    def end_pass(self) -> None:
        """Journal what ``try_write`` changed since the last call. Raises ``StoreFailed``: nothing may be answered."""
        ...

    async def read(self, offset: int, view: memoryview, /) -> None: ...
    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None: ...
    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None: ...
    async def discard(self, offset: int, length: int, /) -> None: ...
    async def flush(self) -> None:
        """Everything acknowledged before the call is durable when it returns."""
        ...

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        """The states of a range, merged, in order, without gaps."""
        ...


@runtime_checkable
class BurstSource(Protocol):
    """A device that serves reads of one length together for less than one by one, and as ``try_read`` does."""

    def try_read_each(self, offsets: Sequence[int], view: memoryview, step: int, length: int, /) -> int:
        """Fill ``length`` bytes of ``view`` from each offset, every ``step`` bytes. Returns how many were filled: it
        stops at the first that ``try_read`` would decline."""
        ...


@runtime_checkable
class BurstTarget(Protocol):
    """The same for writes."""

    def try_write_each(self, offsets: Sequence[int], data: memoryview, step: int, length: int, /) -> int:
        """Write ``length`` bytes of ``data``, taken every ``step`` bytes, to each offset, in order. Returns how many
        were written: it may stop anywhere, and does at the first that ``try_write`` would decline. ``end_pass`` must
        follow before the answers."""
        ...


class Frozen(BlockDevice, Protocol):
    """A snapshot as a device."""

    @property
    def guid(self) -> str:
        """Identity of this recovery point: the same on every store that holds a copy of it."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def hidden(self) -> bool:
        """Whether the engine made it for itself; users do not see it."""
        ...

    @property
    def created_at(self) -> float:
        """Seconds since the epoch."""
        ...

    @property
    def volume_id(self) -> str:
        """The volume that this is a snapshot of."""
        ...


class Head(BlockDevice, Protocol):
    """A writable volume (or staging area) of a store."""

    @property
    def volume_id(self) -> str:
        """Identity of the volume; stays with it across rollback, staging and a move."""
        ...

    @property
    def name(self) -> str: ...
    @property
    def store(self) -> VolumeStore: ...
    async def resize(self, size_bytes: int, /) -> None: ...


class ReadLease(Protocol):
    """An extent to read in a worker. ``at`` counts from the extent's start."""

    @property
    def place(self) -> Place[BlockFile] | None:
        """Where in a file the extent is, for another process. None: only ``read`` has its bytes."""
        ...

    def read(self, at: int, view: memoryview, /) -> None:
        """In any thread. Raises MediumError."""
        ...

    def release(self) -> None:
        """In the loop, when no worker uses it any more."""
        ...


class WriteLease(Protocol):
    """An extent to overwrite in a worker, in whole units of ``unit_bytes``. ``at`` counts from the extent's start.

    Nothing of it is visible before ``publish`` where the store redirects; units that are neither written nor
    published stay as they are.
    """

    @property
    def unit_bytes(self) -> int: ...
    @property
    def place(self) -> Place[BlockFile] | None:
        """As of a ``ReadLease``: where to write whole units, and to read those back."""
        ...

    def write(self, at: int, data: memoryview, /) -> None:
        """Whole units, in any thread. Raises OutOfSpace, MediumError."""
        ...

    def read(self, at: int, view: memoryview, /) -> None:
        """Read back whole units that were written, in any thread."""
        ...

    async def publish(self, written: Sequence[tuple[int, int]], /) -> None:
        """Make written (at, length) the content, acknowledged as a write is when it returns. Raises StoreFailed."""
        ...

    def release(self) -> None:
        """In the loop, when no worker uses it any more; always."""
        ...


@runtime_checkable
class BulkSource(Protocol):
    """A frozen device of which whole ranges can be handed to one worker call: no hop for each read."""

    async def lease_read(self, offset: int, length: int, /) -> ReadLease: ...


@runtime_checkable
class BulkTarget(Protocol):
    """A device of which whole ranges can be handed to one worker call."""

    async def lease_write(self, offset: int, length: int, /) -> WriteLease | None:
        """Take the place of a write to this extent. None: use ``write`` for it."""
        ...


@runtime_checkable
class StripTarget(Protocol):
    """A device behind a wire: it brings whole ranges over by itself, and verifies them where they arrive."""

    async def bring(self, strip: Extent, source: BulkSource, /, *, compare_first: bool) -> Moved:
        """Copy a strip from ``source``: read back there with the digests that it has here, when it returns.

        What is zero is not written but told. ``compare_first``: leave what is equal. Raises IntegrityError, and what
        either side raises.
        """
        ...


@runtime_checkable
class SelfDigesting(Protocol):
    """A device behind a wire whose digests are made where its data is."""

    async def digests(self, offset: int, length: int, /) -> bytes:
        """Those of the leaves of an extent that begins with one."""
        ...


@runtime_checkable
class AtomicTarget(Protocol):
    """A device that can write so that whatever ends it, a kill or a power loss, leaves all of the write or none."""

    @property
    def atomic_write_bytes(self) -> int:
        """The longest such write; 0: the device has none."""
        ...

    async def write_atomic(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        """As ``write``, of at most ``atomic_write_bytes``, all or nothing; readers see it whole or not at all, too."""
        ...


@runtime_checkable
class PurgingStore(Protocol):
    """A store that can see to it that nothing is left of what was freed."""

    def keepers(self, head: Head) -> Sequence[str]:
        """What else keeps data of a volume: snapshots, clones, its origin. As they are to be called in a message."""
        ...

    async def purge(self) -> None:
        """No freed content can be read from the store's files when it returns. Raises InvalidState: some still is."""
        ...


class SnapshotNotes(Protocol):
    """What a store remembers of its snapshots beside their content. Raises NotFound for those that are gone."""

    def parent(self, device: Frozen | Head, /) -> Frozen | None:
        """The snapshot that ``device`` goes back to: the nearest above it in the family tree that exists."""
        ...

    def is_scheduled(self, snapshot: Frozen, /) -> bool:
        """Whether a schedule made it, so that retention may delete it."""
        ...

    def description(self, snapshot: Frozen, /) -> str: ...
    async def describe(self, snapshot: Frozen, text: str, /) -> None:
        """Replace the description, durably. Raises InvalidArgument: too long."""
        ...

    def holds(self, snapshot: Frozen, /) -> list[Hold]:
        """The valid holds, by owner. While there is one, deleting the snapshot or its volume raises InUse."""
        ...

    async def hold(self, snapshot: Frozen, owner: str, expires_at: float | None, /) -> Hold:
        """Hold for ``owner``, or give their hold another expiry; durable. Raises InvalidArgument."""
        ...

    async def release(self, snapshot: Frozen, owner: str, /) -> None:
        """End a hold, durably. Raises NotFound: the owner has none."""
        ...


class InheritedData(BlockDevice, Protocol):
    """See ``SeparableStore.inherited``."""

    @property
    def inherited_bytes(self) -> int:
        """What is to be copied, in whole chunks."""
        ...


@runtime_checkable
class SeparableStore(Protocol):
    """A store whose linked clones can get their own copy of all that they share with their origin."""

    def origin(self, head: Head) -> str | None:
        """What a volume was cloned from and still depends on, as VOLUME@SNAPSHOT. None: nothing."""
        ...

    async def inherited(self, head: Head) -> InheritedData | None:
        """What a volume and its snapshots share with its origin now, as data of a device, to be copied from leases onto
        itself, as a blank target. Copying makes it their own, where it was not written meanwhile: ask again. None:
        nothing.
        """
        ...

    async def separate(self, head: Head) -> bool:
        """Leave the origin, durably, if neither the volume nor its snapshots share anything with it. Whether so."""
        ...


class VolumeStore(Protocol):
    """One family of volumes, snapshots and linked clones (one ``.tvol`` file in the native store)."""

    @property
    def capabilities(self) -> StoreCapabilities: ...

    @property
    def incarnation(self) -> int:
        """Grows with each open for writing."""
        ...

    @property
    def notes(self) -> SnapshotNotes: ...

    def volumes(self) -> Sequence[Head]: ...
    def snapshots(self, volume_id: str | None = None) -> Sequence[Frozen]: ...
    def snapshot_named(self, volume_id: str, name: str) -> Frozen:
        """Raises NotFound."""
        ...

    def snapshot_with(self, volume_id: str, guid: str) -> Frozen | None:
        """The sealed snapshot of a volume that has this identity, hidden or not."""
        ...

    async def snapshot(
        self, head: Head, name: str, *, guid: str | None = None, hidden: bool = False, scheduled: bool = False
    ) -> Frozen:
        """Freeze the volume at this instant (an epoch flip in the call's first step, after ``prepare_flip``) and
        return once durable.

        Writes admitted before belong to the snapshot, later ones do not; nobody waits for it. ``guid`` is for
        a recovery point that exists elsewhere already. ``hidden`` ones are the engine's own (common points).
        ``scheduled``: a schedule makes it (``SnapshotNotes.is_scheduled``).
        """
        ...

    async def prepare_flip(self) -> None:
        """Return when a ``snapshot`` called before the next ``await`` flips in its first step.

        Without it a store may have to make room before the flip.
        """
        ...

    async def clone(self, source: Frozen, name: str) -> Head:
        """A linked clone: a new volume that shares the snapshot's chunks."""
        ...

    async def rollback(self, head: Head, to: Frozen) -> Head:
        """The volume reads as ``to`` from now on; what it was stays as a snapshot. Returns its new head."""
        ...

    async def share(self, source: Frozen, source_offset: int, target: Head, offset: int, length: int, /) -> int:
        """Make ``length`` bytes of ``target`` from ``offset`` read as those of ``source`` from ``source_offset``, by
        referring to the same chunks: no data moves. Source and target are of this store, of any volume.

        Both offsets and the length are multiples of ``capabilities.share_unit``, within both devices; what is left at
        the edges of a range is the caller's to copy. Acknowledged as a write of the same range is (atomic per unit,
        in the order of the calls); discarded ranges become discarded. A caller that wants a head's present content
        takes a hidden snapshot of it first, and may delete it as soon as this has returned.

        Returns the bytes shared, counted from the start: less than ``length`` when the store's table of shared chunks
        is full. Raises NotSupported (``share_unit`` is 0), InvalidArgument (alignment), OutOfRange, NotFound (deleted,
        or of another store), InvalidState (a snapshot that is being made), OutOfSpace, StoreFailed.
        """
        ...

    async def delete_snapshot(self, snapshot: Frozen) -> None: ...
    async def delete_volume(self, head: Head) -> None: ...
    def changed(self, older: Frozen | None, newer: Frozen | Head, offset: int = 0, /) -> AsyncIterator[Extent]:
        """Ranges from ``offset`` on whose pointers differ (discards included), in order, without walking those before.
        ``None``: against an empty device."""
        ...

    async def space(self, node: Frozen | Head) -> Space: ...
    async def spaces(self, head: Head, snapshots: Sequence[Frozen]) -> list[Space]:
        """Of a volume and of snapshots of it, in this order."""
        ...

    async def freed_by(self, nodes: Sequence[Frozen | Head]) -> int:
        """Bytes in whole chunks that come back when all of these are deleted, beyond what comes back anyway."""
        ...

    async def family_space(self) -> FamilySpace: ...

    async def begin_staging(self, head: Head, base: Frozen | None) -> Head:
        """A hidden writable area of ``head``'s volume, starting as ``base`` (or empty). Survives reopening."""
        ...

    def staging(self, volume_id: str) -> Head | None:
        """The staging area of a volume, if one is open."""
        ...

    async def commit_staging(self, staging: Head, name: str, *, guid: str) -> tuple[Head, Frozen]:
        """Freeze the staging area as hidden recovery point ``guid`` and make it the volume's content: one atomic,
        durable step. The old head is dropped. Returns the new head and the recovery point."""
        ...

    async def abort_staging(self, staging: Head) -> None: ...
    async def close(self) -> None:
        """Checkpoint and close; devices of this store answer ``StoreFailed`` afterwards."""
        ...


class Flip(Protocol):
    """A snapshot whose instant has passed, and that nobody sees yet."""

    @property
    def snapshot(self) -> Frozen: ...


@runtime_checkable
class GroupStore(VolumeStore, Protocol):
    """A store that can take part in operations that happen in several stores or in none (``engine.group_instant``)."""

    def ready_to_flip(self, members: int) -> bool:
        """Whether ``members`` calls of ``flip`` in this step of the loop find the room that they need."""
        ...

    async def prepare_flips(self, members: int) -> None:
        """Make ``ready_to_flip`` true, as far as nobody else takes the room meanwhile. Raises OutOfSpace,
        StoreFailed, InvalidArgument (so many can never be)."""
        ...

    def flip(self, head: Head, name: str, *, guid: str | None = None, hidden: bool = False) -> Flip:
        """A snapshot's instant: writes admitted before belong to it, later ones do not. Raises as ``snapshot``."""
        ...

    async def prepare(self, flips: Sequence[Flip]) -> None:
        """Promise snapshots: when it returns they survive power loss, and nobody sees them before ``accept``.

        One that is neither promised nor dropped does not exist after the next opening.
        """
        ...

    def prepared(self) -> Sequence[Frozen]:
        """Promised snapshots that nobody has decided on, also across openings."""
        ...

    async def accept(self, snapshots: Sequence[Frozen]) -> None:
        """Promised snapshots are like all others from now on."""
        ...

    async def drop(self, snapshots: Sequence[Frozen]) -> None:
        """Remove snapshots that were flipped or promised, and not accepted, durably."""
        ...

    async def replace_content(self, head: Head, to: Frozen, kept: Frozen) -> None:
        """The volume reads as ``to`` from now on, durably, if it is as in its newest snapshot ``kept``. If it was
        written to since, or became something else (``to``, in an earlier call), nothing is done.

        Raises StoreFailed, and the store has failed then: the caller has promised to do it, and has to be asked again
        when the store is opened, before anything is written.
        """
        ...

    async def clone(self, source: Frozen, name: str, *, volume_id: str | None = None) -> Head:
        """As ``VolumeStore.clone``, under an identity that the caller has chosen."""
        ...
