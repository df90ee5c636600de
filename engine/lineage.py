"""Who goes on where two volumes say that they are one disk, from their lineages (pure).

REPLICATION section 6. A lineage is a list of entries (number, GUID): a volume's making, then each time that a replica
took the place of its source, or an operator said which of two goes on. Equal numbers with different GUIDs are diverged.
Two sides tell each other the newest ``TOLD_MAX`` entries.
"""

from __future__ import annotations

import enum
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import InvalidArgument

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

TOLD_MAX = 128
"""Entries that are told to the other side, the newest: what is older is the same, or was decided long ago."""

_TEXT_MAX = 64


@dataclass(frozen=True, slots=True)
class LineageEntry:
    """A volume was made, or promoted. ``point``: GUID of the recovery point that it went on from; None: it was made.

    ``at``: seconds since the epoch; 0 of a volume that was made before anybody asked. ``lossless``: nothing that was
    acknowledged was missing.
    """

    number: int
    guid: str
    at: float
    point: str | None
    lossless: bool


class Relation(enum.Enum):
    """How my lineage stands to another."""

    SAME = "the same"
    BEHIND = "behind"  # the other one has all of mine, and more
    AHEAD = "ahead"  # mine has all of it, and more
    DIVERGED = "diverged"


def compare(mine: Sequence[LineageEntry], theirs: Sequence[LineageEntry]) -> Relation:
    """Of what both sides tell of themselves; neither is empty."""
    ours = {entry.number: entry.guid for entry in mine}
    if any(ours.get(entry.number, entry.guid) != entry.guid for entry in theirs):
        return Relation.DIVERGED
    if mine[-1].number == theirs[-1].number:
        return Relation.SAME
    return Relation.BEHIND if mine[-1].number < theirs[-1].number else Relation.AHEAD


def goes_on(mine: Sequence[LineageEntry], theirs: Sequence[LineageEntry], *, inherited: bool) -> bool:
    """Whether I serve the disk, where both sides say that they do. ``inherited``: I have its identity from another.

    The higher number does. With equal ones the volume that was the disk first does, and of two that inherited it
    neither: two disks with one identity would be written through one multipath device.
    """
    if compare(mine, theirs) is Relation.SAME:
        return not inherited
    if mine[-1].number == theirs[-1].number:
        return not inherited
    return mine[-1].number > theirs[-1].number


def may_follow(
    mine: Sequence[LineageEntry],
    theirs: Sequence[LineageEntry],
    *,
    demoted: bool,
    equals_point: Callable[[str], bool],
) -> bool:
    """Whether a volume that another one has taken the place of may follow it as its replica without being asked: it has
    nothing that was acknowledged and that the other one lacks.

    Of several promotions the first after its own lineage decides: (a) it was without loss, and no demotion was recorded
    here since, or (b) the content here is the promoted point.

    Args:
        demoted: whether it is recorded here that hosts may have been acknowledged without the target.
        equals_point: whether the content here is that recovery point, by maps.
    """
    if compare(mine, theirs) is not Relation.BEHIND:
        return False
    first = next((entry for entry in theirs if entry.number == mine[-1].number + 1), None)
    if first is None or first.point is None:
        return False
    return (first.lossless and not demoted) or equals_point(first.point)


def to_json(lineage: Sequence[LineageEntry]) -> list[list[Any]]:
    """For the other side, and for files."""
    return [[each.number, each.guid, each.at, each.point, each.lossless] for each in lineage[-TOLD_MAX:]]


def from_json(rows: object) -> list[LineageEntry]:
    """Raises InvalidArgument: no lineage."""
    if not isinstance(rows, list) or not 0 < len(rows) <= TOLD_MAX:
        raise InvalidArgument("no lineage")
    found = [_entry(row) for row in rows]
    if any(later.number <= earlier.number for earlier, later in itertools.pairwise(found)):
        raise InvalidArgument("a lineage out of order")
    return found


def _entry(row: object) -> LineageEntry:
    match row:
        case [int(number), str(guid), int() | float() as at, None | str() as point, bool(lossless)]:
            if 0 < number < 1 << 62 and 0 < len(guid) <= _TEXT_MAX and len(point or "") <= _TEXT_MAX:
                return LineageEntry(number, guid, float(at), point, lossless)
    raise InvalidArgument("no entry of a lineage")
