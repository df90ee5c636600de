"""Prometheus metrics, computed from the engine's API when they are asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from engine.api import LATENCY_BOUNDS_US

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client.core import Metric

    from engine.api import DeviceIoInfo, EngineApi, SessionInfo


_SESSION_COUNTERS = (
    ("reads", "READ commands of a session"),
    ("read_bytes", "Bytes that a session has read"),
    ("writes", "WRITE commands of a session"),
    ("written_bytes", "Bytes that a session has written"),
    ("errors", "Answers of a session other than GOOD, unit attentions excepted"),
    ("aborted", "Commands of a session that were aborted"),
)
_SESSION_LABELS = ["target", "initiator", "tsih"]
_DEVICE_LABELS = ["volume", "snapshot"]


class _Io(Collector):
    """What initiators did: of each session since its login, of each volume and snapshot since it is shown."""

    def __init__(self, devices: list[DeviceIoInfo], sessions: list[SessionInfo]) -> None:
        self._devices = devices
        self._sessions = sessions

    def collect(self) -> Iterator[Metric]:
        for key, text in _SESSION_COUNTERS:
            counter = CounterMetricFamily(f"twinvol_session_{key}", text, labels=_SESSION_LABELS)
            for session in self._sessions:
                counter.add_metric(_session(session), getattr(session, key))
            yield counter
        in_flight = GaugeMetricFamily("twinvol_session_in_flight", "Commands in progress", labels=_SESSION_LABELS)
        for session in self._sessions:
            in_flight.add_metric(_session(session), session.in_flight)
        yield in_flight
        errors = CounterMetricFamily(
            "twinvol_io_errors", "Answers other than GOOD, unit attentions excepted", labels=_DEVICE_LABELS
        )
        paths = CounterMetricFamily(
            "twinvol_io_commands", "Commands, by the path that answered them", labels=[*_DEVICE_LABELS, "path"]
        )
        moved = CounterMetricFamily("twinvol_io_bytes", "Bytes of data", labels=[*_DEVICE_LABELS, "kind"])
        latency = HistogramMetricFamily(
            "twinvol_io_latency_seconds",
            "What the target took for a command; on the fast path, the pass that answered it",
            labels=[*_DEVICE_LABELS, "kind"],
        )
        for device in self._devices:
            labels = [device.volume, device.snapshot or ""]
            errors.add_metric(labels, device.errors)
            paths.add_metric([*labels, "fast"], device.fast_commands)
            paths.add_metric([*labels, "plain"], device.plain_commands)
            for io in device.io:
                moved.add_metric([*labels, io.kind], io.bytes)
                bounds = [f"{bound / 1e6:g}" for bound in LATENCY_BOUNDS_US]
                buckets = [*zip(bounds, io.latency_counts, strict=True), ("+Inf", io.commands)]
                latency.add_metric([*labels, io.kind], buckets, io.total_us / 1e6)
        yield from (errors, paths, moved, latency)


def _session(session: SessionInfo) -> list[str]:
    return [session.target, session.initiator, str(session.tsih)]


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
    space = status.space
    gauge("twinvol_pool_used_bytes", "What the pool's files take on the host, unfinished ones too", space.used_bytes)
    gauge("twinvol_pool_left_bytes", "What volumes may still take, by the pool's quota and reserve", space.left_bytes)
    gauge("twinvol_pool_reserve_bytes", "What the pool leaves free on the host", space.reserve_bytes)
    if space.quota_bytes is not None:
        gauge("twinvol_pool_quota_bytes", "The most that the pool's files may take", space.quota_bytes)
    gauge("twinvol_pool_low", "1 while the pool's space is low or used up", space.state != "ok")
    gauge("twinvol_pool_full", "1 while writes that need new space are refused", space.state == "full")
    size = Gauge("twinvol_volume_size_bytes", "Size of a volume", ["volume"], registry=registry)
    served = Gauge("twinvol_volume_served", "1 when the volume is served", ["volume"], registry=registry)
    snapshots = Gauge("twinvol_volume_snapshots", "Snapshots of a volume", ["volume"], registry=registry)
    for volume in await api.volume_list():
        size.labels(volume.name).set(volume.size_bytes)
        served.labels(volume.name).set(volume.state in ("ok", "read-only"))
        snapshots.labels(volume.name).set(volume.snapshots)
    paused = Gauge("twinvol_target_paused", "1 while the target is paused", ["target"], registry=registry)
    for target in await api.target_list():
        paused.labels(target.name).set(target.state == "paused")
    registry.register(_Io(await api.io_list(), await api.session_list()))
    lag = Gauge("twinvol_replica_lag_bytes", "What a replica's target is missing", ["replica"], registry=registry)
    synchronized = Gauge("twinvol_replica_synchronized", "1 while Synchronized", ["replica"], registry=registry)
    for replica in await api.replica_list():
        lag.labels(replica.name).set(replica.lag_bytes)
        synchronized.labels(replica.name).set(replica.copy_state == "Synchronized")
    return generate_latest(registry), CONTENT_TYPE_LATEST
