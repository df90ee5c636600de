"""Groups of the storage management model: MSFT_SMSystem.CreateReplicationGroup and the methods of
MSFT_SMReplicationGroup. They are the groups of the other namespace under other names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cim_facade import elements, sm_objects, synchronizations
from cim_facade.methods.making import make, of_job
from cim_facade.methods.operating import check_operation, operate
from cim_facade.methods.requests import (
    Refused,
    element_name,
    given,
    invalid,
    numbered_names,
    of_sync_type,
    rpo_seconds,
    unsupported,
)
from cim_facade.methods.sm_answering import (
    check_credentials,
    check_pool,
    check_settings,
    live,
    not_found,
    sm_answering,
    target_system,
    volume,
)
from cim_facade.methods.sm_volume import LAST_OPERATION
from cim_facade.namespaces import STORAGE_MANAGEMENT
from cim_facade.value_maps import SyncType
from engine.api import CopyOrder, GroupOrder

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Group
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters

CONTAINS_REPLICAS = 48000
"""Of MSFT_SMReplicationGroup.Delete."""

SETTINGS_CLASS = "MSFT_SMReplicationSettings"
DEFAULT_SETTINGS = {"TargetElementSupplier": 4, "ThinProvisioningPolicy": 7}
"""The instrumentation decides whether targets are new; they are thin."""


async def _group(view: View, path: CIMInstanceName | None, name: str) -> Group:
    """One that volumes are in: the engine's own."""
    group = await sm_objects.find_group(view, path)
    if group is None:
        raise not_found(f"{name}: there is no such group")
    if group.group is None:
        raise unsupported(f"{name}: {group.name} is a group of copies, which comes and goes with its relation")
    return group


async def _volumes(view: View, params: Parameters, name: str) -> list[str]:
    found = [live(await volume(view, path, name), name) for path in params.get(name) or ()]
    if len(set(found)) < len(found):
        raise invalid(f"{name} has an element twice")
    return found


