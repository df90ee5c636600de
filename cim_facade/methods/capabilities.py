"""What the replication service can do, as its capabilities answer it: computed from the tables that the methods use.

Most questions are about a ReplicationType: SyncType, Mode and where the target is, in one number. One that is none of
the schema's is Invalid Parameter; one of the schema's that is not done here is Not Supported. The same tables answer
for MSFT_SMReplicationCapabilities, which knows the later types, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from cim_facade import elements, synchronizations
from cim_facade.methods.answering import answering, check_reference, element
from cim_facade.methods.operating import BETWEEN_POOLS, OF_NO_MIRRORED_GROUP, ONE_BY_ONE, OPERATIONS, result
from cim_facade.methods.requests import (
    METHODOLOGIES,
    RPO_DEFAULT_S,
    WAIT_STATES,
    given,
    invalid,
    of_sync_type,
    unsupported,
)
from cim_facade.methods.sm_answering import sm_answering
from cim_facade.methods.synchronizations import LIST_RESERVED
from cim_facade.namespaces import STORAGE
from cim_facade.value_maps import CopyMethodology, CopyState, Mode, Operation, SyncType
from engine.api import RPO

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters

LOCAL, REMOTE = 2, 3


class ReplicationType(NamedTuple):
    sync_type: SyncType
    mode: Mode
    locality: int


_KINDS = ((SyncType.MIRROR, 2), (SyncType.SNAPSHOT, 6), (SyncType.CLONE, 10), (SyncType.TOKENIZED_CLONE, 14))

TYPES: dict[int, ReplicationType] = {
    first + 2 * (locality - LOCAL) + (mode - Mode.SYNCHRONOUS): ReplicationType(sync_type, mode, locality)
    for sync_type, first in _KINDS
    for locality in (LOCAL, REMOTE)
    for mode in (Mode.SYNCHRONOUS, Mode.ASYNCHRONOUS)
} | {
    18 + 2 * number + (locality - LOCAL): ReplicationType(sync_type, Mode.ADAPTIVE, locality)
    for number, (sync_type, _) in enumerate(_KINDS)
    for locality in (LOCAL, REMOTE)
}
"""SupportedReplicationTypes: 2 to 13; of later schemas 14 to 25."""

FIRST_LATER = 14

SEQUENTIALLY_CONSISTENT, NO_CONSISTENCY = 2, 0
PERSISTENT = 2
ZEROS_WRITTEN = 2
"""Of GetSupportedThinProvisioningFeatures: what the source never wrote reads as zeroes at the target."""

MAX_GROUPS, MAX_MEMBERS = 256, 64
"""Of the engine."""


def is_done(kind: ReplicationType) -> bool:
    """Copies at a peer are mirrors."""
    return kind.locality == LOCAL or kind.sync_type is SyncType.MIRROR


def of_type(params: Parameters, *, later: bool = False) -> ReplicationType:
    number = params.get("ReplicationType")
    if number is None or number not in TYPES or (number >= FIRST_LATER and not later):
        raise invalid(f"ReplicationType {number} is none")
    kind = TYPES[number]
    if not is_done(kind):
        raise unsupported(f"a {kind.sync_type.name.lower()} at a peer")
    return kind


# --- what is the same for a kind of copy ------------------------------------------------------------------------


def copy_states(kind: ReplicationType) -> tuple[list[CopyState], list[bool]]:
    """States that a copy can be in, and whether hosts may use its target then."""
    if kind.sync_type is not SyncType.MIRROR:
        return [CopyState.SYNCHRONIZED], [True]
    states = {
        CopyState.INITIALIZED: False,
        CopyState.UNSYNCHRONIZED: False,
        CopyState.SYNCHRONIZED: False,
        CopyState.BROKEN: False,
        CopyState.FRACTURED: True,
        CopyState.SUSPENDED: False,
        CopyState.ABORTED: False,
        CopyState.INVALID: False,
        CopyState.RESTORED: False,
    }
    if kind.locality == REMOTE:
        states[CopyState.FAILEDOVER] = True
    return list(states), list(states.values())


def features(kind: ReplicationType) -> list[int]:
    """2 groups; 8 targets from any pool; 15 Broken ends by itself; 16 the target stays associated."""
    found = [2, 8]
    if kind.sync_type is SyncType.MIRROR and kind.mode is not Mode.SYNCHRONOUS:
        found.append(15)
    if kind.sync_type is SyncType.SNAPSHOT:
        found.append(16)
    return found


def group_features(kind: ReplicationType) -> list[int]:
    """2 one to many; 3 groups to groups; 4 consistency for all; 5 empty groups; 14 nameable; 15 TargetElementCount."""
    return [2, 3, 4, 5, 14, 15]


def operations(kind: ReplicationType) -> list[Operation]:
    return sorted(OPERATIONS[kind.sync_type].keys() - (BETWEEN_POOLS if kind.locality == LOCAL else frozenset()))


def joint_operations(kind: ReplicationType) -> list[Operation]:
    """Of lists: roles change, and sources are restored, one mirror at a time."""
    alone = ONE_BY_ONE if kind.sync_type is SyncType.MIRROR else frozenset()
    return [operation for operation in operations(kind) if operation not in alone]


def group_operations(kind: ReplicationType) -> list[Operation]:
    return [operation for operation in joint_operations(kind) if operation not in OF_NO_MIRRORED_GROUP]


def consistency(kind: ReplicationType) -> int:
    """The default; mirrors are made one by one unless they are to be consistent."""
    return NO_CONSISTENCY if kind.sync_type is SyncType.MIRROR else SEQUENTIALLY_CONSISTENT


def wait_states(kind: ReplicationType, method: int | None) -> list[CopyState]:
    """MethodName: 2 CreateElementReplica, 3 CreateGroupReplica, 4 ModifyReplicaSynchronization,
    5 ModifyListSynchronization, 6 ModifySettingsDefineState, 7 CreateListReplica, 8 CreateGroupReplicaFromElements."""
    if method in (2, 3, 7, 8):
        return list(WAIT_STATES[kind.sync_type])
    if method in (4, 5):
        found = {result(operation, kind.sync_type) for operation in OPERATIONS[kind.sync_type]}
        return sorted(state for state in found if state is not None)
    if method == 6:
        return []
    raise invalid(f"MethodName {method} is none of 2 to 8")


_SETTING_VALUES: dict[int, tuple[int, ...] | None] = {
    2: (2, 3),  # ConsistentPointInTime: false, true
    3: None,  # DesiredCopyMethodology: by the kind of copy
    4: (1,),  # Multihop
    5: (2, 3),  # OnGroupOrListError
    6: (2, 3, 4),  # UnequalGroupsAction
    7: (2, 4, 5),  # TargetElementSupplier
    8: (2, 4, 5, 6, 7),  # ThinProvisioningPolicy
    9: (2, 3),  # Pairing
    10: None,  # FailedCopyStopsHostIO: true of synchronous mirrors
    11: (4,),  # CopyRecoveryMode
    12: (2, 3, 4),  # UnequalListsAction
    13: (),  # DeltaUpdateInterval
    14: (),  # DeltaUpdateBlocks
    15: (),  # ReadOnly
}
"""GetSupportedReplicationSettingData by PropertyName; of Booleans 3 is true and 2 is false."""


def setting_values(kind: ReplicationType, name: int | None) -> list[int]:
    if name is None or name not in _SETTING_VALUES:
        raise invalid(f"PropertyName {name} is none of 2 to 15")
    values = _SETTING_VALUES[name]
    if name == 10:
        return [2, 3] if kind.sync_type is SyncType.MIRROR and kind.mode is Mode.SYNCHRONOUS else [2]
    if values is None:
        return [CopyMethodology.IMPLEMENTATION_DECIDES, *METHODOLOGIES[kind.sync_type]]
    return list(values)


# --- the storage namespace --------------------------------------------------------------------------------------


def _answer(name: str, ask: Any) -> MethodHandler:
    """A method that says one thing of a ReplicationType."""

    @answering
    async def answer(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
        return 0, {name: ask(of_type(params))}

    return answer


@answering
async def convert_to_replication_type(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """SyncType, Mode, LocalOrRemote; out SupportedReplicationTypes, which is one."""
    kind = of_sync_type(params.get("SyncType"), params.get("Mode"))
    mode, locality = params.get("Mode"), params.get("LocalOrRemote")
    if mode is None or locality not in (LOCAL, REMOTE):
        raise invalid("Mode and LocalOrRemote are required")
    wanted = ReplicationType(kind.sync_type, Mode(mode), locality)
    if not is_done(wanted):
        raise unsupported(f"a {kind.sync_type.name.lower()} at a peer")
    number = next(number for number, each in TYPES.items() if each == wanted)
    return 0, {"SupportedReplicationTypes": number}


@answering
async def convert_to_sync_type(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    kind = of_type(params)
    return 0, {"SyncType": kind.sync_type, "Mode": kind.mode, "LocalOrRemote": kind.locality}


@answering
async def get_supported_copy_states(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    states, accessible = copy_states(of_type(params))
    return 0, {"SupportedCopyStates": states, "HostAccessible": accessible}


@answering
async def get_supported_wait_for_copy_states(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    return 0, {"SupportedCopyStates": wait_states(of_type(params), params.get("MethodName"))}


@answering
async def get_supported_list_operations(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    kind = of_type(params)
    if params.get("SynchronizationType") not in (None, 2, 3):
        raise invalid("SynchronizationType is neither 2 nor 3")
    found = [operation for operation in joint_operations(kind) if operation not in LIST_RESERVED]
    return 0, {"SupportedListOperations": found}


@answering
async def get_supported_maximum(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Component: 2 groups, 3 and 4 elements of a source or target group, 9 hops; of others there is no limit known."""
    of_type(params)
    component = params.get("Component")
    if component is None or not 2 <= component <= 9:
        raise invalid(f"Component {component} is none of 2 to 9")
    limits = {2: MAX_GROUPS, 3: MAX_MEMBERS, 4: MAX_MEMBERS, 9: 1}
    return (0, {"MaxValue": limits[component]}) if component in limits else (7, {})


