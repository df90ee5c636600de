"""Who may use a logical unit: RESERVE(6) (SPC-2 section 5.5.1) and persistent reservations (SPC-4 section 5.13).

State only; ``persistent_reserve.py`` has the commands. A registration belongs to an I_T nexus by name, not to a
session: it survives logout and reset. RESERVE(6) belongs to a session and ends with it.

Persistent reservations are kept in memory: REPORT CAPABILITIES says PTPL_C = 0 and APTPL = 1 is refused.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

from iscsi.scsi.dispatch import CommandSpec, Sharing
from iscsi.scsi.sense import Effect, ReservationConflict

if TYPE_CHECKING:
    from iscsi.scsi.lun import ItNexus, Nexus

MAX_REGISTRATIONS = 256
"""Per logical unit; READ FULL STATUS of them all is some 70 KiB."""


class ReservationType(enum.IntEnum):
    """SPC-4 table 71."""

    WRITE_EXCLUSIVE = 1
    EXCLUSIVE_ACCESS = 3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 8

    @property
    def excludes_reads(self) -> bool:
        return self in (
            ReservationType.EXCLUSIVE_ACCESS,
            ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
            ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
        )

    @property
    def all_registrants(self) -> bool:
        """Every registered nexus holds it."""
        return self >= ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS

    @property
    def shared_by_registrants(self) -> bool:
        """Every registered nexus may use the unit."""
        return self >= ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


class Reservations:
    """Invariant: a persistent reservation's holder is registered; with all-registrants types ``holder`` is None."""

    __slots__ = ("generation", "holder", "legacy_holder", "registrations", "type")

    def __init__(self) -> None:
        self.legacy_holder: Nexus | None = None
        self.registrations: dict[ItNexus, int] = {}
        self.type: ReservationType | None = None
        self.holder: ItNexus | None = None
        self.generation = 0

    # -- questions

    def holds(self, who: ItNexus) -> bool:
        """Whether ``who`` is a persistent reservation holder (SPC-4 section 5.13.10)."""
        if self.type is None:
            return False
        return who in self.registrations if self.type.all_registrants else who == self.holder

    def forbid(self, nexus: Nexus, effect: Effect) -> bool:
        """Whether a read or a write of ``nexus`` conflicts with somebody's reservation."""
        if self.legacy_holder is not None and self.legacy_holder is not nexus:
            return True
        if self.type is None or (effect is Effect.READ and not self.type.excludes_reads):
            return False
        return not self._shares(nexus.it_nexus)

    def check(self, nexus: Nexus, spec: CommandSpec) -> None:
        """Raises ``ReservationConflict`` when the command is not for this nexus now."""
        if spec.sharing is Sharing.ALWAYS:
            return
        if self.legacy_holder is not None and self.legacy_holder is not nexus:
            raise ReservationConflict
        if spec.sharing is Sharing.PERSISTENT or self.type is None or self._shares(nexus.it_nexus):
            return
        if spec.sharing is Sharing.NEVER or self.type.excludes_reads:
            raise ReservationConflict

    def _shares(self, who: ItNexus) -> bool:
        if self.type is not None and self.type.shared_by_registrants:
            return who in self.registrations
        return who == self.holder

    # -- changes

    def nexus_lost(self, nexus: Nexus) -> None:
        """The session ended."""
        if self.legacy_holder is nexus:
            self.legacy_holder = None

    def reset(self) -> None:
        """Logical unit reset: ends RESERVE(6) only."""
        self.legacy_holder = None

    def reserve(self, who: ItNexus, kind: ReservationType) -> None:
        self.type = kind
        self.holder = None if kind.all_registrants else who

    def release(self) -> None:
        self.type = None
        self.holder = None

    def remove(self, who: ItNexus) -> ReservationType | None:
        """End a registration. Returns the type of the reservation if that ended with it."""
        del self.registrations[who]
        kind = self.type
        if kind is None:
            return None
        if who != self.holder if not kind.all_registrants else bool(self.registrations):
            return None
        self.release()
        return kind

    def registered_with(self, key: int) -> list[ItNexus]:
        return [who for who, theirs in self.registrations.items() if theirs == key]
