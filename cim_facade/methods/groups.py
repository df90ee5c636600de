"""Replication groups: CreateGroup, DeleteGroup, AddMembers, RemoveMembers of CIM_ReplicationService.

A group is one of the engine's: ordered, of volumes, kept until it is deleted, also when it is empty; so what asks for
another kind of group is not supported. Groups of copies (a group snapshot, the targets of a relation) come and go with
their relation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade import elements, synchronizations
from cim_facade.errors import ReturnCode
from cim_facade.methods.answering import answering, element_at, require_volume
from cim_facade.methods.requests import Refused, element_name, given, invalid, unsupported
from engine.errors import NotFound

if TYPE_CHECKING:
    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.elements import Group
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters

GROUP_DOES_NOT_EXIST = 7
"""Of AddMembers and RemoveMembers."""
ELEMENTS_IN_RELATIONSHIP = 7
"""Of DeleteGroup."""
MEMBER_NOT_IN_GROUP = 8
"""Of RemoveMembers."""


def _check_policies(params: Parameters) -> None:
    for name, wanted in (("Persistent", True), ("DeleteOnEmptyElement", False), ("DeleteOnUnassociated", False)):
        if params.get(name) not in (None, wanted):
            raise unsupported(f"{name}: groups stay until they are deleted")
    if given(params, "ServiceAccessPoint"):
        raise unsupported("ServiceAccessPoint: groups are made here")
    if given(params, "ReplicationSettingData"):
        raise unsupported("ReplicationSettingData: groups have no settings")


async def _names(view: View, params: Parameters) -> list[str]:
    return [require_volume(await element_at(view, path, "Members"), "Members") for path in params.get("Members") or ()]


@answering
async def create_group(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """GroupName, Members (their order stays; NULL: an empty group) ...; out ReplicationGroup."""
    _check_policies(params)
    group = await elements.make_group(view, element_name(params.get("GroupName")), await _names(view, params))
    return 0, {"ReplicationGroup": (await view.paths()).by_id(elements.GROUP_CLASS, elements.GROUP, group.guid)}


async def _group(view: View, params: Parameters, missing: int) -> tuple[Group, str]:
    """One that can be changed, and its name in the engine. ``missing``: the code when it is not there."""
    path = params.get("ReplicationGroup")
    if path is None:
        raise invalid("ReplicationGroup is required")
    group = await elements.group_at(view, path)
    if group is None:
        raise Refused(missing, "there is no such group")
    if group.group is None:
        raise unsupported(f"{group.name} is a group of copies, which comes and goes with its relation")
    return group, group.group.name


@answering
async def delete_group(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ReplicationGroup, RemoveElements. It must be empty unless RemoveElements; the volumes stay."""
    _check_policies(params)
    group, name = await _group(view, params, ReturnCode.INVALID_PARAMETER)
    relations = await synchronizations.group_copies(view)
    if any(group.guid in (relation.source, relation.target_group) for relation in relations):
        raise Refused(ELEMENTS_IN_RELATIONSHIP, f"group {name} is in a relation with its copies")
    if group.members and not params.get("RemoveElements"):
        raise Refused(ReturnCode.IN_USE, f"group {name} has members; say RemoveElements")
    await view.api.group_delete(name)
    await view.api.element_name_set(group.guid, None)
    return 0, {}


@answering
async def add_members(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Appended in order; who is in it already stays where he is."""
    _check_policies(params)
    _, name = await _group(view, params, GROUP_DOES_NOT_EXIST)
    members = await _names(view, params)
    if not members:
        raise invalid("Members is required")
    info = await view.api.group_show(name)
    new = [member for member in dict.fromkeys(members) if member not in info.members]
    if new:
        await view.api.group_add(name, new)
    return 0, {}


@answering
async def remove_members(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """Who is in a relation of the group's cannot leave."""
    _check_policies(params)
    group, name = await _group(view, params, GROUP_DOES_NOT_EXIST)
    members = await _names(view, params)
    if not members:
        raise invalid("Members is required")
    info = await view.api.group_show(name)
    for member in members:
        if member not in info.members:
            raise Refused(MEMBER_NOT_IN_GROUP, f"{member} is not in group {name}")
    relations = await synchronizations.group_copies(view)
    if any(group.guid in (relation.source, relation.target_group) for relation in relations):
        raise Refused(ReturnCode.IN_USE, f"group {name} is in a relation with its copies")
    try:
        await view.api.group_remove(name, list(dict.fromkeys(members)))
    except NotFound as error:
        raise Refused(MEMBER_NOT_IN_GROUP, str(error)) from error
    return 0, {}


_SERVICE = "CIM_ReplicationService"

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_SERVICE, "CreateGroup"): create_group,
    (_SERVICE, "DeleteGroup"): delete_group,
    (_SERVICE, "AddMembers"): add_members,
    (_SERVICE, "RemoveMembers"): remove_members,
}
