"""Requests in CIM-XML (DSP0201 2.4) -> ``Request``, with pywbem's objects for its values. Pure.

In two steps: expat makes a tree of elements within the limits below, and refuses document types, entities and
processing instructions before anything is expanded; then the elements that DSP0201 allows in a request are mapped, each
by one function, and everything else is refused. What is wrong with the document is a ``RequestError`` (HTTP status 400
with CIMError, DSP0200 7.3.5); what is wrong with a value is a ``CIMError`` (CIM_ERR_INVALID_PARAMETER).

Values of method parameters stay elements (``Request.params``) until the class says of what type they are:
``parameter_value``. That is how clients that send no PARAMTYPE, or the XML of an embedded instance as a plain string
(pywbemcli 1.4), are understood like those that do.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from xml.parsers import expat

from pywbem import (
    CIM_ERR_INVALID_PARAMETER,
    CIMClassName,
    CIMDateTime,
    CIMError,
    CIMInstance,
    CIMInstanceName,
    CIMProperty,
    cimvalue,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from pywbem import CIMParameter

MAX_REQUEST_BYTES = 2 << 20
MAX_DEPTH = 48
"""Elements within each other: an embedded instance's reference within a list within a call takes some twenty."""

MAX_ELEMENTS = 40_000
MAX_ATTRIBUTES = 16
MAX_EMBEDDED_DEPTH = 4
"""Embedded instances within each other."""

INTEGERS = frozenset(f"{sign}int{bits}" for sign in ("u", "s") for bits in (8, 16, 32, 64))
TYPES = INTEGERS | {"boolean", "string", "char16", "datetime", "real32", "real64"}


