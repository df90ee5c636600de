"""Filters, destinations, subscriptions and their service, in interop (DSP1054).

What a client sends as SystemCreationClassName and SystemName is replaced by this system's: clients guess them (pywbem
says CIM_ComputerSystem). A Name that is left out is made here.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from pywbem import (
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_NOT_FOUND,
    CIM_ERR_NOT_SUPPORTED,
    CIMError,
    CIMInstance,
    CIMInstanceName,
)

from cim_facade.indications import records
from cim_facade.indications.book import (
    DESTINATIONS_MAX,
    SUBSCRIPTIONS_MAX,
    new_identity,
)
from cim_facade.indications.records import (
    DESTINATION_CLASSES,
    DISABLED,
    ENABLED,
    FATAL_POLICIES,
    FILTER_CLASS,
    IGNORE,
    PINNED_CLASS,
    REMOVE,
    SUBSCRIPTION_CLASS,
    Destination,
    Filter,
    Subscription,
)
from cim_facade.namespaces import INTEROP, STORAGE
from cim_facade.provider import Association, End, Provider
from cim_facade.providers.shared import OK, Fixed, Pairs
from cim_facade.providers.synchronizations import point_in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cim_facade.context import View
    from cim_facade.indications.service import Indications
    from cim_facade.paths import Paths
    from cim_facade.provider import Keys

SERVICE_CLASS = "CIM_IndicationService"
CAPABILITIES_CLASS = "CIM_IndicationServiceCapabilities"

ATTEMPTS_MAX, INTERVAL_MAX_S = 1000, 86_400
DURATION_MAX_S = 10 * 365 * 86_400


def service_path(paths: Paths) -> CIMInstanceName:
    return paths.in_interop(SERVICE_CLASS, SERVICE_CLASS)


def _service(view: View) -> Indications:
    if view.indications is None:
        raise CIMError(CIM_ERR_NOT_SUPPORTED, "this server delivers no indications")
    return view.indications


def _given(instance: CIMInstance, properties: list[str] | None = None) -> dict[str, Any]:
    """Values by name in lower case; ``properties``: no others than these, and those that were left out are NULL."""
    values = {name.lower(): each.value for name, each in instance.properties.items()}
    if properties is None:
        return values
    return {name.lower(): values.get(name.lower()) for name in properties}


def _changes(given: Mapping[str, Any], shown: CIMInstance, writable: tuple[str, ...]) -> dict[str, Any]:
    """Of what was given that which is another value now. Raises CIMError: it cannot be changed."""
    changed = {}
    for name, value in given.items():
        if value == shown.properties[name].value:
            continue
        if name in shown.path.keybindings:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{name} is a key, and stays")
        if name not in writable:
            raise CIMError(CIM_ERR_NOT_SUPPORTED, f"{shown.properties[name].name} cannot be changed")
        changed[name] = value
    return changed


def _only(given: Mapping[str, Any], class_name: str, allowed: tuple[str, ...]) -> None:
    """That nothing is asked for that would not be done. Raises CIMError."""
    keys = ("systemcreationclassname", "systemname", "creationclassname", "name")
    for name, value in given.items():
        if value is not None and name not in (*keys, *allowed):
            raise CIMError(CIM_ERR_NOT_SUPPORTED, f"{name} of a {class_name} cannot be chosen")
    if (given.get("creationclassname") or class_name).lower() != class_name.lower():
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"CreationClassName is {class_name}")


def _within(name: str, value: Any, low: int, high: int) -> int:
    if value is None or not low <= value <= high:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{name} is {low} to {high}")
    return int(value)


class IndicationFilter(Provider):
    class_name = FILTER_CLASS
    namespace = INTEROP

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for each in list(_service(view).book.filters.values()) if view.indications is not None else ():
            yield await self._made(view, each)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        found = await self._find(view, keys)
        return None if found is None else await self._made(view, found)

    async def create(self, view: View, instance: CIMInstance) -> CIMInstanceName:
        given = _given(instance)
        _only(given, self.class_name, ("query", "querylanguage", "sourcenamespace", "sourcenamespaces", "elementname",
              "individualsubscriptionsupported", "description", "caption", "instanceid"))  # fmt: skip
        if given.get("individualsubscriptionsupported") is False:
            raise CIMError(CIM_ERR_NOT_SUPPORTED, "filters are subscribed to one by one")
        made = Filter(
            given.get("name") or f"{self.class_name}:{new_identity()}",
            _needed(given, "query", "Query"),
            _needed(given, "querylanguage", "QueryLanguage"),
            self._namespaces(view, given),
            given.get("elementname"),
        )
        await _service(view).book.put_filter(made, new=True)
        return (await view.paths()).in_interop(self.class_name, made.name)

    async def modify(self, view: View, instance: CIMInstance, properties: list[str] | None) -> None:
        found = await self._find(view, instance.path.keybindings)
        assert found is not None
        shown = await self._made(view, found)
        writable = ("query", "querylanguage", "sourcenamespace", "sourcenamespaces", "elementname")
        changed = _changes(_given(instance, properties), shown, writable)
        if changed:
            made = replace(
                found,
                query=changed.get("query", found.query),
                language=changed.get("querylanguage", found.language),
                element_name=changed.get("elementname", found.element_name),
                namespaces=self._namespaces(view, changed) if "sourcenamespaces" in changed else found.namespaces,
            )
            await _service(view).book.put_filter(made, new=False)

    async def delete(self, view: View, path: CIMInstanceName) -> None:
        found = await self._find(view, path.keybindings)
        assert found is not None
        await _service(view).book.remove_filter(found.name)

    @staticmethod
    def _namespaces(view: View, given: Mapping[str, Any]) -> tuple[str, ...]:
        """SourceNamespaces, or SourceNamespace, which is deprecated; by default where storage is."""
        asked = given.get("sourcenamespaces") or ([given["sourcenamespace"]] if given.get("sourcenamespace") else [])
        names = [str(each) for each in asked if each]
        known = [view.classes.namespace(name) or name for name in names]
        return tuple(dict.fromkeys(known)) or (STORAGE,)

    @staticmethod
    async def _find(view: View, keys: Keys) -> Filter | None:
        name = (await view.paths()).scoped_key(FILTER_CLASS, "Name", keys)
        return None if name is None or view.indications is None else view.indications.book.filters.get(name)

    async def _made(self, view: View, found: Filter) -> CIMInstance:
        path = (await view.paths()).in_interop(self.class_name, found.name)
        return view.make(
            INTEROP,
            self.class_name,
            **path.keybindings,
            ElementName=found.element_name,
            Query=found.query,
            QueryLanguage=found.language,
            SourceNamespaces=list(found.namespaces),
            SourceNamespace=found.namespaces[0],
            IndividualSubscriptionSupported=True,
        )


class ListenerDestination(Provider):
    """One of the classes of destinations; all are served alike."""

    namespace = INTEROP
    _WRITABLE = ("destination", "persistencetype", "elementname", "certificatefingerprint")

    def __init__(self, class_name: str) -> None:
        self.class_name = class_name  # type: ignore[misc]  # the same in all

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for each in list(_service(view).book.destinations.values()) if view.indications is not None else ():
            if each.class_name == self.class_name:
                yield await self._made(view, each)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        found = await self._find(view, keys)
        return None if found is None else await self._made(view, found)

    async def create(self, view: View, instance: CIMInstance) -> CIMInstanceName:
        given = _given(instance)
        _only(given, self.class_name, (*self._WRITABLE, "protocol", "description", "caption", "instanceid", "owner"))
        if given.get("protocol") not in (None, 2):
            raise CIMError(CIM_ERR_NOT_SUPPORTED, "Protocol is 2, CIM-XML")
        made = Destination(
            self.class_name,
            given.get("name") or f"{self.class_name}:{new_identity()}",
            _needed(given, "destination", "Destination"),
            new_identity(),
            _persistence(given.get("persistencetype")),
            _fingerprint(given.get("certificatefingerprint")),
            given.get("elementname"),
        )
        await _service(view).book.put_destination(made, new=True)
        return (await view.paths()).in_interop(self.class_name, made.name)

    async def modify(self, view: View, instance: CIMInstance, properties: list[str] | None) -> None:
        found = await self._find(view, instance.path.keybindings)
        assert found is not None
        shown = await self._made(view, found)
        changed = _changes(_given(instance, properties), shown, self._WRITABLE)
        if changed:
            made = replace(
                found,
                url=changed.get("destination", found.url) or "",
                persistence=_persistence(changed.get("persistencetype", found.persistence)),
                fingerprint=_fingerprint(changed.get("certificatefingerprint", found.fingerprint)),
                element_name=changed.get("elementname", found.element_name),
            )
            service = _service(view)
            await service.book.put_destination(made, new=False)
            service.deliveries.try_again([made.key])

    async def delete(self, view: View, path: CIMInstanceName) -> None:
        found = await self._find(view, path.keybindings)
        assert found is not None
        await _service(view).remove_destination(found.key)

    async def _find(self, view: View, keys: Keys) -> Destination | None:
        name = (await view.paths()).scoped_key(self.class_name, "Name", keys)
        if name is None or view.indications is None:
            return None
        return view.indications.book.destinations.get(records.destination_key(self.class_name, name))

    async def _made(self, view: View, found: Destination) -> CIMInstance:
        path = (await view.paths()).in_interop(self.class_name, found.name)
        pinned = {"CertificateFingerprint": found.fingerprint} if self.class_name == PINNED_CLASS else {}
        return view.make(
            INTEROP,
            self.class_name,
            **path.keybindings,
            ElementName=found.element_name,
            Destination=found.url,
            PersistenceType=found.persistence or 2,  # Permanent
            Protocol=2,  # CIM-XML
            **pinned,
        )


class IndicationSubscription(Association):
    class_name = SUBSCRIPTION_CLASS
    namespace = INTEROP
    ends = (End("Filter", FILTER_CLASS), End("Handler", "CIM_ListenerDestination"))
    _WRITABLE = ("onfatalerrorpolicy", "failuretriggertimeinterval", "subscriptionstate", "subscriptionduration")

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for each in list(_service(view).book.subscriptions.values()) if view.indications is not None else ():
            yield await self._made(view, each)

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        if view.indications is None:
            return
        book = view.indications.book
        name = path.keybindings["Name"]
        if role == "Handler":
            found = book.of_destination(records.destination_key(_spelled(path.classname), name))
        else:
            found = [each for each in book.subscriptions.values() if each.filter == name]
        for each in found:
            yield await self._made(view, each)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        found = await self._find(view, keys)
        return None if found is None else await self._made(view, found)

    async def create(self, view: View, instance: CIMInstance) -> CIMInstanceName:
        given = _given(instance)
        allowed = ("filter", "handler", *self._WRITABLE, "repeatnotificationpolicy")
        for name, value in given.items():
            if value is not None and name not in allowed:
                raise CIMError(CIM_ERR_NOT_SUPPORTED, f"{name} of a subscription cannot be chosen")
        if given.get("repeatnotificationpolicy") not in (None, 2):
            raise CIMError(CIM_ERR_NOT_SUPPORTED, "RepeatNotificationPolicy is 2, None: nothing is told twice")
        if given.get("subscriptionstate") not in (None, ENABLED):
            raise CIMError(CIM_ERR_NOT_SUPPORTED, "a subscription begins as enabled")
        filter_name, destination = await self._ends(view, given.get("filter"), given.get("handler"))
        now = time.time()
        made = Subscription(filter_name, destination, 0, now, now, **self._chosen(given, now))
        await _service(view).subscribe(made)
        return (await self._made(view, made)).path

    async def modify(self, view: View, instance: CIMInstance, properties: list[str] | None) -> None:
        found = await self._find(view, instance.path.keybindings)
        assert found is not None
        changed = _changes(_given(instance, properties), await self._made(view, found), self._WRITABLE)
        service = _service(view)
        state = changed.pop("subscriptionstate", None)
        if state not in (None, ENABLED, DISABLED):
            raise CIMError(CIM_ERR_INVALID_PARAMETER, "SubscriptionState is set to 2, Enabled, or 4, Disabled")
        if changed:
            await service.book.change_subscription(found.key, **self._chosen(changed, found.made_at))
        if state is not None and (state == ENABLED) != found.enabled:
            await service.enable(found.key, enabled=state == ENABLED)
        service.deliveries.try_again([found.destination])

    async def delete(self, view: View, path: CIMInstanceName) -> None:
        found = await self._find(view, path.keybindings)
        assert found is not None
        await _service(view).unsubscribe(found.key)

    @staticmethod
    def _chosen(given: Mapping[str, Any], begun: float) -> dict[str, Any]:
        """What of a subscription a client has said."""
        found: dict[str, Any] = {}
        if "onfatalerrorpolicy" in given:
            policy = given["onfatalerrorpolicy"]
            if policy is not None and policy not in FATAL_POLICIES:
                raise CIMError(CIM_ERR_NOT_SUPPORTED, "OnFatalErrorPolicy is 2, 3 or 4")
            found["fatal_policy"] = None if policy is None else int(policy)
        if "failuretriggertimeinterval" in given:
            after = given["failuretriggertimeinterval"]
            name = "FailureTriggerTimeInterval"
            found["fatal_s"] = None if after is None else _within(name, after, 0, DURATION_MAX_S)
        if "subscriptionduration" in given:
            lasts = given["subscriptionduration"]
            name = "SubscriptionDuration"
            found["ends_at"] = None if lasts is None else begun + _within(name, lasts, 1, DURATION_MAX_S)
        return found

    async def _ends(self, view: View, of: Any, to: Any) -> tuple[str, str]:
        """The filter's name and the destination's key. Raises CIMError."""
        paths, book = await view.paths(), _service(view).book
        if not isinstance(of, CIMInstanceName) or not isinstance(to, CIMInstanceName):
            raise CIMError(CIM_ERR_INVALID_PARAMETER, "a subscription has a Filter and a Handler")
        name = paths.scoped_key(FILTER_CLASS, "Name", of.keybindings)
        if of.classname.lower() != FILTER_CLASS.lower() or name not in book.filters:
            raise CIMError(CIM_ERR_NOT_FOUND, "there is no such Filter")
        class_name = _spelled(to.classname)
        listener = paths.scoped_key(class_name, "Name", to.keybindings)
        key = records.destination_key(class_name, str(listener))
        if listener is None or key not in book.destinations:
            raise CIMError(CIM_ERR_NOT_FOUND, "there is no such Handler")
        return name, key

    async def _find(self, view: View, keys: Keys) -> Subscription | None:
        if view.indications is None:
            return None
        try:
            of, to = await self._ends(view, keys.get("Filter"), keys.get("Handler"))
        except CIMError:
            return None
        return view.indications.book.subscriptions.get(records.subscription_key(of, to))

    async def _made(self, view: View, found: Subscription) -> CIMInstance:
        paths, service = await view.paths(), _service(view)
        class_name, _, name = found.destination.partition(":")
        policies = {action: policy for policy, action in FATAL_POLICIES.items()}
        settings = service.book.settings
        ends = found.ends_at
        return view.make(
            INTEROP,
            self.class_name,
            Filter=paths.in_interop(FILTER_CLASS, found.filter),
            Handler=paths.in_interop(class_name, name),
            OnFatalErrorPolicy=found.fatal_policy or policies[settings.removal_action],
            FailureTriggerTimeInterval=settings.removal_s if found.fatal_s is None else found.fatal_s,
            SubscriptionState=service.state(found),
            TimeOfLastStateChange=point_in_time(found.changed_at),
            SubscriptionStartTime=point_in_time(found.made_at),
            SubscriptionDuration=None if ends is None else round(ends - found.made_at),
            SubscriptionTimeRemaining=None if ends is None else max(0, round(ends - time.time())),
            RepeatNotificationPolicy=2,  # None
        )


class IndicationService(Provider):
    class_name = SERVICE_CLASS
    namespace = INTEROP
    _WRITABLE = (
        "deliveryretryattempts",
        "deliveryretryinterval",
        "subscriptionremovalaction",
        "subscriptionremovaltimeinterval",
    )

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        yield await self._made(view)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        name = (await view.paths()).scoped_key(self.class_name, "Name", keys)
        return await self._made(view) if name == SERVICE_CLASS else None

    async def modify(self, view: View, instance: CIMInstance, properties: list[str] | None) -> None:
        changed = _changes(_given(instance, properties), await self._made(view), self._WRITABLE)
        service = _service(view)
        found = service.book.settings
        if "deliveryretryattempts" in changed:
            value = _within("DeliveryRetryAttempts", changed["deliveryretryattempts"], 0, ATTEMPTS_MAX)
            found = replace(found, attempts=value)
        if "deliveryretryinterval" in changed:
            value = _within("DeliveryRetryInterval", changed["deliveryretryinterval"], 1, INTERVAL_MAX_S)
            found = replace(found, interval_s=value)
        if "subscriptionremovalaction" in changed:
            value = _within("SubscriptionRemovalAction", changed["subscriptionremovalaction"], REMOVE, IGNORE)
            found = replace(found, removal_action=value)
        if "subscriptionremovaltimeinterval" in changed:
            name = "SubscriptionRemovalTimeInterval"
            value = _within(name, changed[name.lower()], 1, DURATION_MAX_S)
            found = replace(found, removal_s=value)
        await service.book.put_settings(found)
        service.deliveries.try_again(list(service.deliveries.lanes))

    async def _made(self, view: View) -> CIMInstance:
        settings = records.Settings() if view.indications is None else view.indications.book.settings
        return view.make(
            INTEROP,
            self.class_name,
            **service_path(await view.paths()).keybindings,
            ElementName="Indications",
            Started=view.indications is not None,
            StartMode="Automatic",
            FilterCreationEnabled=True,
            DeliveryRetryAttempts=settings.attempts,
            DeliveryRetryInterval=settings.interval_s,
            SubscriptionRemovalAction=settings.removal_action,
            SubscriptionRemovalTimeInterval=settings.removal_s,
            **OK.enabled_properties(),
        )


class Capabilities(Fixed):
    class_name = CAPABILITIES_CLASS
    namespace = INTEROP
    kind = "indication-capabilities"
    table: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {
            "ElementName": "Indications",
            "FilterCreationEnabledIsSettable": False,
            "DeliveryRetryAttemptsIsSettable": True,
            "DeliveryRetryIntervalIsSettable": True,
            "SubscriptionRemovalActionIsSettable": True,
            "SubscriptionRemovalTimeIntervalIsSettable": True,
            "MaxListenerDestinations": DESTINATIONS_MAX,
            "MaxActiveSubscriptions": SUBSCRIPTIONS_MAX,
            "SubscriptionsPersisted": True,
        }
    }


class ElementCapabilities(Pairs):
    class_name = "TWINVOL_IndicationServiceCapabilities"
    namespace = INTEROP
    ends = (End("ManagedElement", SERVICE_CLASS), End("Capabilities", CAPABILITIES_CLASS))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        capabilities = paths.by_id(CAPABILITIES_CLASS, Capabilities.kind, "default", INTEROP)
        return [(service_path(paths), capabilities)]


class ServiceAffectsElement(Association):
    """The service to its filters and destinations."""

    class_name = "TWINVOL_IndicationServiceAffectsElement"
    namespace = INTEROP
    ends = (End("AffectingElement", SERVICE_CLASS), End("AffectedElement", "CIM_ManagedElement"))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        service = service_path(paths)
        if view.indications is None:
            return
        book = view.indications.book
        affected = [paths.in_interop(FILTER_CLASS, name) for name in book.filters]
        affected += [paths.in_interop(each.class_name, each.name) for each in book.destinations.values()]
        if role != "AffectingElement":
            affected = [each for each in affected if each == path]
        for each in affected:
            yield view.make(
                INTEROP, self.class_name, AffectingElement=service, AffectedElement=each, ElementEffects=[5]
            )


def _needed(given: Mapping[str, Any], name: str, spelled: str) -> str:
    if not given.get(name):
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{spelled} is needed")
    return str(given[name])


def _persistence(value: Any) -> int | None:
    if value not in (None, 2, 3):
        raise CIMError(CIM_ERR_NOT_SUPPORTED, "PersistenceType is 2, Permanent, or 3, Transient")
    return None if value is None else int(value)


def _fingerprint(value: str | None) -> str | None:
    """Hexadecimal digits, as OpenSSL and others write them, with colons or without."""
    return None if value is None else value.replace(":", "").lower()


def _spelled(class_name: str) -> str:
    """A class of destinations, in the class's own spelling."""
    known = {each.lower(): each for each in DESTINATION_CLASSES}
    return known.get(class_name.lower(), class_name)


PROVIDERS: tuple[Provider, ...] = (
    IndicationFilter(),
    *(ListenerDestination(name) for name in DESTINATION_CLASSES),
    IndicationSubscription(),
    IndicationService(),
    Capabilities(),
    ElementCapabilities(),
    ServiceAffectsElement(),
)
