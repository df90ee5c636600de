"""Changing and finding synchronizations: ModifyReplicaSynchronization, ModifyListSynchronization, and the Get methods
of CIM_ReplicationService. What an operation does with which kind of copy is in ``operating``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade import elements, synchronizations
from cim_facade.methods.answering import answering, check_reference, element, instance
from cim_facade.methods.making import of_job
from cim_facade.methods.operating import check_operation, check_wait, operate
from cim_facade.methods.requests import check_count, given, invalid, of_sync_type, setting_data, unsupported
from cim_facade.synchronizations import Copy, GroupCopy
from cim_facade.value_maps import CopyState, Mode, Operation, SyncType

if TYPE_CHECKING:
    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.methods.answering import Answer
    from cim_facade.methods.requests import Kind
    from cim_facade.provider import MethodHandler, Parameters

LIST_RESERVED = (
    Operation.ACTIVATE_CONSISTENCY,
    Operation.ADD_SYNC_PAIR,
    Operation.DEACTIVATE_CONSISTENCY,
    Operation.REMOVE_SYNC_PAIR,
)
"""Operations that ModifyListSynchronization does not have."""


@answering
async def modify_replica_synchronization(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Operation, Synchronization, ReplicationSettingData, SyncPair, Force, WaitForCopyState; out Job, SettingsState."""
    copy = await _copy(view, params.get("Synchronization"))
    operation = check_operation(params.get("Operation"), copy.sync_type)
    _check_settings(params, copy)
    if given(params, "SyncPair"):
        raise unsupported("SyncPair: groups change by their members")
    wait = check_wait(params.get("WaitForCopyState"), operation, copy.sync_type)
    outcome = await of_job(view, await _operate(view, operation, [copy], params), wait=wait)
    return outcome.code, {"Job": await elements.job_path(view, outcome.job)}


