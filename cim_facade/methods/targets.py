"""Targets, their views one by one, and initiators: what CIM_ControllerConfigurationService has besides ExposePaths and
HidePaths, CIM_iSCSIConfigurationService, and CIM_StorageHardwareIDManagementService.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cim_facade import elements
from cim_facade.errors import ReturnCode
from cim_facade.methods.answering import answering
from cim_facade.methods.masking import Asked, Codes, Unit, device_number, extend, guid, shelf_at, take_away
from cim_facade.methods.pool_elements import not_supported
from cim_facade.methods.requests import Refused, invalid, unsupported
from cim_facade.providers.targets import HARDWARE_ID_CLASS
from cim_facade.providers.volumes import Disk
from engine.errors import AlreadyExists, EngineError, InUse

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters
    from engine.api import TargetInfo

# --- one device, one controller -------------------------------------------------------------------------------------


@answering
async def attach_device(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ProtocolController, Device; in and out DeviceNumber."""
    shelf = await shelf_at(view, params.get("ProtocolController"), "ProtocolController")
    disk = await _device(view, params)
    text = params.get("DeviceNumber")
    codes = Codes(invalid_lu=4096, invalid_port=5, number_in_use=4097, combination=ReturnCode.INVALID_PARAMETER)
    await extend(view, shelf, Asked([Unit(disk, device_number(text) if text else None)], None, None, shelf), codes)
    view.forget()
    for shown in await view.api.volume_luns(disk.volume.volume_id):
        if shown.target == shelf.target.name and shown.lun.snapshot_guid == guid(disk):
            return ReturnCode.COMPLETED, {"DeviceNumber": f"{shown.lun.lun:x}"}
    raise Refused(ReturnCode.FAILED, "it was hidden again meanwhile")


