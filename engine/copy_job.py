"""The only copy loop: clones, imports, exports and the rounds of a mirror all run it.

    a frozen source, its extents -> read -> digest -> write -> read back -> digest -> compare -> chunk ledger

The plan is a list of ranges in whole leaves (64 KiB). Several lanes take *strips* of at most 4 MiB from it; a strip
goes through all steps in one lane (``engine.copy_steps``), its bytes moved by a ``Mover`` (``engine.movers``). The
*recorder* makes the target durable and writes verified strips to the ledger, at the latest when 64 MiB wait for it.

Invariants:

* A strip counts as done only after its bytes were read back from the target with the digest of what was read from
  the source. A difference ends the copy with ``IntegrityError``; the strip stays undone and is copied by the next run.
* With a ledger, progress is what the ledger holds: it never goes backwards, also across restarts (but for the end of a
  copy that was complete and not used). A strip that the ledger holds is not read again.
* What reads zero is never written: it is discarded at the target, unless the target is blank there anyway.
* Lanes are few and pieces small, so that foreground I/O of the same files keeps its latency (STORE section 6).

``verify`` here means: through the host's page cache. It proves that the stores put every byte where it is found again;
it does not prove the medium.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.copy_steps import Steps
from engine.errors import EngineError, InvalidArgument
from engine.hash_tree import LEAF_BYTES, HashTree, leaf_digests
from engine.ledger import INTERVAL_BYTES
from engine.stores import Extent, ExtentState
from engine.strips import PIECE_BYTES, Moved, mismatch, zero_digests
from engine.units import GIB, MIB, align_down, align_up

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engine.ledger import Record
    from engine.movers import Mover
    from engine.stores import BlockDevice

STRIP_BYTES = 4 * MIB
"""What a lane takes at a time: where the stores allow it, one request to the mover for all steps of it."""

LANES = 4
"""Strips in work at once: enough to keep two cores and the mover's queue busy."""

PLAN_WINDOW_BYTES, EMPTY_WINDOW_BYTES = 64 * MIB, 4 * GIB
"""How far ahead the source is asked for its extents; and where it has nothing, at most: twice as far each time."""

RECORD_PAUSE_S = 0.25
"""The recorder waits this long for more pieces, so that a slow copy is not one fdatasync for each piece."""


@dataclass(slots=True)
class CopyProgress:
    """How far a copy is, in bytes of its plan. ``done_bytes`` only grows."""

    total_bytes: int = 0
    done_bytes: int = 0
    written_bytes: int = 0
    zero_bytes: int = 0
    equal_bytes: int = 0
    """Found equal at the target already, so neither sent nor written."""
    resumed_bytes: int = 0
    """Taken over from the ledger of an earlier run."""


@dataclass(frozen=True, slots=True)
class CopyResult:
    """A copy that is complete and durable at its target.

    ``tree`` has the digests of everything in the plan; outside of it, leaves are zero (so for a full copy it is the
    tree of source and target).
    """

    progress: CopyProgress
    tree: HashTree
    seconds: float


@dataclass(slots=True)
class CopyOptions:
    """What a copy may assume.

    Args:
        blank_target: the target reads zero wherever it was not written by this copy or by the run that its ledger
            comes from; holes are then skipped altogether.
        compare_first: read the target before writing, and leave what is equal already. Costs one more read, and saves
            writes (and space of snapshots) where much is equal.
    """

    blank_target: bool = False
    compare_first: bool = False


@dataclass
class CopyControl:
    """The handle by which somebody else pauses a running copy and watches it."""

    progress: CopyProgress = field(default_factory=CopyProgress)
    on_progress: Callable[[CopyProgress], None] | None = None
    _open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._open.set()

    @property
    def paused(self) -> bool:
        return not self._open.is_set()

    def pause(self) -> None:
        """Begin no further piece until ``resume``."""
        self._open.clear()

    def resume(self) -> None:
        self._open.set()

    async def passage(self) -> None:
        """Wait while paused."""
        if not self._open.is_set():
            await self._open.wait()

    def tell(self) -> None:
        if self.on_progress is not None:
            self.on_progress(self.progress)


def whole_leaves(extents: Sequence[Extent], size_bytes: int) -> list[Extent]:
    """The same ranges widened to whole leaves, in order and merged; the last leaf ends with the device."""
    merged: list[Extent] = []
    for extent in sorted(extents, key=lambda e: e.offset):
        start = align_down(extent.offset, LEAF_BYTES)
        end = min(align_up(extent.end, LEAF_BYTES), size_bytes)
        if end <= start:
            continue
        if merged and start <= merged[-1].end:
            end = max(end, merged[-1].end)
            merged[-1] = Extent(merged[-1].offset, end - merged[-1].offset)
        else:
            merged.append(Extent(start, end - start))
    return merged


