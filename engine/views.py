"""Throw-away writable views of snapshots: linked clones that live as long as they are shown.

A view is a head in its snapshot's family, called VOLUME@SNAPSHOT, which no volume of a user's can be called. It is
among no volumes or clones that users are told of, only on its snapshot and as what its target's LUN shows.

Invariants:

* A view that no target shows is discarded: in the same call that takes its last LUN away, or, when a crash came
  between, at the next opening of the pool (``Pool.open``). So no order of crashes leaves one behind.
* It is discarded when it expires, with sessions or without, but never early (``engine.steady_clock``): what was
  written to it ends there.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import EngineError, InvalidArgument
from engine.names import view_name
from engine.steady_clock import SteadyClock

if TYPE_CHECKING:
    from engine.exposure import Exposure
    from engine.pool import Pool
    from engine.stores import Frozen
    from engine.volume import Volume


class Views:
    """See the module."""

    def __init__(self, pool: Pool, exposure: Exposure) -> None:
        self._pool = pool
        self._exposure = exposure
        self._clock = SteadyClock(pool.env.clock)
        self._discarding = asyncio.Lock()
        exposure.when_unshown = self.discard

    def of(self, volume: Volume, snapshot: Frozen | None = None) -> list[Volume]:
        """The views of a volume's snapshots, or of one of them."""
        if snapshot is not None:
            view = self._pool.view(view_name(volume.name, snapshot.name))
            return [] if view is None else [view]
        return [view for view in self._pool.views() if view.name.startswith(view_name(volume.name, ""))]

    async def make(self, volume: Volume, snapshot: Frozen, expires_at: float | None) -> None:
        """Make a view and show it at a target of its own. Raises AlreadyExists: the snapshot has one."""
        if expires_at is not None and not self._pool.env.clock.time() < expires_at < float("inf"):
            raise InvalidArgument("the expiry of a view is an instant to come")
        name = view_name(volume.name, snapshot.name)
        self._exposure.require_exposable(name)
        view = await self._pool.clone(volume, snapshot, name)
        try:
            await self._pool.catalog.schedules.put_view(view.volume_id, expires_at)
            await self._exposure.expose(view)
        except BaseException:
            await self.discard(view.volume_id)
            raise

    async def expiries(self) -> dict[str, float | None]:
        """When each view is to be discarded, by volume id."""
        return await self._pool.catalog.schedules.views() if self._pool.views() else {}

    async def expire(self) -> None:
        """Discard what has expired, ending its sessions."""
        failed: EngineError | None = None
        for volume_id, expires_at in (await self.expiries()).items():
            view = self._pool.find(volume_id)
            if view is None or not self._clock.has_reached(expires_at):
                continue  # without a view: its file is not served; it expires when that is back
            try:
                await self.withdraw(view)
            except EngineError as error:
                failed = failed or error  # the others expire nevertheless
        if failed is not None:
            raise failed

    async def withdraw(self, view: Volume) -> None:
        """Take a view from initiators, which discards it."""
        await self._exposure.withdraw(view.name, self._exposure.luns_of(view.volume_id))
        await self.discard(view.volume_id)  # again, where that had failed after its last LUN was gone

    async def discard(self, volume_id: str) -> None:
        """No target shows this volume any more: if it is a view, it goes."""
        async with self._discarding:
            view = next((view for view in self._pool.views() if view.volume_id == volume_id), None)
            if view is None:
                return
            await self._pool.delete_volume(view)
            await self._exposure.forget([volume_id])
        await self._pool.catalog.add_event(
            self._pool.env.clock.time(), "info", f"snapshot {view.name}", "writable view discarded"
        )
