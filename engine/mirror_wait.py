"""Waiting for mirrors, or mirrored groups, to be synchronized, as part of a job that can rest."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import InvalidState

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from engine.api import JobInfo, ReplicaInfo
    from engine.local_api import LocalApi

POLL_S = 0.1
"""How often a mirror is looked at that is waited for."""


class Rest:
    """By what an order rests; see ``engine.jobs.Pausable``."""

    def __init__(self) -> None:
        self.going = asyncio.Event()
        self.going.set()

    def pause(self) -> None:
        self.going.clear()

    def resume(self) -> None:
        self.going.set()


class MirrorVerbs(NamedTuple):
    """How a mirror, or a mirrored group, is looked at and told to rest."""

    show: Callable[[str], Awaitable[ReplicaInfo]]
    pause: Callable[[str], Awaitable[ReplicaInfo]]
    resume: Callable[[str], Awaitable[JobInfo]]


def of_replica(api: LocalApi) -> MirrorVerbs:
    return MirrorVerbs(api.replica_show, api.replica_pause, api.replica_resume)


def of_group(api: LocalApi) -> MirrorVerbs:
    return MirrorVerbs(api.group_replica_show, api.group_replica_pause, api.group_replica_resume)


async def until_synchronized(mirror: MirrorVerbs, rest: Rest, name: str, tell: Callable[[int], None]) -> None:
    """Wait for a mirror, which rests when ``rest`` says so. ``tell``: how many percent there are.

    One that somebody else has suspended rests until he resumes it. Raises InvalidState: it went to another rest.
    """
    ours = True  # perhaps it rests since before the end of the daemon
    while True:
        info = await mirror.show(name)
        if info.copy_state == "Synchronized":
            return
        going = rest.going.is_set()
        if going and ours and info.copy_state == "Suspended":
            await mirror.resume(name)
        elif not going and info.copy_state == "Unsynchronized":
            await mirror.pause(name)
        elif info.copy_state in ("Aborted", "Fractured", "Failedover", "Restored") or (
            info.copy_state == "Broken" and info.mode == "sync"
        ):
            raise InvalidState(f"replica {name}", f"{info.copy_state} ({info.reason})", "a running copy")
        ours = not going
        tell(info.percent_synced)
        await asyncio.sleep(POLL_S)
