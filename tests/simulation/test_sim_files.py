"""The simulated machine itself: it must be as unkind as it says, and fair where it promises something."""

import asyncio
import random
from pathlib import Path

import pytest

from engine.errors import AlreadyExists, InUse, MediumError, NotFound, OutOfSpace
from tests.support.sim_files import PAGE, Fault, SimFileSystem, eio
from tests.support.sim_loop import Deadlock, ProcessDied, SimClock, SimLoop, SimWorkers

PATH = Path("/pool/a")


def machine(seed=0):
    files = SimFileSystem(random.Random(seed))
    handle = files.create(PATH)
    files.sync_directory(PATH.parent)
    return files, handle


def read(files, offset, length):
    return files.image(PATH).read(offset, length)


def write(handle, data, offset):
    handle.write([memoryview(data)], offset)


def test_a_synced_write_survives_power_loss_whatever_the_pattern():
    for seed in range(100):
        files, handle = machine(seed)
        write(handle, b"a" * 4096, 100_000)
        handle.sync_data()
        files.lose_power()
        assert read(files, 100_000, 4096) == b"a" * 4096


def test_an_unsynced_write_is_applied_dropped_or_torn_at_sectors():
    seen = set()
    for seed in range(300):
        files, handle = machine(seed)
        write(handle, b"a" * 1024, 512)
        handle.sync_data()
        write(handle, b"b" * 1024, 512)
        files.lose_power()
        seen.add(read(files, 512, 1024))
    assert seen == {first + second for first in (b"a" * 512, b"b" * 512) for second in (b"a" * 512, b"b" * 512)}


def test_a_later_write_can_survive_without_an_earlier_one():
    seen = set()
    for seed in range(300):
        files, handle = machine(seed)
        write(handle, b"a" * 512, 0)
        write(handle, b"b" * 512, PAGE)
        files.lose_power()
        seen.add((read(files, 0, 1), read(files, PAGE, 1)))
    assert (b"\0", b"b") in seen
    assert (b"a", b"\0") in seen


def test_a_kill_keeps_what_was_issued_and_it_goes_on_pending():
    lost = 0
    for seed in range(100):
        files, handle = machine(seed)
        write(handle, b"a" * 512, 0)
        files.kill()
        files.restart_process()
        assert read(files, 0, 512) == b"a" * 512
        files.lose_power()
        lost += read(files, 0, 1) == b"\0"
    assert 10 < lost < 90


def test_a_write_in_progress_at_a_kill_arrives_as_a_prefix_of_sectors():
    seen = set()
    for seed in range(60):
        files, handle = machine(seed)
        files.die_after(1)
        with pytest.raises(ProcessDied):
            write(handle, b"a" * 1024, 0)
        write(handle, b"z" * 512, 0)  # the dead write nothing
        files.restart_process()
        seen.add(read(files, 0, 1024))
    assert seen == {b"\0" * 1024, b"a" * 512 + b"\0" * 512, b"a" * 1024}


def test_a_handle_of_an_earlier_process_does_nothing():
    files, handle = machine()
    files.kill()
    files.restart_process()
    write(handle, b"a", 0)
    assert files.image(PATH).size == 0


def test_after_a_failed_sync_no_later_sync_makes_the_lost_writes_durable():
    lost = 0
    for seed in range(50):
        files, handle = machine(seed)
        files.faults.append(Fault("sync", eio))
        write(handle, b"a" * 512, 0)
        with pytest.raises(MediumError):
            handle.sync_data()
        handle.sync_data()
        assert read(files, 0, 1) == b"a"
        files.lose_power()
        lost += read(files, 0, 1) == b"\0"
    assert 10 < lost < 40


def test_a_new_file_without_a_synced_folder_can_vanish():
    gone = 0
    for seed in range(50):
        files = SimFileSystem(random.Random(seed))
        files.create(PATH).sync_data()
        files.lose_power()
        gone += not files.exists(PATH)
    assert 10 < gone < 40


def test_one_writer_or_readers():
    files, handle = machine()
    with pytest.raises(InUse):
        files.open(PATH, writable=False)
    with pytest.raises(AlreadyExists):
        files.create(PATH)
    handle.close()
    files.open(PATH, writable=False)
    files.open(PATH, writable=False)
    with pytest.raises(InUse):
        files.open(PATH, writable=True)
    with pytest.raises(NotFound):
        files.open(PATH.with_name("b"), writable=False)


def test_a_quota_refuses_new_pages_and_a_punch_gives_them_back():
    files, handle = machine()
    files.quota_bytes = 2 * PAGE
    write(handle, b"a" * 2 * PAGE, 0)
    with pytest.raises(OutOfSpace):
        write(handle, b"a", 2 * PAGE)
    write(handle, b"b", 0)
    handle.punch(PAGE, PAGE)
    write(handle, b"a", 2 * PAGE)


def test_a_shrunk_file_grows_back_with_zeroes():
    files, handle = machine()
    write(handle, b"a" * 3 * PAGE, 0)
    handle.truncate(PAGE + 512)
    handle.truncate(3 * PAGE)
    assert read(files, PAGE, 1024) == b"a" * 512 + b"\0" * 512


def test_the_loop_runs_tasks_timers_and_workers_in_one_order_per_seed():
    def run(seed):
        loop = SimLoop()
        workers = SimWorkers(loop, random.Random(seed))
        order = []

        async def job(name):
            await workers.run(lambda: order.append(name))
            await asyncio.sleep(0.5)
            order.append(-name)

        async def main():
            await asyncio.gather(*(job(name) for name in range(1, 6)))
            async with asyncio.timeout(10):
                await asyncio.sleep(3)

        loop.run_until_complete(main())
        assert SimClock(loop).monotonic() > 3.5
        return order

    assert run(1) == run(1)
    assert len({tuple(run(seed)) for seed in range(10)}) > 5


def test_waiting_for_nothing_is_reported():
    loop = SimLoop()

    async def main():
        await loop.create_future()

    with pytest.raises(Deadlock, match="main, line"):
        loop.run_until_complete(main())
    loop.close()


class Outside(BaseException):
    """As what a time limit raises, wherever the program is."""


def raise_outside() -> None:
    raise Outside


@pytest.mark.parametrize("struck", ["a worker's call", "a callback", "a task that others wait for"])
def test_what_comes_from_outside_ends_the_run_and_is_no_deadlock(struck):
    loop = SimLoop()
    answer = loop.create_future()

    async def background():
        raise_outside()
        answer.set_result(None)

    async def main():
        if struck == "a worker's call":
            await SimWorkers(loop, random.Random(1)).run(raise_outside)
        elif struck == "a callback":
            loop.call_soon(raise_outside)
        else:
            loop.create_task(background())
        await answer

    with pytest.raises(Outside):
        loop.run_until_complete(main())
    loop.close()


def test_a_write_without_room_arrives_in_part_and_a_file_has_a_longest_size():
    files, file = machine()
    write(file, b"a" * PAGE, 0)
    files.quota_bytes = PAGE
    with pytest.raises(OutOfSpace):
        write(file, b"b" * 2 * PAGE, 0)
    assert read(files, 0, PAGE) == b"b" * PAGE
    assert files.image(PATH).size == PAGE
    files.quota_bytes, files.file_bytes_max = None, 2 * PAGE
    file.truncate(2 * PAGE)
    for late in (lambda: file.truncate(2 * PAGE + 1), lambda: file.allocate(PAGE, 2 * PAGE)):
        with pytest.raises(OutOfSpace):
            late()
