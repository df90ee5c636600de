"""Results as CIM-XML (DSP0201 2.4), as strings. Pure.

Instances and their paths come by the ten thousand: they are written here, ten times as fast as by pywbem's ``tocimxml``
and with the same elements (``tests/properties/test_cim_answers.py``). Characters that XML cannot carry are replaced,
and a carriage return is escaped so that a reader keeps it. Classes and qualifiers are pywbem's business.

An element without content has its end tag: sblim's wbemcli (1.6.3) does not understand ``<PROPERTY NAME="P"/>``.
"""

from __future__ import annotations

import functools
import re
from typing import TYPE_CHECKING, Any

from pywbem import CIMClassName, CIMError, CIMInstance, CIMInstanceName, CIMParameter, CIMProperty, Real32

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pywbem import CIMClass, CIMQualifierDeclaration

MAX_ERROR_TEXT = 2000

_UNSAFE = re.compile('[&<>"\r\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]')
_EMPTY = re.compile(r"<([A-Z.]+)([^<>]*)/>")
_ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"}


def escape(text: str) -> str:
    """Of an element's text or an attribute's value."""
    if _UNSAFE.search(text) is None:
        return text
    return _UNSAFE.sub(lambda found: _ESCAPES.get(found[0], "\ufffd"), text)


# --- documents


def begin(message_id: str, name: str, *, extrinsic: bool) -> str:
    """What an answer begins with."""
    kind = "METHODRESPONSE" if extrinsic else "IMETHODRESPONSE"
    return (
        '<?xml version="1.0" encoding="utf-8" ?>\n<CIM CIMVERSION="2.0" DTDVERSION="2.0">'
        f'<MESSAGE ID="{escape(message_id)}" PROTOCOLVERSION="1.0"><SIMPLERSP><{kind} NAME="{escape(name)}">'
    )


def end(*, extrinsic: bool) -> str:
    kind = "METHODRESPONSE" if extrinsic else "IMETHODRESPONSE"
    return f"</{kind}></SIMPLERSP></MESSAGE></CIM>\n"


def error(found: CIMError) -> str:
    """ERROR: instead of a result."""
    text = (found.status_description or "")[:MAX_ERROR_TEXT]
    inner = "".join(map(instance, found.instances or ()))
    return f'<ERROR CODE="{found.status_code}" DESCRIPTION="{escape(text)}">{inner}</ERROR>'


def pull_state(context: str | None, *, end_of_sequence: bool) -> str:
    """The output parameters of an operation that opens or pulls."""
    value = "" if context is None else f"<VALUE>{escape(context)}</VALUE>"
    over = _atomic(end_of_sequence)
    return (
        f'<PARAMVALUE NAME="EndOfSequence" PARAMTYPE="boolean"><VALUE>{over}</VALUE></PARAMVALUE>'
        f'<PARAMVALUE NAME="EnumerationContext" PARAMTYPE="string">{value}</PARAMVALUE>'
    )


def method_result(value: Any, value_type: str, outputs: Iterable[CIMParameter]) -> str:
    """RETURNVALUE and PARAMVALUEs. ``outputs`` have their values."""
    written = "" if value is None else f"<VALUE>{_atomic(value)}</VALUE>"
    return f'<RETURNVALUE PARAMTYPE="{value_type}">{written}</RETURNVALUE>' + "".join(map(_parameter, outputs))


# --- names


def class_name(name: str) -> str:
    return f'<CLASSNAME NAME="{escape(name)}"/>'


@functools.lru_cache(maxsize=64)
def _local_namespace(namespace: str) -> str:
    parts = "".join(f'<NAMESPACE NAME="{escape(part)}"/>' for part in namespace.split("/"))
    return f"<LOCALNAMESPACEPATH>{parts}</LOCALNAMESPACEPATH>"


@functools.lru_cache(maxsize=256)
def _namespace(host: str, namespace: str) -> str:
    return f"<NAMESPACEPATH><HOST>{escape(host)}</HOST>{_local_namespace(namespace)}</NAMESPACEPATH>"


def instance_name(path: CIMInstanceName) -> str:
    """INSTANCENAME."""
    keys = "".join(
        [f'<KEYBINDING NAME="{name}">{_key(value)}</KEYBINDING>' for name, value in path.keybindings.items()]
    )
    return f'<INSTANCENAME CLASSNAME="{path.classname}">{keys}</INSTANCENAME>'


def instance_path(path: CIMInstanceName, host: str) -> str:
    """INSTANCEPATH."""
    return f"<INSTANCEPATH>{_namespace(host, path.namespace)}{instance_name(path)}</INSTANCEPATH>"


def class_path(path: CIMClassName, host: str) -> str:
    """CLASSPATH."""
    return f"<CLASSPATH>{_namespace(host, path.namespace)}{class_name(path.classname)}</CLASSPATH>"


def object_path(path: CIMInstanceName | CIMClassName, host: str) -> str:
    """OBJECTPATH."""
    inner = class_path(path, host) if isinstance(path, CIMClassName) else instance_path(path, host)
    return f"<OBJECTPATH>{inner}</OBJECTPATH>"


def _key(value: Any) -> str:
    if isinstance(value, str):
        return f'<KEYVALUE VALUETYPE="string" TYPE="string">{escape(value)}</KEYVALUE>'
    if isinstance(value, CIMInstanceName):
        return _reference(value)
    if isinstance(value, bool):
        return f'<KEYVALUE VALUETYPE="boolean" TYPE="boolean">{_atomic(value)}</KEYVALUE>'
    cim_type = getattr(value, "cimtype", None)
    if cim_type == "datetime":
        return f'<KEYVALUE VALUETYPE="string" TYPE="datetime">{value}</KEYVALUE>'
    typed = "" if cim_type is None else f' TYPE="{cim_type}"'
    return f'<KEYVALUE VALUETYPE="numeric"{typed}>{_atomic(value)}</KEYVALUE>'


