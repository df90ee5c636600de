"""The state of a copy relation: one table for mirrors, clones, snapshots and groups.

``CopyState`` and ``ProgressStatus`` are CIM_Synchronized's, with its numbers; the states are those of section 5.1
of the DMTF class. An event that the table does not have for a state is refused with ``InvalidState``, and nothing
else changes a state.

    Initialized --begin--> Unsynchronized --converged--> Synchronized
    Synchronized --resync/fracture/suspend/break--> Unsynchronized / Fractured / Suspended / Broken
    Fractured, Suspended, Broken, Aborted, Restored --resync or resume--> Unsynchronized
    Fractured --restore, restored--> Restored        Unsynchronized, Suspended, Broken --abort--> Aborted
    Failedover --fail back--> Unsynchronized

Every state that is not green carries a ``Standing``: why, since when, what it waits for and what to do.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass

from engine.errors import InvalidState


class SyncType(enum.IntEnum):
    """CIM_Synchronized.SyncType."""

    MIRROR = 6
    SNAPSHOT = 7
    CLONE = 8


class CopyMode(enum.IntEnum):
    """CIM_Synchronized.Mode."""

    SYNCHRONOUS = 2
    ASYNCHRONOUS = 3
    ADAPTIVE = 4


class CopyState(enum.IntEnum):
    """CIM_Synchronized.CopyState."""

    INITIALIZED = 2
    UNSYNCHRONIZED = 3
    SYNCHRONIZED = 4
    BROKEN = 5
    FRACTURED = 6
    SPLIT = 7
    INACTIVE = 8
    SUSPENDED = 9
    FAILEDOVER = 10
    PREPARED = 11
    ABORTED = 12
    SKEWED = 13
    MIXED = 14
    NOT_APPLICABLE = 15
    PARTITIONED = 16
    INVALID = 17
    RESTORED = 18


class ProgressStatus(enum.IntEnum):
    """CIM_Synchronized.ProgressStatus."""

    UNKNOWN = 0
    COMPLETED = 2
    DORMANT = 3
    INITIALIZING = 4
    PREPARING = 5
    SYNCHRONIZING = 6
    RESYNCING = 7
    RESTORING = 8
    FRACTURING = 9
    SPLITTING = 10
    FAILING_OVER = 11
    FAILING_BACK = 12
    ABORTING = 13
    MIXED = 14
    NOT_APPLICABLE = 15
    SUSPENDING = 16
    REQUIRES_FRACTURE = 17
    REQUIRES_RESYNC = 18
    REQUIRES_ACTIVATE = 19
    PENDING = 20
    DETACHING = 21


def label(value: CopyState | ProgressStatus | SyncType | CopyMode) -> str:
    """The DMTF's name of a value: Synchronized, Requires resync."""
    text: str = value.name.replace("_", " ").capitalize()
    return "Not Applicable" if text == "Not applicable" else text


class CopyEvent(enum.Enum):
    """What can happen to a relation."""

    BEGIN = "begin"  # the first copy starts
    RESYNC = "resync"  # a round starts from a common point, or after a restart
    CONVERGED = "converged"  # source and target have the same, durably
    FRACTURE = "fracture"
    SUSPEND = "suspend"
    RESUME = "resume"
    BREAK = "break"  # the target or the link failed
    ABORT = "abort"  # what was half copied is given up
    RESTORE = "restore"  # the source is to get what the target holds
    RESTORED = "restored"  # it has
    GIVE_UP = "give up"  # it has not, and is as it was
    FAIL_OVER = "fail over"
    FAIL_BACK = "fail back"


_S, _P, _E = CopyState, ProgressStatus, CopyEvent

