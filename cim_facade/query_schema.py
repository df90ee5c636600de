"""The names that a query may use: properties and classes of the namespaces that it is about."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade.query import Step, kind_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pywbem import CIMClass, CIMInstance

    from cim_facade.repository import ClassRepository


class ClassSchema:
    """Of instances of ``class_name`` and its subclasses; None: of any class. ``namespaces``: where classes are looked
    up, also those of embedded instances. Fulfils ``query.Schema``."""

    def __init__(self, classes: ClassRepository, namespaces: Sequence[str], class_name: str | None) -> None:
        self._classes = classes
        self._namespaces = namespaces
        self._class_name = class_name

    def kinds(self, path: tuple[Step, ...]) -> set[str] | None:
        first, *inner = path
        found = self._kinds_in(self._roots() if first.of is None else self._family(first.of), first)
        for step in inner:
            if found and "object" not in found:
                return set()
            found = self._kinds_in(self._every() if step.of is None else self._named(step.of), step)
        return found

    def is_class(self, name: str) -> bool:
        return any(self._classes.get(namespace, name) is not None for namespace in self._namespaces)

    def is_a(self, instance: CIMInstance, class_name: str) -> bool:
        return any(self._classes.is_a(namespace, instance.classname, class_name) for namespace in self._namespaces)

    # --- classes that a property may be of

    def _roots(self) -> Iterable[CIMClass]:
        return self._every() if self._class_name is None else self._family(self._class_name)

    def _family(self, name: str) -> Iterable[CIMClass]:
        """A class and its subclasses: an instance of one of these may be what is asked."""
        for namespace in self._namespaces:
            if self._classes.get(namespace, name) is not None:
                for each in (name, *self._classes.subclasses(namespace, name, deep=True)):
                    yield self._classes.get(namespace, each)

    def _named(self, name: str) -> Iterable[CIMClass]:
        """CLASS::NAME means a property that this class has."""
        found = [self._classes.get(namespace, name) for namespace in self._namespaces]
        return [each for each in found if each is not None]

    def _every(self) -> Iterable[CIMClass]:
        for namespace in self._namespaces:
            yield from self._classes.all(namespace)

    @staticmethod
    def _kinds_in(classes: Iterable[CIMClass], step: Step) -> set[str]:
        kinds = set()
        for each in classes:
            declared = each.properties.get(step.name)
            if declared is not None:
                kind = kind_of(declared)
                if step.element is None:
                    kinds.add(kind)
                elif kind.endswith("[]"):
                    kinds.add(kind.removesuffix("[]"))
        return kinds
