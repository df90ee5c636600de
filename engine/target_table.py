"""The targets of a pool in memory, with an index of what they show: looking up a volume's LUNs is no scan of all."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.catalog import LunRow, TargetRow


class TargetTable:
    """Target rows by name, in order of their making. A row is replaced as a whole, never changed."""

    def __init__(self) -> None:
        self._rows: dict[str, TargetRow] = {}
        self._order: dict[str, int] = {}
        self._made = 0
        self._by_volume: dict[str, dict[tuple[str, int], LunRow]] = {}
        """The LUNs that show a volume, a snapshot or a standby path of it, by target and number."""

    def __contains__(self, name: str) -> bool:
        return name in self._rows

    def __getitem__(self, name: str) -> TargetRow:
        return self._rows[name]

    def __iter__(self) -> Iterator[TargetRow]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        return len(self._rows)

    def get(self, name: str) -> TargetRow | None:
        return self._rows.get(name)

    def put(self, row: TargetRow) -> TargetRow:
        """A new target, or what one is now. Returns it."""
        before = self._rows.get(row.name)
        if before is not None:
            self._unlist(before)
        else:
            self._made += 1
            self._order[row.name] = self._made
        self._rows[row.name] = row
        for lun in row.luns:
            for volume_id in _volumes_of(lun):
                self._by_volume.setdefault(volume_id, {})[row.name, lun.lun] = lun
        return row

    def drop(self, name: str) -> None:
        self._unlist(self._rows.pop(name))
        del self._order[name]

    def luns_about(self, volume_id: str) -> list[LunRow]:
        """Those that show a volume, any snapshot or a standby path of it; by target, oldest first."""
        found = self._by_volume.get(volume_id)
        return [] if found is None else sorted(found.values(), key=lambda lun: (self._order[lun.target], lun.lun))

    def _unlist(self, row: TargetRow) -> None:
        for lun in row.luns:
            for volume_id in _volumes_of(lun):
                listed = self._by_volume[volume_id]
                del listed[row.name, lun.lun]
                if not listed:
                    del self._by_volume[volume_id]


def _volumes_of(lun: LunRow) -> set[str]:
    return {lun.volume_id} if lun.standby_of is None else {lun.volume_id, lun.standby_of}
