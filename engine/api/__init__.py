"""The operations that everybody outside the engine uses, and the values they exchange.

``EngineApi`` has two implementations: ``engine.local_api.LocalApi`` in the data process, and ``twinvol.api.client``
over the pool's Unix socket. The command line, the management process and the CIM facade are written against the
protocol and know neither. All values are JSON values, lists of them, or frozen dataclasses of them, so that the
socket's client and server need nothing but the type hints below. Refusals are ``engine.errors``.

The rooms that build these values import them in the functions that do: making the classes takes 20 ms, and no login
needs one (``tests/unit/daemon/test_start.py``).

Names of volumes and snapshots: 1-64 of ``[a-z0-9.-]``, beginning with a letter or digit. Sizes are bytes, times are
seconds since the epoch.
"""

from __future__ import annotations

from typing import Protocol

from engine.api.changes import (
    CHANGE_PAGE,
    RECORD_BYTES_MAX,
    RECORDS_MAX,
    ChangeApi,
    ChangeInfo,
    ChangePage,
)
from engine.api.failover import FailoverApi, FailoverPlan
from engine.api.group_replicas import GroupPointInfo, GroupReplicaApi
from engine.api.groups import GroupApi, GroupInfo, GroupMember, GroupSnapshotInfo
from engine.api.inventory import (
    INITIATOR_LABEL_MAX,
    INITIATORS_MAX,
    InitiatorInfo,
    InventoryApi,
    PoolIdentity,
    PortalInfo,
    ShownLun,
)
from engine.api.jobs import JobApi, JobInfo
from engine.api.peers import PeerApi, PeerInfo, PeerInvitation
from engine.api.pool import EventInfo, PoolApi, PoolSpaceInfo, StatusInfo
from engine.api.relations import (
    ELEMENT_NAME_MAX,
    ORDER_MAX,
    ORDER_POINT,
    CopyOrder,
    GroupOrder,
    GroupRelationInfo,
    PairInfo,
    RelationApi,
    RelationInfo,
)
from engine.api.replica_changes import ReplicaChangeApi, RestorePlan
from engine.api.replicas import ReplicaApi, ReplicaInfo, ReplicaPointInfo
from engine.api.snapshots import (
    SNAPSHOT_PAGE,
    DiffInfo,
    ExtentInfo,
    HoldInfo,
    PrunedInfo,
    PruneInfo,
    ScheduleInfo,
    SnapshotApi,
    SnapshotInfo,
    SnapshotPage,
    each_snapshot,
)
from engine.api.targets import (
    LATENCY_BOUNDS_US,
    ChapInfo,
    CommandInfo,
    DeviceIoInfo,
    IoInfo,
    LunInfo,
    LunIoInfo,
    SessionInfo,
    TargetApi,
    TargetInfo,
)
from engine.api.volumes import (
    VOLUME_BYTES_MAX,
    VOLUME_PAGE,
    DeletionInfo,
    FamilySpaceInfo,
    FlattenInfo,
    ScrubInfo,
    ScrubRange,
    SnapshotSpace,
    SpaceInfo,
    VolumeApi,
    VolumeInfo,
    VolumePage,
    each_volume,
)
from engine.copy_state import CopyMode, CopyState, ProgressStatus
from engine.mirror_terms import RPO, MirrorTerms


class EngineApi(
    PoolApi,
    VolumeApi,
    SnapshotApi,
    GroupApi,
    ReplicaApi,
    ReplicaChangeApi,
    GroupReplicaApi,
    FailoverApi,
    RelationApi,
    PeerApi,
    TargetApi,
    JobApi,
    InventoryApi,
    ChangeApi,
    Protocol,
):
    """See the module. Every method may raise ``EngineError``; what each names is what callers tell apart."""


__all__ = [
    "EngineApi",
    "CopyMode",
    "CopyState",
    "ProgressStatus",
    "EventInfo",
    "PoolSpaceInfo",
    "StatusInfo",
    "VOLUME_BYTES_MAX",
    "VolumeInfo",
    "VolumePage",
    "each_volume",
    "VOLUME_PAGE",
    "ScrubRange",
    "ScrubInfo",
    "SnapshotSpace",
    "FamilySpaceInfo",
    "SpaceInfo",
    "DeletionInfo",
    "FlattenInfo",
    "HoldInfo",
    "SnapshotInfo",
    "PrunedInfo",
    "SNAPSHOT_PAGE",
    "SnapshotPage",
    "PruneInfo",
    "ScheduleInfo",
    "ExtentInfo",
    "DiffInfo",
    "GroupInfo",
    "GroupMember",
    "GroupSnapshotInfo",
    "GroupPointInfo",
    "MirrorTerms",
    "RPO",
    "ReplicaInfo",
    "ReplicaPointInfo",
    "FailoverPlan",
    "RestorePlan",
    "PeerInvitation",
    "PeerInfo",
    "LunInfo",
    "ChapInfo",
    "TargetInfo",
    "LATENCY_BOUNDS_US",
    "IoInfo",
    "LunIoInfo",
    "DeviceIoInfo",
    "SessionInfo",
    "CommandInfo",
    "JobInfo",
    "ELEMENT_NAME_MAX",
    "ORDER_MAX",
    "ORDER_POINT",
    "CopyOrder",
    "GroupOrder",
    "RelationInfo",
    "PairInfo",
    "GroupRelationInfo",
    "INITIATOR_LABEL_MAX",
    "INITIATORS_MAX",
    "InitiatorInfo",
    "PoolIdentity",
    "PortalInfo",
    "ShownLun",
    "each_snapshot",
    "CHANGE_PAGE",
    "RECORD_BYTES_MAX",
    "RECORDS_MAX",
    "ChangeInfo",
    "ChangePage",
]
