"""Volumes made of the pool, changed, and given back: what CIM_StorageConfigurationService, CIM_StoragePool and
CIM_StorageCapabilities have for that. Each is over when it answers; none makes a job.

- A size is rounded up to whole blocks of 512 bytes, and the answer says what it is. One that no volume can have, or
  that would make one smaller (which loses what lies beyond), is Size Not Supported, with the nearest that can be.
- A volume or snapshot that a target shows is In Use, with or without sessions: hide it first.
- Of several elements to return, all are looked at before the first is deleted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade import elements
from cim_facade.errors import ReturnCode
from cim_facade.methods.answering import answering, element, element_at
from cim_facade.methods.requests import element_name, invalid, unsupported
from cim_facade.paths import POOL_ID
from cim_facade.providers.volumes import BLOCK_BYTES, DEFAULT_SETTING, SETTING_CLASS
from engine.api import VOLUME_BYTES_MAX
from engine.errors import AlreadyExists, InUse

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Element
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters
    from engine.api import VolumeInfo

SIZE_NOT_SUPPORTED = 4097

STORAGE_VOLUME = 2
"""ElementType of CreateOrModifyElementFromStoragePool; 3 and 4 are StorageExtent and LogicalDisk."""

POOL_ELEMENT_TYPES = {2: "StoragePool", 3: "StorageVolume", 4: "LogicalDisk"}
"""ElementType of GetSupportedSizes and GetSupportedSizeRange: other numbers."""

RETURNED_MAX = 256
"""Elements in one ReturnElementsToStoragePool."""

CONTINUE_ON_NONEXISTENT, ERROR_ON_NONEXISTENT = 2, 3
"""Options of ReturnElementsToStoragePool."""


@answering
async def create_or_modify_element(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementName, ElementType, Goal, InPool; in and out Size, TheElement."""
    kind = params.get("ElementType")
    if kind in (3, 4):
        raise unsupported(f"ElementType {kind}: volumes are all that there is")
    if kind != STORAGE_VOLUME and not (kind is None and params.get("TheElement") is not None):
        raise invalid(f"ElementType {kind} is none of 2 to 4")
    name, size = element_name(params.get("ElementName")), params.get("Size")
    await _check_goal(view, params.get("Goal"))
    await _check_pool(view, params.get("InPool"))
    if params.get("TheElement") is None:
        return await _create(view, name, size)
    return await _modify(view, await element(view, params, "TheElement"), name, size)


async def _check_goal(view: View, goal: CIMInstanceName | None) -> None:
    """There is one setting, which every volume has."""
    if goal is not None and not elements.same(goal, await _setting(view)):
        raise invalid("Goal is no setting of this pool")


async def _check_pool(view: View, pool: CIMInstanceName | None) -> None:
    paths = await view.paths()
    if pool is None or elements.same(pool, paths.pool()):
        return
    if elements.same(pool, paths.pool("primordial")):
        raise unsupported("InPool: volumes are not made of the primordial pool")
    raise invalid("InPool is no pool of this system")


async def _create(view: View, text: str | None, size: int | None) -> Answer:
    if size is None:
        raise invalid("a new volume needs a Size")
    rounded = _whole_blocks(size)
    if rounded != min(max(rounded, BLOCK_BYTES), VOLUME_BYTES_MAX):
        return SIZE_NOT_SUPPORTED, {"Size": min(max(rounded, BLOCK_BYTES), VOLUME_BYTES_MAX)}
    volume = await _new_volume(view, text or "volume", rounded)
    if text is not None and text != volume.name:
        try:
            await view.api.element_name_set(volume.volume_id, text)
        except BaseException:
            await view.api.volume_delete(volume.name)
            raise
    made = (await view.paths()).volume(volume.volume_id)
    return ReturnCode.COMPLETED, {"Size": volume.size_bytes, "TheElement": made}


async def _new_volume(view: View, text: str, size: int) -> VolumeInfo:
    """By the nearest name to ``text`` that the engine allows and nobody has."""
    for name in elements.engine_names(text):
        try:
            return await view.api.volume_create(name, size)
        except AlreadyExists:
            continue
    raise AssertionError("there is always another name")


