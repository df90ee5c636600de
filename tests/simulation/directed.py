"""Races too narrow to be met by chance, played on purpose: one worker's call is held while everything else runs.

Each scenario raises Violation when the store breaks its promise; ``mutations`` runs them where random lives would
take too long.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
from pathlib import Path
from typing import TYPE_CHECKING

from engine.errors import MediumError, NotFound, StoreCorrupt, StoreFailed
from engine.files import StoreEnv
from engine.tvol import checkpoint, layout
from engine.tvol.file import TvolFile
from engine.tvol.journal import COMMIT_ROOM
from engine.tvol.layout import RecordType
from tests.support.sim_files import Fault, SimFileSystem, eio
from tests.support.sim_loop import ProcessDied, SimClock, SimLoop, SimWorkers
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from engine.tvol.head import NativeHead

PATH = Path("/pool/v.tvol")
CHUNK = 65536
CHUNKS = 12


class HeldWorkers(SimWorkers):
    """Holds the next call that ``meant`` is true of until ``let_go``, and what comes of the next one that ``slow`` is
    true of until ``report``."""

    def __init__(self, loop: SimLoop) -> None:
        super().__init__(loop, random.Random(1), turns_max=2)
        self._future = loop.create_future
        self.meant: Callable[[object], bool] | None = None
        self.slow: Callable[[object], bool] | None = None
        self.held: list[asyncio.Future[None]] = []
        self.unreported: list[asyncio.Future[None]] = []

    async def run(self, call):
        if self.meant is not None and self.meant(call):
            self.meant = None
            self.held.append(self._future())
            await self.held[-1]
        if self.slow is None or not self.slow(call):
            return await super().run(call)
        self.slow = None
        (outcome,) = await asyncio.gather(super().run(call), return_exceptions=True)
        self.unreported.append(self._future())
        await self.unreported[-1]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    def let_go(self) -> None:
        """The call that was held first goes on."""
        assert self.held, "the call to hold never came"
        self.held.pop(0).set_result(None)

    def report(self) -> None:
        """The loop is told what came of the call that was slow."""
        assert self.unreported, "the slow call has not taken effect"
        self.unreported.pop(0).set_result(None)


def named(name: str) -> Callable[[object], bool]:
    """True of the method of that name."""
    return lambda call: getattr(call, "__name__", "") == name


def _process(files: SimFileSystem, main: Callable[[StoreEnv, HeldWorkers], Coroutine]) -> None:
    loop = SimLoop()
    workers = HeldWorkers(loop)
    try:
        loop.run_until_complete(main(StoreEnv(files, workers, SimClock(loop)), workers))
    finally:
        files.kill()
        loop.close()


async def _create(env: StoreEnv) -> TvolFile:
    return await TvolFile.create(
        env, PATH, volume_name="vol", size_bytes=CHUNKS * CHUNK, chunk_bytes=CHUNK, journal_bytes=CHUNK
    )


def a_slow_reader_of_a_freed_chunk() -> None:
    """It reads what was there or the zeroes of the discard, never what somebody else wrote into the chunk later."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        await head.flush()
        workers.meant = lambda call: True
        buffer = bytearray(CHUNK)
        reader = asyncio.ensure_future(head.read(0, memoryview(buffer)))
        await asyncio.sleep(0)
        await head.discard(0, CHUNK)
        for index in range(1, CHUNKS):
            await head.flush()
            await head.write(index * CHUNK, memoryview(b"b" * CHUNK))
        workers.let_go()
        await reader
        if bytes(buffer) not in (b"a" * CHUNK, bytes(CHUNK)):
            raise Violation("a reader was given what was written to its chunk after it had been freed")
        await store.close()

    _process(SimFileSystem(random.Random(1)), main)


