"""The numbers of the model's value maps, by their DMTF names, and how both generations of synchronizations go together.

Replication Services say SyncType, Mode, CopyState, ProgressStatus; the older Copy Services say CopyType and SyncState.
The engine has the first; ``copy_type`` and ``sync_state`` compute the second from it, always in step.
"""

from __future__ import annotations

import enum

from engine.api import CopyMode
from engine.api import CopyState as CopyState
from engine.api import ProgressStatus as ProgressStatus

Mode = CopyMode
"""CIM_Synchronized.Mode; ADAPTIVE is of later schemas, and of MSFT_SM*."""


class SyncType(enum.IntEnum):
    """CIM_Synchronized.SyncType; TOKENIZED_CLONE is of later schemas, and of MSFT_SM*."""

    MIRROR = 6
    SNAPSHOT = 7
    CLONE = 8
    TOKENIZED_CLONE = 9


class CopyType(enum.IntEnum):
    """CIM_StorageSynchronized.CopyType."""

    ASYNC = 2
    SYNC = 3
    UNSYNC_ASSOC = 4
    UNSYNC_UNASSOC = 5


class SyncState(enum.IntEnum):
    """CIM_StorageSynchronized.SyncState."""

    UNKNOWN = 0
    INITIALIZED = 2
    PREPARE_IN_PROGRESS = 3
    PREPARED = 4
    RESYNC_IN_PROGRESS = 5
    SYNCHRONIZED = 6
    FRACTURE_IN_PROGRESS = 7
    QUIESCE_IN_PROGRESS = 8
    QUIESCED = 9
    RESTORE_IN_PROGRESS = 10
    IDLE = 11
    BROKEN = 12
    FRACTURED = 13
    FROZEN = 14
    COPY_IN_PROGRESS = 15


class ReplicaType(enum.IntEnum):
    """CIM_StorageSynchronized.ReplicaType."""

    NOT_SPECIFIED = 0
    FULL_COPY = 2
    BEFORE_DELTA = 3
    AFTER_DELTA = 4
    LOG = 5


class CopyMethodology(enum.IntEnum):
    """CIM_StorageSynchronized.CopyMethodology and CIM_ReplicationSettingData.DesiredCopyMethodology."""

    NOT_SPECIFIED = 0
    OTHER = 1
    IMPLEMENTATION_DECIDES = 2
    FULL_COPY = 3
    INCREMENTAL_COPY = 4
    DIFFERENTIAL_COPY = 5
    COPY_ON_WRITE = 6
    COPY_ON_ACCESS = 7
    DELTA_UPDATE = 8
    SNAP_AND_CLONE = 9
    COPY_BEFORE_ACTIVATION = 10
    REDIRECT_ON_WRITE = 11


class Operation(enum.IntEnum):
    """Of ModifyReplicaSynchronization, ModifyListSynchronization and SetReplicationRelationship."""

    ABORT = 2
    ACTIVATE_CONSISTENCY = 3
    ACTIVATE = 4
    ADD_SYNC_PAIR = 5
    DEACTIVATE_CONSISTENCY = 6
    DEACTIVATE = 7
    DETACH = 8
    DISSOLVE = 9
    FAILOVER = 10
    FAILBACK = 11
    FRACTURE = 12
    REMOVE_SYNC_PAIR = 13
    RESYNC_REPLICA = 14
    RESTORE_FROM_REPLICA = 15
    RESUME = 16
    RESET_TO_SYNC = 17
    RESET_TO_ASYNC = 18
    RETURN_TO_RESOURCE_POOL = 19
    REVERSE_ROLES = 20
    SPLIT = 21
    SUSPEND = 22
    UNPREPARE = 23
    PREPARE = 24
    RESET_TO_ADAPTIVE = 25
    RESET_TO_ACTIVE = 26
    RESET_REPLICA = 27


class OldOperation(enum.IntEnum):
    """Of ModifySynchronization: other numbers."""

    DETACH = 2
    FRACTURE = 3
    RESYNC_REPLICA = 4
    RESTORE_FROM_REPLICA = 5
    PREPARE = 6
    UNPREPARE = 7
    QUIESCE = 8
    UNQUIESCE = 9
    RESET_TO_SYNC = 10
    RESET_TO_ASYNC = 11
    START_COPY = 12
    STOP_COPY = 13


NEW_OPERATIONS = {
    OldOperation.DETACH: Operation.DETACH,
    OldOperation.FRACTURE: Operation.FRACTURE,
    OldOperation.RESYNC_REPLICA: Operation.RESYNC_REPLICA,
    OldOperation.RESTORE_FROM_REPLICA: Operation.RESTORE_FROM_REPLICA,
    OldOperation.PREPARE: Operation.PREPARE,
    OldOperation.UNPREPARE: Operation.UNPREPARE,
    OldOperation.QUIESCE: Operation.SUSPEND,
    OldOperation.UNQUIESCE: Operation.RESUME,
    OldOperation.RESET_TO_SYNC: Operation.RESET_TO_SYNC,
    OldOperation.RESET_TO_ASYNC: Operation.RESET_TO_ASYNC,
    OldOperation.START_COPY: Operation.ACTIVATE,
    OldOperation.STOP_COPY: Operation.DEACTIVATE,
}
"""What each of the older operations is called by now."""


