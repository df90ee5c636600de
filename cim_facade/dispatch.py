"""From a request to the pieces of its answer: which operation, its parameters, how its results are written.

``OPERATIONS`` is the table of DSP0200's intrinsic methods; what is not in it is CIM_ERR_NOT_SUPPORTED. Results are
written as they are made, so that neither an answer nor the objects in it are ever held whole.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from pywbem import (
    CIM_ERR_ACCESS_DENIED,
    CIM_ERR_CONTINUATION_ON_ERROR_NOT_SUPPORTED,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_NOT_SUPPORTED,
    CIMClassName,
    CIMError,
    CIMInstance,
    CIMInstanceName,
)

from cim_facade import answers, auditing, cimxml, query
from cim_facade.aside import Aside
from cim_facade.context import View
from cim_facade.invoke import READER_VERBS, Methods
from cim_facade.operations import Filters, Operations
from cim_facade.pull import Enumerations
from cim_facade.query_schema import ClassSchema

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

    from pywbem import CIMClass, CIMParameter

    from cim_facade.audit import AuditLog
    from cim_facade.auth import Users
    from cim_facade.cimxml import Element, Request
    from cim_facade.context import User
    from cim_facade.indications.service import Indications
    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository
    from engine.api import EngineApi

log = logging.getLogger(__name__)

MAX_NAME = 256
"""Characters of a class, property or role name (DSP0004 4.12 allows no more in any schema)."""


class Call:
    """One intrinsic operation under way: its namespace, its parameters by name, and what answers it."""

    def __init__(self, facade: Facade, view: View, host: str, namespace: str, arguments: dict[str, Any]) -> None:
        self.operations = Operations(view, facade.classes, facade.registry)
        self.enumerations = facade.enumerations
        self.aside = facade.aside
        self.view = view
        self.host = host
        self.namespace = namespace
        self.arguments = arguments
        self.told: dict[str, Any] = {}  # what a change made, for the record

    def __getitem__(self, name: str) -> Any:
        """A required parameter."""
        return self.arguments[name]

    def get(self, name: str, default: Any = None) -> Any:
        found = self.arguments.get(name)
        return default if found is None else found

    @property
    def filters(self) -> Filters:
        get = self.arguments.get
        return Filters(get("AssocClass"), get("ResultClass"), get("Role"), get("ResultRole"))

    @property
    def owner(self) -> tuple[str, str]:
        """Whose enumerations these are."""
        return self.view.user.name, self.namespace

    def as_asked(self) -> dict[str, Any]:
        """How instances are wanted."""
        return {
            "include_class_origin": self.get("IncludeClassOrigin", False),
            "property_list": self.arguments.get("PropertyList"),
        }

    def class_flags(self, *, qualifiers: bool) -> dict[str, Any]:
        """How classes are wanted. ``qualifiers``: whether they come if nothing is said."""
        return {
            "include_qualifiers": self.get("IncludeQualifiers", qualifiers),
            "include_class_origin": self.get("IncludeClassOrigin", False),
        }


class Facade:
    """What requests have in common."""

    def __init__(
        self,
        api: EngineApi,
        classes: ClassRepository,
        registry: Registry,
        users: Users | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        """``audit``: where changes are recorded; None: nowhere."""
        self.audit = audit
        self.api = api
        self.users = users
        self.classes = classes
        self.registry = registry
        self.enumerations = Enumerations()
        self.aside = Aside()
        self.indications: Indications | None = None
        """Whoever serves sets it; None: nobody is told of anything."""

    async def answer(self, request: Request, user: User, host: str) -> AsyncGenerator[str, None]:
        """The pieces of the answer behind its beginning. ``host``: how the client calls this server.

        Raises CIMError, mostly before the first piece; EngineError where the engine refuses.
        """
        view = View(self.api, user, self.classes, self.registry, self.users)
        view.indications = self.indications
        operations = Operations(view, self.classes, self.registry)
        namespace = operations.namespace(request.namespace)
        if request.extrinsic:
            assert request.target is not None
            request.target.namespace = namespace
            methods = Methods(view, self.classes, self.registry, operations)
            yield answers.method_result(*await self._invoked(methods, request, user))
            return
        operation = OPERATIONS.get(request.name)
        if operation is None:
            raise CIMError(CIM_ERR_NOT_SUPPORTED, f"operation {request.name[:MAX_NAME]} is not supported")
        if operation.writes and not user.administrator:
            raise CIMError(CIM_ERR_ACCESS_DENIED, f"{user.name} may read only")
        if request.big:
            arguments = await self.aside.read(_arguments, operation, request, namespace)
        else:
            arguments = _arguments(operation, request, namespace)
        call = Call(self, view, host, namespace, arguments)
        pieces = operation.run(call)
        if operation.writes and self.audit is not None:
            yield await auditing.change(self.audit, request, user, lambda: _whole(pieces), lambda _: call.told)
            return
        async for piece in pieces:
            yield piece
            await view.breathe()

    async def _invoked(self, methods: Methods, request: Request, user: User) -> tuple[Any, str, list[CIMParameter]]:
        assert request.target is not None

        async def act() -> tuple[Any, str, list[CIMParameter]]:
            aside = self.aside if request.big else None
            return await methods.invoke(request.target, request.name, request.params, aside)

        if self.audit is None or not user.administrator or request.name.lower().startswith(READER_VERBS_LOWER):
            return await act()
        return await auditing.change(self.audit, request, user, act, _told)


READER_VERBS_LOWER = tuple(verb.lower() for verb in READER_VERBS)


async def _whole(pieces: Pieces) -> str:
    """Of an operation that writes: little."""
    return "".join([piece async for piece in pieces])


def _told(result: tuple[Any, str, list[CIMParameter]]) -> dict[str, Any]:
    """What a method answers, as it is recorded."""
    value, _, outputs = result
    return {"return_value": value, "outputs": {each.name: auditing.told_value(each.value) for each in outputs}}


# --- parameters


def _text(element: Element | None) -> str | None:
    found: str | None = cimxml.value(element, "string")
    return found


def _boolean(element: Element | None) -> bool | None:
    found: bool | None = cimxml.value(element, "boolean")
    return found


def _uint32(element: Element | None) -> int | None:
    found = cimxml.value(element, "uint32")
    return None if found is None else int(found)


def _names(element: Element | None) -> list[str] | None:
    found: list[str | None] | None = cimxml.value(element, "string", array=True)
    if found is None:
        return None
    if None in found:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, "PropertyList has a NULL in it")
    return [name for name in found if name is not None]


def _class_name(element: Element | None) -> str | None:
    return None if element is None else str(cimxml.class_name(element).classname)


def _object_name(element: Element | None) -> CIMInstanceName | CIMClassName | None:
    if element is None:
        return None
    if element.name == "CLASSNAME":
        return cimxml.class_name(element)
    return cimxml.instance_name(element)


def _or_null(mapping: Callable[[Element], Any]) -> Callable[[Element | None], Any]:
    return lambda element: None if element is None else mapping(element)


PARAMETERS: dict[str, Callable[[Element | None], Any]] = {
    "ClassName": _class_name,
    "AssocClass": _class_name,
    "ResultClass": _class_name,
    "InstanceName": _or_null(cimxml.instance_name),
    "ObjectName": _object_name,
    "Role": _text,
    "ResultRole": _text,
    "QualifierName": _text,
    "LocalOnly": _boolean,
    "DeepInheritance": _boolean,
    "IncludeQualifiers": _boolean,
    "IncludeClassOrigin": _boolean,
    "PropertyList": _names,
    "FilterQueryLanguage": _text,
    "FilterQuery": _text,
    "OperationTimeout": _uint32,
    "ContinueOnError": _boolean,
    "MaxObjectCount": _uint32,
    "EnumerationContext": _text,
    "NewInstance": _or_null(cimxml.instance),
    "ModifiedInstance": _or_null(cimxml.named_instance),
}
"""How the value of each parameter is read; None is NULL."""


def _arguments(operation: Operation, request: Request, namespace: str) -> dict[str, Any]:
    """The parameters that were given, by the names of the table. Raises CIMError."""
    known = {name.lower(): name for name in (*operation.required, *operation.optional)}
    found: dict[str, Any] = {}
    for given in request.params.values():
        name = known.get(given.name.lower())
        if name is None:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{request.name} has no parameter {given.name[:MAX_NAME]}")
        found[name] = PARAMETERS[name](given.element)
        if isinstance(found[name], CIMInstanceName | CIMClassName):
            found[name].namespace = namespace
    if "ModifiedInstance" in found and found["ModifiedInstance"] is not None:
        found["ModifiedInstance"].path.namespace = namespace
    for name in operation.required:
        if found.get(name) is None:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{request.name} needs {name}")
    return found


# --- the operations

Pieces = AsyncIterator[str]


async def _listed(items: AsyncIterator[Any], write: Callable[[Any], str]) -> Pieces:
    before = "<IRETURNVALUE>"  # goes with the first item: until then it may be an error
    async for item in items:
        yield before + write(item)
        before = ""
    yield before + "</IRETURNVALUE>"


async def _declared(
    call: Call, classes: Iterable[CIMClass], write: Callable[[CIMClass], str] = answers.declaration
) -> Pieces:
    """In a thread: pywbem takes up to 30 ms for a class of many methods."""
    before = "<IRETURNVALUE>"
    for each in classes:
        yield before + await call.aside.write(write, each)
        before = ""
    yield before + "</IRETURNVALUE>"


async def _each(items: Iterable[Any]) -> AsyncIterator[Any]:
    for item in items:
        yield item


def _get_class(call: Call) -> Pieces:
    found = call.operations.get_class(
        call.namespace,
        call["ClassName"],
        local_only=call.get("LocalOnly", True),
        property_list=call.arguments.get("PropertyList"),
        **call.class_flags(qualifiers=True),
    )
    return _declared(call, [found])


def _enumerate_classes(call: Call) -> Pieces:
    found = call.operations.enumerate_classes(
        call.namespace,
        call.get("ClassName"),
        deep=call.get("DeepInheritance", False),
        local_only=call.get("LocalOnly", True),
        **call.class_flags(qualifiers=True),
    )
    return _declared(call, found)


def _enumerate_class_names(call: Call) -> Pieces:
    deep = call.get("DeepInheritance", False)
    found = call.operations.enumerate_class_names(call.namespace, call.get("ClassName"), deep=deep)
    return _listed(_each(found), answers.class_name)


def _get_qualifier(call: Call) -> Pieces:
    return _listed(_each([call.operations.get_qualifier(call.namespace, call["QualifierName"])]), answers.declaration)


def _enumerate_qualifiers(call: Call) -> Pieces:
    return _listed(_each(call.operations.enumerate_qualifiers(call.namespace)), answers.declaration)


async def _get_instance(call: Call) -> Pieces:
    found = await call.operations.get_instance(call["InstanceName"], **call.as_asked())
    yield f"<IRETURNVALUE>{answers.instance(found)}</IRETURNVALUE>"


def _instances(call: Call, **other: Any) -> AsyncGenerator[Any, None]:
    asked = {"deep": call.get("DeepInheritance", True), **call.as_asked(), **other}
    return call.operations.enumerate_instances(call.namespace, call["ClassName"], **asked)


def _enumerate_instances(call: Call) -> Pieces:
    return _listed(_instances(call), answers.named_instance)


def _enumerate_instance_names(call: Call) -> Pieces:
    found = call.operations.enumerate_instance_names(call.namespace, call["ClassName"])
    return _listed(found, answers.instance_name)


def _from_object(call: Call, name: str) -> Pieces:
    """Associators, References and their names; ``name`` of ``Operations``, of an instance or of a class."""
    source = call["ObjectName"]
    names = name.endswith("names")
    write = answers.object_path if names else answers.object_with_path
    if isinstance(source, CIMInstanceName):
        options = {} if names else call.as_asked()
        found = getattr(call.operations, name)(source, call.filters, **options)
    else:
        of_classes = "associator_classes" if name.startswith("associator") else "reference_classes"
        paths = getattr(call.operations, of_classes)(call.namespace, source.classname, call.filters)
        if not names:
            flags = {**call.class_flags(qualifiers=False), "property_list": call.arguments.get("PropertyList")}
            classes = call.operations.classes_with_path(paths, **flags)
            return _declared(call, classes, lambda item: answers.object_with_path(item, call.host))
        found = _each(paths)
    return _listed(found, lambda item: write(item, call.host))


async def _create_instance(call: Call) -> Pieces:
    made = await call.operations.create_instance(call.namespace, call["NewInstance"])
    call.told = {"outputs": {"InstanceName": auditing.told_value(made)}}
    yield f"<IRETURNVALUE>{answers.instance_name(made)}</IRETURNVALUE>"


async def _modify_instance(call: Call) -> Pieces:
    await call.operations.modify_instance(call["ModifiedInstance"], call.arguments.get("PropertyList"))
    yield ""


async def _delete_instance(call: Call) -> Pieces:
    await call.operations.delete_instance(call["InstanceName"])
    yield ""


# --- pulled


async def _open(call: Call, kind: str, items: AsyncGenerator[Any, None]) -> Pieces:
    if call.get("ContinueOnError", False):
        raise CIMError(CIM_ERR_CONTINUATION_ON_ERROR_NOT_SUPPORTED, "an enumeration ends with its first error")
    most, timeout_s = call.get("MaxObjectCount", 0), call.get("OperationTimeout")
    found, context = await call.enumerations.open(call.owner, kind, items, timeout_s, most)
    async for piece in _pulled(call, kind, found, context):
        yield piece


async def _pull(call: Call, kind: str) -> Pieces:
    most = call["MaxObjectCount"]
    found, context = await call.enumerations.pull(call.owner, kind, call["EnumerationContext"], most)
    async for piece in _pulled(call, kind, found, context):
        yield piece


async def _pulled(call: Call, kind: str, found: list[Any], context: str | None) -> Pieces:
    write = answers.instance_path if kind == "paths" else answers.instance_with_path
    async for piece in _listed(_each(found), lambda item: write(item, call.host)):
        yield piece
    yield answers.pull_state(context, end_of_sequence=context is None)


Condition = Callable[[CIMInstance], bool]


async def _open_enumeration(call: Call, kind: str) -> Pieces:
    condition = await _condition(call, call["ClassName"])
    if condition is not None:
        items = _filtered(call, kind, condition, _instances(call, property_list=None))
    elif kind == "paths":
        items = call.operations.enumerate_instance_names(call.namespace, call["ClassName"])
    else:
        items = _instances(call)
    async for piece in _open(call, kind, items):
        yield piece


async def _open_from(call: Call, kind: str, name: str) -> Pieces:
    """``name``: associators or references, of ``Operations``."""
    condition = await _condition(call, call.get("ResultClass"))
    source, filters = call["InstanceName"], call.filters
    if condition is not None:
        found = getattr(call.operations, name)(source, filters, **call.as_asked() | {"property_list": None})
        items = _filtered(call, kind, condition, found)
    elif kind == "paths":
        items = getattr(call.operations, f"{name.removesuffix('s')}_names")(source, filters)
    else:
        items = getattr(call.operations, name)(source, filters, **call.as_asked())
    async for piece in _open(call, kind, items):
        yield piece


async def _condition(call: Call, class_name: str | None) -> Condition | None:
    """The filter query. ``class_name``: what the results are of, if that is known. Raises CIMError."""
    text, language = call.get("FilterQuery"), call.get("FilterQueryLanguage")
    if text is None and language is None:
        return None
    if text is None or language is None:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, "FilterQuery and FilterQueryLanguage come together")
    classes = call.view.classes
    namespaces = [call.namespace, *(each for each in classes.namespaces if each != call.namespace)]
    if class_name is not None:  # a class that there is not is the operation's to refuse
        namespaces = [each for each in namespaces if classes.get(each, class_name) is not None]
        if not namespaces:
            return lambda _: True
    schema = ClassSchema(classes, namespaces, class_name)
    return await asyncio.to_thread(query.parse_condition, language, text, schema)


async def _filtered(
    call: Call, kind: str, condition: Condition, items: AsyncIterator[CIMInstance]
) -> AsyncGenerator[Any, None]:
    """Those that meet the condition, as they were asked for; they come with all their properties."""
    names = call.get("PropertyList")
    async for item in items:
        if not condition(item):
            continue
        if kind == "paths":
            yield item.path
        else:
            yield item if names is None else call.operations.trimmed(item, names)


async def _close(call: Call) -> Pieces:
    await call.enumerations.close(call.owner, call["EnumerationContext"])
    yield ""


class Operation(NamedTuple):
    """``required`` and ``optional``: names of parameters. ``run``: makes the pieces of the answer."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    run: Callable[[Call], Pieces]
    writes: bool = False


