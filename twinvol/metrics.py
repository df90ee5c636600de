"""Prometheus metrics, computed from the engine's API when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

if TYPE_CHECKING:
    from engine.api import EngineApi


async def render(api: EngineApi) -> tuple[bytes, str]:
    """The exposition and its content type."""
    status = await api.status()
    registry = CollectorRegistry()

    def gauge(name: str, text: str, value: float) -> None:
        Gauge(name, text, registry=registry).set(value)

    gauge("twinvol_healthy", "1 when nothing is degraded", status.health == "ok")
    gauge("twinvol_start_time_seconds", "When the daemon started, in seconds since the epoch", status.started_at)
    gauge("twinvol_targets", "iSCSI targets", status.targets)
    gauge("twinvol_sessions", "Logged-in iSCSI sessions", status.sessions)
    gauge("twinvol_jobs_running", "Jobs that are not over", status.jobs_running)
    gauge("twinvol_provisioned_bytes", "Sum of the volumes' sizes", status.provisioned_bytes)
    gauge("twinvol_stored_bytes", "What the volume files take on the host", status.stored_bytes)
    gauge("twinvol_host_free_bytes", "What the host's file system has left", status.free_bytes)
    size = Gauge("twinvol_volume_size_bytes", "Size of a volume", ["volume"], registry=registry)
    served = Gauge("twinvol_volume_served", "1 when the volume is served", ["volume"], registry=registry)
    snapshots = Gauge("twinvol_volume_snapshots", "Snapshots of a volume", ["volume"], registry=registry)
    for volume in await api.volume_list():
        size.labels(volume.name).set(volume.size_bytes)
        served.labels(volume.name).set(volume.state in ("ok", "read-only"))
        snapshots.labels(volume.name).set(volume.snapshots)
    counters = {
        key: Gauge(f"twinvol_session_{key}", text, ["target", "initiator", "tsih"], registry=registry)
        for key, text in (
            ("reads", "READ commands of a session"),
            ("read_bytes", "Bytes that a session has read"),
            ("writes", "WRITE commands of a session"),
            ("written_bytes", "Bytes that a session has written"),
        )
    }
    for session in await api.session_list():
        for key, counter in counters.items():
            counter.labels(session.target, session.initiator, str(session.tsih)).set(getattr(session, key))
    lag = Gauge("twinvol_replica_lag_bytes", "What a replica's target is missing", ["replica"], registry=registry)
    synchronized = Gauge("twinvol_replica_synchronized", "1 while Synchronized", ["replica"], registry=registry)
    for replica in await api.replica_list():
        lag.labels(replica.name).set(replica.lag_bytes)
        synchronized.labels(replica.name).set(replica.copy_state == "Synchronized")
    return generate_latest(registry), CONTENT_TYPE_LATEST