class JobState(enum.IntEnum):
    """CIM_ConcreteJob.JobState, the values that occur."""

    NEW = 2
    RUNNING = 4
    SUSPENDED = 5
    COMPLETED = 7
    TERMINATED = 8
    EXCEPTION = 10


class OperationalStatus(enum.IntEnum):
    """CIM_ManagedSystemElement.OperationalStatus, the values that occur."""

    OK = 2
    DEGRADED = 3
    ERROR = 6
    STOPPED = 10
    COMPLETED = 17


class Usage(enum.IntEnum):
    """CIM_StorageExtent.Usage, the values that occur."""

    UNRESTRICTED = 2
    LOCAL_REPLICA_SOURCE = 6
    REMOTE_REPLICA_SOURCE = 7
    LOCAL_REPLICA_TARGET = 8
    REMOTE_REPLICA_TARGET = 9
    DELTA_REPLICA_TARGET = 12


class Consistency(enum.IntEnum):
    """Of CreateGroupReplica; CIM_GroupSynchronized.ConsistencyType has other numbers."""

    NO_CONSISTENCY = 2
    SEQUENTIAL = 3


VENDOR_SPECIFIC = 0x8000
"""From here on values are a vendor's own; none is defined here."""

MODES = {"sync": Mode.SYNCHRONOUS, "async": Mode.ASYNCHRONOUS, "adaptive": Mode.ADAPTIVE}
"""As the engine says them."""

ENGINE_MODES = {mode: name for name, mode in MODES.items()}

_STATES = {state.name.replace("_", " ").lower(): state for state in CopyState}
_PROGRESS = {status.name.replace("_", " ").lower(): status for status in ProgressStatus}


def copy_state(text: str) -> CopyState:
    """Of the engine's word for it."""
    return _STATES[text.lower()]


def progress_status(text: str) -> ProgressStatus:
    """Of the engine's word for it."""
    return _PROGRESS[text.lower()]


def copy_type(sync_type: SyncType, mode: Mode | None) -> CopyType:
    """The older name of a kind of copy that has an association: what is not is UNSYNC_UNASSOC."""
    if sync_type is SyncType.MIRROR:
        return CopyType.SYNC if mode is Mode.SYNCHRONOUS else CopyType.ASYNC
    return CopyType.UNSYNC_ASSOC


_SYNC_STATES = {
    CopyState.INITIALIZED: SyncState.INITIALIZED,
    CopyState.UNSYNCHRONIZED: SyncState.COPY_IN_PROGRESS,
    CopyState.SYNCHRONIZED: SyncState.SYNCHRONIZED,
    CopyState.BROKEN: SyncState.BROKEN,
    CopyState.FRACTURED: SyncState.FRACTURED,
    CopyState.SPLIT: SyncState.FRACTURED,
    CopyState.INACTIVE: SyncState.QUIESCED,
    CopyState.SUSPENDED: SyncState.QUIESCED,
    CopyState.FAILEDOVER: SyncState.FRACTURED,
    CopyState.PREPARED: SyncState.PREPARED,
    CopyState.ABORTED: SyncState.BROKEN,
    CopyState.SKEWED: SyncState.FRACTURED,
    CopyState.RESTORED: SyncState.IDLE,
}
_IN_PROGRESS = {
    ProgressStatus.RESYNCING: SyncState.RESYNC_IN_PROGRESS,
    ProgressStatus.RESTORING: SyncState.RESTORE_IN_PROGRESS,
    ProgressStatus.FAILING_BACK: SyncState.RESTORE_IN_PROGRESS,
    ProgressStatus.FRACTURING: SyncState.FRACTURE_IN_PROGRESS,
    ProgressStatus.SPLITTING: SyncState.FRACTURE_IN_PROGRESS,
    ProgressStatus.SUSPENDING: SyncState.QUIESCE_IN_PROGRESS,
    ProgressStatus.PREPARING: SyncState.PREPARE_IN_PROGRESS,
}
_COMPLETE = {
    SyncType.SNAPSHOT: SyncState.IDLE,
    SyncType.CLONE: SyncState.FROZEN,
    SyncType.TOKENIZED_CLONE: SyncState.FROZEN,
}
"""What the older model calls a copy of one instant that is complete: a delta is Idle, a full copy Frozen."""


def sync_state(sync_type: SyncType, state: CopyState, progress: ProgressStatus) -> SyncState:
    """The older name of a state."""
    if state is CopyState.SYNCHRONIZED:
        return _COMPLETE.get(sync_type, SyncState.SYNCHRONIZED)
    return _IN_PROGRESS.get(progress) or _SYNC_STATES.get(state, SyncState.UNKNOWN)
