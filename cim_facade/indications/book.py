"""All filters, destinations and subscriptions: checked, found by their keys, and changed durably before it is said.

Reads are of memory. Changes are made one at a time: nothing is looked up in one state and stored in another.
"""

from __future__ import annotations

import asyncio
import re
import time
import urllib.parse
import uuid
from dataclasses import replace
from typing import TYPE_CHECKING

from pywbem import (
    CIM_ERR_ALREADY_EXISTS,
    CIM_ERR_FAILED,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_NOT_FOUND,
    CIM_ERR_NOT_SUPPORTED,
    CIM_ERR_SERVER_LIMITS_EXCEEDED,
    CIMError,
)

from cim_facade.indications import records
from cim_facade.indications.predefined import PREDEFINED
from cim_facade.indications.records import PINNED_CLASS, Destination, Filter, Place, Record, Settings, Subscription
from cim_facade.query import Query, parse_filter
from cim_facade.query_schema import ClassSchema

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cim_facade.repository import ClassRepository
    from engine.api import EngineApi

FILTERS_MAX = DESTINATIONS_MAX = 1000
SUBSCRIPTIONS_MAX = 1000
NAME_MAX = 256
URL_MAX = 1024
TEXT_MAX = 256

INDICATION = "CIM_Indication"
_PIN = re.compile(r"[0-9a-f]{64}")


