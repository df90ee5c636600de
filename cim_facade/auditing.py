"""What the audit log is told of requests: a change before it is done, and what came of it, without secrets.

Parameters are recorded as they came, before anything is done with them: also of a request that is refused.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import secrets
from typing import TYPE_CHECKING, Any, TypeVar

from pywbem import CIM_ERR_FAILED, CIMError, CIMInstance, CIMInstanceName

from cim_facade import cimxml
from cim_facade.cimxml import Element, RequestError
from cim_facade.errors import cim_error
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cim_facade.audit import AuditLog
    from cim_facade.cimxml import Request
    from cim_facade.context import User

T = TypeVar("T")

log = logging.getLogger(__name__)

MAX_TEXT, MAX_ITEMS = 256, 64
"""Characters of a value, and values of a list, that are recorded."""

LEFT_OUT = "(left out)"
_SECRET = re.compile(r"password|secret|credential|passphrase", re.IGNORECASE)
_BEFORE_AT = re.compile(r"//[^/?#\s]*@")


async def change(
    audit: AuditLog, request: Request, user: User, act: Callable[[], Awaitable[T]], told: Callable[[T], dict[str, Any]]
) -> T:
    """Do ``act``, which answers ``request``, and record both; ``told``: its result, as it is recorded."""
    identity = secrets.token_hex(8)
    who = {"user": user.name or "(loopback)", "address": user.login.address}
    await _write(audit, lambda: {"id": identity, "event": "asked", **who, **what_is_asked(request)})
    result: dict[str, Any] = {"error": "interrupted"}
    try:
        done = await act()
        result = told(done)
    except CIMError as error:
        result = {"cim_error": error.status_code, "error": _text(error.status_description)}
        raise
    except EngineError as error:
        result = {"cim_error": cim_error(error).status_code, "error": _text(str(error))}
        raise
    except Exception as error:
        result = {"cim_error": CIM_ERR_FAILED, "error": type(error).__name__}
        raise
    else:
        return done
    finally:
        await _write(audit, lambda: {"id": identity, "event": "answered", **result})


async def _write(audit: AuditLog, record: Callable[[], dict[str, Any]]) -> None:
    """In a thread: a request may be long, and a disk slow."""

    def write() -> None:
        made = record()
        try:
            audit.append(made)
        except OSError as error:  # a full disk shall not keep an administrator from making room
            log.error("not in the audit log: %s: %s", error, json.dumps(made)[:4096])

    await asyncio.to_thread(write)


def what_is_asked(request: Request) -> dict[str, Any]:
    """The operation, what it is asked of, and its parameters without secrets."""
    parameters = {
        _text(each.name): LEFT_OUT if _SECRET.search(each.name) else _told(each.element)
        for each in request.params.values()
    }
    target = None if request.target is None else _text(request.target.to_wbem_uri())
    return {
        "operation": _text(request.name),
        "namespace": _text(request.namespace),
        "target": target,
        "parameters": parameters,
    }


def told_value(value: Any) -> Any:
    """A result as pywbem has it."""
    if isinstance(value, list):
        told = [told_value(each) for each in value[:MAX_ITEMS]]
        return told if len(value) <= MAX_ITEMS else [*told, f"({len(value)} in all)"]
    if isinstance(value, CIMInstanceName):
        return _text(value.to_wbem_uri(), 4 * MAX_TEXT)
    if isinstance(value, CIMInstance):
        return {"class": value.classname}
    return value if isinstance(value, bool | int | None) else _text(str(value))


def _told(element: Element | None, depth: int = 0) -> Any:
    """``depth``: in how many instances written as strings it is."""
    if element is None:
        return None
    if element.name == "VALUE":
        return _embedded(element.text, depth + 1) if element.text.lstrip().startswith("<") else _text(element.text)
    if element.name in ("VALUE.ARRAY", "VALUE.REFARRAY"):
        told = [_told(each, depth) for each in element.children[:MAX_ITEMS]]
        return told if len(element.children) <= MAX_ITEMS else [*told, f"({len(element.children)} in all)"]
    if element.name == "INSTANCE":
        named = {each.attributes.get("NAME", ""): each for each in element.children if "NAME" in each.attributes}
        properties = {
            _text(name): LEFT_OUT if _SECRET.search(name) else _told(each.children[0] if each.children else None, depth)
            for name, each in list(named.items())[:MAX_ITEMS]
        }
        return {"class": _text(element.attributes.get("CLASSNAME", "")), **properties}
    if element.name == "VALUE.NAMEDINSTANCE" and len(element.children) == 2:
        return {"path": _told(element.children[0], depth), "instance": _told(element.children[1], depth)}
    if element.name in ("INSTANCENAME", "CLASSNAME"):
        return _path(element)
    return _told(element.children[-1], depth) if element.children else _text(element.text)  # a path in its namespace


def _path(element: Element) -> str:
    keys = []
    for each in element.children[:MAX_ITEMS]:
        value = each.children[0] if each.children else each
        told = _path(value.children[-1]) if value.children else _text(value.text)
        keys.append(f"{each.attributes.get('NAME', '')}={told}")
    name = element.attributes.get("CLASSNAME", element.attributes.get("NAME", ""))
    return _text(f"{name}.{','.join(keys)}" if keys else name, 4 * MAX_TEXT)


def _embedded(text: str, depth: int) -> Any:
    """An instance as a string has properties, too, of which some may be secrets."""
    if depth > cimxml.MAX_EMBEDDED_DEPTH:  # as it will be refused
        return "(embedded too deep)"
    try:
        return _told(cimxml.tree(text.encode()), depth)
    except RequestError:
        return "(not understood)"


def _text(text: str | None, most: int = MAX_TEXT) -> str:
    text = _BEFORE_AT.sub("//", text or "")
    return text if len(text) <= most else f"{text[:most]}..."
