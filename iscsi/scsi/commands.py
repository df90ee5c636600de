"""All supported commands, by the table that ``LogicalUnit`` runs them from.

Usage masks follow the CDB layouts of SPC-4 section 6 and SBC-3 section 5. A group number is taken and ignored; NACA,
link bits, protection fields and obsolete fields are not in any mask and so are refused when set.
"""

from __future__ import annotations

from engine.sanitize import SanitizeState
from iscsi.scsi import (
    alua,
    copy_results,
    extended_copy,
    log_pages,
    mode,
    persistent_reserve,
    provisioning,
    sanitize,
    sbc,
    spc,
    token_copy,
)
from iscsi.scsi.dispatch import Availability, CommandSpec, CommandTable, Sharing
from iscsi.scsi.persistent_reserve import service_action
from iscsi.scsi.sense import Asc, Effect


def _usage(*parts: str) -> bytes:
    return bytes.fromhex("".join(parts))


_LBA4, _LBA8, _LENGTH4 = "ffffffff", "ffffffffffffffff", "ffffffff"
_GROUP = "3f"

_ANY_SANITIZE_STATE = frozenset(SanitizeState)

_COMMON = (
    CommandSpec(
        "TEST UNIT READY",
        _usage("000000000000"),
        spc.test_unit_ready,
        sharing=Sharing.PERSISTENT,
        needs_medium=True,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec(
        "REQUEST SENSE",
        _usage("03010000ff00"),
        spc.request_sense,
        available=Availability.ALWAYS,
        sharing=Sharing.ALWAYS,
        ignores_unit_attention=True,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec(
        "INQUIRY",
        _usage("1201ffffff00"),
        spc.inquiry,
        available=Availability.ALWAYS,
        sharing=Sharing.ALWAYS,
        ignores_unit_attention=True,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec(
        "REPORT LUNS",
        _usage("a000ff000000", _LENGTH4, "0000"),
        spc.report_luns,
        available=Availability.ALWAYS,
        sharing=Sharing.ALWAYS,
        ignores_unit_attention=True,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec(
        "SEND DIAGNOSTIC",
        _usage("1d0400000000"),
        spc.send_diagnostic,
        available=Availability.STANDBY,
        sharing=Sharing.NEVER,
    ),
    CommandSpec(
        "LOG SENSE",
        _usage("4d00ffff000000ffff00"),
        log_pages.log_sense,
        available=Availability.STANDBY,
        sharing=Sharing.PERSISTENT,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec("START STOP UNIT", _usage("1b01000ff700"), spc.start_stop_unit, sharing=Sharing.NEVER),
    CommandSpec(
        "PREVENT ALLOW MEDIUM REMOVAL", _usage("1e0000000300"), spc.prevent_allow_medium_removal, sharing=Sharing.NEVER
    ),
    CommandSpec("MODE SENSE(6)", _usage("1a08ffffff00"), mode.mode_sense_6, available=Availability.STANDBY),
    CommandSpec("MODE SENSE(10)", _usage("5a18ffff000000ffff00"), mode.mode_sense_10, available=Availability.STANDBY),
    CommandSpec(
        "MODE SELECT(6)",
        _usage("15100000ff00"),
        mode.mode_select_6,
        available=Availability.STANDBY,
        sharing=Sharing.NEVER,
        data_out=mode.parameter_list_length_6,
    ),
    CommandSpec(
        "MODE SELECT(10)",
        _usage("55100000000000ffff00"),
        mode.mode_select_10,
        available=Availability.STANDBY,
        sharing=Sharing.NEVER,
        data_out=mode.parameter_list_length_10,
    ),
    CommandSpec(
        "REPORT TARGET PORT GROUPS",
        _usage("a3ff00000000", _LENGTH4, "0000"),
        alua.report_target_port_groups,
        available=Availability.ALWAYS,
        sharing=Sharing.PERSISTENT,
        service_action=0x0A,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec(
        "SET TARGET PORT GROUPS",
        _usage("a41f00000000", _LENGTH4, "0000"),
        alua.set_target_port_groups,
        sharing=Sharing.NEVER,
        available=Availability.ALWAYS,
        service_action=0x0A,
        data_out=alua.parameter_list_length,
    ),
    CommandSpec(
        "REPORT SUPPORTED OPERATION CODES",
        _usage("a31f87ffffff", _LENGTH4, "0000"),
        spc.report_supported_operation_codes,
        available=Availability.STANDBY,
        sharing=Sharing.PERSISTENT,
        service_action=0x0C,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
    CommandSpec(
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        _usage("a31f80000000", _LENGTH4, "0000"),
        spc.report_task_management_functions,
        available=Availability.STANDBY,
        sharing=Sharing.PERSISTENT,
        service_action=0x0D,
        while_sanitizing=_ANY_SANITIZE_STATE,
    ),
)

# Reservations

# SAM-5 would have PERSISTENT RESERVE IN report any unit attention. Those that tell of reservations it leaves for the
# next command: it is how a host looks up what they say, and sg_persist (sg3-utils 1.46) does not try again.
_TELL_OF_RESERVATIONS = frozenset((Asc.RESERVATIONS_PREEMPTED, Asc.RESERVATIONS_RELEASED, Asc.REGISTRATIONS_PREEMPTED))

_LEGACY_RESERVATIONS = (
    CommandSpec("RESERVE(6)", _usage("160000000000"), persistent_reserve.reserve_6, sharing=Sharing.PERSISTENT),
    CommandSpec("RELEASE(6)", _usage("170000000000"), persistent_reserve.release_6, sharing=Sharing.ALWAYS),
)
_RESERVE_IN = tuple(
    CommandSpec(
        f"PERSISTENT RESERVE IN: {name}",
        _usage("5e1f0000000000ffff00"),
        handler,
        available=Availability.STANDBY,
        sharing=Sharing.PERSISTENT,
        service_action=action,
        passes=_TELL_OF_RESERVATIONS,
    )
    for action, name, handler in (
        (0, "READ KEYS", persistent_reserve.read_keys),
        (1, "READ RESERVATION", persistent_reserve.read_reservation),
        (2, "REPORT CAPABILITIES", persistent_reserve.report_capabilities),
        (3, "READ FULL STATUS", persistent_reserve.read_full_status),
    )
)
_RESERVE_OUT = tuple(
    CommandSpec(
        f"PERSISTENT RESERVE OUT: {name}",
        _usage("5f1fff0000ffffffff00"),
        handler,
        available=Availability.STANDBY,
        sharing=Sharing.PERSISTENT,
        service_action=action,
        data_out=persistent_reserve.parameter_list_length,
    )
    for action, name, handler in (
        (0, "REGISTER", service_action(persistent_reserve.register)),
        (1, "RESERVE", service_action(persistent_reserve.reserve)),
        (2, "RELEASE", service_action(persistent_reserve.release)),
        (3, "CLEAR", service_action(persistent_reserve.clear)),
        (4, "PREEMPT", service_action(persistent_reserve.preempt)),
        (5, "PREEMPT AND ABORT", persistent_reserve.preempt_and_abort),
        (6, "REGISTER AND IGNORE EXISTING KEY", service_action(persistent_reserve.register_and_ignore_existing_key)),
        (7, "REGISTER AND MOVE", service_action(persistent_reserve.register_and_move)),
    )
)

# Capacity and the like

_MEDIUM = (
    CommandSpec(
        "READ CAPACITY(10)",
        _usage("25000000000000000000"),
        sbc.read_capacity_10,
        available=Availability.STANDBY,
        sharing=Sharing.ALWAYS,
        needs_medium=True,
    ),
    CommandSpec(
        "READ CAPACITY(16)",
        _usage("9e1f", "0000000000000000", _LENGTH4, "0000"),
        sbc.read_capacity_16,
        available=Availability.STANDBY,
        sharing=Sharing.ALWAYS,
        service_action=0x10,
        needs_medium=True,
    ),
    CommandSpec(
        "GET LBA STATUS",
        _usage("9e1f", _LBA8, _LENGTH4, "0000"),
        provisioning.get_lba_status,
        effect=Effect.READ,
        service_action=0x12,
    ),
    CommandSpec("READ DEFECT DATA(10)", _usage("37001f00000000ffff00"), sbc.read_defect_data_10, needs_medium=True),
    CommandSpec(
        "READ DEFECT DATA(12)",
        _usage("b71f", _LBA4, _LENGTH4, "0000"),
        sbc.read_defect_data_12,
        needs_medium=True,
    ),
    CommandSpec("PRE-FETCH(10)", _usage("3402", _LBA4, _GROUP, "ffff00"), sbc.prefetch, effect=Effect.READ),
    CommandSpec("PRE-FETCH(16)", _usage("9002", _LBA8, _LENGTH4, _GROUP, "00"), sbc.prefetch, effect=Effect.READ),
    CommandSpec(
        "SYNCHRONIZE CACHE(10)",
        _usage("3506", _LBA4, _GROUP, "ffff00"),
        sbc.synchronize_cache,
        effect=Effect.FLUSH,
        sharing=Sharing.NEVER,
    ),
    CommandSpec(
        "SYNCHRONIZE CACHE(16)",
        _usage("9106", _LBA8, _LENGTH4, _GROUP, "00"),
        sbc.synchronize_cache,
        effect=Effect.FLUSH,
        sharing=Sharing.NEVER,
    ),
)

# Reads, writes and verifications; byte 1 is DPO and FUA, or DPO and BYTCHK.

_READS = tuple(
    CommandSpec(name, mask, sbc.read, effect=Effect.READ)
    for name, mask in (
        ("READ(6)", _usage("081fffffff00")),
        ("READ(10)", _usage("2818", _LBA4, _GROUP, "ffff00")),
        ("READ(12)", _usage("a818", _LBA4, _LENGTH4, _GROUP, "00")),
        ("READ(16)", _usage("8818", _LBA8, _LENGTH4, _GROUP, "00")),
    )
)
_VERIFIES = tuple(
    CommandSpec(name, mask, sbc.verify, effect=Effect.READ, data_out=sbc.verify_bytes)
    for name, mask in (
        ("VERIFY(10)", _usage("2f16", _LBA4, _GROUP, "ffff00")),
        ("VERIFY(12)", _usage("af16", _LBA4, _LENGTH4, _GROUP, "00")),
        ("VERIFY(16)", _usage("8f16", _LBA8, _LENGTH4, _GROUP, "00")),
    )
)
_WRITES = tuple(
    CommandSpec(name, mask, handler, effect=Effect.WRITE, sharing=Sharing.NEVER, data_out=data_out)
    for name, mask, handler, data_out in (
        ("WRITE(6)", _usage("0a1fffffff00"), sbc.write, sbc.transfer_bytes),
        ("WRITE(10)", _usage("2a18", _LBA4, _GROUP, "ffff00"), sbc.write, sbc.transfer_bytes),
        ("WRITE(12)", _usage("aa18", _LBA4, _LENGTH4, _GROUP, "00"), sbc.write, sbc.transfer_bytes),
        ("WRITE(16)", _usage("8a18", _LBA8, _LENGTH4, _GROUP, "00"), sbc.write, sbc.transfer_bytes),
        ("WRITE AND VERIFY(10)", _usage("2e16", _LBA4, _GROUP, "ffff00"), sbc.write_and_verify, sbc.transfer_bytes),
        (
            "WRITE AND VERIFY(12)",
            _usage("ae16", _LBA4, _LENGTH4, _GROUP, "00"),
            sbc.write_and_verify,
            sbc.transfer_bytes,
        ),
        (
            "WRITE AND VERIFY(16)",
            _usage("8e16", _LBA8, _LENGTH4, _GROUP, "00"),
            sbc.write_and_verify,
            sbc.transfer_bytes,
        ),
        ("ORWRITE(16)", _usage("8b18", _LBA8, _LENGTH4, _GROUP, "00"), sbc.or_write, sbc.transfer_bytes),
        (
            "COMPARE AND WRITE",
            _usage("8918", _LBA8, "000000ff", _GROUP, "00"),
            sbc.compare_and_write,
            sbc.compare_and_write_bytes,
        ),
        (
            "WRITE SAME(10)",
            _usage("4118", _LBA4, _GROUP, "ffff00"),
            provisioning.write_same,
            provisioning.write_same_bytes,
        ),
        (
            "WRITE SAME(16)",
            _usage("9319", _LBA8, _LENGTH4, _GROUP, "00"),
            provisioning.write_same,
            provisioning.write_same_bytes,
        ),
        ("UNMAP", _usage("42000000", "0000", _GROUP, "ffff00"), provisioning.unmap, provisioning.unmap_bytes),
    )
)

_ATOMIC = (
    CommandSpec(
        "WRITE ATOMIC(16)",
        _usage("9c18", _LBA8, "0000", "ffff", _GROUP, "00"),
        sbc.write_atomic,
        effect=Effect.WRITE,
        sharing=Sharing.NEVER,
        data_out=sbc.transfer_bytes,
        needs=sbc.writes_atomically,
    ),
)

# Third-party copies. What an EXTENDED COPY does to which unit is checked for each of its segments.

_COPIES = (
    CommandSpec(
        "EXTENDED COPY(LID1)",
        _usage("831f", "0000000000000000", _LENGTH4, "0000"),
        extended_copy.extended_copy,
        sharing=Sharing.NEVER,
        service_action=extended_copy.SERVICE_ACTION,
        data_out=extended_copy.parameter_list_length,
    ),
    CommandSpec(
        "POPULATE TOKEN",
        _usage("831f00000000", _LENGTH4, _LENGTH4, _GROUP, "00"),
        token_copy.populate_token,
        effect=Effect.READ,
        service_action=token_copy.POPULATE_TOKEN,
        data_out=token_copy.parameter_list_length,
    ),
    CommandSpec(
        "WRITE USING TOKEN",
        _usage("831f00000000", _LENGTH4, _LENGTH4, _GROUP, "00"),
        token_copy.write_using_token,
        effect=Effect.WRITE,
        sharing=Sharing.NEVER,
        service_action=token_copy.WRITE_USING_TOKEN,
        data_out=token_copy.parameter_list_length,
    ),
    CommandSpec(
        "COPY OPERATION ABORT",
        _usage("831f", _LENGTH4, "00000000000000000000"),
        copy_results.copy_operation_abort,
        service_action=0x1C,
    ),
)
_COPY_RESULTS = tuple(
    CommandSpec(name, _usage("841f", list_id, "00000000", _LENGTH4, "0000"), handler, service_action=action)
    for action, name, list_id, handler in (
        (0x00, "RECEIVE COPY STATUS(LID1)", "ff000000", copy_results.receive_copy_status_1),
        (0x01, "RECEIVE COPY DATA(LID1)", "ff000000", copy_results.receive_copy_data_1),
        (0x03, "RECEIVE COPY OPERATING PARAMETERS", "ff000000", copy_results.receive_copy_operating_parameters),
        (0x04, "RECEIVE COPY FAILURE DETAILS(LID1)", "ff000000", copy_results.receive_copy_failure_details),
        (0x05, "RECEIVE COPY STATUS(LID4)", _LENGTH4, copy_results.receive_copy_status_4),
        (0x07, "RECEIVE ROD TOKEN INFORMATION", _LENGTH4, copy_results.receive_rod_token_information),
    )
)

_SANITIZE = tuple(
    CommandSpec(
        f"SANITIZE: {name}",
        _usage("48bf0000000000", parameter_list, "00"),
        handler,
        effect=effect,
        sharing=Sharing.NEVER,
        service_action=action,
        data_out=data_out,
        while_sanitizing=frozenset((SanitizeState.NONE, SanitizeState.FAILED)),
        needs=sanitize.can_sanitize,
    )
    for action, name, handler, effect, parameter_list, data_out in (
        (0x01, "OVERWRITE", sanitize.overwrite, Effect.WRITE, "ffff", sanitize.parameter_list_length),
        (0x02, "BLOCK ERASE", sanitize.block_erase, Effect.WRITE, "0000", None),
        (0x1F, "EXIT FAILURE MODE", sanitize.exit_failure_mode, Effect.NONE, "0000", None),
    )
)

COMMANDS = CommandTable(
    (
        *_COMMON,
        *_LEGACY_RESERVATIONS,
        *_RESERVE_IN,
        *_RESERVE_OUT,
        *_MEDIUM,
        *_READS,
        *_VERIFIES,
        *_WRITES,
        *_ATOMIC,
        *_SANITIZE,
        *_COPIES,
        *_COPY_RESULTS,
    )
)