async def copy_extents(
    source: BlockDevice,
    target: BlockDevice,
    extents: Sequence[Extent] | None = None,
    *,
    ledger: Record | None = None,
    options: CopyOptions | None = None,
    control: CopyControl | None = None,
    mover: Mover | None = None,
) -> CopyResult:
    """Copy ranges of a frozen source to a target, verified, and make them durable there.

    Args:
        source: must not change while the copy runs (a snapshot).
        target: as large as the source; nobody else writes to the ranges.
        extents: what to copy; None for the whole device.
        ledger: of this source and target; what it holds is skipped. The caller removes it when the copy is used.
        mover: does all steps of a strip in one go, where both devices can lease their extents.

    Raises:
        IntegrityError: the target returned other bytes than were written. What was verified stays in the ledger.
        InvalidArgument: the target is smaller than the source.
        EngineError: whatever the stores raise.
    """
    if target.size_bytes < source.size_bytes:
        raise InvalidArgument(f"the target has {target.size_bytes} bytes, the source {source.size_bytes}")
    whole = [Extent(0, source.size_bytes)] if source.size_bytes else []
    plan = whole_leaves(whole if extents is None else extents, source.size_bytes)
    options = options or CopyOptions()
    steps = Steps(source, target, compare_first=options.compare_first, mover=mover)
    return await _Copy(source, target, plan, ledger, options, control or CopyControl(), steps).run()


