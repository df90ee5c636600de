"""PERSISTENT RESERVE IN and OUT (SPC-4 sections 5.13, 6.15, 6.16), RESERVE(6) and RELEASE(6).

A command that changes reservations has its whole effect in one step of the loop, unit attentions included; only
PREEMPT AND ABORT then waits for the aborted commands' last accesses to the medium, before it answers.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING

from iscsi.scsi.command import ScsiResult
from iscsi.scsi.reservations import MAX_REGISTRATIONS, ReservationType
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

if TYPE_CHECKING:
    from collections.abc import Iterable

    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.lun import ItNexus, LogicalUnit, Nexus

_PARAMETER_LIST = 24  # bytes, SPC-4 table 214; longer only with SPEC_I_PT, which is not supported
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01  # byte 20 of it
_MOVE_HEADER = 24  # bytes before the TransportID, SPC-4 table 219
_MAX_TRANSPORT_ID = 256  # an iSCSI name of 223 bytes, ",i,0x" and an ISID, SPC-4 table 508
_TYPE_MASK = b"\xea\x01"  # all six types, SPC-4 table 210
_TRANSPORT_ID = re.compile(rb"([^,\0]{1,223}),i,0x([0-9a-fA-F]{12})\0+")


# -- RESERVE(6), RELEASE(6)


async def reserve_6(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    if lu.reservations.registrations:
        raise ReservationConflict  # SPC-4 section 5.13.3, CRH = 0
    lu.reservations.legacy_holder = nexus
    lu.refresh_all()
    return ScsiResult()


async def release_6(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """Releasing what one does not hold is no error (SPC-2 section 7.17)."""
    if lu.reservations.registrations:
        raise ReservationConflict
    if lu.reservations.legacy_holder is nexus:
        lu.reservations.legacy_holder = None
        lu.refresh_all()
    return ScsiResult()


# -- PERSISTENT RESERVE IN


async def read_keys(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    keys = b"".join(key.to_bytes(8, "big") for key in lu.reservations.registrations.values())
    return _listed(lu, command, keys)


async def read_reservation(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    state = lu.reservations
    if state.type is None:
        return _listed(lu, command, b"")
    key = 0 if state.holder is None else state.registrations[state.holder]
    return _listed(lu, command, key.to_bytes(8, "big") + bytes((0, 0, 0, 0, 0, state.type, 0, 0)))


async def report_capabilities(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """No compatible handling of RESERVE(6), no SPEC_I_PT, ALL_TG_PT or APTPL; TMV: the type mask is valid."""
    data = bytes((0, 8, 0, 0x80)) + _TYPE_MASK + bytes(2)
    return ScsiResult(data_in=data[: int.from_bytes(command.cdb[7:9], "big")])


async def read_full_status(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    state = lu.reservations
    entries = bytearray()
    for who, key in state.registrations.items():
        holds = state.holds(who)
        transport_id = _transport_id(who)
        entries += key.to_bytes(8, "big") + bytes(4)
        entries += bytes((1 if holds else 0, state.type if holds and state.type else 0)) + bytes(4)
        entries += who.portal_group_tag.to_bytes(2, "big") + len(transport_id).to_bytes(4, "big")
        entries += transport_id
    return _listed(lu, command, bytes(entries))


def _listed(lu: LogicalUnit, command: ScsiCommand, entries: bytes) -> ScsiResult:
    data = (lu.reservations.generation & 0xFFFFFFFF).to_bytes(4, "big") + len(entries).to_bytes(4, "big") + entries
    return ScsiResult(data_in=data[: int.from_bytes(command.cdb[7:9], "big")])


def _transport_id(who: ItNexus) -> bytes:
    """SPC-4 section 7.6.4.6, format 01b: the initiator port."""
    name = who.initiator_port.encode() + b"\0"
    name = name.ljust(max(20, -(-len(name) // 4) * 4), b"\0")
    return b"\x45\x00" + len(name).to_bytes(2, "big") + name


# -- PERSISTENT RESERVE OUT


def parameter_list_length(lu: LogicalUnit, cdb: bytes) -> int:
    return int.from_bytes(cdb[5:9], "big")


def _parameters(command: ScsiCommand) -> tuple[int, int, int]:
    """Reservation key, service action reservation key and the flags of byte 20, of a list of the basic format."""
    length = int.from_bytes(command.cdb[5:9], "big")
    data = command.data_out
    if length < _PARAMETER_LIST or len(data) < length:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    flags = data[20]
    for bit, number in ((_SPEC_I_PT, 3), (_ALL_TG_PT, 2), (_APTPL, 0)):
        if flags & bit:
            raise invalid_parameter(20, number)
    if length > _PARAMETER_LIST:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    return int.from_bytes(data[0:8], "big"), int.from_bytes(data[8:16], "big"), flags


def _reservation_type(cdb: bytes) -> ReservationType:
    if cdb[2] >> 4:  # scope: only the whole logical unit, SPC-4 table 70
        raise invalid_cdb_field(2, 7)
    try:
        return ReservationType(cdb[2] & 0x0F)
    except ValueError:
        raise invalid_cdb_field(2, 3) from None


def _require_registered(lu: LogicalUnit, nexus: Nexus, key: int) -> None:
    if lu.reservations.registrations.get(nexus.it_nexus) != key or nexus.it_nexus not in lu.reservations.registrations:
        raise ReservationConflict


def _attention(lu: LogicalUnit, whom: Iterable[ItNexus], asc: Asc, *, by: Nexus) -> None:
    """For the sessions of these nexuses, except the one that caused it."""
    names = set(whom)
    for other in lu.nexuses:
        if other is not by and other.it_nexus in names:
            other.establish_unit_attention(asc)


async def register(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    key, new_key, _ = _parameters(command)
    if lu.reservations.registrations.get(nexus.it_nexus, 0) != key:
        raise ReservationConflict
    return _register(lu, nexus, new_key)


async def register_and_ignore_existing_key(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    _, new_key, _ = _parameters(command)
    return _register(lu, nexus, new_key)


def _register(lu: LogicalUnit, nexus: Nexus, key: int) -> ScsiResult:
    """SPC-4 tables 72 and 73. Key 0 unregisters; whoever unregisters while holding releases."""
    state, who = lu.reservations, nexus.it_nexus
    if key:
        if who not in state.registrations and len(state.registrations) >= MAX_REGISTRATIONS:
            raise CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_REGISTRATION_RESOURCES))
        state.registrations[who] = key
    elif who in state.registrations:
        ended = state.remove(who)
        if ended is not None and ended.shared_by_registrants:
            _attention(lu, state.registrations, Asc.RESERVATIONS_RELEASED, by=nexus)
    else:
        return ScsiResult()
    state.generation += 1
    lu.refresh_all()
    return ScsiResult()


async def reserve(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    key, _, _ = _parameters(command)
    kind = _reservation_type(command.cdb)
    _require_registered(lu, nexus, key)
    state = lu.reservations
    if state.type is None:
        state.reserve(nexus.it_nexus, kind)
        lu.refresh_all()
    elif not state.holds(nexus.it_nexus) or state.type is not kind:
        raise ReservationConflict
    return ScsiResult()


async def release(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    key, _, _ = _parameters(command)
    kind = _reservation_type(command.cdb)
    _require_registered(lu, nexus, key)
    state = lu.reservations
    if not state.holds(nexus.it_nexus):
        return ScsiResult()
    if state.type is not kind:
        raise illegal_request(Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION)
    state.release()
    if kind.shared_by_registrants:
        _attention(lu, state.registrations, Asc.RESERVATIONS_RELEASED, by=nexus)
    lu.refresh_all()
    return ScsiResult()


async def clear(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    key, _, _ = _parameters(command)
    _require_registered(lu, nexus, key)
    state = lu.reservations
    everybody = list(state.registrations)
    state.registrations.clear()
    state.release()
    state.generation += 1
    _attention(lu, everybody, Asc.RESERVATIONS_PREEMPTED, by=nexus)
    lu.refresh_all()
    return ScsiResult()


async def preempt(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    _preempt(lu, nexus, command)
    return ScsiResult()


async def preempt_and_abort(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """The answer waits until no command of a preempted nexus can touch the medium any more."""
    for other in _preempt(lu, nexus, command):
        await other.abort_tasks()
    return ScsiResult()


def _preempt(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> list[Nexus]:
    """SPC-4 section 5.13.11.4. Returns the sessions of the nexuses whose registration was removed."""
    key, victim_key, _ = _parameters(command)
    kind = _reservation_type(command.cdb)
    _require_registered(lu, nexus, key)
    state, me = lu.reservations, nexus.it_nexus
    was = state.type
    if was is not None and was.all_registrants:
        takes_over = victim_key == 0
    else:
        if victim_key == 0:
            raise invalid_parameter(8)
        takes_over = state.holder is not None and state.registrations[state.holder] == victim_key
    victims = list(state.registrations) if takes_over and not victim_key else state.registered_with(victim_key)
    if not victims and not takes_over:
        raise ReservationConflict
    removed = [who for who in victims if who != me]
    for who in removed:
        state.remove(who)
    if takes_over:
        state.reserve(me, kind)
    state.generation += 1
    _attention(lu, removed, Asc.REGISTRATIONS_PREEMPTED, by=nexus)
    if takes_over and was is not None and was is not kind and was.shared_by_registrants:
        _attention(lu, state.registrations, Asc.RESERVATIONS_RELEASED, by=nexus)
    lu.refresh_all()
    return [other for other in lu.nexuses if other.it_nexus in set(removed)]


async def register_and_move(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 5.13.8: the holder hands its reservation, and a registration, to another initiator port."""
    data = command.data_out
    length = int.from_bytes(command.cdb[5:9], "big")
    if not _MOVE_HEADER < length <= _MOVE_HEADER + _MAX_TRANSPORT_ID or len(data) < length:
        raise illegal_request(Asc.PARAMETER_LIST_LENGTH_ERROR)
    state, me = lu.reservations, nexus.it_nexus
    _require_registered(lu, nexus, int.from_bytes(data[0:8], "big"))
    if state.holder != me or state.type is None:
        raise ReservationConflict
    key = int.from_bytes(data[8:16], "big")
    if not key:
        raise invalid_parameter(8)
    if data[17] & 0x01:  # APTPL
        raise invalid_parameter(17, 0)
    heir = _named_by(data[_MOVE_HEADER:length], me)
    if heir == me:
        raise invalid_parameter(_MOVE_HEADER)
    if int.from_bytes(data[18:20], "big") != me.portal_group_tag:
        raise invalid_parameter(18)
    if heir not in state.registrations and len(state.registrations) >= MAX_REGISTRATIONS:
        raise CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_REGISTRATION_RESOURCES))
    state.registrations[heir] = key
    state.reserve(heir, state.type)
    if data[17] & 0x02:  # UNREG
        state.remove(me)
    state.generation += 1
    lu.refresh_all()
    return ScsiResult()


def _named_by(transport_id: memoryview, me: ItNexus) -> ItNexus:
    """The nexus between the initiator port of an iSCSI TransportID (format 01b) and the port of ``me``."""
    if transport_id[0] != 0x45 or len(transport_id) != 4 + int.from_bytes(transport_id[2:4], "big"):
        raise invalid_parameter(_MOVE_HEADER)
    match = _TRANSPORT_ID.fullmatch(bytes(transport_id[4:]))
    if match is None:
        raise invalid_parameter(_MOVE_HEADER + 4)
    name = match[1].decode("utf-8", "replace")
    return dataclasses.replace(me, initiator_name=name, isid=bytes.fromhex(match[2].decode("ascii")))
