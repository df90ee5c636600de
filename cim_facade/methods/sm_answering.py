"""How methods of MSFT_SM* answer: their return codes, ExtendedStatus with the reason, credentials, references.

They have no In Use, but Object Not Found for a reference that leads nowhere, Access denied, not enough resources, and
Cache out of date for a peer that is another one than the client knows.
"""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING, Any

from cim_facade import sm_objects
from cim_facade.auth import LockedOut, Login, Overloaded
from cim_facade.errors import ReturnCode, SmCode, told, told_of
from cim_facade.methods.making import JobFailed
from cim_facade.methods.requests import Refused, invalid, unsupported
from cim_facade.namespaces import STORAGE_MANAGEMENT
from engine.errors import EngineError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Element
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters

log = logging.getLogger(__name__)

ADMINISTRATOR_ROLE = "admin"
SMI_S_PROVIDER = 2
"""Of MSFT_SMExtendedStatus.SMErrorSource."""


def not_found(text: str) -> Refused:
    return Refused(SmCode.OBJECT_NOT_FOUND, text)


def denied(text: str) -> Refused:
    return Refused(SmCode.ACCESS_DENIED, text)


def sm_answering(handler: Callable[[View, CIMInstanceName, Parameters], Awaitable[Answer]]) -> MethodHandler:
    """``handler``, with the code of what it is refused, and why in ExtendedStatus."""

    @functools.wraps(handler)
    async def answer(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
        try:
            return await handler(view, path, params)
        except JobFailed as failed:
            code, text = told_of(failed.error).sm_code, str(failed)
        except Refused as refused:
            code, text = refused.code, str(refused)
        except EngineError as error:
            code, text = told(error).sm_code, str(error)
        finally:
            view.forget()
        code = ReturnCode.FAILED if code == ReturnCode.IN_USE else code
        log.info("%s of %s for %s: %d, %s", handler.__name__, path.classname, view.user.name, code, text)
        return code, {"ExtendedStatus": extended_status(view, handler.__name__, code, text)}

    return answer


def extended_status(view: View, operation: str, code: int, text: str) -> CIMInstance:
    status = view.make(
        STORAGE_MANAGEMENT,
        "MSFT_SMExtendedStatus",
        Description=text,
        Operation=operation,
        ProviderName="twinvol",
        StatusCode=code,
        SMErrorSource=SMI_S_PROVIDER,
        SMErrorCode=code,
        SMMessage=text,
        SMDetails=text,
    )
    status.path = None
    return status


async def check_credentials(view: View, params: Parameters, *, peer: str | None = None) -> None:
    """A username and a password that were given must be those of an administrator of this pool, or of ``peer``.

    Absent, the call counts as what it came as, and towards a peer as what the pairing makes of it.
    """
    name, password = params.get("username"), params.get("password")
    if name is None and password is None:
        return
    if name is None or password is None:
        raise invalid("username and password go together")
    if not view.user.secure:
        raise denied("a password is taken over HTTPS only, or from this machine")
    if peer is not None:
        role = await view.api.peer_authenticate(peer, name, password)
    else:
        role = await _role_here(view, name, password)
    if role != ADMINISTRATOR_ROLE:
        raise denied("the username and password are not those of an administrator")


async def _role_here(view: View, name: str, password: str) -> str | None:
    if view.users is None:
        return None
    try:
        return await view.users.role(name, password, Login(view.user.login.address))
    except LockedOut as error:
        raise denied(str(error)) from error
    except Overloaded as error:
        raise Refused(ReturnCode.TIMEOUT, "too many passwords are being verified") from error


async def volume(view: View, path: CIMInstanceName | None, name: str) -> Element:
    """What a reference to a volume leads to."""
    if path is None:
        raise invalid(f"{name} is required")
    found = await sm_objects.find_volume(view, path)
    if found is None:
        raise not_found(f"{name}: there is no such volume")
    return found


def live(found: Element, name: str) -> str:
    """The name of a volume, which is no snapshot."""
    if found.snapshot is not None:
        raise unsupported(f"{name}: {found.volume.name}@{found.snapshot.name} is a snapshot")
    return found.volume.name


async def check_pool(view: View, params: Parameters, name: str) -> None:
    path = params.get(name)
    if path is not None and not await sm_objects.is_pool(view, path):
        raise not_found(f"{name}: there is no such pool")


async def target_system(view: View, params: Parameters) -> str | None:
    """The peer that TargetStorageSystem is; None: this pool, also where nothing is said."""
    path = params.get("TargetStorageSystem")
    if path is None:
        return None
    found = await sm_objects.read(view, path, sm_objects.PEER_SYSTEM)
    if found is None:
        if await sm_objects.read(view, path, sm_objects.PEER_VOLUME, sm_objects.PEER_REMOTE, sm_objects.PEER_GROUP):
            raise invalid("TargetStorageSystem is the peer of a volume or group, not a system")
        raise not_found("TargetStorageSystem: there is no such peer")
    system = await sm_objects.peer_system(view, found[1])
    if system is None:
        raise not_found("TargetStorageSystem: there is no such peer any more")
    if not system.current:
        raise Refused(SmCode.CACHE_OUT_OF_DATE, "TargetStorageSystem is another one by now: enumerate the peers again")
    return None if system.peer is None else system.peer.name


def check_settings(instance: CIMInstance | None, *, targets: bool) -> None:
    """MSFT_SMReplicationSettings: TargetElementSupplier and ThinProvisioningPolicy."""
    values: dict[str, Any] = {} if instance is None else {name.lower(): value for name, value in instance.items()}
    supplier = values.get("targetelementsupplier")
    policy = values.get("thinprovisioningpolicy")
    if supplier not in (None, 1, 2, 3, 4, 5) or policy not in (None, 2, 3, 4, 5, 6, 7):
        raise invalid("ReplicationSettings has a reserved value")
    if policy == 3:
        raise unsupported("ThinProvisioningPolicy 3: targets are thin")
    if supplier == 1 and not targets:
        raise unsupported("TargetElementSupplier 1: no idle volumes are kept here; hand in the target")
    if supplier == 5 and not targets:
        raise invalid("TargetElementSupplier 5: the client supplies the target, and there is none")
    if supplier == 2 and targets:
        raise invalid("TargetElementSupplier 2: a new target is made, and there is one already")
