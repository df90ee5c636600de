"""Joins the engine to the iSCSI target: logical units over volumes and snapshots, targets in the registry.

One ``LogicalUnit`` per volume or snapshot, however many targets show it: reservations and unit attentions belong to
the disk, not to the way to it. Persistent reservations stay with a device also while no target shows it.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.api import SessionInfo
from engine.volume import VolumeEvent
from iscsi.chap import DEFAULT_ALGORITHMS, ChapAccess, ChapIdentity
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.scsi.reservations import Reservations
from iscsi.target import Target

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence, Set

    from engine.chap import ChapSecrets
    from engine.stores import Frozen
    from engine.volume import Identity, Volume
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
    """``engine.exposure.Exports`` over a target registry and the server that serves it.

    ``portals``: addresses that the server listens on, as HOST:PORT, each with its portal group's tag. ``save``: makes a
    device's persistent reservations durable, or their end. ``algorithms``: what CHAP may use.
    """

    def __init__(
        self,
        registry: TargetRegistry,
        server: IscsiServer,
        portals: Sequence[tuple[str, int]],
        save: Callable[[str, str | None], Awaitable[None]],
        algorithms: Set[Algorithm] = DEFAULT_ALGORITHMS,
    ) -> None:
        self._registry = registry
        self._server = server
        self._portals = list(portals)
        self._save = save
        self._algorithms = algorithms
        self._units: dict[str, _Unit] = {}
        self._reservations: dict[str, Reservations] = {}
        self._saved: dict[str, str] = {}

    def portals(self) -> list[tuple[str, int]]:
        return list(self._portals)

    def sessions(self) -> list[SessionInfo]:
        return [
            SessionInfo(
                target=session.target,
                portal_group=session.portal_group,
                initiator=session.initiator_name,
                isid=session.isid,
                tsih=session.tsih,
                address=session.address,
                reads=session.reads,
                read_bytes=session.read_bytes,
                writes=session.writes,
                written_bytes=session.written_bytes,
            )
            for session in self._server.sessions()
            if session.target is not None
        ]

    def add_target(self, name: str, initiators: Sequence[str], portal_groups: Sequence[int]) -> None:
        self._registry.add(Target(name, initiators=initiators or None, portal_groups=portal_groups or None))

    async def remove_target(self, name: str) -> None:
        target = self._registry.remove(name)
        await self._server.dropped()
        for lun in list(target.luns):
            self._drop(target.unmap_lun(lun))

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

    async def pause_target(self, name: str) -> None:
        target = self._target(name)
        target.pause()
        await self._server.quiesced(target)

    def resume_target(self, name: str) -> None:
        self._target(name).resume()

    async def set_portal_groups(self, target: str, portal_groups: Sequence[int]) -> None:
        self._target(target).bind(portal_groups or None)
        await self._server.dropped()

    def add_volume(self, target: str, lun: int, volume: Volume, initiators: Sequence[str]) -> None:
        held = self._units.get(volume.volume_id)
        if held is None:
            unit = LogicalUnit(
                volume,
                _identity(volume.identity),
                physical_block=volume.physical_block_bytes,
                removable=volume.removable,
                write_cache=volume.write_cache,
                reservations=self._reservations_of(volume.volume_id),
            )

            def tell(event: VolumeEvent) -> None:
                match event:
                    case VolumeEvent.RESIZED:
                        unit.capacity_changed()
                    case VolumeEvent.CONTENT_REPLACED:
                        unit.content_replaced()
                    case VolumeEvent.PROTECTION_CHANGED:
                        unit.write_protection_changed()

            held = self._units[volume.volume_id] = _Unit(unit, volume.subscribe(tell))
        self._show(target, lun, held, initiators)

    def add_snapshot(
        self, target: str, lun: int, snapshot: Frozen, identity: Identity, initiators: Sequence[str]
    ) -> None:
        held = self._units.get(snapshot.guid)
        if held is None:
            reservations = self._reservations_of(snapshot.guid)
            unit = LogicalUnit(snapshot, _identity(identity), read_only=True, reservations=reservations)
            held = self._units[snapshot.guid] = _Unit(unit, lambda: None)
        self._show(target, lun, held, initiators)

    async def set_mask(self, target: str, lun: int, initiators: Sequence[str]) -> None:
        self._target(target).mask_lun(lun, initiators or None)
        await self._server.dropped()

    async def remove_lun(self, target: str, lun: int) -> None:
        unit = self._target(target).unmap_lun(lun)
        await self._server.dropped()
        self._drop(unit)

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

    def _reservations_of(self, device_id: str) -> Reservations:
        """Raises StoreCorrupt: what was saved cannot be understood, so nobody may be let in."""
        known = self._reservations.get(device_id)
        if known is None:
            known = Reservations(self._saved.get(device_id), functools.partial(self._save, device_id))
            self._reservations[device_id] = known
        return known

    def _show(self, target: str, lun: int, held: _Unit, initiators: Sequence[str]) -> None:
        self._target(target).map_lun(lun, held.unit, initiators or None)
        held.shown += 1

    def _drop(self, unit: LogicalUnit) -> None:
        for key, held in self._units.items():
            if held.unit is unit:
                held.shown -= 1
                if not held.shown:
                    held.release()
                    del self._units[key]
                return


def _identity(identity: Identity) -> LunIdentity:
    return LunIdentity(serial=identity.serial, naa=identity.naa)
