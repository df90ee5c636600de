"""What is logged about connections that have not logged in: a bounded number of lines in any time.

Whoever reaches a portal can cause such a line, as often as he connects; a log that he could fill would be lost to those
who read it. What is left out is counted, and told with the next tick of the server.
"""

from __future__ import annotations

import logging

_log = logging.getLogger(__name__)

MAX_LINES_PER_TICK = 50
"""A rack of hosts with a wrong secret is told one by one; see ``server.TICK_S``."""


class StrangerLog:
    """Of one server."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines = 0

    def write(self, level: int, message: str, *arguments: object) -> None:
        """As ``logging.Logger.log``, or nothing at all."""
        self._lines += 1
        if self._lines <= MAX_LINES_PER_TICK:
            _log.log(level, message, *arguments)

    def tick(self) -> None:
        """Time passes."""
        if self._lines > MAX_LINES_PER_TICK:
            suppressed = self._lines - MAX_LINES_PER_TICK
            _log.warning("%d more lines about connections that were not logged in are left out", suppressed)
        self._lines = 0
