"""Who may use a logical unit: RESERVE(6) (SPC-2 section 5.5.1) and persistent reservations (SPC-4 section 5.13).

State only; ``persistent_reserve.py`` has the commands. A registration belongs to an I_T nexus by name, not to a
session: it survives logout and reset. RESERVE(6) belongs to a session and ends with it.

Changes of the persistent part (``Reservations.changing``) are made one at a time, on a copy. Where the state is to
survive a power loss (APTPL), before or after the change, the copy is durable before it counts: nobody sees, and no
answer tells, what a crash could take back; and a change that cannot be recorded has not happened. Without APTPL the
state ends with the process, which is the logical unit's power cycle. PRgeneration begins at 0 with each.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from engine.errors import StoreCorrupt
from iscsi.scsi.dispatch import CommandSpec, Sharing
from iscsi.scsi.it_nexus import ItNexus
from iscsi.scsi.sense import Effect, ReservationConflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from iscsi.scsi.lun import Nexus

    Save = Callable[[str | None], Awaitable[None]]

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


@dataclasses.dataclass(slots=True)
class PersistentReservations:
    """Registrations, in the order in which they were made, and the reservation.

    Invariant: the holder is registered; with all-registrants types ``holder`` is None.
    """

    registrations: dict[ItNexus, int] = dataclasses.field(default_factory=dict)
    type: ReservationType | None = None
    holder: ItNexus | None = None
    generation: int = 0
    through_power_loss: bool = False

    def copy(self) -> PersistentReservations:
        return dataclasses.replace(self, registrations=dict(self.registrations))

    # -- questions

    def holds(self, who: ItNexus) -> bool:
        """Whether ``who`` is a persistent reservation holder (SPC-4 section 5.13.10)."""
        if self.type is None:
            return False
        return who in self.registrations if self.type.all_registrants else who == self.holder

    def shares(self, who: ItNexus) -> bool:
        """Whether the reservation, if there is one, leaves the unit to ``who``."""
        if self.type is None:
            return True
        return who in self.registrations if self.type.shared_by_registrants else who == self.holder

    def registered_with(self, key: int) -> list[ItNexus]:
        return [who for who, theirs in self.registrations.items() if theirs == key]

    # -- changes

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

    # -- what is kept

    def serialize(self) -> str:
        """JSON; PRgeneration is not kept (SPC-4 section 6.15.2)."""
        everybody = list(self.registrations)
        return json.dumps(
            {
                "type": self.type,
                "holder": None if self.holder is None else everybody.index(self.holder),
                "registrations": [
                    {
                        "initiator": who.initiator_name,
                        "isid": who.isid.hex(),
                        "target": who.target_name,
                        "portal_group_tag": who.portal_group_tag,
                        "key": f"{key:016x}",
                    }
                    for who, key in self.registrations.items()
                ],
            }
        )

    @classmethod
    def parse(cls, document: str) -> PersistentReservations:
        """What ``serialize`` wrote. Raises StoreCorrupt: rather no disk than one that is open to everybody."""
        try:
            fields = json.loads(document)
            registrations = {
                ItNexus(
                    str(each["initiator"]), bytes.fromhex(each["isid"]), str(each["target"]), each["portal_group_tag"]
                ): int(each["key"], 16)
                for each in fields["registrations"]
            }
            kind = None if fields["type"] is None else ReservationType(fields["type"])
            holder = None if fields["holder"] is None else list(registrations)[fields["holder"]]
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise StoreCorrupt("persistent reservations", repr(error)) from error
        return cls(registrations, kind, holder, through_power_loss=True)


class Reservations:
    """See the module."""

    __slots__ = ("_lock", "_save", "_saved", "legacy_holder", "persistent")

    def __init__(self, document: str | None = None, save: Save | None = None) -> None:
        """
        Args:
            document: what ``save`` was last called with before the power went.
            save: makes a document durable, or its absence; None: nothing survives, and APTPL is refused.
        """
        self.legacy_holder: Nexus | None = None
        self.persistent = PersistentReservations() if document is None else PersistentReservations.parse(document)
        self._save = save
        self._saved: str | object | None = document
        self._lock = asyncio.Lock()

    @property
    def can_persist(self) -> bool:
        """Whether APTPL is supported (PTPL_C)."""
        return self._save is not None

    def forbid(self, nexus: Nexus, effect: Effect) -> bool:
        """Whether a read or a write of ``nexus`` conflicts with somebody's reservation."""
        if self.legacy_holder is not None and self.legacy_holder is not nexus:
            return True
        state = self.persistent
        if state.type is None or (effect is Effect.READ and not state.type.excludes_reads):
            return False
        return not state.shares(nexus.it_nexus)

    def check(self, nexus: Nexus, spec: CommandSpec) -> None:
        """Raises ``ReservationConflict`` when the command is not for this nexus now."""
        if spec.sharing is Sharing.ALWAYS:
            return
        if self.legacy_holder is not None and self.legacy_holder is not nexus:
            raise ReservationConflict
        state = self.persistent
        if spec.sharing is Sharing.PERSISTENT or state.type is None or state.shares(nexus.it_nexus):
            return
        if spec.sharing is Sharing.NEVER or state.type.excludes_reads:
            raise ReservationConflict

    @asynccontextmanager
    async def changing(self, nexus: Nexus) -> AsyncIterator[PersistentReservations]:
        """A copy for ``nexus`` to change. It counts when the block has ended well; nothing does when it raised.

        Raises ``ReservationConflict``: somebody else's RESERVE(6) came first.
        """
        async with self._lock:
            if self.legacy_holder is not None and self.legacy_holder is not nexus:
                raise ReservationConflict
            draft = self.persistent.copy()
            yield draft
            document = draft.serialize() if draft.through_power_loss and draft.registrations else None
            if document != self._saved:
                assert self._save is not None
                self._saved = object()  # unknown, should this fail
                await self._save(document)
                self._saved = document
            self.persistent = draft

    def nexus_lost(self, nexus: Nexus) -> None:
        """The session ended."""
        if self.legacy_holder is nexus:
            self.legacy_holder = None

    def reset(self) -> None:
        """Logical unit reset: ends RESERVE(6) only."""
        self.legacy_holder = None
