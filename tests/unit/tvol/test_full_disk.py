"""A host without space: writes that need some fail and change nothing; what gives space back works."""

import os
from pathlib import Path

import pytest

from engine.errors import MediumError, NotSupported, OutOfSpace, StoreFailed
from engine.files import RealFile, RealFileSystem, StoreEnv, SystemClock, ThreadWorkers
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.units import KIB, MIB

CHUNK = 64 * KIB


class FaultyFile(RealFile):
    """A file whose disk can be full: what has no blocks yet gets none; or whose syncs fail."""

    full = False
    bad_sync = False

    def _taken(self, offset, length):
        """Whether the range has blocks, as far as the file's data regions tell."""
        try:
            return os.lseek(self._fd, offset, os.SEEK_DATA) == offset and (
                os.lseek(self._fd, offset, os.SEEK_HOLE) >= offset + length
            )
        except OSError:
            return False

    def write(self, buffers, offset, /):
        if self.full and not self._taken(offset, sum(map(len, buffers))) and not self.reserved(offset):
            raise OutOfSpace("simulated ENOSPC")
        super().write(buffers, offset)

    def allocate(self, offset, length, /):
        if self.full:
            raise OutOfSpace("simulated ENOSPC")
        super().allocate(offset, length)
        self.ranges.append((offset, offset + length))

    def reserved(self, offset):
        return any(first <= offset < end for first, end in self.ranges)

    def sync_data(self):
        if self.bad_sync:
            raise MediumError("simulated EIO")
        super().sync_data()


class FaultyFileSystem(RealFileSystem):
    """Gives the test its hands on the one file."""

    file: FaultyFile

    def _open(self, path, flags, lock):
        real = super()._open(path, flags, lock)
        self.file = FaultyFile(path, os.dup(real._fd))
        self.file.ranges = []
        real.close()
        return self.file


@pytest.fixture
async def made(tmp_path: Path):
    files = FaultyFileSystem()
    workers = ThreadWorkers(2)
    env = StoreEnv(files, workers, SystemClock())
    path = tmp_path / "v.tvol"
    store = await TvolFile.create(env, path, volume_name="v", size_bytes=64 * MIB, journal_bytes=CHUNK)
    yield store, files, path
    await store.close()
    workers.close()


async def test_a_full_disk_fails_new_chunks_only_and_does_not_make_the_file_longer(made):
    store, files, path = made
    head = store.volume("v")
    await head.write(0, memoryview(b"1" * MIB))
    await head.flush()
    files.file.full = True
    with pytest.raises(OutOfSpace):
        await head.write(32 * MIB, memoryview(b"x" * CHUNK))
    chunks = store.info().chunks
    for number in range(40):
        assert not head.try_write((33 + number % 8) * MIB, memoryview(b"x" * CHUNK))
        with pytest.raises(OutOfSpace):
            await head.write((33 + number % 8) * MIB, memoryview(b"x" * CHUNK))
    assert store.info().chunks <= chunks + 4
    assert head.try_write(0, memoryview(b"2" * CHUNK)), "its own chunks can still be written"
    head.end_pass()
    await head.flush()
    await head.discard(CHUNK, 8 * CHUNK)
    await head.flush()
    data = bytearray(MIB)
    await head.read(0, memoryview(data))
    assert data == b"2" * CHUNK + bytes(8 * CHUNK) + b"1" * (MIB - 9 * CHUNK)
    files.file.full = False
    await head.write(32 * MIB, memoryview(b"x" * CHUNK))
    await store.close()
    assert not check_file(path).findings


async def test_snapshots_can_be_made_and_deleted_on_a_full_disk(made):
    store, files, path = made
    head = store.volume("v")
    await head.write(0, memoryview(b"1" * MIB))
    files.file.full = True
    for number in range(30):
        snapshot = await store.snapshot(head, f"s{number}")
        await store.delete_snapshot(snapshot)
        await store.settled()
    assert store.info().nodes == 1
    await store.close()
    assert not check_file(path).findings


async def test_a_failed_sync_stays_failed_until_the_file_is_opened_again(made):
    store, files, _ = made
    head = store.volume("v")
    await head.write(0, memoryview(b"1" * CHUNK))
    files.file.bad_sync = True
    with pytest.raises(StoreFailed):
        await head.flush()
    files.file.bad_sync = False
    assert store.failed is not None
    assert not head.try_write(0, memoryview(b"2" * 512))
    for attempt in (head.flush(), head.write(0, memoryview(b"2" * 512)), store.snapshot(head, "s")):
        with pytest.raises(StoreFailed):
            await attempt
    data = bytearray(512)
    assert head.try_read(0, memoryview(data)), "reading goes on"


async def test_after_a_failed_sync_the_next_opening_has_what_was_flushed(made):
    store, files, path = made
    head = store.volume("v")
    await head.write(0, memoryview(b"1" * CHUNK), fua=True)
    await head.write(CHUNK, memoryview(b"2" * CHUNK))
    files.file.bad_sync = True
    with pytest.raises(StoreFailed):
        await head.flush()
    await store.close()
    workers = ThreadWorkers(2)
    again = await TvolFile.open(StoreEnv(RealFileSystem(), workers, SystemClock()), path)
    data = bytearray(2 * CHUNK)
    await again.volume("v").read(0, memoryview(data))
    assert data == b"1" * CHUNK + bytes(CHUNK), "the page cache is not believed, though the boot is the same"
    assert again.info().dropped_records > 0
    await again.close()
    workers.close()
    assert not check_file(path).findings


