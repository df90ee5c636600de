"""Asymmetric logical unit access (SPC-4 section 5.15): REPORT and SET TARGET PORT GROUPS, and the states behind them.

The ports of one target are one target port group, and a logical unit has an access state for each group through which
it is reached. A nexus looks at the state of its own group only. ``change_states`` is the one place where states
change: what leaves an active state is *transitioning* until every write that runs has ended, so that nothing which
was begun before lands after another group has become active; then every nexus is told by a unit attention.

Both ways of changing are offered (TPGS = 11b): explicit, by SET TARGET PORT GROUPS, which asks whoever keeps the states
(``AsymmetricAccess.keeper``), and implicit, by the operator.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine.access_state import MAX_TARGETS, SETTABLE, AccessState
from engine.errors import EngineError, InvalidState
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.dispatch import Availability
from iscsi.scsi.sense import (
    Asc,
    CheckCondition,
    Sense,
    SenseKey,
    illegal_request,
    invalid_cdb_field,
    invalid_parameter,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.it_nexus import ItNexus
    from iscsi.scsi.lun import LogicalUnit, Nexus

    Keeper = Callable[[Mapping[int, AccessState], Callable[[], Awaitable[None]]], Awaitable[None]]

_SUPPORTED_STATES = 0x8F  # T_SUP, U_SUP, S_SUP, AN_SUP, AO_SUP: byte 1 of a descriptor, SPC-4 table 261
_BY_COMMAND, _IMPLICIT = 1, 2  # status code, SPC-4 table 263
_EXTENDED_HEADER = b"\x10\0\0\0"  # format type 001b; no implicit transition time is known

_NOT_ACCESSIBLE = {
    AccessState.STANDBY: Asc.TARGET_PORT_IN_STANDBY_STATE,
    AccessState.UNAVAILABLE: Asc.TARGET_PORT_IN_UNAVAILABLE_STATE,
    AccessState.TRANSITIONING: Asc.ASYMMETRIC_ACCESS_STATE_TRANSITION,
}


class TargetPortGroup:
    """A target's ports, as one way to one logical unit.

    ``ports``: their relative target port identifiers by portal group tag, as they are now.
    """

    __slots__ = ("number", "ports", "state", "status_code")

    def __init__(
        self,
        number: int,
        ports: Callable[[], Mapping[int, int]],
        state: AccessState = AccessState.ACTIVE_OPTIMIZED,
    ) -> None:
        assert 1 <= number <= MAX_TARGETS
        self.number = number
        self.ports = ports
        self.state = state
        self.status_code = 0

    def require(self, available: Availability) -> None:
        """Raises NOT READY when a command of that availability is not served in the group's state."""
        if self.state.is_active or available is Availability.ALWAYS:
            return
        if self.state is AccessState.STANDBY and available is Availability.STANDBY:
            return
        raise CheckCondition(Sense(SenseKey.NOT_READY, _NOT_ACCESSIBLE[self.state]))

    def serialize(self) -> bytes:
        """Its descriptor (SPC-4 table 260)."""
        ports = self.ports().values()
        data = bytes((self.state, _SUPPORTED_STATES)) + self.number.to_bytes(2, "big")
        data += bytes((0, self.status_code, 0, len(ports)))
        return data + b"".join(port.to_bytes(4, "big") for port in ports)


