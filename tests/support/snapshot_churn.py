"""Snapshots of a volume and of a group that come and go in the background, over restarts of their daemon."""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from twinvol.api.client import open_api
from twinvol.api.frames import DaemonUnreachable

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from engine.api import EngineApi

MOST = 5
"""Snapshots of each kind that are there at a time."""
RETRY_S = 0.05


@dataclass
class Told:
    """What one kind of snapshots was asked for, and what was answered."""

    made: set[str] = field(default_factory=set)
    doomed: set[str] = field(default_factory=set)
    gone: set[str] = field(default_factory=set)

    def check(self, listed: set[str]) -> None:
        """What was acknowledged is there; what was acknowledged as deleted is not."""
        assert self.made - self.doomed <= listed, f"{self.made - self.doomed - listed} are gone"
        assert not listed & self.gone, f"{listed & self.gone} are back"


class SnapshotChurn:
    """As a context: runs in a thread of its own inside."""

    def __init__(self, pool: Path, volume: str, group: str, seed: int) -> None:
        self.volumes, self.groups = Told(), Told()
        self.interrupted = 0
        """Calls that were under way when the daemon went."""
        self._pool = pool
        self._volume, self._group = volume, group
        self._rng = random.Random(seed)
        self._names = 0
        self._ended = threading.Event()
        self._unexpected: Exception | None = None
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> SnapshotChurn:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        if error is None and self._unexpected is not None:
            raise self._unexpected

    def _run(self) -> None:
        try:
            asyncio.run(self._churn())
        except Exception as error:
            self._unexpected = error

    async def _churn(self) -> None:
        while not self._ended.is_set():
            with contextlib.suppress(DaemonUnreachable):
                async with open_api(self._pool) as api:
                    while not self._ended.is_set():
                        await self._step(api)
            await asyncio.sleep(RETRY_S)  # there is no event to wait for: the daemon comes back by itself

    async def _step(self, api: EngineApi) -> None:
        of_group = self._rng.random() < 0.5
        told = self.groups if of_group else self.volumes
        there = sorted(told.made - told.doomed)
        self.interrupted += 1
        if len(there) >= MOST or (there and self._rng.random() < 0.4):
            name = self._rng.choice(there)
            told.doomed.add(name)
            if of_group:
                await api.group_snapshot_delete(self._group, name)
            else:
                await api.snapshot_delete(self._volume, name)
            told.gone.add(name)
        else:
            self._names += 1
            name = f"{'g' if of_group else 's'}{self._names}"
            if of_group:
                await api.group_snapshot_create(self._group, name)
            else:
                await api.snapshot_create(self._volume, name)
            told.made.add(name)
        self.interrupted -= 1

    async def check(self) -> None:
        """Compare with what the daemon shows now."""
        async with open_api(self._pool) as api:
            groups = await api.group_snapshot_list(self._group)
            self.groups.check({info.name for info in groups})
            assert {info.state for info in groups} <= {"ok"}
            for member in (await api.group_show(self._group)).members:
                listed = await api.snapshot_list(member)
                assert {each.name for each in listed if each.group is not None} == {info.name for info in groups}
                if member == self._volume:
                    self.volumes.check({each.name for each in listed if each.group is None})
