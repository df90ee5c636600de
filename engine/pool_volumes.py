"""The volumes of a pool as they are known: served, damaged, being made; looked up, and told apart by their names.

``engine.pool`` opens, makes and removes them. Nothing here waits for anything.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import AlreadyExists, Locked, NotFound, StoreCorrupt
from engine.names import is_view
from engine.pool_folder import FILE_SUFFIX, UNFINISHED_NAME, VOLUMES_NAME
from engine.reserved_names import ReservedNames
from engine.sanitize import SPREAD_S, Sanitizer
from engine.sanitize_host import VolumeSanitizeHost
from engine.stores import PurgingStore
from engine.tvol.file import TvolFile
from engine.volume import Volume

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from engine.catalog import Catalog, VolumeRow
    from engine.errors import StoreFailed
    from engine.files import StoreEnv
    from engine.groups import Groups
    from engine.stores import Frozen, Head


@dataclass(frozen=True, slots=True)
class DamagedFamily:
    """A volume file that is not served. ``volumes``: those of the catalogue. ``locked``: its key is missing."""

    path: Path
    reason: str
    volumes: tuple[VolumeRow, ...]
    locked: bool = False


class PoolVolumes:
    """See the module."""

    groups: Groups

    def __init__(self, path: Path, env: StoreEnv, catalog: Catalog) -> None:
        self.path = path
        self.env = env
        self.catalog = catalog
        self._stores: dict[str, TvolFile] = {}
        self._volumes: dict[str, Volume] = {}
        self._sorted: list[str] | None = None
        self._rows: dict[str, VolumeRow] = {}
        self._damaged: dict[str, DamagedFamily] = {}
        self._device_ids: dict[str, str] = {}
        """By volume id, where it is another."""
        self._unfinished: set[str] = set()
        self.reserved = ReservedNames()
        self.on_volume: Callable[[Volume, str], None] | None = None
        """Told of each volume that is "created", "going", and then "deleted"; ``on_snapshot`` as a store says it."""
        self.on_snapshot: Callable[[Frozen, str], None] | None = None

    def volumes(self) -> list[Volume]:
        """The volumes that are served, by name."""
        return [self._volumes[name] for name in self._names()]

    def volumes_behind(self, name: str, count: int) -> list[Volume]:
        """The first of those whose names come after ``name``."""
        names = self._names()
        begin = bisect.bisect_right(names, name)
        return [self._volumes[each] for each in names[begin : begin + count]]

    def _names(self) -> list[str]:
        """Of the volumes that are served, in order: kept, because pages of thousands ask for it again and again."""
        if self._sorted is None:
            self._sorted = sorted(name for name in self._volumes if not is_view(name))
        return self._sorted

    def views(self) -> list[Volume]:
        """The writable views (``engine.views``), by name."""
        return [self._volumes[name] for name in sorted(self._volumes) if is_view(name)]

    def view(self, name: str) -> Volume | None:
        """The writable view of that name."""
        return self._volumes.get(name) if is_view(name) else None

    def clones(self, volume: Volume, snapshot: Frozen | None = None) -> list[str]:
        """Names of the linked clones of a volume's snapshots, or of one of them. They are in its file."""
        heads = self.store_of(volume).clones(volume.head if snapshot is None else snapshot)
        return sorted(head.name for head in heads if not is_view(head.name))

    def origin(self, volume: Volume) -> str | None:
        """What a volume was cloned from and still depends on, as VOLUME@SNAPSHOT. None: nothing."""
        return self.store_of(volume).origin(volume.head)

    def damaged(self) -> list[DamagedFamily]:
        return list(self._damaged.values())

    def interrupted(self) -> list[str]:
        """Names of the volumes whose making was interrupted and can go on."""
        folder = self.path / VOLUMES_NAME / UNFINISHED_NAME
        return sorted({path.stem for path in folder.glob("*" + FILE_SUFFIX)} - self._unfinished)

    def volume(self, name: str) -> Volume:
        """Raises NotFound; StoreCorrupt when its file is damaged."""
        volume = None if is_view(name) else self._volumes.get(name)
        if volume is not None:
            return volume
        for family in self._damaged.values():
            if any(row.name == name for row in family.volumes):
                if family.locked:
                    raise Locked(f"volume {name}: {family.reason}")
                raise StoreCorrupt(f"volume {name}", f"{family.reason} (twinvol check {family.path} says more)")
        raise NotFound("volume", name)

    def by_id(self, volume_id: str) -> Volume:
        """Raises NotFound."""
        volume = self.find(volume_id)
        if volume is None:
            raise NotFound("volume", volume_id)
        return volume

    def find(self, volume_id: str) -> Volume | None:
        """The volume with that id, if it is served."""
        row = self._rows.get(volume_id)
        return None if row is None else self._volumes[row.name]

    def name_of(self, volume_id: str) -> str:
        """The name of a volume, served or not; its id where nothing is known of it."""
        row = self._rows.get(volume_id)
        if row is not None:
            return row.name
        damaged = (row for family in self._damaged.values() for row in family.volumes)
        return next((row.name for row in damaged if row.volume_id == volume_id), volume_id)

    def device_id(self, volume_id: str) -> str:
        """What initiators know a volume by, which need not be served."""
        return self._device_ids.get(volume_id, volume_id)

    def identified(self, device_ids: Mapping[str, str]) -> None:
        """Volumes have other device ids now; the catalogue has recorded it."""
        self._device_ids.update(device_ids)
        for volume_id, device_id in device_ids.items():
            volume = self.find(volume_id)  # one of a peer is not here
            if volume is not None:
                volume.device_id = device_id

    def stores(self) -> list[TvolFile]:
        """The families that are open."""
        return list(self._stores.values())

    def row(self, volume: Volume) -> VolumeRow:
        """Raises NotFound: the volume was deleted meanwhile."""
        row = self._rows.get(volume.volume_id)
        if row is None:
            raise NotFound("volume", volume.name)
        return row

    def file_of(self, volume: Volume) -> Path:
        return self.path / VOLUMES_NAME / self.row(volume).file

    def file_text(self, volume: Volume) -> str:
        """``file_of`` as text, without a Path for each of thousands."""
        return f"{self.path}/{VOLUMES_NAME}/{self.row(volume).file}"

    def key_source(self, volume: Volume) -> str | None:
        """Where the key of an encrypted volume is; None: it is not encrypted."""
        encryption = self._stores[self.row(volume).file].encryption
        return None if encryption is None else encryption.record.source

    def store_of(self, volume: Volume) -> TvolFile:
        return self._stores[self.row(volume).file]

    def bad_chunks(self) -> dict[Path, int]:
        """Of each file that has chunks marked bad, how many."""
        return {store.path: store.bad_chunks for store in self._stores.values() if store.bad_chunks}

    def chunk_bytes(self, volume: Volume) -> int:
        return self._stores[self.row(volume).file].chunk_bytes

    def failure(self, volume: Volume) -> StoreFailed | None:
        """Why the volume's file takes no writes any more; None while it does (STORE section 2)."""
        return self._stores[self.row(volume).file].failed

    def snapshots(self, volume: Volume) -> list[Frozen]:
        """Those that users see, oldest first."""
        found = volume.head.store.snapshots(volume.volume_id)
        return [each for each in found if not each.hidden and not self.groups.is_going(each.guid)]

    def snapshot(self, volume: Volume, name: str) -> Frozen:
        """Raises NotFound."""
        try:
            found = volume.head.store.snapshot_named(volume.volume_id, name)
        except NotFound:
            found = None
        if found is None or found.hidden or self.groups.is_going(found.guid):
            raise NotFound("snapshot", f"{volume.name}@{name}")
        return found

    def has_snapshot(self, volume: Volume, name: str) -> bool:
        """Whether users see one of this name."""
        try:
            self.snapshot(volume, name)
        except NotFound:
            return False
        return True

    # --- for whoever changes them -----------------------------------------------------------------------------

    def require_new(self, name: str) -> None:
        """Raises AlreadyExists when a volume has that name, or is about to."""
        self.reserved.require_free("volume", name)
        known = {row.name for family in self._damaged.values() for row in family.volumes}
        if name in self._volumes or name in known or name in self._unfinished:
            raise AlreadyExists("volume", name)

    def _add(self, head: Head, row: VolumeRow) -> Volume:
        volume = Volume(
            head,
            physical_block_bytes=row.physical_block_bytes,
            read_only=row.read_only,
            write_cache=row.write_cache,
            removable=row.removable,
        )
        if isinstance(head.store, PurgingStore):
            host = VolumeSanitizeHost(volume, self.catalog, self.env)
            volume.sanitizer = Sanitizer(volume, host, name=volume.name, spread_s=SPREAD_S)
        volume.device_id = self.device_id(volume.volume_id)
        self._volumes[volume.name] = volume
        self._sorted = None
        self._rows[volume.volume_id] = row
        if isinstance(head.store, TvolFile):
            head.store.on_snapshot = self._tell_snapshot
        self._tell_volume(volume, "created")
        return volume

    def _tell_volume(self, volume: Volume, verb: str) -> None:
        if self.on_volume is not None:
            self.on_volume(volume, verb)

    def _tell_snapshot(self, snapshot: Frozen, verb: str) -> None:
        if self.on_snapshot is not None:
            self.on_snapshot(snapshot, verb)

    def _forget(self, volume: Volume) -> None:
        del self._volumes[volume.name]
        self._sorted = None
        del self._rows[volume.volume_id]
        self._tell_volume(volume, "deleted")
