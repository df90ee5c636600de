"""``twinvol status``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from engine.api import each_snapshot
from twinvol.cli.command import SCHEMA, Output, as_json, size_text, time_text, with_api
from twinvol.cli.exit_codes import ExitCode
from twinvol.cli.pool import space_line

if TYPE_CHECKING:
    from engine.api import EngineApi, SnapshotInfo, StatusInfo, VolumeInfo


@click.command()
@click.option("--tree", is_flag=True, help="With all targets, volumes and snapshots.")
@with_api
async def cli(api: EngineApi, output: Output, tree: bool) -> None:
    """How the pool is. Ends with 10 when it is degraded."""
    status = await api.status()
    if output.json:
        message = {"schema": SCHEMA, **as_json(status)}
        if tree:
            message["volume_tree"] = [
                {**as_json(volume), "snapshot_list": [as_json(each) for each in await _snapshots(api, volume)]}
                for volume in await api.volume_list()
            ]
            message["target_list"] = [as_json(target) for target in await api.target_list()]
        output.line(message)
    else:
        _print(status)
        if tree:
            await _print_tree(api)
    if status.health != "ok":
        sys.exit(ExitCode.DEGRADED)


async def _snapshots(api: EngineApi, volume: VolumeInfo) -> list[SnapshotInfo]:
    return [] if volume.state in ("damaged", "locked") else await each_snapshot(api, volume.name)


def _print(status: StatusInfo) -> None:
    click.echo(f"pool {status.pool}: {status.health} (twinvol {status.version}, pid {status.pid})")
    for reason in status.reasons:
        click.echo(f"  ! {reason}")
    for name in status.interrupted_copies:
        click.echo(f"  the copy to {name} was interrupted: do it again to go on, or discard it: volume delete {name}")
    for path in status.interrupted_exports:
        click.echo(f"  the export to {path} was interrupted: do it again to go on, or cancel its job then")
    click.echo(f"up since {time_text(status.started_at)}; iSCSI at {', '.join(status.iscsi) or '-'}")
    click.echo(
        f"{status.volumes} volumes, {status.snapshots} snapshots, {status.replicas} replicas,"
        f" {status.targets} targets, {status.sessions} sessions, {status.jobs_running} jobs running"
    )
    click.echo(
        f"{size_text(status.provisioned_bytes)} provisioned, {size_text(status.stored_bytes)} stored;"
        f" the host has {size_text(status.free_bytes)} of {size_text(status.total_bytes)} left"
    )
    click.echo(space_line(status.space))


async def _print_tree(api: EngineApi) -> None:
    for volume in await api.volume_list():
        origin = f", clone of {volume.origin}" if volume.origin else ""
        target = f", at {volume.target} LUN {volume.lun}" if volume.target else ""
        reason = f": {volume.reason}" if volume.reason else ""
        click.echo(f"volume {volume.name}  {size_text(volume.size_bytes)}  {volume.state}{reason}{origin}{target}")
        for snapshot in await _snapshots(api, volume):
            target = f", at {snapshot.target} LUN {snapshot.lun}" if snapshot.target else ""
            click.echo(f"  @{snapshot.name}  {time_text(snapshot.created_at)}{target}")
    for info in await api.target_list():
        click.echo(f"target {info.name}  {info.sessions} sessions, admits {', '.join(info.initiators) or 'all'}")
        for lun in info.luns:
            point = f"@{lun.snapshot}" if lun.snapshot else ""
            click.echo(f"  LUN {lun.lun}  {lun.volume}{point}  {lun.state}")
