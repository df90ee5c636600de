"""What the table of supported commands is made of; ``commands.py`` has its rows.

One row per operation code and service action says everything about a command that is not its handler's business:
the CDB bits that mean something (which is also the CDB usage data of REPORT SUPPORTED OPERATION CODES, SPC-4
section 6.35.3), what it does to the medium, how it stands to reservations, how much data it takes. The logical unit
refuses what a row forbids before the handler runs: any bit outside ``usage`` is INVALID FIELD IN CDB, so protection
information (RDPROTECT, WRPROTECT), NACA and reserved fields need no code of their own.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.sanitize import SanitizeState
from iscsi.scsi.sense import Asc, CheckCondition, Effect, FieldPointer, Sense, SenseKey, invalid_cdb_field

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Iterator

    from engine.stores import BlockDevice
    from iscsi.scsi.command import ScsiCommand, ScsiResult
    from iscsi.scsi.lun import LogicalUnit, Nexus

    DeviceKind = Callable[[BlockDevice], bool]
    Handler = Callable[[LogicalUnit, Nexus, ScsiCommand], Awaitable[ScsiResult]]
    DataOutLength = Callable[[LogicalUnit, bytes], int]


class Sharing(enum.Enum):
    """Whether a command is served although another nexus holds a reservation (SPC-4 table 65, SPC-2 table 10)."""

    ALWAYS = "always"  # whatever the reservation, also RESERVE(6)
    PERSISTENT = "persistent"  # under any persistent reservation, not under RESERVE(6)
    READS = "reads"  # unless the reservation is one of exclusive access
    NEVER = "never"  # only for those who hold the reservation or share it


class Availability(enum.Enum):
    """In which asymmetric access states a command is served (SPC-4 section 5.15.2.4); in the active ones all are."""

    ACTIVE = "active"
    STANDBY = "standby"  # also in standby
    ALWAYS = "always"  # also when unavailable or in transition


@dataclass(frozen=True, slots=True)
class CommandSpec:
    """A supported command.

    ``usage``: its CDB with a 1 in every bit that is looked at, operation code verbatim. ``passes``: the unit attentions
    that it leaves pending and does not mind; ``ignores_unit_attention``: all of them. ``while_sanitizing``: in
    which states of the unit's sanitize operation it is served. ``needs``: what the device has to be able to do; where
    it is not, the command is not supported.
    """

    name: str
    usage: bytes
    handler: Handler
    effect: Effect = Effect.NONE
    sharing: Sharing = Sharing.READS
    available: Availability = Availability.ACTIVE
    service_action: int | None = None
    needs_medium: bool = False
    ignores_unit_attention: bool = False
    passes: frozenset[Asc] = frozenset()
    while_sanitizing: frozenset[SanitizeState] = frozenset((SanitizeState.NONE,))
    data_out: DataOutLength | None = None
    needs: DeviceKind | None = None

    @property
    def opcode(self) -> int:
        return self.usage[0]

    def check_fields(self, cdb: bytes) -> None:
        """Raises INVALID FIELD IN CDB for a bit that must be zero, pointing at it."""
        for index in range(1, len(self.usage)):
            wrong = cdb[index] & ~self.usage[index]
            if wrong:
                raise invalid_cdb_field(index, wrong.bit_length() - 1)


class CommandTable:
    """Commands by operation code and service action (None where the operation code has none). Immutable."""

    __slots__ = ("_rows", "_with_service_action")

    def __init__(self, specs: Iterable[CommandSpec]) -> None:
        self._rows: dict[tuple[int, int | None], CommandSpec] = {}
        for spec in specs:
            key = (spec.opcode, spec.service_action)
            assert key not in self._rows, f"{spec.name} is in the table twice"
            self._rows[key] = spec
        self._with_service_action = frozenset(opcode for opcode, action in self._rows if action is not None)

    def of(self, device: BlockDevice) -> CommandTable:
        """Those that this device can serve."""
        return CommandTable(spec for spec in self if spec.needs is None or spec.needs(device))

    def __iter__(self) -> Iterator[CommandSpec]:
        """By operation code, then service action."""
        return iter(sorted(self._rows.values(), key=lambda spec: (spec.opcode, spec.service_action or 0)))

    def get(self, opcode: int, service_action: int) -> CommandSpec | None:
        """The command of exactly that name; ``service_action`` is 0 for an operation code without them."""
        if opcode in self._with_service_action:
            return self._rows.get((opcode, service_action))
        return None if service_action else self._rows.get((opcode, None))

    def find(self, cdb: bytes) -> CommandSpec | None:
        """The command of a CDB of at least two bytes."""
        opcode = cdb[0]
        return self._rows.get((opcode, cdb[1] & 0x1F if opcode in self._with_service_action else None))

    def has_service_actions(self, opcode: int) -> bool:
        return opcode in self._with_service_action

    def has_opcode(self, opcode: int) -> bool:
        return opcode in self._with_service_action or (opcode, None) in self._rows

    def unknown(self, cdb: bytes) -> CheckCondition:
        """How to refuse what ``find`` does not know: an unknown service action is a bad field (SPC-4 section 4.3.4)."""
        if cdb[0] in self._with_service_action:
            return invalid_cdb_field(1, 4)
        return CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE, FieldPointer(0)))
