"""The WBEM operations of DSP0200 1.4 that read and change instances and classes, over the class repository and the
providers. They take and give pywbem's objects; ``dispatch`` reads requests and writes answers.

What DSP0200 leaves to a server is decided so (docs/decisions/0041):

- LocalOnly of instances is taken as false, IncludeQualifiers of instances too: both are deprecated there, and a client
  that relies on the defaults of 1999 would see no inherited property.
- A source instance that does not exist is CIM_ERR_NOT_FOUND in all association operations, not an empty answer.
- A name in a PropertyList that the class has not is ignored; an empty list is none at all.
- Paths have a namespace and no host; hosts that a client sends are ignored.

Operations that return many objects are asynchronous generators, advanced as the answer is written or pulled: nothing is
held but what the ``View`` has asked the engine for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from pywbem import (
    CIM_ERR_INVALID_CLASS,
    CIM_ERR_INVALID_NAMESPACE,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_NO_SUCH_PROPERTY,
    CIM_ERR_NOT_FOUND,
    CIM_ERR_NOT_SUPPORTED,
    CIM_ERR_TYPE_MISMATCH,
    CIMClass,
    CIMClassName,
    CIMError,
    CIMInstance,
    CIMInstanceName,
    CIMProperty,
    CIMQualifierDeclaration,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from cim_facade.context import View
    from cim_facade.provider import Association, End, Provider
    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository

PropertyList = list[str] | None


class Filters(NamedTuple):
    """Of an association operation: what to go through, by which roles, and to what. None: any."""

    assoc_class: str | None = None
    result_class: str | None = None
    role: str | None = None
    result_role: str | None = None


class Operations:
    """See the module. One for each request: ``view`` is what it sees."""

    def __init__(self, view: View, classes: ClassRepository, registry: Registry) -> None:
        self._view = view
        self._classes = classes
        self._registry = registry

    # --- classes

    def namespace(self, name: str) -> str:
        """The namespace that answers to ``name``."""
        found = self._classes.namespace(name)
        if found is None:
            raise CIMError(CIM_ERR_INVALID_NAMESPACE, f"there is no namespace {name}")
        return found

    def get_class(
        self,
        namespace: str,
        name: str,
        *,
        local_only: bool = True,
        include_qualifiers: bool = True,
        include_class_origin: bool = False,
        property_list: PropertyList = None,
    ) -> CIMClass:
        found = self._classes.get(namespace, name)
        if found is None:
            raise CIMError(CIM_ERR_NOT_FOUND, f"there is no class {name} in {namespace}")
        return _class_as_asked(found, namespace, local_only, include_qualifiers, include_class_origin, property_list)

    def enumerate_classes(
        self,
        namespace: str,
        name: str | None,
        *,
        deep: bool = False,
        local_only: bool = True,
        include_qualifiers: bool = True,
        include_class_origin: bool = False,
    ) -> Iterator[CIMClass]:
        for each in self.enumerate_class_names(namespace, name, deep=deep):
            yield _class_as_asked(
                self._class(namespace, each), namespace, local_only, include_qualifiers, include_class_origin, None
            )

    def enumerate_class_names(self, namespace: str, name: str | None, *, deep: bool = False) -> list[str]:
        if name is not None:
            self._class(namespace, name)
        return self._classes.subclasses(namespace, name, deep=deep)

    def get_qualifier(self, namespace: str, name: str) -> CIMQualifierDeclaration:
        found = self._classes.qualifier(namespace, name)
        if found is None:
            raise CIMError(CIM_ERR_NOT_FOUND, f"there is no qualifier {name} in {namespace}")
        return found

    def enumerate_qualifiers(self, namespace: str) -> list[CIMQualifierDeclaration]:
        return self._classes.qualifiers(namespace)

    # --- instances

    async def get_instance(
        self, path: CIMInstanceName, *, include_class_origin: bool = False, property_list: PropertyList = None
    ) -> CIMInstance:
        found = await self._find(path)
        if found is None:
            raise CIMError(CIM_ERR_NOT_FOUND, f"there is no instance {_uri(path)}")
        return self._as_asked(found, include_class_origin, property_list)

    async def enumerate_instances(
        self,
        namespace: str,
        name: str,
        *,
        deep: bool = True,
        include_class_origin: bool = False,
        property_list: PropertyList = None,
    ) -> AsyncGenerator[CIMInstance, None]:
        """``deep``: with the properties that subclasses add; their instances come in any case."""
        wanted = property_list
        if not deep:
            names = list(self._class(namespace, name).properties)
            asked = None if wanted is None else {each.lower() for each in wanted}
            wanted = [each for each in names if asked is None or each.lower() in asked]
        for provider in self._providers(namespace, name):
            async for instance in provider.instances(self._view):
                await self._view.breathe()
                yield self._as_asked(instance, include_class_origin, wanted)

    async def enumerate_instance_names(self, namespace: str, name: str) -> AsyncGenerator[CIMInstanceName, None]:
        for provider in self._providers(namespace, name):
            async for path in provider.paths(self._view):
                await self._view.breathe()
                yield path

    async def create_instance(self, namespace: str, instance: CIMInstance) -> CIMInstanceName:
        provider = self._writable(namespace, instance.classname)
        self._check_properties(namespace, instance, CIM_ERR_INVALID_PARAMETER)
        return await provider.create(self._view, instance)

    async def modify_instance(self, instance: CIMInstance, property_list: PropertyList) -> None:
        path = instance.path
        if instance.classname.lower() != path.classname.lower():
            raise CIMError(CIM_ERR_INVALID_PARAMETER, "the instance and its path are of different classes")
        instance.path = (await self.get_instance(path)).path
        self._check_properties(path.namespace, instance, CIM_ERR_NO_SUCH_PROPERTY)
        declared = self._class(path.namespace, path.classname).properties
        for name in property_list or ():
            if name not in declared:
                raise CIMError(CIM_ERR_NO_SUCH_PROPERTY, f"{path.classname} has no property {name}")
        await self._writable(path.namespace, path.classname).modify(self._view, instance, property_list)

    def _check_properties(self, namespace: str, instance: CIMInstance, unknown: int) -> None:
        """That they are of the class, and of its types. Raises CIMError; ``unknown``: its code for one that is not."""
        declared = self._class(namespace, instance.classname).properties
        for each in instance.properties.values():
            of_class = declared.get(each.name)
            if of_class is None:
                raise CIMError(unknown, f"{instance.classname} has no property {each.name}")
            if (of_class.type, of_class.is_array) != (each.type, each.is_array):
                code = CIM_ERR_TYPE_MISMATCH if unknown == CIM_ERR_NO_SUCH_PROPERTY else unknown
                raise CIMError(code, f"{each.name} is a {of_class.type}{'[]' if of_class.is_array else ''}")

    async def delete_instance(self, path: CIMInstanceName) -> None:
        await self.get_instance(path)
        await self._writable(path.namespace, path.classname).delete(self._view, path)

    # --- associations, from an instance

    async def references(
        self,
        path: CIMInstanceName,
        filters: Filters,
        *,
        include_class_origin: bool = False,
        property_list: PropertyList = None,
    ) -> AsyncGenerator[CIMInstance, None]:
        """``filters.result_class`` names the association class here."""
        seen: set[CIMInstanceName] = set()
        async for _, instance in self._leading_from(path, filters.result_class, filters.role):
            if instance.path not in seen:  # both of its ends may be the source
                seen.add(instance.path)
                yield self._as_asked(instance, include_class_origin, property_list)

    async def reference_names(self, path: CIMInstanceName, filters: Filters) -> AsyncGenerator[CIMInstanceName, None]:
        seen: set[CIMInstanceName] = set()
        async for _, instance in self._leading_from(path, filters.result_class, filters.role):
            if instance.path not in seen:
                seen.add(instance.path)
                yield instance.path

    async def associators(
        self,
        path: CIMInstanceName,
        filters: Filters,
        *,
        include_class_origin: bool = False,
        property_list: PropertyList = None,
    ) -> AsyncGenerator[CIMInstance, None]:
        async for other in self.associator_names(path, filters):
            found = await self._find(other)
            if found is not None:  # gone meanwhile
                yield self._as_asked(found, include_class_origin, property_list)

    async def associator_names(self, path: CIMInstanceName, filters: Filters) -> AsyncGenerator[CIMInstanceName, None]:
        if filters.result_class is not None:
            self._result_class(filters.result_class)
        result_role = None if filters.result_role is None else filters.result_role.lower()
        seen: set[CIMInstanceName] = set()
        async for far, instance in self._leading_from(path, filters.assoc_class, filters.role):
            if result_role is not None and far.role.lower() != result_role:
                continue
            other = instance[far.role]
            if filters.result_class is not None and not self._view.is_a(other, filters.result_class):
                continue
            if other not in seen:
                seen.add(other)
                yield other

    async def _leading_from(
        self, path: CIMInstanceName, assoc_class: str | None, role: str | None
    ) -> AsyncGenerator[tuple[End, CIMInstance], None]:
        """The association instances of which one end is the instance ``path``, each with its other end."""
        namespace = path.namespace
        if assoc_class is not None:
            self._filter_class(namespace, assoc_class)
        if self._classes.get(namespace, path.classname) is None:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"there is no class {path.classname} in {namespace}")
        source = await self._find(path)
        if source is None:
            raise CIMError(CIM_ERR_NOT_FOUND, f"there is no instance {_uri(path)}")
        for association, near, far in self._associations(namespace, path.classname, assoc_class, role):
            async for instance in association.references(self._view, source.path, near.role):
                await self._view.breathe()
                yield far, instance

    def _associations(
        self, namespace: str, class_name: str, assoc_class: str | None, role: str | None
    ) -> Iterator[tuple[Association, End, End]]:
        """Association providers that may have a ``class_name`` at an end, with that end and the other one."""
        for association in self._registry.associations(namespace):
            if assoc_class is not None and not self._classes.is_a(namespace, association.class_name, assoc_class):
                continue
            first, second = association.ends
            for near, far in ((first, second), (second, first)):
                if role is not None and near.role.lower() != role.lower():
                    continue
                if self._classes.is_a(namespace, class_name, near.class_name):
                    yield association, near, far

    # --- associations, from a class

    def reference_classes(self, namespace: str, name: str, filters: Filters) -> list[CIMClassName]:
        """Association classes that have a reference to the class or one of its superclasses."""
        found = dict.fromkeys(
            each.classname for each, _ in self._class_ends(namespace, name, filters.result_class, filters.role)
        )
        return [CIMClassName(each, namespace=namespace) for each in found]

    def associator_classes(self, namespace: str, name: str, filters: Filters) -> list[CIMClassName]:
        """Classes at the other ends of those association classes."""
        if filters.result_class is not None:
            self._filter_class(namespace, filters.result_class)
        found: dict[str, None] = {}
        for association, near in self._class_ends(namespace, name, filters.assoc_class, filters.role):
            for far in _reference_properties(association):
                if far.name == near:
                    continue
                if filters.result_role is not None and far.name.lower() != filters.result_role.lower():
                    continue
                if filters.result_class is None or self._classes.is_a(
                    namespace, far.reference_class, filters.result_class
                ):
                    found[far.reference_class] = None
        return [CIMClassName(each, namespace=namespace) for each in found]

    def classes_with_path(
        self,
        paths: list[CIMClassName],
        *,
        include_qualifiers: bool = False,
        include_class_origin: bool = False,
        property_list: PropertyList = None,
    ) -> Iterator[CIMClass]:
        """The classes of ``paths``, whole."""
        for path in paths:
            yield self.get_class(
                path.namespace,
                path.classname,
                local_only=False,
                include_qualifiers=include_qualifiers,
                include_class_origin=include_class_origin,
                property_list=property_list,
            )

    def _class_ends(
        self, namespace: str, name: str, assoc_class: str | None, role: str | None
    ) -> Iterator[tuple[CIMClass, str]]:
        """Association classes with the name of a reference that may lead to class ``name``."""
        self._filter_class(namespace, name)
        if assoc_class is not None:
            self._filter_class(namespace, assoc_class)
        for each in self._classes.all(namespace):
            if assoc_class is not None and not self._classes.is_a(namespace, each.classname, assoc_class):
                continue
            for reference in _reference_properties(each):
                if role is not None and reference.name.lower() != role.lower():
                    continue
                if self._classes.is_a(namespace, name, reference.reference_class):
                    yield each, reference.name

    # --- common

    def _class(self, namespace: str, name: str) -> CIMClass:
        found = self._classes.get(namespace, name)
        if found is None:
            raise CIMError(CIM_ERR_INVALID_CLASS, f"there is no class {name} in {namespace}")
        return found

    def _filter_class(self, namespace: str, name: str) -> None:
        if self._classes.get(namespace, name) is None:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"there is no class {name} in {namespace}")

    def _result_class(self, name: str) -> None:
        """Associations may lead into another namespace: from a profile to a pool. So it may be a class of any."""
        if not any(self._classes.get(each, name) for each in self._classes.namespaces):
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"there is no class {name}")

    def _providers(self, namespace: str, name: str) -> list[Provider]:
        self._class(namespace, name)
        return self._registry.under(self._classes, namespace, name)

    def _writable(self, namespace: str, name: str) -> Provider:
        self._class(namespace, name)
        provider = self._registry.of(namespace, name)
        if provider is None:
            raise CIMError(CIM_ERR_NOT_SUPPORTED, f"class {name} has no instances of its own here")
        return provider

    async def _find(self, path: CIMInstanceName) -> CIMInstance | None:
        """The instance of a path. Raises CIMError: there is no such class, or it has other keys."""
        of = self._class(path.namespace, path.classname)
        keys = {each.lower() for each in self._classes.shape(path.namespace, path.classname).keys}
        given = {name.lower() for name in path.keybindings}
        if given == {""} and len(keys) == 1:  # DSP0201 5.4.3.2.2: the name of an only key may be left out
            path = CIMInstanceName(path.classname, {next(iter(keys)): path.keybindings[""]}, namespace=path.namespace)
        elif given != keys:
            wanted = ", ".join(self._classes.shape(path.namespace, path.classname).keys) or "none"
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"the keys of {of.classname} are {wanted}")
        provider = self._registry.of(path.namespace, path.classname)
        return None if provider is None else await provider.instance(self._view, path.keybindings)

    def trimmed(self, instance: CIMInstance, property_list: list[str]) -> CIMInstance:
        """Itself, with no other properties than these."""
        wanted = {name.lower() for name in property_list}
        for name in [name for name in instance.properties if name.lower() not in wanted]:
            del instance.properties[name]
        return instance

    def _as_asked(self, instance: CIMInstance, include_class_origin: bool, property_list: PropertyList) -> CIMInstance:
        """With all properties of its class, or those of the list."""
        path = instance.path
        self._classes.shape(path.namespace, path.classname).complete(instance)
        if property_list is not None:
            self.trimmed(instance, property_list)
        if include_class_origin:
            declared = self._class(path.namespace, path.classname).properties
            for name, each in list(instance.properties.items()):
                each = each.copy()  # it may be one that all instances share
                each.class_origin = declared[name].class_origin
                instance.properties[name] = each
        return instance


def _class_as_asked(
    found: CIMClass,
    namespace: str,
    local_only: bool,
    include_qualifiers: bool,
    include_class_origin: bool,
    property_list: PropertyList,
) -> CIMClass:
    """A copy with what was asked for."""
    wanted = None if property_list is None else {name.lower() for name in property_list}
    properties = [
        each.copy()
        for each in found.properties.values()
        if not (local_only and each.propagated) and (wanted is None or each.name.lower() in wanted)
    ]
    methods = [each.copy() for each in found.methods.values() if not (local_only and each.propagated)]
    qualifiers = [each.copy() for each in found.qualifiers.values() if not (local_only and each.propagated)]
    for element in (*properties, *methods):
        if not include_class_origin:
            element.class_origin = None
        if not include_qualifiers:
            element.qualifiers = []
    if not include_qualifiers:
        qualifiers = []
        for method in methods:
            parameters = [each.copy() for each in method.parameters.values()]  # a method's copy shares them
            for parameter in parameters:
                parameter.qualifiers = []
            method.parameters = parameters
    return CIMClass(
        found.classname,
        superclass=found.superclass,
        properties=properties,
        methods=methods,
        qualifiers=qualifiers,
        path=CIMClassName(found.classname, namespace=namespace),
    )


def _reference_properties(of: CIMClass) -> list[CIMProperty]:
    return [each for each in of.properties.values() if each.type == "reference"]


def _uri(path: CIMInstanceName) -> str:
    text = path.to_wbem_uri(format="canonical")
    return text if len(text) <= 300 else f"{text[:300]}..."
