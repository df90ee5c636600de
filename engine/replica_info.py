"""Replicas as users see them: values of ``EngineApi``, from mirrors that run, from rows, and from what peers say.

Nothing here asks anybody or changes anything. ``ReplicaInfo`` is imported where it is made: see ``engine.api``.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.copy_state import CopyMode, CopyState, ProgressStatus, SyncType, label
from engine.modes import Promise

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.api import ReplicaInfo
    from engine.catalog_peers import PeerTargetRow
    from engine.links.disk import DiskLink
    from engine.mirror import Mirror
    from engine.mirror_operations import MirrorOperations
    from engine.mirror_record import RecoveryPoint


def info_at_rest(mode: str, peer: str | None, reason: str) -> ReplicaInfo:
    """Of one that does not run. It has no name and no ends yet, nor has ``mirror_info``'s."""
    from engine.api import ReplicaInfo

    return ReplicaInfo(
        name="",
        source="",
        target="",
        mode=mode,
        sync_type=label(SyncType.MIRROR),
        copy_state=label(CopyState.INVALID),
        progress_status=label(ProgressStatus.UNKNOWN),
        percent_synced=0,
        lag_seconds=None,
        lag_bytes=0,
        rpo_seconds=None,
        peer=peer,
        reason=reason,
        since=None,
        waits_for="its volumes",
        next_action="twinvol status",
    )


def mirror_info(mirror: MirrorOperations[Any, Any, Any], mode: str, peer: str | None) -> ReplicaInfo:
    """What is so of every mirror that runs, of one volume or of a group."""
    from engine.api import ReplicaInfo

    standing, figures = mirror.standing, mirror.figures
    return ReplicaInfo(
        name="",
        source="",
        target="",
        mode=mode,
        sync_type=label(mirror.sync_type),
        copy_state=label(standing.state),
        progress_status=label(standing.progress),
        percent_synced=figures.percent_synced,
        lag_seconds=figures.lag_s,
        lag_bytes=figures.lag_bytes,
        rpo_seconds=figures.rpo_s,
        peer=peer,
        reason=standing.reason,
        since=standing.since,
        waits_for=standing.waits_for,
        next_action=standing.next_action,
        exact=figures.is_exact,
        forecast_seconds=figures.forecast_s,
        promise=None if figures.promise is None else figures.promise.value,
        points=len(mirror.points),
        point_at=mirror.points[-1].at if mirror.points else None,
        switches=mirror.switches,
        rounds=figures.rounds,
        resumed_rounds=figures.rounds_resumed,
        written_bytes=figures.written_bytes,
        identical_bytes=figures.equal_bytes,
    )


def single_info(mirror: Mirror, mode: str, peer: str | None, disk: DiskLink | None) -> ReplicaInfo:
    """Of a mirror of one volume. ``disk``: its target, if that is a disk of elsewhere."""
    info = mirror_info(mirror, mode, peer)
    return replace(
        info,
        name=mirror.name,
        source=mirror.source.name,
        target=mirror.link.target_name,
        latency_budget_seconds=None if mirror.mode is CopyMode.ASYNCHRONOUS else mirror.policy.budget_s,
        points=0 if disk is not None else info.points,
        target_consistent=disk is None or disk.is_whole,
        failed_copy_stops_host_io=mirror.policy.stops_host_io,
        host_io_stopped=mirror.source.is_held_by(mirror.name),
    )


def arriving_info(
    row: PeerTargetRow, target: str, report: dict[str, Any], reason: str, points: Sequence[RecoveryPoint], now: float
) -> ReplicaInfo:
    """Of one that is here for a source at a peer. ``report``: what that said last; empty while it is not connected."""
    from engine.api import ReplicaInfo

    newest = points[-1].at if points else None
    return ReplicaInfo(
        name=row.name,
        source=f"{row.peer}:{row.source}",
        target=target,
        mode=row.mode,
        sync_type=label(SyncType.MIRROR),
        copy_state=report.get("copy_state", label(CopyState.BROKEN)),
        progress_status=report.get("progress_status", label(ProgressStatus.UNKNOWN)),
        percent_synced=report.get("percent_synced", 0),
        lag_seconds=None if newest is None else max(0.0, now - newest),
        lag_bytes=0,
        rpo_seconds=None,
        peer=row.peer,
        reason=reason,
        since=None,
        waits_for="" if report else "its source",
        next_action=f"twinvol replica show {row.name}, at peer {row.peer}",
        points=len(points),
        point_at=newest,
        target_id=row.volume_id,
    )


def trouble(what: str, mirror: MirrorOperations[Any, Any, Any]) -> list[str]:
    """A line, if a mirror does not do what it is for, and was not told so by its owner."""
    figures = mirror.figures
    if mirror.standing.state is CopyState.BROKEN:
        return [f"{what} is {label(mirror.standing.state)}: {mirror.standing.reason}"]
    if figures.promise in (Promise.AT_RISK, Promise.BROKEN):
        lag = "no complete recovery point" if figures.lag_s is None else f"lag {figures.lag_s:.0f} s"
        return [f"{what}: its RPO of {figures.rpo_s:g} s is {figures.promise.value} ({lag})"]
    return []
