"""What has changed, for whoever wants to know it without asking all the time; and records kept for clients. See
``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

CHANGE_PAGE = 256
"""Changes in one page at most."""

CHANGE_WAIT_MAX_S = 60.0

RECORD_BYTES_MAX = 64 * 1024
RECORDS_MAX = 4096
"""Of one kind."""


@dataclass(frozen=True, slots=True)
class ChangeInfo:
    """Something that was created, modified or deleted (``verb``). Numbers grow; times are seconds since the epoch.

    ``kind``: volume, snapshot, replica, job, clone (a full clone's relation to its source) or group (a relation of
    groups). ``subject``: its id, GUID, name or number. ``before`` and ``after``: the fields of ``VolumeInfo``,
    ``SnapshotInfo`` (with ``volume_id``, and ``of``, its volume), ``ReplicaInfo``, ``JobInfo``, ``RelationInfo`` or
    ``GroupRelationInfo`` then.
    Of kind ``lost``: that many changes (``after["count"]``) could not be recorded.
    """

    number: int
    at: float
    kind: str
    verb: str
    subject: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


@dataclass(frozen=True, slots=True)
class ChangePage:
    """``newest``: the number of the last change that there is, in the page or behind it."""

    newest: int
    changes: list[ChangeInfo] = field(default_factory=list)


class ChangeApi(Protocol):
    """See ``engine.api``."""

    async def change_watch(self, watcher: str) -> int:
        """Have changes recorded for ``watcher``, also over restarts; what it has dealt with, so far nothing if it is
        new. While nobody watches, nothing is recorded."""
        ...

    async def change_unwatch(self, watcher: str) -> None:
        """It wants no more of them. One that did not watch is no error."""
        ...

    async def change_list(self, after: int, *, limit: int = CHANGE_PAGE, timeout_s: float = 0.0) -> ChangePage:
        """The changes behind number ``after``, oldest first; if there are none, as soon as there is one, or when the
        time is up. The oldest of more than 10,000 are gone: then the first number is not ``after`` + 1."""
        ...

    async def change_done(self, watcher: str, position: int) -> None:
        """It wants nothing again that is not behind ``position``. Raises NotFound: it does not watch."""
        ...

    async def record_list(self, kind: str) -> dict[str, str]:
        """The documents that were kept under a kind, by name."""
        ...

    async def record_put(self, kind: str, documents: dict[str, str | None]) -> None:
        """Keep documents, all or none, in the place of those of the same names; None: forget it. Raises
        InvalidArgument: one is too long, or there would be too many."""
        ...
