"""Threads that stand in for the copying process give way to everything else of the process."""

import os
import threading

from engine.files import ThreadWorkers


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
