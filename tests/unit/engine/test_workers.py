"""Calls in threads: their results and errors, who waits for a cancelled one, and how nice the threads are."""

import asyncio
import os
import threading

import pytest

from engine.errors import MediumError
from engine.files import ThreadWorkers


@pytest.fixture
def workers():
    made = ThreadWorkers(2)
    yield made
    made.close()


def fails():
    raise MediumError("it is broken")


async def test_results_and_errors_come_back_and_more_calls_than_threads_wait_their_turn(workers):
    results = await asyncio.gather(*[workers.run(lambda n=n: n * n) for n in range(50)])
    assert results == [n * n for n in range(50)]
    assert len({await workers.run(threading.get_ident) for _ in range(50)}) <= 2
    with pytest.raises(MediumError, match="broken"):
        await workers.run(fails)


async def test_calls_one_after_the_other_in_one_thread_up_to_the_first_that_fails(workers):
    threads = []

    def note():
        threads.append(threading.get_ident())

    await workers.run_each(note, note)
    with pytest.raises(MediumError, match="broken"):
        await workers.run_each(note, fails, note)
    assert len(threads) == 3
    assert threads[0] == threads[1]


@pytest.mark.parametrize("end", [int, fails])
async def test_a_cancelled_caller_goes_on_when_the_call_has_ended(workers, end):
    begun, may_end, ended = threading.Event(), threading.Event(), threading.Event()

    def call():
        begun.set()
        may_end.wait()
        ended.set()
        end()

    task = asyncio.create_task(workers.run(call))
    await workers.run(begun.wait)
    for _ in range(3):  # again, too
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_closing_waits_for_what_was_handed_over():
    workers, ended = ThreadWorkers(1), []
    tasks = [asyncio.create_task(workers.run(lambda n=n: ended.append(n))) for n in range(5)]
    await asyncio.sleep(0)
    workers.close()
    assert ended == [0, 1, 2, 3, 4]
    await asyncio.gather(*tasks)


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_niceness_is_that_of_the_threads_alone():
    before = niceness()
    nice, plain = ThreadWorkers(2, niceness=7), ThreadWorkers(2)
    assert await nice.run(niceness) == min(19, before + 7)
    assert await plain.run(niceness) == before
    assert niceness() == before
    nice.close()
    plain.close()


async def test_where_the_host_gives_no_more_threads_those_that_there_are_do_all(monkeypatch):
    workers = ThreadWorkers(4)
    start, started = threading.Thread.start, []

    def starts_once(thread):
        if len(started) == 1:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starts_once)
    assert await asyncio.gather(*(workers.run(lambda n=n: n) for n in range(8))) == list(range(8))
    workers.close()


async def test_without_any_thread_the_caller_is_told_and_the_next_one_has_another_try(monkeypatch):
    workers = ThreadWorkers(4)
    start, refused = threading.Thread.start, []

    def starts_later(thread):
        if not refused:
            refused.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", starts_later)
    with pytest.raises(MediumError, match="does not start"):
        await workers.run(lambda: 1)
    assert await workers.run(lambda: 2) == 2
    workers.close()


async def test_threads_that_may_not_give_way_work_all_the_same(monkeypatch):
    def forbidden(*arguments):
        raise PermissionError

    monkeypatch.setattr(os, "setpriority", forbidden)
    workers = ThreadWorkers(1, niceness=5)
    assert await asyncio.wait_for(workers.run(lambda: 1), 60) == 1
    workers.close()
