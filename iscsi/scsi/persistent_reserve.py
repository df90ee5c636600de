"""PERSISTENT RESERVE IN and OUT (SPC-4 sections 5.13, 6.15, 6.16), RESERVE(6) and RELEASE(6).

A service action that changes something is a function over a copy of the state (``Change`` below): it refuses, or it
changes the copy and says whom to tell what. ``_apply`` makes the copy count, durably where that is asked for, and from
there on the command has its whole effect in one step of the loop, unit attentions included. PREEMPT AND ABORT then
waits for the aborted commands' last accesses to the medium, before it answers.

REPLACE LOST RESERVATION is not supported: what was to survive is never lost (RLR_C = 0).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from iscsi.scsi.command import ScsiResult
from iscsi.scsi.it_nexus import ItNexus
from iscsi.scsi.reservations import MAX_REGISTRATIONS, PersistentReservations, ReservationType
from iscsi.scsi.sense import (
    Asc,
    CheckCondition,
    ReservationConflict,
    Sense,
    SenseKey,
    illegal_request,
    invalid_cdb_field,
    invalid_parameter,
)
from iscsi.scsi.transport_id import MAX_TRANSPORT_ID_BYTES, TransportId, parse_transport_ids

if TYPE_CHECKING:
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.dispatch import Handler
    from iscsi.scsi.lun import LogicalUnit, Nexus

Told = tuple[Iterable[ItNexus], Asc]
"""Nexuses, and the unit attention that each of their sessions gets, but for the one that caused it."""

Change = Callable[[PersistentReservations, "LogicalUnit", "Nexus", "ScsiCommand"], list[Told]]

_PARAMETER_LIST = 24  # bytes, SPC-4 table 214
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01  # byte 20 of it
_PORTS = 28  # where the TransportIDs begin, with SPEC_I_PT
MAX_SPECIFIED_BYTES = MAX_REGISTRATIONS * MAX_TRANSPORT_ID_BYTES
"""TransportIDs of one REGISTER: more than could be registered is refused unread."""
_MOVE_HEADER = 24  # bytes before the TransportID, SPC-4 table 219
_UNREG, _MOVE_APTPL = 0x02, 0x01  # byte 17 of it
_SIP_C, _ATP_C, _PTPL_C = 0x08, 0x04, 0x01  # byte 2 of REPORT CAPABILITIES, SPC-4 table 209
_TMV, _PTPL_A = 0x80, 0x01  # byte 3
_TYPE_MASK = b"\xea\x01"  # all six types, SPC-4 table 210


# -- RESERVE(6), RELEASE(6)


async def reserve_6(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    async with lu.reservations.changing(nexus) as state:
        if state.registrations:
            raise ReservationConflict  # SPC-4 section 5.13.3, CRH = 0
        if nexus not in lu.nexuses:
            raise ReservationConflict  # its LUN went while this waited: nobody could release it any more
        lu.reservations.legacy_holder = nexus
    lu.refresh_all()
    return ScsiResult()


async def release_6(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """Releasing what one does not hold is no error (SPC-2 section 7.17)."""
    if lu.reservations.persistent.registrations:
        raise ReservationConflict
    if lu.reservations.legacy_holder is nexus:
        lu.reservations.legacy_holder = None
        lu.refresh_all()
    return ScsiResult()


# -- PERSISTENT RESERVE IN


async def read_keys(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    keys = b"".join(key.to_bytes(8, "big") for key in lu.reservations.persistent.registrations.values())
    return _listed(lu, command, keys)


async def read_reservation(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    state = lu.reservations.persistent
    if state.type is None:
        return _listed(lu, command, b"")
    key = 0 if state.holder is None else state.registrations[state.holder]
    return _listed(lu, command, key.to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, state.type, 0, 0)))


async def report_capabilities(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """No compatible handling of RESERVE(6), no replacing of lost reservations; TMV: the type mask is valid."""
    capabilities = _SIP_C | _ATP_C | (_PTPL_C if lu.reservations.can_persist else 0)
    active = _TMV | (_PTPL_A if lu.reservations.persistent.through_power_loss else 0)
    data = bytes((0, 8, capabilities, active)) + _TYPE_MASK + bytes(2)
    return ScsiResult(data_in=data[: int.from_bytes(command.cdb[7:9], "big")])


async def read_full_status(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    state = lu.reservations.persistent
    entries = bytearray()
    for who, key in state.registrations.items():
        holds = state.holds(who)
        transport_id = TransportId(who.initiator_name, who.isid).serialize()
        entries += key.to_bytes(8, "big") + bytes(4)
        entries += bytes((1 if holds else 0, state.type if holds and state.type else 0)) + bytes(4)
        entries += lu.access.relative_port(who).to_bytes(2, "big") + len(transport_id).to_bytes(4, "big")
        entries += transport_id
    return _listed(lu, command, bytes(entries))


def _listed(lu: LogicalUnit, command: ScsiCommand, entries: bytes) -> ScsiResult:
    generation = lu.reservations.persistent.generation & 0xFFFFFFFF
    data = generation.to_bytes(4, "big") + len(entries).to_bytes(4, "big") + entries
    return ScsiResult(data_in=data[: int.from_bytes(command.cdb[7:9], "big")])


# -- PERSISTENT RESERVE OUT


def parameter_list_length(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[5:9], "big")


async def _apply(change: Change, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> None:
    async with lu.reservations.changing(nexus) as draft:
        told = change(draft, lu, nexus, command)
    for whom, asc in told:
        names = set(whom)
        for other in lu.nexuses:
            if other is not nexus and other.it_nexus in names:
                other.establish_unit_attention(asc)
    lu.refresh_all()


def service_action(change: Change) -> Handler:
    """The command that makes ``change``."""

    async def handler(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
        await _apply(change, lu, nexus, command)
        return ScsiResult()

    return handler


async def preempt_and_abort(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """The answer waits until no command of a preempted nexus can touch the medium any more."""
    preempted: set[ItNexus] = set()

    def noting_who(draft: PersistentReservations, *rest: object) -> list[Told]:
        before = set(draft.registrations)
        told = preempt(draft, lu, nexus, command)
        preempted.update(before - set(draft.registrations) - {nexus.it_nexus})
        return told

    await _apply(noting_who, lu, nexus, command)
    for other in [other for other in lu.nexuses if other.it_nexus in preempted]:
        other.prevents_removal = False
        await other.abort_tasks()
    await lu.write_order.settled()  # pieces of their copies, which commands to other units may be writing here
    return ScsiResult()


@dataclass(frozen=True, slots=True)
class _Parameters:
    """A parameter list of the basic format (SPC-4 table 214)."""

    key: int
    action_key: int
    flags: int
    ports: list[TransportId]


def _parameters(command: ScsiCommand, *, may_specify: bool = False) -> _Parameters:
    """``may_specify``: TransportIDs may follow (SPEC_I_PT)."""
    length = int.from_bytes(command.cdb[5:9], "big")
    data = command.data_out
    if length < _PARAMETER_LIST or len(data) < length:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    flags = data[20]
    ports = []
    if flags & _SPEC_I_PT:
        if not may_specify:
            raise invalid_parameter(20, 3)
        specified = int.from_bytes(data[_PARAMETER_LIST:_PORTS], "big")
        if length < _PORTS or length - _PORTS != specified or specified > MAX_SPECIFIED_BYTES:
            raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
        ports = parse_transport_ids(data[:length], _PORTS)
    elif length > _PARAMETER_LIST:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    return _Parameters(int.from_bytes(data[0:8], "big"), int.from_bytes(data[8:16], "big"), flags, ports)


def _reservation_type(cdb: bytes) -> ReservationType:
    if cdb[2] >> 4:  # scope: only the whole logical unit, SPC-4 table 70
        raise invalid_cdb_field(2, 7)
    try:
        return ReservationType(cdb[2] & 0x0F)
    except ValueError:
        raise invalid_cdb_field(2, 3) from None


def _require_registered(state: PersistentReservations, nexus: Nexus, key: int) -> None:
    if nexus.it_nexus not in state.registrations or state.registrations[nexus.it_nexus] != key:
        raise ReservationConflict


def _require_room(state: PersistentReservations) -> None:
    if len(state.registrations) > MAX_REGISTRATIONS:
        raise CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_REGISTRATION_RESOURCES))


def _set_through_power_loss(state: PersistentReservations, lu: LogicalUnit, asked: bool, byte: int) -> None:
    """APTPL: the latest registration decides for the whole unit (SPC-4 section 5.13.5)."""
    if asked and not lu.reservations.can_persist:
        raise invalid_parameter(byte, 0)
    state.through_power_loss = asked


def _through_ports(lu: LogicalUnit, who: ItNexus, parameters: _Parameters) -> list[ItNexus]:
    """The nexuses of an initiator port that are meant: through one target port, or all of the target (ALL_TG_PT)."""
    if not parameters.flags & _ALL_TG_PT:
        return [who]
    return [replace(who, portal_group_tag=tag) for tag in lu.portal_group_tags(who)]


def register(
    state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand, *, ignore_key: bool = False
) -> list[Told]:
    """SPC-4 tables 72 and 73. Key 0 unregisters; whoever unregisters while holding releases."""
    parameters = _parameters(command, may_specify=not ignore_key)
    mine = _through_ports(lu, nexus.it_nexus, parameters)
    if not ignore_key and any(state.registrations.get(who, 0) != parameters.key for who in mine):
        raise ReservationConflict
    if parameters.flags & _SPEC_I_PT and nexus.it_nexus in state.registrations:
        raise invalid_parameter(20, 3)
    if not parameters.action_key and not any(who in state.registrations for who in mine):
        return []
    _set_through_power_loss(state, lu, bool(parameters.flags & _APTPL), 20)
    state.generation += 1
    if not parameters.action_key:
        return _unregister(state, [who for who in mine if who in state.registrations])
    for who in mine:
        state.registrations[who] = parameters.action_key
    for who in _specified(lu, nexus, parameters):
        state.registrations.setdefault(who, parameters.action_key)
    _require_room(state)
    return []


def register_and_ignore_existing_key(
    state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand
) -> list[Told]:
    return register(state, lu, nexus, command, ignore_key=True)


def _unregister(state: PersistentReservations, leaving: list[ItNexus]) -> list[Told]:
    released = False
    for who in leaving:
        ended = state.remove(who)
        released |= ended is not None and ended.shared_by_registrants
    return [(state.registrations, Asc.RESERVATIONS_RELEASED)] if released else []


def _specified(lu: LogicalUnit, nexus: Nexus, parameters: _Parameters) -> list[ItNexus]:
    """The nexuses named by SPEC_I_PT: an initiator device stands for those of its ports that are logged in here."""
    found = []
    target = nexus.it_nexus.target_name
    for at, port in enumerate(parameters.ports):
        isids = [port.isid] if port.isid is not None else sorted(_isids(lu, target, port.initiator_name))
        if not isids:
            raise invalid_parameter(_PORTS + sum(len(each.serialize()) for each in parameters.ports[:at]))
        for isid in isids:
            who = replace(nexus.it_nexus, initiator_name=port.initiator_name, isid=isid)
            found += _through_ports(lu, who, parameters)
    return found


def _isids(lu: LogicalUnit, target: str, initiator: str) -> set[bytes]:
    known = [other.it_nexus for other in lu.nexuses]
    return {who.isid for who in known if (who.initiator_name, who.target_name) == (initiator, target)}


def reserve(state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> list[Told]:
    parameters = _parameters(command)
    kind = _reservation_type(command.cdb)
    _require_registered(state, nexus, parameters.key)
    if state.type is None:
        state.reserve(nexus.it_nexus, kind)
    elif not state.holds(nexus.it_nexus) or state.type is not kind:
        raise ReservationConflict
    return []


def release(state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> list[Told]:
    parameters = _parameters(command)
    kind = _reservation_type(command.cdb)
    _require_registered(state, nexus, parameters.key)
    if not state.holds(nexus.it_nexus):
        return []
    if state.type is not kind:
        raise illegal_request(Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    state.release()
    return [(state.registrations, Asc.RESERVATIONS_RELEASED)] if kind.shared_by_registrants else []


def clear(state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> list[Told]:
    parameters = _parameters(command)
    _require_registered(state, nexus, parameters.key)
    everybody = list(state.registrations)
    state.registrations.clear()
    state.release()
    state.generation += 1
    return [(everybody, Asc.RESERVATIONS_PREEMPTED)]


def preempt(state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> list[Told]:
    """SPC-4 section 5.13.11.4: take the reservation over from the holder, or only remove registrations."""
    parameters = _parameters(command)
    kind = _reservation_type(command.cdb)
    _require_registered(state, nexus, parameters.key)
    me, victim_key = nexus.it_nexus, parameters.action_key
    was = state.type
    if was is not None and was.all_registrants:
        takes_over = victim_key == 0
    else:
        if victim_key == 0:
            raise invalid_parameter(8)
        takes_over = state.holder is not None and state.registrations[state.holder] == victim_key
    victims = list(state.registrations) if takes_over and not victim_key else state.registered_with(victim_key)
    if not victims:
        raise ReservationConflict
    if takes_over:  # whoever takes over keeps its registration, whatever its key
        victims = [who for who in victims if who != me]
    for who in victims:
        state.remove(who)
    if takes_over:
        state.reserve(me, kind)
    state.generation += 1
    told: list[Told] = [(victims, Asc.REGISTRATIONS_PREEMPTED)]
    if takes_over and was is not kind:
        told.append((state.registrations, Asc.RESERVATIONS_RELEASED))
    return told


def register_and_move(state: PersistentReservations, lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> list[Told]:
    """SPC-4 section 5.13.8: the holder hands its reservation, and a registration, to another initiator port."""
    data = command.data_out
    length = int.from_bytes(command.cdb[5:9], "big")
    if not _MOVE_HEADER < length <= _MOVE_HEADER + MAX_TRANSPORT_ID_BYTES or len(data) < length:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    me = nexus.it_nexus
    _require_registered(state, nexus, int.from_bytes(data[0:8], "big"))
    if state.holder != me or state.type is None:
        raise ReservationConflict
    key = int.from_bytes(data[8:16], "big")
    if not key:
        raise invalid_parameter(8)
    if int.from_bytes(data[20:24], "big") != length - _MOVE_HEADER:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    ports = parse_transport_ids(data[:length], _MOVE_HEADER)
    if len(ports) != 1 or ports[0].isid is None:  # one port; not a device, which may have several
        raise invalid_parameter(_MOVE_HEADER)
    port = lu.access.port(int.from_bytes(data[18:20], "big"))
    if port is None:
        raise invalid_parameter(18)
    heir = ItNexus(ports[0].initiator_name, ports[0].isid, *port)
    if heir == me:
        raise invalid_parameter(_MOVE_HEADER)
    _set_through_power_loss(state, lu, bool(data[17] & _MOVE_APTPL), 17)
    state.registrations[heir] = key
    _require_room(state)
    state.reserve(heir, state.type)
    if data[17] & _UNREG:
        state.remove(me)
    state.generation += 1
    return []
