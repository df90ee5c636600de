"""Which volumes and snapshots initiators see: targets, LUNs, access lists, CHAP, LUN masks and portal groups.

The catalogue is the truth. Every change is durable there before it takes effect, and takes effect at the iSCSI side
(``engine.exports``) in the same call. ``restore`` builds everything at start,
before the portals accept: an initiator that comes back never finds a target without its LUNs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.access import AccessStates
from engine.access_state import MAX_RECORDED, MAX_TARGETS, AccessState
from engine.catalog import LunRow, TargetRow
from engine.chap import ChapUsers
from engine.errors import AlreadyExists, EngineError, InUse, InvalidArgument, InvalidState, NotFound
from engine.names import check_iscsi_name, check_name
from engine.pauses import Pauses
from engine.target_table import TargetTable
from engine.volume import Identity

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Sequence

    from engine.api import ChapInfo, CommandInfo, DeviceIoInfo, LunInfo, SessionInfo, ShownLun, TargetInfo
    from engine.exports import Exports
    from engine.pool import Pool
    from engine.stores import Frozen
    from engine.volume import Volume

log = logging.getLogger(__name__)

LUN_MAX = 255
"""Flat numbers of the single-level LUN format that every initiator understands (SAM-5 section 4.7.7.3)."""


class Exposure:
    """See the module. ``prefix``: what this pool's own target names begin with."""

    def __init__(self, pool: Pool, exports: Exports, prefix: str) -> None:
        self._pool = pool
        self._exports = exports
        self._prefix = prefix
        self._targets = TargetTable()
        self._unserved: dict[tuple[str, int], str] = {}
        self._chap = ChapUsers(pool.path, pool.catalog)
        self._changing = asyncio.Lock()
        self.access = AccessStates(pool, exports, lambda: self._targets)
        self._pauses = Pauses(pool, exports)
        self._recorded: dict[str, int] = {}
        self.port_groups_elsewhere: Callable[[], set[int]] = set
        """Numbers of target port groups that would be those of the same disk elsewhere."""
        self.when_unshown: Callable[[str], Awaitable[None]] | None = None
        """Awaited with the id of a volume that has lost its last LUN."""

    async def restore(self) -> None:
        """Build all targets and LUNs of the catalogue. A LUN whose volume is not there is left out, with a reason."""
        self._exports.restore_reservations(await self._pool.catalog.reservations())
        await self.access.restore()
        await self._chap.restore()
        self._exports.set_chap(None, self._chap.secrets(None))
        for volume in self._pool.volumes():
            if volume.fence_reason is not None:
                await self.access.withhold(volume.device_id, volume.fence_reason)
        for row in await self._pool.catalog.targets():
            self._targets.put(row)
            self._exports.add_target(row.name, row.initiators, row.portal_groups, row.port_group)
            self._exports.set_chap(row.name, self._chap.secrets(row.name))
            for lun in row.luns:
                try:
                    self._show(lun)
                except EngineError as error:
                    log.error("target %s LUN %d is not served: %s", row.name, lun.lun, error)
                    self._unserved[row.name, lun.lun] = str(error)

    # --- looking ----------------------------------------------------------------------------------------------

    def full_name(self, name: str) -> str:
        """An iSCSI name as it is; anything else as the part behind the prefix. Raises InvalidArgument."""
        if name.startswith(("iqn.", "eui.", "naa.")):
            return check_iscsi_name(name)
        return f"{self._prefix}:{check_name('target', name)}"

    def volume_target(self, volume: str) -> str:
        return f"{self._prefix}:{volume.replace('@', '.view.')}"

    def snapshot_target(self, volume: str, snapshot: str) -> str:
        return f"{self._prefix}:{volume}.snap.{snapshot}"

    def reasons(self) -> list[str]:
        """One line for each LUN that should be served and is not, for each target that is bound to portal groups
        without a portal, and for each CHAP user that is locked out."""
        unserved = [f"target {target} LUN {lun} is not served: {why}" for (target, lun), why in self._unserved.items()]
        unreached = [
            f"target {row.name} is not reached: no portal is in portal group {', '.join(map(str, row.portal_groups))}"
            for row in self._targets
            if not self.portals(row.portal_groups)
        ]
        return unserved + unreached + self.access.reasons() + self._chap.reasons()

    def targets(self) -> Iterator[TargetInfo]:
        """By name, described one by one: those that are still there."""
        sessions = self._sessions_by_target()
        for name in sorted(row.name for row in self._targets):
            row = self._targets.get(name)
            if row is not None:
                yield self._info(row, sessions[name])

    def target_count(self) -> int:
        return len(self._targets)

    def target(self, name: str) -> TargetInfo:
        return self._info(self._row(name))

    def chap(self, target: str | None) -> ChapInfo:
        """Of a target, or (None) of discovery."""
        return self._chap.info(self._chap_key(target))

    def sessions(self, target: str | None = None) -> Iterable[SessionInfo]:
        return self._exports.sessions(None if target is None else self._row(target).name)

    def session_count(self) -> int:
        return len(self._exports.holders())

    def portals(self, groups: Sequence[int] = ()) -> list[str]:
        """Addresses of these portal groups, by default of all."""
        return [address for address, group in self._exports.portals() if not groups or group in groups]

    def portal_groups(self) -> list[tuple[str, int]]:
        """Addresses that accept logins, each with the tag of its portal group."""
        return self._exports.portals()

    def luns_of(self, volume_id: str, snapshot_guid: str | None = None) -> list[LunRow]:
        """Where a volume, or a snapshot of it, is shown as itself: not as a standby path, which nobody can use."""
        return [
            lun
            for lun in self._targets.luns_about(volume_id)
            if lun.volume_id == volume_id and lun.snapshot_guid == snapshot_guid and lun.standby_of is None
        ]

    def all_luns_of(self, volume_id: str) -> list[LunRow]:
        """Where a volume, any snapshot or a standby path of it is shown, or should be."""
        return self._targets.luns_about(volume_id)

    def standby_paths(self, volume_id: str) -> list[LunRow]:
        """Where a replica is shown as a standby path of its source."""
        return [lun for lun in self.all_luns_of(volume_id) if lun.volume_id == volume_id and lun.standby_of is not None]

    def shown(self, volume_id: str) -> list[ShownLun]:
        """Where a volume, any snapshot or a standby path of it is shown, or should be."""
        from engine.api import ShownLun  # late: see there

        return [ShownLun(lun.target, self._lun_info(lun)) for lun in self.all_luns_of(volume_id)]

    def admitting(self, initiator: str) -> list[str]:
        """Names of the targets whose access list, or a LUN's mask, has an initiator, or where it is logged in."""
        found = {target for target, holder in self._exports.holders() if holder == initiator}
        for row in self._targets:
            if initiator in row.initiators or any(initiator in lun.initiators for lun in row.luns):
                found.add(row.name)
        return sorted(found)

    def require_idle(self, luns: Sequence[LunRow], what: str, *, hint: str) -> None:
        """Raises InUse, naming the initiators, when sessions are on one of the targets of ``luns``."""
        targets = {lun.target for lun in luns}
        holders = sorted({initiator for target, initiator in self._exports.holders() if target in targets})
        if holders:
            raise InUse(f"{what} is in use by {', '.join(holders)}; log out there first, or {hint}")

    # --- changing ---------------------------------------------------------------------------------------------

    async def create(self, name: str, initiators: Sequence[str], portal_groups: Sequence[int] = ()) -> TargetInfo:
        """Raises AlreadyExists, InvalidArgument."""
        access, groups = _names(initiators), self._known_groups(portal_groups)
        async with self._changing:
            return self._info(await self._create(self.full_name(name), access, groups))

    async def delete(self, name: str, *, force: bool) -> None:
        async with self._changing:
            row = self._row(name)
            if not force:
                self._require_no_sessions(row)
            await self._delete(row)

    async def bind(self, target: str, portal_groups: Sequence[int]) -> TargetInfo:
        """Replace the portal groups of a target. Raises InvalidArgument: no portal is in one of them."""
        groups = self._known_groups(portal_groups)
        async with self._changing:
            row = self._row(target)
            await self._pool.catalog.set_portal_groups(row.name, groups)
            row = self._targets.put(replace(row, portal_groups=groups))
            await self._exports.set_portal_groups(row.name, groups)
            return self._info(row)

    async def add_lun(
        self,
        target: str,
        volume: Volume,
        snapshot: Frozen | None,
        lun: int | None,
        initiators: Sequence[str] = (),
        standby_of: str | None = None,
    ) -> TargetInfo:
        """Show a volume or snapshot; with ``standby_of``, a volume id, as a standby path of that volume's disk.

        Raises AlreadyExists: the LUN is taken. InvalidArgument: the target shows the disk by another path already.
        """
        async with self._changing:
            row = self._row(target)
            taken = {existing.lun for existing in row.luns}
            if lun is None:
                lun = next(number for number in range(LUN_MAX + 2) if number not in taken)
            if not 0 <= lun <= LUN_MAX:
                raise InvalidArgument(f"LUN {lun} is not within 0-{LUN_MAX}")
            if lun in taken:
                raise AlreadyExists("LUN", f"{row.name} {lun}")
            guid = None if snapshot is None else snapshot.guid
            identity = self._other_identity(standby_of or volume.volume_id)
            new = LunRow(row.name, lun, volume.volume_id, guid, _names(initiators), standby_of, identity)
            if any(new.device_id == each.device_id and new.standby_of != each.standby_of for each in row.luns):
                raise InvalidArgument(f"target {row.name} shows this disk itself; a standby path is another target's")
            return self._info(await self._add_lun(row, new))

    async def remove_lun(self, target: str, lun: int, *, force: bool) -> TargetInfo:
        async with self._changing:
            row = self._row(target)
            if lun not in {existing.lun for existing in row.luns}:
                raise NotFound("LUN", f"{row.name} {lun}")
            if not force:
                self._require_no_sessions(row)
            return self._info(await self._remove_lun(row, lun))

    async def mask_lun(self, target: str, lun: int, initiators: Sequence[str]) -> TargetInfo:
        """Show a LUN to these initiators only, or to all when there are none. Raises NotFound."""
        names = _names(initiators)
        async with self._changing:
            row = self._row(target)
            if lun not in {existing.lun for existing in row.luns}:
                raise NotFound("LUN", f"{row.name} {lun}")
            await self._pool.catalog.set_mask(row.name, lun, names)
            luns = tuple(replace(each, initiators=names) if each.lun == lun else each for each in row.luns)
            row = self._targets.put(replace(row, luns=luns))
            if (row.name, lun) not in self._unserved:
                await self._exports.set_mask(row.name, lun, names)
            return self._info(row)

    async def set_access_state(self, target: str, lun: int | None, state: AccessState) -> TargetInfo:
        """Offer the disk of a LUN, or all of the target's, in this state. Returns when nothing of the old one writes.

        Raises NotFound; InvalidState: it is the standby path of a replica, and cannot be active.
        """
        await self.access.set(self._chosen(target, lun), state)
        return self._info(self._row(target))

    async def activate(self, target: str, lun: int | None) -> TargetInfo:
        """Make the target the only active way to the disk of a LUN, or to all that it shows; the others are standby.

        Raises NotFound; InvalidState as ``set_access_state``.
        """
        await self.access.activate(self._chosen(target, lun))
        return self._info(self._row(target))

    def _chosen(self, target: str, lun: int | None) -> list[LunRow]:
        row = self._row(target)
        luns = [each for each in row.luns if lun in (None, each.lun)]
        if lun is not None and not luns:
            raise NotFound("LUN", f"{row.name} {lun}")
        return luns

    async def change_access(
        self, target: str, add: Sequence[str], remove: Sequence[str], *, admit_all: bool
    ) -> TargetInfo:
        async with self._changing:
            row = self._row(target)
            gone = {check_iscsi_name(initiator) for initiator in remove}
            missing = gone - set(row.initiators)
            if missing:
                raise NotFound("initiator in the access list", min(missing))
            access = tuple(sorted((set(row.initiators) - gone) | {check_iscsi_name(initiator) for initiator in add}))
            if admit_all:
                access = ()
            elif row.initiators and not access:
                raise InvalidArgument(
                    f"without {', '.join(sorted(gone))} the access list is empty and target {row.name} would admit"
                    " everybody; delete the target, or clear the list if that is meant"
                )
            await self._pool.catalog.set_access(row.name, access)
            row = self._targets.put(replace(row, initiators=access))
            await self._exports.set_access(row.name, access)
            return self._info(row)

    async def pause(self, name: str, timeout_s: float) -> TargetInfo:
        """See ``Pauses.begin``."""
        target = self._row(name).name
        await self._pauses.begin(target, timeout_s)
        return self._info(self._row(target))

    def resume(self, name: str) -> TargetInfo:
        """See ``Pauses.resume``."""
        row = self._row(name)
        self._pauses.resume(row.name)
        return self._info(row)

    def record(self, name: str, last: int) -> TargetInfo:
        """Remember the last so many commands of each session; 0: none."""
        row = self._row(name)
        if not 0 <= last <= MAX_RECORDED:
            raise InvalidArgument(f"at most {MAX_RECORDED} commands of a session are remembered, and not {last}")
        self._exports.record(row.name, last)
        self._recorded[row.name] = last
        return self._info(row)

    def commands(self, name: str, tsih: int | None) -> list[CommandInfo]:
        """Raises InvalidState: none are recorded. NotFound: no such session."""
        row = self._row(name)
        commands = self._exports.commands(row.name)
        if commands is None:
            raise InvalidState(f"target {row.name}", "not recorded", f"recorded: twinvol target record {name} on")
        if tsih is None:
            return commands
        if not any(each.tsih == tsih for each in self._exports.sessions(row.name)):
            raise NotFound("session of the target", str(tsih))
        return [command for command in commands if command.tsih == tsih]

    def io(self) -> list[DeviceIoInfo]:
        """Of each volume and snapshot that is shown, by name."""
        found = []
        devices = self._exports.io()
        luns = {lun.device_id: lun for row in self._targets for lun in row.luns if lun.standby_of is None}
        for key, lun in luns.items():
            if key in devices:
                volume = self._pool.by_id(lun.volume_id)
                snapshot = None if lun.snapshot_guid is None else self._snapshot(volume, lun.snapshot_guid).name
                found.append(replace(devices[key], volume=volume.name, snapshot=snapshot))
        return sorted(found, key=lambda device: (device.volume, device.snapshot or ""))

    def written_bytes(self, device_id: str) -> int | None:
        """By initiators, to a device that is shown, since that. None: it is not."""
        device = self._exports.io().get(device_id)
        return None if device is None else sum(io.bytes for io in device.io if io.kind == "write")

    async def set_chap(
        self, target: str | None, user: tuple[str, str] | None, mutual: tuple[str, str] | None
    ) -> ChapInfo:
        """Each a name and its secret. Sessions that exist stay."""
        async with self._changing:
            key = self._chap_key(target)
            await self._chap.set(key, user, mutual)
            self._exports.set_chap(key, self._chap.secrets(key))
            return self._chap.info(key)

    async def remove_chap(self, target: str | None, user: str | None, *, mutual: bool) -> ChapInfo:
        async with self._changing:
            key = self._chap_key(target)
            await self._chap.remove(key, user, mutual=mutual)
            self._exports.set_chap(key, self._chap.secrets(key))
            return self._chap.info(key)

    async def turn(self, volume: Volume, device_id: str, standby_of: str | None) -> None:
        """The ways to a device that a volume here is behind become standby paths to the volume ``standby_of``, an id;
        with None standby paths become ways to the volume. The catalogue has recorded it."""
        async with self._changing:
            turned = self.luns_of(volume.volume_id) if standby_of is not None else self.standby_paths(volume.volume_id)
            for lun in turned:
                row = self._targets[lun.target]
                new = replace(lun, standby_of=standby_of, identity=device_id)
                self._targets.put(replace(row, luns=tuple(new if each == lun else each for each in row.luns)))
            await self.access.renewed(device_id)

    async def expose_to(self, volume: Volume, initiators: Sequence[str], not_groups: Collection[int]) -> None:
        """``expose``, where only these initiators are admitted (none named: all), as a target port group whose number
        is none of ``not_groups``: the same disk has those elsewhere."""
        name = self.volume_target(volume.name)
        async with self._changing:
            lun = LunRow(name, 0, volume.volume_id, identity=self._other_identity(volume.volume_id))
            await self._create(name, _names(initiators), lun=lun, not_groups=not_groups)

    async def expose(self, volume: Volume, snapshot: Frozen | None = None) -> None:
        """Make the target of its own name, with the volume or snapshot as LUN 0. Raises AlreadyExists."""
        if snapshot is None:
            name, guid = self.volume_target(volume.name), None
        else:
            name, guid = self.snapshot_target(volume.name, snapshot.name), snapshot.guid
        async with self._changing:
            identity = self._other_identity(volume.volume_id)
            await self._create(name, lun=LunRow(name, 0, volume.volume_id, guid, identity=identity))

    def require_exposable(self, volume: str, snapshot: str | None = None) -> None:
        """Raises AlreadyExists when ``expose`` would."""
        name = self.volume_target(volume) if snapshot is None else self.snapshot_target(volume, snapshot)
        if name in self._targets:
            raise AlreadyExists("target", name)

    async def withdraw(self, volume: str, luns: Sequence[LunRow]) -> None:
        """Remove ``luns``, ending sessions, and those of the volume's own targets that are empty then."""
        own = self.volume_target(volume)
        async with self._changing:
            for lun in luns:
                row = self._targets[lun.target]
                is_own = row.name == own or row.name.startswith(f"{own}.snap.")
                if is_own and len(row.luns) == 1:
                    await self._delete(row)
                else:
                    await self._remove_lun(row, lun.lun)

    @contextlib.asynccontextmanager
    async def taken_over(self, source: Volume, target: Volume) -> AsyncIterator[Callable[[], None]]:
        """Inside, initiators see neither ``source`` nor a path to it by ``target``, and nothing runs for them. They see
        the source again afterwards, or, where what is yielded was called, the target in its place: after the catalogue
        has recorded that."""
        async with self._changing:
            luns = [*self.luns_of(source.volume_id), *self.standby_paths(target.volume_id)]
            hidden: list[LunRow] = []
            moved = False

            def move() -> None:
                nonlocal moved
                moved = True
                identity = self._other_identity(target.volume_id)
                for lun in luns:
                    row = self._targets[lun.target]
                    new = replace(lun, volume_id=target.volume_id, standby_of=None, identity=identity)
                    self._targets.put(replace(row, luns=tuple(new if each == lun else each for each in row.luns)))

            try:
                for lun in luns:
                    if (lun.target, lun.lun) not in self._unserved:
                        hidden.append(lun)
                        await self._exports.remove_lun(lun.target, lun.lun)
                yield move
            finally:
                for lun in luns if moved else hidden:
                    (row,) = (each for each in self._targets[lun.target].luns if each.lun == lun.lun)
                    self._show_again(row)

    def _show_again(self, lun: LunRow) -> None:
        self._unserved.pop((lun.target, lun.lun), None)
        try:
            self._show(lun)
        except EngineError as error:
            log.error("target %s LUN %d is not served: %s", lun.target, lun.lun, error)
            self._unserved[lun.target, lun.lun] = str(error)

    async def forget(self, device_ids: Sequence[str]) -> None:
        """These volumes (device ids) and snapshots (GUIDs) are deleted: so are their persistent reservations, and the
        LUNs that were added while the deletion was under way."""
        gone = set(device_ids)
        if any(self._late_luns(row, gone) for row in self._targets):
            async with self._changing:
                for row in list(self._targets):
                    for lun in self._late_luns(row, gone):
                        row = await self._remove_lun(row, lun.lun)
        for device_id in device_ids:
            await self._pool.catalog.save_reservations(device_id, None)
            self._exports.forget(device_id)

    # --- inside -----------------------------------------------------------------------------------------------

    def _late_luns(self, row: TargetRow, gone: set[str]) -> list[LunRow]:
        return [lun for lun in row.luns if lun.device_id in gone]

    def _other_identity(self, volume_id: str) -> str | None:
        """The device id of a volume, where it is not its own id."""
        device_id = self._pool.device_id(volume_id)
        return None if device_id == volume_id else device_id

    async def _create(
        self,
        name: str,
        access: Sequence[str] = (),
        groups: Sequence[int] = (),
        *,
        lun: LunRow | None = None,
        not_groups: Collection[int] = (),
    ) -> TargetRow:
        number = self._free_port_group(not_groups)
        row = TargetRow(name, self._pool.env.clock.time(), () if lun is None else (lun,), access, groups, number)
        await self._pool.catalog.add_target(row)
        self._targets.put(row)
        self._exports.add_target(name, access, groups, number)
        if lun is not None:
            try:
                self._show(lun)
            except EngineError as error:
                self._unserved[name, lun.lun] = str(error)
                await self._delete(row)
                raise
        return row

    def _free_port_group(self, not_groups: Collection[int] = ()) -> int:
        taken = {row.port_group for row in self._targets} | set(not_groups) | self.port_groups_elsewhere()
        if len(taken) >= MAX_TARGETS:
            raise InvalidArgument(f"a pool has at most {MAX_TARGETS} targets")
        return next(number for number in range(1, MAX_TARGETS + 1) if number not in taken)

    async def _delete(self, row: TargetRow) -> None:
        await self._pool.catalog.remove_target(row.name)
        for each in row.luns:
            await self.access.forget(each)
        self._pauses.forget(row.name)
        self._recorded.pop(row.name, None)
        self._targets.drop(row.name)
        for lun in row.luns:
            self._unserved.pop((row.name, lun.lun), None)
        await self._exports.remove_target(row.name)
        await self._chap.forget(row.name)
        await self._tell_unshown(row.luns)

    async def _add_lun(self, row: TargetRow, lun: LunRow) -> TargetRow:
        await self._pool.catalog.add_lun(lun)
        row = self._targets.put(replace(row, luns=tuple(sorted([*row.luns, lun], key=lambda each: each.lun))))
        try:
            self._show(lun)
        except EngineError as error:
            self._unserved[row.name, lun.lun] = str(error)
            await self._remove_lun(row, lun.lun)
            raise
        return row

    async def _remove_lun(self, row: TargetRow, lun: int) -> TargetRow:
        (gone,) = (each for each in row.luns if each.lun == lun)
        await self._pool.catalog.remove_lun(row.name, lun)
        row = self._targets.put(replace(row, luns=tuple(each for each in row.luns if each.lun != lun)))
        if self._unserved.pop((row.name, lun), None) is None:
            await self._exports.remove_lun(row.name, lun)
        if gone.device_id not in {each.device_id for each in row.luns}:
            await self.access.forget(gone)
        await self._tell_unshown([gone])
        return row

    async def _tell_unshown(self, gone: Sequence[LunRow]) -> None:
        for volume_id in {lun.volume_id for lun in gone}:
            if self.when_unshown is not None and not self.all_luns_of(volume_id):
                await self.when_unshown(volume_id)

    def _show(self, lun: LunRow) -> None:
        # Where it is not served, its name says why: its file is damaged, or its key is missing.
        volume = self._pool.find(lun.volume_id) or self._pool.volume(self._pool.name_of(lun.volume_id))
        state = self.access.of(lun)
        if lun.snapshot_guid is not None:
            self._exports.add_snapshot(lun, self._snapshot(volume, lun.snapshot_guid), state)
            return
        if lun.standby_of is not None:
            # One disk for all paths. It is the source's; the replica stands in only while the source is not served.
            with contextlib.suppress(NotFound):
                volume = self._pool.by_id(lun.standby_of)
        self._exports.add_volume(lun, volume, state)

    def _snapshot(self, volume: Volume, guid: str) -> Frozen:
        snapshot = volume.head.store.snapshot_with(volume.volume_id, guid)
        if snapshot is None:
            raise NotFound("snapshot", f"{volume.name}@{guid}")
        return snapshot

    def _row(self, name: str) -> TargetRow:
        row = self._targets.get(self.full_name(name))
        if row is None:
            raise NotFound("target", name)
        return row

    def _chap_key(self, target: str | None) -> str | None:
        return None if target is None else self._row(target).name

    def _require_no_sessions(self, row: TargetRow) -> None:
        holders = sorted({initiator for target, initiator in self._exports.holders() if target == row.name})
        if holders:
            raise InUse(f"target {row.name} is in use by {', '.join(holders)}; log out there first, or use --force")

    def _sessions_by_target(self) -> Counter[str]:
        return Counter(target for target, _ in self._exports.holders())

    def _info(self, row: TargetRow, sessions: int | None = None) -> TargetInfo:
        from engine.api import TargetInfo  # late: see there

        paused_until = self._pauses.until(row.name)
        return TargetInfo(
            name=row.name,
            portals=self.portals(row.portal_groups),
            portal_groups=list(row.portal_groups),
            port_group=row.port_group,
            luns=[self._lun_info(lun) for lun in row.luns],
            initiators=list(row.initiators),
            chap=self._chap.info(row.name),
            sessions=self._sessions_by_target()[row.name] if sessions is None else sessions,
            state="ok" if paused_until is None else "paused",
            resumes_at=paused_until,
            recorded=self._recorded.get(row.name, 0),
        )

    def _lun_info(self, lun: LunRow) -> LunInfo:
        from engine.api import LunInfo  # late: see there

        why = self._unserved.get((lun.target, lun.lun))
        name, snapshot_name, size = self._pool.name_of(lun.volume_id), lun.snapshot_guid, 0
        if why is None:
            try:
                volume = self._pool.by_id(lun.volume_id)
                name, size = volume.name, volume.size_bytes
                if lun.snapshot_guid is not None:
                    snapshot = self._snapshot(volume, lun.snapshot_guid)
                    snapshot_name, size = snapshot.name, snapshot.size_bytes
            except NotFound as error:  # it is being deleted
                why = str(error)
        return LunInfo(
            lun=lun.lun,
            volume=name,
            snapshot=snapshot_name,
            size_bytes=size,
            serial="" if why is not None else Identity.of(lun.device_id).serial,
            state="ok" if why is None else f"not served: {why}",
            initiators=list(lun.initiators),
            access=self.access.of(lun).label,
            standby=lun.standby_of is not None,
            volume_id=lun.volume_id,
            snapshot_guid=lun.snapshot_guid,
        )

    def _known_groups(self, tags: Sequence[int]) -> tuple[int, ...]:
        """Raises InvalidArgument: no portal is in one of them."""
        known = {group for _, group in self._exports.portals()}
        unknown = set(tags) - known
        if unknown:
            listed = ", ".join(map(str, sorted(known)))
            raise InvalidArgument(f"no portal is in portal group {min(unknown)}; there are portals in {listed}")
        return tuple(sorted(set(tags)))


def _names(initiators: Sequence[str]) -> tuple[str, ...]:
    """Sorted, once each. Raises InvalidArgument."""
    return tuple(sorted({check_iscsi_name(initiator) for initiator in initiators}))
