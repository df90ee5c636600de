"""Volumes, and snapshots, which are shown as volumes that can be read; their settings.

A snapshot is a volume with Usage 12 (Delta Replica Target) and Access 1 (Readable). Linked clones, full clones and
targets of mirrors are volumes like any other. A volume that is not served (its file is damaged, or its key is missing)
is shown with its state and a size of nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from cim_facade.paths import VOLUME_CLASS
from cim_facade.provider import End, Provider
from cim_facade.providers.shared import OK, Fixed, Links, State
from cim_facade.providers.synchronizations import point_in_time

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.provider import Keys
    from engine.api import SnapshotInfo, VolumeInfo

BLOCK_BYTES = 512

SETTING_CLASS = "MSISCSITARGET_StorageSetting"
DEFAULT_SETTING = "default"


class Disk(NamedTuple):
    """A volume, or one of its snapshots."""

    volume: VolumeInfo
    snapshot: SnapshotInfo | None = None

    @property
    def guid(self) -> str:
        """What nothing else is called by."""
        return self.volume.volume_id if self.snapshot is None else self.snapshot.guid


async def disks(view: View) -> AsyncIterator[Disk]:
    """All volumes, each followed by its snapshots, oldest first."""
    for volume in await view.volumes():
        yield Disk(volume)
        if volume.snapshots:
            async for snapshot in view.snapshots(volume):
                yield Disk(volume, snapshot)


async def disk_paths(view: View) -> AsyncIterator[CIMInstanceName]:
    paths = await view.paths()
    async for disk in disks(view):
        yield paths.volume(disk.volume.volume_id, None if disk.snapshot is None else disk.snapshot.guid)


async def find_disk(view: View, keys: Keys) -> Disk | None:
    """The one with these keys of a StorageVolume."""
    key = (await view.paths()).volume_key(keys)
    volume = None if key is None else await view.volume(key.volume_id)
    if key is None or volume is None or key.snapshot_guid is None:
        return None if volume is None else Disk(volume)
    snapshot = await view.snapshot(key.volume_id, key.snapshot_guid)
    return None if snapshot is None else Disk(volume, snapshot)


class StorageVolume(Provider):
    class_name = VOLUME_CLASS

    def paths(self, view: View) -> AsyncIterator[CIMInstanceName]:
        return disk_paths(view)

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        async for disk in disks(view):
            yield await self.made(view, disk)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        disk = await find_disk(view, keys)
        return None if disk is None else await self.made(view, disk)

    async def made(self, view: View, disk: Disk) -> CIMInstance:
        paths = await view.paths()
        path = paths.volume(disk.volume.volume_id, None if disk.snapshot is None else disk.snapshot.guid)
        own = _volume_properties(disk.volume) if disk.snapshot is None else _snapshot_properties(disk.snapshot)
        if disk.snapshot is None:
            own["Usage"] = await _usage(view, disk.volume)
        return view.make(
            self.namespace,
            self.class_name,
            **path.keybindings,
            **_COMMON,
            **_state_of(disk.volume).enabled_properties(),
            ElementName=await view.element_name(disk.guid) or own["Caption"],
            MSDevicePath=disk.volume.file,
            **own,
        )


_COMMON: dict[str, Any] = {
    "NameFormat": 9,  # NAA
    "NameNamespace": 2,  # VPD83Type3
    "DataOrganization": 2,  # Fixed Block
    "BlockSize": BLOCK_BYTES,
    "IdentifyingDescriptions": ["SCSI serial number", "GUID"],
    "IsBasedOnUnderlyingRedundancy": False,
    "SequentialAccess": False,
    "NoSinglePointOfFailure": False,
    "DataRedundancy": 1,
    "PackageRedundancy": 0,
    "DeltaReservation": 0,
    "Primordial": False,
    "ThinlyProvisioned": True,
    "ClientSettableUsage": [],
}


def _volume_properties(volume: VolumeInfo) -> dict[str, Any]:
    return {
        "Caption": volume.name,
        "Description": f"linked clone of {volume.origin}" if volume.origin else None,
        "Name": volume.naa.upper(),
        "NumberOfBlocks": volume.size_bytes // BLOCK_BYTES,
        "ConsumableBlocks": volume.size_bytes // BLOCK_BYTES,
        "Access": 1 if volume.read_only else 3,  # Readable, Read/Write Supported
        "OtherIdentifyingInfo": [volume.serial, volume.volume_id],
        "ExtentStatus": _extent_status(volume),
        "MSParentPath": volume.origin,
    }


def _snapshot_properties(snapshot: SnapshotInfo) -> dict[str, Any]:
    return {
        "Caption": f"{snapshot.volume}@{snapshot.name}",
        "Description": snapshot.description or None,
        "InstallDate": point_in_time(snapshot.created_at),
        "Name": snapshot.naa.upper(),
        "NumberOfBlocks": snapshot.size_bytes // BLOCK_BYTES,
        "ConsumableBlocks": snapshot.size_bytes // BLOCK_BYTES,
        "Access": 1,  # Readable
        "Usage": 12,  # Delta Replica Target
        "OtherIdentifyingInfo": [snapshot.serial, snapshot.guid],
        "ExtentStatus": [2],  # None/Not Applicable
        "MSParentPath": snapshot.volume,
    }


def _extent_status(volume: VolumeInfo) -> list[int]:
    if volume.state in ("failed", "damaged"):
        return [3]  # Broken
    return [4] if volume.bad_chunks else [2]  # Data Lost, None/Not Applicable


_STATES = {
    "ok": OK,
    "read-only": OK,
    "failed": State(6, 25, "Error"),
    "damaged": State(6, 30, "Error", enabled=3),
    "locked": State(15, 5, "OK", enabled=6),  # Dormant, Enabled but Offline
    "sanitizing": State(11, 5, "OK", enabled=9),  # In Service, Quiesce
    "sanitize-failed": State(6, 20, "Error", enabled=9),
}


def _state_of(volume: VolumeInfo) -> State:
    state = _STATES.get(volume.state, State(0, 0, "Unknown"))
    if state is OK and volume.bad_chunks:
        reason = f"{volume.bad_chunks} chunks of its file do not read as what was written"
        return State(3, 10, "Degraded", reason=reason)
    return state._replace(reason=volume.reason)


async def _usage(view: View, volume: VolumeInfo) -> int:
    """What a volume is used for by mirrors: Unrestricted, or Local or Remote Replica Source or Target."""
    usages = await view.replica_usages()
    return usages.get(volume.name, 2)


# --- settings -------------------------------------------------------------------------------------------------------

_SETTING = {
    "NoSinglePointOfFailure": False,
    "DataRedundancyMin": 1,
    "DataRedundancyMax": 1,
    "DataRedundancyGoal": 1,
    "PackageRedundancyMin": 0,
    "PackageRedundancyMax": 0,
    "PackageRedundancyGoal": 0,
    "DeltaReservationMin": 0,
    "DeltaReservationMax": 0,
    "DeltaReservationGoal": 0,
}


class StorageSetting(Fixed):
    """What every volume is. There is nothing to choose, so the setting that is made as a goal is this one, too."""

    class_name = SETTING_CLASS
    kind = "setting"
    table: ClassVar[dict[str, dict[str, Any]]] = {
        DEFAULT_SETTING: {
            "ElementName": "Default",
            "Description": "One copy, thinly provisioned; mirrors are made by the replication service",
            "ChangeableType": 0,  # Fixed
            **_SETTING,
        }
    }


class VolumeSetting(Links):
    """From every volume to its setting."""

    class_name = "MSISCSITARGET_ElementSettingData"
    ends = (End("ManagedElement", "CIM_ManagedElement"), End("SettingData", "CIM_SettingData"))

    async def follow(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path.classname == VOLUME_CLASS and await find_disk(view, path.keybindings) is not None:
            yield (await view.paths()).by_id(SETTING_CLASS, "setting", DEFAULT_SETTING)

    async def trace(self, view: View, path: CIMInstanceName) -> AsyncIterator[CIMInstanceName]:
        if path == (await view.paths()).by_id(SETTING_CLASS, "setting", DEFAULT_SETTING):
            async for found in disk_paths(view):
                yield found

    async def values(self, view: View, first: CIMInstanceName, second: CIMInstanceName) -> dict[str, Any]:
        return {"IsDefault": 1, "IsCurrent": 1}


PROVIDERS = (StorageVolume(), StorageSetting(), VolumeSetting())