@answering
async def modify_list_synchronization(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """The same with several, which are of one class, one SyncType and one Mode; none of them is changed otherwise."""
    paths = params.get("Synchronization") or []
    check_count(len(paths))
    copies = [await _copy(view, each) for each in paths]
    if len({(type(copy), copy.sync_type, _kind(copy).mode) for copy in copies}) > 1:
        raise invalid("Synchronization: all are of one class, one SyncType and one Mode")
    if elements.has_twice(paths):
        raise invalid("Synchronization has an association twice")
    if params.get("Operation") in LIST_RESERVED:
        raise invalid("Operation: reserved for lists")
    operation = check_operation(params.get("Operation"), copies[0].sync_type)
    _check_settings(params, copies[0])
    wait = check_wait(params.get("WaitForCopyState"), operation, copies[0].sync_type)
    outcome = await of_job(view, await _operate(view, operation, copies, params), wait=wait)
    return outcome.code, {"Job": await elements.job_path(view, outcome.job)}


def _check_settings(params: Parameters, copy: Copy | GroupCopy) -> None:
    """What a mirror promises is said when it is made; an operation does not change it."""
    settings = setting_data(params.get("ReplicationSettingData"), _kind(copy))
    if settings.rpo_s is not None or settings.stops_host_io:
        raise unsupported("ReplicationSettingData: DesiredRPO and FailedCopyStopsHostIO are for new mirrors")


async def _operate(view: View, operation: Operation, copies: list[Copy | GroupCopy], params: Parameters) -> int | None:
    single = [copy for copy in copies if isinstance(copy, Copy)]
    groups = [copy for copy in copies if isinstance(copy, GroupCopy)]
    return await operate(view, operation, single or groups, force=bool(params.get("Force")))


async def _copy(view: View, path: CIMInstanceName | None) -> Copy | GroupCopy:
    copy = await elements.copy_at(view, path)
    if copy is None:
        raise invalid("Synchronization leads nowhere")
    return copy


def _kind(copy: Copy | GroupCopy) -> Kind:
    mode = copy.members[0].mode if isinstance(copy, GroupCopy) else copy.mode
    return of_sync_type(copy.sync_type, mode, later=True)


# --- finding ----------------------------------------------------------------------------------------------------

STORAGE_SYNCHRONIZED, GROUP_SYNCHRONIZED = 2, 3
"""Of GetReplicationRelationships' Type."""
LOCAL, REMOTE = 2, 3
"""Of its Locality."""


async def _relationships(view: View, params: Parameters) -> list[CIMInstanceName]:
    """Those that all filters let through; a filter that is NULL lets everything through."""
    choices: dict[str, tuple[int, ...]] = {
        "Type": (STORAGE_SYNCHRONIZED, GROUP_SYNCHRONIZED),
        "SyncType": tuple(SyncType),
        "Mode": tuple(Mode),
        "Locality": (LOCAL, REMOTE),
        "CopyState": tuple(CopyState),
    }
    for name, values in choices.items():
        if given(params, name) and params[name] not in values:
            raise invalid(f"{name} cannot be {params[name]}")
    found: list[Copy | GroupCopy] = []
    if params.get("Type") in (None, STORAGE_SYNCHRONIZED):
        found += await synchronizations.all_copies(view)
    if params.get("Type") in (None, GROUP_SYNCHRONIZED):
        found += await synchronizations.group_copies(view)
    paths = []
    for copy in found:
        if _fits(copy, params):
            paths.append(await elements.copy_path(view, copy))
        await view.breathe()
    return paths


def _fits(copy: Copy | GroupCopy, params: Parameters) -> bool:
    members = copy.members if isinstance(copy, GroupCopy) else [copy]
    facts = {
        "SyncType": copy.sync_type,
        "Mode": members[0].mode,
        "Locality": REMOTE if any(member.is_remote for member in members) else LOCAL,
        "CopyState": copy.state,
    }
    return all(params.get(name) in (None, value) for name, value in facts.items())


@answering
async def get_replication_relationships(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    return 0, {"Synchronizations": await _relationships(view, params)}


@answering
async def get_replication_relationship_instances(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    found: list[CIMInstance] = []
    for each in await _relationships(view, params):
        made = await instance(view, each)
        if made is not None:
            found.append(made)
        await view.breathe()
    return 0, {"Synchronizations": found}


@answering
async def get_available_target_elements(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Volumes that could take the source's copy now: as large, no end of another copy, and nobody logged in."""
    kind = of_sync_type(params.get("SyncType"), params.get("Mode"))
    setting_data(params.get("ReplicationSettingData"), kind)
    source = await element(view, params, "SourceElement")
    await check_reference(view, params, "TargetSettingGoal")
    for pool in params.get("TargetPools") or ():
        if pool is None or await instance(view, pool) is None:
            raise invalid("TargetPools: there is no such pool")
    if given(params, "TargetAccessPoint"):
        raise unsupported("TargetAccessPoint: what is at a peer is made there")
    if kind.sync_type is SyncType.SNAPSHOT or source.snapshot is not None:
        return 0, {"Candidates": []}
    ends = {end for copy in await synchronizations.mirrors(view) for end in (copy.source, copy.target)}
    sessions = {target.name: target.sessions for target in await view.api.target_list()}
    paths = await view.paths()
    candidates = []
    for volume in await view.volumes():
        if (
            volume.volume_id != source.identity
            and volume.volume_id not in ends
            and volume.size_bytes >= source.volume.size_bytes
            and volume.state == "ok"
            and not volume.snapshots
            and not (volume.target is not None and sessions.get(volume.target, 0))
        ):
            candidates.append(paths.volume(volume.volume_id))
        await view.breathe()
    return 0, {"Candidates": candidates}


REACHABLE_ONLY = 2
"""Of GetPeerSystems' Options."""


@answering
async def get_peer_systems(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Options; out Systems: the peers, those that can be reached now or all that this pool trusts."""
    options = params.get("Options")
    if options not in (None, REACHABLE_ONLY):
        raise invalid(f"Options cannot be {options}")
    return 0, {
        "Systems": [
            await elements.peer_system_path(view, peer.name)
            for peer in await elements.peers(view)
            if options is None or elements.is_reachable(peer)
        ]
    }


@answering
async def get_service_access_points(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """System; out ServiceAccessPoints: those of this system lead to all its peers, those of a peer to that one."""
    names = [peer.name for peer in await elements.peers(view)]
    if await check_reference(view, params, "System"):
        peer = await elements.peer_of_system(view, params["System"])
        names = names if peer is None else [peer.name]
    return 0, {"ServiceAccessPoints": [await elements.access_point_path(view, name) for name in names]}


@answering
async def add_service_access_point(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """A peer's access point is there from the pairing on; another one cannot be trusted."""
    wanted: Any = params.get("ServiceAccessPoint")
    if wanted is None:
        raise invalid("ServiceAccessPoint is required")
    name = wanted.get("Name") or wanted.get("ElementName")
    for peer in await elements.peers(view):
        if peer.name == name:
            return 0, {"ServiceAccessPointPath": await elements.access_point_path(view, peer.name)}
    raise unsupported("peers are paired with one-time codes: twinvol peer invite, twinvol peer add")


@answering
async def refused(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """What no product of this kind can do here: no settings without a target, no shared secrets, no pipes."""
    raise unsupported("this method does not go with how copies are made here")


_SERVICE = "CIM_ReplicationService"
_REFUSED = (
    "AddReplicationEntity",
    "AddSharedSecret",
    "AddToRemoteReplicationCollection",
    "CreateRemoteReplicationCollection",
    "CreateSynchronizationAspect",
    "ModifyListSettingsDefineState",
    "ModifySettingsDefineState",
    "RemoveFromRemoteReplicationCollection",
)

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_SERVICE, "ModifyReplicaSynchronization"): modify_replica_synchronization,
    (_SERVICE, "ModifyListSynchronization"): modify_list_synchronization,
    (_SERVICE, "GetReplicationRelationships"): get_replication_relationships,
    (_SERVICE, "GetReplicationRelationshipInstances"): get_replication_relationship_instances,
    (_SERVICE, "GetAvailableTargetElements"): get_available_target_elements,
    (_SERVICE, "GetPeerSystems"): get_peer_systems,
    (_SERVICE, "GetServiceAccessPoints"): get_service_access_points,
    (_SERVICE, "AddServiceAccessPoint"): add_service_access_point,
    **{(_SERVICE, name): refused for name in _REFUSED},
}
