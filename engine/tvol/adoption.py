"""ADOPT: what a clone's tree inherits at some places, replaced by copies of its own, in all of its nodes at once.

The *tree of a clone* is the topmost node of it, child of the snapshot that it was cloned from, with all nodes below:
its snapshots, deleted ones that still wait, and clones of those. What any of them inherits it has from the topmost one,
at the same place: so one copy, born with the topmost node, serves all, and they go on sharing it.

The theory, by which deadlists and counters follow (``check.py`` computes them anew). For one place let X be what the
topmost node inherits there, and N the copy:

* a node whose entry is X names N instead; a partial chunk of a node's own over X has N as its base instead;
* the topmost node has killed X, which its parent still has: X goes to its deadlist, and N is its own;
* of any other node the parent does not have X any more: where the node had killed it, its deadlist names N instead,
  which its parent has and it has not.

The base of a partial chunk below may have had pages over it in the topmost node, which N has merged: the mask of a
partial chunk has those of the one that it took the place of, so nobody reads these pages of N.

Nodes that share a leaf share the changed one. Maps of sealed snapshots change here, and nowhere else: whoever waits
between two looks at one goes by its ``version``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.tvol.chunk_map import ABSENT_LEAF, LEAF_MASK, LEAF_SHIFT
from engine.tvol.layout import FIRST_CHUNK_ENTRY, LayoutError
from engine.tvol.partials import CHUNK_MASK

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    from engine.tvol.chunk_map import Leaf
    from engine.tvol.nodes import Node
    from engine.tvol.tree import Family

    Words = npt.NDArray[np.uint32]
    Flags = npt.NDArray[np.bool_]
    Places = npt.NDArray[np.intp]


@dataclass(slots=True)
class View:
    """What a node has at the places that are looked at; flags are one for each place."""

    node: Node
    above: View | None
    leaf: Leaf
    entries: Words
    whole: Flags
    """The entry itself is inherited."""
    base: Flags
    """It is a partial chunk of the tree's own over an inherited base."""
    claims: Words
    """All that is inherited."""

    @property
    def holds(self) -> Flags:
        return self.whole | self.base


def tree_of(top: Node) -> Iterator[Node]:
    """A node and all below, parents first."""
    nodes = [top]
    for node in nodes:  # which grows meanwhile
        yield node
        nodes.extend(node.children)


def views(family: Family, top: Node, number: int, places: Places) -> list[View]:
    """The view that the topmost node has of places of a leaf, and those of all nodes whose parents inherit something
    there; parents first. The maps are loaded and the leaves resident.

    What the nodes have is looked up for all of them at once, since numpy costs the same for one as for hundreds; and
    once for each leaf: the views of nodes that share one have the same arrays.
    """
    numbers: dict[int, int] = {}
    leaves: dict[object, int] = {}
    distinct: list[Leaf] = []
    for node in tree_of(top):
        leaf = _leaf_of(node, number)
        at = numbers[node.id] = leaves.setdefault(leaf.page or leaf, len(distinct))
        if at == len(distinct):
            distinct.append(leaf)
    entries = np.stack([leaf.array[places] for leaf in distinct])
    rows = family.claims.partials.by_place(entries.reshape(-1))
    inherited = rows >= FIRST_CHUNK_ENTRY
    inherited[inherited] = family.claims.births_of(rows[inherited]) <= top.floor
    shape = 2, len(distinct), len(places)
    rows, inherited = rows.reshape(shape), inherited.reshape(shape)
    looks = [
        (each, whole, base & ~whole, claims[here])
        for each, whole, base, claims, here in zip(
            entries, *inherited, rows.swapaxes(0, 1), inherited.swapaxes(0, 1), strict=True
        )
    ]
    found = [View(top, None, _leaf_of(top, number), *looks[numbers[top.id]])]
    for above in found:  # which grows meanwhile
        if len(above.claims):
            children = above.node.children
            found += [View(child, above, _leaf_of(child, number), *looks[numbers[child.id]]) for child in children]
    return found


def _leaf_of(node: Node, number: int) -> Leaf:
    return node.map.leaves[number] if number < node.map.count else ABSENT_LEAF


def distinct(looked: list[View]) -> Iterator[View]:
    """One view of those that have the same arrays."""
    return iter({id(view.entries): view for view in reversed(looked)}.values())


