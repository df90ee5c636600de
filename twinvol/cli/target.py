"""``twinvol target``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.access_state import MAX_PAUSE_S, MAX_RECORDED, SETTABLE
from twinvol.cli import chap
from twinvol.cli.command import Output, time_text, volume_point, with_api
from twinvol.cli.observed import COMMAND_COLUMNS, command_row, session_lines

if TYPE_CHECKING:
    from engine.api import EngineApi, TargetInfo


@click.group()
def cli() -> None:
    """iSCSI targets. NAME is an iSCSI name, or the part of it behind the pool's prefix."""


cli.add_command(chap.cli, "chap")


@cli.command()
@click.argument("name")
@click.option("--initiator", "initiators", multiple=True, help="Admit only this initiator; repeatable.")
@click.option("--portal-group", "groups", type=int, multiple=True, help="Reached through this one only; repeatable.")
@with_api
async def create(
    api: EngineApi, output: Output, name: str, initiators: tuple[str, ...], groups: tuple[int, ...]
) -> None:
    """Make an empty target."""
    info = await api.target_create(name, initiators=list(initiators), portal_groups=list(groups))
    output.object(info, f"target {info.name}")


@cli.command("list")
@with_api
async def list_(api: EngineApi, output: Output) -> None:
    """All targets."""
    targets = await api.target_list()
    if output.json:
        output.list("targets", targets, [])
        return
    rows = [
        {
            "name": target.name,
            "luns": [_lun(target, each.lun) for each in target.luns],
            "sessions": target.sessions,
            "state": target.state,
        }
        for target in targets
    ]
    output.list("targets", rows, ["name", "luns", "sessions", "state"])


@cli.command()
@click.argument("name")
@with_api
async def show(api: EngineApi, output: Output, name: str) -> None:
    """One target."""
    info = await api.target_show(name)
    if output.json:
        output.object(info)
        return
    state = "" if info.resumes_at is None else f"  paused until {time_text(info.resumes_at)}"
    click.echo(f"{info.name}  portals {', '.join(info.portals)}  sessions {info.sessions}{state}")
    click.echo(f"portal groups: {', '.join(map(str, info.portal_groups)) or 'all'}")
    click.echo(f"initiators: {', '.join(info.initiators) or 'all'}")
    if info.chap.required:
        mutual = f", mutual as {info.chap.mutual_user}" if info.chap.mutual_user else ""
        click.echo(f"CHAP users: {', '.join(info.chap.users)}{mutual}")
    for lun in info.luns:
        click.echo(f"LUN {_lun(info, lun.lun)}  {lun.size_bytes} bytes  serial {lun.serial}  {lun.access}  {lun.state}")
        if lun.initiators:
            click.echo(f"  only for {', '.join(lun.initiators)}")


@cli.command()
@click.argument("name")
@click.option("--force", is_flag=True, help="End its sessions.")
@with_api
async def delete(api: EngineApi, output: Output, name: str, force: bool) -> None:
    """Delete a target; its volumes stay."""
    await api.target_delete(name, force=force)
    output.done(f"target {name} is deleted")


@cli.command()
@click.argument("target")
@click.argument("groups", nargs=-1, type=int, metavar="[TAG]...")
@click.option("--all", "is_all", is_flag=True, help="Through every portal group.")
@with_api
async def bind(api: EngineApi, output: Output, target: str, groups: tuple[int, ...], is_all: bool) -> None:
    """Have a target reached through these portal groups only; sessions through others end."""
    if bool(groups) == is_all:
        raise click.UsageError("name portal groups, or say --all")
    info = await api.target_bind(target, portal_groups=list(groups))
    output.object(info, f"target {info.name} is reached at {', '.join(info.portals)}")


