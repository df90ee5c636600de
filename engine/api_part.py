"""What the parts of ``engine.local_api.LocalApi`` share: what they work on, events, and volumes as users see them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.api import VolumeInfo
from engine.names import is_view
from engine.sanitize import SanitizeState
from engine.volume import Identity

if TYPE_CHECKING:
    from engine.errors import StoreFailed
    from engine.exposure import Exposure
    from engine.pool import Pool
    from engine.pool_volumes import DamagedFamily
    from engine.replicas import Replicas
    from engine.views import Views
    from engine.volume import Volume


VOLUMES_PER_TURN = 16
"""Volumes that are described, or snapshots that are judged, in one turn of the loop: 2 ms."""


class ApiPart:
    """See the module. ``LocalApi`` makes what is named here."""

    _pool: Pool
    _exposure: Exposure
    _replicas: Replicas
    _views: Views

    async def _event(self, subject: str, text: str, severity: str = "info") -> None:
        await self._pool.catalog.add_event(self._pool.env.clock.time(), severity, subject, text)

    async def _volume_infos(self, volumes: list[Volume]) -> list[VolumeInfo]:
        """Of those that are still there; the data path goes on meanwhile."""
        infos = []
        for number, volume in enumerate(volumes):
            if self._pool.find(volume.volume_id) is volume:
                infos.append(self._volume_info(volume))
            if not number % VOLUMES_PER_TURN:
                await asyncio.sleep(0)
        return infos

    def _volume_info(self, volume: Volume) -> VolumeInfo:
        self._pool.row(volume)  # raises NotFound: it was deleted meanwhile
        luns = self._exposure.luns_of(volume.volume_id)
        state, reason = _volume_state(volume, self._pool.failure(volume))
        identity = volume.identity
        return VolumeInfo(
            name=volume.name,
            volume_id=volume.volume_id,
            size_bytes=volume.size_bytes,
            state=state,
            reason=reason,
            serial=identity.serial,
            naa=f"{identity.naa:016x}",
            physical_block_bytes=volume.physical_block_bytes,
            write_cache=volume.write_cache,
            read_only=volume.read_only,
            removable=volume.removable,
            snapshots=len(self._pool.snapshots(volume)),
            origin=self._pool.origin(volume),
            file=self._pool.file_text(volume),
            target=luns[0].target if luns else None,
            lun=luns[0].lun if luns else None,
            encryption=self._pool.key_source(volume),
            digests=self._pool.integrity.policy(volume),
            bad_chunks=self._pool.store_of(volume).bad_chunks,
            verified_at=self._pool.integrity.verified_at(volume),
        )

    def _damaged_infos(self, family: DamagedFamily) -> list[VolumeInfo]:
        """What is known of the volumes of a file that is not served."""
        infos = []
        for row in [row for row in family.volumes if not is_view(row.name)]:
            identity = Identity.of(self._pool.device_id(row.volume_id))
            infos.append(
                VolumeInfo(
                    name=row.name,
                    volume_id=row.volume_id,
                    size_bytes=0,
                    state="locked" if family.locked else "damaged",
                    reason=family.reason,
                    serial=identity.serial,
                    naa=f"{identity.naa:016x}",
                    physical_block_bytes=row.physical_block_bytes,
                    write_cache=row.write_cache,
                    read_only=row.read_only,
                    removable=row.removable,
                    snapshots=0,
                    origin=row.origin or None,
                    file=str(family.path),
                    target=None,
                    lun=None,
                )
            )
        return infos


def _volume_state(volume: Volume, failure: StoreFailed | None) -> tuple[str, str | None]:
    """Its state, and the reason where it is not an ordinary one."""
    if failure:
        return "failed", str(failure)
    sanitizer = volume.sanitizer
    if sanitizer is not None and sanitizer.state is SanitizeState.RUNNING:
        return "sanitizing", f"{sanitizer.progress:.0%} done"
    if sanitizer is not None and sanitizer.state is SanitizeState.FAILED:
        return "sanitize-failed", "until a SANITIZE succeeds initiators are refused; the log says what was wrong"
    return ("read-only" if volume.read_only else "ok"), None
