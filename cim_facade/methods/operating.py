"""Operations on what is a copy of something: ModifyReplicaSynchronization and its like, by one table.

What is not in the table for a kind of copy is Not Supported. An operation that takes time answers the number of the
engine's job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade.methods.requests import invalid, unsupported
from cim_facade.synchronizations import Copy, GroupCopy, mirrors
from cim_facade.value_maps import CopyState, Operation, SyncType
from engine.api import CopyOrder, MirrorTerms

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cim_facade.context import View

    Run = Callable[[View, list[Copy], bool], Awaitable[int | None]]


def _mirrors(copies: list[Copy]) -> list[str]:
    return [copy.replica for copy in copies if copy.replica is not None]


def _replica_here(copies: list[Copy]) -> str:
    """The one replica that is to take its source's place."""
    if len(copies) != 1 or copies[0].source_at is None or copies[0].replica is None:
        raise unsupported("this is said to the pool that has the replica, of one replica at a time")
    return copies[0].replica


def _disk_here(copies: list[Copy]) -> str:
    """The one replica whose source is to be where it was before."""
    if len(copies) != 1 or copies[0].target_at is None or copies[0].replica is None:
        raise unsupported("this is said to the pool that has the disk now, of one replica at a time")
    return copies[0].replica


async def _fail_over(view: View, copies: list[Copy], force: bool) -> int | None:
    """Said to the pool that has the replica. ``force``: the source is gone, and what it had not sent is, too."""
    return (await view.api.replica_failover(_replica_here(copies), accept_loss=force, fenced=force)).job


async def _reverse_roles(view: View, copies: list[Copy], force: bool) -> int | None:
    """Nothing is lost, nor copied. Between two pools this is said to the one that has the replica."""
    if len(copies) == 1 and not copies[0].is_remote:
        await view.api.replica_reverse(_mirrors(copies)[0], force=force)
        return None
    return (await view.api.replica_failover(_replica_here(copies))).job


async def _fail_back(view: View, copies: list[Copy], force: bool) -> int | None:
    return (await view.api.replica_failback(_disk_here(copies))).job


async def _restore(view: View, copies: list[Copy], force: bool) -> int | None:
    """The source gets what the replica holds, by what differs."""
    if len(copies) != 1 or copies[0].source_at is not None or copies[0].replica is None:
        raise unsupported("a source is restored where it is, from one replica")
    return (await view.api.replica_restore(copies[0].replica, force=force)).job


def _reset_to(mode: str) -> Run:
    """Kept otherwise from now on; what it promises besides stays."""

    async def reset(view: View, copies: list[Copy], force: bool) -> int | None:
        if any(copy.source_at is not None for copy in copies):
            raise unsupported("how a mirror is kept is said to the pool that has its source")
        for name in _mirrors(copies):
            await view.api.replica_mode(name, MirrorTerms(mode))
        return None

    return reset


async def _abort(view: View, copies: list[Copy], force: bool) -> int | None:
    for name in _mirrors(copies):
        await view.api.replica_abort(name)
    return None


async def _pause(view: View, copies: list[Copy], force: bool) -> int | None:
    for name in _mirrors(copies):
        await view.api.replica_pause(name)
    return None


async def _resume(view: View, copies: list[Copy], force: bool) -> int | None:
    return (await view.api.mirrors_follow("resume", _mirrors(copies))).job


async def _fracture(view: View, copies: list[Copy], force: bool) -> int | None:
    for name in _mirrors(copies):
        await view.api.replica_fracture(name)
    return None


async def _resync(view: View, copies: list[Copy], force: bool) -> int | None:
    return (await view.api.mirrors_follow("resync", _mirrors(copies))).job


async def _detach_mirror(view: View, copies: list[Copy], force: bool) -> int | None:
    for name in _mirrors(copies):
        await view.api.replica_detach(name)
    return None


async def _detach_clone(view: View, copies: list[Copy], force: bool) -> int | None:
    for copy in copies:
        await view.api.relation_end(copy.target)
    return None


async def _copy_again(view: View, copies: list[Copy], force: bool) -> int | None:
    """The clones get what their sources hold now."""
    return await _clone_onto(view, [(_live(copy), copy.target) for copy in copies], related=True)


async def _copy_back(view: View, copies: list[Copy], force: bool) -> int | None:
    """The sources get what the clones hold."""
    return await _clone_onto(view, [(copy.target, _live(copy)) for copy in copies], related=False)


def _live(copy: Copy) -> str:
    """The id of a source that is a volume."""
    if copy.source_guid is not None:
        raise unsupported("the source is a snapshot, which never changes")
    return copy.source


async def _clone_onto(view: View, pairs: list[tuple[str, str]], *, related: bool) -> int:
    orders = []
    for ends in pairs:
        source, target = [await view.volume(each) for each in ends]
        if source is None or target is None:
            raise invalid("Synchronization leads nowhere any more: a volume was deleted")
        orders.append(CopyOrder("clone", source.name, target=target.name, related=related))
    return (await view.api.copies_make(orders)).job