@cli.command()
@click.argument("name")
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(0, MAX_PAUSE_S, min_open=True),
    default=20.0,
    show_default=True,
    help="Resume by itself after so many seconds. Initiators give up a command after 30 s (Linux's default).",
)
@with_api
async def pause(api: EngineApi, output: Output, name: str, timeout_s: float) -> None:
    """Hold all commands: initiators wait and see no error. Returns when none touches a volume."""
    info = await api.target_pause(name, timeout_s=timeout_s)
    output.object(info, f"target {info.name} is paused for {timeout_s:g} s, or until: twinvol target resume {name}")


@cli.command()
@click.argument("name")
@with_api
async def resume(api: EngineApi, output: Output, name: str) -> None:
    """Serve again, what was held first. Fails when the pause had ended by itself."""
    info = await api.target_resume(name)
    output.object(info, f"target {info.name} is served again")


@cli.group()
def lun() -> None:
    """What a target shows."""


@lun.command("add")
@click.argument("target")
@click.argument("volume", type=volume_point, metavar="VOLUME[@SNAPSHOT]")
@click.option("--lun", "number", type=int, help="By default the lowest free one.")
@click.option("--initiator", "initiators", multiple=True, help="Show it to this initiator only; repeatable.")
@click.option(
    "--standby", is_flag=True, help="Show the replica VOLUME as a standby path of its source: same serial and NAA."
)
@with_api
async def lun_add(
    api: EngineApi,
    output: Output,
    target: str,
    volume: tuple[str, str | None],
    number: int | None,
    initiators: tuple[str, ...],
    standby: bool,
) -> None:
    """Show VOLUME or VOLUME@SNAPSHOT (read-only)."""
    info = await api.target_lun_add(
        target, volume[0], snapshot=volume[1], lun=number, initiators=list(initiators), standby=standby
    )
    output.object(info, f"target {info.name}: LUNs {', '.join(_lun(info, each.lun) for each in info.luns)}")


@lun.command("remove")
@click.argument("target")
@click.argument("number", type=int, metavar="LUN")
@click.option("--force", is_flag=True, help="Remove it under logged-in initiators.")
@with_api
async def lun_remove(api: EngineApi, output: Output, target: str, number: int, force: bool) -> None:
    """Show it no longer; the volume stays."""
    info = await api.target_lun_remove(target, number, force=force)
    output.object(info, f"target {info.name}: LUN {number} is removed")


@lun.command("mask")
@click.argument("target")
@click.argument("number", type=int, metavar="LUN")
@click.argument("initiators", nargs=-1, metavar="[INITIATOR]...")
@click.option("--all", "is_all", is_flag=True, help="Show it to every initiator that the target admits.")
@with_api
async def lun_mask(
    api: EngineApi, output: Output, target: str, number: int, initiators: tuple[str, ...], is_all: bool
) -> None:
    """Show a LUN to these initiators only; for others it is not there."""
    if bool(initiators) == is_all:
        raise click.UsageError("name initiators, or say --all")
    info = await api.target_lun_mask(target, number, initiators=list(initiators))
    shown_to = "every initiator that it admits" if is_all else ", ".join(initiators)
    output.object(info, f"target {info.name} shows LUN {number} to {shown_to}")


@cli.group()
def alua() -> None:
    """Asymmetric access: in which state a target offers its LUNs. A target is a target port group."""


@alua.command("show")
@click.argument("target")
@with_api
async def alua_show(api: EngineApi, output: Output, target: str) -> None:
    """The states of a target's LUNs, and the other ways to the same disks."""
    info = await api.target_show(target)
    serials = {lun.serial for lun in info.luns}
    ways = [
        {
            "serial": lun.serial,
            "target": way.name,
            "lun": lun.lun,
            "volume": lun.volume + (f"@{lun.snapshot}" if lun.snapshot else ""),
            "port_group": way.port_group,
            "access": lun.access,
            "standby": lun.standby,
        }
        for way in sorted(await api.target_list(), key=lambda way: way.port_group)
        for lun in way.luns
        if lun.serial in serials
    ]
    ways.sort(key=lambda way: str(way["serial"]))
    output.list("ways", ways, ["serial", "port_group", "target", "lun", "volume", "access"])


