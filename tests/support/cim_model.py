"""A self-check over everything that the facade shows: references, keys, and instances against their classes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pywbem import CIMDateTime, CIMInstance, CIMInstanceName

from cim_facade.context import User, View
from cim_facade.provider import Association

if TYPE_CHECKING:
    from pywbem import CIMClass, CIMProperty

    from cim_facade.indications.service import Indications
    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from engine.api import EngineApi

ADMINISTRATOR = User("admin", administrator=True, secure=True)


class Model:
    """All that one namespace shows, through its providers."""

    def __init__(
        self,
        api: EngineApi,
        classes: ClassRepository,
        registry: Registry,
        namespace: str,
        indications: Indications | None = None,
    ) -> None:
        self.api = api
        self.classes = classes
        self.registry = registry
        self.namespace = namespace
        self.indications = indications

    def view(self) -> View:
        view = View(self.api, ADMINISTRATOR, self.classes, self.registry)
        view.indications = self.indications
        return view

    async def everything(self) -> list[CIMInstance]:
        """All instances of all classes."""
        found = []
        for provider in self.registry.all():
            if provider.namespace == self.namespace:
                found += [instance async for instance in provider.instances(self.view())]
        return found

    async def fetch(self, path: CIMInstanceName) -> CIMInstance | None:
        """One instance by its path, with a view of its own, as another request would."""
        provider = self.registry.of(path.namespace, path.classname)
        assert provider is not None, f"nobody provides {path}"
        return await provider.instance(self.view(), path.keybindings)

    async def problems(self) -> list[str]:
        """What is wrong; nothing, if all is well."""
        instances = await self.everything()
        paths = {instance.path for instance in instances}
        found = [] if len(paths) == len(instances) else ["two instances have one path"]
        for provider in self.registry.all():
            if provider.namespace == self.namespace:
                named = [path async for path in provider.paths(self.view())]
                shown = [instance.path for instance in instances if instance.classname == provider.class_name]
                if named != shown:
                    found.append(f"{provider.class_name}: names are not those of its instances")
        for instance in instances:
            found += self._misfits(instance)
            again = await self.fetch(instance.path)
            if again is None:
                found.append(f"{instance.path} is not found by its path")
            elif again.path != instance.path:
                found.append(f"{instance.path} is found as {again.path}")
            for each in instance.properties.values():
                if isinstance(each.value, CIMInstanceName):
                    found += await self._reference_problems(instance, each, paths)
        return found

    async def _reference_problems(
        self, instance: CIMInstance, end: CIMProperty, paths: set[CIMInstanceName]
    ) -> list[str]:
        path = end.value
        found = []
        if path.namespace == self.namespace and path not in paths:
            found.append(f"{instance.classname}.{end.name}: {path} is not among the instances")
        if path.namespace != self.namespace and await self.fetch(path) is None:
            found.append(f"{instance.classname}.{end.name}: {path} is not there")
        if not self.classes.is_a(path.namespace, path.classname, end.reference_class):
            found.append(f"{instance.classname}.{end.name}: {path} is no {end.reference_class}")
        provider = self.registry.of(self.namespace, instance.classname)
        if isinstance(provider, Association):
            from_end = [each.path async for each in provider.references(self.view(), path, end.name)]
            if instance.path not in from_end:
                found.append(f"{instance.path} is not found from its {end.name}")
        return found

    def _misfits(self, instance: CIMInstance) -> list[str]:
        declared = self.classes.get(self.namespace, instance.classname)
        assert declared is not None
        keys = {each.name for each in declared.properties.values() if "Key" in each.qualifiers}
        found = [] if set(instance.path.keybindings) == keys else [f"{instance.path}: wrong keys"]
        if instance.path.namespace != self.namespace or instance.path.host is not None:
            found.append(f"{instance.path}: wrong namespace or host")
        for each in instance.properties.values():
            found += [f"{instance.path}: {each.name} {why}" for why in misfits_of(declared, each)]
        return found


def misfits_of(declared: CIMClass, found: CIMProperty) -> list[str]:
    """What is wrong with a property of an instance of a class."""
    wanted = declared.properties[found.name]
    why = []
    if (found.type, found.is_array) != (wanted.type, wanted.is_array):
        why.append("has another type")
    values = found.value if found.is_array else [found.value]
    for value in values or []:
        if value is not None:
            why += _value_misfits(wanted, value)
    if "Key" in wanted.qualifiers and found.value is None:
        why.append("is a key without value")
    return why


def _value_misfits(wanted: CIMProperty, value: Any) -> list[str]:
    longest = wanted.qualifiers.get("MaxLen")
    if longest is not None and len(value) > longest.value:
        return [f"is longer than {longest.value}: {value}"]
    listed = wanted.qualifiers.get("ValueMap")
    if listed is not None and not any(_in_value_map(entry, value) for entry in listed.value):
        return [f"has no such value: {value}"]
    if wanted.type == "datetime" and not isinstance(value, CIMDateTime):
        return ["is no datetime"]
    return []


def _in_value_map(entry: str, value: Any) -> bool:
    low, dots, high = entry.partition("..")
    if not dots:
        return entry == str(value)
    return (not low or int(low) <= value) and (not high or value <= int(high))
