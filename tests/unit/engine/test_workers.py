"""Threads for long copies give way to everything else of the process."""

import os
import threading

from engine.files import COPY_NICENESS, ThreadWorkers
from tests.support.engine import opened


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


async def test_a_full_clone_is_copied_by_the_threads_that_give_way(tmp_path):
    seen: list[int] = []

    class Watched:
        def __init__(self, workers):
            self.workers = workers

        async def run(self, call):
            def watched():
                seen.append(niceness())
                return call()

            return await self.workers.run(watched)

        def close(self):
            self.workers.close()

    async with opened(tmp_path / "pool", Watched) as engine:
        await engine.api.volume_create("a", 4 << 20)
        await engine.pool.volume("a").write(0, memoryview(b"\x5a" * (4 << 20)))
        seen.clear()
        job = await engine.api.clone_copy("a", None, "b")
        while job.finished_at is None:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        assert job.error is None
    assert len(seen) >= 4  # strips of 1 MiB
    assert set(seen) == {min(19, niceness() + COPY_NICENESS)}