def _reference(path: CIMInstanceName | CIMClassName) -> str:
    if isinstance(path, CIMClassName):
        inner = class_name(path.classname)
        if path.namespace is not None:
            inner = f"<LOCALCLASSPATH>{_local_namespace(path.namespace)}{inner}</LOCALCLASSPATH>"
    elif path.namespace is None:
        inner = instance_name(path)
    elif path.host is not None:
        inner = instance_path(path, path.host)
    else:
        inner = f"<LOCALINSTANCEPATH>{_local_namespace(path.namespace)}{instance_name(path)}</LOCALINSTANCEPATH>"
    return f"<VALUE.REFERENCE>{inner}</VALUE.REFERENCE>"


# --- instances


def instance(found: CIMInstance) -> str:
    """INSTANCE."""
    inner = "".join(map(_property, found.properties.values()))
    return f'<INSTANCE CLASSNAME="{found.classname}">{inner}</INSTANCE>'


def written_properties(found: CIMInstance) -> dict[str, str]:
    """The elements of its properties, by name in lower case: for instances that differ in a few of them."""
    return {each.name.lower(): _property(each) for each in found.properties.values()}


def instance_of(class_name: str, properties: Iterable[str]) -> str:
    """INSTANCE, of the elements of its properties."""
    return f'<INSTANCE CLASSNAME="{class_name}">{"".join(properties)}</INSTANCE>'


def named_instance(found: CIMInstance) -> str:
    """VALUE.NAMEDINSTANCE."""
    return f"<VALUE.NAMEDINSTANCE>{instance_name(found.path)}{instance(found)}</VALUE.NAMEDINSTANCE>"


def instance_with_path(found: CIMInstance, host: str) -> str:
    """VALUE.INSTANCEWITHPATH."""
    return f"<VALUE.INSTANCEWITHPATH>{instance_path(found.path, host)}{instance(found)}</VALUE.INSTANCEWITHPATH>"


def object_with_path(found: CIMInstance | CIMClass, host: str) -> str:
    """VALUE.OBJECTWITHPATH."""
    if isinstance(found, CIMInstance):
        inner = f"{instance_path(found.path, host)}{instance(found)}"
    else:
        inner = f"{class_path(found.path, host)}{declaration(found)}"
    return f"<VALUE.OBJECTWITHPATH>{inner}</VALUE.OBJECTWITHPATH>"


def declaration(found: CIMClass | CIMQualifierDeclaration) -> str:
    """CLASS or QUALIFIER.DECLARATION."""
    return _EMPTY.sub(r"<\1\2></\1>", found.tocimxmlstr())


def _property(each: CIMProperty) -> str:
    attributes = f' NAME="{each.name}"'
    if each.type == "reference":
        kind = "PROPERTY.REFERENCE"
        if each.reference_class is not None:
            attributes += f' REFERENCECLASS="{each.reference_class}"'
    else:
        kind = "PROPERTY.ARRAY" if each.is_array else "PROPERTY"
        attributes += f' TYPE="{each.type}"'
    if each.class_origin is not None:
        attributes += f' CLASSORIGIN="{each.class_origin}"'
    if each.propagated is not None:
        attributes += f' PROPAGATED="{str(each.propagated).lower()}"'
    if each.embedded_object is not None:
        attributes += f' EmbeddedObject="{each.embedded_object}"'
    if each.value is None:
        return f"<{kind}{attributes}></{kind}>"
    return f"<{kind}{attributes}>{_value(each.value)}</{kind}>"


def _parameter(each: CIMParameter) -> str:
    attributes = f' NAME="{each.name}" PARAMTYPE="{each.type}"'
    if each.embedded_object is not None:
        attributes += f' EmbeddedObject="{each.embedded_object}"'
    if each.value is None:
        return f"<PARAMVALUE{attributes}></PARAMVALUE>"
    inner = _references(each.value) if each.type == "reference" and each.is_array else _value(each.value)
    return f"<PARAMVALUE{attributes}>{inner}</PARAMVALUE>"


def _references(paths: list[CIMInstanceName | None]) -> str:
    inner = "".join("<VALUE.NULL/>" if path is None else _reference(path) for path in paths)
    return f"<VALUE.REFARRAY>{inner}</VALUE.REFARRAY>"


def _value(value: Any) -> str:
    if isinstance(value, list):
        inner = "".join(["<VALUE.NULL/>" if each is None else f"<VALUE>{_atomic(each)}</VALUE>" for each in value])
        return f"<VALUE.ARRAY>{inner}</VALUE.ARRAY>"
    if isinstance(value, CIMInstanceName | CIMClassName):
        return _reference(value)
    return f"<VALUE>{_atomic(value)}</VALUE>"


def _atomic(value: Any) -> str:
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, CIMInstance):
        return escape(instance(value))
    if isinstance(value, float):
        return _real(f"{value:.{11 if isinstance(value, Real32) else 17}G}")
    return str(value)


def _real(text: str) -> str:
    """DSP0201 4.2.7: INF, -INF, NaN, or a significand with a point."""
    if "." in text or "INF" in text:
        return text
    significand, exponent_sign, exponent = text.partition("E")
    return "NaN" if text == "NAN" else f"{significand}.0{exponent_sign}{exponent}"
