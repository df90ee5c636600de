"""How a handler answers: refusals and engine errors become return codes, and references become elements.

A reference that leads nowhere is the client's mistake in meaning, not in form, so it has a return code, too.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from cim_facade import elements
from cim_facade.errors import told
from cim_facade.methods.requests import Refused, invalid, unsupported
from cim_facade.value_maps import SyncType
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Element
    from cim_facade.methods.requests import Kind
    from cim_facade.provider import MethodHandler, Parameters

log = logging.getLogger(__name__)

Answer = tuple[int, dict[str, Any]]


def answering(handler: Callable[[View, CIMInstanceName, Parameters], Awaitable[Answer]]) -> MethodHandler:
    """``handler``, with the code of what it is refused. Why is in the log: these methods have no place for it."""

    @functools.wraps(handler)
    async def answer(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
        try:
            return await handler(view, path, params)
        except Refused as refused:
            code, text = refused.code, str(refused)
        except EngineError as error:
            code, text = told(error).code, str(error)
        finally:
            view.forget()
        log.info("%s of %s for %s: %d, %s", handler.__name__, path.classname, view.user.name, code, text)
        return code, {}

    return answer


async def element(view: View, params: Parameters, name: str) -> Element:
    """The volume or snapshot that a parameter refers to, which is required."""
    path = params.get(name)
    if path is None:
        raise invalid(f"{name} is required")
    return await element_at(view, path, name)


async def element_at(view: View, path: CIMInstanceName | None, name: str) -> Element:
    if path is None:
        raise invalid(f"{name} has an element that is NULL")
    found = await elements.find(view, path)
    if found is None:
        raise invalid(f"{name}: there is no such storage volume")
    return found


async def volume_name(view: View, params: Parameters, name: str) -> str:
    """Of a live volume that a parameter refers to."""
    found = await element(view, params, name)
    return require_volume(found, name)


def require_volume(found: Element, name: str) -> str:
    if found.snapshot is not None:
        raise unsupported(f"{name}: {found.volume.name}@{found.snapshot.name} is a snapshot, not a volume of its own")
    return found.volume.name


def require_copied(found: Element, kind: Kind, name: str, *, onto: bool) -> None:
    """What a snapshot can be the source of: a new full clone. ``onto``: a target was handed in."""
    if found.snapshot is not None and (kind.sync_type is not SyncType.CLONE or onto):
        what = (
            "a copy in an existing volume" if kind.sync_type is SyncType.CLONE else f"a {kind.sync_type.name.lower()}"
        )
        raise unsupported(f"{name}: {found.volume.name}@{found.snapshot.name} is a snapshot, and {what} is of a volume")


async def instance(view: View, path: CIMInstanceName) -> CIMInstance | None:
    """What any reference leads to, by the provider of its class."""
    for provider in view.providers(path.namespace, path.classname):
        if provider.class_name.lower() == path.classname.lower():
            return await provider.instance(view, path.keybindings)
    return None


async def check_reference(view: View, params: Parameters, name: str) -> bool:
    """Whether a parameter was given; what it refers to must be there."""
    path = params.get(name)
    if path is None:
        return False
    if await instance(view, path) is None:
        raise invalid(f"{name}: there is no such {path.classname}")
    return True


async def check_space(view: View, params: Parameters, pool: str, goal: str, *, targets: bool) -> None:
    """A pool and a goal for new targets: what is named must be there, and with existing targets neither may be.

    There is one pool and one way of keeping data, so whatever is there can be had.
    """
    named = [name for name in (pool, goal) if params.get(name) is not None]
    if targets and named:
        raise invalid(f"{' and '.join(named)} shall be NULL when targets are supplied")
    for name in named:
        await check_reference(view, params, name)
    if pool in named and not elements.same(params[pool], (await view.paths()).pool()):
        raise invalid(f"{pool}: volumes are made of the concrete pool")
