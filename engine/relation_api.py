"""The operations on relations in the data process: a part of ``engine.local_api.LocalApi``."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import TYPE_CHECKING

from engine.api_part import ApiPart
from engine.errors import InUse, NotFound
from engine.group_instant import find_point
from engine.jobs import job_info
from engine.relations import RELATION_PREFIX

if TYPE_CHECKING:
    from engine.api import CopyOrder, GroupOrder, GroupRelationInfo, JobInfo, RelationInfo
    from engine.orders import Orders
    from engine.relations import Relations
    from engine.volume import Volume


class RelationOperations(ApiPart):
    """See the module."""

    _relations: Relations
    _orders: Orders

    async def restore_relations(self) -> None:
        """To be called once volumes and replicas are there; orders that were interrupted go on."""
        self._relations.exists = self._is_there
        groups = self._pool.groups.all()
        known = {info.guid for info in groups}
        known |= {shot.guid for info in groups for shot in self._pool.groups.snapshots(info.name)}
        known |= {info.name for info in self._replicas.all()}
        for volume in self._pool.volumes():
            known |= {volume.volume_id, *(snapshot.guid for snapshot in self._pool.snapshots(volume))}
        known |= {row.volume_id for family in self._pool.damaged() for row in family.volumes}
        if self._pool.damaged():  # which snapshots are in there nobody knows
            known |= {guid.removeprefix(RELATION_PREFIX) for guid in await self._pool.catalog.relations.element_names()}
        await self._relations.restore(known)
        await self._orders.restore()

    async def copies_make(
        self,
        orders: list[CopyOrder],
        *,
        group: GroupOrder | None = None,
        at_once: bool = False,
        on_error: str = "stop",
        until: str = "synchronized",
    ) -> JobInfo:
        return job_info(await self._orders.make(orders, group, at_once=at_once, on_error=on_error, until=until))

    async def mirrors_follow(self, verb: str, names: list[str]) -> JobInfo:
        return job_info(await self._orders.follow(verb, names))

    async def relation_list(self) -> list[RelationInfo]:
        return self._relations.clones()

    async def relation_end(self, target_id: str) -> None:
        await self._relations.end(target_id)

    async def group_relation_list(self) -> list[GroupRelationInfo]:
        groups = self._pool.groups.all()
        there = {info.guid for info in groups}
        there |= {shot.guid for info in groups for shot in self._pool.groups.snapshots(info.name)}
        return [
            info if info.target_group in there else replace(info, target_group=None)
            for info in self._relations.groups()
            if info.source in there or self._pool.find(info.source) is not None
        ]

    async def group_relation_end(self, guid: str) -> None:
        await self._relations.end_group(guid)

    async def element_name_set(self, guid: str, name: str | None) -> None:
        await self._relations.set_element_name(guid, name)

    async def element_name_list(self, guids: list[str] | None = None) -> dict[str, str]:
        names = self._relations.element_names()
        return names if guids is None else {guid: names[guid] for guid in guids if guid in names}

    # --- for orders -------------------------------------------------------------------------------------------

    def require_copy_target(self, target: Volume, mode: str | None) -> None:
        """Raises InUse: an existing volume cannot take another's content now. ``mode``: of a mirror, which replaces it
        again and again unless it is synchronous; None: it is copied once."""
        if mode not in (None, "sync") and self.is_shown(target):
            raise InUse(f"volume {target.name} is shown by a target, and would be replaced under its initiators")
        self._replicas.table.require_free(target, "make it a copy")
        self._pool.jobs.require_unread(target.name)
        luns = self._exposure.luns_of(target.volume_id)
        self._exposure.require_idle(luns, f"volume {target.name}", hint="take another")

    def is_shown(self, volume: Volume) -> bool:
        """Whether a target has it."""
        return bool(self._exposure.luns_of(volume.volume_id))

    def require_new_replica(self, name: str) -> None:
        """Raises AlreadyExists."""
        self._replicas.table.require_new(name)

    def _is_there(self, source_id: str, copy: str) -> bool:
        source = self._pool.find(source_id)
        if source is None:
            return False
        if self._pool.find(copy) is not None or find_point(source, copy) is not None:
            return True
        with contextlib.suppress(NotFound):
            return bool(self._replicas.info(copy).name)
        return False
