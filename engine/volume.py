"""A named volume as targets and mirrors see it.

A ``Volume`` outlives the head that it is made of: rollback and the switch of a staging area give it another
head while sessions stay. It adds to the head what the store does not know: identity for initiators, the
write-protect and write-cache policies, and the synchronous mirrors.

Invariants:

* While nothing stands between, ``try_read``, ``try_write`` and ``end_pass`` *are* the head's own bound methods:
  the fast path pays no hop. Everything that has to see writes (a mirror, a closed gate, write protection, write
  cache off) rebinds ``try_write`` to a refusal, so that writes take ``_change`` below.
* ``_change`` is the one place that fixes the order of effects of a write. Its steps up to the first ``await``
  happen in one step of the loop: a write has its sequence number, is known to every mirror and has been handed
  to the head before anything else runs. So sequence order is the order in which overlapping writes take effect.
* ``attach``, ``detach`` and ``rebind`` take effect within one step of the loop. ``attach(tap)`` followed without
  an ``await`` by ``await store.snapshot(...)`` therefore splits all writes in two: those in the snapshot and
  those that the tap is told of (REPLICATION section 5 step 1).
"""

from __future__ import annotations

import asyncio
import enum
import hashlib
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from engine.errors import InUse, InvalidState, OutOfRange, Superseded, WriteProtected, WritesHeld
from engine.sanitize import SanitizeState
from engine.stores import AtomicTarget, BurstSource, BurstTarget
from engine.units import SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from engine.sanitize import Sanitizer
    from engine.stores import BlockDevice, Extent, Frozen, Head


@dataclass(frozen=True, slots=True)
class Identity:
    """What initiators know a disk by. It follows from a UUID alone, the device id, so that it travels with that."""

    serial: str
    """16 hexadecimal digits (VPD page 80h)."""
    naa: int
    """NAA identifier of type 3h, locally assigned, 64 bits (SPC-4 section 7.8.6.6.4)."""

    @classmethod
    def of(cls, guid: str) -> Identity:
        """The identity of the volume or recovery point with that UUID."""
        digest = hashlib.sha256(guid.encode()).hexdigest()
        return cls(serial=digest[:16], naa=int("3" + digest[16:31], 16))


class VolumeEvent(enum.Enum):
    """What initiators have to be told of by a unit attention."""

    RESIZED = "resized"
    CONTENT_REPLACED = "content replaced"
    PROTECTION_CHANGED = "write protection changed"
    SANITIZE = "a sanitize operation begins, ends or fails"


class ChangeKind(enum.Enum):
    """What a write does to its extent."""

    DATA = "data"
    ZEROES = "zeroes"
    DISCARD = "discard"


@dataclass(frozen=True, slots=True)
class Change:
    """One admitted write.

    ``sequence`` grows by one with each write of the volume in this run. ``data`` (of ``DATA`` only) is valid until
    the awaitable that ``WriteTap.submit`` returned is done, or until ``submit`` returns when it returns None: a tap
    that keeps it longer copies it. ``fua``: the awaitable ends only when the change is durable. ``atomic`` (of ``DATA``
    only): all or nothing, as ``engine.stores.AtomicTarget`` says.
    """

    sequence: int
    kind: ChangeKind
    offset: int
    length: int
    data: memoryview | None
    fua: bool
    atomic: bool = False


class WriteTap(Protocol):
    """Somebody who sees every write of a volume: a mirror."""

    def submit(self, change: Change, /) -> Awaitable[None] | None:
        """Take a write, in sequence order; called before the source's own write begins, in the same loop step.

        Returns what the host's acknowledgement has to wait for, or None when it need not wait. The awaitable has
        started already (a future or task). It raises only when the write may not be acknowledged; a mirror
        that leaves the synchronous state resolves it instead, after recording that it left.
        """
        ...

    def source_failed(self, change: Change, error: BaseException, /) -> None:
        """The source did not take a submitted change: its extent may differ from now on."""
        ...

    def flush(self) -> Awaitable[None] | None:
        """Start making everything submitted so far durable; same rules as ``submit``."""
        ...


