"""Maps as ``twinvol check`` reads them: page by page when it looks, some kept, so that nodes without number fit.

A node's map is a list of tops. A top is a page of the file, or (after records of the journal) an array of rows; a row
refers to a leaf. Leaves that the journal changed have numbers of their own, in place of a checksum, and no page; they
are kept as what was changed until that is more than a little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from xxhash import xxh3_64_intdigest as checksum64

from engine.errors import EngineError
from engine.tvol import layout
from engine.tvol.layout import PageRef

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy.typing as npt

    from engine.files import BlockFile
    from engine.tvol.check_image import Findings

Words: TypeAlias = "npt.NDArray[np.uint32]"
Rows: TypeAlias = "npt.NDArray[np.void]"
Top: TypeAlias = "PageRef | Rows"

ROW = np.dtype([("page", "<u4"), ("birth", "<u4"), ("checksum", "<u8")])
"""Of a top. Page and checksum 0: the leaf is absent; page 0 alone: the checksum is the number of a changed leaf."""
assert ROW.itemsize == layout.TOP_ENTRY.size

EMPTY_LEAF: Words = np.zeros(layout.LEAF_ENTRIES, np.uint32)
NO_TOP: Rows = np.zeros(layout.TOP_ENTRIES, ROW)

KEPT_PAGES = 2048
"""32 MiB."""
_FEW_CHANGES = 64


class _ChangedLeaf:
    """A leaf after records of the journal: changes over a leaf of the file, or all its entries."""

    __slots__ = ("base", "changes", "entries")

    def __init__(self, base: PageRef, changes: dict[int, int], entries: Words | None) -> None:
        self.base = base
        self.changes = changes
        self.entries = entries


class PageReader:
    """Pages of the file, verified; what does not verify is a finding once, and reads as None."""

    def __init__(self, file: BlockFile, findings: Findings) -> None:
        self._file = file
        self._findings = findings
        self.size = file.size()
        self._lost: set[PageRef] = set()

    def bytes_at(self, offset: int, length: int, where: str) -> bytes | None:
        buffer = bytearray(length)
        try:
            self._file.read_into([memoryview(buffer)], offset)
        except EngineError as error:
            self._findings.damage(where, f"cannot be read: {error}")
            return None
        return bytes(buffer)

    def page(self, ref: PageRef, where: str) -> bytes | None:
        if ref in self._lost:
            return None
        data = None
        if ref.page == 0 or (ref.page + 1) * layout.PAGE_SIZE > self.size:
            self._findings.damage(where, f"refers to page {ref.page}, which the file does not have")
        else:
            data = self.bytes_at(ref.page * layout.PAGE_SIZE, layout.PAGE_SIZE, where)
            if data is not None and checksum64(data) != ref.checksum:
                self._findings.damage(where, f"page {ref.page} has a wrong checksum")
                data = None
        if data is None:
            self._lost.add(ref)
        return data


class Maps:
    """The pages of all maps of a file, and what the journal changes in them."""

    def __init__(self, pages: PageReader) -> None:
        self._pages = pages
        self._kept: dict[PageRef, Words] = {}
        """The oldest goes first."""
        self._changed: dict[int, _ChangedLeaf] = {}
        self._private_tops: set[int] = set()
        """By ``id``: arrays that one node alone has."""

    def top(self, tops: Sequence[Top], number: int, where: str) -> Rows:
        """The rows of a node's top; of one that it does not have, or that cannot be read, absent ones."""
        if number >= len(tops):
            return NO_TOP
        top = tops[number]
        if not isinstance(top, PageRef):
            return top
        rows: Rows = self._words(top, where).view(ROW)
        strange = (rows["page"] == 0) & ((rows["checksum"] != 0) | (rows["birth"] != 0))
        if strange.any():  # absent, whatever else they say
            rows = rows.copy()
            rows[strange] = NO_TOP[0]
        return rows

    def entries(self, row: np.void, where: str) -> Words:
        """The entries of the leaf that a row refers to; not to be changed."""
        page, checksum = int(row["page"]), int(row["checksum"])
        if page:
            return self._words(PageRef(page, checksum), where)
        return self._entries_of(self._changed[checksum], where) if checksum else EMPTY_LEAF

    def _entries_of(self, leaf: _ChangedLeaf, where: str) -> Words:
        if leaf.entries is not None:
            return leaf.entries
        entries = (self._words(leaf.base, where) if leaf.base.page else EMPTY_LEAF).copy()
        entries[list(leaf.changes)] = list(leaf.changes.values())
        return entries

    def _words(self, ref: PageRef, where: str) -> Words:
        found = self._kept.get(ref)
        if found is None:
            data = self._pages.page(ref, where)
            found = EMPTY_LEAF if data is None else np.frombuffer(data, "<u4")
            if len(self._kept) >= KEPT_PAGES:
                del self._kept[next(iter(self._kept))]
            self._kept[ref] = found
        return found

    def leaves(self, tops: Sequence[Top], above: Sequence[Top] = (), first: int = 0) -> Iterator[tuple[int, Words]]:
        """Number and entries of the leaves that a map has, from one on, without those that are ``above`` in the same
        place."""
        for number in range(first // layout.TOP_ENTRIES, len(tops)):
            if number < len(above) and same_top(tops[number], above[number]):
                continue
            rows = self.top(tops, number, "map")
            there = (rows["page"] != 0) | (rows["checksum"] != 0)
            differ = there & (rows != self.top(above, number, "map"))
            for at in np.flatnonzero(differ).tolist():
                if number * layout.TOP_ENTRIES + at >= first:
                    yield number * layout.TOP_ENTRIES + at, self.entries(rows[at], "map")

    # What the journal does

    def share(self, tops: list[Top]) -> list[Top]:
        """A copy of a map; what the two have in common neither changes in place."""
        for top in tops:
            if not isinstance(top, PageRef):
                self._private_tops.discard(id(top))
        return list(tops)

    def entry(self, tops: Sequence[Top], index: int) -> int:
        row = self._row(tops, index // layout.LEAF_ENTRIES)
        slot = index % layout.LEAF_ENTRIES
        if not row["page"] and row["checksum"]:
            leaf = self._changed[int(row["checksum"])]
            if leaf.entries is None:
                found = leaf.changes.get(slot)
                if found is not None:
                    return found
        return int(self.entries(row, "map")[slot])

    def _row(self, tops: Sequence[Top], leaf: int) -> np.void:
        top = self.top(tops, leaf // layout.TOP_ENTRIES, "map")
        found: np.void = top[leaf % layout.TOP_ENTRIES]
        return found

    def change(self, tops: list[Top], index: int, entry: int) -> None:
        """Set one entry of a node's map."""
        leaf, slot = divmod(index, layout.LEAF_ENTRIES)
        changed = self._own_leaf(self._own_top(tops, leaf // layout.TOP_ENTRIES), leaf % layout.TOP_ENTRIES)
        if changed.entries is None and len(changed.changes) >= _FEW_CHANGES:
            changed.entries, changed.changes = self._entries_of(changed, "map"), {}
        if changed.entries is None:
            changed.changes[slot] = entry
        else:
            changed.entries[slot] = entry

    def _own_top(self, tops: list[Top], number: int) -> Rows:
        while len(tops) <= number:
            tops.append(NO_TOP)
        top = tops[number]
        if isinstance(top, PageRef) or id(top) not in self._private_tops:
            top = tops[number] = self.top(tops, number, "map").copy()
            # Leaves that a node alone has are those whose row says so, in a top that it alone has.
            top["birth"][(top["page"] == 0) & (top["checksum"] != 0)] = 0
            self._private_tops.add(id(top))
        return top

    def _own_leaf(self, top: Rows, at: int) -> _ChangedLeaf:
        row = top[at]
        page, checksum = int(row["page"]), int(row["checksum"])
        if not page and checksum and row["birth"]:
            return self._changed[checksum]
        if page or not checksum:
            leaf = _ChangedLeaf(PageRef(page, checksum), {}, None)
        else:
            old = self._changed[checksum]
            leaf = _ChangedLeaf(old.base, dict(old.changes), None if old.entries is None else old.entries.copy())
        number = len(self._changed) + 1
        self._changed[number] = leaf
        top[at] = (0, 1, number)
        return leaf


def same_top(top: Top, other: Top) -> bool:
    return top == other if isinstance(top, PageRef) and isinstance(other, PageRef) else top is other