_DETAIL = ("IncludeQualifiers", "IncludeClassOrigin", "PropertyList")
_CLASS_DETAIL = ("LocalOnly", *_DETAIL)
_OPEN = ("FilterQueryLanguage", "FilterQuery", "OperationTimeout", "ContinueOnError", "MaxObjectCount")
_REFERENCE = ("ResultClass", "Role")
_ASSOCIATOR = ("AssocClass", "ResultClass", "Role", "ResultRole")
_INSTANCE_DETAIL = ("IncludeClassOrigin", "PropertyList")
_PULL = ("EnumerationContext", "MaxObjectCount")

OPERATIONS: dict[str, Operation] = {
    "GetClass": Operation(("ClassName",), _CLASS_DETAIL, _get_class),
    "EnumerateClasses": Operation(
        (), ("ClassName", "DeepInheritance", "LocalOnly", "IncludeQualifiers", "IncludeClassOrigin"), _enumerate_classes
    ),
    "EnumerateClassNames": Operation((), ("ClassName", "DeepInheritance"), _enumerate_class_names),
    "GetQualifier": Operation(("QualifierName",), (), _get_qualifier),
    "EnumerateQualifiers": Operation((), (), _enumerate_qualifiers),
    "GetInstance": Operation(("InstanceName",), _CLASS_DETAIL, _get_instance),
    "EnumerateInstances": Operation(("ClassName",), ("DeepInheritance", *_CLASS_DETAIL), _enumerate_instances),
    "EnumerateInstanceNames": Operation(("ClassName",), (), _enumerate_instance_names),
    "Associators": Operation(("ObjectName",), (*_ASSOCIATOR, *_DETAIL), lambda call: _from_object(call, "associators")),
    "AssociatorNames": Operation(("ObjectName",), _ASSOCIATOR, lambda call: _from_object(call, "associator_names")),
    "References": Operation(("ObjectName",), (*_REFERENCE, *_DETAIL), lambda call: _from_object(call, "references")),
    "ReferenceNames": Operation(("ObjectName",), _REFERENCE, lambda call: _from_object(call, "reference_names")),
    "CreateInstance": Operation(("NewInstance",), (), _create_instance, writes=True),
    "ModifyInstance": Operation(
        ("ModifiedInstance",), ("IncludeQualifiers", "PropertyList"), _modify_instance, writes=True
    ),
    "DeleteInstance": Operation(("InstanceName",), (), _delete_instance, writes=True),
    "OpenEnumerateInstances": Operation(
        ("ClassName",),
        ("DeepInheritance", *_CLASS_DETAIL, *_OPEN),
        lambda call: _open_enumeration(call, "instances"),
    ),
    "OpenEnumerateInstancePaths": Operation(("ClassName",), _OPEN, lambda call: _open_enumeration(call, "paths")),
    "OpenReferenceInstances": Operation(
        ("InstanceName",),
        (*_REFERENCE, *_INSTANCE_DETAIL, *_OPEN),
        lambda call: _open_from(call, "instances", "references"),
    ),
    "OpenReferenceInstancePaths": Operation(
        ("InstanceName",), (*_REFERENCE, *_OPEN), lambda call: _open_from(call, "paths", "references")
    ),
    "OpenAssociatorInstances": Operation(
        ("InstanceName",),
        (*_ASSOCIATOR, *_INSTANCE_DETAIL, *_OPEN),
        lambda call: _open_from(call, "instances", "associators"),
    ),
    "OpenAssociatorInstancePaths": Operation(
        ("InstanceName",), (*_ASSOCIATOR, *_OPEN), lambda call: _open_from(call, "paths", "associators")
    ),
    "PullInstancesWithPath": Operation(_PULL, (), lambda call: _pull(call, "instances")),
    "PullInstancePaths": Operation(_PULL, (), lambda call: _pull(call, "paths")),
    "CloseEnumeration": Operation(("EnumerationContext",), (), _close),
}
"""Of DSP0200 1.4. Queries, changes of classes and qualifiers, GetProperty and SetProperty are not supported."""
