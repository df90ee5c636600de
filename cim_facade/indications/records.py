"""Filters, destinations, subscriptions and the settings of their delivery, as the pool keeps them: JSON documents."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

FILTER_CLASS = "CIM_IndicationFilter"
SUBSCRIPTION_CLASS = "CIM_IndicationSubscription"
DESTINATION_CLASS = "CIM_ListenerDestinationCIMXML"
PINNED_CLASS = "TWINVOL_PinnedListenerDestination"
HANDLER_CLASS = "CIM_IndicationHandlerCIMXML"
DESTINATION_CLASSES = (DESTINATION_CLASS, PINNED_CLASS, HANDLER_CLASS)

REMOVE, DISABLE, IGNORE = 2, 3, 4
"""SubscriptionRemovalAction: what becomes of subscriptions whose listener has been away for too long."""

FATAL_POLICIES = {2: IGNORE, 3: DISABLE, 4: REMOVE}
"""OnFatalErrorPolicy says the same with other numbers."""

ENABLED, DEGRADED, DISABLED = 2, 3, 4
"""SubscriptionState."""


@dataclass(frozen=True, slots=True)
class Filter:
    """``namespaces``: where its classes are looked up, and from which it tells. ``predefined``: not a client's."""

    kind: ClassVar[str] = "cim-filter"
    name: str
    query: str
    language: str
    namespaces: tuple[str, ...]
    element_name: str | None = None
    predefined: bool = False

    @property
    def key(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class Destination:
    """``fingerprint``: SHA-256 of the one certificate that the listener may have; None: a trusted one.
    ``identity``: of this destination, and of none that is made under its name later."""

    kind: ClassVar[str] = "cim-destination"
    class_name: str
    name: str
    url: str
    identity: str
    persistence: int | None = None
    fingerprint: str | None = None
    element_name: str | None = None

    @property
    def key(self) -> str:
        return destination_key(self.class_name, self.name)


@dataclass(frozen=True, slots=True)
class Subscription:
    """``since``: it is told of changes behind this number. ``fatal_policy``, ``fatal_s``: OnFatalErrorPolicy and
    FailureTriggerTimeInterval; None: the service's. ``ends_at``: in seconds since the epoch; None: never."""

    kind: ClassVar[str] = "cim-subscription"
    filter: str
    destination: str
    since: int
    made_at: float
    changed_at: float
    enabled: bool = True
    fatal_policy: int | None = None
    fatal_s: int | None = None
    ends_at: float | None = None

    @property
    def key(self) -> str:
        return subscription_key(self.filter, self.destination)


@dataclass(frozen=True, slots=True)
class Settings:
    """Of CIM_IndicationService; DSP1054's defaults. Times are seconds."""

    kind: ClassVar[str] = "cim-indication-settings"
    key: ClassVar[str] = "service"
    attempts: int = 3
    interval_s: int = 30
    removal_action: int = REMOVE
    removal_s: int = 2_592_000


@dataclass(frozen=True, slots=True)
class Place:
    """How far a destination has been served. ``sequence``: the number that its next indication gets."""

    kind: ClassVar[str] = "cim-place"
    key: str
    position: int
    sequence: int = 0
    lost: int = 0


Record = Filter | Destination | Subscription | Settings | Place
R = TypeVar("R", Filter, Destination, Subscription, Settings, Place)


def destination_key(class_name: str, name: str) -> str:
    return f"{class_name}:{name}"


def subscription_key(filter_name: str, destination: str) -> str:
    """Names may have any characters: the length of the first says where the second begins."""
    return f"{len(filter_name)}:{filter_name}{destination}"


def text(record: Record) -> str:
    return json.dumps(asdict(record))


def read(kind: type[R], documents: Mapping[str, str]) -> dict[str, R]:
    """By key. Raises ValueError: one is not understood."""
    found = {}
    for name, document in documents.items():
        try:
            values: dict[str, Any] = json.loads(document)
            for field, value in values.items():
                if isinstance(value, list):
                    values[field] = tuple(value)
            found[name] = kind(**values)
        except (ValueError, TypeError) as error:
            raise ValueError(f"record {kind.kind} {name}: {error}") from error
    return found
