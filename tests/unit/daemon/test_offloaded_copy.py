"""Offloaded copies between the disks of a whole server, through iSCSI: what they reach, and what they leave behind."""

from __future__ import annotations

import asyncio

import pytest

from engine.errors import NotFound
from engine.names import OFFLOAD_PREFIX, TOKEN_PREFIX
from engine.units import MIB
from iscsi.chap import ChapIdentity
from iscsi.initiator.chap import ChapCredentials
from iscsi.initiator.disk import connect
from iscsi.scsi.sense import SenseKey
from tests.unit.daemon.test_wiring import HOST, serving
from tests.unit.scsi.test_extended_copy import cscd, parameters, segment
from tests.unit.scsi.test_token_copy import populate_list, write_list

OTHER = "iqn.2026-11.org.example:other"
NOT_REACHABLE = (SenseKey.COPY_ABORTED, 0x0D02)
GOOD = (SenseKey.NO_SENSE, 0)


async def send(disk, cdb: str, data: bytes = b"", *, allocation: int = 0):
    """The outcome, past unit attentions."""
    while True:
        outcome = await disk.execute(bytes.fromhex(cdb), data_out=data, data_in_length=allocation)
        if told(outcome)[0] is not SenseKey.UNIT_ATTENTION:
            return outcome


def told(outcome) -> tuple[SenseKey, int]:
    if not outcome.sense:
        return GOOD
    return SenseKey(outcome.sense[2] & 0x0F), int.from_bytes(outcome.sense[12:14], "big")


async def extended_copy(disk, source: str, target: str, blocks: int) -> tuple[SenseKey, int]:
    cscds = (cscd(int(source, 16)), cscd(int(target, 16)))
    data = parameters(segment(0, 1, blocks, 0, 0), cscds=cscds)
    return told(await send(disk, f"83 00 {'00' * 8} {len(data):08x} 00 00", data))


async def token_of(disk, blocks: int) -> bytes:
    data = populate_list((0, blocks))
    assert told(await send(disk, f"83 10 00000000 00000001 {len(data):08x} 00 00", data)) == GOOD
    return (await send(disk, "84 07 00000001 00000000 00001000 00 00", allocation=4096)).data[38:550]


async def write_token(disk, token: bytes, blocks: int, *, flags: int = 0) -> tuple[SenseKey, int]:
    data = write_list(token, (0, blocks), flags=flags)
    return told(await send(disk, f"83 11 00000000 00000002 {len(data):08x} 00 00", data))


async def two_disks(array):
    return [await array.api.volume_create(name, 4 * MIB, expose=True) for name in ("one", "two")]


