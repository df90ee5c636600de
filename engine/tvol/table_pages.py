"""The pages of a table that lies in memory as one array: which changed, and what a checkpoint captured of them.

A checkpoint captures the table in an instant without copying it: it takes the set of changed pages, and each of them is
copied when the checkpoint comes to write it, or before it changes again, whichever is first. So 1 TiB of changed births
(64 MiB) never holds up the loop.

Rule: whoever changes a page calls ``touch`` (or ``touch_all``) *before*; else a page that a checkpoint captured and did
not write yet has a later state than the rest of what it captured.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from engine.tvol.layout import PageRef


class TablePages:
    """Owned by the table; ``page_bytes`` is a page of it as it is now."""

    __slots__ = ("_captured", "_kept", "_page_bytes", "dirty", "refs")

    def __init__(self, page_bytes: Callable[[int], bytes]) -> None:
        self._page_bytes = page_bytes
        self.dirty: set[int] = set()
        """Changed since the last capture. A page in it needs no further ``touch``."""
        self.refs: list[PageRef] = []
        """Where the pages of the last checkpoint are."""
        self._captured: set[int] = set()
        self._kept: dict[int, bytes] = {}

    def touch(self, page: int) -> None:
        """The page is about to change."""
        self.dirty.add(page)
        if page in self._captured:
            self._keep(page)

    def touch_all(self, pages: Iterable[int]) -> None:
        """So are these."""
        for page in pages:
            if page not in self.dirty:
                self.touch(page)

    def _keep(self, page: int) -> None:
        self._captured.discard(page)
        self._kept[page] = self._page_bytes(page)

    def cut(self, count: int) -> None:
        """The table has so many pages now; nothing was ever stored in those behind."""
        self.dirty = {page for page in self.dirty if page < count}

    def capture(self) -> list[int]:
        """The changed pages, ascending, as they are at this instant; ``take`` each of them."""
        assert not self._captured
        assert not self._kept
        self._captured, self.dirty = self.dirty, set()
        return sorted(self._captured)

    def take(self, page: int) -> bytes:
        """A captured page as it was at the capture; once."""
        if page in self._captured:
            self._keep(page)
        return self._kept.pop(page)