@answering
async def get_supported_replication_setting_data(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    return 0, {"SupportedValues": setting_values(of_type(params), params.get("PropertyName"))}


@answering
async def get_default_replication_setting_data(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """What copies are made with when nothing is said; sending it back asks for the same."""
    kind = of_type(params)
    made = view.make(
        STORAGE,
        "MSISCSITARGET_ReplicationSettingData",
        InstanceID=(await view.paths()).instance_id("replication-setting", params["ReplicationType"]),
        ElementName=f"Defaults of a {kind.sync_type.name.lower()}",
        Pairing=3,
        UnequalGroupsAction=2,
        UnequalListsAction=2,
        DesiredCopyMethodology=CopyMethodology.IMPLEMENTATION_DECIDES,
        TargetElementSupplier=4,
        ThinProvisioningPolicy=7,
        ConsistentPointInTime=False,
        Multihop=1,
        OnGroupOrListError=3,
        CopyPriority=0,
        CopyRecoveryMode=4,
        FailedCopyStopsHostIO=False,
    )
    made.path = None
    return 0, {"DefaultInstance": made}


@answering
async def get_default_group_persistency(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    return 0, {"DefaultGroupPersistency": PERSISTENT}


@answering
async def get_supported_connection_features(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """2 unidirectional to remote, 3 from remote, 4 bidirectional: peers trust each other both ways."""
    if not given(params, "connection") or await elements.peer_at(view, params["connection"]) is None:
        raise invalid("connection: there is no such peer")
    return 0, {"SupportedConnectionFeatures": [4]}


@answering
async def get_synchronization_supported(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """What LocalElement and OtherElement can be to each other: parallel lists, one entry for each way."""
    local = await element(view, params, "LocalElement")
    if params.get("MethodName") not in (None, *range(2, 9)):
        raise invalid("MethodName is none of 2 to 8")
    if given(params, "OtherElementAccessPoint"):
        await check_reference(view, params, "OtherElementAccessPoint")
        raise unsupported("existing volumes at peers")
    other = await element(view, params, "OtherElement")
    ways = []
    for role, source, target in ((2, local, other), (3, other, local)):
        if source.snapshot is not None or target.snapshot is not None or source.identity == target.identity:
            continue
        busy = await synchronizations.copy_into(view, target.identity) is not None
        if not busy and target.volume.size_bytes >= source.volume.size_bytes:
            ways += [(SyncType.MIRROR, Mode.SYNCHRONOUS, role), (SyncType.MIRROR, Mode.ASYNCHRONOUS, role)]
            ways.append((SyncType.CLONE, Mode.ASYNCHRONOUS, role))
    return 0, {
        "SyncTypes": [way[0] for way in ways],
        "Modes": [way[1] for way in ways],
        "LocalElementRole": [way[2] for way in ways],
    }


_SERVICE = "CIM_ReplicationServiceCapabilities"

_STORAGE_METHODS: dict[str, MethodHandler] = {
    "ConvertSyncTypeToReplicationType": convert_to_replication_type,
    "ConvertReplicationTypeToSyncType": convert_to_sync_type,
    "GetSupportedCopyStates": get_supported_copy_states,
    "GetSupportedGroupCopyStates": _answer("SupportedCopyStates", lambda kind: _group_states(kind)),
    "GetSupportedWaitForCopyStates": get_supported_wait_for_copy_states,
    "GetSupportedFeatures": _answer("Features", features),
    "GetSupportedGroupFeatures": _answer("GroupFeatures", group_features),
    "GetSupportedConsistency": _answer("SupportedConsistency", lambda _: [SEQUENTIALLY_CONSISTENT]),
    "GetDefaultConsistency": _answer("DefaultConsistency", consistency),
    "GetDefaultGroupPersistency": get_default_group_persistency,
    "GetSupportedOperations": _answer("SupportedOperations", operations),
    "GetSupportedGroupOperations": _answer("SupportedGroupOperations", group_operations),
    "GetSupportedListOperations": get_supported_list_operations,
    "GetSupportedSettingsDefineStateOperations": _answer("SupportedOperations", lambda _: []),
    "GetSupportedThinProvisioningFeatures": _answer("SupportedThinProvisioningFeatures", lambda _: [ZEROS_WRITTEN]),
    "GetSupportedMaximum": get_supported_maximum,
    "GetDefaultReplicationSettingData": get_default_replication_setting_data,
    "GetSupportedReplicationSettingData": get_supported_replication_setting_data,
    "GetSupportedConnectionFeatures": get_supported_connection_features,
    "GetSynchronizationSupported": get_synchronization_supported,
}


def _group_states(kind: ReplicationType) -> list[CopyState]:
    """Members may differ."""
    return [*copy_states(kind)[0], *([CopyState.MIXED] if kind.sync_type is SyncType.MIRROR else [])]


# --- the storage management model -------------------------------------------------------------------------------


def _sm_answer(ask: Any) -> MethodHandler:
    @sm_answering
    async def answer(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
        return 0, ask(of_type(params, later=True))

    async def without_status(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
        code, outputs = await answer(view, path, params)
        outputs.pop("ExtendedStatus", None)  # these methods have no such output
        return code, outputs

    return without_status


def _sm_states(kind: ReplicationType) -> dict[str, Any]:
    """The pages stop at Not Applicable."""
    both = [pair for pair in zip(*copy_states(kind), strict=True) if pair[0] <= CopyState.NOT_APPLICABLE]
    return {"SupportedCopyStates": [pair[0] for pair in both], "HostAccessible": [pair[1] for pair in both]}


@sm_answering
async def get_recovery_point_data(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Seconds: the default, and the range from the least to the most."""
    kind = of_type(params, later=True)
    if kind.sync_type is not SyncType.MIRROR:
        return 7, {}
    if kind.mode is Mode.SYNCHRONOUS:
        return 0, {"DefaultRecoveryPoint": 0, "RecoveryPointValues": [0], "RecoveryPointIndicator": 1}
    values = [int(RPO.low), int(RPO.high)]
    default = int(RPO_DEFAULT_S)
    return 0, {"DefaultRecoveryPoint": default, "RecoveryPointValues": values, "RecoveryPointIndicator": 0}


_SM_CLASS = "MSFT_SMReplicationCapabilities"

METHODS: dict[tuple[str, str], MethodHandler] = {
    **{(_SERVICE, name): handler for name, handler in _STORAGE_METHODS.items()},
    (_SM_CLASS, "GetRecoveryPointData"): get_recovery_point_data,
    (_SM_CLASS, "GetSupportedCopyStates"): _sm_answer(_sm_states),
    (_SM_CLASS, "GetSupportedFeatures"): _sm_answer(lambda kind: {"Features": features(kind)}),
    (_SM_CLASS, "GetSupportedGroupCopyStates"): _sm_answer(
        lambda kind: {"SupportedCopyStates": [each for each in _group_states(kind) if each <= CopyState.NOT_APPLICABLE]}
    ),
    (_SM_CLASS, "GetSupportedGroupFeatures"): _sm_answer(lambda kind: {"GroupFeatures": group_features(kind)}),
    (_SM_CLASS, "GetSupportedGroupOperations"): _sm_answer(
        lambda kind: {
            "SupportedGroupOperations": [each for each in group_operations(kind) if each <= Operation.UNPREPARE]
        }
    ),
    (_SM_CLASS, "GetSupportedOperations"): _sm_answer(
        lambda kind: {"SupportedOperations": [each for each in operations(kind) if each <= Operation.UNPREPARE]}
    ),
}

assert {*TYPES} == {*range(2, 26)}, "all numbers of the schema"
