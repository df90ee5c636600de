"""Looking up by id, and known initiators, in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.api import INITIATOR_LABEL_MAX, INITIATORS_MAX, InitiatorInfo, PoolIdentity, PortalInfo
from engine.api_part import VOLUMES_PER_TURN, ApiPart
from engine.errors import AlreadyExists, InUse, InvalidArgument, NotFound, OutOfSpace
from engine.names import check_iscsi_name, is_view

if TYPE_CHECKING:
    from engine.api import ShownLun, SnapshotInfo, VolumeInfo
    from engine.snapshots import Snapshots


class InventoryOperations(ApiPart):
    """See the module."""

    _snapshots: Snapshots
    _version: str
    _started_at: float

    def _reasons(self) -> list[str]:
        """Why the pool is degraded."""
        raise NotImplementedError

    async def pool_identity(self) -> PoolIdentity:
        pool_id = await self._pool.catalog.inventory.pool_id()
        return PoolIdentity(pool_id, str(self._pool.path), self._version, self._started_at)

    async def pool_reasons(self) -> list[str]:
        return self._reasons()

    async def volume_find(self, volume_id: str) -> VolumeInfo:
        volume = self._pool.find(volume_id)
        if volume is not None and not is_view(volume.name):
            return self._volume_info(volume)
        for family in self._pool.damaged():
            for info in self._damaged_infos(family):
                if info.volume_id == volume_id:
                    return info
        raise NotFound("volume", volume_id)

    async def snapshot_find(self, volume_id: str, guid: str) -> SnapshotInfo:
        volume = self._pool.find(volume_id)
        if volume is None or is_view(volume.name):
            raise NotFound("volume", volume_id)
        return await self._snapshots.with_guid(volume, guid)

    async def volume_luns(self, volume_id: str) -> list[ShownLun]:
        return self._exposure.shown(volume_id)

    async def volume_allocated(self, volume_ids: list[str] | None = None) -> dict[str, int]:
        if volume_ids is None:
            volumes = self._pool.volumes()
        else:
            volumes = [volume for each in volume_ids if (volume := self._pool.find(each)) is not None]
        found = {}
        for number, volume in enumerate(volumes):
            if self._pool.find(volume.volume_id) is volume:
                found[volume.volume_id] = (await volume.head.store.space(volume.head)).mapped_bytes
            if not number % VOLUMES_PER_TURN:
                await asyncio.sleep(0)  # the data path goes on meanwhile
        return found

    async def portal_list(self) -> list[PortalInfo]:
        return [PortalInfo(address, group) for address, group in self._exposure.portal_groups()]

    async def initiator_list(self) -> list[InitiatorInfo]:
        known = await self._pool.catalog.inventory.initiators()
        return [InitiatorInfo(name, label) for name, label in known.items()]

    async def initiator_add(self, name: str, label: str = "") -> InitiatorInfo:
        name = check_iscsi_name(name)
        if len(label) > INITIATOR_LABEL_MAX or not label.isprintable():
            raise InvalidArgument(f"a label is one printable line of at most {INITIATOR_LABEL_MAX} characters")
        tables = self._pool.catalog.inventory
        if len(await tables.initiators()) >= INITIATORS_MAX:
            raise OutOfSpace(f"{INITIATORS_MAX} initiators are known, and no more can be")
        if not await tables.add_initiator(name, label):
            raise AlreadyExists("initiator", name)
        return InitiatorInfo(name, label)

    async def initiator_remove(self, name: str) -> None:
        users = self._exposure.admitting(name)
        if users:
            raise InUse(f"initiator {name} is used by target {', '.join(users[:8])}; take it out there first")
        if not await self._pool.catalog.inventory.remove_initiator(name):
            raise NotFound("initiator", name)
