"""Taking in a copy of a volume file: a family like it, with volumes and snapshots of other identities.

A file that was copied has the identities of its original, and is refused beside it (STORE section 4). Here a copy of it
is made, where nobody sees it, checked, renamed in all that identifies it, and served. Interrupted, it is removed.

Volumes of a family of one get the name that was asked for; of several, that name, a dot, and their own.
"""

from __future__ import annotations

import asyncio
import functools
import stat
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidArgument, StoreCorrupt
from engine.names import check_name, is_view
from engine.streams import translated
from engine.tvol.check import check_file
from engine.tvol.file import TvolFile
from engine.tvol.file_copy import copy_file

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from engine.jobs import Job
    from engine.pool import Pool
    from engine.volume import Volume


async def start_family_import(
    pool: Pool, source: Path, name: str, *, when_whole: Callable[[list[Volume]], Awaitable[None]]
) -> Job:
    """Begin to take in a copy of a closed volume file; returns its job, whose result has the ``volumes``.

    Raises NotFound, AlreadyExists, OutOfSpace.
    """
    path = await pool.begin_file(name, await pool.env.workers.run(functools.partial(_bytes_of, source)))

    async def work(job: Job) -> dict[str, Any]:
        try:
            volumes = await _take_in(pool, source, path, name, job)
        except BaseException:
            await pool.abandon_file(name)
            raise
        await when_whole(volumes)
        return {"volume": volumes[0].name, "volumes": [volume.name for volume in volumes]}

    try:
        return await pool.jobs.start("import", f"{source} {name}", work)
    except BaseException:
        await pool.abandon_file(name)
        raise


async def _take_in(pool: Pool, source: Path, path: Path, name: str, job: Job) -> list[Volume]:
    loop, env = asyncio.get_running_loop(), pool.env

    def report(done: int, total: int) -> None:
        loop.call_soon_threadsafe(job.progress, done, total)

    await env.workers.run(lambda: copy_file(source, path, report))
    checked = await env.workers.run(lambda: check_file(path, env.files, data=True))
    if checked.damaged:
        raise StoreCorrupt(str(source), "; ".join(map(str, checked.findings[:3])))
    store = await TvolFile.open(env, path)
    try:
        shown = [volume.name for volume in store.volumes() if not is_view(volume.name)]
        if not shown:
            raise InvalidArgument(f"{source} holds no volume")
        names = {old: name if len(shown) == 1 else f"{name}.{old}" for old in shown}
        for new in names.values():
            check_name("volume", new)
        await store.become_another(lambda old: names.get(old, ""))
    finally:
        await store.close()
    return await pool.finish_file(name)


def _bytes_of(path: Path) -> int:
    """What a file takes on the host. Raises NotFound, PermissionDenied, InvalidArgument: it is no file."""
    with translated(path):
        found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise InvalidArgument(f"{path} is no regular file")
    return found.st_blocks * 512
