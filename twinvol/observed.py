"""What the iSCSI side saw, in the values of ``engine.api``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from engine.api import LATENCY_BOUNDS_US, CommandInfo, DeviceIoInfo, IoInfo, LunIoInfo, SessionInfo
from iscsi.scsi.commands import COMMANDS
from iscsi.stats import Kind, kind_of

if TYPE_CHECKING:
    from iscsi import observation
    from iscsi.stats import IoStats

_BOUND_BITS = tuple(round(bound * 1000).bit_length() - 1 for bound in LATENCY_BOUNDS_US)
_WITH_LBA = frozenset((0x2F, 0xAF, 0x8F, 0x34, 0x90))
"""VERIFY 10 12 16 and PRE-FETCH 10 16, beside reads, writes and flushes."""


def session_info(session: observation.SessionInfo) -> SessionInfo:
    """A normal session."""
    assert session.target is not None
    stats, recent, keys = session.stats, session.recent, session.parameters
    read, write = stats.total(Kind.READ), stats.total(Kind.WRITE)
    io = _io(stats)
    seconds = max(1, recent.nanoseconds) / 1e9
    return SessionInfo(
        target=session.target,
        portal_group=session.portal_group,
        initiator=session.initiator_name,
        isid=session.isid,
        tsih=session.tsih,
        address=session.address,
        reads=read.commands,
        read_bytes=read.bytes,
        writes=write.commands,
        written_bytes=write.bytes,
        chap_user=session.chap_user,
        portal=session.portal,
        state="paused" if session.held else "ok",
        logged_in_at=time.time() - session.age_s,
        header_digest=keys.header_digest,
        data_digest=keys.data_digest,
        max_recv_data_segment_bytes=keys.max_recv_data_segment_length,
        max_send_data_segment_bytes=keys.max_send_data_segment_length,
        max_burst_bytes=keys.max_burst_length,
        first_burst_bytes=keys.first_burst_length,
        initial_r2t=keys.initial_r2t,
        immediate_data=keys.immediate_data,
        in_flight=session.in_flight,
        depth_max=session.depth_max,
        fast_commands=stats.fast_commands,
        plain_commands=stats.plain_commands,
        errors=stats.errors,
        aborted=stats.aborted,
        recent_seconds=seconds,
        reads_s=recent.reads / seconds,
        read_bytes_s=recent.read_bytes / seconds,
        writes_s=recent.writes / seconds,
        written_bytes_s=recent.written_bytes / seconds,
        io=io,
        luns=[
            LunIoInfo(lun, of_lun.errors, io if of_lun is stats else _io(of_lun))
            for lun, of_lun in session.luns.items()
        ],
    )


def device_io(stats: IoStats) -> DeviceIoInfo:
    """Of a volume or snapshot whose name the caller puts in."""
    return DeviceIoInfo(
        volume="",
        snapshot=None,
        fast_commands=stats.fast_commands,
        plain_commands=stats.plain_commands,
        errors=stats.errors,
        aborted=stats.aborted,
        io=_io(stats),
    )


def command_infos(session: observation.SessionInfo) -> list[CommandInfo]:
    """The recorded commands of a session, oldest first."""
    return [
        CommandInfo(
            at=record.at,
            tsih=session.tsih,
            initiator=session.initiator_name,
            lun=record.lun,
            name=_name(record.cdb),
            cdb=record.cdb.hex(),
            lba=_lba(record.cdb),
            length=record.length,
            status=record.status,
            sense=record.sense.hex(),
            latency_us=record.nanoseconds / 1000,
        )
        for record in session.commands or ()
    ]


def _io(stats: IoStats) -> list[IoInfo]:
    infos = []
    for kind in Kind:
        tally = stats.total(kind)
        p50, p99, most = tally.percentiles(0.5, 0.99, 1) if tally.latency else (None, None, None)
        infos.append(
            IoInfo(
                kind=kind.name.lower(),
                commands=tally.commands,
                bytes=tally.bytes,
                total_us=tally.nanoseconds / 1000,
                p50_us=_us(p50),
                p99_us=_us(p99),
                max_us=_us(most),
                latency_counts=tally.below(*_BOUND_BITS),
            )
        )
    return infos


def _us(nanoseconds: int | None) -> float | None:
    return None if nanoseconds is None else nanoseconds / 1000


def _name(cdb: bytes) -> str:
    spec = COMMANDS.find(cdb)
    return f"operation code {cdb[0]:02X}h" if spec is None else spec.name


def _lba(cdb: bytes) -> int | None:
    """By the group of the operation code, which fixes the CDB's length (SPC-4 section 4.3.5.1)."""
    if kind_of(cdb[0]) is Kind.OTHER and cdb[0] not in _WITH_LBA:
        return None
    match cdb[0] >> 5:
        case 0:
            return int.from_bytes(cdb[1:4], "big") & 0x1FFFFF
        case 4:
            return int.from_bytes(cdb[2:10], "big")
        case _:
            return int.from_bytes(cdb[2:6], "big")
