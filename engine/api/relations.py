"""Copies that are ordered together, and the relations that they leave. See ``engine.api``.

A *relation* says what is a copy of what. That of a snapshot is in its volume and that of a mirror is the replica; what
is here is what nobody else knows: which full clone came from which volume and is not detached yet, and which copies
were made as one, of a group or of one source.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.api.jobs import JobInfo
from engine.mirror_terms import ASYNCHRONOUS, MirrorTerms

ORDER_MAX = 256
"""Copies in one order."""

ORDER_POINT = re.compile(r"order-[0-9a-f]{32}")
"""What a group is called by which an order freezes its sources at one instant; it is gone when its clones are made."""

ELEMENT_NAME_MAX = 256
"""Characters of a free text that something is called by."""


@dataclass(frozen=True, slots=True)
class CopyOrder:
    """One copy to be made.

    ``kind``: snapshot; clone or token (full, verified, in a family of its own; the latter moved by a copy token); or
    mirror. ``target``: an existing volume, whose content is lost; None: it is made, and named after ``element_name``,
    its free text, or after the source. ``name``: what it is called, where that is decided already. ``snapshot``: of a
    clone that is made, the snapshot of the source that it is a copy of; None: the source as it is then.

    ``relation_name``: a free text for the relation, not for the element; kept for ``relation:`` and the target's id.
    ``related``: a clone stays related to its source until ``relation_end``. ``terms``, ``peer``: of a mirror.
    """

    kind: str
    source: str
    element_name: str | None = None
    target: str | None = None
    name: str | None = None
    related: bool = True
    terms: MirrorTerms = ASYNCHRONOUS
    peer: str | None = None
    relation_name: str | None = None
    snapshot: str | None = None

    @classmethod
    def parse(cls, values: dict[str, Any]) -> CopyOrder:
        """From what ``dataclasses.asdict`` made. Raises InvalidArgument."""
        return cls(**values | {"terms": MirrorTerms(**values["terms"])})


@dataclass(frozen=True, slots=True)
class GroupOrder:
    """The copies of an order make one relation, called ``name``.

    ``source_group``: the group whose members they copy, in its order; None: they all have one source.
    ``target_group``: the existing group that the targets are; None: it is made, except of snapshots.
    ``consistent``: they hold one instant of all sources.
    """

    name: str
    source_group: str | None = None
    target_group: str | None = None
    consistent: bool = False


@dataclass(frozen=True, slots=True)
class RelationInfo:
    """A full clone (``kind`` clone or token) that is not detached. Ids are those of volumes; ``source_guid``: of the
    source's snapshot that it was made of, if of one."""

    kind: str
    source_id: str
    target_id: str
    established_at: float
    source_guid: str | None = None


@dataclass(frozen=True, slots=True)
class PairInfo:
    """``target``: the id of a volume, the GUID of a snapshot, or (a mirror at a peer) the name of the replica."""

    source_id: str
    target: str


@dataclass(frozen=True, slots=True)
class GroupRelationInfo:
    """Copies that were made as one. ``source``: the GUID of a group, or the id of the one source.

    ``target_group``: the GUID of a group or of a group snapshot; None: its targets are in no other group than this
    relation, or it is gone. ``mode`` of mirrors. Pairs whose target is gone are left out, and relations whose
    source is.
    """

    guid: str
    name: str
    kind: str
    mode: str | None
    source: str
    target_group: str | None
    consistent: bool
    established_at: float
    pairs: list[PairInfo] = field(default_factory=list)


class RelationApi(Protocol):
    """The operations of ``EngineApi`` on relations."""

    async def copies_make(
        self,
        orders: list[CopyOrder],
        *,
        group: GroupOrder | None = None,
        at_once: bool = False,
        on_error: str = "stop",
        until: str = "synchronized",
    ) -> JobInfo:
        """Make several copies as one job, which goes on after a restart under its number.

        ``on_error``: stop (then none of them stays) or continue. ``until``: what the job waits for with mirrors,
        ``associated`` or ``synchronized``. ``at_once``: clones hold one instant of all sources.

        The job's result has ``copies``, in order: each the ``source_id`` (and ``source_guid`` of a snapshot of it), and
        ``target_id`` (a volume), ``guid`` (a snapshot), ``replica``, or ``error`` with ``message``; with a group
        ``group``, the GUID of the relation, and ``target_group``. While it runs, what there is so far, and ``begun``:
        snapshots are made, mirrors exist, or the first clone is being copied. ``jobs``: those that make single copies.
        What can be refused is refused at once: InvalidArgument, NotFound, AlreadyExists, InUse, NotSupported.
        """
        ...

    async def mirrors_follow(self, verb: str, names: list[str]) -> JobInfo:
        """``resync`` or ``resume`` several replicas as one job, which ends when all are Synchronized; its result has
        their ``replicas``. When it rests, they are suspended; when it is cancelled, they stay so. Raises NotFound."""
        ...

    async def relation_list(self) -> list[RelationInfo]: ...
    async def relation_end(self, target_id: str) -> None:
        """The clone is a volume like any other. Raises NotFound."""
        ...

    async def group_relation_list(self) -> list[GroupRelationInfo]: ...
    async def group_relation_end(self, guid: str) -> None:
        """Forget that copies belong together; they stay, and are related to their sources as before. Raises
        NotFound."""
        ...

    async def element_name_set(self, guid: str, name: str | None) -> None:
        """Have something (a volume by its id, a snapshot or group by its GUID, a relation) called by a free text too;
        None: no longer. Raises InvalidArgument: too long, empty, or with control characters."""
        ...

    async def element_name_list(self, guids: list[str] | None = None) -> dict[str, str]:
        """The free texts, by id or GUID: of these, by default of all that have one."""
        ...
