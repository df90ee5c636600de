"""Copy Services: CreateReplica, AttachReplica, AttachOrModifyReplica and ModifySynchronization of
CIM_StorageConfigurationService, the older model. Numbers are those of ``methods.md`` sections 1 and 5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade import elements
from cim_facade.methods.answering import answering, check_space, element, require_copied, volume_name
from cim_facade.methods.making import make, of_job
from cim_facade.methods.operating import operate
from cim_facade.methods.requests import Kind, element_name, invalid, of_copy_type, unsupported
from cim_facade.synchronizations import Copy
from cim_facade.value_maps import NEW_OPERATIONS, CopyType, OldOperation, SyncType
from engine.api import CopyOrder

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Element
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters


def order_of(kind: Kind, source: Element, name: str | None, *, target: str | None = None) -> CopyOrder:
    """One copy of ``source``."""
    return CopyOrder(
        kind.engine_kind,
        source.volume.name,
        snapshot=source.snapshot_name,
        element_name=name,
        target=target,
        related=kind.related,
        terms=kind.terms(),
    )


@answering
async def create_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ElementName, SourceElement, TargetSettingGoal, TargetPool, CopyType; out Job, TargetElement."""
    kind = of_copy_type(params.get("CopyType"))
    name = element_name(params.get("ElementName"))
    source = await element(view, params, "SourceElement")
    require_copied(source, kind, "SourceElement", onto=False)
    await check_space(view, params, "TargetPool", "TargetSettingGoal", targets=False)
    outcome = await make(view, kind, [order_of(kind, source, name)])
    targets = await elements.made(view, outcome.copies)
    return outcome.code, {
        "Job": await elements.job_path(view, outcome.job),
        "TargetElement": targets[0] if targets else None,
    }


@answering
async def attach_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """SourceElement, TargetElement, CopyType; out Job. The target exists; its content is lost."""
    kind = of_copy_type(params.get("CopyType"))
    source = await element(view, params, "SourceElement")
    require_copied(source, _onto(kind), "SourceElement", onto=True)
    target = await volume_name(view, params, "TargetElement")
    outcome = await make(view, _onto(kind), [order_of(_onto(kind), source, None, target=target)])
    return outcome.code, {"Job": await elements.job_path(view, outcome.job)}


@answering
async def attach_or_modify_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """As AttachReplica; of two elements that are a mirror already CopyType is its new mode, which is not supported."""
    if params.get("ReplicationPipe") is not None:
        raise unsupported("ReplicationPipe: connections between pools have no pipes")
    goal = params.get("Goal")
    if goal is not None and any(value is not None for name, value in goal.items() if name.lower() in _GOALS):
        raise unsupported("Goal: volumes have no settings that could be others")
    return await attach_replica(view, path, params)


_GOALS = ("nosinglepointoffailure", "dataredundancygoal", "packageredundancygoal", "deltareservationgoal")


def _onto(kind: Kind) -> Kind:
    """Onto an existing volume an associated copy of one instant is a full copy: a snapshot is in its source's file."""
    return Kind(SyncType.CLONE) if kind.sync_type is SyncType.SNAPSHOT else kind


@answering
async def modify_synchronization(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Operation, Synchronization; out Job."""
    number = params.get("Operation")
    if number not in tuple(OldOperation):
        raise invalid(f"Operation {number} is none of 2 to 13")
    copy = await elements.copy_at(view, params.get("Synchronization"))
    if copy is None:
        raise invalid("Synchronization leads nowhere")
    if not isinstance(copy, Copy):
        raise invalid("Synchronization is one of groups")
    outcome = await of_job(view, await operate(view, NEW_OPERATIONS[OldOperation(number)], [copy]), wait=False)
    return outcome.code, {"Job": await elements.job_path(view, outcome.job)}


SUPPORTED_COPY_TYPES = tuple(CopyType)

_SERVICE = "CIM_StorageConfigurationService"

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_SERVICE, "CreateReplica"): create_replica,
    (_SERVICE, "AttachReplica"): attach_replica,
    (_SERVICE, "AttachOrModifyReplica"): attach_or_modify_replica,
    (_SERVICE, "ModifySynchronization"): modify_synchronization,
}
