"""Keys of instances and ids of the engine: the one place that makes instance names and reads them.

Keys are made of what never changes: the pool's UUID, ids of volumes, GUIDs of snapshots, iSCSI names, numbers of jobs.
So a path stays good over restarts, and when something is given another name. Reading is exact: of any other spelling
there is no instance.

========================  =================================================================================
System                    the pool's UUID
Volume                    DeviceID: the volume's id; of a snapshot the hexadecimal digits of its volume's id
                          and of its GUID, 64 in all
InstanceID                ``twinvol:POOL:KIND:ID``; KIND and ID as in ``Paths``
Protocol controller       DeviceID: the target's name; of a LUN with initiators of its own ``NAME,lun,NUMBER``
Protocol endpoint         the target port's name, ``NAME,t,0xTAG`` (RFC 7143 section 4.4.1)
========================  =================================================================================
"""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any, NamedTuple

from pywbem import CIMInstanceName

from cim_facade.namespaces import INTEROP, STORAGE

if TYPE_CHECKING:
    from collections.abc import Mapping

SYSTEM_CLASS = "MSFTSM_ComputerSystem"
VOLUME_CLASS = "MSISCSITARGET_StorageVolume"
POOL_CLASS = "MSISCSITARGET_StoragePool"
CONTROLLER_CLASS = "MSISCSITARGET_SCSIProtocolController"
PORT_CLASS = "MSISCSITARGET_iSCSIProtocolEndpoint"
PORTAL_CLASS = "MSISCSITARGET_TCPProtocolEndpoint"
MANAGER_CLASS = "MSFTSM_ObjectManager"
NAMESPACE_CLASS = "MSFTSM_Namespace"
MECHANISM_CLASS = "CIM_CIMXMLCommunicationMechanism"
PROFILE_CLASS = "MSFTSM_RegisteredProfile"

