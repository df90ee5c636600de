"""How much nodes take, and what deleting them gives back: sums over deadlist buckets, not scans (STORE section 1).

A claim *ends* with nodes when they are deleted. Let D be the nodes to delete and those deleted that still wait. In
whatever order the housekeeper takes them:

1. A node of D that no child of stays takes its own claims (born above its floor) with it.
2. What is left of D with exactly one child that stays merges into it. A run of such nodes ends what the deadlists of
   their children have from after the generation of the nearest ancestor that stays.
3. With two children or more it waits, and gives nothing back.

A chunk comes back when its last claim has ended. Without shared chunks each has one claim, and the sums say it all.
Else the claims are gathered and those chunks counted of which all have ended: linear in the claims that end. Between
pieces of them the loop serves others, so that of a file that changes meanwhile each piece is as it was at some time.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from engine.tvol.claims import Words
    from engine.tvol.core import Core
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

_PIECE = 1 << 18
"""Claims looked at in one turn of the loop (2 ms)."""
_NODES = 32
"""Nodes whose sums are taken in one turn of the loop."""


@dataclass(frozen=True, slots=True)
class NodeSpace:
    """In chunks; the words are those of ``engine.stores.Space``."""

    mapped: int
    unique: int
    pinned: int
    reclaimable: int


@dataclass(frozen=True, slots=True)
class Ended:
    """The claims that end when a set of nodes goes."""

    bare: list[Node]
    """Nodes that no child of stays: their own claims."""
    dead: list[tuple[Node, int]]
    """Nodes whose parent merges into them, and the generation from after which their deadlist's claims end."""

    def count(self) -> int:
        return sum(node.own for node in self.bare) + sum(node.dead.count_above(floor) for node, floor in self.dead)

    async def claims(self, core: Core) -> AsyncIterator[Words]:
        """The same claims themselves, in pieces."""
        for node in self.bare:
            async for found in _claims_of_leaves(core, node, node.floor):
                yield found
        for node, floor in self.dead:
            for bucket in [bucket for birth, bucket in list(node.dead.buckets.items()) if birth > floor]:
                for at in range(0, len(bucket), _PIECE):
                    yield np.array(bucket[at : at + _PIECE], np.uint32)


def ended_by(family: Family, doomed: Iterable[Node]) -> Ended:
    """What ends with these nodes and those that are deleted already."""
    gone = {node.id: node for node in doomed} | family.deleted
    staying = {number: len(node.children) for number, node in gone.items()}
    bare = [node for node in gone.values() if not node.children]
    for node in bare:  # which grows meanwhile
        parent = node.parent
        if parent is not None and parent.id in gone:
            staying[parent.id] -= 1
            if not staying[parent.id]:
                bare.append(parent)
    merging = sorted((node for node in gone.values() if staying[node.id] == 1), key=lambda node: node.generation)
    floors: dict[int, int] = {}
    dead = []
    for node in merging:  # a parent before its children: its generation is lower
        floors[node.id] = floors.get(node.parent.id, node.floor) if node.parent else node.floor
        (child,) = (each for each in node.children if staying.get(each.id, 1))
        dead.append((child, floors[node.id]))
    return Ended(bare, dead)


async def freed_by(core: Core, doomed: list[Node]) -> int:
    """Chunks that come back when these nodes are deleted, beyond those that come back anyway."""
    family = core.family
    after, before = ended_by(family, doomed), ended_by(family, ())
    if not family.claims.used:
        return after.count() - before.count()
    with_them = await _gather(core, after.claims(core), _anyway(core))
    without = await _gather(core, before.claims(core), _anyway(core))
    return await core.env.workers.run(lambda: _whole(*with_them) - _whole(*without))


async def pending_chunks(core: Core) -> int:
    """Chunks of what is deleted or overwritten that are on their way back, and not to be used yet."""
    family = core.family
    pending, ended = core.allocator.deferred_count, ended_by(family, ())
    if not family.claims.used:
        queued = len(family.reclaim) + sum(node.own for node in family.reclaiming)
        return pending + queued + ended.count()
    found = await _gather(core, ended.claims(core), _anyway(core))
    return pending + await core.env.workers.run(lambda: _whole(*found))


async def _anyway(core: Core) -> AsyncIterator[Words]:
    """The claims of merged nodes that are still to be freed."""
    for queued, start, end in core.family.reclaim.parts():
        yield np.array(queued[start:end], np.uint32)
    for node in list(core.family.reclaiming):
        async for found in _claims_of_leaves(core, node, node.generation):
            yield found


