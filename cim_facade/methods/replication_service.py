"""Replication Services: the methods of CIM_ReplicationService that make replicas. ``methods.md`` sections 3, 4 and 6.

CreateListReplica and CreateGroupReplica are documented; CreateElementReplica is the one that most clients call;
CreateGroupReplicaFromElements is a group made on the way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cim_facade import elements
from cim_facade.methods.answering import answering, check_space, element, element_at, require_copied, require_volume
from cim_facade.methods.making import Outcome, make
from cim_facade.methods.requests import (
    Kind,
    Settings,
    check_count,
    element_name,
    element_names,
    given,
    invalid,
    numbered_names,
    of_sync_type,
    paired,
    setting_data,
    unsupported,
    wait_state,
)
from cim_facade.value_maps import Consistency, SyncType
from engine.api import CopyOrder, GroupOrder

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Element, Group
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters
    from cim_facade.value_maps import CopyState


@dataclass(frozen=True, slots=True)
class Wish:
    """What all of these methods are told alike. ``peer``: where the targets are to be; None: here."""

    kind: Kind
    settings: Settings
    wait_for: CopyState | None
    peer: str | None

    def order(
        self, source: str, name: str | None, target: str | None = None, *, snapshot: str | None = None
    ) -> CopyOrder:
        return CopyOrder(
            self.kind.engine_kind,
            source,
            snapshot=snapshot,
            element_name=name,
            target=target,
            terms=self.kind.terms(rpo_s=self.settings.rpo_s, stops_host_io=self.settings.stops_host_io),
            peer=self.peer,
        )


async def wish_of(view: View, params: Parameters, *, targets: bool) -> Wish:
    """``targets``: whether existing ones were handed in."""
    kind = of_sync_type(params.get("SyncType"), params.get("Mode"))
    settings = setting_data(params.get("ReplicationSettingData"), kind)
    settings.check_supplier(targets_given=targets)
    wait_for = wait_state(params.get("WaitForCopyState"), kind.sync_type)
    if await _access_point(view, params, "SourceAccessPoint") is not None:
        raise unsupported("SourceAccessPoint: sources are here")
    peer = await _access_point(view, params, "TargetAccessPoint")
    if peer is not None and kind.sync_type is not SyncType.MIRROR:
        raise unsupported(f"a {kind.sync_type.name.lower()} at a peer")
    if peer is not None and targets:
        raise unsupported("existing volumes at a peer as targets")
    await check_space(view, params, "TargetPool", "TargetSettingGoal", targets=targets)
    if targets and kind.sync_type is SyncType.SNAPSHOT:
        raise unsupported("a snapshot is in its source's file: an existing volume cannot become one")
    return Wish(kind, settings, wait_for, peer)


async def _access_point(view: View, params: Parameters, name: str) -> str | None:
    """The peer that an access point stands for."""
    path = params.get(name)
    if path is None:
        return None
    peer = await elements.peer_at(view, path)
    if peer is None:
        raise invalid(f"{name}: no peer has that access point")
    return peer


@answering
async def create_element_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """One source, one target. Out Job, Synchronization, TargetElement."""
    wish = await wish_of(view, params, targets=given(params, "TargetElement"))
    name = element_name(params.get("ElementName"))
    source = await element(view, params, "SourceElement")
    onto = given(params, "TargetElement")
    require_copied(source, wish.kind, "SourceElement", onto=onto)
    target = None
    if onto:
        target = require_volume(await element(view, params, "TargetElement"), "TargetElement")
    outcome = await _make(view, wish, [wish.order(source.volume.name, name, target, snapshot=source.snapshot_name)])
    targets = await elements.made(view, outcome.copies)
    relations = await elements.made_synchronizations(view, outcome.copies)
    return outcome.code, {
        "Job": await elements.job_path(view, outcome.job),
        "TargetElement": targets[0] if targets else None,
        "Synchronization": relations[0] if relations else None,
    }


@answering
async def create_list_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Several sources of one type, each with its target. Out Job, Synchronizations, TargetElements, in their order."""
    wish = await wish_of(view, params, targets=given(params, "TargetElements"))
    sources = await _elements(view, params, "SourceElements")
    for source in sources:
        require_copied(source, wish.kind, "SourceElements", onto=given(params, "TargetElements"))
    names = element_names(params.get("ElementNames"), len(sources))
    targets: list[str | None] = [None] * len(sources)
    if given(params, "TargetElements"):
        found = await _volumes(view, params, "TargetElements")
        count = paired(len(sources), len(found), wish.settings.unequal_lists, "UnequalListsAction")
        sources, names, targets = sources[:count], names[:count], [*found[:count]]
        if {source.volume.name for source in sources} & set(found):
            raise invalid("an element is both a source and a target")
    orders = [
        wish.order(source.volume.name, name, target, snapshot=source.snapshot_name)
        for source, name, target in zip(sources, names, targets, strict=True)
    ]
    outcome = await _make(view, wish, orders)
    return outcome.code, {
        "Job": await elements.job_path(view, outcome.job),
        "TargetElements": await elements.made(view, outcome.copies),
        "Synchronizations": await elements.made_synchronizations(view, outcome.copies),
    }