@sm_answering
async def create_replication_group(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """FriendlyName, StorageElements (their order is that of consistency); out CreatedReplicationGroup."""
    await check_credentials(view, params)
    check_settings(params.get("ReplicationSettings"), targets=False)
    name = element_name(params.get("FriendlyName"))
    group = await elements.make_group(view, name, await _volumes(view, params, "StorageElements"))
    return 0, {"CreatedReplicationGroup": await sm_objects.path(view, sm_objects.GROUP, group.guid)}


@sm_answering
async def create_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """RelationshipName, SyncType, Mode, TargetStorageSystem, TargetGroupObject, TargetStoragePool, ...; out
    TargetReplicaPeer, which is the target group. Snapshots and new clones hold one instant."""
    kind = of_sync_type(params.get("SyncType"), params.get("Mode"), later=True)
    name = element_name(params.get("RelationshipName"))
    rpo_s = rpo_seconds(params.get("RecoveryPointObjective"), kind)
    onto = given(params, "TargetGroupObject")
    check_settings(params.get("ReplicationSettings"), targets=onto)
    source = await _group(view, path, "the group")
    peer = await target_system(view, params)
    await check_credentials(view, params, peer=peer)
    await check_pool(view, params, "TargetStoragePool")
    assert source.group is not None
    members = source.group.members
    if not members:
        raise invalid(f"group {source.name} has no members")
    targets: list[str | None] = [None] * len(members)
    target = None
    if onto:
        found = await _group(view, params["TargetGroupObject"], "TargetGroupObject")
        assert found.group is not None
        target, targets = found.group.name, [*found.group.members]
        if len(targets) != len(members) or set(members) & set(found.group.members):
            raise invalid("TargetGroupObject has other members than could be paired with the group's")
    if peer is not None and (kind.sync_type is not SyncType.MIRROR or onto):
        raise unsupported("what goes to a peer is a new mirror")
    orders = [
        CopyOrder(
            kind.engine_kind,
            member,
            element_name=label,
            target=to,
            terms=kind.terms(rpo_s=rpo_s),
            peer=peer,
        )
        for member, label, to in zip(members, numbered_names(name, len(members)), targets, strict=True)
    ]
    group = GroupOrder(
        name or f"{source.name} {kind.sync_type.name.lower()}",
        source_group=source.group.name,
        target_group=target,
        consistent=kind.sync_type is SyncType.SNAPSHOT,
    )
    outcome = await make(view, kind, orders, group=group, at_once=kind.sync_type is SyncType.CLONE and not onto)
    made: dict[str, Any] = {}
    if outcome.job is not None:
        made["Job"] = await sm_objects.path(view, sm_objects.JOB, outcome.job)
    relation = await elements.group_relation(view, outcome.group)
    if relation is not None:
        made["TargetReplicaPeer"] = await sm_objects.path(view, sm_objects.PEER_GROUP, relation.target_group)
    return outcome.code, made


@sm_answering
async def set_replication_relationship(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Operation, TargetGroup: a replica peer of a group; out Job. It is done with all pairs."""
    source = await sm_objects.find_group(view, path)
    number = params.get("Operation")
    if number is None or number > LAST_OPERATION:
        raise invalid(f"Operation {number} is none of 2 to 23")
    for name in ("SourceStorageObjects", "TargetStorageObjects", "SyncPairs"):
        if given(params, name):
            raise unsupported(f"{name}: an operation is on all pairs")
    relations = [each for each in await synchronizations.group_copies(view) if source and each.source == source.guid]
    if given(params, "TargetGroup"):
        found = await sm_objects.read(view, params["TargetGroup"], sm_objects.PEER_GROUP)
        relations = [each for each in relations if found is not None and each.target_group == found[1]]
        if not relations:
            raise not_found("TargetGroup: there is no such copy of this group")
    if len(relations) != 1:
        raise invalid(f"the group has {len(relations)} copies: say TargetGroup")
    await check_credentials(view, params, peer=await elements.peer_of(view, relations[0].members))
    operation = check_operation(number, relations[0].sync_type)
    outcome = await of_job(view, await operate(view, operation, relations), wait=False)
    job = None if outcome.job is None else await sm_objects.path(view, sm_objects.JOB, outcome.job)
    return outcome.code, {"Job": job}


@sm_answering
async def add_members(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    group = await _group(view, path, "the group")
    await check_credentials(view, params)
    assert group.group is not None
    new = [name for name in await _volumes(view, params, "StorageObjects") if name not in group.group.members]
    if new:
        await view.api.group_add(group.group.name, new)
    return 0, {}


async def _require_unrelated(view: View, group: Group, code: int) -> None:
    relations = await synchronizations.group_copies(view)
    if any(group.guid in (each.source, each.target_group) for each in relations):
        raise Refused(code, f"group {group.name} is in a relation with its copies")


@sm_answering
async def remove_members(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    group = await _group(view, path, "the group")
    await check_credentials(view, params)
    assert group.group is not None
    members = await _volumes(view, params, "StorageObjects")
    if not members:
        raise invalid("StorageObjects is required")
    await _require_unrelated(view, group, 4)
    await view.api.group_remove(group.group.name, members)
    return 0, {}


@sm_answering
async def set_friendly_name(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    group = await _group(view, path, "the group")
    await check_credentials(view, params)
    name = element_name(params.get("FriendlyName"))
    if name is None:
        raise invalid("FriendlyName is required")
    await view.api.element_name_set(group.guid, name)
    return 0, {}


@sm_answering
async def get_replication_settings(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Out ReplicationSettings: what copies of the group are made with when CreateReplica is told nothing else."""
    group = await _group(view, path, "the group")
    await check_credentials(view, params)
    object_id = (await view.paths()).instance_id("settings", group.guid)
    settings = view.make(STORAGE_MANAGEMENT, SETTINGS_CLASS, ObjectId=object_id, **DEFAULT_SETTINGS)
    settings.path = None
    return 0, {"ReplicationSettings": settings}


@sm_answering
async def set_replication_settings(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ReplicationSettings: those that every group has; others are said to CreateReplica, and kept by nobody."""
    await _group(view, path, "the group")
    await check_credentials(view, params)
    wanted = params.get("ReplicationSettings")
    if wanted is None:
        raise invalid("ReplicationSettings is required")
    check_settings(wanted, targets=wanted.get("TargetElementSupplier") != 2)
    for name, value in DEFAULT_SETTINGS.items():
        if wanted.get(name) not in (None, value):
            raise unsupported(f"{name} {wanted[name]} is kept for no group: say it to CreateReplica")
    return 0, {}


@sm_answering
async def delete(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """The volumes stay."""
    group = await _group(view, path, "the group")
    await check_credentials(view, params)
    await _require_unrelated(view, group, CONTAINS_REPLICAS)
    assert group.group is not None
    await view.api.group_delete(group.group.name)
    await view.api.element_name_set(group.guid, None)
    return 0, {}


_GROUP = "MSFT_SMReplicationGroup"

METHODS: dict[tuple[str, str], MethodHandler] = {
    ("MSFT_SMSystem", "CreateReplicationGroup"): create_replication_group,
    (_GROUP, "CreateReplica"): create_replica,
    (_GROUP, "SetReplicationRelationship"): set_replication_relationship,
    (_GROUP, "AddMembers"): add_members,
    (_GROUP, "RemoveMembers"): remove_members,
    (_GROUP, "SetFriendlyName"): set_friendly_name,
    (_GROUP, "GetReplicationSettings"): get_replication_settings,
    (_GROUP, "SetReplicationSettings"): set_replication_settings,
    (_GROUP, "Delete"): delete,
}