class RequestError(Exception):
    """A document that is no request. ``kind``: the value of the CIMError header."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(slots=True)
class Element:
    name: str
    attributes: dict[str, str]
    children: list[Element] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def only(self) -> Element:
        """Its one child."""
        if len(self.children) != 1:
            raise _invalid(f"{self.name} has {len(self.children)} elements instead of one")
        return self.children[0]

    def needed(self, attribute: str) -> str:
        try:
            return self.attributes[attribute]
        except KeyError:
            raise _invalid(f"{self.name} lacks its attribute {attribute}") from None

    def typed(self, attribute: str) -> str:
        """An attribute that names a CIM type."""
        found = self.needed(attribute)
        if found not in TYPES:
            raise _invalid(f"{self.name}: there is no type {found!r}")
        return found


@dataclass(slots=True)
class Request:
    """One operation. ``extrinsic``: the method ``name`` of ``target``; else an operation of DSP0200.

    ``params`` by name, in lower case; None: given without a value. ``big``: reading them is no work for a loop.
    """

    message_id: str
    namespace: str
    name: str
    extrinsic: bool
    target: CIMInstanceName | CIMClassName | None
    params: dict[str, Parameter]
    big: bool = False


@dataclass(slots=True)
class Parameter:
    """``name`` as it was sent. ``element``: its value; None: NULL. ``embedded``: instance, object or None."""

    name: str
    element: Element | None
    embedded: str | None = None


def parse(data: bytes) -> Request:
    """The request in ``data``. Raises RequestError, CIMError."""
    cim = tree(data)
    if cim.name != "CIM":
        raise _invalid(f"the document is a {cim.name}, not a CIM")
    _version(cim, "CIMVERSION", "2.", "unsupported-cim-version")
    _version(cim, "DTDVERSION", "2.", "unsupported-dtd-version")
    message = _child(cim, "MESSAGE")
    _version(message, "PROTOCOLVERSION", "1.", "unsupported-protocol-version")
    message_id = message.needed("ID")
    request = message.only()
    if request.name == "MULTIREQ":
        raise RequestError("multiple-requests-unsupported", "send one request at a time")
    if request.name != "SIMPLEREQ":
        raise RequestError("unsupported-operation", f"a message of {request.name} is not answered here")
    call = request.only()
    if call.name == "IMETHODCALL":
        return _intrinsic(message_id, call)
    if call.name == "METHODCALL":
        return _extrinsic(message_id, call)
    raise _invalid(f"a SIMPLEREQ of {call.name}")


def _intrinsic(message_id: str, call: Element) -> Request:
    name = call.needed("NAME")
    if not call.children:
        raise _invalid("IMETHODCALL has no namespace")
    space = local_namespace(call.children[0])
    params = _parameters(call.children[1:], "IPARAMVALUE")
    return Request(message_id, space, name, extrinsic=False, target=None, params=params)


def _extrinsic(message_id: str, call: Element) -> Request:
    name = call.needed("NAME")
    if not call.children:
        raise _invalid("METHODCALL has no object")
    path = call.children[0]
    if path.name == "LOCALCLASSPATH":
        target = _class_path(path)
    elif path.name == "LOCALINSTANCEPATH":
        target = _instance_path(path)
    else:
        raise _invalid(f"a METHODCALL on a {path.name}")
    params = _parameters(call.children[1:], "PARAMVALUE")
    return Request(message_id, target.namespace, name, extrinsic=True, target=target, params=params)


def _parameters(elements: Iterable[Element], kind: str) -> dict[str, Parameter]:
    params: dict[str, Parameter] = {}
    for each in elements:
        if each.name != kind:
            raise _invalid(f"{each.name} among parameters")
        name = each.needed("NAME")
        if name.lower() in params:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"parameter {name} is given twice")
        embedded = each.attributes.get("EmbeddedObject", each.attributes.get("EMBEDDEDOBJECT"))
        params[name.lower()] = Parameter(name, each.only() if each.children else None, embedded)
    return params


def _version(element: Element, attribute: str, begins: str, kind: str) -> None:
    if not element.needed(attribute).startswith(begins):
        raise RequestError(kind, f"{attribute} is {element.attributes[attribute]!r}, not {begins}x")


# --- documents


def tree(data: bytes) -> Element:
    """The elements of a document within the limits. Raises RequestError."""
    if len(data) > MAX_REQUEST_BYTES:
        raise RequestError("request-not-valid", f"more than {MAX_REQUEST_BYTES} bytes")
    reader = _Reader()
    return reader.read(data)


class _Reader:
    """Builds the tree from expat's events."""

    def __init__(self) -> None:
        self._open: list[Element] = []
        self._root: Element | None = None
        self._count = 0

    def read(self, data: bytes) -> Element:
        parser = expat.ParserCreate("utf-8")  # DSP0200 7.2: whatever its declaration says
        parser.buffer_text = True
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text
        parser.StartDoctypeDeclHandler = self._refuse("a document type")
        parser.EntityDeclHandler = self._refuse("an entity")
        parser.SkippedEntityHandler = self._refuse("an entity")
        parser.ProcessingInstructionHandler = self._refuse("a processing instruction")
        try:
            parser.Parse(data, True)
        except (expat.ExpatError, ValueError, LookupError) as error:  # an encoding that is unknown, or not its own
            raise RequestError("request-not-well-formed", str(error)) from error
        assert self._root is not None
        return self._root

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        self._count += 1
        if self._count > MAX_ELEMENTS:
            raise _invalid(f"more than {MAX_ELEMENTS} elements")
        if len(self._open) >= MAX_DEPTH:
            raise _invalid(f"elements are more than {MAX_DEPTH} deep")
        if len(attributes) > MAX_ATTRIBUTES:
            raise _invalid(f"{name} has more than {MAX_ATTRIBUTES} attributes")
        element = Element(name, attributes)
        if self._open:
            self._open[-1].children.append(element)
        else:
            self._root = element
        self._open.append(element)

    def _end(self, name: str) -> None:
        element = self._open.pop()
        if element.children and element.text.strip():
            raise _invalid(f"text among the elements of {name}")

    def _text(self, text: str) -> None:
        self._open[-1].texts.append(text)

    def _refuse(self, what: str) -> Callable[..., None]:
        def handler(*_: Any) -> None:
            raise RequestError("request-not-valid", f"a request has no {what}")

        return handler


def _invalid(why: str) -> RequestError:
    return RequestError("request-not-valid", why)


def _child(element: Element, name: str) -> Element:
    child = element.only()
    if child.name != name:
        raise _invalid(f"{child.name} in {element.name} instead of {name}")
    return child


# --- names


def local_namespace(element: Element) -> str:
    """LOCALNAMESPACEPATH."""
    if element.name != "LOCALNAMESPACEPATH" or not element.children:
        raise _invalid(f"{element.name} instead of a LOCALNAMESPACEPATH of NAMESPACEs")
    if any(each.name != "NAMESPACE" for each in element.children):
        raise _invalid("LOCALNAMESPACEPATH has more than NAMESPACEs")
    return "/".join(each.needed("NAME") for each in element.children)


def _namespace(element: Element) -> str:
    """NAMESPACEPATH: the namespace. The host is whatever the client calls us."""
    if element.name != "NAMESPACEPATH" or [each.name for each in element.children] != ["HOST", "LOCALNAMESPACEPATH"]:
        raise _invalid(f"{element.name} instead of a NAMESPACEPATH of host and namespace")
    return local_namespace(element.children[1])


