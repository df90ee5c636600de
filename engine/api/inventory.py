"""Looking up by what never changes, and initiators that are known before they log in. See ``engine.api``.

Names of volumes and paths of pools can be given anew; ids, GUIDs and iSCSI names stay. Every look-up here is direct.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.api.snapshots import SnapshotInfo
from engine.api.targets import LunInfo
from engine.api.volumes import VolumeInfo

INITIATOR_LABEL_MAX = 256
"""Characters of an initiator's label."""

INITIATORS_MAX = 10_000
"""Initiators that are kept by name."""


@dataclass(frozen=True, slots=True)
class PoolIdentity:
    """``pool_id``: a UUID, from the making of the pool on. ``path``: its folder. ``version``: the product's."""

    pool_id: str
    path: str
    version: str
    started_at: float


@dataclass(frozen=True, slots=True)
class ShownLun:
    """A LUN, and the ``target`` that has it."""

    target: str
    lun: LunInfo


@dataclass(frozen=True, slots=True)
class PortalInfo:
    """An ``address`` (HOST:PORT) that accepts logins, and the tag of its portal group."""

    address: str
    portal_group: int


@dataclass(frozen=True, slots=True)
class InitiatorInfo:
    """An initiator that was made known. ``label``: free text."""

    name: str
    label: str


class InventoryApi(Protocol):
    """See ``engine.api``."""

    async def pool_identity(self) -> PoolIdentity: ...

    async def pool_reasons(self) -> list[str]:
        """Why the pool is degraded, as ``status`` says; nothing, if it is well."""
        ...

    async def volume_find(self, volume_id: str) -> VolumeInfo:
        """The volume with that id. Raises NotFound."""
        ...

    async def snapshot_find(self, volume_id: str, guid: str) -> SnapshotInfo:
        """The snapshot of a volume with that GUID. Raises NotFound."""
        ...

    async def volume_luns(self, volume_id: str) -> list[ShownLun]:
        """Where a volume, any snapshot of it or a standby path to it is shown."""
        ...

    async def volume_allocated(self, volume_ids: list[str] | None = None) -> dict[str, int]:
        """The bytes that volumes map, in whole chunks, by id; of those that are served, by default all."""
        ...

    async def portal_list(self) -> list[PortalInfo]: ...

    async def initiator_list(self) -> list[InitiatorInfo]:
        """Those that were made known, by name. Access lists and sessions may have others."""
        ...

    async def initiator_add(self, name: str, label: str = "") -> InitiatorInfo:
        """Make an initiator known; this admits it nowhere. Raises InvalidArgument, AlreadyExists."""
        ...

    async def initiator_remove(self, name: str) -> None:
        """Raises NotFound; InUse: a target's access list or a LUN's mask has it, or it is logged in."""
        ...
