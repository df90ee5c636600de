"""The pool as a whole: state, space, events. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class EventInfo:
    """``severity``: info, warning or error."""

    at: float
    severity: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True)
class PoolSpaceInfo:
    """The pool's limits and how near they are. ``state``: ok, low (from ``warn_percent`` of what may be used) or full.

    ``quota_bytes``: the most that the volume files may take on the host; None: as much as there is. ``reserve_bytes``:
    what they leave free there; the default, unless ``reserve_is_set``. ``used_bytes``: what they take. ``left_bytes``:
    what volumes may still take.
    """

    state: str
    quota_bytes: int | None
    reserve_bytes: int
    reserve_is_set: bool
    warn_percent: int
    used_bytes: int
    left_bytes: int
    host_total_bytes: int
    host_free_bytes: int


@dataclass(frozen=True, slots=True)
class StatusInfo:
    """``health``: ok, or degraded with ``reasons``. ``free_bytes``: what the host's file system has left.

    ``interrupted_copies``: names of volumes whose copy was interrupted; asking for the same copy goes on with it,
    ``volume_delete`` discards it. ``interrupted_exports``: where to exports were interrupted; asking for the same one
    goes on with it, and cancelling that discards it.
    """

    pool: str
    pid: int
    version: str
    started_at: float
    health: str
    reasons: list[str]
    interrupted_copies: list[str]
    interrupted_exports: list[str]
    iscsi: list[str]
    volumes: int
    snapshots: int
    replicas: int
    targets: int
    sessions: int
    jobs_running: int
    provisioned_bytes: int
    stored_bytes: int
    total_bytes: int
    free_bytes: int
    space: PoolSpaceInfo


class PoolApi(Protocol):
    """See ``engine.api``."""

    async def status(self) -> StatusInfo: ...

    async def pool_space(self) -> PoolSpaceInfo: ...

    async def pool_limit(
        self, *, quota_bytes: int | None, reserve_bytes: int | None, warn_percent: int
    ) -> PoolSpaceInfo:
        """Set the limits of the pool; they hold at once, and stay. ``quota_bytes`` None: no quota; ``reserve_bytes``
        None: the default. Raises InvalidArgument."""
        ...

    async def event_list(self, limit: int = 100) -> list[EventInfo]:
        """The newest events, oldest of them first."""
        ...
