"""The copying process: the same outcome as by threads, whatever happens to it."""

from __future__ import annotations

import asyncio
import fcntl
import marshal
import os
import random
import signal
import subprocess
import sys
import time
import types
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine import copy_process
from engine.copy_job import CopyOptions, copy_extents
from engine.copy_process import BUSY_SHARE, LOAD_WINDOW_S, MAX_DEATHS, STRIP_S, CopyProcess, LoopLoad, _import_folders
from engine.copy_worker import LANES
from engine.encryption import Encryption
from engine.errors import IntegrityError, MediumError
from engine.files import RealFile, ThreadWorkers, real_env
from engine.hash_tree import leaf_digests
from engine.movers import ThreadMover
from engine.proof import tree_of
from engine.stores import Extent
from engine.stores.place import Place
from engine.strips import LARGE_PART_BYTES, SMALL_PART_BYTES, Buffers, move_strip
from engine.tvol.file import TvolFile
from engine.tvol.layout_encryption import EncryptionRecord
from engine.units import KIB, MIB
from tests.support.processes import has_ended

SIZE = 24 * MIB + 4096
UNIT = 64 * KIB


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """The process is started by the first strip."""
    monkeypatch.setattr(copy_process, "START_AFTER_BYTES", 0)


class Lease:
    """Both kinds of lease over a range of a plain file."""

    unit_bytes = UNIT

    def __init__(self, path: Path, flags: int, position: int = 0) -> None:
        self.file = RealFile(path, os.open(path, flags | os.O_CLOEXEC))
        self.place = Place(self.file, [(0, MIB, position)])
        self.read, self.write = self.place.read, self.place.write

    async def publish(self, written):
        raise AssertionError("the caller's part")

    def release(self):
        self.file.close()


@asynccontextmanager
async def process():
    threads, workers = ThreadWorkers(2), ThreadWorkers(1)
    made = CopyProcess(ThreadMover(threads), workers)
    try:
        yield made
    finally:
        await made.close()
        threads.close()
        workers.close()


@asynccontextmanager
async def volumes(folder: Path, size: int = SIZE, keys: tuple[Encryption | None, ...] = (None, None)):
    """A frozen source and an empty target, encrypted by these keys."""
    env = real_env(2)
    source, target = [
        await TvolFile.create(env, folder / f"{name}.tvol", volume_name=name, size_bytes=size, encryption=key)
        for name, key in zip("ab", keys, strict=True)
    ]
    head = source.volumes()[0]
    rng = random.Random(1)
    for at in range(0, size - size % MIB, MIB):
        if rng.random() < 0.8:
            await head.write(at + 4096 * rng.randrange(16), memoryview(rng.randbytes(MIB - UNIT)))
    try:
        yield env, await source.snapshot(head, "s"), target.volumes()[0]
    finally:
        await source.close()
        await target.close()
        await env.close()
        env.workers.close()


async def read_all(device) -> bytes:
    data = bytearray(device.size_bytes)
    await device.read(0, memoryview(data))
    return bytes(data)


async def until(condition) -> None:
    while not condition():  # noqa: ASYNC110 - what is waited for is outside of the loop
        await asyncio.sleep(0)


def open_files(pid: int) -> list[Path]:
    return [each.readlink() for each in Path(f"/proc/{pid}/fd").iterdir()]


def policies_of_threads(pid: int) -> list[int]:
    return [os.sched_getscheduler(int(task.name)) for task in Path(f"/proc/{pid}/task").iterdir()]


async def test_it_copies_and_digests_as_the_threads_do(tmp_path):
    async with volumes(tmp_path) as (env, frozen, target):
        copied = await copy_extents(frozen, target, options=CopyOptions(blank_target=True), mover=env.mover)
        assert env.mover.pid is not None
        assert await read_all(target) == await read_all(frozen)
        assert copied.tree.root() == (await tree_of(target, mover=env.mover)).root() == (await tree_of(frozen)).root()
        again = await copy_extents(frozen, target, options=CopyOptions(compare_first=True), mover=env.mover)
        assert again.progress.written_bytes == 0
        assert again.progress.equal_bytes > SIZE // 2