def class_name(element: Element) -> CIMClassName:
    """CLASSNAME."""
    if element.name != "CLASSNAME":
        raise _invalid(f"{element.name} instead of CLASSNAME")
    return CIMClassName(element.needed("NAME"))


def _class_path(element: Element) -> CIMClassName:
    space, name = _pair(element)
    found = class_name(name)
    found.namespace = local_namespace(space) if element.name == "LOCALCLASSPATH" else _namespace(space)
    return found


def _instance_path(element: Element) -> CIMInstanceName:
    space, name = _pair(element)
    found = instance_name(name)
    found.namespace = local_namespace(space) if element.name == "LOCALINSTANCEPATH" else _namespace(space)
    return found


def _pair(element: Element) -> tuple[Element, Element]:
    if len(element.children) != 2:
        raise _invalid(f"{element.name} has {len(element.children)} elements instead of two")
    return element.children[0], element.children[1]


def instance_name(element: Element) -> CIMInstanceName:
    """INSTANCENAME. A single key may come without its name: then that is ''."""
    if element.name != "INSTANCENAME":
        raise _invalid(f"{element.name} instead of INSTANCENAME")
    keys: dict[str, Any] = {}
    seen: set[str] = set()
    for each in element.children:
        if each.name == "KEYBINDING":
            name, value = each.needed("NAME"), each.only()
        elif len(element.children) == 1:
            name, value = "", each
        else:
            raise _invalid(f"{each.name} among the keys of an INSTANCENAME")
        if name.lower() in seen:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"key {name} is given twice")
        seen.add(name.lower())
        keys[name] = _key_value(value)
    return CIMInstanceName(element.needed("CLASSNAME"), keybindings=keys)


def _key_value(element: Element) -> Any:
    if element.name == "VALUE.REFERENCE":
        return reference(element)
    if element.name != "KEYVALUE" or element.children:
        raise _invalid(f"{element.name} as the value of a key")
    kind = element.attributes.get("VALUETYPE", "string")
    if kind == "string":
        return element.text
    if kind == "boolean":
        return _scalar(element.text, "boolean")
    if kind == "numeric":
        cim_type = element.attributes.get("TYPE")
        return _scalar(element.text, cim_type) if cim_type in TYPES else _number(element.text)
    raise _invalid(f"there is no VALUETYPE {kind!r}")


def reference(element: Element) -> CIMInstanceName | CIMClassName:
    """VALUE.REFERENCE, in any of its forms. Hosts are left out."""
    inner = element.only()
    if inner.name == "INSTANCENAME":
        return instance_name(inner)
    if inner.name in ("LOCALINSTANCEPATH", "INSTANCEPATH"):
        return _instance_path(inner)
    if inner.name == "CLASSNAME":
        return class_name(inner)
    if inner.name in ("LOCALCLASSPATH", "CLASSPATH"):
        return _class_path(inner)
    raise _invalid(f"a reference to a {inner.name}")


# --- values


def _number(text: str) -> int | float:
    text = text.strip()
    for kind in ("sint64", "uint64"):
        try:
            return int(_scalar(text, kind))
        except CIMError:
            continue
    return float(_scalar(text, "real64"))


def _scalar(text: str, cim_type: str) -> Any:
    """The value of a VALUE or KEYVALUE. Raises CIMError."""
    if cim_type == "string":
        return text
    try:
        if cim_type == "char16":
            if len(text) != 1:
                raise ValueError("not one character")
            return cimvalue(text, "char16")
        text = text.strip()
        if cim_type == "boolean":
            return {"true": True, "false": False}[text.lower()]
        if cim_type == "datetime":
            return CIMDateTime(text)
        if cim_type in INTEGERS:
            return cimvalue(_integer(text), cim_type)
        return cimvalue(_real(text), cim_type)
    except (ValueError, KeyError, OverflowError) as error:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{_short(text)} is not a {cim_type}") from error


def _integer(text: str) -> int:
    """DSP0201 4.2: decimal, or hexadecimal behind 0x, with a sign. Not what else ``int`` takes."""
    digits = text.lstrip("+-")
    if len(text) > 32 or len(text) - len(digits) > 1 or not digits.isascii():
        raise ValueError(text)
    if digits[:2] in ("0x", "0X") and digits[2:].isalnum():
        return int(text, 16)
    if not digits.isdigit():
        raise ValueError(text)
    return int(text)


