"""Operations on what is a copy of something: ModifyReplicaSynchronization and its like, by one table.

What is not in the table for a kind of copy is Not Supported. An operation that takes time answers the number of the
engine's job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cim_facade.methods.requests import invalid, unsupported
from cim_facade.synchronizations import Copy, GroupCopy
from cim_facade.value_maps import CopyState, Operation, SyncType

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from cim_facade.context import View

    Run = Callable[[View, Copy], Awaitable[int | None]]


def _mirror(copy: Copy) -> str:
    assert copy.replica is not None
    return copy.replica


async def _pause(view: View, copy: Copy) -> int | None:
    await view.api.replica_pause(_mirror(copy))
    return None


async def _resume(view: View, copy: Copy) -> int | None:
    return (await view.api.replica_resume(_mirror(copy))).job


async def _fracture(view: View, copy: Copy) -> int | None:
    await view.api.replica_fracture(_mirror(copy))
    return None


async def _resync(view: View, copy: Copy) -> int | None:
    return (await view.api.replica_resync(_mirror(copy))).job


async def _detach_mirror(view: View, copy: Copy) -> int | None:
    await view.api.replica_detach(_mirror(copy))
    return None


async def _detach_clone(view: View, copy: Copy) -> int | None:
    await view.api.relation_end(copy.target)
    return None


async def _roll_back(view: View, copy: Copy) -> int | None:
    assert copy.volume is not None
    assert copy.snapshot is not None
    await view.api.snapshot_rollback(copy.volume, copy.snapshot)
    return None


async def _return_snapshot(view: View, copy: Copy) -> int | None:
    assert copy.volume is not None
    assert copy.snapshot is not None
    if copy.group_snapshot is not None:
        raise unsupported(f"{copy.volume}@{copy.snapshot} belongs to group snapshot {copy.group_snapshot}")
    await view.api.snapshot_delete(copy.volume, copy.snapshot)
    await view.api.element_name_set(copy.target, None)
    return None


MIRROR_OPERATIONS: dict[Operation, Run] = {
    Operation.ACTIVATE: _resume,
    Operation.DEACTIVATE: _pause,
    Operation.DETACH: _detach_mirror,
    Operation.DISSOLVE: _detach_mirror,
    Operation.FRACTURE: _fracture,
    Operation.RESYNC_REPLICA: _resync,
    Operation.RESUME: _resume,
    Operation.SPLIT: _fracture,
    Operation.SUSPEND: _pause,
}

CLONE_OPERATIONS: dict[Operation, Run] = {Operation.DETACH: _detach_clone, Operation.DISSOLVE: _detach_clone}

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

GROUP_OPERATIONS = {
    SyncType.MIRROR: frozenset(MIRROR_OPERATIONS),
    SyncType.SNAPSHOT: frozenset(SNAPSHOT_OPERATIONS),
    SyncType.CLONE: frozenset(CLONE_OPERATIONS),
    SyncType.TOKENIZED_CLONE: frozenset(CLONE_OPERATIONS),
}
"""Of a relation of groups: on all of its pairs."""

RESULTS = {
    Operation.ACTIVATE: CopyState.SYNCHRONIZED,
    Operation.RESUME: CopyState.SYNCHRONIZED,
    Operation.RESYNC_REPLICA: CopyState.SYNCHRONIZED,
    Operation.FRACTURE: CopyState.FRACTURED,
    Operation.SPLIT: CopyState.FRACTURED,
    Operation.DEACTIVATE: CopyState.SUSPENDED,
    Operation.SUSPEND: CopyState.SUSPENDED,
}
"""What an operation leads to, so what can be waited for."""


def check_operation(number: int | None, sync_type: SyncType) -> Operation:
    """An operation that can be done with copies of a kind. The schema's are 2 to 27."""
    if number is None or number not in tuple(Operation):
        raise invalid(f"Operation {number} is none of 2 to 27")
    operation = Operation(number)
    if operation not in OPERATIONS[sync_type]:
        raise unsupported(f"{operation.name} is nothing that can be done with a {sync_type.name.lower()}")
    return operation


def check_wait(value: int | None, operation: Operation) -> bool:
    """Whether the end is to be waited for."""
    if value is None:
        return False
    if RESULTS.get(operation) != value:
        raise invalid(f"WaitForCopyState {value} is not what {operation.name} leads to")
    return True


async def operate(view: View, operation: Operation, copy: Copy | GroupCopy) -> list[int]:
    """Do it; the numbers of the engine's jobs that it takes. A relation of groups: all of its pairs, in order."""
    check_operation(operation, copy.sync_type)
    if isinstance(copy, GroupCopy):
        return await _operate_group(view, operation, copy)
    job = await OPERATIONS[copy.sync_type][operation](view, copy)
    view.forget()
    return [] if job is None else [job]


async def _operate_group(view: View, operation: Operation, group: GroupCopy) -> list[int]:
    whole = [member.group_snapshot for member in group.members if member.group_snapshot is not None]
    if whole:
        return await _operate_group_snapshot(view, operation, whole[0])
    run = OPERATIONS[group.sync_type][operation]
    jobs = [job for member in group.members if (job := await run(view, member)) is not None]
    if operation in (Operation.DETACH, Operation.DISSOLVE, Operation.RETURN_TO_RESOURCE_POOL):
        await view.api.group_relation_end(group.guid)
    view.forget()
    return jobs


async def _operate_group_snapshot(view: View, operation: Operation, label: str) -> list[int]:
    name, _, snapshot = label.partition("@")
    if operation is Operation.RESTORE_FROM_REPLICA:
        await view.api.group_rollback(name, snapshot)
    else:
        await view.api.group_snapshot_delete(name, snapshot)
    view.forget()
    return []