@pytest.mark.parametrize(("busy", "wanted"), [(True, SMALL_PART_BYTES), (False, LARGE_PART_BYTES)])
async def test_a_busy_loop_has_strips_moved_in_small_parts(tmp_path, monkeypatch, busy, wanted):
    (tmp_path / "f").write_bytes(os.urandom(MIB))
    (tmp_path / "t").write_bytes(bytes(MIB))
    monkeypatch.setattr(LoopLoad, "is_busy", lambda _: busy)
    asked = []

    async with process() as mover:
        send = mover._send
        monkeypatch.setattr(mover, "_send", lambda *request: asked.append(marshal.loads(request[1])) or send(*request))
        source, to = Lease(tmp_path / "f", os.O_RDONLY), Lease(tmp_path / "t", os.O_RDWR)
        moved = await mover.move(Extent(0, MIB), source, None, to)
        assert [request[3] for request in asked] == [wanted]
        assert moved.digests == leaf_digests(memoryview((tmp_path / "t").read_bytes()))
        assert (tmp_path / "t").read_bytes() == (tmp_path / "f").read_bytes()
        source.release()
        to.release()


@pytest.mark.parametrize("part", [SMALL_PART_BYTES, LARGE_PART_BYTES])
def test_a_part_is_read_and_digested_before_it_is_written(tmp_path, part):
    (tmp_path / "f").write_bytes(os.urandom(MIB))
    (tmp_path / "t").write_bytes(bytes(MIB))
    source, to = Lease(tmp_path / "f", os.O_RDONLY), Lease(tmp_path / "t", os.O_RDWR)
    calls = []
    read, write = source.read, to.write
    source.read = lambda at, view: calls.append(("read", at, len(view))) or read(at, view)
    to.write = lambda at, data: calls.append(("write", at, len(data))) or write(at, data)
    move_strip(Extent(0, MIB), source, None, to, Buffers(), part)
    written = [call for call in calls if call[0] == "write"]
    assert written == [("write", at, part) for at in range(0, MIB, part)]
    for at in range(0, MIB, part):
        before = calls[: calls.index(("write", at, part))]
        assert sum(length for verb, _, length in before if verb == "read") == at + part
    assert (tmp_path / "t").read_bytes() == (tmp_path / "f").read_bytes()
    source.release()
    to.release()


def test_the_loop_is_busy_with_what_is_not_for_the_strips():
    now = used = 100.0
    load = LoopLoad(lambda: now, lambda: used)
    for share, expected in ((0.0, False), (BUSY_SHARE * 0.9, False), (BUSY_SHARE * 1.1, True), (0.0, False)):
        for _ in range(10):
            now += LOAD_WINDOW_S / 5
            used += LOAD_WINDOW_S / 5 * share + STRIP_S
            load.is_busy()
        assert load.is_busy() is expected


def test_a_moment_says_nothing_about_the_load():
    now = used = 100.0
    load = LoopLoad(lambda: now, lambda: used)
    now += LOAD_WINDOW_S / 2
    used += LOAD_WINDOW_S / 2
    assert not load.is_busy()
    now += LOAD_WINDOW_S
    assert load.is_busy()


def encryption(key: bytes) -> Encryption:
    return Encryption(EncryptionRecord(bytes(16), 10, 1, 1, bytes(72), "file:/key"), key)


@pytest.mark.parametrize("which", [(0, 1), (0, None), (None, 1)], ids=str)
async def test_encrypted_files_are_copied_there_too(tmp_path, which, monkeypatch):
    """And not by the threads, where the cipher would keep the interpreter from the loop."""
    made = (encryption(bytes(range(64))), encryption(bytes(range(64, 128))))
    keys = tuple(None if number is None else made[number] for number in which)
    monkeypatch.setattr(ThreadMover, "move", None)
    monkeypatch.setattr(ThreadMover, "digest", None)
    async with volumes(tmp_path, keys=keys) as (env, frozen, target):
        copied = await copy_extents(frozen, target, [Extent(0, 24 * MIB)], mover=env.mover)
        assert env.mover._deaths == 0
        assert copied.progress.written_bytes > SIZE // 2
        content = await read_all(frozen)
        assert (await read_all(target))[: 24 * MIB] == content[: 24 * MIB]
        page = next(content[at : at + 4096] for at in range(0, SIZE, 4096) if any(content[at : at + 4096]))
        for name, key in zip("ab", keys, strict=True):
            assert (page in (tmp_path / f"{name}.tvol").read_bytes()) is (key is None)


