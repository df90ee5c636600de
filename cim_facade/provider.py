"""What computes instances and runs methods. Providers hold no state; everything comes through the ``View``.

The rules that operations rely on:

- An instance has its ``path``: classname, keybindings of all keys in the types of the class, namespace (its own, so
  that references may lead into another one), no host. Its properties are some of its class's; those left out are NULL.
- A look-up by key or by end is direct: it never goes through all instances of a class.
- Keys come as a client sent them: case of names does not matter (``NocaseDict``); a value of the wrong type is not
  found.
- An asynchronous generator that makes many instances need not yield to the loop: the operations do, between instances.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pywbem import CIM_ERR_NOT_SUPPORTED, CIMError, CIMInstance, CIMInstanceName

from cim_facade import namespaces

if TYPE_CHECKING:
    from cim_facade.context import View

Keys = Mapping[str, Any]
"""Keybindings: str, int, bool, or CIMInstanceName for a reference."""

Parameters = Mapping[str, Any]
"""Input parameters of a method by name, in any case (``NocaseDict``), in the types that the class declares; one that
was not given is not in it, one given without a value is None. Embedded instances are CIMInstance."""

MethodHandler = Callable[["View", CIMInstanceName, Parameters], Awaitable[tuple[int, dict[str, Any]]]]
"""``handler(view, path, params)``: the return value, and the output parameters that have one, as Python values or
pywbem objects; the class says their types. ``path`` is that of the instance, with namespace; a path with no keybindings
is a static method's class. The operations have checked that the instance exists, and types and names of ``params``.
Raises CIMError, or EngineError, which ``errors`` maps."""


class Provider:
    """The instances of one concrete class in one namespace."""

    class_name: ClassVar[str]
    namespace: ClassVar[str] = namespaces.STORAGE

    def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        """All of them. An asynchronous generator."""
        raise NotImplementedError

    async def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        """Of all of them. Overridden where there are many and a path costs less than the instance."""
        async for instance in self.instances(view):
            yield instance.path

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        """The one with exactly these keys."""
        raise NotImplementedError

    async def modify(self, view: View, instance: CIMInstance, properties: list[str] | None) -> None:
        """ModifyInstance: give ``properties`` (None: all that it has) of an existing one the values of ``instance``."""
        raise CIMError(CIM_ERR_NOT_SUPPORTED, f"instances of {self.class_name} cannot be modified")

    async def create(self, view: View, instance: CIMInstance) -> CIMInstanceName:
        """CreateInstance. The path of what was made."""
        raise CIMError(CIM_ERR_NOT_SUPPORTED, f"instances of {self.class_name} cannot be created")

    async def delete(self, view: View, path: CIMInstanceName) -> None:
        """DeleteInstance."""
        raise CIMError(CIM_ERR_NOT_SUPPORTED, f"instances of {self.class_name} cannot be deleted")


class End(NamedTuple):
    """One end of an association: the reference property, and the class of what it leads to (or a base of it)."""

    role: str
    class_name: str


class Association(Provider):
    """The instances of one association class between two ends.

    ``instances`` and ``instance`` come from ``references``: all are found from the first end, so that is the rarer one.
    """

    ends: ClassVar[tuple[End, End]]
    end_namespace: ClassVar[str | None] = None
    """Where the instances of the first end are, if not in the association's own namespace."""

    def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        """The association's instances whose end ``role`` (as spelled in ``ends``) is ``path``, of which the class is
        known to fit and nothing else. An asynchronous generator."""
        raise NotImplementedError

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        first = self.ends[0]
        for provider in view.providers(self.end_namespace or self.namespace, first.class_name):
            async for path in provider.paths(view):
                async for instance in self.references(view, path, first.role):
                    yield instance

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        first, second = self.ends
        if len(keys) != 2:
            return None
        start, end = keys.get(first.role), keys.get(second.role)
        if not isinstance(start, CIMInstanceName) or not view.is_a(start, first.class_name):
            return None
        async for instance in self.references(view, start, first.role):
            if instance.path.keybindings[first.role] == start and instance.path.keybindings[second.role] == end:
                return instance
        return None