async def _roll_back(view: View, copies: list[Copy], force: bool) -> int | None:
    for volume, snapshot, _ in _snapshots(copies):
        await view.api.snapshot_rollback(volume, snapshot, force=force)
    return None


async def _return_snapshot(view: View, copies: list[Copy], force: bool) -> int | None:
    for volume, snapshot, guid in _snapshots(copies):
        await view.api.snapshot_delete(volume, snapshot, force=force)
        await view.api.element_name_set(guid, None)
    return None


def _snapshots(copies: list[Copy]) -> list[tuple[str, str, str]]:
    """Volume, name and GUID of each."""
    found = []
    for copy in copies:
        assert copy.volume is not None
        assert copy.snapshot is not None
        if copy.group_snapshot is not None:
            raise unsupported(f"{copy.volume}@{copy.snapshot} belongs to group snapshot {copy.group_snapshot}")
        found.append((copy.volume, copy.snapshot, copy.target))
    return found


MIRROR_OPERATIONS: dict[Operation, Run] = {
    Operation.ABORT: _abort,
    Operation.ACTIVATE: _resume,
    Operation.DEACTIVATE: _pause,
    Operation.DETACH: _detach_mirror,
    Operation.DISSOLVE: _detach_mirror,
    Operation.FAILOVER: _fail_over,
    Operation.FAILBACK: _fail_back,
    Operation.FRACTURE: _fracture,
    Operation.RESYNC_REPLICA: _resync,
    Operation.RESTORE_FROM_REPLICA: _restore,
    Operation.RESUME: _resume,
    Operation.RESET_TO_SYNC: _reset_to("sync"),
    Operation.RESET_TO_ASYNC: _reset_to("async"),
    Operation.RESET_TO_ADAPTIVE: _reset_to("adaptive"),
    Operation.REVERSE_ROLES: _reverse_roles,
    Operation.SPLIT: _fracture,
    Operation.SUSPEND: _pause,
}

CLONE_OPERATIONS: dict[Operation, Run] = {
    Operation.DETACH: _detach_clone,
    Operation.DISSOLVE: _detach_clone,
    Operation.RESTORE_FROM_REPLICA: _copy_back,
    Operation.RESYNC_REPLICA: _copy_again,
}

SNAPSHOT_OPERATIONS: dict[Operation, Run] = {
    Operation.RESTORE_FROM_REPLICA: _roll_back,
    Operation.RETURN_TO_RESOURCE_POOL: _return_snapshot,
}

OPERATIONS: dict[SyncType, dict[Operation, Run]] = {
    SyncType.MIRROR: MIRROR_OPERATIONS,
    SyncType.SNAPSHOT: SNAPSHOT_OPERATIONS,
    SyncType.CLONE: CLONE_OPERATIONS,
    SyncType.TOKENIZED_CLONE: CLONE_OPERATIONS,
}

BETWEEN_POOLS = frozenset({Operation.FAILOVER, Operation.FAILBACK})
"""Operations with mirrors to a peer only."""

CHANGING_PLACES = BETWEEN_POOLS | {Operation.REVERSE_ROLES}
"""Operations between pools that a mirrored group does as one."""

ONE_BY_ONE = BETWEEN_POOLS | {Operation.REVERSE_ROLES, Operation.RESTORE_FROM_REPLICA}
"""Operations with one mirror at a time: who is the source, and what it holds, is decided of each by itself."""

OF_NO_MIRRORED_GROUP = frozenset(
    {Operation.ABORT, Operation.RESET_TO_SYNC, Operation.RESET_TO_ASYNC, Operation.RESET_TO_ADAPTIVE}
)
"""Operations with mirrors, also with several, but not where their targets are one instant."""

_OF_A_JOB = frozenset({Operation.ACTIVATE, Operation.RESUME, Operation.RESYNC_REPLICA})
"""Operations with a mirrored group that take time."""

ENDING = (Operation.DETACH, Operation.DISSOLVE, Operation.RETURN_TO_RESOURCE_POOL)
"""Operations after which there is no relation."""

RESULTS = {
    Operation.ACTIVATE: CopyState.SYNCHRONIZED,
    Operation.RESUME: CopyState.SYNCHRONIZED,
    Operation.RESYNC_REPLICA: CopyState.SYNCHRONIZED,
    Operation.FRACTURE: CopyState.FRACTURED,
    Operation.SPLIT: CopyState.FRACTURED,
    Operation.DEACTIVATE: CopyState.SUSPENDED,
    Operation.SUSPEND: CopyState.SUSPENDED,
    Operation.ABORT: CopyState.ABORTED,
}
"""What an operation leads to, so what can be waited for; of a restore, ``result``."""