def a_write_over_an_own_chunk_and_a_shared_one() -> None:
    """They lie in the file as they do in the volume, the first one taken anew since the snapshot: no write is in place
    in both."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        store._core.allocator.stays_dirty = True  # the chunk that is freed is the next one taken
        head = store.volumes()[0]
        for index in range(2):
            await head.write(index * CHUNK, memoryview(b"a" * CHUNK))
        await head.discard(0, CHUNK)
        await head.flush()
        await store.settled()
        snapshot = await store.snapshot(head, "s")
        await head.write(0, memoryview(b"b" * CHUNK))
        first, second = (head.node.map.lookup(index) for index in range(2))
        assert second == first + 1, "the chunks are not adjacent"
        if head.try_write(0, memoryview(b"c" * 2 * CHUNK)):
            head.end_pass()
        found = bytearray(CHUNK)
        await snapshot.read(CHUNK, memoryview(found))
        if found != b"a" * CHUNK:
            raise Violation("a write over several chunks went into one that a snapshot shares")

    _process(SimFileSystem(random.Random(1)), main)


def two_flips_over_a_slow_write() -> None:
    """The second snapshot shares the chunk that a write admitted before the first one is still changing."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        workers.meant = lambda call: True
        writer = asyncio.ensure_future(head.write(0, memoryview(b"b" * 512)))
        await asyncio.sleep(0)
        first = asyncio.ensure_future(store.snapshot(head, "first"))
        await asyncio.sleep(0)
        second = asyncio.ensure_future(store.snapshot(head, "second"))
        await _turns(300)
        before = bytearray(512)
        if second.done():
            await second.result().read(0, memoryview(before))
        workers.let_go()
        await asyncio.gather(writer, first, second)
        after = bytearray(512)
        await second.result().read(0, memoryview(after))
        if any(before) and before != after:
            raise Violation("a snapshot changed after its call had returned")
        await store.close()

    _process(SimFileSystem(random.Random(1)), main)


def a_merge_before_the_deletion_is_durable() -> None:
    """Power is lost while a deletion is being flushed: the snapshot that comes back is what it was."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        one = await store.snapshot(head, "one")
        # A reader of a freed chunk: when it ends, the housekeeper has something to do.
        await head.write(CHUNK, memoryview(b"x" * CHUNK))
        workers.meant = lambda call: True
        reader = asyncio.ensure_future(head.read(CHUNK, memoryview(bytearray(CHUNK))))
        await asyncio.sleep(0)
        await head.discard(CHUNK, CHUNK)
        await head.flush()
        workers.meant = named("_sync_data_before_commit")
        deleting = asyncio.ensure_future(store.delete_snapshot(one))
        await _turns(200)
        assert len(workers.held) == 2, "the deletion does not flush"
        workers.let_go()
        await reader
        await _turns(100)
        assert not deleting.done()
        if head.try_write(0, memoryview(b"b" * CHUNK)):
            head.end_pass()

    async def look(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        for snapshot in store.snapshots():
            buffer = bytearray(CHUNK)
            await snapshot.read(0, memoryview(buffer))
            if buffer != b"a" * CHUNK:
                raise Violation("a snapshot whose deletion was not durable came back with other content")
        await store.close()

    _process(files, main)
    files.lose_power("everything")
    _process(files, look)


def an_atomic_write_ended_anywhere() -> None:
    """The process is killed inside one file operation after the other, which has then happened, or not, or in part:
    both chunks are old, or both are new."""
    for operation, seed in itertools.product(range(1, 8), range(8)):
        files = SimFileSystem(random.Random(seed))

        async def main(env: StoreEnv, workers: HeldWorkers, files=files, operation=operation) -> None:
            files.on_death = asyncio.get_running_loop().die
            store = await _create(env)
            head = store.volumes()[0]
            await head.write(0, memoryview(b"a" * 2 * CHUNK), fua=True)
            files.die_after(operation)
            await head.write_atomic(CHUNK // 2, memoryview(b"b" * CHUNK))
            await store.close()

        with contextlib.suppress(ProcessDied):
            _process(files, main)
        files.restart_process()
        _process(files, _look_for_one_write)


async def _look_for_one_write(env: StoreEnv, workers: HeldWorkers) -> None:
    store = await TvolFile.open(env, PATH)
    buffer = bytearray(2 * CHUNK)
    await store.volumes()[0].read(0, memoryview(buffer))
    half = CHUNK // 2
    if buffer not in (b"a" * 2 * CHUNK, b"a" * half + b"b" * CHUNK + b"a" * half):
        raise Violation("an atomic write is there by halves")
    await store.close()


async def _look_for_a(env: StoreEnv, workers: HeldWorkers) -> None:
    buffer = bytearray(CHUNK)
    try:
        store = await TvolFile.open(env, PATH)
        await store.volumes()[0].read(0, memoryview(buffer))
    except (StoreCorrupt, MediumError) as error:
        raise Violation(str(error)) from error
    if buffer != b"a" * CHUNK:
        raise Violation("flushed data is gone")
    await store.close()


def a_flush_without_room_for_its_commit() -> None:
    """Power is lost behind it: what was flushed is there all the same."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        core, head = store._core, store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        record = layout.NODE_ID.pack(head.node_id) + layout.pack_text("vol")
        while core.journal.used + COMMIT_ROOM <= core.journal.ring_bytes:
            core.log(RecordType.RENAME, record)
        await head.flush()

    _process(files, main)
    files.lose_power("nothing")
    _process(files, _look_for_a)