async def _elements(view: View, params: Parameters, name: str) -> list[Element]:
    """Of a list of references: at least one, none NULL, none twice."""
    paths = params.get(name) or []
    check_count(len(paths))
    found = [await element_at(view, path, name) for path in paths]
    if len({each.identity for each in found}) < len(found):
        raise invalid(f"{name} has an element twice")
    return found


async def _volumes(view: View, params: Parameters, name: str) -> list[str]:
    return [require_volume(each, name) for each in await _elements(view, params, name)]


async def _make(view: View, wish: Wish, orders: list[CopyOrder], group: GroupOrder | None = None) -> Outcome:
    at_once = wish.settings.at_once and len(orders) > 1 and not (group is not None and group.consistent)
    return await make(
        view,
        wish.kind,
        orders,
        group=group,
        at_once=at_once,
        on_error=wish.settings.on_error,
        wait_for=wish.wait_for,
    )


# --- groups -----------------------------------------------------------------------------------------------------


@answering
async def create_group_replica(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """A group to a group, or one element to several targets. Out Job, Synchronization, TargetGroup."""
    if given(params, "SourceGroup") == given(params, "SourceElement"):
        raise invalid("exactly one of SourceGroup and SourceElement is needed")
    if given(params, "TargetGroup") and given(params, "TargetElementCount"):
        raise invalid("TargetGroup and TargetElementCount exclude each other")
    if given(params, "SourceGroup"):
        if given(params, "TargetElementCount"):
            raise invalid("TargetElementCount is for one source element")
        source = await _group(view, params, "SourceGroup")
        return await _group_to_group(view, params, source)
    return await _element_to_group(view, params)


async def _group_to_group(view: View, params: Parameters, source: Group) -> Answer:
    sources = await _members(view, source, "SourceGroup")
    return await _replicate(view, params, sources, source_group=source)


async def _element_to_group(view: View, params: Parameters) -> Answer:
    source = require_volume(await element(view, params, "SourceElement"), "SourceElement")
    count = params.get("TargetElementCount")
    if given(params, "TargetGroup"):
        count = len(await _members(view, await _group(view, params, "TargetGroup"), "TargetGroup"))
    return await _replicate(view, params, [source] * check_count(1 if count is None else int(count)))


async def _replicate(
    view: View, params: Parameters, sources: list[str], *, source_group: Group | None = None
) -> Answer:
    wish = await wish_of(view, params, targets=given(params, "TargetGroup"))
    wish = _consistent(wish, params.get("Consistency"), params, of_group=source_group is not None)
    name = element_name(params.get("RelationshipName"))
    targets: list[str | None] = [None] * len(sources)
    target_group = None
    if given(params, "TargetGroup"):
        target_group = await _group(view, params, "TargetGroup")
        found = await _members(view, target_group, "TargetGroup")
        count = paired(len(sources), len(found), wish.settings.unequal_groups, "UnequalGroupsAction")
        sources, targets = sources[:count], [*found[:count]]
        if set(sources) & set(found):
            raise invalid("an element is both a source and a target")
    check_count(len(sources))
    names = numbered_names(name, len(sources))
    orders = [wish.order(*each) for each in zip(sources, names, targets, strict=True)]
    group = GroupOrder(
        name or f"{source_group.name if source_group else sources[0]} {wish.kind.sync_type.name.lower()}",
        source_group=source_group.group.name if source_group and source_group.group else None,
        target_group=target_group.group.name if target_group and target_group.group else None,
        consistent=wish.settings.at_once and wish.kind.sync_type in (SyncType.SNAPSHOT, SyncType.MIRROR),
    )
    outcome = await _make(view, wish, orders, group)
    return outcome.code, await _group_outputs(view, outcome)


def _consistent(wish: Wish, value: int | None, params: Parameters, *, of_group: bool) -> Wish:
    """Whether all copies are to hold one instant: Consistency overrides the settings, these the group's default.

    By default groups are consistent in what is of one instant anyway, snapshots and new clones. Copies of one element
    are each consistent in themselves.
    """
    if value is not None and value not in tuple(Consistency):
        raise invalid(f"Consistency {value} is neither 2 nor 3")
    sync_type = wish.kind.sync_type
    at_once = wish.settings.at_once
    if value is not None:
        at_once = value == Consistency.SEQUENTIAL
    elif not given(params, "ReplicationSettingData") and sync_type is not SyncType.MIRROR:
        at_once = not given(params, "TargetGroup")
    return replace(wish, settings=replace(wish.settings, at_once=at_once and of_group))


async def _group_outputs(view: View, outcome: Outcome) -> dict[str, CIMInstanceName | None]:
    made = {"Job": await elements.job_path(view, outcome.job), "Synchronization": None, "TargetGroup": None}
    relation = await elements.group_relation(view, outcome.group)
    if relation is not None:
        made["Synchronization"] = await elements.copy_path(view, relation)
        made["TargetGroup"] = (await view.paths()).by_id(elements.GROUP_CLASS, elements.GROUP, relation.target_group)
    return made


async def _group(view: View, params: Parameters, name: str) -> Group:
    """One that volumes are in: the engine's own."""
    group = await elements.group_at(view, params[name])
    if group is None:
        raise invalid(f"{name}: there is no such group")
    if group.group is None:
        raise unsupported(f"{name}: {group.name} is a group of copies that belong to a relation")
    return group


async def _members(view: View, group: Group, name: str) -> list[str]:
    assert group.group is not None
    if not group.group.members:
        raise invalid(f"{name}: group {group.name} has no members")
    return list(group.group.members)


@answering
async def create_group_replica_from_elements(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """As CreateGroupReplica, of a group SourceGroupName that is made of SourceElements."""
    members = await _volumes(view, params, "SourceElements")
    text = element_name(params.get("SourceGroupName"))
    made = await elements.make_group(view, text, members)
    try:
        code, outputs = await _group_to_group(view, params, made)
    except BaseException:
        assert made.group is not None
        await view.api.group_delete(made.group.name)
        await view.api.element_name_set(made.guid, None)
        raise
    return code, outputs | {"SourceGroupName": made.name}


METHODS: dict[tuple[str, str], MethodHandler] = {
    ("CIM_ReplicationService", "CreateElementReplica"): create_element_replica,
    ("CIM_ReplicationService", "CreateListReplica"): create_list_replica,
    ("CIM_ReplicationService", "CreateGroupReplica"): create_group_replica,
    ("CIM_ReplicationService", "CreateGroupReplicaFromElements"): create_group_replica_from_elements,
}
