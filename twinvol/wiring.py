"""Joins the engine to the iSCSI target: logical units over volumes and snapshots, targets in the registry.

One ``LogicalUnit`` per volume or snapshot, however many targets show it: reservations and unit attentions belong to
the disk, not to the way to it. Persistent reservations stay with a device also while no target shows it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.access_state import MAX_PORTAL_GROUPS
from engine.errors import InvalidArgument
from engine.pool_space import SpaceEvent
from engine.volume import Identity, VolumeEvent
from iscsi.chap import DEFAULT_ALGORITHMS, ChapAccess, ChapIdentity
from iscsi.scsi.alua import TargetPortGroup, change_states
from iscsi.scsi.copy_manager import CopyManager
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.scsi.reservations import Reservations
from iscsi.target import Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence, Set

    from engine.access_state import AccessState
    from engine.api import CommandInfo, DeviceIoInfo, SessionInfo
    from engine.catalog import LunRow
    from engine.chap import ChapSecrets
    from engine.exports import StateKeeper
    from engine.pool_space import PoolSpace
    from engine.stores import Frozen
    from engine.tokens import Tokens
    from engine.volume import Volume
    from iscsi.chap import Algorithm
    from iscsi.server import IscsiServer
    from iscsi.target import TargetRegistry


@dataclass(slots=True)
class _Unit:
    """A logical unit and how many LUNs show it. ``release``: called when none does any more."""

    unit: LogicalUnit
    release: Callable[[], None]
    shown: int = 0


class IscsiExports:
    """``engine.exports.Exports`` over a target registry and the server that serves it.

    ``portals``: addresses that the server listens on, as HOST:PORT, each with its portal group's tag. ``save``: makes a
    device's persistent reservations durable, or their end. ``algorithms``: what CHAP may use. ``space``: what all
    volumes draw from; initiators are warned when it becomes low.
    """

    def __init__(
        self,
        registry: TargetRegistry,
        server: IscsiServer,
        portals: Sequence[tuple[str, int]],
        save: Callable[[str, str | None], Awaitable[None]],
        tokens: Tokens,
        algorithms: Set[Algorithm] = DEFAULT_ALGORITHMS,
        space: PoolSpace | None = None,
    ) -> None:
        if len({tag for _, tag in portals}) > MAX_PORTAL_GROUPS:
            raise InvalidArgument(f"there are portals in more than {MAX_PORTAL_GROUPS} portal groups")
        self._copy_manager = CopyManager(tokens, registry.units_for)
        self._registry = registry
        self._server = server
        self._portals = list(portals)
        self._save = save
        self._algorithms = algorithms
        self._keeper: StateKeeper | None = None
        self._port_groups: dict[str, int] = {}
        self._units: dict[str, _Unit] = {}
        self._reservations: dict[str, Reservations] = {}
        self._saved: dict[str, str] = {}
        self._space = space
        if space is not None:
            space.subscribe(self._tell_space)

    async def close(self) -> None:
        """End what copies do in the background, and all tokens. The server has stopped."""
        await self._copy_manager.close()

    def portals(self) -> list[tuple[str, int]]:
        return list(self._portals)

    def sessions(self, target: str | None = None) -> Iterable[SessionInfo]:
        from twinvol.observed import session_info  # late, these three: it builds values of ``engine.api``

        sessions = self._server.sessions(None if target is None else self._target(target))
        return (session_info(session) for session in sessions if session.target is not None)

    def holders(self) -> list[tuple[str, str]]:
        return [
            (session.target.name, session.initiator_name)
            for session in self._server.table
            if session.target is not None
        ]

    def add_target(self, name: str, initiators: Sequence[str], portal_groups: Sequence[int], port_group: int) -> None:
        self._port_groups[name] = port_group
        self._registry.add(Target(name, initiators=initiators or None, portal_groups=portal_groups or None))

    async def remove_target(self, name: str) -> None:
        target = self._registry.remove(name)
        await self._server.dropped()
        for lun in list(target.luns):
            await self._drop(target, target.unmap_lun(lun))
        del self._port_groups[name]

    async def set_access(self, target: str, initiators: Sequence[str]) -> None:
        self._target(target).admit(initiators or None)
        await self._server.dropped()

    def set_chap(self, target: str | None, secrets: ChapSecrets | None) -> None:
        access = None
        if secrets is not None:
            users = {name: secret.encode() for name, secret in secrets.users.items()}
            mutual = None
            if secrets.mutual is not None:
                mutual = ChapIdentity(secrets.mutual[0], secrets.mutual[1].encode())
            access = ChapAccess(users, mutual, self._algorithms)
        if target is None:
            self._registry.discovery_chap = access
        else:
            self._target(target).chap = access

    def record(self, target: str, last: int) -> None:
        self._target(target).record(last)

    def commands(self, target: str) -> list[CommandInfo] | None:
        from twinvol.observed import command_infos

        if not self._target(target).recorded:
            return None
        sessions = self._server.sessions(self._target(target))
        return sorted((info for session in sessions for info in command_infos(session)), key=lambda info: info.at)

    def io(self) -> dict[str, DeviceIoInfo]:
        from twinvol.observed import device_io

        return {key: device_io(held.unit.stats()) for key, held in self._units.items()}

    async def pause_target(self, name: str) -> None:
        target = self._target(name)
        target.pause()
        await self._server.quiesced(target)
        for unit in set(target.luns.values()):
            await self._copy_manager.ended(unit)

    def resume_target(self, name: str) -> None:
        self._target(name).resume()

    async def set_portal_groups(self, target: str, portal_groups: Sequence[int]) -> None:
        self._target(target).bind(portal_groups or None)
        await self._server.dropped()

    def add_volume(self, lun: LunRow, volume: Volume, state: AccessState) -> None:
        held = self._units.get(lun.device_id)
        if held is None:
            unit = LogicalUnit(
                volume,
                _identity(lun.device_id),
                physical_block=volume.physical_block_bytes,
                removable=volume.removable,
                write_cache=volume.write_cache,
                reservations=self._reservations_of(lun.device_id),
                copy_manager=self._copy_manager,
                resources=self._space,
            )

            def tell(event: VolumeEvent) -> None:
                match event:
                    case VolumeEvent.RESIZED:
                        unit.capacity_changed()
                    case VolumeEvent.CONTENT_REPLACED:
                        unit.content_replaced()
                    case VolumeEvent.PROTECTION_CHANGED:
                        unit.write_protection_changed()
                    case VolumeEvent.SANITIZE:
                        unit.refresh_all()

            held = self._hold(lun.device_id, unit, volume.subscribe(tell))
        self._show(lun, held, state)

    def add_snapshot(self, lun: LunRow, snapshot: Frozen, state: AccessState) -> None:
        held = self._units.get(lun.device_id)
        if held is None:
            unit = LogicalUnit(
                snapshot,
                _identity(lun.device_id),
                read_only=True,
                reservations=self._reservations_of(lun.device_id),
                copy_manager=self._copy_manager,
            )
            held = self._hold(lun.device_id, unit, lambda: None)
        self._show(lun, held, state)

    def keep_access_states(self, keeper: StateKeeper) -> None:
        self._keeper = keeper

    async def set_access_states(self, device_id: str, states: Mapping[int, AccessState]) -> None:
        held = self._units.get(device_id)
        if held is not None:
            await change_states(held.unit, states)

    async def set_mask(self, target: str, lun: int, initiators: Sequence[str]) -> None:
        self._target(target).mask_lun(lun, initiators or None)
        await self._server.dropped()

    async def remove_lun(self, target: str, lun: int) -> None:
        unit = self._target(target).unmap_lun(lun)
        await self._server.dropped()
        await self._drop(self._target(target), unit)

    def restore_reservations(self, documents: Mapping[str, str]) -> None:
        self._saved = dict(documents)

    def forget(self, device_id: str) -> None:
        assert device_id not in self._units
        self._reservations.pop(device_id, None)
        self._saved.pop(device_id, None)

    # --- inside -----------------------------------------------------------------------------------------------

    def _target(self, name: str) -> Target:
        target = self._registry.find(name)
        assert target is not None
        return target

    def _tell_space(self, event: SpaceEvent) -> None:
        for held in self._units.values():
            if event is SpaceEvent.LOW:
                held.unit.soft_threshold_reached()
            else:
                held.unit.thresholds_changed()

    def _reservations_of(self, device_id: str) -> Reservations:
        """Raises StoreCorrupt: what was saved cannot be understood, so nobody may be let in."""
        known = self._reservations.get(device_id)
        if known is None:
            known = Reservations(self._saved.get(device_id), functools.partial(self._save, device_id))
            self._reservations[device_id] = known
        return known

    def _hold(self, device_id: str, unit: LogicalUnit, release: Callable[[], None]) -> _Unit:
        if self._keeper is not None:
            unit.access.keeper = functools.partial(self._keeper, device_id)
        held = self._units[device_id] = _Unit(unit, release)
        return held

    def _show(self, lun: LunRow, held: _Unit, state: AccessState) -> None:
        target = self._target(lun.target)
        if held.unit not in target.luns.values():
            number = self._port_groups[lun.target]
            ports = functools.partial(self._ports, target, number)
            held.unit.access.assign(target.name, TargetPortGroup(number, ports, state))
        target.map_lun(lun.lun, held.unit, lun.initiators or None)
        held.shown += 1

    def _ports(self, target: Target, group: int) -> dict[int, int]:
        """Relative target port identifiers of a target by portal group tag: sixteen for each target port group."""
        tags = sorted({tag for _, tag in self._portals})
        first = (group - 1) * MAX_PORTAL_GROUPS + 1
        return {tag: first + index for index, tag in enumerate(tags) if target.is_in(tag)}

    async def _drop(self, target: Target, unit: LogicalUnit) -> None:
        """One LUN less shows it. When none does, copies in its name have ended, and none writes to it."""
        if unit not in target.luns.values():
            unit.access.withdraw(target.name)
        key, held = next((key, held) for key, held in self._units.items() if held.unit is unit)
        held.shown -= 1
        if held.shown:
            return
        held.release()
        del self._units[key]
        await self._copy_manager.stop(self._copy_manager.in_background(unit))
        await unit.write_order.settled()


def _identity(device_id: str) -> LunIdentity:
    identity = Identity.of(device_id)
    return LunIdentity(serial=identity.serial, naa=identity.naa)