def a_failed_sync_and_a_reopening_on_the_same_boot() -> None:
    """What is read after the reopening, and flushed, is on the medium: not only in the cache that the sync left lying.

    The first process to open the file again may die while it does, as far as a file operation of each number.
    """
    for seed in range(60):
        files = SimFileSystem(random.Random(seed))
        seen: list[bytes] = []

        async def fail(env: StoreEnv, workers: HeldWorkers, files: SimFileSystem = files) -> None:
            store = await _create(env)
            head = store.volumes()[0]
            await head.write(4 * CHUNK, memoryview(b"x" * 4 * CHUNK))
            await head.write(0, memoryview(b"a" * CHUNK), fua=True)
            await head.discard(4 * CHUNK, 4 * CHUNK)
            await head.flush()  # these four chunks are free, and have x in them
            await head.write(0, memoryview(b"b" * 4096))
            for chunk in (1, 2, 3):
                await head.write(chunk * CHUNK, memoryview(b"c" * CHUNK))
            files.faults.append(Fault("sync", eio))
            with contextlib.suppress(StoreFailed):
                await head.flush()
                raise Violation("a failed sync is no failure")

        async def look(env: StoreEnv, workers: HeldWorkers, seen: list[bytes] = seen) -> None:
            store = await TvolFile.open(env, PATH)
            head = store.volumes()[0]
            buffer = bytearray(4 * CHUNK)
            await head.read(0, memoryview(buffer))
            seen.append(bytes(buffer))
            await head.flush()

        _process(files, fail)
        files.restart_process()
        files.die_after(seed)
        with contextlib.suppress(ProcessDied):
            _process(files, look)
        files.restart_process()
        _process(files, look)
        files.lose_power("nothing")
        _process(files, look)
        if seen[-1] != seen[-2]:
            raise Violation("what was read and flushed is gone")
        if seen[-1][4096:CHUNK] != b"a" * (CHUNK - 4096) or b"x" in seen[-1]:
            raise Violation("what was flushed before the failure is gone, or other bytes are there")


def two_syncs_at_once_of_which_one_fails() -> None:
    """The host tells a failure once. A flush whose own sync comes after it, and before the loop has heard of it, does
    not vouch for what the other one has lost."""
    for seed in range(8):
        files = SimFileSystem(random.Random(seed))
        flushed: list[bool] = []

        async def main(
            env: StoreEnv, workers: HeldWorkers, files: SimFileSystem = files, flushed: list[bool] = flushed
        ) -> None:
            store = await _create(env)
            head = store.volumes()[0]
            await head.write(0, memoryview(b"x" * CHUNK), fua=True)
            await head.write(0, memoryview(b"a" * CHUNK))
            workers.meant, workers.slow = named("_sync_data_before_commit"), named("_sync_pages_before_superblock")
            flushing = asyncio.ensure_future(head.flush())
            files.faults.append(Fault("sync", eio))
            checkpointing = asyncio.ensure_future(store._core.checkpointer.run())
            await _turns(300)
            workers.let_go()
            await _turns(300)
            flushed.append(flushing.done() and flushing.exception() is None)
            workers.report()
            await asyncio.gather(flushing, checkpointing, return_exceptions=True)

        _process(files, main)
        files.faults.clear()
        files.lose_power("everything")
        if flushed[0]:
            _process(files, _look_for_a)


