"""Sessions and recorded commands as text for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from twinvol.cli.command import size_text, time_text

if TYPE_CHECKING:
    from engine.api import CommandInfo, IoInfo, SessionInfo

COMMAND_COLUMNS = ["at", "tsih", "lun", "command", "lba", "length", "status", "latency"]
_STATUS = {0x00: "GOOD", 0x02: "CHECK CONDITION", 0x04: "CONDITION MET", 0x08: "BUSY", 0x18: "RESERVATION CONFLICT"}


def session_lines(session: SessionInfo) -> list[str]:
    """A session in a few lines: who, what was agreed, what it does, a line for each kind of command."""
    answered = session.fast_commands + session.plain_commands
    share = f", {100 * session.fast_commands / answered:.1f} % on the fast path" if answered else ""
    agreed = [
        f"digests {_digests(session)}",
        f"segments {size_text(session.max_recv_data_segment_bytes)} in,"
        f" {size_text(session.max_send_data_segment_bytes)} out",
        f"burst {size_text(session.max_burst_bytes)}, first {size_text(session.first_burst_bytes)}",
        f"InitialR2T {_yes(session.initial_r2t)}, ImmediateData {_yes(session.immediate_data)}",
    ]
    user = f" as {session.chap_user}" if session.chap_user is not None else ""
    lines = [
        f"{session.initiator}{user}  {session.address} -> {session.portal}, group {session.portal_group}",
        f"  target {session.target}  TSIH {session.tsih}  ISID {session.isid}  logged in"
        f" {duration_text(time.time() - session.logged_in_at)} ago" + ("  PAUSED" if session.state == "paused" else ""),
        "  " + "; ".join(agreed),
        f"  in flight {session.in_flight}, at most {session.depth_max}; {answered} commands{share};"
        f" errors {session.errors}, aborted {session.aborted}",
        f"  last {duration_text(session.recent_seconds)}: {session.reads_s:.0f} reads/s"
        f" {size_text(session.read_bytes_s)}/s, {session.writes_s:.0f} writes/s {size_text(session.written_bytes_s)}/s",
    ]
    return lines + [_io_line(io) for io in session.io if io.commands]


def _io_line(io: IoInfo) -> str:
    assert io.p50_us is not None
    assert io.p99_us is not None
    assert io.max_us is not None
    percentiles = f"p50 {latency_text(io.p50_us)}  p99 {latency_text(io.p99_us)}  max {latency_text(io.max_us)}"
    return f"  {io.kind:<6}{io.commands:>12}  {size_text(io.bytes):>10}  {percentiles}"


def command_row(command: CommandInfo) -> dict[str, Any]:
    """A line of the table of ``COMMAND_COLUMNS``."""
    status = "aborted" if command.status is None else _STATUS.get(command.status, f"{command.status:02X}h")
    at = time_text(command.at).split(" ")[1].split("+")[0] + f"{command.at % 1:.6f}"[1:]
    return {
        "at": at,
        "tsih": command.tsih,
        "lun": command.lun,
        "command": command.name,
        "lba": command.lba,
        "length": command.length,
        "status": status + _sense(command.sense),
        "latency": latency_text(command.latency_us),
    }


def _sense(sense: str) -> str:
    """Sense key and additional sense code of either format, as they are written in the standards."""
    data = bytes.fromhex(sense)
    if len(data) < 8:
        return ""
    if data[0] & 0x7E == 0x72:
        return f" {data[1] & 0xF:X}h {data[2]:02X}h/{data[3]:02X}h"
    return f" {data[2] & 0xF:X}h {data[12]:02X}h/{data[13]:02X}h" if len(data) > 13 else ""


def latency_text(us: float) -> str:
    """A latency for people: 12 us, 3.4 ms, 1.2 s."""
    if us < 1000:
        return f"{us:.0f} us"
    return f"{us / 1000:.1f} ms" if us < 1_000_000 else f"{us / 1_000_000:.1f} s"


def duration_text(seconds: float) -> str:
    """A time for people: 12 s, 3 min, 2 h 5 min, 4 d 2 h."""
    minutes, hours, days = int(seconds // 60), int(seconds // 3600), int(seconds // 86400)
    if not minutes:
        return f"{max(0, round(seconds))} s"
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes % 60} min" if not days else f"{days} d {hours % 24} h"


def _digests(session: SessionInfo) -> str:
    found = [name for name, on in (("header", session.header_digest), ("data", session.data_digest)) if on]
    return " and ".join(found) or "none"


def _yes(value: bool) -> str:
    return "Yes" if value else "No"
