"""Instances that fit their class: values in its types, a path of all its keys, every property there.

A property that a provider says nothing of has the class's default, or is NULL; so a client finds each by its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pywbem import CIMInstance, CIMInstanceName, CIMProperty, cimvalue

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pywbem import CIMClass

_PLAIN = (int, str, bool)
"""Types of values that cannot be changed, and are compared at once."""


class Shape:
    """What making instances of a class needs. ``keys``: their names, in the class's order."""

    def __init__(self, of: CIMClass) -> None:
        self.class_name: str = of.classname
        self.keys: tuple[str, ...] = tuple(each.name for each in of.properties.values() if "Key" in each.qualifiers)
        self._declared = {each.name.lower(): each for each in of.properties.values()}
        # What an instance has when nothing is said of it; shared by all instances, so never changed.
        self._silent = {name: _property(each, each.value) for name, each in self._declared.items()}
        # The last value of each, with its property: instances in a row have most values in common. Shared, too.
        self._last: dict[str, tuple[Any, CIMProperty]] = {}

    def make(self, namespace: str, values: Mapping[str, Any]) -> CIMInstance:
        """An instance with ``values`` by property name, and its path in ``namespace``.

        Values are Python's: int, str, bool, CIMDateTime (or timedelta, datetime), CIMInstanceName, CIMInstance, lists
        of them, None. A name that the class has not, a key without a value, or a value out of its type's range is the
        provider's mistake.
        """
        made = []
        for name, value in values.items():
            declared = self._declared.get(name.lower())
            assert declared is not None, f"{self.class_name} has no property {name}"
            made.append(self._made(declared, value))
        instance = CIMInstance(self.class_name, properties=made)
        keys = {name: instance.properties[name].value for name in self.keys}
        instance.path = CIMInstanceName(self.class_name, keybindings=keys, namespace=namespace)
        return instance

    def _made(self, declared: CIMProperty, value: Any) -> CIMProperty:
        kind = type(value)
        if kind is list:
            if any(type(each) not in _PLAIN for each in value):
                return _property(declared, value)
            value = list(value)  # kept: its owner may change it
        elif kind not in _PLAIN:
            return _property(declared, value)
        last = self._last.get(declared.name)
        if last is not None and type(last[0]) is kind and last[0] == value:
            return last[1]
        found = _property(declared, value)
        self._last[declared.name] = (value, found)
        return found

    def path(self, namespace: str, keys: Mapping[str, Any]) -> CIMInstanceName:
        """The path of an instance with these ``keys``: all of them, spelled as in the class."""
        typed = {name: cimvalue(keys[name], self._declared[name.lower()].type) for name in self.keys}
        return CIMInstanceName(self.class_name, keybindings=typed, namespace=namespace)

    def complete(self, instance: CIMInstance) -> None:
        """Give ``instance`` the properties of its class that it lacks."""
        there = instance.properties
        for silent in self._silent.values():
            if silent.name not in there:
                there[silent.name] = silent


def _property(declared: CIMProperty, value: Any) -> CIMProperty:
    if isinstance(value, list | tuple):
        value = [cimvalue(each, declared.type) for each in value]
    elif value is not None:
        value = cimvalue(value, declared.type)
    return CIMProperty(
        declared.name,
        value,
        type=declared.type,
        is_array=declared.is_array,
        embedded_object=declared.embedded_object,
        reference_class=declared.reference_class,
    )