def a_table_that_changes_while_it_is_written() -> None:
    """The checkpoint has it as it was captured, also the pages that it comes to after the change. Power is then lost,
    and with it the change."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _shared_once(env)
        head = store.volumes()[0]
        await _share_second(store)
        await head.write(2 * CHUNK, memoryview(b"c" * CHUNK))
        await head.flush()
        workers.meant = lambda call: True
        checkpointing = asyncio.ensure_future(store._core.checkpointer.run())
        await _turns(50)
        await head.discard(CHUNK, CHUNK)
        workers.let_go()
        await checkpointing

    with _pages_one_by_one():
        _process(files, main)
    files.lose_power("nothing")
    _process(files, _look_for_second)


@contextlib.contextmanager
def _pages_one_by_one() -> Iterator[None]:
    """A checkpoint lets others work between two pages."""
    before, checkpoint.BATCH_PAGES = checkpoint.BATCH_PAGES, 1
    try:
        yield
    finally:
        checkpoint.BATCH_PAGES = before


async def _turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def a_journal_overrun_during_a_checkpoint() -> None:
    """Power is lost before the checkpoint's superblock: all that was flushed since the last one is still there."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        await head.flush()
        workers.meant = named("_sync_pages_before_superblock")

        async def churn() -> None:
            for _ in range(600):
                await head.discard(CHUNK, CHUNK)
                await head.write_zeroes(CHUNK, CHUNK)

        churning = asyncio.ensure_future(churn())
        await _turns(5000)
        assert workers.held, "the journal was not filled"
        assert not churning.done() or churning.exception() is None

    _process(files, main)
    files.lose_power("everything")
    _process(files, _look_for_a)


def a_chunk_reused_while_a_node_is_reclaimed() -> None:
    """A branch left by a rollback is being reclaimed; what it inherited has another holder, who may reuse it."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        base = await store.snapshot(head, "base")
        await head.write(CHUNK, memoryview(b"b" * CHUNK))
        await store.rollback(head, base)
        (branch,) = (snapshot for snapshot in store.snapshots() if snapshot is not base)
        keeper = store._housekeeper
        keeper._stopped = True  # its steps are taken here, with the head's own between them
        await store.delete_snapshot(branch)
        await store.delete_snapshot(base)
        await keeper._merge()
        await head.discard(0, CHUNK)
        await head.flush()
        await head.write(2 * CHUNK, memoryview(b"c" * CHUNK))
        await keeper._reclaim()
        await head.flush()
        for index in range(3, CHUNKS):
            await head.write(index * CHUNK, memoryview(b"d" * CHUNK))
        buffer = bytearray(CHUNK)
        await head.read(2 * CHUNK, memoryview(buffer))
        if buffer != b"c" * CHUNK:
            raise Violation("a chunk in use was freed with a node that had it before")

    _process(SimFileSystem(random.Random(1)), main)


async def _shared_once(env: StoreEnv) -> TvolFile:
    """The first chunk and the second are one, full of "a"; the first is the head's own again."""
    store = await _create(env)
    head = store.volumes()[0]
    await head.write(0, memoryview(b"a" * CHUNK))
    await _share_second(store)
    await head.flush()
    return store


async def _share_second(store: TvolFile) -> None:
    source = await store.snapshot(store.volumes()[0], "source")
    assert await store.share(source, 0, store.volumes()[0], CHUNK, CHUNK) == CHUNK
    await store.delete_snapshot(source)
    await store.settled()