async def test_for_a_little_no_process_is_started(tmp_path, monkeypatch):
    monkeypatch.setattr(copy_process, "START_AFTER_BYTES", 2 * MIB)
    (tmp_path / "f").write_bytes(b"x" * MIB)
    async with process() as mover:
        lease = Lease(tmp_path / "f", os.O_RDONLY)
        for _ in range(2):
            assert await mover.digest(MIB, lease) == leaf_digests(memoryview(b"x" * MIB))
            assert mover.pid is None
        assert await mover.digest(MIB, lease) == leaf_digests(memoryview(b"x" * MIB))
        assert mover.pid is not None
        lease.release()


async def test_it_is_started_by_the_first_copy_and_ends_with_close(tmp_path):
    async with volumes(tmp_path) as (env, frozen, _):
        assert env.mover.pid is None
        await tree_of(frozen, mover=env.mover)
        pid = env.mover.pid
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("seed", range(3))
async def test_it_may_die_at_any_moment(tmp_path, seed):
    rng = random.Random(seed)
    async with volumes(tmp_path) as (env, frozen, target):
        killed = set()

        def progress(_):
            pid = env.mover.pid
            if pid is not None and pid not in killed and len(killed) < MAX_DEATHS - 1 and rng.random() < 0.5:
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)

        copying = asyncio.create_task(copy_extents(frozen, target, mover=env.mover))
        while not copying.done():
            progress(None)
            await asyncio.sleep(0)
        await copying
        assert killed
        assert await read_all(target) == await read_all(frozen)


async def test_after_too_many_deaths_the_threads_do_it(tmp_path):
    (tmp_path / "f").write_bytes(b"x" * MIB)
    async with process() as mover:
        lease = Lease(tmp_path / "f", os.O_RDONLY)
        expected = leaf_digests(memoryview(b"x" * MIB))
        for _ in range(MAX_DEATHS):
            assert await mover.digest(MIB, lease) == expected
            os.kill(mover.pid, signal.SIGSTOP)
            asked = asyncio.create_task(mover.digest(MIB, lease))
            await asyncio.sleep(0)
            os.kill(mover.pid, signal.SIGKILL)
            assert await asked == expected
            await until(lambda: mover._link is None)  # its end is seen, also where the request came too late for it
        dead = mover.pid
        assert await mover.digest(MIB, lease) == expected
        assert mover.pid == dead, "not started again"
        lease.release()


async def test_a_cancelled_caller_hears_of_it_when_nothing_is_written_any_more(tmp_path):
    (tmp_path / "f").write_bytes(os.urandom(MIB))
    (tmp_path / "t").write_bytes(bytes(MIB))
    async with process() as mover:
        source, to = Lease(tmp_path / "f", os.O_RDONLY), Lease(tmp_path / "t", os.O_RDWR)
        await mover.digest(MIB, source)
        os.kill(mover.pid, signal.SIGSTOP)
        moving = asyncio.create_task(mover.move(Extent(0, MIB), source, None, to))
        await until(lambda: mover._asked)
        moving.cancel()
        for _ in range(20):
            await asyncio.sleep(0)
        assert not moving.done()
        os.kill(mover.pid, signal.SIGCONT)
        with pytest.raises(asyncio.CancelledError):
            await moving
        assert (tmp_path / "t").read_bytes() == (tmp_path / "f").read_bytes(), "the strip had begun, and has ended"
        source.release()
        to.release()


