"""Indications to their destinations: in order, with retries, each numbered (DSP1054).

A destination is served by one ``Lane``: one task, one indication at a time, so their order is that of the changes. A
live lane is given what concerns it as it comes; one whose queue is full is *behind*, and reads pages of the engine's
history when it can. What it holds is bounded either way.

A listener that cannot be reached is tried again after DeliveryRetryInterval, DeliveryRetryAttempts times, then after
pauses that double up to ``BACKOFF_MAX_S``; nothing is given up while it is away, but by SubscriptionRemovalAction when
that has lasted for SubscriptionRemovalTimeInterval (or as the subscription says: OnFatalErrorPolicy,
FailureTriggerTimeInterval). A listener that answers, and refuses, is asked DeliveryRetryAttempts times more; then this
indication is lost for it, and the next one has its turn.

SequenceContext is the destination's for as long as it exists; SequenceNumber begins at 0 and grows by one. A number
that never comes was lost: refused, or too old for the history. Numbers and positions are kept in the pool once a
second: after a crash what was delivered since then comes again, under the same numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from pywbem import CIMInstance, Sint64

from cim_facade import answers
from cim_facade.indications.records import (
    DISABLE,
    FATAL_POLICIES,
    IGNORE,
    REMOVE,
    Place,
)
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cim_facade.indications.book import Book
    from cim_facade.indications.events import Event
    from cim_facade.indications.export import Exporter, Outcome
    from cim_facade.indications.feed import Entry, Feed
    from cim_facade.indications.records import Destination, Filter, Subscription
    from cim_facade.query import Query
    from cim_facade.repository import ClassRepository

log = logging.getLogger(__name__)

QUEUE_MAX = 64
"""Changes that a lane holds."""

BACKOFF_MAX_S = 600.0
SENDING_MAX, TRYING_AGAIN_MAX = 16, 8
"""At a time: to listeners that are well, and to those that were not when last tried, which may take their time."""

READ_AGAIN_S = 1.0
WOKEN_AT_ONCE = 32
SLICE_S = 0.005
EVERYBODY = "*"
"""The place up to which every destination has been served."""


class Lane:
    """One destination's. ``position``: all changes up to it are dealt with; of a live one without a queue the
    last that all were given.

    ``behind``: it reads the history from there on; None: it is live. ``taken``: up to there it has been given what
    concerns it. ``sequence``: the next number; ``settled``: what it was at ``position``.
    """

    def __init__(self, key: str, place: Place) -> None:
        self.key = key
        self.behind: int | None = place.position
        self.taken = place.position
        self.queue: deque[Entry] = deque()
        self.sequence = self.settled = place.sequence
        self.lost = place.lost
        self.wake = asyncio.Event()
        self.again = asyncio.Event()
        self.failing_since: float | None = None
        self.task: asyncio.Task[None] | None = None

    def position(self, heard: int) -> int:
        """``heard``: the last change that all live lanes were given."""
        if self.queue:
            return self.queue[0].number - 1
        return max(heard, self.taken) if self.behind is None else self.behind

    def place(self, heard: int) -> Place:
        return Place(self.key, self.position(heard), self.settled, self.lost)


class Deliveries:
    """See the module. ``context``: what every SequenceContext of this pool begins with."""

    def __init__(
        self, book: Book, feed: Feed, exporter: Exporter, classes: ClassRepository, unavailable: type[Exception]
    ) -> None:
        self._book = book
        self._feed = feed
        self._exporter = exporter
        self._classes = classes
        self._unavailable = unavailable
        self.context = ""
        self.lanes: dict[str, Lane] = {}
        self._sending = asyncio.Semaphore(SENDING_MAX)
        self._trying_again = asyncio.Semaphore(TRYING_AGAIN_MAX)
        self._changed: set[str] = set()
        self._since = time.monotonic()

    # --- lanes ------------------------------------------------------------------------------------------------

    def begin(self, key: str, place: Place) -> None:
        """Serve a destination from its place on."""
        assert key not in self.lanes
        lane = self.lanes[key] = Lane(key, place)
        lane.task = asyncio.get_running_loop().create_task(self._run(lane), name=f"indications to {key[:80]}")

    async def end(self, key: str) -> Place | None:
        """Serve it no more; where it was."""
        lane = self.lanes.pop(key, None)
        if lane is None:
            return None
        await _end(lane)
        self._changed.discard(key)
        return lane.place(self._feed.heard)

    async def close(self) -> None:
        await asyncio.gather(*map(_end, self.lanes.values()))

    def try_again(self, keys: Iterable[str]) -> None:
        """Their destination, or how it is tried, has changed: do not wait for the next attempt."""
        for key in keys:
            if key in self.lanes:
                self.lanes[key].again.set()

    async def hear(self, entry: Entry) -> None:
        """Give an entry, which the feed has just given, to the live lanes that it concerns."""
        woken = 0
        for lane in list(self.lanes.values()):
            if lane.behind is None and entry.number > lane.taken and (entry.lost or self._matches(lane, entry)):
                if len(lane.queue) >= QUEUE_MAX:
                    lane.behind = lane.taken
                else:
                    lane.queue.append(entry)
                    lane.taken = entry.number
                lane.wake.set()
                woken += 1
                if not woken % WOKEN_AT_ONCE:
                    await asyncio.sleep(0)  # they go on in the next turn of the loop, all of them
            await self._breathe()

    def places(self) -> list[Place]:
        """Of the lanes that have moved since this was asked, and of everybody."""
        changed, self._changed = self._changed, set()
        heard = self._feed.heard
        found = [self.lanes[key].place(heard) for key in changed if key in self.lanes]
        if self.lanes:
            everybody = min(lane.position(heard) for lane in self.lanes.values())
            found.append(Place(EVERYBODY, everybody))
        return found

    # --- one lane ---------------------------------------------------------------------------------------------

    async def _run(self, lane: Lane) -> None:
        try:
            await self._serve_for_ever(lane)
        except self._unavailable as error:  # the daemon is gone, and this process ends soon
            log.info("no more indications to %s: %s", self._url(lane), error)
        except Exception:
            log.exception("no more indications to %s until this process is started again", self._url(lane))

    async def _serve_for_ever(self, lane: Lane) -> None:
        while True:
            while lane.queue:
                await self._serve(lane, lane.queue[0])
                lane.queue.popleft()
            if lane.behind is None:
                lane.wake.clear()
                await lane.wake.wait()
                continue
            try:
                entries = await self._feed.page(lane.behind)
            except EngineError as error:
                log.error("changes for listener %s cannot be read: %s", self._url(lane), error)
                await asyncio.sleep(READ_AGAIN_S)
                continue
            if not entries and self._feed.newest <= lane.behind:
                lane.taken, lane.behind = lane.behind, None
            for entry in entries:
                await self._serve(lane, entry)
                lane.behind = entry.number
                await self._breathe()

    async def _serve(self, lane: Lane, entry: Entry) -> None:
        """All indications of an entry."""
        if entry.lost:
            lane.lost += entry.lost
            lane.sequence += entry.lost
            log.warning("%d changes are lost for listener %s", entry.lost, self._url(lane))
        for event, subscription in list(self._concerning(lane, entry)):
            await self._deliver(lane, event, subscription)
        lane.settled = lane.sequence
        self._changed.add(lane.key)

    def _matches(self, lane: Lane, entry: Entry) -> bool:
        return any(True for _ in self._concerning(lane, entry))

    def _concerning(self, lane: Lane, entry: Entry) -> Iterable[tuple[Event, Subscription]]:
        for subscription in self._book.of_destination(lane.key):
            if not subscription.enabled or subscription.since >= entry.number:
                continue
            found, query = self._book.filters[subscription.filter], self._book.queries[subscription.filter]
            for event in entry.events:
                if self._is_for(event, found, query):
                    yield event, subscription

    def _is_for(self, event: Event, found: Filter, query: Query) -> bool:
        return (
            event.namespace in found.namespaces
            and self._classes.is_a(event.namespace, event.indication.classname, query.from_class)
            and query.matches(event.indication)
        )

    async def _deliver(self, lane: Lane, event: Event, subscription: Subscription) -> None:
        """One indication, until it is delivered, given up, or its subscription is over."""
        attempts = 0
        while True:
            async with self._sending if lane.failing_since is None else self._trying_again:  # made when it can go
                now = self._book.subscriptions.get(subscription.key)
                if now is None or not now.enabled:  # its filter may be gone, too
                    return
                destination = self._book.destinations[lane.key]
                indication = self._finished(lane, destination, event, subscription)
                outcome = await self._exporter.send(destination, indication)
            if outcome.delivered:
                self._well(lane, destination)
                lane.sequence += 1
                return
            attempts += 1
            if outcome.reached and attempts > self._book.settings.attempts:
                lane.lost += 1
                lane.sequence += 1
                log.warning(
                    "an indication is lost for listener %s, which refuses it: %s", destination.url, outcome.text
                )
                return
            await self._failed(lane, destination, outcome, attempts)

    def _well(self, lane: Lane, destination: Destination) -> None:
        if lane.failing_since is not None:
            log.info("listener %s takes indications again", destination.url)
            lane.failing_since = None

    async def _failed(self, lane: Lane, destination: Destination, outcome: Outcome, attempts: int) -> None:
        """Wait for the next attempt, or do to subscriptions what is to be done when that has lasted too long."""
        if lane.failing_since is None:
            lane.failing_since = time.monotonic()
            log.warning("listener %s takes no indications: %s", destination.url, outcome.text)
        settings = self._book.settings
        over = max(0, attempts - max(1, settings.attempts))
        pause = min(settings.interval_s * 2.0 ** min(over, 20), max(BACKOFF_MAX_S, settings.interval_s))
        since = time.monotonic() - lane.failing_since
        for each in self._book.of_destination(lane.key):
            action, limit = self._policy(each)
            if action == IGNORE or not each.enabled:
                continue
            if since >= limit:
                await self._end_subscription(each, action, destination)
            else:
                pause = min(pause, limit - since)
        if not any(each.enabled for each in self._book.of_destination(lane.key)):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await lane.again.wait()
        lane.again.clear()

    async def _end_subscription(self, subscription: Subscription, action: int, destination: Destination) -> None:
        """Its listener is away for too long. What cannot be recorded is tried again with the next attempt."""
        log.error("subscription %s to %s ends: its listener is away", subscription.filter, destination.url)
        try:
            if action == REMOVE:
                await self._book.remove_subscription(subscription.key)
            elif action == DISABLE:
                await self._book.change_subscription(subscription.key, enabled=False)
        except EngineError as error:
            log.error("that is not recorded: %s", error)

    def _policy(self, subscription: Subscription) -> tuple[int, int]:
        """What is done to it when its listener is away, and after how many seconds."""
        settings = self._book.settings
        action = FATAL_POLICIES.get(subscription.fatal_policy or 0, settings.removal_action)
        limit = settings.removal_s if subscription.fatal_s is None else subscription.fatal_s
        return action, limit

    def _finished(self, lane: Lane, destination: Destination, event: Event, subscription: Subscription) -> str:
        """The indication as this destination gets it: the INSTANCE element."""
        context = f"{self.context}{destination.identity}"
        own = CIMInstance(
            event.indication.classname,
            properties={
                "IndicationIdentifier": f"{context}:{lane.sequence}",
                "IndicationFilterName": subscription.filter,
                "SequenceContext": context,
                "SequenceNumber": Sint64(lane.sequence),
            },
        )
        properties = event.written()
        select = self._book.queries[subscription.filter].select
        if select is not None:
            wanted = {name.lower() for name in select}
            properties = {name: text for name, text in properties.items() if name in wanted}
        return answers.instance_of(own.classname, (properties | answers.written_properties(own)).values())

    # --- common -----------------------------------------------------------------------------------------------

    def _url(self, lane: Lane) -> str:
        found = self._book.destinations.get(lane.key)
        return lane.key if found is None else found.url

    async def _breathe(self) -> None:
        """Let others run if this has run for long."""
        if time.monotonic() - self._since > SLICE_S:
            await asyncio.sleep(0)
            self._since = time.monotonic()


async def _end(lane: Lane) -> None:
    assert lane.task is not None
    lane.task.cancel()
    await asyncio.wait([lane.task])
