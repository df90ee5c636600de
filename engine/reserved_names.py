"""Names that somebody has chosen and takes later: of volumes and replicas, and of the snapshots of one volume.

Invariant: as long as a name is reserved, nobody gets it but the tasks inside ``taking`` and those that they begin.
"""

from __future__ import annotations

import contextlib
from contextvars import ContextVar
from typing import TYPE_CHECKING

from engine.errors import AlreadyExists

if TYPE_CHECKING:
    from collections.abc import Iterator
    from collections.abc import Set as AbstractSet

Scoped = tuple[str, str]
"""Of a snapshot its volume's name, else none; and the name."""

_TAKING: ContextVar[AbstractSet[Scoped]] = ContextVar("names that are taken here", default=frozenset())


class ReservedNames:
    """See the module."""

    def __init__(self) -> None:
        self._names: set[Scoped] = set()

    def __contains__(self, name: Scoped) -> bool:
        return name in self._names

    def add(self, names: AbstractSet[Scoped]) -> None:
        self._names |= names

    def remove(self, names: AbstractSet[Scoped]) -> None:
        self._names -= names

    @contextlib.contextmanager
    def taking(self, names: AbstractSet[Scoped]) -> Iterator[None]:
        """Inside, these may be taken."""
        token = _TAKING.set(names)
        try:
            yield
        finally:
            _TAKING.reset(token)

    def require_free(self, kind: str, name: str, scope: str = "") -> None:
        """Raises AlreadyExists."""
        if (scope, name) in self._names and (scope, name) not in _TAKING.get():
            raise AlreadyExists(kind, f"{scope}@{name}" if scope else name)