async def test_extended_copy_reaches_what_the_initiator_could_log_in_to(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        async with await array.disk(one.target) as disk:
            await disk.write(0, b"1" * MIB)
            assert await extended_copy(disk, one.naa, two.naa, 2048) == GOOD
            content = bytearray(MIB)
            await array.pool.volume("two").read(0, memoryview(content))
            assert content == b"1" * MIB
            await array.api.target_access(two.target, add=[OTHER], remove=[])
            assert await extended_copy(disk, one.naa, two.naa, 1) == NOT_REACHABLE
            await array.api.target_access(two.target, add=[HOST], remove=[])
            assert await extended_copy(disk, one.naa, two.naa, 1) == GOOD
            await array.api.target_lun_mask(two.target, 0, initiators=[OTHER])
            assert await extended_copy(disk, one.naa, two.naa, 1) == NOT_REACHABLE
            await array.api.target_lun_mask(two.target, 0, initiators=[])
            await array.api.target_chap_set(two.target, user="bob", secret="a secret of bob")
            assert await extended_copy(disk, one.naa, two.naa, 1) == NOT_REACHABLE
            await array.api.target_lun_add(one.target, "two")
            assert await extended_copy(disk, one.naa, two.naa, 1) == GOOD  # now in its own target


async def test_a_proof_counts_at_other_targets_that_ask_for_the_same(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        await array.api.target_chap_set(one.target, user="bob", secret="a secret of bob")
        await array.api.target_chap_set(two.target, user="bob", secret="another secret")
        bob = ChapCredentials(ChapIdentity("bob", b"a secret of bob"))
        async with await connect(array.portal, one.target, initiator_name=HOST, chap=bob) as disk:
            assert await extended_copy(disk, one.naa, two.naa, 1) == NOT_REACHABLE
            await array.api.target_chap_set(two.target, user="bob", secret="a secret of bob")
            assert await extended_copy(disk, one.naa, two.naa, 1) == GOOD
            await array.api.target_chap_set(one.target, user="bob", secret="a third secret")
            assert await extended_copy(disk, one.naa, two.naa, 1) == GOOD  # what was proven then
            await array.api.target_chap_set(two.target, user="bob", secret="a third secret")
            assert await extended_copy(disk, one.naa, two.naa, 1) == NOT_REACHABLE
            await array.api.target_chap_remove(two.target)
            assert await extended_copy(disk, one.naa, two.naa, 1) == GOOD


async def test_a_token_reaches_any_disk_and_shows_in_no_list(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        await array.api.target_chap_set(two.target, user="bob", secret="a secret of bob")
        async with await array.disk(one.target) as disk:
            await disk.write(0, b"1" * MIB)
            token = await token_of(disk, 2048)
            await disk.write(0, b"2" * MIB)
            assert await array.api.snapshot_list("one") == []
            assert (await array.api.volume_show("one")).snapshots == 0
        await array.api.target_chap_remove(two.target)
        async with await array.disk(two.target) as disk:
            assert await write_token(disk, token, 2048, flags=2) == GOOD
            assert await disk.read(0, MIB) == b"1" * MIB
            assert await write_token(disk, token, 1) == (SenseKey.ILLEGAL_REQUEST, 0x2309)


async def test_a_token_keeps_no_volume_from_being_deleted(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        await array.api.snapshot_create("one", "s")
        await array.api.clone_create("one", "s", "clone", expose=True)
        for name, target in (("clone", "iqn.2026-11.org.twinvol:clone"), ("one", one.target)):
            async with await array.disk(target) as disk:
                token = await token_of(disk, 8)
            await array.api.volume_delete(name, force=True)
            async with await array.disk(two.target) as disk:
                assert (await write_token(disk, token, 8))[0] is SenseKey.ILLEGAL_REQUEST


async def test_after_a_restart_tokens_are_unknown_and_their_snapshots_gone(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        volume = array.pool.volume("one")
        async with await array.disk(one.target) as disk:
            token = await token_of(disk, 8)
        store = volume.head.store
        for prefix in (TOKEN_PREFIX, OFFLOAD_PREFIX):
            await store.snapshot(volume.head, f"{prefix}left by a crash", hidden=True)
    async with serving(tmp_path / "pool") as array:
        assert array.pool.volume("one").head.store.snapshots() == []
        async with await array.disk(two.target) as disk:
            assert await write_token(disk, token, 8) == (SenseKey.ILLEGAL_REQUEST, 0x2304)


class Gate:
    """Holds the writes of a volume's head."""

    def __init__(self, volume) -> None:
        self.open = asyncio.Event()
        self.reached = asyncio.Event()
        self.writes = self.ended = 0
        head = volume.head
        original = head.write

        async def write(offset, data, *, fua=False):
            self.writes += 1
            self.reached.set()
            await self.open.wait()
            await original(offset, data, fua=fua)
            self.ended += 1

        head.write = write
        head.try_write = lambda _offset, _data: False


async def test_a_lun_that_is_removed_waits_for_the_copies_in_its_name(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        async with await array.disk(one.target) as disk:
            await disk.write(0, b"1" * 4 * MIB)
            token = await token_of(disk, 8192)
        gate = Gate(array.pool.volume("two"))
        async with await array.disk(two.target) as disk:
            assert await write_token(disk, token, 8192, flags=1) == GOOD
            await gate.reached.wait()
        array.registry.subscribe(lambda target, change: gate.open.set())  # when nobody reaches it any more
        await array.api.volume_delete("two", force=True)
        assert (gate.writes, gate.ended) == (1, 1)
        with pytest.raises(NotFound):
            array.pool.volume("two")


async def test_access_that_is_withdrawn_ends_a_copy_in_the_background(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        async with await array.disk(one.target) as disk:
            await disk.write(0, b"1" * 4 * MIB)
            token = await token_of(disk, 8192)
        gate = Gate(array.pool.volume("two"))
        async with await array.disk(two.target) as disk:
            assert await write_token(disk, token, 8192, flags=1) == GOOD
            await gate.reached.wait()
            (unit,) = array.registry.find(two.target).luns.values()
            (operation,) = unit.copy_manager.in_background()
            await array.api.target_access(two.target, add=[OTHER], remove=[])
            gate.open.set()
            await operation.finished.wait()
        assert gate.writes == 1
        assert told(operation.result) == NOT_REACHABLE


@pytest.mark.parametrize("by_token", [True, False], ids=["token", "extended-copy"])
async def test_inside_a_family_no_data_moves(tmp_path, by_token):
    """The file takes no space for the copy, whatever reads it back."""
    size = 64 * MIB
    async with serving(tmp_path / "pool") as array:
        one = await array.api.volume_create("one", size, expose=True)
        await array.api.snapshot_create("one", "empty")
        two = await array.api.clone_create("one", "empty", "two", expose=True)
        async with await array.disk(one.target) as disk:
            for at in range(0, size, MIB):
                await disk.write(at, at.to_bytes(8, "big") * (MIB // 8))
            await disk.flush()
            before = taken(array)
            if by_token:
                token = await token_of(disk, size // 512)
            else:
                cscds = (cscd(int(one.naa, 16)), cscd(int(two.naa, 16)))
                blocks = 32 * MIB // 512 - 128
                segments = [segment(0, 1, blocks, lba, lba) for lba in (0, blocks)]
                data = parameters(*segments, cscds=cscds)
                assert told(await send(disk, f"83 00 {'00' * 8} {len(data):08x} 00 00", data)) == GOOD
                size = 2 * blocks * 512
        async with await array.disk(two.target) as disk:
            if by_token:
                assert await write_token(disk, token, size // 512) == GOOD
            await disk.flush()
            assert taken(array) - before < MIB
            for at in range(0, size - MIB + 1, MIB):
                assert await disk.read(at, MIB) == at.to_bytes(8, "big") * (MIB // 8)


def taken(array) -> int:
    """Bytes that the host's file system has given to the family's file."""
    return array.pool.file_of(array.pool.volume("one")).stat().st_blocks * 512


async def test_a_pause_waits_for_copies_in_the_background(tmp_path):
    async with serving(tmp_path / "pool") as array:
        one, two = await two_disks(array)
        async with await array.disk(one.target) as disk:
            await disk.write(0, b"1" * 4 * MIB)
            token = await token_of(disk, 8192)
        gate = Gate(array.pool.volume("two"))
        async with await array.disk(two.target) as disk:
            assert await write_token(disk, token, 8192, flags=1) == GOOD
            await gate.reached.wait()
            array.registry.subscribe(lambda target, change: gate.open.set())  # when the target is paused
            await array.api.target_pause(two.target)
            assert gate.ended == gate.writes > 1
            (unit,) = array.registry.find(two.target).luns.values()
            assert unit.copy_manager.in_background() == []
