"""The records of all nodes as the last checkpoint has them, in groups that have pages of their own.

A checkpoint writes the groups in which a node changed, and the root stream names the pages of each group. So its cost
does not grow with the number of snapshots, but for the 30 bytes of each group in the root stream.

A node belongs to the group of its number, ``number // NODES_PER_GROUP``: snapshots that were made one after the other
lie together. A group of which one node is left still takes a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.tvol import layout
from engine.tvol.layout import NodeGroupRecord, RootType

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.tvol.layout import PageRef

NODES_PER_GROUP = 32


@dataclass(frozen=True, slots=True)
class StoredNode:
    """What a checkpoint has of a node."""

    key: object
    """What the record says of the node itself, to be compared; None: unknown."""
    tops: tuple[PageRef, ...]
    dead: tuple[PageRef, ...]


@dataclass(slots=True)
class _Group:
    records: dict[int, bytes] = field(default_factory=dict)
    length: int = 0
    refs: tuple[PageRef, ...] = ()


class NodeTable:
    """Groups of node records. Changed by the checkpoint only, and filled when a file is opened."""

    def __init__(self) -> None:
        self._groups: dict[int, _Group] = {}
        self._changed: set[int] = set()
        self.largest_pages = 1
        """Of the largest group."""

    def put(self, node: int, record: bytes) -> None:
        """This is what the node's record says now."""
        number = node // NODES_PER_GROUP
        self._groups.setdefault(number, _Group()).records[node] = record
        self._changed.add(number)

    def remove(self, node: int) -> None:
        number = node // NODES_PER_GROUP
        del self._groups[number].records[node]
        self._changed.add(number)

    def take_changed(self) -> Iterator[tuple[int, bytes, tuple[PageRef, ...]]]:
        """(number, stream, where it was) of each changed group; ``stored`` must follow for each."""
        changed, self._changed = sorted(self._changed), set()
        for number in changed:
            group = self._groups[number]
            parts = [layout.pack_root_record(RootType.NODE, group.records[node]) for node in sorted(group.records)]
            yield number, b"".join(parts), group.refs

    def stored(self, number: int, length: int, refs: tuple[PageRef, ...]) -> None:
        """The group's stream is on these pages; an empty one is no group any more."""
        if not length:
            del self._groups[number]
            return
        group = self._groups[number]
        group.length, group.refs = length, refs
        self.largest_pages = max(self.largest_pages, len(refs))

    def load(self, length: int, refs: tuple[PageRef, ...], nodes: Iterator[tuple[int, bytes]]) -> None:
        """A group as a file has it: its nodes and their records. Raises LayoutError."""
        for node, record in nodes:
            number = node // NODES_PER_GROUP
            group = self._groups.setdefault(number, _Group(length=length, refs=refs))
            if group.refs != refs:
                raise layout.LayoutError(f"node {node} is not in the group of its number")
            group.records[node] = record
        self.largest_pages = max(self.largest_pages, len(refs))

    def root_records(self) -> Iterator[tuple[RootType, bytes]]:
        for group in self._groups.values():
            yield RootType.NODES, NodeGroupRecord(group.length, group.refs).serialize()
