"""The snapshots of an open file as devices: by number, by volume, and by name and identity within a volume.

A volume may have thousands; making one asks whether its name is taken, and that is one look here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import ValuesView

    from engine.tvol.device import NativeSnapshot


class SnapshotTable:
    """All of them, incomplete ones included. Within a volume they are in the order of their generations: they are
    added in it."""

    def __init__(self) -> None:
        self._by_id: dict[int, NativeSnapshot] = {}
        self._by_volume: dict[str, dict[int, NativeSnapshot]] = {}
        self._names: dict[tuple[str, str], NativeSnapshot] = {}
        self._guids: dict[tuple[str, str], NativeSnapshot] = {}

    def __getitem__(self, node_id: int) -> NativeSnapshot:
        return self._by_id[node_id]

    def get(self, node_id: int) -> NativeSnapshot | None:
        return self._by_id.get(node_id)

    def values(self) -> ValuesView[NativeSnapshot]:
        return self._by_id.values()

    def of(self, volume_id: str) -> list[NativeSnapshot]:
        """Those of a volume, oldest first."""
        return list(self._by_volume.get(volume_id, {}).values())

    def named(self, volume_id: str, name: str) -> NativeSnapshot | None:
        return self._names.get((volume_id, name))

    def with_guid(self, volume_id: str, guid: str) -> NativeSnapshot | None:
        return self._guids.get((volume_id, guid))

    def add(self, snapshot: NativeSnapshot) -> NativeSnapshot:
        """One that is younger than all others of its volume. Returns it."""
        volume_id = snapshot.volume_id
        self._by_id[snapshot.node_id] = snapshot
        self._by_volume.setdefault(volume_id, {})[snapshot.node_id] = snapshot
        self._names[volume_id, snapshot.name] = snapshot
        self._guids[volume_id, snapshot.guid] = snapshot
        return snapshot

    def drop(self, node_id: int) -> None:
        """If there is such a one."""
        snapshot = self._by_id.pop(node_id, None)
        if snapshot is None:
            return
        volume_id = snapshot.volume_id
        del self._by_volume[volume_id][node_id]
        for table, key in ((self._names, snapshot.name), (self._guids, snapshot.guid)):
            if table.get((volume_id, key)) is snapshot:
                del table[volume_id, key]

    def renamed(self, snapshot: NativeSnapshot, before: str) -> None:
        """It was called ``before``."""
        if self._names.get((snapshot.volume_id, before)) is snapshot:
            del self._names[snapshot.volume_id, before]
        self._names[snapshot.volume_id, snapshot.name] = snapshot
