"""What is counted of a session and what is remembered of its commands: on both paths, per logical unit."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st

from iscsi.observation import describe
from iscsi.scsi.command import Status
from iscsi.session import SessionTable
from iscsi.stats import IoStats, Kind, bucket_end, bucket_of
from iscsi.wire import requests
from iscsi.wire.opcodes import TaskFunction
from tests.support.iscsi_link import TARGET, Link, make_registry, make_unit
from tests.support.memory_device import MemoryDevice

if TYPE_CHECKING:
    from iscsi.target import TargetRegistry

BLOCKS = 4096
FLUSH = bytes((0x35,)).ljust(10, b"\0")


async def connect(*, fast=True, device_is_fast=True, units=1) -> tuple[Link, TargetRegistry]:
    table = SessionTable()
    registry = make_registry(
        *(make_unit(MemoryDevice(BLOCKS * 512, fast=device_is_fast), number) for number in range(units))
    )
    registry.subscribe(lambda *_: [session.connection.service_changed() for session in table])
    link = Link(registry, table, fast=fast)
    await link.log_in(InitialR2T="No")
    for lun in range(units):
        while (await link.exchange(link.command(bytes(6), lun=lun)))[0].status:
            pass
    return link, registry


def seen(link: Link):
    assert link.connection.session is not None
    return describe(link.connection.session)


def done(stats: IoStats) -> dict[str, tuple[int, int]]:
    """Commands and bytes, without the TEST UNIT READY of the beginning."""
    totals = {kind: stats.total(kind) for kind in (Kind.READ, Kind.WRITE, Kind.FLUSH)}
    return {kind.name: (tally.commands, tally.bytes) for kind, tally in totals.items()}


@given(st.integers(0, 1 << 40))
def test_a_bucket_ends_at_most_a_quarter_above_what_is_in_it(nanoseconds):
    end = bucket_end(bucket_of(nanoseconds))
    assert nanoseconds < end <= max(1, nanoseconds) * 1.25 + 1


@given(st.lists(st.integers(1, 1 << 40), min_size=1), st.integers(1, 100))
def test_percentiles_are_at_most_a_quarter_too_high(latencies, percent):
    stats = IoStats()
    for latency in latencies:
        stats.count(Kind.READ, 512, latency)
    tally = stats.total(Kind.READ)
    exact = sorted(latencies)[-(-len(latencies) * percent // 100) - 1]
    (found,) = tally.percentiles(percent / 100)
    assert exact < found <= exact * 1.25 + 1
    assert abs(tally.nanoseconds - sum(latencies)) <= sum(latencies) / 8 + len(latencies)
    bits = range(1, 42)
    assert tally.below(*bits) == [sum(latency < 1 << each for latency in latencies) for each in bits]


async def test_both_paths_count_the_same_per_logical_unit():
    for fast, device_is_fast in ((True, True), (True, False), (False, False)):
        link, _ = await connect(fast=fast, device_is_fast=device_is_fast, units=2)
        data = bytes(8192)
        await link.exchange(
            link.write(0, data, lun=0),
            link.read(0, 8, lun=1),
            link.read(0, 16, lun=1),
            link.write(8, data, lun=1),
            link.command(FLUSH, lun=0),
        )
        info = seen(link)
        assert done(info.luns[0]) == {"READ": (0, 0), "WRITE": (1, 8192), "FLUSH": (1, 0)}
        assert done(info.luns[1]) == {"READ": (2, 12288), "WRITE": (1, 8192), "FLUSH": (0, 0)}
        assert done(info.stats) == {"READ": (2, 12288), "WRITE": (2, 16384), "FLUSH": (1, 0)}
        assert info.stats.fast_commands == (4 if fast and device_is_fast else 0)
        assert (info.recent.reads, info.recent.written_bytes) == (2, 16384)
        assert (info.in_flight, info.stats.errors) == (0, 0)


async def test_errors_are_counted_and_unit_attentions_are_none():
    link, registry = await connect()
    (refused,) = await link.exchange(link.read(BLOCKS, 1))
    assert refused.status == Status.CHECK_CONDITION
    assert seen(link).stats.errors == 1
    target = registry.find(TARGET)
    target.luns[0].capacity_changed()
    (attention,) = await link.exchange(link.read(0, 1))
    assert attention.sense[12:14] == b"\x2a\x09"
    assert seen(link).stats.errors == 1


async def test_the_depth_is_that_of_the_fullest_moment():
    link, registry = await connect()
    target = registry.find(TARGET)
    await link.exchange(*(link.read(number, 1) for number in range(20)))
    assert seen(link).depth_max == 20
    target.pause()
    reads = [link.read(number, 1) for number in range(30)]
    await link.exchange(*reads)
    assert (seen(link).in_flight, seen(link).depth_max, seen(link).held) == (30, 30, True)
    abort = requests.TaskManagementRequest(
        link.next_itt(), TaskFunction.ABORT_TASK_SET, link.cmd_sn, 0, lun=0, referenced_task_tag=0xFFFFFFFF
    )
    await link.exchange(abort)
    assert (seen(link).in_flight, seen(link).stats.aborted) == (0, 30)


async def test_what_a_unit_has_done_outlives_its_sessions():
    link, registry = await connect()
    unit = registry.find(TARGET).luns[0]
    await link.exchange(link.read(0, 8))
    link.connection.lost()
    await link.settle()
    assert not unit.nexuses
    assert done(unit.stats())["READ"] == (1, 4096)


async def test_what_a_session_did_with_a_lun_that_is_gone_still_counts():
    link, registry = await connect(units=2)
    await link.exchange(link.read(0, 8, lun=1))
    registry.find(TARGET).unmap_lun(1)
    link.connection.luns_changed()
    assert list(seen(link).luns) == [0]
    assert done(seen(link).stats)["READ"] == (1, 4096)


async def test_recent_reaches_back_to_the_mark_before_the_last():
    link, _ = await connect()
    await link.exchange(link.read(0, 8))
    link.connection.tick()
    await link.exchange(link.read(0, 8))
    assert seen(link).recent.reads == 2
    link.connection.tick()
    await link.exchange(link.read(0, 8))
    assert seen(link).recent.reads == 2
    link.connection.tick()
    assert seen(link).recent.reads == 1


async def test_the_last_commands_are_remembered_until_that_is_switched_off():
    link, registry = await connect()
    target = registry.find(TARGET)
    assert seen(link).commands is None
    target.record(3)
    data = bytes(range(256)) * 16
    await link.exchange(link.write(7, data))
    await link.exchange(link.read(7, 8))
    await link.exchange(link.read(BLOCKS, 1))
    await link.exchange(link.command(FLUSH))
    commands = seen(link).commands
    assert [(c.cdb[0], c.lun, c.length, c.status) for c in commands] == [
        (0x28, 0, 4096, Status.GOOD),
        (0x28, 0, 0, Status.CHECK_CONDITION),
        (0x35, 0, 0, Status.GOOD),
    ]
    assert commands[0].cdb[:10] == bytes.fromhex("28000000000700000800")
    assert commands[1].sense[12:14] == b"\x21\x00"
    assert all(c.nanoseconds > 0 for c in commands)
    other = Link(registry, link.table, isid=2)
    await other.log_in()
    await other.clear_attention()
    assert len(seen(other).commands) == 2, "who logs in later is recorded too"
    target.record(0)
    assert seen(link).commands is None
    before = seen(link).stats.fast_commands
    (data_in,) = await link.exchange(link.read(7, 8))
    assert data_in.data == data
    assert seen(link).stats.fast_commands == before + 1, "the fast path is back"


async def test_an_aborted_command_is_remembered_without_a_status():
    link, registry = await connect()
    target = registry.find(TARGET)
    target.record(10)
    target.pause()
    read = link.read(5, 1)
    await link.exchange(read)
    abort = requests.TaskManagementRequest(
        link.next_itt(), TaskFunction.ABORT_TASK, link.cmd_sn, 0, lun=0, referenced_task_tag=read.itt
    )
    await link.exchange(abort)
    (command,) = seen(link).commands
    assert (command.cdb[0], command.status) == (0x28, None)