async def _gather(core: Core, *sources: AsyncIterator[Words]) -> tuple[Words, Words]:
    """The chunks that claims are on, and how many claims there are on each at the time."""
    claims, births = core.family.claims, core.family.births
    chunks, on, looked_at = [np.empty(0, np.uint32)], [np.empty(0, np.uint32)], 0
    for source in sources:
        async for part in source:
            chunks.append(claims.chunks_of(part))
            on.append(births.claims_on(chunks[-1]))
            looked_at += len(part)
            if looked_at >= _PIECE:
                looked_at = 0
                await asyncio.sleep(0)
    return np.concatenate(chunks), np.concatenate(on)


def _whole(chunks: Words, on: Words) -> int:
    """How many of the chunks occur as often as there are claims on them."""
    _, first, times = np.unique(chunks, return_index=True, return_counts=True)
    return int(np.count_nonzero(times == on[first]))


async def spaces(core: Core, head: Node, snapshots: list[Node]) -> list[NodeSpace]:
    """Of a volume's head and of snapshots of it, in this order; of nodes that change meanwhile, as they were at some
    time for each."""
    pinned = await _pinned(head)
    found = []
    for number, node in enumerate([head, *snapshots]):
        found.append(await _space(core, node, pinned))
        if not number % _NODES:
            await asyncio.sleep(0)
    return found


async def _space(core: Core, node: Node, pinned: dict[int, int]) -> NodeSpace:
    family = core.family
    only = _whole(*await _gather(core, Ended(*_only(node)).claims(core))) if family.claims.used else _unique(node)
    # What waits to be merged beside a node is part of what its deletion sets free.
    beside = family.deleted and any(
        each.id in family.deleted for each in (node.parent, *node.children) if each is not None
    )
    back = await freed_by(core, [node]) if beside else only if len(node.children) < 2 else 0
    return NodeSpace(node.mapped, only, pinned[node.id] if node.id in pinned else _made_in_branch(node, pinned), back)


def _only(node: Node) -> tuple[list[Node], list[tuple[Node, int]]]:
    """As ``Ended``: the claims that this node alone has, if it has less than two children."""
    if not node.children:
        return [node], []
    return [], [(node.children[0], node.floor)] if len(node.children) == 1 else []


def _unique(node: Node) -> int:
    """Claims that no other node has: of those born in it, what every child has lost."""
    if len(node.children) < 2:
        return Ended(*_only(node)).count()
    common: Words | None = None
    for child in sorted(node.children, key=lambda each: each.dead.words()):
        lost = [np.array(bucket, np.uint32) for birth, bucket in child.dead.buckets.items() if birth > node.floor]
        if not lost:
            return 0
        here = np.concatenate(lost)
        common = here if common is None else np.intersect1d(common, here, assume_unique=True)
    return 0 if common is None else len(common)


async def _pinned(head: Node) -> dict[int, int]:
    """For each node from the head up: claims of it that the head has no longer. A deadlist names what a node's parent
    has and itself has not, so it is a sum over the deadlists below, of what was born up to the node's generation."""
    line = [head]
    while line[-1].parent is not None:
        line.append(line[-1].parent)
    found = {head.id: 0}
    births, counts = np.empty(0, np.uint32), np.empty(0, np.int64)
    for number, (child, node) in enumerate(itertools.pairwise(line)):
        more, times = child.dead.counts()
        births, counts = np.concatenate([births, more]), np.concatenate([counts, times])
        old = births <= node.generation
        births, counts = births[old], counts[old]
        if len(births) > 2 * len(line):  # one for each generation will do
            births, places = np.unique(births, return_inverse=True)
            counts = np.bincount(places, counts).astype(np.int64)
        found[node.id] = int(counts.sum())
        if not number % _NODES:
            await asyncio.sleep(0)
    return found


def _made_in_branch(node: Node, line: dict[int, int]) -> int:
    """Claims of a node beside the volume's line (a branch that a rollback left) that were born after it left it."""
    path: list[Node] = []
    above: Node | None = node
    while above is not None and above.id not in line:
        path.append(above)
        above = above.parent
    left_at = above.generation if above else 0
    return sum(each.own - each.dead.count_above(left_at) for each in path)


async def _claims_of_leaves(core: Core, node: Node, floor: int) -> AsyncIterator[Words]:
    """The claims of a node's map that were born above ``floor``, in pieces; no more of them once the node is gone."""
    for number in range(node.map.count):
        if core.family.nodes.get(node.id) is not node:
            return  # the pages of its map may be used for something else
        leaf = await core.maps.leaf(node, number)
        if leaf.birth > floor:
            entries = (await core.maps.resident_leaf(node, number)).chunks()
            found = core.family.claims.of_entries(entries)
            yield found[core.family.claims.births_of(found) > floor]
