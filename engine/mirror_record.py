"""What a mirror is told and what it remembers: its policy, and its record across restarts."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from engine.mirror_stream import QUEUE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class MirrorPolicy:
    """What an administrator may choose.

    ``budget_s``: a host waits at most this long for the target before the mirror breaks. ``rounds_max``: rounds
    that may overflow before the mirror gives up and says so. ``mark_interval_s``: how often the common point moves
    forward while synchronized; until then it holds back the space of what was overwritten. ``unpaced_rounds``: so many
    rounds may overflow before hosts are held back, each write by at most ``budget_s``, so that the next ones do not.
    """

    budget_s: float = 5.0
    queue_bytes: int = QUEUE_BYTES_MAX
    rounds_max: int = 8
    mark_interval_s: float = 60.0
    unpaced_rounds: int = 2


@dataclass(slots=True)
class MirrorRecord:
    """What a mirror knows across restarts. ``wanted``: active, fractured or suspended, as the administrator said."""

    wanted: str = "active"
    synchronized: bool = False
    common: str | None = None
    round_source: str | None = None
    round_base: str | None = None
    reason: str = ""

    def serialize(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def parse(cls, values: dict[str, Any]) -> MirrorRecord:
        return cls(**{name: values[name] for name in cls.__slots__ if name in values})


def point_prefix(mirror_name: str) -> str:
    """The beginning of the names of a mirror's recovery points; short enough to leave room for a GUID."""
    return f"mirror-{hashlib.sha256(mirror_name.encode()).hexdigest()[:12]}"