async def test_a_target_that_returns_other_bytes_and_a_file_that_refuses(tmp_path):
    (tmp_path / "f").write_bytes(b"y" * MIB)
    async with process() as mover:
        source, forgetful = Lease(tmp_path / "f", os.O_RDONLY), Lease(Path("/dev/zero"), os.O_RDWR)
        with pytest.raises(IntegrityError) as caught:
            await mover.move(Extent(5 * MIB, MIB), source, None, forgetful)
        assert caught.value.offset == 5 * MIB
        assert caught.value.expected == leaf_digests(memoryview(b"y" * UNIT)).hex()
        assert caught.value.actual == leaf_digests(memoryview(bytes(UNIT))).hex()
        with pytest.raises(MediumError, match=f"writing {tmp_path}/f at 0: Bad file descriptor"):
            await mover.move(Extent(0, MIB), source, None, source)
        assert await mover.digest(MIB, source) == leaf_digests(memoryview(b"y" * MIB)), "it goes on"
        assert mover._deaths == 0
        source.release()
        forgetful.release()


async def test_it_gives_way_except_where_it_holds_a_lock_of_a_file(tmp_path):
    """The lanes digest when nobody else wants the processor; whoever writes has the priority of this process."""
    (tmp_path / "f").write_bytes(bytes(MIB))
    async with process() as mover:
        lease = Lease(tmp_path / "f", os.O_RDWR)
        await mover.digest(MIB, lease)
        policies = policies_of_threads(mover.pid)
        assert sorted(policies) == sorted([os.SCHED_IDLE] * LANES + [os.sched_getscheduler(0)] * LANES)
        lease.release()


async def test_it_keeps_no_file_open_between_strips(tmp_path):
    (tmp_path / "f").write_bytes(bytes(MIB))
    async with process() as mover:
        for _ in range(20):
            lease = Lease(tmp_path / "f", os.O_RDWR)
            fcntl.flock(lease.file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            await mover.digest(MIB, lease)
            lease.release()
        assert tmp_path / "f" not in open_files(mover.pid)


async def test_a_file_that_the_host_does_not_know_is_the_threads(tmp_path):
    (tmp_path / "f").write_bytes(b"z" * MIB)
    async with process() as mover:
        lease = Lease(tmp_path / "f", os.O_RDONLY)
        real = lease.file.fileno()
        lease.file.fileno = lambda: None
        assert await mover.digest(MIB, lease) == leaf_digests(memoryview(b"z" * MIB))
        assert mover.pid is None
        os.close(real)


async def test_an_interpreter_that_cannot_be_started_leaves_it_to_the_threads(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"z" * MIB)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    async with process() as mover:
        lease = Lease(tmp_path / "f", os.O_RDONLY)
        assert await mover.digest(MIB, lease) == leaf_digests(memoryview(b"z" * MIB))
        lease.release()


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.unit.engine.test_copy_process import volumes
from engine.copy_job import copy_extents

async def main():
    async with volumes(Path(sys.argv[1]), 64 << 20) as (env, frozen, target):
        while True:
            copying = asyncio.create_task(copy_extents(frozen, target, mover=env.mover))
            while env.mover.pid is None or not env.mover._asked:
                await asyncio.sleep(0)
            print(env.mover.pid, flush=True)
            await copying

asyncio.run(main())
"""


def test_it_ends_with_its_parent_and_then_the_files_are_free(tmp_path):
    command = [sys.executable, "-c", PARENT, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]) as parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    deadline = time.monotonic() + 60
    while not has_ended(pid):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    asyncio.run(open_and_close(tmp_path))


async def open_and_close(folder: Path) -> None:
    env = real_env(2)
    for name in ("a.tvol", "b.tvol"):
        store = await TvolFile.open(env, folder / name)
        await store.close()
    env.workers.close()


def test_a_module_that_a_thread_is_just_importing_is_no_obstacle(monkeypatch):
    before = _import_folders()
    monkeypatch.setitem(sys.modules, "_cffi_backend", types.ModuleType("_cffi_backend"))  # so it looks meanwhile
    assert sys.modules["_cffi_backend"].__spec__ is None
    assert _import_folders() == before