async def _modify(view: View, found: Element, text: str | None, size: int | None) -> Answer:
    there = (await view.paths()).volume(found.volume.volume_id, None if found.snapshot is None else found.snapshot.guid)
    now = found.volume.size_bytes if found.snapshot is None else found.snapshot.size_bytes
    wanted = now if size is None else _whole_blocks(size)
    if wanted < now or wanted > VOLUME_BYTES_MAX:
        return SIZE_NOT_SUPPORTED, {"Size": now if wanted < now else VOLUME_BYTES_MAX, "TheElement": there}
    if wanted > now:
        if found.snapshot is not None:
            raise unsupported("a snapshot keeps its size")
        await view.api.volume_resize(found.volume.name, wanted)
    if text is not None:
        own = found.volume.name if found.snapshot is None else found.snapshot.name
        await view.api.element_name_set(found.identity, None if text == own else text)
    return ReturnCode.COMPLETED, {"Size": wanted, "TheElement": there}


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK_BYTES) * BLOCK_BYTES


# --- given back -----------------------------------------------------------------------------------------------------


@answering
async def return_to_pool(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """TheElement; out Job."""
    await _return(view, [await element(view, params, "TheElement")])
    return ReturnCode.COMPLETED, {"Job": None}


@answering
async def return_elements_to_pool(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Options, TheElements; out Job."""
    options = params.get("Options")
    if options not in (None, CONTINUE_ON_NONEXISTENT, ERROR_ON_NONEXISTENT):
        raise invalid(f"Options {options} is none of 2 and 3")
    given = params.get("TheElements") or []
    if not 0 < len(given) <= RETURNED_MAX:
        raise invalid(f"1 to {RETURNED_MAX} elements can be returned at once, not {len(given)}")
    found = []
    for each in given:
        if options == CONTINUE_ON_NONEXISTENT and each is not None and await elements.find(view, each) is None:
            continue
        found.append(await element_at(view, each, "TheElements"))
    if len({each.identity for each in found}) != len(found):
        raise invalid("TheElements names an element twice")
    await _return(view, found)
    return ReturnCode.COMPLETED, {"Job": None}


async def _return(view: View, found: list[Element]) -> None:
    """Delete them, snapshots first, if all can be. Raises InUse and what else keeps one of them."""
    snapshots = [each for each in found if each.snapshot is not None]
    volumes = [each.volume for each in found if each.snapshot is None]
    gone: dict[str, list[str]] = {}
    for each in snapshots:
        assert each.snapshot is not None
        gone.setdefault(each.volume.name, []).append(each.snapshot.name)
    await _require_hidden(view, found)
    for name, names in gone.items():
        await view.api.snapshot_delete_preview(name, names)
    for volume in volumes:
        with_snapshots = volume.snapshots > 0 and len(gone.get(volume.name, ())) == volume.snapshots
        if volume.state not in ("damaged", "locked"):
            # Forced, it is refused for what holds it besides its snapshots, which go before it; nobody sees it.
            await view.api.volume_delete_preview(volume.name, force=with_snapshots)
    for each in snapshots:
        assert each.snapshot is not None
        await view.api.snapshot_delete(each.volume.name, each.snapshot.name)
    for volume in volumes:
        await view.api.volume_delete(volume.name)
    for each in found:
        await view.api.element_name_set(each.identity, None)


async def _require_hidden(view: View, found: list[Element]) -> None:
    keys = {(each.volume.volume_id, None if each.snapshot is None else each.snapshot.guid) for each in found}
    for volume_id in sorted({volume_id for volume_id, _ in keys}):
        for shown in await view.api.volume_luns(volume_id):
            if (shown.lun.volume_id, shown.lun.snapshot_guid) in keys:
                raise InUse(f"target {shown.target} shows it as LUN {shown.lun.lun}; hide it first")


# --- what there may be ----------------------------------------------------------------------------------------------


@answering
async def supported_size_range(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementType, Goal; out MinimumVolumeSize, MaximumVolumeSize, VolumeSizeDivisor."""
    await _check_element_type(view, path, params)
    sizes = {"MinimumVolumeSize": BLOCK_BYTES, "MaximumVolumeSize": VOLUME_BYTES_MAX, "VolumeSizeDivisor": BLOCK_BYTES}
    return ReturnCode.COMPLETED, dict(sizes)


@answering
async def supported_sizes(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementType, Goal; out Sizes. Sizes are a range, so: Use GetSupportedSizeRange instead."""
    await _check_element_type(view, path, params)
    return 2, {}


async def _check_element_type(view: View, path: CIMInstanceName, params: Parameters) -> None:
    """The only other code of these two methods is 1."""
    kind = params.get("ElementType")
    if (await view.paths()).identity("pool", path.keybindings) != POOL_ID or kind != 3:
        raise unsupported(f"this pool makes no {POOL_ELEMENT_TYPES.get(kind or 0, f'elements of type {kind}')}")
    goal = params.get("Goal")
    if goal is not None and not elements.same(goal, await _setting(view)):
        raise unsupported("Goal is no setting of this pool")


@answering
async def create_setting(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """SettingType; out NewSetting: the one that there is, since nothing in it could be chosen."""
    if params.get("SettingType") not in (2, 3):
        raise invalid(f"SettingType {params.get('SettingType')} is none of 2 and 3")
    return ReturnCode.COMPLETED, {"NewSetting": await _setting(view)}


async def _setting(view: View) -> CIMInstanceName:
    return (await view.paths()).by_id(SETTING_CLASS, "setting", DEFAULT_SETTING)


async def not_supported(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """For what the documentation has and nothing here could mean: return code 1, Not Supported."""
    return ReturnCode.NOT_SUPPORTED, {}


_SERVICE, _POOL, _CAPABILITIES = "CIM_StorageConfigurationService", "CIM_StoragePool", "CIM_StorageCapabilities"

_NOT_SUPPORTED = (
    (_SERVICE, "CreateOrModifyStoragePool"),
    (_SERVICE, "DeleteStoragePool"),
    (_SERVICE, "CreateOrModifyElementFromElements"),
    (_SERVICE, "CreateOrModifyReplicationPipe"),
    (_SERVICE, "CreateReplicationBuffer"),
    (_SERVICE, "GetElementsBasedOnUsage"),
    (_SERVICE, "RequestUsageChange"),
    (_SERVICE, "ScsiScan"),
    (_POOL, "GetAvailableExtents"),
    (_CAPABILITIES, "GetSupportedParityLayouts"),
    (_CAPABILITIES, "GetSupportedStripeDepthRange"),
    (_CAPABILITIES, "GetSupportedStripeDepths"),
    (_CAPABILITIES, "GetSupportedStripeLengthRange"),
    (_CAPABILITIES, "GetSupportedStripeLengths"),
    ("CIM_Service", "StartService"),
    ("CIM_Service", "StopService"),
    ("CIM_EnabledLogicalElement", "RequestStateChange"),
    ("CIM_ComputerSystem", "SetPowerState"),
    *(
        ("CIM_LogicalDevice", name)
        for name in (
            "EnableDevice",
            "OnlineDevice",
            "QuiesceDevice",
            "Reset",
            "RestoreProperties",
            "SaveProperties",
            "SetPowerState",
        )
    ),
)

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_SERVICE, "CreateOrModifyElementFromStoragePool"): create_or_modify_element,
    (_SERVICE, "ReturnToStoragePool"): return_to_pool,
    (_SERVICE, "ReturnElementsToStoragePool"): return_elements_to_pool,
    (_POOL, "GetSupportedSizeRange"): supported_size_range,
    (_POOL, "GetSupportedSizes"): supported_sizes,
    (_CAPABILITIES, "CreateSetting"): create_setting,
    **dict.fromkeys(_NOT_SUPPORTED, not_supported),
}