def _second_is_a(found: bytes | bytearray, *others: bytes) -> None:
    if bytes(found) not in (b"a" * CHUNK, *others):
        raise Violation("a shared chunk changed under one who had not written to it")


async def _look_for_second(env: StoreEnv, workers: HeldWorkers) -> None:
    buffer = bytearray(CHUNK)
    try:
        store = await TvolFile.open(env, PATH)
        await store.volumes()[0].read(CHUNK, memoryview(buffer))
    except (StoreCorrupt, MediumError) as error:
        raise Violation(str(error)) from error
    _second_is_a(buffer)
    await store.close()


async def _write_first(head: NativeHead) -> None:
    """As the fast path would, in place if it may."""
    if not head.try_write(0, memoryview(b"b" * CHUNK)):
        await head.write(0, memoryview(b"b" * CHUNK))
    head.end_pass()


def a_shared_chunk_written_after_opening() -> None:
    """What is shared is known to be shared by the next process too."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        await (await _shared_once(env)).close()

    async def write(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await TvolFile.open(env, PATH)
        await _write_first(store.volumes()[0])
        await store.close()

    for process in (main, write, _look_for_second):
        _process(files, process)
        files.restart_process()


def a_share_that_comes_back() -> None:
    """Power is lost before the end of a share is durable: the chunk was not written in place meanwhile."""
    files = SimFileSystem(random.Random(1))

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        head = (await _shared_once(env)).volumes()[0]
        await head.discard(CHUNK, CHUNK)
        await _write_first(head)

    _process(files, main)
    files.lose_power("everything")
    _process(files, _look_for_second)


def a_slow_reader_of_a_shared_chunk() -> None:
    """It reads what was shared or the zeroes of the discard, not what the other holder writes to the chunk later."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        head = (await _shared_once(env)).volumes()[0]
        workers.meant = lambda call: True
        buffer = bytearray(CHUNK)
        reader = asyncio.ensure_future(head.read(CHUNK, memoryview(buffer)))
        await asyncio.sleep(0)
        await head.discard(CHUNK, CHUNK)
        await head.flush()
        await _write_first(head)
        workers.let_go()
        await reader
        _second_is_a(buffer, bytes(CHUNK))

    _process(SimFileSystem(random.Random(1)), main)


def a_chunk_shared_again_while_it_thaws() -> None:
    """The end of a first share becomes durable when there is a second: the chunk stays as it is."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        source = await store.snapshot(head, "source")
        for _ in range(2):
            await head.discard(CHUNK, CHUNK)
            await store.share(source, 0, head, CHUNK, CHUNK)
        await store.delete_snapshot(source)
        await store.settled()
        await _write_first(head)
        buffer = bytearray(CHUNK)
        await head.read(CHUNK, memoryview(buffer))
        _second_is_a(buffer)

    _process(SimFileSystem(random.Random(1)), main)


def a_source_deleted_while_it_is_shared() -> None:
    """The caller is told; nothing refers to chunks that have other holders by then."""

    async def main(env: StoreEnv, workers: HeldWorkers) -> None:
        store = await _create(env)
        head = store.volumes()[0]
        await head.write(0, memoryview(b"a" * CHUNK))
        source = await store.snapshot(head, "source")
        await head.write(0, memoryview(b"b" * CHUNK))
        workers.meant = named("_sync_pages_before_superblock")
        sharing = asyncio.ensure_future(store.share(source, 0, head, CHUNK, CHUNK))
        await _turns(50)
        await store.delete_snapshot(source)
        await _turns(300)
        await head.write(2 * CHUNK, memoryview(b"c" * CHUNK))
        workers.let_go()
        outcome = (await asyncio.gather(sharing, return_exceptions=True))[0]
        if not isinstance(outcome, NotFound):
            raise Violation(f"a snapshot was shared that is gone: {outcome!r}")

    _process(SimFileSystem(random.Random(1)), main)