class AsymmetricAccess:
    """The target port groups of one logical unit.

    ``keeper``: whoever decides on states and keeps them. It gets the states by group and what applies them, and raises
    InvalidState when they cannot be. Without one they last as long as this object.
    """

    __slots__ = ("_groups", "_seen", "keeper")

    def __init__(self) -> None:
        self._groups: dict[str, TargetPortGroup] = {}
        self._seen: dict[str, dict[int, int]] = {}  # ports of targets that were not assigned
        self.keeper: Keeper | None = None

    def __iter__(self) -> Iterator[TargetPortGroup]:
        """By number."""
        return iter(sorted(self._groups.values(), key=lambda group: group.number))

    @property
    def is_active(self) -> bool:
        """Whether the unit can be read and written by any way."""
        return not self._groups or any(group.state.is_active for group in self._groups.values())

    def find(self, number: int) -> TargetPortGroup | None:
        return next((group for group in self._groups.values() if group.number == number), None)

    def assign(self, target: str, group: TargetPortGroup) -> None:
        """The unit is reached through this target from now on; said before sessions of that target attach."""
        self._groups[target] = group

    def withdraw(self, target: str) -> None:
        """It is reached through this target no longer."""
        del self._groups[target]

    def group_of(self, who: ItNexus) -> TargetPortGroup:
        """The group of a nexus's target port. A target that was not assigned has one of its own, active/optimized."""
        target, tag = who.target_name, who.portal_group_tag
        if target not in self._groups:
            seen = self._seen[target] = {}
            self._groups[target] = TargetPortGroup(len(self._groups) + 1, lambda: seen)
        if target in self._seen:
            self._seen[target].setdefault(tag, max(tag, 1))
        return self._groups[target]

    def relative_port(self, who: ItNexus) -> int:
        """The relative target port identifier of a nexus; 0 (reserved) when the unit is not reached there now."""
        group = self._groups.get(who.target_name)
        return 0 if group is None else group.ports().get(who.portal_group_tag, 0)

    def port(self, relative: int) -> tuple[str, int] | None:
        """Target name and portal group tag of a relative target port identifier."""
        for target, group in self._groups.items():
            for tag, number in group.ports().items():
                if number == relative:
                    return target, tag
        return None


async def change_states(lu: LogicalUnit, states: Mapping[int, AccessState], *, by: Nexus | None = None) -> None:
    """Put target port groups, by number, into states. Returns when no write of a group that left an active state runs.

    ``by``: the nexus whose SET TARGET PORT GROUPS asked for it; it gets no unit attention (SPC-4 section 5.15.2.7).
    Callers do so one after another.
    """
    changing = {
        group: state
        for number, state in states.items()
        if (group := lu.access.find(number)) is not None and group.state is not state
    }
    if not changing:
        return
    leaving = [group for group, state in changing.items() if group.state.is_active and not state.is_active]
    if leaving:
        for group in leaving:
            group.state = AccessState.TRANSITIONING
        lu.refresh_all()
        await lu.write_order.settled()
    for group, state in changing.items():
        group.state = state
        group.status_code = _IMPLICIT if by is None else _BY_COMMAND
    lu.refresh_all()
    lu.establish_unit_attention(Asc.ASYMMETRIC_ACCESS_STATE_CHANGED, by=by)


async def report_target_port_groups(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.37, with and without the extended header."""
    extended = command.cdb[1] >> 5
    if extended > 1:
        raise invalid_cdb_field(1, 7)
    data = (_EXTENDED_HEADER if extended else b"") + b"".join(group.serialize() for group in lu.access)
    data = len(data).to_bytes(4, "big") + data
    return ScsiResult(data_in=data[: int.from_bytes(command.cdb[6:10], "big")])


def parameter_list_length(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[6:10], "big")


async def set_target_port_groups(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.45: all groups that are named change, or none."""
    length = int.from_bytes(command.cdb[6:10], "big")
    if not length:
        return ScsiResult()
    data = command.data_out
    if length < 8 or length % 4 or length > 4 + 4 * MAX_TARGETS or len(data) < length:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    states = {}
    for at in range(4, length, 4):
        if data[at] not in SETTABLE:
            raise invalid_parameter(at, 3)
        number = int.from_bytes(data[at + 2 : at + 4], "big")
        if lu.access.find(number) is None:
            raise invalid_parameter(at + 2)
        states[number] = AccessState(data[at])

    async def apply() -> None:
        await change_states(lu, states, by=nexus)

    if lu.access.keeper is None:
        await apply()
        return ScsiResult()
    try:
        await lu.access.keeper(states, apply)
    except InvalidState:
        raise invalid_parameter(4) from None
    except EngineError as error:
        failed = Sense(SenseKey.HARDWARE_ERROR, Asc.SET_TARGET_PORT_GROUPS_COMMAND_FAILED)
        raise CheckCondition(failed) from error
    return ScsiResult()