def _real(text: str) -> float:
    if len(text) > 64 or not text.isascii() or "_" in text:
        raise ValueError(text)
    return float(text)


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:40] + "...")


def value(element: Element | None, cim_type: str, *, array: bool = False) -> Any:
    """What VALUE, VALUE.ARRAY, VALUE.NULL, VALUE.REFERENCE or VALUE.REFARRAY says, as that type. Raises CIMError.

    None is NULL. One VALUE where an array belongs is refused, and the other way round.
    """
    if element is None:
        return None
    if array:
        if element.name == "VALUE.ARRAY" and not element.children:
            return []  # pywbem 1.9 sends an empty array of references so, too
        if element.name != ("VALUE.REFARRAY" if cim_type == "reference" else "VALUE.ARRAY"):
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{element.name} where an array of {cim_type} belongs")
        return [None if each.name == "VALUE.NULL" else value(each, cim_type) for each in element.children]
    if cim_type == "reference":
        if element.name == "VALUE.REFERENCE":
            return reference(element)
    elif element.name == "VALUE":
        if element.children:
            raise _invalid(f"{element.children[0].name} in a VALUE")
        return _scalar(element.text, cim_type)
    raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{element.name} where a {cim_type} belongs")


def parameter_value(given: Parameter, declared: CIMParameter) -> Any:
    """The value of a method's parameter in the type that its class declares. Raises CIMError.

    An embedded instance comes as a string of XML, said to be one (EmbeddedObject) or not.
    """
    embedded = declared.embedded_object is not None
    if given.embedded not in (None, "instance", "object") or (given.embedded and not embedded):
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"parameter {given.name} is not an embedded object")
    try:
        found = value(given.element, declared.type, array=declared.is_array)
    except CIMError as error:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"{given.name}: {error.status_description}") from error
    if not embedded or found is None:
        return found
    if declared.is_array:
        return [None if each is None else embedded_instance(each) for each in found]
    return embedded_instance(found)


def embedded_instance(text: str, depth: int = 1) -> CIMInstance:
    """The instance whose XML is ``text``. Raises CIMError."""
    if depth > MAX_EMBEDDED_DEPTH:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"instances are embedded more than {MAX_EMBEDDED_DEPTH} deep")
    try:
        return instance(tree(text.encode()), depth)
    except RequestError as error:
        raise CIMError(CIM_ERR_INVALID_PARAMETER, f"an embedded instance is not understood: {error}") from error


def instance(element: Element, depth: int = 0) -> CIMInstance:
    """INSTANCE. Raises RequestError, CIMError."""
    if element.name != "INSTANCE":
        raise _invalid(f"{element.name} instead of INSTANCE")
    found = CIMInstance(element.needed("CLASSNAME"))
    for each in element.children:
        if each.name == "QUALIFIER":
            continue  # of instances they mean nothing (DSP0200 1.4)
        item = _property(each, depth)
        if item.name in found.properties:
            raise CIMError(CIM_ERR_INVALID_PARAMETER, f"property {item.name} is given twice")
        found.properties[item.name] = item
    return found


def named_instance(element: Element) -> CIMInstance:
    """VALUE.NAMEDINSTANCE: the instance, with its path."""
    if element.name != "VALUE.NAMEDINSTANCE":
        raise _invalid(f"{element.name} instead of VALUE.NAMEDINSTANCE")
    name, content = _pair(element)
    found = instance(content)
    found.path = instance_name(name)
    return found


def _property(element: Element, depth: int) -> CIMProperty:
    name = element.needed("NAME")
    kinds = {"PROPERTY": False, "PROPERTY.ARRAY": True, "PROPERTY.REFERENCE": False}
    if element.name not in kinds:
        raise _invalid(f"{element.name} in an INSTANCE")
    array = kinds[element.name]
    cim_type = "reference" if element.name == "PROPERTY.REFERENCE" else element.typed("TYPE")
    inner = [each for each in element.children if each.name != "QUALIFIER"]
    if len(inner) > 1:
        raise _invalid(f"property {name} has {len(inner)} values")
    found = value(inner[0] if inner else None, cim_type, array=array)
    embedded = element.attributes.get("EmbeddedObject", element.attributes.get("EMBEDDEDOBJECT"))
    if embedded and found is not None:
        if cim_type != "string" or embedded not in ("instance", "object"):
            raise _invalid(f"property {name} is no embedded object")
        texts = found if array else [found]
        made = [None if each is None else embedded_instance(each, depth + 1) for each in texts]
        found = made if array else made[0]
    return CIMProperty(name, found, type=cim_type, is_array=array, embedded_object=embedded or None)
