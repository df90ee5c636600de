"""Persistent reservations through ``kill -9``: the daemon is another process, the initiator is our own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator import commands
from iscsi.initiator.disk import IscsiDisk, connect
from iscsi.initiator.errors import ConnectionLost
from iscsi.scsi.command import Status
from tests.support.daemon import Daemon
from tests.support.ports import free_address

if TYPE_CHECKING:
    from pathlib import Path

ROUNDS = int(os.environ.get("TWINVOL_KILL9_ROUNDS", "5"))
SEED = int(os.environ.get("TWINVOL_KILL9_SEED", "0")) or random.SystemRandom().randrange(1, 1 << 32)

pytestmark = pytest.mark.timeout(300 + 10 * ROUNDS)

REGISTER, RESERVE, CLEAR = 0, 1, 3
APTPL = 1
WRITE_EXCLUSIVE = 1
ONE = ("iqn.2026-11.org.example:one", bytes.fromhex("80aabbcc0001"))
TWO = ("iqn.2026-11.org.example:two", bytes.fromhex("80aabbcc0002"))


async def log_in(daemon: Daemon, target: str, port: tuple[str, bytes]) -> IscsiDisk:
    host, _, number = daemon.portal.rpartition(":")
    return await connect((host, int(number)), target, initiator_name=port[0], isid=port[1])


async def reserve_out(disk: IscsiDisk, action: int, key: int, new_key: int = 0, kind: int = 0, flags: int = 0) -> int:
    data = key.to_bytes(8, "big") + new_key.to_bytes(8, "big") + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    cdb = bytes((0x5F, action, kind, 0, 0)) + len(data).to_bytes(4, "big") + bytes(7)
    return (await disk.execute(cdb, data_out=data)).status


async def reserve_in(disk: IscsiDisk, action: int) -> bytes:
    cdb = bytes((0x5E, action)) + bytes(5) + (4096).to_bytes(2, "big") + bytes(7)
    outcome = await disk.execute(cdb, data_in_length=4096)
    assert outcome.status == Status.GOOD
    return outcome.data


async def write_status(disk: IscsiDisk) -> int:
    return (await disk.execute(commands.write16(0, 1), data_out=bytes(512))).status


async def test_with_aptpl_reservations_survive_kill_9_and_bind_at_once(tmp_path: Path):
    pool = tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", "16M").split("/")[3]
        async with await log_in(daemon, target, ONE) as one, await log_in(daemon, target, TWO) as two:
            assert await reserve_out(one, REGISTER, 0, 0xA1, flags=APTPL) == Status.GOOD
            assert await reserve_out(two, REGISTER, 0, 0xB2, flags=APTPL) == Status.GOOD
            assert await reserve_out(one, RESERVE, 0xA1, kind=WRITE_EXCLUSIVE) == Status.GOOD
            status = await reserve_in(one, 3)
            daemon.kill()
    with Daemon.start(pool) as daemon:
        # The one who may not write comes first: there must be no moment in which it may.
        async with await log_in(daemon, target, TWO) as two:
            assert await write_status(two) == Status.RESERVATION_CONFLICT
            assert (await reserve_in(two, 3))[4:] == status[4:]
            assert (await reserve_in(two, 0))[:4] == bytes(4)  # PRgeneration begins anew
            async with await log_in(daemon, target, ONE) as one:
                assert await write_status(one) == Status.GOOD
                assert await reserve_out(one, CLEAR, 0xA1) == Status.GOOD
            assert await write_status(two) == Status.CHECK_CONDITION  # unit attention: RESERVATIONS PREEMPTED
            assert await write_status(two) == Status.GOOD
            daemon.kill()
    with Daemon.start(pool) as daemon:
        async with await log_in(daemon, target, TWO) as two:
            assert await reserve_in(two, 0) == bytes(8)


async def test_who_logs_in_while_the_daemon_starts_finds_the_reservation(tmp_path: Path):
    """The portal listens before anything is restored; the first command that it answers must be refused already."""
    pool, portal = tmp_path / "pool", free_address()
    with Daemon.start(pool, iscsi=portal) as daemon:
        target = daemon.volume("disk", "16M").split("/")[3]
        async with await log_in(daemon, target, ONE) as one:
            assert await reserve_out(one, REGISTER, 0, 0xA1, flags=APTPL) == Status.GOOD
            assert await reserve_out(one, RESERVE, 0xA1, kind=WRITE_EXCLUSIVE) == Status.GOOD
            daemon.kill()
    host, _, port = portal.rpartition(":")

    async def intrude() -> int:
        while True:
            with contextlib.suppress(ConnectionLost, OSError):
                async with await connect((host, int(port)), target, initiator_name=TWO[0], isid=TWO[1]) as two:
                    return await write_status(two)
            await asyncio.sleep(0.01)  # until something listens

    for _ in range(3):
        intruder = asyncio.create_task(intrude())
        with await asyncio.to_thread(Daemon.start, pool, iscsi=portal) as daemon:
            assert await intruder == Status.RESERVATION_CONFLICT
            daemon.kill()


async def test_kill_9_at_any_moment_loses_no_registration_that_was_answered(tmp_path: Path):
    """One key after another is registered, as fast as it goes; what is there after the kill is the last one that was
    answered, or the one that was on its way."""
    pool = tmp_path / "pool"
    rng = random.Random(SEED)
    print(f"replay: TWINVOL_KILL9_SEED={SEED} .venv/bin/pytest tests/integration/test_reservations.py -k kill_9_at")
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", "16M").split("/")[3]
    answered = 0
    for _ in range(ROUNDS):
        with Daemon.start(pool) as daemon:
            async with await log_in(daemon, target, ONE) as disk:
                keys = (await reserve_in(disk, 0))[8:]
                there = int.from_bytes(keys, "big")
                assert len(keys) == (8 if there else 0)
                assert there in (answered, answered + 1)
                answered, stop_at = there, there + rng.randrange(1, 100)
                with contextlib.suppress(ConnectionLost):
                    while True:
                        assert await reserve_out(disk, REGISTER, answered, answered + 1, flags=APTPL) == Status.GOOD
                        answered += 1
                        if answered == stop_at:
                            daemon.process.send_signal(signal.SIGKILL)
            daemon.process.wait()
    assert answered >= ROUNDS


async def test_without_aptpl_they_end_with_the_process(tmp_path: Path):
    pool = tmp_path / "pool"
    with Daemon.start(pool) as daemon:
        target = daemon.volume("disk", "16M").split("/")[3]
        async with await log_in(daemon, target, ONE) as one:
            assert await reserve_out(one, REGISTER, 0, 0xA1) == Status.GOOD
            assert await reserve_out(one, RESERVE, 0xA1, kind=WRITE_EXCLUSIVE) == Status.GOOD
            daemon.kill()
    with Daemon.start(pool) as daemon:
        async with await log_in(daemon, target, TWO) as two:
            assert await reserve_in(two, 0) == bytes(8)
            assert await write_status(two) == Status.GOOD
