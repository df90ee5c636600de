"""MSFT_SMStorageVolume: CreateReplica (``methods.md`` section 2), CreateSnapshot, CreateClone, Delete and
SetReplicationRelationship. The instance that a method is called on is the source.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade import elements, sm_objects, synchronizations
from cim_facade.methods.answering import require_copied
from cim_facade.methods.making import Outcome, make, of_job
from cim_facade.methods.operating import check_operation, operate
from cim_facade.methods.requests import Kind, element_name, given, invalid, of_sync_type, rpo_seconds, unsupported
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
from cim_facade.value_maps import Operation, SyncType
from engine.api import CopyOrder

if TYPE_CHECKING:
    from typing import Any

    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters

LAST_OPERATION = Operation.UNPREPARE
"""Of SetReplicationRelationship; ModifyReplicaSynchronization has more."""


@sm_answering
async def create_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementName (of the relationship), SyncType, Mode, TargetStorageSystem, TargetStorageVolume, TargetStoragePool,
    RecoveryPointObjective, ReplicationSettings, username, password; out TargetReplicaPeer, Job, ExtendedStatus."""
    kind = of_sync_type(params.get("SyncType"), params.get("Mode"), later=True)
    name = element_name(params.get("ElementName"))
    rpo_s = rpo_seconds(params.get("RecoveryPointObjective"), kind)
    onto = given(params, "TargetStorageVolume")
    check_settings(params.get("ReplicationSettings"), targets=onto)
    source = await volume(view, path, "the source")
    require_copied(source, kind, "the source", onto=onto)
    peer = await target_system(view, params)
    await check_credentials(view, params, peer=peer)
    target = None
    if onto:  # TargetStoragePool is ignored then
        target = live(await volume(view, params["TargetStorageVolume"], "TargetStorageVolume"), "TargetStorageVolume")
        if peer is not None:
            raise unsupported("an existing volume at a peer as the target")
    else:
        await check_pool(view, params, "TargetStoragePool")
    if peer is not None and kind.sync_type is not SyncType.MIRROR:
        raise unsupported(f"a {kind.sync_type.name.lower()} at a peer")
    order = CopyOrder(
        kind.engine_kind,
        source.volume.name,
        snapshot=source.snapshot_name,
        relation_name=name,
        target=target,
        terms=kind.terms(rpo_s=rpo_s),
        peer=peer,
    )
    outcome = await make(view, kind, [order])
    return outcome.code, await _outputs(view, outcome) | {"TargetReplicaPeer": await _peer(view, outcome)}


async def _outputs(view: View, outcome: Outcome) -> dict[str, Any]:
    made: dict[str, Any] = {}
    if outcome.job is not None:
        made["Job"] = await sm_objects.path(view, sm_objects.JOB, outcome.job)
    for copy in await elements.made_copies(view, outcome.copies):
        if not copy.is_remote:
            device_id = sm_objects.target_device_id(copy)
            made["TargetStorageVolume"] = await sm_objects.path(view, sm_objects.VOLUME, device_id)
    return made


async def _peer(view: View, outcome: Outcome) -> CIMInstanceName | None:
    """The replica peer of the target, once the relationship is there."""
    for copy in await elements.made_copies(view, outcome.copies):
        peer = await sm_objects.target_peer_path(view, copy)
        found = await sm_objects.read(view, peer, sm_objects.PEER_VOLUME, sm_objects.PEER_REMOTE)
        if found is not None and await sm_objects.copy_of_peer(view, *found) is not None:
            return peer
    return None


async def _create(view: View, path: CIMInstanceName, params: Parameters, sync_type: SyncType) -> Answer:
    source, kind = await volume(view, path, "the source"), Kind(sync_type)
    require_copied(source, kind, "the source", onto=False)
    name = element_name(params.get("ElementName"))
    await check_credentials(view, params)
    await check_pool(view, params, "TargetPool")
    order = CopyOrder(kind.engine_kind, source.volume.name, snapshot=source.snapshot_name, element_name=name)
    outcome = await make(view, kind, [order])
    return outcome.code, await _outputs(view, outcome)


@sm_answering
async def create_snapshot(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementName, TargetPool; out TargetStorageVolume."""
    return await _create(view, path, params, SyncType.SNAPSHOT)


@sm_answering
async def create_clone(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementName, TargetPool; out TargetStorageVolume, Job."""
    return await _create(view, path, params, SyncType.CLONE)


@sm_answering
async def set_replication_relationship(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Operation (numbers of ModifyReplicaSynchronization), TargetStorageVolume: a replica peer; out Job.

    Without a target the source must have one copy only.
    """
    source = await volume(view, path, "the source")
    number = params.get("Operation")
    if number is None or number > LAST_OPERATION:
        raise invalid(f"Operation {number} is none of 2 to 23")
    target = params.get("TargetStorageVolume")
    if target is not None:
        found = await sm_objects.read(view, target, sm_objects.PEER_VOLUME, sm_objects.PEER_REMOTE)
        copy = None if found is None else await sm_objects.copy_of_peer(view, *found)
        if copy is None or source.identity not in (copy.source_element, copy.target):
            raise not_found("TargetStorageVolume: there is no such copy of this volume")
    else:
        copies = await synchronizations.copies_of(view, source.identity)
        if len(copies) != 1:
            raise invalid(f"the volume has {len(copies)} copies: say TargetStorageVolume")
        copy = copies[0]
    await check_credentials(view, params, peer=await elements.peer_of(view, [copy]))
    operation = check_operation(number, copy.sync_type)
    outcome = await of_job(view, await operate(view, operation, [copy]), wait=False)
    return outcome.code, await _outputs(view, outcome)


@sm_answering
async def delete(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """The volume, or snapshot, and its space."""
    found = await volume(view, path, "the volume")
    await check_credentials(view, params)
    if found.snapshot is not None:
        await view.api.snapshot_delete(found.volume.name, found.snapshot.name)
    else:
        await view.api.volume_delete(found.volume.name)
    await view.api.element_name_set(found.identity, None)
    return 0, {}


_CLASS = "MSFT_SMStorageVolume"

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_CLASS, "CreateReplica"): create_replica,
    (_CLASS, "CreateSnapshot"): create_snapshot,
    (_CLASS, "CreateClone"): create_clone,
    (_CLASS, "SetReplicationRelationship"): set_replication_relationship,
    (_CLASS, "Delete"): delete,
}