class Volume:
    """See the module. Fulfils ``engine.stores.BlockDevice``.

    Args:
        head: its present head.
        physical_block_bytes: 512 or 4096, told to initiators.
        read_only: writes answer ``WriteProtected``.
        write_cache: False makes every write durable before it is acknowledged, and is told as WCE=0.
        removable: told to initiators (RMB).
    """

    def __init__(
        self,
        head: Head,
        *,
        physical_block_bytes: int = 4096,
        read_only: bool = False,
        write_cache: bool = True,
        removable: bool = False,
    ) -> None:
        self.name = head.name
        self.volume_id = head.volume_id
        self.device_id = head.volume_id
        """What initiators know the disk by: the volume's own id, or what a promotion has given it."""
        self.physical_block_bytes = physical_block_bytes
        self.write_cache = write_cache
        self.removable = removable
        self.sanitizer: Sanitizer | None = None
        """Set by whoever keeps the records of its operations; None: the volume cannot be sanitized."""
        self.content_owner: str | None = None
        """The mirror that alone decides what the volume holds; None: whoever may write to it."""
        self.try_read: Callable[[int, memoryview], bool]
        self.try_read_each: Callable[[Sequence[int], memoryview, int, int], int] | None
        self.try_write: Callable[[int, memoryview], bool]
        self.try_write_each: Callable[[Sequence[int], memoryview, int, int], int] | None
        self.end_pass: Callable[[], None]
        self._head = head
        self._told_bytes = head.size_bytes
        """The size that initiators know; a rolled back head is the same object with another size."""
        self._read_only = read_only
        self._taps: list[WriteTap] = []
        self._sequence = 0
        self._in_flight = 0
        self._drained: asyncio.Future[None] | None = None
        self._gate: asyncio.Event | None = None
        self._fence: str | None = None
        self._held: dict[str, str] = {}
        self._subscribers: list[Callable[[VolumeEvent], None]] = []
        self._bind()

    # --- what it is -------------------------------------------------------------------------------------------

    @property
    def head(self) -> Head:
        """The store's present head of this volume. Kept across an ``await`` it may be an old one."""
        return self._head

    @property
    def identity(self) -> Identity:
        return Identity.of(self.device_id)

    @property
    def size_bytes(self) -> int:
        return self._head.size_bytes

    @property
    def read_only(self) -> bool:
        return self._read_only or self._head.read_only

    @property
    def taps(self) -> Sequence[WriteTap]:
        return tuple(self._taps)

    @property
    def sequence(self) -> int:
        """Number of the last write admitted since the volume was opened with a mirror or without."""
        return self._sequence

    def subscribe(self, callback: Callable[[VolumeEvent], None]) -> Callable[[], None]:
        """Call ``callback`` in the loop at each event. Returns the function that ends it."""
        self._subscribers.append(callback)
        return lambda: self._subscribers.remove(callback)

    # --- mirrors and heads: each within one step of the loop -------------------------------------------------

    def attach(self, tap: WriteTap) -> None:
        """From the next write on, ``tap`` sees every write."""
        assert tap not in self._taps
        self._taps.append(tap)
        self._bind()

    def detach(self, tap: WriteTap) -> None:
        """From the next write on, ``tap`` sees none; what it was given before it still answers for."""
        self._taps.remove(tap)
        self._bind()

    def rebind(self, head: Head) -> None:
        """Make ``head`` the volume's content. The caller has ``quiesced`` it, and no mirror is attached.

        Initiators are told that the content was replaced.
        """
        assert head.volume_id == self.volume_id
        if self._taps:
            raise InvalidState(f"volume {self.name}", "the source of a mirror", "its mirrors fractured first")
        self._head = head
        self._bind()
        if head.size_bytes != self._told_bytes:
            self._told_bytes = head.size_bytes
            self._tell(VolumeEvent.RESIZED)
        self._tell(VolumeEvent.CONTENT_REPLACED)

    def set_read_only(self, read_only: bool) -> None:
        """Protect the volume against writes, or take that back. Writes in flight are not recalled."""
        if read_only != self._read_only:
            self._read_only = read_only
            self._bind()
            self._tell(VolumeEvent.PROTECTION_CHANGED)

    @property
    def fence_reason(self) -> str | None:
        """Why nobody may use the volume as a disk; None: it may be used."""
        return self._fence

    def fence(self, reason: str) -> None:
        """From this step of the loop on nothing is read or written here, and nothing that runs is acknowledged: each
        ends with ``Superseded``. For a volume whose replica has, or may have, taken its place."""
        self._fence = reason
        self._bind()

    def unfence(self) -> None:
        self._fence = None
        self._bind()

    @property
    def held_reason(self) -> str | None:
        """Why writes and flushes are refused for now; None: they are not."""
        return next(iter(self._held.values()), None)

    def hold_writes(self, mirror: str, reason: str) -> None:
        """From this step of the loop on every write and flush that begins ends with ``WritesHeld``; reads go on. Until
        ``mirror``, without which the volume must not be written, calls ``let_writes_go``."""
        self._held[mirror] = reason
        self._bind()

    def is_held_by(self, mirror: str) -> bool:
        return mirror in self._held

    def let_writes_go(self, mirror: str) -> None:
        """Also right when it held none."""
        self._held.pop(mirror, None)
        self._bind()

    def _require_not_held(self) -> None:
        if self._held:
            raise WritesHeld(f"volume {self.name} takes no writes: {self.held_reason}")

    def sanitize_changed(self) -> None:
        """The sanitizer's state is another one."""
        self._tell(VolumeEvent.SANITIZE)

    def require_usable(self) -> None:
        """Raises InvalidState while a sanitize operation runs or has failed: nothing may keep what it is to erase."""
        if self.sanitizer is not None and self.sanitizer.state is not SanitizeState.NONE:
            raise InvalidState(f"volume {self.name}", "being sanitized, or that has failed", "a usable one")

    def require_own_content(self) -> None:
        """Raises InUse while a mirror decides what the volume holds."""
        if self.content_owner is not None:
            raise InUse(
                f"volume {self.name} is the target of replica {self.content_owner}; fracture or detach that first"
            )

    @asynccontextmanager
    async def quiesced(self) -> AsyncIterator[None]:
        """Inside, nothing is in flight and whatever arrives waits; for the switch of a head, not for long work."""
        while self._gate is not None:
            await self._gate.wait()
        gate = self._gate = asyncio.Event()
        self._bind()
        try:
            if self._in_flight:
                self._drained = asyncio.get_running_loop().create_future()
                await self._drained
            yield
        finally:
            self._drained = None
            self._gate = None
            self._bind()
            gate.set()

    @property
    def is_quiesced(self) -> bool:
        """Whether somebody is inside ``quiesced``."""
        return self._gate is not None

    async def resumed(self) -> None:
        """Wait until nobody is inside ``quiesced``."""
        while self._gate is not None:
            await self._gate.wait()

    # --- blocks -----------------------------------------------------------------------------------------------

    async def read(self, offset: int, view: memoryview, /) -> None:
        await self._enter()
        try:
            await self._head.read(offset, view)
        finally:
            self._leave()

    async def extents(self, offset: int, length: int, /) -> list[Extent]:
        await self._enter()
        try:
            return await self._head.extents(offset, length)
        finally:
            self._leave()

    async def write(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        await self._change(ChangeKind.DATA, offset, len(data), data, fua)

    @property
    def atomic_write_bytes(self) -> int:
        """See ``engine.stores.AtomicTarget``."""
        return self._head.atomic_write_bytes if isinstance(self._head, AtomicTarget) else 0

    async def write_atomic(self, offset: int, data: memoryview, /, *, fua: bool = False) -> None:
        await self._change(ChangeKind.DATA, offset, len(data), data, fua, atomic=True)

    async def write_zeroes(self, offset: int, length: int, /, *, fua: bool = False) -> None:
        await self._change(ChangeKind.ZEROES, offset, length, None, fua)

    async def discard(self, offset: int, length: int, /) -> None:
        await self._change(ChangeKind.DISCARD, offset, length, None, False)

    async def share(self, source: Frozen, source_offset: int, offset: int, length: int, /) -> int:
        """Make a range refer to a snapshot's data in the same family, as ``VolumeStore.share`` does.

        Returns the bytes shared, from the start of the range. Mirrors want data, so with one attached it is 0.
        """
        await self._enter()
        try:
            if self.read_only:
                raise WriteProtected(f"volume {self.name} is read-only")
            self._require_not_held()
            if self._taps:
                return 0
            return await self._head.store.share(source, source_offset, self._head, offset, length)
        finally:
            self._leave()

    async def flush(self) -> None:
        """Returns when everything acknowledged before is durable here and at every synchronous mirror."""
        await self._enter()
        try:
            self._require_not_held()
            waits = [wait for tap in self._taps if (wait := tap.flush()) is not None]
            try:
                await self._head.flush()
            finally:
                for wait in waits:
                    await wait
            self._require_unfenced()
        finally:
            self._leave()

    async def resize(self, size_bytes: int, /) -> None:
        """Change the size. Refused while mirrors are attached (``InvalidState``)."""
        async with self.quiesced():  # a mirror may have attached itself, or a sanitize begun, until here
            self.require_usable()
            if self._taps:
                raise InvalidState(f"volume {self.name}", "the source of a mirror", "its mirrors detached first")
            await self._head.resize(size_bytes)
            self._told_bytes = size_bytes
        self._tell(VolumeEvent.RESIZED)

    async def _change(
        self,
        kind: ChangeKind,
        offset: int,
        length: int,
        data: memoryview | None,
        fua: bool,
        *,
        atomic: bool = False,
    ) -> None:
        """The order of effects of a write; see the module."""
        await self._enter()
        try:
            if self.read_only:
                raise WriteProtected(f"volume {self.name} is read-only")
            self._require_not_held()
            # 1. Refuse what no copy could take, before any copy hears of it.
            size = self._head.size_bytes
            if offset < 0 or offset + length > size or offset % SECTOR_SIZE or length % SECTOR_SIZE:
                raise OutOfRange(offset, length, size)
            # 2. Admit it: from here on it has its place among the volume's writes.
            self._sequence += 1
            change = Change(self._sequence, kind, offset, length, data, fua or not self.write_cache, atomic)
            # 3. Hand it to the mirrors, which start at once,
            taps = tuple(self._taps)
            waits = [wait for tap in taps if (wait := tap.submit(change)) is not None]
            # 4. and write it here at the same time.
            try:
                await self._apply(change)
            except BaseException as error:
                for tap in taps:
                    tap.source_failed(change, error)
                raise
            finally:
                # 5. Wait for every mirror that holds the acknowledgement back, also after a failure here: the
                #    buffer is theirs until then.
                for wait in waits:
                    await wait
            # 6. Acknowledged, unless another volume has taken this one's place meanwhile.
            self._require_unfenced()
        finally:
            self._leave()

    async def _apply(self, change: Change) -> None:
        head = self._head
        match change.kind:
            case ChangeKind.DATA:
                assert change.data is not None
                if change.atomic:
                    assert isinstance(head, AtomicTarget)
                    await head.write_atomic(change.offset, change.data, fua=change.fua)
                # In the loop where the head can: a hop to a worker costs more than a small write.
                elif not change.fua and head.try_write(change.offset, change.data):
                    head.end_pass()
                else:
                    await head.write(change.offset, change.data, fua=change.fua)
            case ChangeKind.ZEROES:
                await head.write_zeroes(change.offset, change.length, fua=change.fua)
            case ChangeKind.DISCARD:
                await head.discard(change.offset, change.length)

    # --- inside -----------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        """Point the fast path at the head, or away from it."""
        open_for_reads = self._gate is None and self._fence is None
        plain_writes = open_for_reads and not self._taps and not self.read_only and self.write_cache and not self._held
        self.try_read = self._head.try_read if open_for_reads else _later
        self.try_read_each = (
            self._head.try_read_each if open_for_reads and isinstance(self._head, BurstSource) else None
        )
        self.try_write = self._head.try_write if plain_writes else _later
        self.try_write_each = (
            self._head.try_write_each if plain_writes and isinstance(self._head, BurstTarget) else None
        )
        self.end_pass = self._head.end_pass

    async def _enter(self) -> None:
        while self._gate is not None:
            await self._gate.wait()
        self._require_unfenced()
        self._in_flight += 1

    def _require_unfenced(self) -> None:
        """Raises Superseded."""
        if self._fence is not None:
            raise Superseded(f"volume {self.name} is not served: {self._fence}")

    def _leave(self) -> None:
        self._in_flight -= 1
        if not self._in_flight and self._drained is not None and not self._drained.done():
            self._drained.set_result(None)

    def _tell(self, event: VolumeEvent) -> None:
        for callback in tuple(self._subscribers):
            callback(event)


def _later(_offset: int, _view: memoryview, /) -> bool:
    """The fast path's answer while it may not be used: take the coroutine."""
    return False


if TYPE_CHECKING:

    def _is_a_block_device(volume: Volume) -> BlockDevice:
        return volume
