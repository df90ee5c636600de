"""How a target offers a volume: the asymmetric access states of SCSI (SPC-4 section 5.15.2), by their numbers."""

from __future__ import annotations

import enum

from engine.errors import InvalidArgument

MAX_TARGETS = 4095
"""Of one pool. Each is a target port group; with sixteen ports a group, relative identifiers have 16 bits."""

MAX_PORTAL_GROUPS = 16
"""Of one daemon: the ports of a target."""

MAX_RECORDED = 1000
"""Commands that are remembered of one session at most, about 250 bytes each."""

MAX_PAUSE_S = 3600.0
"""A pause always ends by itself: an administrator's script that dies must not leave hosts waiting for ever."""


class AccessState(enum.IntEnum):
    """SPC-4 table 262. Logical block dependent and offline are not offered; ``TRANSITIONING`` is never asked for."""

    ACTIVE_OPTIMIZED = 0x0
    ACTIVE_NON_OPTIMIZED = 0x1
    STANDBY = 0x2
    UNAVAILABLE = 0x3
    TRANSITIONING = 0xF

    @property
    def is_active(self) -> bool:
        """Whether data may be read and written."""
        return self <= AccessState.ACTIVE_NON_OPTIMIZED

    @property
    def label(self) -> str:
        """Its name in answers and on the command line."""
        return self.name.lower().replace("_", "-")

    @classmethod
    def of(cls, label: str) -> AccessState:
        """The state of that name. Raises InvalidArgument."""
        for state in SETTABLE:
            if state.label == label:
                return state
        raise InvalidArgument(f"{label!r} is no access state; say {', '.join(state.label for state in SETTABLE)}")


SETTABLE = tuple(state for state in AccessState if state is not AccessState.TRANSITIONING)
