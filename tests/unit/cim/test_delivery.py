"""Deliveries where something else happens between two of their steps; the listener is the exporter's other side."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from cim_facade.indications.delivery import WOKEN_AT_ONCE
from cim_facade.indications.export import Exporter, Outcome
from cim_facade.indications.feed import FOR_EVER
from cim_facade.indications.records import FATAL_POLICIES, IGNORE, REMOVE, Destination, Filter, Subscription
from cim_facade.indications.service import Indications
from cim_facade.namespaces import STORAGE
from engine.errors import OutOfSpace
from tests.support.cim_array import MIB, classes, registry
from tests.support.engine import opened

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import pytest

    from cim_facade.indications.records import Place
    from engine.api import EngineApi

REMOVING = next(policy for policy, action in FATAL_POLICIES.items() if action == REMOVE)
CREATED = "SELECT * FROM CIM_InstCreation WHERE SourceInstance ISA CIM_StorageVolume"


class Listeners:
    """What is sent, by destination; they take it while ``open`` is set."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.asked: list[str] = []
        self.taken: list[str] = []
        self.moved = asyncio.Condition()
        self.at_next: Callable[[], list[Place]] | None = None
        self.seen: list[Place] = []

    async def send(self, _: Exporter, destination: Destination, __: str) -> Outcome:
        if self.at_next is not None:
            self.seen, self.at_next = self.at_next(), None
        await self._moves(self.asked, destination.name)
        await self.open.wait()
        await self._moves(self.taken, destination.name)
        return Outcome(True, True)

    async def _moves(self, book: list[str], name: str) -> None:
        async with self.moved:
            book.append(name)
            self.moved.notify_all()

    async def until(self, book: list[str], count: int) -> None:
        async with asyncio.timeout(60), self.moved:
            await self.moved.wait_for(lambda: len(book) >= count)


@asynccontextmanager
async def serving(api: EngineApi) -> AsyncIterator[Indications]:
    made = Indications(api, classes(), registry())
    await made.start()
    try:
        yield made
    finally:
        await made.close()


async def subscribe(service: Indications, filter_name: str, destination: str) -> str:
    made = Destination("CIM_ListenerDestinationCIMXML", destination, "http://127.0.0.1:9", destination)
    if made.key not in service.book.destinations:
        await service.book.put_destination(made, new=True)
    if filter_name not in service.book.filters:
        await service.book.put_filter(Filter(filter_name, CREATED, "WQL", (STORAGE,)), new=True)
    now = time.time()
    return (await service.subscribe(Subscription(filter_name, made.key, 0, now, now))).key


async def test_a_subscription_that_goes_with_its_filter_while_another_is_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The destination goes on."""
    listeners = Listeners()
    monkeypatch.setattr(Exporter, "send", lambda *args: listeners.send(*args))
    async with opened(tmp_path) as engine, serving(engine.api) as service:
        await subscribe(service, "stays", "d")
        goes = await subscribe(service, "goes", "d")
        await engine.api.volume_create("a", MIB)
        await listeners.until(listeners.asked, 1)
        await service.unsubscribe(goes)
        await service.book.remove_filter("goes")
        listeners.open.set()
        await engine.api.volume_create("b", MIB)
        await listeners.until(listeners.taken, 2)
        assert listeners.asked == ["d", "d"]


async def test_what_is_kept_while_a_change_is_given_to_many_is_the_change_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Else an end in that moment loses it for who was not given it yet."""
    listeners = Listeners()
    listeners.open.set()
    monkeypatch.setattr(Exporter, "send", lambda *args: listeners.send(*args))
    monkeypatch.setattr("cim_facade.indications.service.KEEP_S", 3600.0)
    names = [f"d{number}" for number in range(2 * WOKEN_AT_ONCE + 1)]
    async with opened(tmp_path) as engine, serving(engine.api) as service:
        for name in names:
            await subscribe(service, "f", name)
        await engine.api.volume_create("a", MIB)
        await listeners.until(listeners.taken, len(names))
        before = (await engine.api.change_list(FOR_EVER)).newest
        lanes = service.deliveries.lanes.values()
        while True:
            if not any(lane.queue or lane.behind is not None for lane in lanes):
                break
            await asyncio.sleep(0)
        listeners.at_next = service.deliveries.places
        await engine.api.volume_create("b", MIB)
        await listeners.until(listeners.taken, 2 * len(names))
    assert len(listeners.seen) == len(names) + 1
    assert {place.position for place in listeners.seen} == {before}


async def test_changes_that_cannot_be_read_once_are_told_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    listeners = Listeners()
    listeners.open.set()
    monkeypatch.setattr(Exporter, "send", lambda *args: listeners.send(*args))
    monkeypatch.setattr("cim_facade.indications.service.KEEP_S", 0.001)
    async with opened(tmp_path) as engine:
        read, refusals = engine.api.change_list, [OutOfSpace("full"), OutOfSpace("full")]

        async def full(*args, **kwargs):
            page = await read(*args, **kwargs)
            if page.changes and refusals:
                raise refusals.pop()
            return page

        monkeypatch.setattr(engine.api, "change_list", full)
        async with serving(engine.api) as service:
            await subscribe(service, "f", "d")
            await engine.api.volume_create("a", MIB)
            await listeners.until(listeners.taken, 1)
        assert not refusals


async def test_a_subscription_whose_end_cannot_be_recorded_ends_with_a_later_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The others of its destination go on."""
    taken = asyncio.Event()

    async def send(_: Exporter, destination: Destination, __: str) -> Outcome:
        if len(service.book.subscriptions) == 2:
            return Outcome(False, False, "nobody is there")
        taken.set()
        return Outcome(True, True)

    monkeypatch.setattr(Exporter, "send", send)
    async with opened(tmp_path) as engine, serving(engine.api) as service:
        service.book.settings = replace(service.book.settings, interval_s=0, removal_action=IGNORE)
        await subscribe(service, "stays", "d")
        goes = await subscribe(service, "goes", "d")
        await service.book.change_subscription(goes, fatal_policy=REMOVING, fatal_s=0)
        remove, refusals = service.book.remove_subscription, [OutOfSpace("full")]

        async def full(key: str) -> None:
            if refusals:
                raise refusals.pop()
            await remove(key)

        monkeypatch.setattr(service.book, "remove_subscription", full)
        await engine.api.volume_create("a", MIB)
        async with asyncio.timeout(60):
            await taken.wait()
        assert not refusals
        assert goes not in service.book.subscriptions