def adopt(family: Family, top: Node, items: list[tuple[int, int, int]]) -> None:
    """Do what an ADOPT record says; its items are those of a MAP. Raises LayoutError: the topmost node inherits nothing
    at one of them, or what is copied as ZERO is the base of a partial chunk."""
    index = np.concatenate([np.arange(first, first + count) for first, count, _ in items])
    entries = np.concatenate([_entries(count, entry) for _, count, entry in items])
    for number in np.unique(index >> LEAF_SHIFT).tolist():
        here = index >> LEAF_SHIFT == number
        _adopt_in_leaf(family, top, number, (index[here] & LEAF_MASK).astype(np.intp), entries[here])


def _entries(count: int, entry: int) -> Words:
    step = 1 if entry >= FIRST_CHUNK_ENTRY else 0
    return np.arange(count, dtype=np.uint32) * np.uint32(step) + np.uint32(entry)


def _adopt_in_leaf(family: Family, top: Node, number: int, places: Places, entries: Words) -> None:
    looked = views(family, top, number, places)
    if not looked[0].holds.all():
        raise LayoutError(f"ADOPT of node {top.id}, which inherits nothing at an index of it")
    copies = entries[entries >= FIRST_CHUNK_ENTRY]
    birth = top.generation or family.generation
    for chunk in copies.tolist():
        family.births.extend_to(max(family.births.count, chunk + 1))
        family.births.set(chunk, birth)
    changed: dict[object, Leaf] = {}
    unmapped = {id(view.entries): _unmapped(view, entries) for view in distinct(looked)}
    for view in looked:
        _replace_entries(family, view, number, places, entries, changed, unmapped[id(view.entries)])
    for view in distinct(looked):
        _replace_bases(family, view, entries)
    top.own += len(copies)
    family.kill_many(top, looked[0].claims)
    for view in looked[1:]:
        _mend_deadlist(family, view, entries, birth)


def _unmapped(view: View, entries: Words) -> int:
    """How many of the entries that a copy takes the place of become ZERO; -1: there is no such entry."""
    return int(np.count_nonzero(entries[view.whole] < FIRST_CHUNK_ENTRY)) if view.whole.any() else -1


def _replace_entries(
    family: Family,
    view: View,
    number: int,
    places: Places,
    entries: Words,
    changed: dict[object, Leaf],
    unmapped: int,
) -> None:
    if unmapped < 0:
        return
    node, leaf = view.node, view.leaf
    key = leaf.page or leaf
    known = changed.get(key)
    touch(family, node)
    if known is None:
        known = leaf if leaf.owner == node.map.token else family.own_leaf(node, number)
        known.array[places[view.whole]] = entries[view.whole]
        changed[key] = known
    elif node.map.leaves[number] is not known:
        node.map.put(number, known)
    _tell_readers(node, number)
    node.mapped -= unmapped


def _tell_readers(node: Node, number: int) -> None:
    """Nobody goes by what a snapshot's leaf was."""
    node.map.version += 1
    node.seen.pop(number, None)


def _replace_bases(family: Family, view: View, entries: Words) -> None:
    partials = family.claims.partials
    for place in np.flatnonzero(view.base).tolist():
        if entries[place] < FIRST_CHUNK_ENTRY:
            raise LayoutError(f"ADOPT of the base of a partial chunk of node {view.node.id} as zero")
        partials.rebase(int(view.entries[place]) & CHUNK_MASK, int(entries[place]))


def _mend_deadlist(family: Family, view: View, entries: Words, birth: int) -> None:
    assert view.above is not None
    node = view.node
    if len(view.claims) == len(view.above.claims):
        return  # what a node inherits its parent does, too: these are the same
    killed = np.setdiff1d(view.above.claims, view.claims, assume_unique=True)
    if len(killed):
        births = family.claims.births_of(killed)
        for each in np.unique(births).tolist():
            node.dead.remove(each, killed[births == each])
    gone = entries[view.above.holds & ~view.holds & (entries >= FIRST_CHUNK_ENTRY)]
    if len(gone):
        node.dead.extend(birth, gone.tolist())
        family.dirty_words += len(gone)
    if len(killed) or len(gone):
        touch(family, node)


def touch(family: Family, node: Node) -> None:
    """The next checkpoint writes the node anew, and has the pages for it."""
    if node.id not in family.touched:
        family.count_structure(node)
    family.touch(node)
