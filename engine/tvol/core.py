"""What all devices of one open volume file share: the pass, the journal, flushes, the sticky failure.

Everything runs in the loop's thread except the calls handed to workers, which get plain extents and buffers; and
the two syncs of a flush with the COMMIT in between, which are one call's work (``Journal``).

Order of effects of a change (STORE section 2):

1. the data is written to chunks that nobody else reads, or in place where the chunk is the head's own;
2. the mapping is published in memory (``publish``, ``publish_fill``);
3. ``end_pass`` writes one MAP record for all that was published: now the change survives the process;
4. ``flush``: everything up to sequence N is captured -> data synced -> COMMIT(N) written -> synced: now it survives
   power loss;
5. chunks that those records freed are let go when N is durable and every operation in flight at the time has ended.

A failed sync or journal write makes the store *failed* for good: what the host dropped from its cache is unknown. No
commit record is written, nothing is retried on this descriptor; writes and flushes raise StoreFailed. Of a failed sync
a FAILED record tells the next opening on the same boot (``recovery``).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
from array import array
from typing import TYPE_CHECKING

from engine.errors import MediumError, NotSupported, OutOfSpace, StoreFailed
from engine.tvol import layout
from engine.tvol.allocator import RELEASE_CHUNKS, runs
from engine.tvol.checkpoint import TOUCHED_MAX
from engine.tvol.layout import (
    FIRST_CHUNK_ENTRY,
    MAP_ITEM,
    MAX_MAP_ITEMS,
    MAX_PARTIAL_ITEMS,
    PARTIAL_ITEM,
    RecordType,
    pack_map,
    pack_partial,
)
from engine.tvol.map_reader import MapReader, MapSource
from engine.tvol.pages import MARGIN, WRITE_STEP, PagePool
from engine.tvol.payload import Payload

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from engine.encryption import Encryption
    from engine.files import BlockFile, StoreEnv
    from engine.tvol.allocator import Allocator
    from engine.tvol.checkpoint import Checkpointer
    from engine.tvol.journal import Journal
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

_LOG = logging.getLogger(__name__)

MAX_PASS_BYTES = 8 * 1024
"""Journal bytes that a pass may gather before the fast path declines."""
TREE_RECORD_BYTES = 4 * 1024
"""More than any record of a tree operation takes (names are bounded)."""
PUNCH_BYTES = 4 * 1024 * 1024
"""Longest piece that is punched at once (STORE section 3)."""
PUNCH_PIECES = 16
"""So many of them, or single chunks of as many in all, are handed to a worker at a time (64 MiB)."""
MAX_DIRTY_SLOT_PAGES = 1024
"""Pages of the table of slots (16 MiB, 2 million slots) that one checkpoint copies in one turn of the loop."""
GIVING_TRIES = 16
"""Checkpoints that a deletion or discard waits for on a full disk; others may take what one has returned."""
FREED_WAIT_S = 5.0
"""How long a write without space waits for the first chunk of a deleted snapshot."""
_MAP_WORDS = MAX_MAP_ITEMS * MAP_ITEM.size // 4
_PARTIAL_WORDS = MAX_PARTIAL_ITEMS * PARTIAL_ITEM.size // 4
GROW_CHUNKS_BYTES = 1024 * 1024
"""Metadata space is reserved in steps of it."""


class Core:
    """The shared state of an open file."""

    def __init__(
        self,
        env: StoreEnv,
        file: BlockFile,
        family: Family,
        journal: Journal,
        allocator: Allocator,
        pages: PagePool,
        encryption: Encryption | None = None,
    ) -> None:
        self.env = env
        self.file = file
        self.encryption = encryption
        self.data = file if encryption is None else _encrypted(file, encryption)
        """The file as it is to be used for payload."""
        self.family = family
        self.payload = Payload(self.data, family.births.digests.bad, family.chunk_bytes)
        self.journal = journal
        self.allocator = allocator
        self.pages = pages
        self.maps = MapReader(MapSource(file), env.workers, family, env.cached_leaves)
        self.chunk_bytes = family.chunk_bytes
        self.chunk_shift = family.chunk_bytes.bit_length() - 1
        self.checkpointer: Checkpointer
        """Set by whoever builds both."""
        self.is_open = False
        """The opening checkpoint is durable: what the journal had is void, and records may be written."""
        self.failed: StoreFailed | None = None
        self.on_failure: list[Callable[[], None]] = []
        self.on_tree_change: list[Callable[[], None]] = []
        """Called in the step in which a tree operation was done."""
        self.on_work: Callable[[], None] = _nothing
        """Called when there may be something to do in the background."""
        self.durable_seq = journal.last_seq
        """Everything up to it survives power loss."""
        self.last_change_seq = journal.last_seq
        """The last record that was neither COMMIT nor PAD."""
        self._pass: list[tuple[RecordType, int, array[int]]] = []
        """Changes published and not journaled: (MAP or PARTIAL, node, items) in order of publication."""
        self._pass_bytes = 0
        self._operations: dict[int, None] = {}
        self._last_operation = 0
        self._quiet: asyncio.Event | None = None
        self._next_flush: asyncio.Future[None] | None = None
        self._flusher: asyncio.Task[None] | None = None
        self._committed = 0
        """What the COMMIT of the running flush covers, once it is written."""
        self._growing = asyncio.Lock()
        self.becoming_metadata = 0
        """Chunks that were taken for it and are being allocated at the host."""
        self._punching = asyncio.Lock()
        self._syncing = threading.Lock()
        self._has_sync_failed = False
        self.failed_sync_told = False
        """The journal says that a sync has failed."""
        self._freed: asyncio.Event | None = None
        """Set when chunks are freed; somebody waits for it."""
        self._may_share = family.claims.in_use

    def as_stored(self, data: bytes, position: int) -> bytes:
        """Payload as it lies in the file: that is what digests are of, and needs no key to be checked."""
        stored: Callable[[bytes, int], bytes] | None = getattr(self.data, "stored", None)
        return data if stored is None else stored(data, position)

    @property
    def path(self) -> Path:
        return self.file.path

    # --- failure ------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises StoreFailed once the store has failed or was closed."""
        if self.failed:
            raise StoreFailed(str(self.failed))

    def fail(self, cause: Exception | str) -> StoreFailed:
        """Make the failure sticky; returns it.

        Only a failed sync is told to the next opening: after any other failure the page cache still has all that was
        acknowledged.
        """
        if self.is_open and self._has_sync_failed and not self.failed_sync_told:
            self.failed_sync_told = self.journal.mark_failed()
        if self.failed is None:
            advice = "close it, run a check, and reopen it"
            if self._has_sync_failed and not self.failed_sync_told:
                advice = "this could not be noted in the file, so restart the host before it is opened again"
            self.failed = cause if isinstance(cause, StoreFailed) else StoreFailed(f"{self.path}: {cause}; {advice}")
            for callback in self.on_failure:
                callback()
        return self.failed

    # --- operations in flight -----------------------------------------------------------------------------------

    def begin_operation(self) -> int:
        """Register a read or write that holds chunk numbers across a wait; ``end_operation`` must follow."""
        self._last_operation += 1
        self._operations[self._last_operation] = None
        return self._last_operation

    def end_operation(self, operation: int) -> None:
        del self._operations[operation]
        if self._quiet and not self._operations:
            self._quiet.set()
            self._quiet = None
        if self.allocator.has_deferred:
            self.release_freed()

    def renewed(self, operation: int) -> int:
        """The number that an operation goes on with which holds no chunk of before any more."""
        number = self.begin_operation()
        self.end_operation(operation)
        return number

    async def quiet(self) -> None:
        """Wait until no operation is in flight."""
        while self._operations:
            self._quiet = self._quiet or asyncio.Event()  # one for all who wait
            await self._quiet.wait()

    def release_freed(self) -> None:
        released = self.allocator.release(self.durable_seq, next(iter(self._operations), None))
        if released:
            self.on_work()
        if released >= RELEASE_CHUNKS:
            asyncio.get_running_loop().call_soon(self.release_freed)

    # --- publication and the pass -------------------------------------------------------------------------------

    def publish(self, node: Node, index: int, entry: int) -> None:
        """Point one index of a node at a chunk whose data was written (or at EMPTY, ZERO)."""
        self.family.set_entry(node, index, entry)
        items = self._items(RecordType.MAP, node.id)
        # Sequential writes make one item: the same node, the next index, the next chunk.
        if len(items) and entry >= FIRST_CHUNK_ENTRY:
            count = items[-2]
            if items[-3] + count == index and items[-1] + count == entry and items[-1] >= FIRST_CHUNK_ENTRY:
                items[-2] = count + 1
                return
        items.extend((index, 1, entry))
        self._pass_bytes += MAP_ITEM.size

    def publish_partial(self, node: Node, index: int, chunk: int, base: int, mask: int) -> None:
        """Pages of a partial chunk whose data was written, as ``Family.set_partial`` takes them."""
        self.family.set_partial(node, index, chunk, base, mask)
        self._items(RecordType.PARTIAL, node.id).extend((index, chunk, base, mask))
        self._pass_bytes += PARTIAL_ITEM.size

    def publish_planned(self, node: Node, published: list[tuple[int, int, int, int]], *, together: bool) -> None:
        """What a plan has written: (index, chunk, base, mask) each, chunks of their own with base EMPTY.

        ``together``: all of it in one record.
        """
        together = together and any(base for _, _, base, _ in published)
        for index, chunk, base, mask in published:
            if base or together:
                self.publish_partial(node, index, chunk, base, mask)
            else:
                self.publish(node, index, chunk)

    def publish_run(self, node: Node, first: int, count: int, entry: int) -> None:
        """``publish`` for adjacent indexes and chunks."""
        self.family.set_run(node, first, count, entry)
        self._items(RecordType.MAP, node.id).extend((first, count, entry))
        self._pass_bytes += MAP_ITEM.size

    def publish_fill(self, node: Node, first: int, count: int, value: int) -> None:
        """Make a run of indexes EMPTY or ZERO."""
        self.family.fill(node, first, count, value)
        self._items(RecordType.MAP, node.id).extend((first, count, value))
        self._pass_bytes += MAP_ITEM.size

    def _items(self, kind: RecordType, node_id: int) -> array[int]:
        """Where the next item of a node goes. Items of different nodes and kinds keep their order, since a late write
        of an old epoch and the head's own next write may concern the same index."""
        if self._pass:
            last = self._pass[-1]
            if last[1] == node_id and last[0] is kind:
                return last[2]
        items: array[int] = array("I")
        self._pass.append((kind, node_id, items))
        self._pass_bytes += 2 * layout.RECORD_UNIT
        return items

    def ready_for_change(self) -> bool:
        """Whether the fast path may publish a few entries now: room in the journal and pages for the checkpoint."""
        return (
            self._pass_bytes < MAX_PASS_BYTES
            and self.journal.has_room(self._pass_bytes + TREE_RECORD_BYTES)
            and self.pages.admit_write()
        )

    def end_pass(self) -> None:
        """Journal what was published since the last call. Raises StoreFailed; then nothing may be acknowledged."""
        if self.failed:
            raise StoreFailed(str(self.failed))
        if not self._pass:
            return
        groups, self._pass, self._pass_bytes = self._pass, [], 0
        try:
            for kind, node_id, items in groups:
                pack, words = (pack_map, _MAP_WORDS) if kind is RecordType.MAP else (pack_partial, _PARTIAL_WORDS)
                for at in range(0, len(items), words):
                    part = items[at : at + words].tobytes()
                    self.last_change_seq = self.journal.append(kind, pack(node_id, part))
        except Exception as error:  # whatever it was: memory and journal do not agree any more
            raise self.fail(error) from error
        self._stamp_freed()
        if self.journal.used * 2 > self.journal.ring_bytes:
            self.checkpointer.start()
        elif self.pages.is_low:
            self.on_work()

    def _stamp_freed(self) -> None:
        """What the last record freed waits for it to be durable, and for whoever may still use it."""
        claims = self.family.claims
        if claims.freed:
            if self._freed:
                self._freed.set()
                self._freed = None
            self.allocator.defer(self.last_change_seq, self._last_operation, claims.freed)
            claims.freed = array("I")
        if claims.thawing:
            ticket = self.family.births.next_ticket()
            self.allocator.defer_thaw(self.last_change_seq, self._last_operation, ticket, claims.thawing)
            claims.thawing = array("I")

    def log(self, kind: RecordType, payload: bytes) -> int:
        """Journal a tree operation and do it, in this order in one step; its sequence number.

        The caller has awaited ``make_room``. Raises StoreFailed, OutOfSpace (of node numbers and generations).
        """
        self.end_pass()
        if max(self.family.generation, self.family.next_node) >= layout.MAX_GENERATION:
            raise OutOfSpace(f"{self.path} has used up its generations; copy the volume to a new file")
        try:
            self.last_change_seq = self.journal.append(kind, payload)
            self.family.apply(kind, payload)
        except Exception as error:  # as in end_pass
            raise self.fail(error) from error
        self._stamp_freed()
        if len(self.family.touched) > TOUCHED_MAX:
            self.checkpointer.start()
        for callback in self.on_tree_change:
            callback()
        return self.last_change_seq

    async def begin_sharing(self) -> None:
        """Before the first record of sharing both superblock slots refuse programs that do not know such records.

        Raises as ``Checkpointer.run``.
        """
        if not self._may_share:
            self.family.claims.in_use = True
            await self.checkpointer.run()
            self._may_share = True

    async def make_room_to_share(self) -> None:
        """``make_room`` for one SHARE record, whatever was shared before it in this call."""
        if len(self.family.claims.pages.dirty) >= MAX_DIRTY_SLOT_PAGES:
            await self.checkpointer.run()
        await self.make_room()

    # --- room ---------------------------------------------------------------------------------------------------

    def ready_for_tree_record(self, pages: int, record_bytes: int = TREE_RECORD_BYTES) -> bool:
        """Whether tree operations that add ``pages`` to the next checkpoint may happen at once."""
        return self.journal.has_room(self._pass_bytes + record_bytes) and self.pages.headroom() >= pages

    async def make_room(
        self, *, pages: int = WRITE_STEP, record_bytes: int = TREE_RECORD_BYTES, reserved: bool = False
    ) -> None:
        """Return when a record and ``pages`` more dirty pages can be admitted; act before the next await.

        ``reserved``: deletes, discards and flips may use up the margin. Raises OutOfSpace, StoreFailed.
        """
        tries = 0
        while True:
            self.check()
            floor = 0 if reserved else MARGIN
            if not self.journal.has_room(self._pass_bytes + record_bytes):
                await self.checkpointer.run()
            elif self.pages.headroom() >= pages + floor:
                return
            elif not await self.grow_pages(pages + MARGIN):
                # The disk is full: a checkpoint returns the pages of the state before the last one.
                if self.pages.headroom() >= pages + floor:
                    return
                if tries == (GIVING_TRIES if reserved else 2):
                    raise OutOfSpace(f"{self.path}: no space for metadata; free space on the host")
                tries += 1
                await self.checkpointer.run()

    async def grow_pages(self, pages: int) -> bool:
        """Reserve metadata chunks for ``pages`` more pages at least. False when the disk is full."""
        per_chunk = self.chunk_bytes // layout.PAGE_SIZE
        count = max(-(-pages // per_chunk), GROW_CHUNKS_BYTES // self.chunk_bytes)
        async with self._growing:
            if self.pages.headroom() >= pages + MARGIN:
                return True
            for wanted in (count, 1, 0):
                try:
                    await self._grow_by(wanted)
                except OutOfSpace:
                    continue
                return True
        return False

    async def _grow_by(self, count: int) -> None:
        """Turn ``count`` chunks at the end of the file into metadata chunks; with 0 one that is free already."""
        first = self.allocator.extend(count) if count else self.allocator.take(whole=True)[0]
        taken = self.becoming_metadata = max(1, count)
        try:
            await self.env.workers.run(lambda: self.file.allocate(first << self.chunk_shift, taken << self.chunk_shift))
            while not self.journal.has_room(self._pass_bytes + TREE_RECORD_BYTES):
                await self.checkpointer.run()
            self.log(RecordType.METADATA, layout.METADATA.pack(first, taken))
        except BaseException:
            if count:
                self.allocator.retract(first, taken)
            else:  # what is in it, a write that found no room, perhaps, is not zero, though it were the last one
                self.allocator.give_back((first,))
            raise
        finally:
            self.becoming_metadata = 0
        self.pages.add_chunks(first, taken)

    async def freed_soon(self) -> None:
        """After OutOfSpace: wait for the first chunks of deleted nodes that are being reclaimed, if nothing is free."""
        if not self.allocator.has_unused and self.family.is_reclaiming():
            self._freed = self._freed or asyncio.Event()
            self.on_work()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FREED_WAIT_S):
                    await self._freed.wait()

    async def find_space(self) -> bool:
        """After OutOfSpace: have everything that is free already given back to the host, and the room measured anew.
        False when that cannot have helped."""
        found = self.allocator.has_unused
        if found:
            await self.flush()
            await self.punch_all()
            async with self._punching:
                pass  # somebody else may be giving back what this call was about
        return await self.env.room.measure() or found

    async def punch_all(self) -> None:
        """Give the space of all dirty chunks back to the host, in pieces."""
        while self.allocator.dirty_count and not self.allocator.stays_dirty:
            async with self._punching:
                await self.punch_some()

    async def punch_some(self) -> None:
        """Punch some dirty chunks in a worker, in pieces of up to 4 MiB; they read zero afterwards."""
        longest = PUNCH_BYTES // self.chunk_bytes
        chunks = self.allocator.next_dirty(PUNCH_PIECES * longest)
        pieces = runs(chunks, longest)
        try:
            await self.env.workers.run(lambda: self._punch(pieces))
        except (NotSupported, MediumError) as error:
            self.allocator.cleaned(chunks, zero=False)
            self.allocator.stays_dirty = True  # some file systems cannot; the chunks are used again as they are
            _LOG.warning("%s: free space is not given back to the host: %s", self.path, error)
        except BaseException:
            self.allocator.cleaned(chunks, zero=False)
            raise
        else:
            self.allocator.cleaned(chunks, zero=True)

    async def zero_all(self) -> None:
        """Overwrite all dirty chunks, which could not be punched."""
        longest = PUNCH_BYTES // self.chunk_bytes
        while self.allocator.dirty_count:
            chunks = self.allocator.next_dirty(longest)
            try:
                await self.env.workers.run(functools.partial(self._zero, chunks))
            except BaseException:
                self.allocator.cleaned(chunks, zero=False)
                raise
            self.allocator.cleaned(chunks, zero=True)

    def _zero(self, chunks: array[int]) -> None:
        zeroes = memoryview(bytes(self.chunk_bytes))
        for chunk in chunks:
            self.file.write((zeroes,), chunk << self.chunk_shift)

    def _punch(self, pieces: list[tuple[int, int]]) -> None:
        for first, count in pieces:
            self.file.punch(first << self.chunk_shift, count << self.chunk_shift)

    # --- flush --------------------------------------------------------------------------------------------------

    async def flush(self) -> None:
        """Everything acknowledged before the call is durable when it returns. Raises StoreFailed.

        A caller joins the group that has not started its data sync yet; groups run one after the other.
        """
        self.end_pass()
        if self._next_flush is None:
            self._next_flush = asyncio.get_running_loop().create_future()
        group = self._next_flush
        if self._flusher is None:
            self._flusher = asyncio.create_task(self._flush_groups(), name=f"flush {self.path.name}")
        await asyncio.shield(group)

    async def _flush_groups(self) -> None:
        try:
            while self._next_flush is not None:
                group, self._next_flush = self._next_flush, None
                try:
                    await self._commit_group()
                except Exception as error:
                    group.set_exception(self.fail(error))
                    group.exception()  # taken, since the callers may all have been cancelled
                except BaseException:  # cancelled, or the program ends: nobody may wait for ever
                    group.cancel()
                    raise
                else:
                    group.set_result(None)
        finally:
            self._flusher = None

    async def _commit_group(self) -> None:
        self.check()
        self.end_pass()
        captured, workers = self.last_change_seq, self.env.workers
        if captured <= self.durable_seq:
            await workers.run(self._sync_data_before_commit)
            return
        self._committed = 0
        write_commit_record = functools.partial(self._write_commit_record, captured)
        await workers.run_each(self._sync_data_before_commit, write_commit_record, self._sync_commit_record)
        self.check()
        if self._committed == captured:
            self.became_durable(captured)
        else:
            await self._checkpoint_without_commit()

    async def _checkpoint_without_commit(self) -> None:
        """The journal had no room for the COMMIT: the checkpoint that makes some is the flush."""
        await self.checkpointer.run()

    def sync(self) -> None:
        """In a worker: fdatasync of the file. Raises MediumError, once it has failed always.

        One at a time: of two at once the host tells a failure to one of them only, and what the other one then vouched
        for (a commit record, a superblock) would be lost.
        """
        with self._syncing:
            if self._has_sync_failed:
                raise MediumError(f"{self.path}: an earlier sync has failed")
            try:
                self.file.sync_data()
            except BaseException:
                self._has_sync_failed = True
                raise

    def _sync_data_before_commit(self) -> None:
        """Data and soft records are durable before a commit record that vouches for them exists."""
        self.sync()

    def _write_commit_record(self, covers: int) -> None:
        self.check()
        if self.journal.commit(covers):
            self._committed = covers

    def _sync_commit_record(self) -> None:
        """The commit record is durable before the flush is answered and before freed chunks are let go."""
        if self._committed:
            self.sync()

    def became_durable(self, seq: int) -> None:
        """A commit or a checkpoint has made everything up to ``seq`` durable."""
        if seq > self.durable_seq:
            self.durable_seq = seq
            self.release_freed()

    async def idle(self) -> None:
        """Wait for the running flush to end, whatever its outcome."""
        while self._flusher is not None:
            await asyncio.wait([self._flusher])


def _encrypted(file: BlockFile, encryption: Encryption) -> BlockFile:
    from engine.tvol.cipher import EncryptedFile  # its library takes 30 ms to import, and few need it

    return EncryptedFile(file, encryption.key)


def _nothing() -> None:
    """No background work is wanted yet."""