class _Copy:
    """One run of the loop."""

    def __init__(
        self,
        source: BlockDevice,
        target: BlockDevice,
        plan: list[Extent],
        ledger: Record | None,
        options: CopyOptions,
        control: CopyControl,
        steps: Steps,
    ) -> None:
        self._steps = steps
        self._source = source
        self._target = target
        self._plan = plan
        self._ledger = ledger
        self._options = options
        self._control = control
        self._progress = control.progress
        self._tree = ledger.tree if ledger is not None else HashTree(source.size_bytes)
        self._ready: deque[Extent] = deque()
        self._windows = self._windows_of_plan()
        self._planning = asyncio.Lock()
        self._unrecorded: list[tuple[Extent, bytes]] = []
        self._unrecorded_bytes = 0
        self._recorded = asyncio.Event()  # set by the recorder: there is room for more
        self._filled = asyncio.Event()  # set by the lanes: there is something to record
        self._lanes_done = asyncio.Event()
        self._is_whole = False
        """The lanes have ended because nothing was left."""

    async def run(self) -> CopyResult:
        started = time.monotonic()
        await self._count()
        try:
            async with asyncio.TaskGroup() as group:
                if self._ledger is not None:
                    group.create_task(self._recorder(self._ledger))
                await self._run_lanes()
        except BaseExceptionGroup as errors:
            await self._record_the_rest()
            raise _first(errors) from errors
        except asyncio.CancelledError:
            await self._record_the_rest()
            raise
        if self._ledger is None:
            await self._target.flush()
        assert self._progress.done_bytes == self._progress.total_bytes
        return CopyResult(self._progress, self._tree, time.monotonic() - started)

    async def _count(self) -> None:
        """Find out how much there is to do before beginning: progress is a share of that."""
        if self._options.blank_target:
            windows = self._windows_of_plan()
            while (found := await windows.next(self._source)) is not None:
                self._progress.total_bytes += sum(s.length for s in _strips(*found) if s.state is ExtentState.DATA)
        else:
            self._progress.total_bytes = sum(extent.length for extent in self._plan)
        if self._ledger is not None:
            self._progress.done_bytes = self._progress.resumed_bytes = self._ledger.done_bytes
        self._control.tell()

    async def _run_lanes(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(LANES):
                    group.create_task(self._lane())
            self._is_whole = True
        finally:
            self._lanes_done.set()
            self._filled.set()

    async def _lane(self) -> None:
        while (strip := await self._next_strip()) is not None:
            moved = await self._steps.move(strip)
            for zero in moved.zeroes:
                if not self._options.blank_target:
                    await self._clear(zero)
            self._count_moved(moved)
            await self._done(strip, moved.digests)

    def _count_moved(self, moved: Moved) -> None:
        self._progress.written_bytes += moved.written_bytes
        self._progress.equal_bytes += moved.equal_bytes
        self._progress.zero_bytes += sum(extent.length for extent in moved.zeroes)

    async def _next_strip(self) -> Extent | None:
        """The next strip that holds data and is not recorded. Holes are dealt with on the way."""
        await self._control.passage()
        async with self._planning:
            while not self._ready:
                found = await self._windows.next(self._source)
                if found is None:
                    return None
                await self._plan_window(*found)
            return self._ready.popleft()

    def _windows_of_plan(self) -> _Windows:
        # What has to be cleared is cleared, and recorded, a window at a time.
        return _Windows(self._plan, EMPTY_WINDOW_BYTES if self._options.blank_target else PLAN_WINDOW_BYTES)

    async def _plan_window(self, window: Extent, extents: Sequence[Extent]) -> None:
        for strip in _strips(window, extents):
            if self._ledger is not None and self._ledger.is_done(strip.offset, strip.length):
                continue
            if strip.state is ExtentState.DATA:
                self._ready.append(strip)
                continue
            self._progress.zero_bytes += strip.length
            if not self._options.blank_target:
                await self._clear(strip)
                await self._done(strip, zero_digests(strip))

    async def _clear(self, extent: Extent) -> None:
        """Make the target read zero; what it did not turn into a hole is read back."""
        await self._target.discard(extent.offset, extent.length)
        for left in await self._target.extents(extent.offset, extent.length):
            if left.state is not ExtentState.DATA:
                continue
            for offset in range(left.offset, left.end, PIECE_BYTES):
                piece = Extent(offset, min(PIECE_BYTES, left.end - offset))
                back = memoryview(bytearray(piece.length))
                await self._target.read(piece.offset, back)
                if leaf_digests(back) != (zero := zero_digests(piece)):
                    raise mismatch(piece, zero, leaf_digests(back))

    async def _done(self, strip: Extent, digests: bytes) -> None:
        """The strip is verified. With a ledger it counts once it is recorded."""
        if self._ledger is None:
            self._tree.put(strip.offset, digests)
            self._progress.done_bytes += strip.length
            self._control.tell()
            return
        while self._unrecorded_bytes >= INTERVAL_BYTES:
            self._recorded.clear()
            await self._recorded.wait()
        self._unrecorded.append((strip, digests))
        self._unrecorded_bytes += strip.length
        self._filled.set()

    async def _recorder(self, ledger: Record) -> None:
        """Flush, then record, until the lanes are done: the order is what makes an entry worth anything."""
        while True:
            await self._gather_batch()
            last = self._lanes_done.is_set()
            if self._unrecorded or last:
                await self._record(ledger)
            if last:
                return

    async def _record(self, ledger: Record) -> None:
        batch = self._unrecorded
        self._unrecorded = []
        self._unrecorded_bytes = 0
        self._recorded.set()
        await self._target.flush()
        if self._is_whole:
            ledger.complete(batch)
        else:
            await ledger.record(batch)
        self._progress.done_bytes = ledger.done_bytes
        self._control.tell()

    async def _record_the_rest(self) -> None:
        """The copy has failed or is cancelled; what is verified need not be copied again."""
        self._is_whole = False
        if self._ledger is not None:
            with contextlib.suppress(EngineError):  # the first error is the one to report
                await self._record(self._ledger)

    async def _gather_batch(self) -> None:
        """Wait until a quarter of an interval is verified, a pause has passed, or the lanes are done."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RECORD_PAUSE_S):
                while self._unrecorded_bytes < INTERVAL_BYTES // 4 and not self._lanes_done.is_set():
                    self._filled.clear()
                    await self._filled.wait()


class _Windows:
    """The plan in windows, each with what the source has there. They grow while that is nothing, up to ``longest``, so
    that the cost of a copy follows the data and not the size."""

    def __init__(self, plan: Sequence[Extent], longest: int) -> None:
        self._rest = deque(plan)
        self._longest = longest
        self._length = PLAN_WINDOW_BYTES

    async def next(self, source: BlockDevice) -> tuple[Extent, list[Extent]] | None:
        """The next one, for one caller at a time. Raises what the source raises."""
        if not self._rest:
            return None
        extent = self._rest[0]
        window = Extent(extent.offset, min(self._length, extent.length))
        found = await source.extents(window.offset, window.length)
        has_data = any(each.state is ExtentState.DATA for each in found)
        self._length = PLAN_WINDOW_BYTES if has_data else min(2 * self._length, self._longest)
        self._rest.popleft()
        if window.end < extent.end:
            self._rest.appendleft(Extent(window.end, extent.end - window.end))
        return window, found


def _strips(window: Extent, extents: Sequence[Extent]) -> Iterator[Extent]:
    """What a window holds, in whole leaves, data in strips. A leaf that holds any data is data."""
    data = whole_leaves([e for e in extents if e.state is ExtentState.DATA], window.end)
    at = window.offset
    for extent in data:
        if extent.offset > at:
            yield Extent(at, extent.offset - at, ExtentState.HOLE)
        for offset in range(extent.offset, extent.end, STRIP_BYTES):
            yield Extent(offset, min(STRIP_BYTES, extent.end - offset))
        at = extent.end
    if at < window.end:
        yield Extent(at, window.end - at, ExtentState.HOLE)


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first leaf of a group: one lane's failure is the copy's."""
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