TRANSITIONS: dict[tuple[CopyState, CopyEvent], tuple[CopyState, ProgressStatus]] = {
    (_S.INITIALIZED, _E.BEGIN): (_S.UNSYNCHRONIZED, _P.SYNCHRONIZING),
    (_S.INITIALIZED, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.INITIALIZED, _E.BREAK): (_S.BROKEN, _P.REQUIRES_RESYNC),
    (_S.UNSYNCHRONIZED, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.UNSYNCHRONIZED, _E.CONVERGED): (_S.SYNCHRONIZED, _P.COMPLETED),
    (_S.UNSYNCHRONIZED, _E.FRACTURE): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.UNSYNCHRONIZED, _E.SUSPEND): (_S.SUSPENDED, _P.DORMANT),
    (_S.UNSYNCHRONIZED, _E.BREAK): (_S.BROKEN, _P.REQUIRES_RESYNC),
    (_S.UNSYNCHRONIZED, _E.ABORT): (_S.ABORTED, _P.REQUIRES_RESYNC),
    (_S.SYNCHRONIZED, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.SYNCHRONIZED, _E.FRACTURE): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.SYNCHRONIZED, _E.SUSPEND): (_S.SUSPENDED, _P.DORMANT),
    (_S.SYNCHRONIZED, _E.BREAK): (_S.BROKEN, _P.REQUIRES_RESYNC),
    (_S.SYNCHRONIZED, _E.ABORT): (_S.ABORTED, _P.REQUIRES_RESYNC),
    (_S.SYNCHRONIZED, _E.FAIL_OVER): (_S.FAILEDOVER, _P.COMPLETED),
    (_S.FRACTURED, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.FRACTURED, _E.FAIL_OVER): (_S.FAILEDOVER, _P.COMPLETED),
    (_S.FRACTURED, _E.RESTORE): (_S.FRACTURED, _P.RESTORING),
    (_S.FRACTURED, _E.RESTORED): (_S.RESTORED, _P.COMPLETED),
    (_S.FRACTURED, _E.GIVE_UP): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.SUSPENDED, _E.RESUME): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.SUSPENDED, _E.FRACTURE): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.SUSPENDED, _E.FAIL_OVER): (_S.FAILEDOVER, _P.COMPLETED),
    (_S.SUSPENDED, _E.ABORT): (_S.ABORTED, _P.REQUIRES_RESYNC),
    (_S.BROKEN, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.BROKEN, _E.SUSPEND): (_S.SUSPENDED, _P.DORMANT),
    (_S.BROKEN, _E.FRACTURE): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.BROKEN, _E.FAIL_OVER): (_S.FAILEDOVER, _P.COMPLETED),
    (_S.BROKEN, _E.ABORT): (_S.ABORTED, _P.REQUIRES_RESYNC),
    (_S.ABORTED, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.ABORTED, _E.FRACTURE): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.RESTORED, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.RESTORED, _E.FRACTURE): (_S.FRACTURED, _P.REQUIRES_RESYNC),
    (_S.FAILEDOVER, _E.RESYNC): (_S.UNSYNCHRONIZED, _P.RESYNCING),
    (_S.FAILEDOVER, _E.FAIL_BACK): (_S.UNSYNCHRONIZED, _P.FAILING_BACK),
}


def after(state: CopyState, event: CopyEvent, what: str) -> tuple[CopyState, ProgressStatus]:
    """Where ``event`` leads from ``state``. ``what`` names the relation in the error.

    Raises:
        InvalidState: the table has no such transition.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        wanted = sorted(s.name.capitalize() for s, e in TRANSITIONS if e is event)
        raise InvalidState(what, state.name.capitalize(), f"one of {', '.join(wanted)}") from None


@dataclass(frozen=True, slots=True)
class Standing:
    """A state with its explanation. ``reason`` is empty only where there is nothing to explain.

    ``since``: seconds since the epoch. ``waits_for`` and ``next_action`` are sentences for the administrator.
    """

    state: CopyState
    progress: ProgressStatus
    since: float
    reason: str = ""
    waits_for: str = ""
    next_action: str = ""