def result(operation: Operation, sync_type: SyncType) -> CopyState | None:
    """The state that an operation leads to; None: no certain one."""
    if operation is Operation.RESTORE_FROM_REPLICA:
        return CopyState.RESTORED if sync_type is SyncType.MIRROR else CopyState.SYNCHRONIZED
    return RESULTS.get(operation)


def check_operation(number: int | None, sync_type: SyncType) -> Operation:
    """An operation that can be done with copies of a kind. The schema's are 2 to 27."""
    if number is None or number not in tuple(Operation):
        raise invalid(f"Operation {number} is none of 2 to 27")
    operation = Operation(number)
    if operation not in OPERATIONS[sync_type]:
        raise unsupported(f"{operation.name} is nothing that can be done with a {sync_type.name.lower()}")
    return operation


def check_wait(value: int | None, operation: Operation, sync_type: SyncType) -> bool:
    """Whether the end is to be waited for."""
    if value is None:
        return False
    if result(operation, sync_type) != value:
        raise invalid(f"WaitForCopyState {value} is not what {operation.name} leads to")
    return True


async def operate(
    view: View, operation: Operation, copies: list[Copy] | list[GroupCopy], *, force: bool = False
) -> int | None:
    """Do it with all of them, which are of one kind; the number of the engine's job that it takes, if it takes one.

    ``force``: also under initiators that are logged in. A relation of groups: with all of its pairs.
    """
    check_operation(operation, copies[0].sync_type)
    run = OPERATIONS[copies[0].sync_type][operation]
    single = [copy for copy in copies if isinstance(copy, Copy)]
    if any(copy.mirrored_group is not None for copy in single):
        job = await _change_places(view, operation, single, force=force)
        view.forget()
        return job
    job = None
    mirrored = [copy for copy in copies if isinstance(copy, GroupCopy) and any(m.mirrored_group for m in copy.members)]
    if mirrored and len(copies) > 1 and operation in _OF_A_JOB:
        raise unsupported(f"{operation.name} of a mirrored group is a job of its own: one at a time")
    for group in (copy for copy in copies if isinstance(copy, GroupCopy)):
        whole = {member.group_snapshot for member in group.members} - {None}
        for label in whole:
            await _operate_group_snapshot(view, operation, str(label), force=force)
        for name in {member.mirrored_group for member in group.members} - {None}:
            job = await _operate_mirrored_group(view, operation, str(name))
        if not whole and group not in mirrored:
            single += group.members
    job = await run(view, single, force) if single else job
    if operation in ENDING:
        for group in (copy for copy in copies if isinstance(copy, GroupCopy)):
            await view.api.group_relation_end(group.guid)
    view.forget()
    return job


async def _change_places(view: View, operation: Operation, copies: list[Copy], *, force: bool) -> int | None:
    """All members of one mirrored group, which change places as one. The pool that has the replicas knows them by
    their mirrors only; so they are said as a list."""
    names = {copy.mirrored_group for copy in copies}
    name = names.pop()
    members = {copy.replica for copy in await mirrors(view) if copy.mirrored_group == name}
    if names or name is None or {copy.replica for copy in copies} != members or operation not in CHANGING_PLACES:
        raise unsupported("members of a mirrored group have one state: change that of the groups, or of all members")
    if operation is Operation.FAILBACK:
        if any(copy.target_at is None for copy in copies):
            raise unsupported("this is said to the pool that has the disks now")
        return (await view.api.group_replica_failback(name)).job
    if any(copy.source_at is None for copy in copies):
        raise unsupported("this is said to the pool that has the replicas")
    gone = force and operation is Operation.FAILOVER
    return (await view.api.group_replica_failover(name, accept_loss=gone, fenced=gone)).job


async def _operate_mirrored_group(view: View, operation: Operation, name: str) -> int | None:
    """Mirrors whose targets are one instant of all."""
    match operation:
        case Operation.DETACH | Operation.DISSOLVE:
            await view.api.group_replica_detach(name)
        case Operation.FRACTURE | Operation.SPLIT:
            await view.api.group_replica_fracture(name)
        case Operation.SUSPEND | Operation.DEACTIVATE:
            await view.api.group_replica_pause(name)
        case Operation.RESUME | Operation.ACTIVATE:
            return (await view.api.group_replica_resume(name)).job
        case Operation.RESYNC_REPLICA:
            return (await view.api.group_replica_resync(name)).job
        case _:
            raise unsupported(f"{operation.name} of a mirrored group")
    return None


async def _operate_group_snapshot(view: View, operation: Operation, label: str, *, force: bool) -> None:
    name, _, snapshot = label.partition("@")
    if operation is Operation.RESTORE_FROM_REPLICA:
        await view.api.group_rollback(name, snapshot, force=force)
    else:
        await view.api.group_snapshot_delete(name, snapshot, force=force)
