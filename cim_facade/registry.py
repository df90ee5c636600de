"""All providers and methods, by namespace and class: the tables of ``providers/`` and ``methods/`` joined.

A new file is named in ``_PROVIDER_MODULES`` or ``_METHOD_MODULES``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from cim_facade.provider import Association, MethodHandler, Provider

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cim_facade.repository import ClassRepository

_PROVIDER_MODULES: tuple[str, ...] = (
    "interop",
    "indications",
    "system",
    "pools",
    "volumes",
    "capabilities",
    "targets",
    "sessions",
    "synchronizations",
    "groups",
    "peers",
    "jobs",
    "sm_objects",
    "sm_relations",
)
"""Each has ``PROVIDERS: tuple[Provider, ...]``."""

_METHOD_MODULES: tuple[str, ...] = (
    "interop",
    "storage_configuration",
    "replication_service",
    "synchronizations",
    "groups",
    "jobs",
    "pool_elements",
    "masking",
    "targets",
    "capabilities",
    "sm_volume",
    "sm_groups",
)
"""Each has ``METHODS: dict[tuple[str, str], MethodHandler]``, by class and method; they hold for subclasses, too."""


class Registry:
    """See the module."""

    def __init__(self, providers: Iterable[Provider], methods: Mapping[tuple[str, str], MethodHandler]) -> None:
        self._providers: dict[str, dict[str, Provider]] = {}
        for provider in providers:
            of_namespace = self._providers.setdefault(provider.namespace.lower(), {})
            assert provider.class_name.lower() not in of_namespace, f"{provider.class_name} has two providers"
            of_namespace[provider.class_name.lower()] = provider
        self._methods = {(owner.lower(), name.lower()): handler for (owner, name), handler in methods.items()}

    def all(self) -> list[Provider]:
        return [provider for of_namespace in self._providers.values() for provider in of_namespace.values()]

    def of(self, namespace: str, class_name: str) -> Provider | None:
        """The provider of exactly this class."""
        return self._providers.get(namespace.lower(), {}).get(class_name.lower())

    def under(self, classes: ClassRepository, namespace: str, class_name: str) -> list[Provider]:
        """Providers of this class and of its subclasses."""
        found = [
            self.of(namespace, name) for name in [class_name, *classes.subclasses(namespace, class_name, deep=True)]
        ]
        return [provider for provider in found if provider is not None]

    def associations(self, namespace: str) -> list[Association]:
        """All of a namespace."""
        of_namespace = self._providers.get(namespace.lower(), {})
        return [provider for provider in of_namespace.values() if isinstance(provider, Association)]

    def method(self, classes: ClassRepository, namespace: str, class_name: str, name: str) -> MethodHandler | None:
        """Of the class, or else of its nearest superclass that has one."""
        for owner in [class_name, *classes.superclasses(namespace, class_name)]:
            handler = self._methods.get((owner.lower(), name.lower()))
            if handler is not None:
                return handler
        return None


def whole_registry() -> Registry:
    """Of everything that there is."""
    providers: list[Provider] = []
    methods: dict[tuple[str, str], MethodHandler] = {}
    for name in _PROVIDER_MODULES:
        providers += importlib.import_module(f"cim_facade.providers.{name}").PROVIDERS
    for name in _METHOD_MODULES:
        table = importlib.import_module(f"cim_facade.methods.{name}").METHODS
        assert not table.keys() & methods.keys(), f"{name} has methods that another file has"
        methods |= table
    return Registry(providers, methods)