async def test_where_the_host_cannot_punch_freed_chunks_are_used_again(made, caplog):
    store, files, path = made
    head = store.volume("v")

    def cannot(offset, length, /):
        raise NotSupported("no FALLOC_FL_PUNCH_HOLE here")

    files.file.punch = cannot
    await head.write(0, memoryview(b"1" * MIB))
    for number in range(8):
        await head.discard(0, MIB)
        await head.flush()
        await store.settled()
        await head.write(512 * KIB, memoryview(b"2" * 4096))  # the rest of its chunk must read zero
        await head.write(0, memoryview(bytes([65 + number]) * (256 * KIB)))
    data = bytearray(CHUNK)
    await head.read(512 * KIB, memoryview(data))
    assert data == b"2" * 4096 + bytes(CHUNK - 4096)
    space = await store.family_space()
    assert space.used_bytes + space.free_bytes <= 2 * MIB, "nothing was taken while freed chunks were there"
    assert space.unpunched_bytes == space.free_bytes
    assert caplog.text.count("free space is not given back to the host") == 1
    await store.close()
    assert not check_file(path).findings


async def test_a_file_at_the_hosts_limit_uses_the_last_chunk_below_it(made):
    """EFBIG: growing in large steps must not give up what is left below the limit."""
    store, files, _ = made
    head = store.volume("v")
    limit = files.file.size() + 20 * CHUNK
    truncate = files.file.truncate

    def limited(size, /):
        if size > limit:
            raise OutOfSpace("simulated EFBIG")
        truncate(size)

    files.file.truncate = limited

    async def fill() -> None:
        for number in range(1000):
            await head.write(number * CHUNK, memoryview(b"1" * CHUNK))

    with pytest.raises(OutOfSpace):
        await fill()
    assert store.info().chunks * CHUNK == limit
    await head.discard(0, 4 * CHUNK)
    await head.write(999 * CHUNK, memoryview(b"2" * CHUNK))


class ShortFile(FaultyFile):
    """Its disk fills up in the middle of a write: a part of it arrives."""

    def write(self, buffers, offset, /):
        if self.full and len(buffers[0]) == CHUNK and not self._taken(offset, CHUNK):
            RealFile.write(self, (buffers[0][: CHUNK // 2],), offset)
        super().write(buffers, offset)


async def test_a_chunk_with_half_a_write_in_it_does_not_read_zero_though_it_is_the_last_one(made):
    """Looking for metadata space the store takes it, the only free one, and gives it back."""
    store, files, _path = made
    head, core = store.volume("v"), store._core
    await head.write(0, memoryview(b"1" * CHUNK))
    files.file.__class__ = ShortFile
    files.file.full = True
    with pytest.raises(OutOfSpace):
        await head.write(MIB, memoryview(b"x" * CHUNK))
    assert not await core.grow_pages(1000)
    files.file.full = False
    await head.write(2 * MIB, memoryview(b"2" * 4 * KIB))
    buffer = bytearray(CHUNK)
    await head.read(2 * MIB, memoryview(buffer))
    assert bytes(buffer) == (b"2" * 4 * KIB).ljust(CHUNK, b"\0")


async def test_where_the_host_cannot_punch_the_fast_tier_uses_freed_chunks_again_too(made):
    store, files, _path = made
    head = store.volume("v")

    def cannot(offset, length, /):
        raise NotSupported("no FALLOC_FL_PUNCH_HOLE here")

    files.file.punch = cannot
    await head.write(0, memoryview(b"1" * MIB))
    for number in range(8):
        await head.discard(0, MIB)
        await head.flush()
        await store.settled()
        for at in range(0, MIB, CHUNK):
            data = memoryview(bytes([65 + number]) * 4096)
            if head.try_write(at, data):
                head.end_pass()
            else:
                await head.write(at, data)
    content = bytearray(CHUNK)
    await head.read(0, memoryview(content))
    assert content == b"H" * 4096 + bytes(CHUNK - 4096)
    space = await store.family_space()
    assert space.used_bytes + space.free_bytes <= 2 * MIB, "nothing was taken while freed chunks were there"


async def test_a_file_that_cannot_grow_for_another_reason_declines_and_loses_no_chunk(made):
    store, files, _path = made
    head, allocator = store.volume("v"), store._core.allocator

    def broken(size, /):
        raise MediumError("simulated EIO")

    await head.write(0, memoryview(b"1" * CHUNK))
    await head.discard(0, CHUNK)
    await head.flush()
    await store.settled()
    allocator._file_chunks, files.file.truncate = allocator.end, broken
    free = allocator.free_count
    assert free
    two = (free + 1) * CHUNK
    assert not head.try_write(0, memoryview(b"2" * min(two, 256 * KIB)))
    assert allocator.free_count == free
    with pytest.raises(MediumError):
        await head.write(0, memoryview(b"2" * two))
    with pytest.raises(MediumError):
        await head.lease_write(MIB, two)
    assert allocator.free_count == free
    del files.file.truncate