@answering
async def detach_device(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ProtocolController, Device. Busy: there are sessions."""
    shelf = await shelf_at(view, params.get("ProtocolController"), "ProtocolController")
    codes = Codes(invalid_lu=4096, invalid_port=5, combination=4096)
    with _busy(4097):
        await take_away(view, shelf, [Unit(await _device(view, params), None)], codes)
    return ReturnCode.COMPLETED, {}


async def _device(view: View, params: Parameters) -> Disk:
    path = params.get("Device")
    found = None if path is None else await elements.find(view, path)
    if found is None:
        raise Refused(4096, "Device is no storage volume that there is")
    return Disk(found.volume, found.snapshot)


@answering
async def delete_controller(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ProtocolController, DeleteChildrenProtocolControllers, DeleteUnits. The views of a target's single LUNs are the
    children of that of the target. Busy: there are sessions."""
    shelf = await shelf_at(view, params.get("ProtocolController"), "ProtocolController")
    if params.get("DeleteUnits"):
        raise unsupported("DeleteUnits: return volumes to their pool for that")
    children = shelf.lun is None and any(lun.initiators for lun in shelf.target.luns)
    if children and not params.get("DeleteChildrenProtocolControllers"):
        raise invalid("LUNs of the target have views of their own, which would go with it")
    with _busy(4097):
        if shelf.lun is None:
            await view.api.target_delete(shelf.target.name)
        else:
            await view.api.target_lun_remove(shelf.target.name, shelf.lun)
    return ReturnCode.COMPLETED, {}


@contextlib.contextmanager
def _busy(code: int) -> Iterator[None]:
    """InUse is ``code`` here."""
    try:
        yield
    except InUse as error:
        raise Refused(code, str(error)) from error


# --- targets and initiators -----------------------------------------------------------------------------------------

ALIAS_IN_USE, NO_SUCH_NODE, SESSIONS_ACTIVE = 4097, 4096, 4097
ISCSI_NAME = 5
"""IDType of an initiator."""
ID_EXISTS, TYPE_NOT_SUPPORTED, NO_SUCH_ID = 4096, 4097, 4096


@answering
async def create_node(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Alias; out iSCSINode: a target that admits everybody, and has nothing to show yet."""
    alias = params.get("Alias")
    try:
        target = await view.api.target_create("target" if alias is None else alias)
    except AlreadyExists as error:
        if alias is not None:
            raise Refused(ALIAS_IN_USE, str(error)) from error
        target = await _numbered_target(view)
    return ReturnCode.COMPLETED, {"iSCSINode": (await view.paths()).controller(target.name)}


async def _numbered_target(view: View) -> TargetInfo:
    for name in elements.engine_names("target"):
        with contextlib.suppress(AlreadyExists):
            return await view.api.target_create(name)
    raise AssertionError("there is always another name")


@answering
async def delete_node(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """iSCSINode: a target, with all its views."""
    try:
        shelf = await shelf_at(view, params.get("iSCSINode"), "iSCSINode")
    except Refused as refused:
        raise Refused(NO_SUCH_NODE, str(refused)) from refused
    if shelf.lun is not None:
        raise invalid("iSCSINode is the view of a LUN, not a target")
    with _busy(SESSIONS_ACTIVE):
        await view.api.target_delete(shelf.target.name)
    return ReturnCode.COMPLETED, {}


@answering
async def create_hardware_id(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementName, StorageID, IDType, OtherIDType, Setting; out HardwareID."""
    if params.get("IDType") != ISCSI_NAME:
        raise Refused(TYPE_NOT_SUPPORTED, f"IDType {params.get('IDType')}: initiators have iSCSI names (5)")
    if params.get("OtherIDType") is not None or params.get("Setting") is not None:
        raise invalid("OtherIDType and Setting have no meaning here")
    try:
        made = await view.api.initiator_add(params.get("StorageID") or "", params.get("ElementName") or "")
    except AlreadyExists as error:
        raise Refused(ID_EXISTS, str(error)) from error
    return ReturnCode.COMPLETED, {"HardwareID": await _hardware_id(view, made.name)}


async def _hardware_id(view: View, name: str) -> CIMInstanceName:
    return (await view.paths()).by_id(HARDWARE_ID_CLASS, "initiator", name)


@answering
async def delete_hardware_id(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """HardwareID. Failed: a target names it, or it is logged in; this method has no In Use."""
    given = params.get("HardwareID")
    name = None if given is None else (await view.paths()).identity("initiator", given.keybindings)
    if name is None:
        raise Refused(NO_SUCH_ID, "there is no such hardware ID")
    with _busy(ReturnCode.FAILED):
        try:
            await view.api.initiator_remove(name)
        except EngineError as error:
            if isinstance(error, InUse):
                raise
            raise Refused(NO_SUCH_ID, str(error)) from error
    return ReturnCode.COMPLETED, {}


_CONTROLLERS = "CIM_ControllerConfigurationService"
_HARDWARE_IDS = "CIM_StorageHardwareIDManagementService"
_ISCSI = "CIM_iSCSIConfigurationService"

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_CONTROLLERS, "AttachDevice"): attach_device,
    (_CONTROLLERS, "DetachDevice"): detach_device,
    (_CONTROLLERS, "DeleteProtocolController"): delete_controller,
    (_CONTROLLERS, "CreateProtocolControllerWithPorts"): not_supported,
    (_HARDWARE_IDS, "CreateStorageHardwareID"): create_hardware_id,
    (_HARDWARE_IDS, "DeleteStorageHardwareID"): delete_hardware_id,
    (_HARDWARE_IDS, "CreateHardwareIDCollection"): not_supported,
    (_HARDWARE_IDS, "AddHardwareIDsToCollection"): not_supported,
    (_HARDWARE_IDS, "CreateGatewayPathID"): not_supported,
    (_ISCSI, "CreateiSCSINode"): create_node,
    (_ISCSI, "DeleteiSCSINode"): delete_node,
    (_ISCSI, "CreateiSCSIProtocolEndpoint"): not_supported,
    (_ISCSI, "DeleteiSCSIProtocolEndpoint"): not_supported,
    (_ISCSI, "BindiSCSIProtocolEndPoint"): not_supported,
}
