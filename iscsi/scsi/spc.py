"""Commands common to all device types (SPC-4), but for modes, reservations and the vital product data's bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.scsi import sanitize
from iscsi.scsi.command import ScsiResult
from iscsi.scsi.dispatch import Availability
from iscsi.scsi.inquiry import standard_inquiry, vital_product_data
from iscsi.scsi.sense import Asc, CheckCondition, Sense, SenseKey, invalid_cdb_field

if TYPE_CHECKING:
    from collections.abc import Sequence

    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.dispatch import CommandSpec
    from iscsi.scsi.lun import LogicalUnit, Nexus

_ALLOCATION_LENGTH_MAX = 65536
"""No parameter data here is longer; a larger allocation length is the host's generosity."""

_REPORT_LUNS_WELL_KNOWN_ONLY = 0x01

_START, _LOEJ, _NO_FLUSH = 0x01, 0x02, 0x04  # byte 4 of START STOP UNIT

_TASK_MANAGEMENT = 0x80 | 0x40 | 0x10 | 0x08
"""ABORT TASK, ABORT TASK SET, CLEAR TASK SET, LOGICAL UNIT RESET (SPC-4 table 311)."""


def _truncated(data: bytes, cdb: bytes, start: int, end: int) -> ScsiResult:
    """At most as much as the allocation length in these CDB bytes allows."""
    allocation = min(int.from_bytes(cdb[start:end], "big"), _ALLOCATION_LENGTH_MAX)
    return ScsiResult(data_in=data[:allocation])


async def test_unit_ready(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    await sanitize.poll(lu, nexus, command)
    return ScsiResult()


async def request_sense(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.39: a pending unit attention is reported here as data, and cleared."""
    sense = nexus.take_unit_attention() or _idle_sense(lu, nexus)
    return _truncated(sense.serialize(descriptor=bool(command.cdb[1] & 1)), command.cdb, 4, 5)


def _idle_sense(lu: LogicalUnit, nexus: Nexus) -> Sense:
    """What TEST UNIT READY would meet."""
    try:
        nexus.port_group.require(Availability.ACTIVE)
        lu.require_medium()
    except CheckCondition as not_ready:
        return not_ready.sense
    return Sense(SenseKey.NO_SENSE)


async def inquiry(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    cdb = command.cdb
    if cdb[1] & 1:
        data = vital_product_data(lu, nexus, cdb[2])
        if data is None:
            raise invalid_cdb_field(2)
    elif cdb[2]:
        raise invalid_cdb_field(2)
    else:
        data = standard_inquiry(lu)
    return _truncated(data, cdb, 3, 5)


async def report_luns(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """The inventory, which also settles the unit attention that tells of its change (SPC-4 section 6.33)."""
    inventory = lun_inventory(command.cdb, nexus.luns())
    nexus.withdraw_unit_attention(Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    return inventory


def lun_inventory(cdb: bytes, luns: Sequence[int]) -> ScsiResult:
    """REPORT LUNS (SPC-4 section 6.33), which any LUN answers, also one that is not there."""
    if cdb[2] > 0x02:
        raise invalid_cdb_field(2)
    shown = () if cdb[2] == _REPORT_LUNS_WELL_KNOWN_ONLY else luns
    entries = b"".join(_lun_address(lun) for lun in shown)
    return _truncated(len(entries).to_bytes(4, "big") + bytes(4) + entries, cdb, 6, 10)


def _lun_address(lun: int) -> bytes:
    """SAM-5 section 4.7: peripheral device addressing below 256, flat space addressing above."""
    return (lun if lun < 256 else 0x4000 | lun).to_bytes(2, "big") + bytes(6)


async def report_supported_operation_codes(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.35. Timeouts are reported as 0: none is known."""
    cdb = command.cdb
    with_timeouts, option = bool(cdb[2] & 0x80), cdb[2] & 0x07
    opcode, service_action = cdb[3], int.from_bytes(cdb[4:6], "big")
    if option > 3:
        raise invalid_cdb_field(2, 2)
    if option == 0:
        return _truncated(_all_commands(lu, with_timeouts=with_timeouts), cdb, 6, 10)
    by_action = lu.commands.has_service_actions(opcode)
    if option == 1 and by_action:
        raise invalid_cdb_field(3)
    if option == 2 and not by_action and lu.commands.has_opcode(opcode):
        raise invalid_cdb_field(4)
    spec = lu.commands.get(opcode, 0 if option == 1 else service_action)
    data = _one_command(spec, with_timeouts=with_timeouts)
    return _truncated(data, cdb, 6, 10)


_NO_TIMEOUTS = b"\x00\x0a" + bytes(10)


def _all_commands(lu: LogicalUnit, *, with_timeouts: bool) -> bytes:
    descriptors = bytearray()
    for spec in lu.commands:
        flags = (0x02 if with_timeouts else 0) | (0x01 if spec.service_action is not None else 0)
        descriptors += bytes((spec.opcode, 0)) + (spec.service_action or 0).to_bytes(2, "big")
        descriptors += bytes((0, flags)) + len(spec.usage).to_bytes(2, "big")
        if with_timeouts:
            descriptors += _NO_TIMEOUTS
    return len(descriptors).to_bytes(4, "big") + bytes(descriptors)


def _one_command(spec: CommandSpec | None, *, with_timeouts: bool) -> bytes:
    if spec is None:
        return b"\x00\x01\x00\x00"
    usage = bytearray(spec.usage)
    if spec.service_action is not None:
        usage[1] = usage[1] & ~0x1F | spec.service_action
    header = bytes((0, 0x83 if with_timeouts else 0x03)) + len(usage).to_bytes(2, "big")
    return header + bytes(usage) + (_NO_TIMEOUTS if with_timeouts else b"")


async def report_task_management_functions(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.36; the extended form (REPD) adds timeouts, which are unknown."""
    data = bytes((_TASK_MANAGEMENT, 0, 0, 0))
    if command.cdb[2] & 0x80:
        data = data[:3] + b"\x0c" + bytes(12)
    return _truncated(data, command.cdb, 6, 10)


async def send_diagnostic(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SPC-4 section 6.42: the default self-test, which has nothing to test; no other."""
    if not command.cdb[1] & 0x04:
        raise invalid_cdb_field(1, 7)
    return ScsiResult()


async def start_stop_unit(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SBC-3 section 5.25: LOEJ loads or ejects a removable medium. There is nothing else to start or to stop.

    Hosts send STOP when they shut down, and others may be using the unit, so it stays ready; STOP flushes the cache
    unless NO_FLUSH. A power condition makes LOEJ and START ignored.
    """
    action = command.cdb[4]
    power_condition, start, load_eject = action >> 4, bool(action & _START), bool(action & _LOEJ)
    if power_condition:
        return ScsiResult()
    if load_eject and not lu.removable:
        raise invalid_cdb_field(4, 1)
    if load_eject and any(other.prevents_removal for other in lu.nexuses):
        raise CheckCondition(Sense(SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED))
    if not start and not action & _NO_FLUSH:
        await lu.device.flush()
    if load_eject:
        lu.set_loaded(start, by=nexus)
    return ScsiResult()


async def prevent_allow_medium_removal(lu: LogicalUnit, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
    """SBC-3 section 5.15. Each nexus prevents for itself; the medium is free when none does."""
    nexus.prevents_removal = bool(command.cdb[4] & 0x01)
    return ScsiResult()
