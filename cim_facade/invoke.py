"""Extrinsic methods: parameters from a request in the types of the class, the handler, its results back.

What a client can get wrong in form is refused here with a CIM error, before anything is done: an instance, method or
parameter that does not exist, a value of another type, a reference to another class than declared or to a namespace
that there is not, an embedded instance that does not fit its class (methods.md: errors of type and shape). What is
right in form and wrong in meaning, a dangling reference among it, is the handler's to answer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pywbem import (
    CIM_ERR_ACCESS_DENIED,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_METHOD_NOT_AVAILABLE,
    CIM_ERR_METHOD_NOT_FOUND,
    CIM_ERR_NOT_FOUND,
    CIMClassName,
    CIMError,
    CIMInstance,
    CIMInstanceName,
    CIMMethod,
    CIMParameter,
    NocaseDict,
    cimvalue,
)

from cim_facade import cimxml

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cim_facade.aside import Aside
    from cim_facade.context import View
    from cim_facade.operations import Operations
    from cim_facade.registry import Registry
    from cim_facade.repository import ClassRepository

READER_VERBS = ("Get", "Convert")
"""What methods begin with that change nothing; readers may call them."""


class Methods:
    """See the module. One for each request."""

    def __init__(self, view: View, classes: ClassRepository, registry: Registry, operations: Operations) -> None:
        self._view = view
        self._classes = classes
        self._registry = registry
        self._operations = operations

    async def invoke(
        self,
        target: CIMInstanceName | CIMClassName,
        name: str,
        given: Mapping[str, cimxml.Parameter],
        aside: Aside | None = None,
    ) -> tuple[Any, str, list[CIMParameter]]:
        """The return value, its type, and the output parameters that have a value.

        ``target`` has its namespace. ``given``: by lower-case name; read ``aside`` if that is a big thing.
        """
        namespace, class_name = target.namespace, target.classname
        of = self._classes.get(namespace, class_name)
        if of is None:
            raise CIMError(CIM_ERR_NOT_FOUND, f"there is no class {class_name} in {namespace}")
        method = of.methods.get(name)
        if method is None:
            raise CIMError(CIM_ERR_METHOD_NOT_FOUND, f"class {class_name} has no method {name}")
        if not self._view.user.administrator and not method.name.startswith(READER_VERBS):
            raise CIMError(CIM_ERR_ACCESS_DENIED, f"{self._view.user.name} may read only")
        if isinstance(target, CIMClassName):
            if "Static" not in method.qualifiers:
                raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{method.name} is a method of instances of {class_name}")
            path = CIMInstanceName(class_name, namespace=namespace)
        else:
            path = (await self._operations.get_instance(target)).path
        if aside is not None:
            parameters = await aside.read(self._inputs, namespace, method, given)
        else:
            parameters = self._inputs(namespace, method, given)
        handler = self._registry.method(self._classes, namespace, class_name, method.name)
        if handler is None:
            raise CIMError(CIM_ERR_METHOD_NOT_AVAILABLE, f"{class_name}.{method.name} is not implemented")
        value, outputs = await handler(self._view, path, parameters)
        return cimvalue(value, method.return_type), method.return_type, _outputs(method, outputs)

    def _inputs(self, namespace: str, method: CIMMethod, given: Mapping[str, cimxml.Parameter]) -> NocaseDict:
        found = NocaseDict()
        for parameter in given.values():
            declared = method.parameters.get(parameter.name)
            if declared is None:
                raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{method.name} has no parameter {parameter.name}")
            value = cimxml.parameter_value(parameter, declared)
            if not _is_input(declared):
                if value is not None:
                    raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{declared.name} is an output of {method.name}")
                continue
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, CIMInstanceName | CIMClassName):
                    self._check_reference(namespace, each, declared)
                elif isinstance(each, CIMInstance):
                    self._check_embedded(namespace, each, declared)
            found[declared.name] = value
        return found

    def _check_reference(self, namespace: str, path: CIMInstanceName | CIMClassName, declared: CIMParameter) -> None:
        """That the class fits; also gives the path its namespace. Whether the instance exists is not asked."""
        where = namespace if path.namespace is None else self._classes.namespace(path.namespace)
        if where is None:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{declared.name}: there is no namespace {path.namespace}")
        path.namespace = where
        if isinstance(path, CIMClassName):
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{declared.name} is the class {path.classname}, not an instance")
        if not self._classes.is_a(where, path.classname, declared.reference_class):
            raise CIMError(
                CIM_ERR_INVALID_PARAMETER,
                f"{declared.name} is a {path.classname}, which is no {declared.reference_class}",
            )

    def _check_embedded(self, namespace: str, instance: CIMInstance, declared: CIMParameter) -> None:
        """That its class fits, and its properties the class."""
        base = declared.qualifiers.get("EmbeddedInstance")
        of = self._classes.get(namespace, instance.classname)
        if of is None or (base is not None and not self._classes.is_a(namespace, instance.classname, base.value)):
            wanted = "known" if base is None else f"a {base.value}"
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{declared.name}: class {instance.classname} is not {wanted}")
        for each in instance.properties.values():
            of_class = of.properties.get(each.name)
            if of_class is None or (of_class.type, of_class.is_array) != (each.type, each.is_array):
                raise CIMError(
                    CIM_ERR_INVALID_PARAMETER,
                    f"{declared.name}: {instance.classname} has no property {each.name} of type {each.type}",
                )


def _is_input(declared: CIMParameter) -> bool:
    qualifier = declared.qualifiers.get("In")
    if qualifier is not None:
        return bool(qualifier.value)
    return True


def _is_output(declared: CIMParameter) -> bool:
    qualifier = declared.qualifiers.get("Out")
    return qualifier is not None and bool(qualifier.value)


def _outputs(method: CIMMethod, outputs: Mapping[str, Any]) -> list[CIMParameter]:
    """In the order of the class; those that are NULL are left out."""
    given = NocaseDict(outputs)
    made = []
    for declared in method.parameters.values():
        if not _is_output(declared):
            assert declared.name not in given, f"{method.name}: {declared.name} is no output"
            continue
        value = given.pop(declared.name, None)
        if value is None:
            continue  # one without a value is NULL, too, but pywbemcli 1.4.1 ends with a traceback at a NULL reference
        if isinstance(value, list | tuple):
            value = [cimvalue(each, declared.type) for each in value]
        else:
            value = cimvalue(value, declared.type)
        made.append(
            CIMParameter(
                declared.name,
                declared.type,
                reference_class=declared.reference_class,
                is_array=declared.is_array,
                value=value,
                embedded_object=declared.embedded_object,
            )
        )
    assert not given, f"{method.name} has no parameters {list(given)}"
    return made