@alua.command("set")
@click.argument("target")
@click.argument("state", type=click.Choice([state.label for state in SETTABLE]))
@click.option("--lun", "number", type=int, help="By default all LUNs of the target.")
@with_api
async def alua_set(api: EngineApi, output: Output, target: str, state: str, number: int | None) -> None:
    """Offer LUNs in another state. Initiators are told; running writes end first."""
    info = await api.target_access_state(target, state, lun=number)
    output.object(info, f"target {info.name}: {', '.join(f'LUN {lun.lun} {lun.access}' for lun in info.luns)}")


@alua.command("activate")
@click.argument("target")
@click.option("--lun", "number", type=int, help="By default all LUNs of the target.")
@with_api
async def alua_activate(api: EngineApi, output: Output, target: str, number: int | None) -> None:
    """Make this target the one active way to its disks, and the others standby, in one step."""
    info = await api.target_activate(target, lun=number)
    output.object(info, f"target {info.name}: {', '.join(f'LUN {lun.lun} {lun.access}' for lun in info.luns)}")


@cli.group()
def acl() -> None:
    """Which initiators a target admits; without a list, all."""


@acl.command("add")
@click.argument("target")
@click.argument("initiators", nargs=-1, required=True, metavar="INITIATOR...")
@with_api
async def acl_add(api: EngineApi, output: Output, target: str, initiators: tuple[str, ...]) -> None:
    """Admit initiators; others are not admitted then."""
    info = await api.target_access(target, add=list(initiators), remove=[])
    output.object(info, f"target {info.name} admits {', '.join(info.initiators)}")


@acl.command("remove")
@click.argument("target")
@click.argument("initiators", nargs=-1, required=True, metavar="INITIATOR...")
@with_api
async def acl_remove(api: EngineApi, output: Output, target: str, initiators: tuple[str, ...]) -> None:
    """Take initiators off the list and end their sessions."""
    info = await api.target_access(target, add=[], remove=list(initiators))
    output.object(info, f"target {info.name} admits {', '.join(info.initiators)}")


@acl.command("clear")
@click.argument("target")
@with_api
async def acl_clear(api: EngineApi, output: Output, target: str) -> None:
    """Admit every initiator."""
    info = await api.target_access(target, add=[], remove=[], admit_all=True)
    output.object(info, f"target {info.name} admits every initiator")


@cli.command()
@click.argument("target", required=False)
@with_api
async def sessions(api: EngineApi, output: Output, target: str | None) -> None:
    """Who is logged in, what was negotiated, what moves and how fast it is answered."""
    sessions = await api.session_list(target)
    if output.json:
        output.list("sessions", sessions, [])
        return
    for session in sessions:
        click.echo("\n".join(session_lines(session)))


@cli.command()
@click.argument("target")
@click.argument("switch", type=click.Choice(["on", "off"]))
@click.option(
    "--last",
    type=click.IntRange(1, MAX_RECORDED),
    default=MAX_RECORDED,
    show_default=True,
    help="Commands of each session.",
)
@with_api
async def record(api: EngineApi, output: Output, target: str, switch: str, last: int) -> None:
    """Remember the last commands of each session. While that is on, small commands are several times slower."""
    info = await api.target_record(target, last if switch == "on" else 0)
    text = f"the last {last} commands of each session are recorded" if switch == "on" else "nothing is recorded"
    output.object(info, f"target {info.name}: {text}")


@cli.command()
@click.argument("target")
@click.option("--tsih", type=int, help="Of this session only.")
@with_api
async def commands(api: EngineApi, output: Output, target: str, tsih: int | None) -> None:
    """The recorded commands, oldest first."""
    found = await api.command_list(target, tsih=tsih)
    if output.json:
        output.list("commands", found, [])
        return
    output.list("commands", [command_row(command) for command in found], COMMAND_COLUMNS)


def _lun(target: TargetInfo, number: int) -> str:
    lun = next(each for each in target.luns if each.lun == number)
    return f"{lun.lun}={lun.volume}" + (f"@{lun.snapshot}" if lun.snapshot else "")
