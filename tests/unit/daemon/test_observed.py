"""What an administrator sees of running sessions: the API's values, text for people, metrics for monitoring."""

from pathlib import Path

import pytest

from engine.errors import InvalidArgument, InvalidState, NotFound
from iscsi.initiator.errors import CommandFailed
from tests.unit.daemon.test_wiring import HOST, serving
from twinvol.cli.observed import command_row, duration_text, latency_text, session_lines
from twinvol.metrics import render

MIB = 1 << 20


@pytest.fixture
async def array(tmp_path: Path):
    async with serving(tmp_path / "pool") as array:
        yield array


async def test_a_session_shows_what_was_agreed_and_what_it_does(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await disk.write(0, b"x" * 8192)
        await disk.read(0, 4096)
        await disk.flush()
        (session,) = await array.api.session_list("v")
        assert (session.initiator, session.portal) == (HOST, f"127.0.0.1:{array.portal[1]}")
        assert (session.state, session.in_flight, session.errors) == ("ok", 0, 0)
        assert (session.reads, session.read_bytes, session.writes, session.written_bytes) == (1, 4096, 1, 8192)
        assert session.max_recv_data_segment_bytes == 262144
        io = {each.kind: each for each in session.io}
        assert io["flush"].commands == 1
        assert 0 < io["read"].p50_us <= io["read"].p99_us <= io["read"].max_us
        assert [lun.lun for lun in session.luns] == [0]
        assert session.luns[0].io == session.io
        assert (session.fast_commands, session.reads_s > 0) == (2, True)
        text = "\n".join(session_lines(session))
        assert f"{HOST}  {session.address} -> {session.portal}" in text
        assert "digests none; segments 256.0 KiB in" in text
        await array.api.target_pause("v")
        assert f'twinvol_target_paused{{target="{info.target}"}} 1.0' in (await render(array.api))[0].decode()
        (session,) = await array.api.session_list("v")
        assert "PAUSED" in session_lines(session)[1]
        await array.api.target_resume("v")


async def test_metrics_of_a_volume_outlive_its_sessions(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    async with await array.disk(info.target) as disk:
        await disk.write(0, b"x" * 8192)
        with pytest.raises(CommandFailed):
            await disk.vpd_page(0x7F)
        body = (await render(array.api))[0].decode()
        assert f'twinvol_session_written_bytes_total{{initiator="{HOST}",target="{info.target}"' in body
    lines = (await render(array.api))[0].decode().splitlines()
    assert not any(line.startswith("twinvol_session_writes_total{") for line in lines)
    assert 'twinvol_io_bytes_total{kind="write",snapshot="",volume="v"} 8192.0' in lines
    assert 'twinvol_io_latency_seconds_count{kind="write",snapshot="",volume="v"} 1.0' in lines
    assert 'twinvol_io_latency_seconds_bucket{kind="write",le="+Inf",snapshot="",volume="v"} 1.0' in lines
    assert 'twinvol_io_errors_total{snapshot="",volume="v"} 1.0' in lines


async def test_snapshots_have_counters_of_their_own(array):
    await array.api.volume_create("v", 4 * MIB, expose=True)
    snapshot = await array.api.snapshot_create("v", "s", expose=True)
    async with await array.disk(snapshot.target) as disk:
        await disk.read(0, 4096)
    reads = {(each.volume, each.snapshot): each.io[0].commands for each in await array.api.io_list()}
    assert reads == {("v", None): 0, ("v", "s"): 1}


async def test_recorded_commands_tell_what_an_initiator_did(array):
    info = await array.api.volume_create("v", 4 * MIB, expose=True)
    with pytest.raises(InvalidState):
        await array.api.command_list("v")
    for last in (-1, 1001):
        with pytest.raises(InvalidArgument):
            await array.api.target_record("v", last)
    async with await array.disk(info.target) as disk:
        assert (await array.api.target_record("v", 5)).recorded == 5
        await disk.write(8192, b"x" * 4096)
        with pytest.raises(CommandFailed):
            await disk.vpd_page(0x7F)
        commands = await array.api.command_list("v")
        assert [(each.lba, each.length, each.status) for each in commands] == [(16, 4096, 0), (None, 0, 2)]
        assert command_row(commands[0])["command"].startswith("WRITE")
        assert command_row(commands[1])["status"] == "CHECK CONDITION 5h 24h/00h"
        (session,) = await array.api.session_list("v")
        assert await array.api.command_list("v", tsih=session.tsih) == commands
        with pytest.raises(NotFound):
            await array.api.command_list("v", tsih=session.tsih + 1)
        assert (await array.api.target_record("v", 0)).recorded == 0
        with pytest.raises(InvalidState):
            await array.api.command_list("v")


def test_times_are_short_for_people():
    assert [latency_text(us) for us in (0.4, 12, 999, 1000, 34_500, 2_500_000)] == [
        "0 us", "12 us", "999 us", "1.0 ms", "34.5 ms", "2.5 s"
    ]  # fmt: skip
    assert [duration_text(s) for s in (0.2, 59, 60, 3600, 7500, 180000)] == [
        "0 s", "59 s", "1 min", "1 h 0 min", "2 h 5 min", "2 d 2 h"
    ]  # fmt: skip