POOL_ID, PRIMORDIAL_ID = "concrete", "primordial"
"""The two pools: what volumes are made of, and the file system that this comes from."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_LUN_VIEW = re.compile(r"(.+),lun,(0|[1-9][0-9]*)")
_PORT = re.compile(r"(.+),t,0x([0-9a-f]{4})")


class VolumeKey(NamedTuple):
    """A volume, or one of its snapshots."""

    volume_id: str
    snapshot_guid: str | None


class ControllerKey(NamedTuple):
    """A target, or (``lun``) one of its LUNs that has initiators of its own."""

    target: str
    lun: int | None


class PortKey(NamedTuple):
    """A target in the portal group of this tag."""

    target: str
    portal_group: int


def device_id(volume_id: str, snapshot_guid: str | None = None) -> str:
    """DeviceID of a volume, or of a snapshot."""
    if snapshot_guid is None:
        return volume_id
    return uuid.UUID(volume_id).hex + uuid.UUID(snapshot_guid).hex


def read_device_id(text: object) -> VolumeKey | None:
    """Whose DeviceID that would be."""
    if not isinstance(text, str):
        return None
    if _HEX64.fullmatch(text):
        return VolumeKey(str(uuid.UUID(text[:32])), str(uuid.UUID(text[32:])))
    return VolumeKey(text, None)


def controller_id(target: str, lun: int | None = None) -> str:
    """DeviceID of a protocol controller, and ID of its privilege."""
    return target if lun is None else f"{target},lun,{lun}"


def read_controller_id(text: object) -> ControllerKey | None:
    if not isinstance(text, str):
        return None
    of_lun = _LUN_VIEW.fullmatch(text)
    return ControllerKey(of_lun[1], int(of_lun[2])) if of_lun else ControllerKey(text, None)


def port_name(target: str, portal_group: int) -> str:
    return f"{target},t,0x{portal_group:04x}"


def read_port_name(text: object) -> PortKey | None:
    found = _PORT.fullmatch(text) if isinstance(text, str) else None
    return PortKey(found[1], int(found[2], 16)) if found else None


class Paths:
    """Of one pool, by its UUID ``system``."""

    def __init__(self, system: str) -> None:
        self.system_name = system
        self.manager_name = f"twinvol:{system}"
        self._prefix = f"twinvol:{system}:"

    # --- made -------------------------------------------------------------------------------------------------

    def system(self) -> CIMInstanceName:
        return _path(SYSTEM_CLASS, STORAGE, CreationClassName=SYSTEM_CLASS, Name=self.system_name)

    def service(self, class_name: str) -> CIMInstanceName:
        """The one service of a class."""
        return self._scoped(class_name, "Name", class_name)

    def volume(self, volume_id: str, snapshot_guid: str | None = None) -> CIMInstanceName:
        """Of a volume, or of one of its snapshots, which is a volume, too."""
        return self._scoped(VOLUME_CLASS, "DeviceID", device_id(volume_id, snapshot_guid))

    def pool(self, pool_id: str = POOL_ID) -> CIMInstanceName:
        return self.by_id(POOL_CLASS, "pool", pool_id)

    def controller(self, target: str, lun: int | None = None) -> CIMInstanceName:
        return self._scoped(CONTROLLER_CLASS, "DeviceID", controller_id(target, lun))

    def port(self, target: str, portal_group: int) -> CIMInstanceName:
        return self._scoped(PORT_CLASS, "Name", port_name(target, portal_group))

    def portal(self, address: str) -> CIMInstanceName:
        """Where iSCSI is listened for: HOST:PORT."""
        return self._scoped(PORTAL_CLASS, "Name", address)

    def by_id(self, class_name: str, kind: str, identity: object, namespace: str = STORAGE) -> CIMInstanceName:
        """An instance whose key is InstanceID."""
        return _path(class_name, namespace, InstanceID=self.instance_id(kind, identity))

    def manager(self) -> CIMInstanceName:
        """The object manager, in interop."""
        return _path(MANAGER_CLASS, INTEROP, **self.scope(MANAGER_CLASS), Name=self.manager_name)

    def mechanism(self) -> CIMInstanceName:
        """How it is talked to, in interop."""
        return _path(MECHANISM_CLASS, INTEROP, **self.scope(MECHANISM_CLASS), Name="CIM-XML")

    def cim_namespace(self, name: str) -> CIMInstanceName:
        """A namespace, in interop."""
        manager = {"ObjectManagerCreationClassName": MANAGER_CLASS, "ObjectManagerName": self.manager_name}
        return _path(NAMESPACE_CLASS, INTEROP, **self.scope(NAMESPACE_CLASS), **manager, Name=name)

    def in_interop(self, class_name: str, name: str) -> CIMInstanceName:
        """A filter, a destination or a service that lives in the system, in interop."""
        return _path(class_name, INTEROP, **self.scope(class_name), Name=name)

    def instance_id(self, kind: str, identity: object) -> str:
        return f"{self._prefix}{kind}:{identity}"

    def scope(self, class_name: str) -> dict[str, str]:
        """The keys that everything has that lives in the system."""
        return {
            "SystemCreationClassName": SYSTEM_CLASS,
            "SystemName": self.system_name,
            "CreationClassName": class_name,
        }

    # --- read -------------------------------------------------------------------------------------------------

    def is_system(self, keys: Mapping[str, Any]) -> bool:
        return _are(keys, CreationClassName=SYSTEM_CLASS, Name=self.system_name)

    def scoped_key(self, class_name: str, key: str, keys: Mapping[str, Any]) -> str | None:
        """``key`` of an instance of a class that lives in the system."""
        value = keys.get(key)
        return value if isinstance(value, str) and _are(keys, **self.scope(class_name), **{key: value}) else None

    def volume_key(self, keys: Mapping[str, Any]) -> VolumeKey | None:
        return read_device_id(self.scoped_key(VOLUME_CLASS, "DeviceID", keys))

    def controller_key(self, keys: Mapping[str, Any]) -> ControllerKey | None:
        return read_controller_id(self.scoped_key(CONTROLLER_CLASS, "DeviceID", keys))

    def port_key(self, keys: Mapping[str, Any]) -> PortKey | None:
        return read_port_name(self.scoped_key(PORT_CLASS, "Name", keys))

    def identity(self, kind: str, keys: Mapping[str, Any]) -> str | None:
        """The ID in an InstanceID of that kind."""
        text, prefix = keys.get("InstanceID"), f"{self._prefix}{kind}:"
        if len(keys) != 1 or not isinstance(text, str) or not text.startswith(prefix):
            return None
        return text[len(prefix) :]

    def _scoped(self, class_name: str, key: str, value: str) -> CIMInstanceName:
        return _path(class_name, STORAGE, **self.scope(class_name), **{key: value})


def _path(class_name: str, namespace: str, **keys: str) -> CIMInstanceName:
    return CIMInstanceName(class_name, keybindings=keys, namespace=namespace)


def _are(keys: Mapping[str, Any], **expected: str) -> bool:
    return len(keys) == len(expected) and all(keys.get(name) == value for name, value in expected.items())
