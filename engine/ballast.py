"""Space that is kept for the catalogue: a file without content, which is given up when the host has nothing left.

Deleting a snapshot or a volume changes rows, and SQLite needs space for that. On a disk that is full to the last block,
where a deletion is what helps, the ballast goes, and the transaction is done again. It is made anew when there is
space; until then as much of what is free is the catalogue's alone, or a writer would take what it gave up. All
methods block; they run in the catalogue's thread, ``missing_bytes`` in any.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

BALLAST_BYTES = 4 << 20
"""A write-ahead log of the size at which SQLite begins anew (1000 pages), so that giving up once is enough."""


class Ballast:
    """The file at ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def make(self) -> None:
        """Have it, if the host has room for it."""
        if self._path.exists():
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, BALLAST_BYTES)
            finally:
                os.close(fd)
        except OSError:
            self.give_up()  # half of it is of no use to anybody

    def give_up(self) -> bool:
        """Whether it was there."""
        with contextlib.suppress(OSError):
            self._path.unlink()
            return True
        return False

    def missing_bytes(self) -> int:
        """What of the host's free space is to be left to it."""
        return 0 if self._path.exists() else BALLAST_BYTES
