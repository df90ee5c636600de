"""The indication service: subscriptions that come and go, and their deliveries begun and ended with them.

While there is a subscription this process watches the engine's changes, by one request that waits; else nothing is
recorded. What is kept in the pool: filters, destinations, subscriptions, settings (at once), and how far each
destination has been served (once a second, and at the end).
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from cim_facade.indications.book import Book
from cim_facade.indications.delivery import EVERYBODY, Deliveries
from cim_facade.indications.events import Events
from cim_facade.indications.export import Exporter
from cim_facade.indications.feed import Feed
from cim_facade.indications.records import DEGRADED, DISABLED, ENABLED, Place, Subscription
from engine.errors import EngineError

if TYPE_CHECKING:
    from pathlib import Path

    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from engine.api import EngineApi

log = logging.getLogger(__name__)

WATCHER = "cim"
KEEP_S = 1.0


class Indications:
    """See the module. ``trusted``: certificates of listeners (``export``). ``unavailable``: what calls of ``api`` raise
    when the daemon is gone."""

    def __init__(
        self,
        api: EngineApi,
        classes: ClassRepository,
        registry: Registry,
        *,
        trusted: Path | None = None,
        unavailable: type[Exception] = ConnectionAbortedError,
    ) -> None:
        self._api = api
        self._unavailable = unavailable
        self.book = Book(api, classes)
        self._feed = Feed(api, Events(api, classes, registry))
        self._exporter = Exporter(trusted)
        self.deliveries = Deliveries(self.book, self._feed, self._exporter, classes, unavailable)
        self._changing = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._everybody = -1

    async def start(self) -> None:
        """Go on with what is kept. Raises ValueError, CIMError: that is not understood."""
        await self.book.load()
        self.deliveries.context = f"twinvol:{(await self._api.pool_identity()).pool_id}:indications:"
        if self.book.subscriptions:
            async with self._changing:
                await self._watch()
                for key in {each.destination for each in self.book.subscriptions.values()}:
                    self.deliveries.begin(key, self._place(key))

    async def close(self) -> None:
        await self._stop()
        await self.deliveries.close()
        try:
            await self._checkpoint()
        except (EngineError, self._unavailable) as error:  # the daemon is gone; what was delivered last comes again
            log.info("how far destinations were served is not recorded: %s", error)
        await self._exporter.close()

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def subscribe(self, made: Subscription) -> Subscription:
        """With ``since`` of now. Raises CIMError."""
        async with self._changing:
            await self._watch()
            made = replace(made, since=await self._feed.now())
            key = made.destination
            known = self.book.places.get(key)
            begins = key not in self.deliveries.lanes
            place = Place(key, made.since) if known is None else replace(known, position=made.since)
            try:
                await self.book.add_subscription(made, place if begins else None)
                if begins:
                    self.deliveries.begin(key, place)
            finally:
                await self._rest_if_unwanted()
            return made

    async def unsubscribe(self, key: str) -> None:
        async with self._changing:
            await self.book.remove_subscription(key)
            await self._end_unwanted()

    async def enable(self, key: str, *, enabled: bool) -> None:
        """What happens while it is disabled is not told later."""
        since = {"since": await self._feed.now()} if enabled else {}
        await self.book.change_subscription(key, enabled=enabled, **since)

    def state(self, subscription: Subscription) -> int:
        """SubscriptionState."""
        lane = self.deliveries.lanes.get(subscription.destination)
        if not subscription.enabled:
            return DISABLED
        return DEGRADED if lane is not None and lane.failing_since is not None else ENABLED

    async def remove_destination(self, key: str) -> None:
        """Raises CIMError: it has subscriptions."""
        async with self._changing:
            await self._end_unwanted()
            await self.book.remove_destination(key)
            if self.book.places.pop(key, None) is not None:
                await self.book.forget_place(key)

    # --- watching ---------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        if self._tasks:
            return
        await self._api.change_watch(WATCHER)
        self._feed.newest = self._feed.heard = await self._feed.now()
        loop = asyncio.get_running_loop()
        self._tasks = [
            loop.create_task(self._read(), name="changes to indications"),
            loop.create_task(self._keep(), name="places of destinations"),
        ]

    async def _stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    async def _read(self) -> None:
        while True:
            try:
                async for entry in self._feed.entries():
                    await self.deliveries.hear(entry)
            except self._unavailable as error:
                log.info("no indication is sent any more: %s", error)
                return
            except EngineError as error:  # a full disk, for example: nothing is lost by asking again
                log.error("changes cannot be read: %s", error)
                await asyncio.sleep(KEEP_S)
            except Exception:
                log.exception("no indication is sent any more, until this process is started again")
                return

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(KEEP_S)
            try:
                await self._expire()
                await self._checkpoint()
            except EngineError as error:
                log.error("how far destinations are served is not recorded: %s", error)
            except self._unavailable:  # the daemon is gone, and this process ends soon
                return

    async def _checkpoint(self) -> None:
        """What is kept is never ahead of what was delivered, and the engine forgets nothing that is not kept."""
        places = self.deliveries.places()
        newest = [place.position for place in places if place.key == EVERYBODY]
        if len(places) > len(newest) or newest != [self._everybody]:
            await self.book.put_places(places)
        if newest and newest[0] > self._everybody:
            self._everybody = newest[0]
            await self._api.change_done(WATCHER, newest[0])

    async def _expire(self) -> None:
        """End subscriptions whose time is over, and lanes whose subscriptions have ended by themselves."""
        now = time.time()
        over = [k for k, each in self.book.subscriptions.items() if each.ends_at is not None and each.ends_at <= now]
        wanted = {each.destination for each in self.book.subscriptions.values()}
        if not over and self.deliveries.lanes.keys() <= wanted:
            return
        async with self._changing:
            for key in over:
                await self.book.remove_subscription(key)
            await self._end_lanes()  # watching goes on: this is a part of it

    async def _end_unwanted(self) -> None:
        await self._end_lanes()
        await self._rest_if_unwanted()

    async def _end_lanes(self) -> None:
        wanted = {each.destination for each in self.book.subscriptions.values()}
        for key in [key for key in self.deliveries.lanes if key not in wanted]:
            place = await self.deliveries.end(key)
            if place is not None:
                self.book.places[key] = place
                await self.book.put_places([place])

    async def _rest_if_unwanted(self) -> None:
        if not self.book.subscriptions:
            await self._stop()
            self._everybody = -1
            await self._api.change_unwatch(WATCHER)

    def _place(self, key: str) -> Place:
        """Where a destination goes on: what all have been served is behind it."""
        everybody = self.book.places.get(EVERYBODY, Place(EVERYBODY, 0))
        own = self.book.places.get(key, everybody)
        return Place(key, max(own.position, everybody.position), own.sequence, own.lost)
