"""What the services and the pool can do: the truth about this engine, as far as it is the same at all times."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade.provider import End
from cim_facade.providers.shared import Fixed, Pairs
from cim_facade.providers.system import (
    CONTROLLER_CONFIGURATION,
    ISCSI_CONFIGURATION,
    REPLICATION,
    STORAGE_CONFIGURATION,
)
from cim_facade.providers.volumes import DEFAULT_SETTING, SETTING_CLASS

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View

STORAGE_CAPABILITIES = "MSISCSITARGET_StorageCapabilities"
CAPABILITIES_ID = "default"
"""ID of the one instance of each class of capabilities."""


class Capabilities(Fixed):
    """The one instance of a class, called ``kind`` in its InstanceID."""

    def __init__(self, class_name: str, kind: str, element_name: str, **properties: Any) -> None:
        self.class_name = class_name  # type: ignore[misc]  # one class for all of them
        self.kind = kind  # type: ignore[misc]
        self.table = {CAPABILITIES_ID: {"ElementName": element_name, **properties}}  # type: ignore[misc]


ALL = (
    Capabilities(
        STORAGE_CAPABILITIES,
        "storage-capabilities",
        "Volumes of the pool",
        ElementType=3,  # StorageVolume
        NoSinglePointOfFailure=False,
        NoSinglePointOfFailureDefault=False,
        DataRedundancyMin=1,
        DataRedundancyMax=1,
        DataRedundancyDefault=1,
        PackageRedundancyMin=0,
        PackageRedundancyMax=0,
        PackageRedundancyDefault=0,
        DeltaReservationMin=0,
        DeltaReservationMax=0,
        DeltaReservationDefault=0,
    ),
    Capabilities(
        "MSISCSITARGET_StorageConfigurationCapabilities",
        "storage-configuration-capabilities",
        "Storage configuration",
        SupportedAsynchronousActions=[8, 9, 10],  # Replica Creation, Modification, Attachment
        SupportedSynchronousActions=[5, 6, 7, 8, 9],  # Storage Element Creation, Return, Modification, replicas
        SupportedStorageElementTypes=[2],  # StorageVolume
        SupportedStoragePoolFeatures=[],
        SupportedStorageElementFeatures=[3, 5, 6, 12],  # Creation, Modification, Single InPool, Capacity Expansion
        SupportedCopyTypes=[2, 3, 4, 5],
        InitialReplicationState=4,  # Synchronized
        SupportedStorageElementUsage=[2],  # Unrestricted
        ClientSettableElementUsage=[],
        SupportedStoragePoolUsage=[2],
        ClientSettablePoolUsage=[],
    ),
    Capabilities(
        "MSISCSITARGET_ReplicationServiceCapabilities",
        "replication-capabilities",
        "Replication",
        # Mirrors here and at peers; snapshots and clones here, the moment of both in either mode.
        SupportedReplicationTypes=[2, 3, 4, 5, 6, 7, 10, 11],
        SupportedStorageObjects=[2],  # StorageVolume
        SupportedAsynchronousActions=[2, 3, 5, 6, 19, 20],
        SupportedSynchronousActions=[2, 3, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 17, 19, 20, 21],
    ),
    Capabilities(
        "MSISCSITARGET_StorageReplicationCapabilities",
        "copy-capabilities",
        "Copy services",
        SupportedSynchronizationType=3,  # Sync, the best of what there is: the property has one value
        SupportedAsynchronousActions=[2, 4, 5, 6],  # local creation, any modification, local attachment
        SupportedSynchronousActions=[2, 4, 5],
        InitialReplicationState=4,  # Synchronized
        # Detach, Fracture, Resync, Restore, Quiesce, Unquiesce, Start and Stop Copy
        SupportedModifyOperations=[2, 3, 4, 5, 8, 9, 10, 11, 12, 13],
        ReplicaHostAccessibility=3,  # No Restrictions
        HostAccessibleState=[11, 13, 14],  # Idle (snapshots), Fractured, Frozen (clones)
        SpaceLimitSupported=False,
        SpaceReservationSupported=False,
        LocalMirrorSnapshotSupported=True,
        RemoteMirrorSnapshotSupported=False,
        IncrementalDeltasSupported=True,
        PersistentReplicasSupported=True,
        BidirectionalConnectionsSupported=True,
        InitialSynchronizationDefault=1,  # Start
        ReplicationPriorityDefault=0,  # Not Managed
        RemoteBufferSupported=0,  # Not Supported
    ),
    Capabilities(
        "MSISCSITARGET_ProtocolControllerMaskingCapabilities",
        "masking-capabilities",
        "Masking and mapping",
        ValidHardwareIdTypes=[5],  # iSCSI Name
        PortsPerView=4,  # All Ports share the same View
        ClientSelectableDeviceNumbers=True,
        AttachDeviceSupported=True,
        OneHardwareIDPerView=False,
        UniqueUnitNumbersPerPort=True,
        PrivilegeDeniedSupported=False,
        ProtocolControllerRequiresAuthorizedIdentity=False,
        ProtocolControllerSupportsCollections=False,
        ExposePathsSupported=True,
        CreateProtocolControllerSupported=False,
        MaximumMapCount=0,  # unlimited
        SPCAllowsNoLUs=True,
        SPCAllowsNoTargets=False,
        SPCAllowsNoInitiators=False,
        SPCSupportsDefaultViews=True,
    ),
    Capabilities(
        "MSISCSITARGET_iSCSICapabilities",
        "iscsi-capabilities",
        "iSCSI",
        MinimumSpecificationVersionSupported=0,
        MaximumSpecificationVersionSupported=0,
        AuthenticationMethodsSupported=[2, 4],  # None, CHAP
    ),
    Capabilities(
        "MSISCSITARGET_iSCSIConfigurationCapabilities",
        "iscsi-configuration-capabilities",
        "iSCSI targets",
        iSCSIProtocolEndpointCreationSupported=False,
        IdentifierSelectionSupported=False,
        iSCSINodeCreationSupported=True,
    ),
)

_OWNERS: dict[str, str | None] = {
    "MSISCSITARGET_StorageConfigurationCapabilities": STORAGE_CONFIGURATION,
    "MSISCSITARGET_ReplicationServiceCapabilities": REPLICATION,
    "MSISCSITARGET_StorageReplicationCapabilities": STORAGE_CONFIGURATION,
    "MSISCSITARGET_ProtocolControllerMaskingCapabilities": CONTROLLER_CONFIGURATION,
    "MSISCSITARGET_iSCSICapabilities": None,
    "MSISCSITARGET_iSCSIConfigurationCapabilities": ISCSI_CONFIGURATION,
}
"""The service that each belongs to; None: the system."""


class ElementCapabilities(Pairs):
    class_name = "MSISCSITARGET_ElementCapabilities"
    ends = (End("ManagedElement", "CIM_ManagedElement"), End("Capabilities", "CIM_Capabilities"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        found = []
        for each in ALL:
            there = paths.by_id(each.class_name, each.kind, CAPABILITIES_ID)
            if each.class_name == STORAGE_CAPABILITIES:
                found.append((paths.pool(), there))
                continue
            owner = _OWNERS[each.class_name]
            found.append((paths.system() if owner is None else paths.service(owner), there))
            if each.class_name == "MSISCSITARGET_ProtocolControllerMaskingCapabilities":
                found.append((paths.system(), there))  # where the profile has them
        return found


class SettingOfCapabilities(Pairs):
    """The setting that is the default under the capabilities of the pool."""

    class_name = "MSISCSITARGET_StorageSettingsAssociatedToCapabilities"
    ends = (End("Antecedent", "CIM_StorageCapabilities"), End("Dependent", "CIM_StorageSetting"))

    async def pairs(self, view: View) -> list[tuple[CIMInstanceName, CIMInstanceName]]:
        paths = await view.paths()
        capabilities = paths.by_id(STORAGE_CAPABILITIES, "storage-capabilities", CAPABILITIES_ID)
        return [(capabilities, paths.by_id(SETTING_CLASS, "setting", DEFAULT_SETTING))]

    async def values(self, view: View, first: CIMInstanceName, second: CIMInstanceName) -> dict[str, Any]:
        return {"DefaultSetting": True}


PROVIDERS = (*ALL, ElementCapabilities(), SettingOfCapabilities())