class Book:
    """See the module."""

    def __init__(self, api: EngineApi, classes: ClassRepository) -> None:
        self._api = api
        self._classes = classes
        self._changing = asyncio.Lock()
        self.filters: dict[str, Filter] = {each.name: each for each in PREDEFINED}
        self.queries: dict[str, Query] = {each.name: self._query(each) for each in PREDEFINED}
        self.destinations: dict[str, Destination] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self._of_destination: dict[str, dict[str, Subscription]] = {}
        self.settings = Settings()
        self.places: dict[str, Place] = {}
        """As they were when this was loaded."""

    async def load(self) -> None:
        """Raises ValueError: a record is not understood; CIMError: a query is not any more."""
        self.filters |= records.read(Filter, await self._api.record_list(Filter.kind))
        for each in self.filters.values():
            if not each.predefined:
                self.queries[each.name] = await asyncio.to_thread(self._query, each)
        self.destinations = records.read(Destination, await self._api.record_list(Destination.kind))
        found = records.read(Subscription, await self._api.record_list(Subscription.kind))
        self.subscriptions = {
            key: each
            for key, each in found.items()
            if each.filter in self.filters and each.destination in self.destinations
        }
        for kept_one in self.subscriptions.values():
            self._of_destination.setdefault(kept_one.destination, {})[kept_one.key] = kept_one
        kept = records.read(Settings, await self._api.record_list(Settings.kind))
        self.settings = kept.get(Settings.key, self.settings)
        self.places = records.read(Place, await self._api.record_list(Place.kind))

    # --- filters ----------------------------------------------------------------------------------------------

    async def put_filter(self, made: Filter, *, new: bool) -> None:
        """Raises CIMError: its query is none, it is there already (``new``), or is not (else), or it is predefined."""
        check_name(made.name)
        check_text(made.element_name)
        self._check_namespaces(made.namespaces)
        query = await asyncio.to_thread(self._query, made)
        async with self._changing:
            self._check_new(made.name in self.filters, "filter", made.name, new=new)
            if not new:
                self._check_own(self.filters[made.name])
            if new and len(self.filters) - len(PREDEFINED) >= FILTERS_MAX:
                raise CIMError(CIM_ERR_SERVER_LIMITS_EXCEEDED, f"there are {FILTERS_MAX} filters already")
            await self._store(made)
            self.filters[made.name], self.queries[made.name] = made, query

    async def remove_filter(self, name: str) -> None:
        """Raises CIMError: a subscription has it, or it is predefined."""
        async with self._changing:
            self._check_own(self.filters[name])
            users = sum(each.filter == name for each in self.subscriptions.values())
            if users:
                raise CIMError(CIM_ERR_FAILED, f"filter {name} has {users} subscriptions; remove them first")
            await self._forget(Filter.kind, name)
            del self.filters[name], self.queries[name]

    def _query(self, of: Filter) -> Query:
        def schema_of(class_name: str) -> ClassSchema | None:
            namespaces = [each for each in of.namespaces if self._classes.is_a(each, class_name, INDICATION)]
            return ClassSchema(self._classes, namespaces, class_name) if namespaces else None

        return parse_filter(of.language, of.query, schema_of)

    def _check_namespaces(self, namespaces: Sequence[str]) -> None:
        for name in namespaces:
            if self._classes.namespace(name) != name:
                raise CIMError(CIM_ERR_INVALID_PARAMETER, f"there is no namespace {name[:NAME_MAX]}")

    @staticmethod
    def _check_own(found: Filter) -> None:
        if found.predefined:
            raise CIMError(CIM_ERR_NOT_SUPPORTED, f"filter {found.name} is predefined: it stays as it is")

    # --- destinations -----------------------------------------------------------------------------------------

    async def put_destination(self, made: Destination, *, new: bool) -> None:
        """Raises CIMError."""
        check_name(made.name)
        check_text(made.element_name)
        check_url(made.url)
        if made.class_name == PINNED_CLASS and not (
            made.url.startswith("https:") and _PIN.fullmatch(made.fingerprint or "")
        ):
            raise CIMError(
                CIM_ERR_INVALID_PARAMETER,
                f"a {PINNED_CLASS} has an https URL and the SHA-256 of its certificate as CertificateFingerprint",
            )
        async with self._changing:
            self._check_new(made.key in self.destinations, "destination", made.name, new=new)
            if new and len(self.destinations) >= DESTINATIONS_MAX:
                raise CIMError(CIM_ERR_SERVER_LIMITS_EXCEEDED, f"there are {DESTINATIONS_MAX} destinations already")
            await self._store(made)
            self.destinations[made.key] = made

    async def remove_destination(self, key: str) -> None:
        """Raises CIMError: a subscription has it."""
        async with self._changing:
            users = sum(each.destination == key for each in self.subscriptions.values())
            if users:
                raise CIMError(CIM_ERR_FAILED, f"the destination has {users} subscriptions; remove them first")
            await self._forget(Destination.kind, key)
            del self.destinations[key]
            self._of_destination.pop(key, None)

    # --- subscriptions ----------------------------------------------------------------------------------------

    async def add_subscription(self, made: Subscription, place: Place | None) -> None:
        """``place``: where its destination begins, if it had no subscription before. Raises CIMError."""
        async with self._changing:
            if made.filter not in self.filters or made.destination not in self.destinations:
                raise CIMError(CIM_ERR_NOT_FOUND, "Filter or Handler does not exist")
            self._check_new(made.key in self.subscriptions, "subscription", made.key, new=True)
            if len(self.subscriptions) >= SUBSCRIPTIONS_MAX:
                raise CIMError(CIM_ERR_SERVER_LIMITS_EXCEEDED, f"there are {SUBSCRIPTIONS_MAX} subscriptions already")
            if place is not None:
                await self._store(place)
            await self._store(made)
            self._keep(made)

    async def change_subscription(self, key: str, **changes: object) -> None:
        """Nothing, if it is gone."""
        async with self._changing:
            found = self.subscriptions.get(key)
            if found is not None:
                made = replace(found, changed_at=time.time(), **changes)  # type: ignore[arg-type]  # of its fields
                await self._store(made)
                self._keep(made)

    async def remove_subscription(self, key: str) -> None:
        """Nothing, if it is gone."""
        async with self._changing:
            if key in self.subscriptions:
                await self._forget(Subscription.kind, key)
                gone = self.subscriptions.pop(key)
                del self._of_destination[gone.destination][key]

    def _keep(self, made: Subscription) -> None:
        self.subscriptions[made.key] = made
        self._of_destination.setdefault(made.destination, {})[made.key] = made

    def of_destination(self, key: str) -> list[Subscription]:
        return list(self._of_destination.get(key, {}).values())

    # --- the rest ---------------------------------------------------------------------------------------------

    async def put_settings(self, made: Settings) -> None:
        async with self._changing:
            await self._store(made)
            self.settings = made

    async def put_places(self, places: Sequence[Place]) -> None:
        """How far destinations have been served."""
        if places:
            await self._api.record_put(Place.kind, {each.key: records.text(each) for each in places})

    async def forget_place(self, key: str) -> None:
        await self._forget(Place.kind, key)

    async def _store(self, made: Record) -> None:
        await self._api.record_put(made.kind, {made.key: records.text(made)})

    async def _forget(self, kind: str, key: str) -> None:
        await self._api.record_put(kind, {key: None})

    @staticmethod
    def _check_new(there: bool, what: str, name: str, *, new: bool) -> None:
        if new and there:
            raise CIMError(CIM_ERR_ALREADY_EXISTS, f"there is a {what} {name} already")
        if not new and not there:
            raise CIMError(CIM_ERR_NOT_FOUND, f"there is no {what} {name}")


def new_identity() -> str:
    return uuid.uuid4().hex


def check_name(name: str) -> None:
    """Raises CIMError."""
    if not 0 < len(name) <= NAME_MAX or not name.isprintable():
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"a Name is 1 to {NAME_MAX} printable characters")


def check_text(text: str | None) -> None:
    if text is not None and (len(text) > TEXT_MAX or not text.isprintable()):
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"an ElementName has at most {TEXT_MAX} printable characters")


def check_url(url: str) -> None:
    """That a listener may be there: http or https, a host, no user or password. Raises CIMError."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
    except ValueError:
        parts, port = None, None
    good = parts is not None and parts.scheme in ("http", "https") and bool(parts.hostname)
    if not good or parts is None or len(url) > URL_MAX or not url.isprintable() or " " in url or port == 0:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, "Destination is a URL: http://HOST:PORT or https://HOST:PORT")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, "Destination has neither a user nor a fragment")
