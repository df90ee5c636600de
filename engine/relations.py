"""What is a copy of what, where neither the volumes nor the mirrors know: see ``engine.api.relations``.

A relation whose volumes are gone is none: it is left out wherever somebody looks, and forgotten at the next start.
Loop thread only; the catalogue is told before anybody else.
"""

from __future__ import annotations

import uuid
from dataclasses import asdict, replace
from typing import TYPE_CHECKING

from engine.api.relations import ELEMENT_NAME_MAX, GroupRelationInfo, PairInfo, RelationInfo
from engine.catalog_relations import CloneRow
from engine.errors import InvalidArgument, NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.catalog_relations import RelationTables
    from engine.files import Clock


RELATION_PREFIX = "relation:"
"""Before the id of a copy: the text is of the relation, not of the copy."""


def check_element_name(name: str) -> str:
    """``name`` when something may be called so by a free text. Raises InvalidArgument."""
    if not 0 < len(name) <= ELEMENT_NAME_MAX or not name.strip() or not name.isprintable():
        raise InvalidArgument(
            f"{name[:ELEMENT_NAME_MAX]!r} is no name for an element: 1-{ELEMENT_NAME_MAX} printable characters"
        )
    return name


class Relations:
    """``exists`` says of the id of a source whether a copy of it is there: a volume by its id, a snapshot of it by its
    GUID, or a replica of it by its name."""

    def __init__(self, tables: RelationTables, clock: Clock) -> None:
        self._tables = tables
        self._clock = clock
        self._names: dict[str, str] = {}
        self._clones: dict[str, CloneRow] = {}
        self._groups: dict[str, GroupRelationInfo] = {}
        self.exists: Callable[[str, str], bool] = lambda _source, _copy: True
        self.on_change: Callable[[RelationInfo | GroupRelationInfo, str], None] | None = None
        """Told of each relation that is "created" or "deleted"; of one whose volume goes nobody is."""

    async def restore(self, known: set[str]) -> None:
        """To be called once all volumes and replicas are known. ``known``: ids, GUIDs and names of all that free texts
        can be of, but relations; a text of something else is forgotten."""
        self._names = await self._tables.element_names()
        for row in await self._tables.clones():
            if self._stands(row):
                self._clones[row.target_id] = row
            else:
                await self._tables.remove_clone(row.target_id)
        for guid, document in (await self._tables.groups()).items():
            pairs = [PairInfo(*pair) for pair in document.pop("pairs")]
            info = GroupRelationInfo(guid=guid, pairs=pairs, **document)
            if any(self.exists(pair.source_id, pair.target) for pair in pairs):
                self._groups[guid] = info
            else:
                await self._tables.remove_group(guid)
        for guid in [guid for guid in self._names if guid.removeprefix(RELATION_PREFIX) not in known | {*self._groups}]:
            await self.set_element_name(guid, None)

    # --- free texts -------------------------------------------------------------------------------------------

    def element_names(self) -> dict[str, str]:
        return dict(self._names)

    async def set_element_name(self, guid: str, name: str | None) -> None:
        await self._tables.put_element_name(guid, None if name is None else check_element_name(name))
        self._names.pop(guid, None)
        if name is not None:
            self._names[guid] = name

    # --- clones -----------------------------------------------------------------------------------------------

    def clones(self) -> list[RelationInfo]:
        return [_relation(row) for row in self._clones.values() if self._stands(row)]

    def recorded(self, volume_id: str) -> list[RelationInfo]:
        """Of a volume, whether it is still there or not."""
        return [_relation(row) for row in self._clones.values() if volume_id in (row.source_id, row.target_id)]

    def _tell(self, info: RelationInfo | GroupRelationInfo, verb: str) -> None:
        if self.on_change is not None:
            self.on_change(info, verb)

    def _stands(self, row: CloneRow) -> bool:
        """Whether both ends are there."""
        of_snapshot = row.source_guid is None or self.exists(row.source_id, row.source_guid)
        return of_snapshot and self.exists(row.source_id, row.target_id)

    async def relate(self, kind: str, source_id: str, target_id: str, source_guid: str | None = None) -> None:
        """Record a full clone. One that the target was before is forgotten."""
        row = CloneRow(target_id, source_id, kind, self._clock.time(), source_guid)
        await self._tables.put_clone(row)
        self._clones[target_id] = row
        self._tell(_relation(row), "created")

    async def end(self, target_id: str) -> None:
        """Raises NotFound."""
        row = self._clones.pop(target_id, None)
        if row is None:
            raise NotFound("clone that is related to its source", target_id)
        await self._tables.remove_clone(target_id)
        self._tell(_relation(row), "deleted")

    # --- groups -----------------------------------------------------------------------------------------------

    def groups(self) -> list[GroupRelationInfo]:
        found = []
        for info in self._groups.values():
            pairs = [pair for pair in info.pairs if self.exists(pair.source_id, pair.target)]
            if pairs:
                found.append(replace(info, pairs=pairs))
        return found

    async def relate_groups(self, info: GroupRelationInfo) -> None:
        document = asdict(info)
        del document["guid"]
        document["pairs"] = [[pair.source_id, pair.target] for pair in info.pairs]
        await self._tables.put_group(info.guid, document)
        self._groups[info.guid] = info
        self._tell(info, "created")

    async def end_group(self, guid: str) -> None:
        """Raises NotFound."""
        info = self._groups.pop(guid, None)
        if info is None:
            raise NotFound("relation of groups", guid)
        await self._tables.remove_group(guid)
        await self.set_element_name(guid, None)
        self._tell(info, "deleted")


def _relation(row: CloneRow) -> RelationInfo:
    return RelationInfo(row.kind, row.source_id, row.target_id, row.established_at, row.source_guid)


def order_point() -> str:
    """A name that ``ORDER_POINT`` matches, and nobody has."""
    return f"order-{uuid.uuid4().hex}"


def new_guid() -> str:
    return str(uuid.uuid4())
