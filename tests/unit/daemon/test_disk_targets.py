"""Mirrors to LUNs of elsewhere: a target beside the pool that goes, comes back, wants CHAP, is full, is reset."""

from __future__ import annotations

import asyncio
import os
import random
import stat
from contextlib import asynccontextmanager

import pytest

from engine.api import MirrorTerms
from engine.errors import InvalidArgument, NotFound, NotSupported, OutOfSpace, PermissionDenied
from engine.mirror_terms import USUAL
from engine.stores import ExtentState
from engine.units import MIB
from iscsi.chap import ChapAccess, ChapIdentity
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.scsi.sense import Asc
from iscsi.server import IscsiServer
from tests.support.engine import opened
from tests.support.iscsi_link import TARGET, make_registry
from tests.support.memory_device import MemoryDevice
from twinvol.remote_disks import MirrorDisks

SIZE = 6 * MIB
SECRET, OWN = "correct horse 1", "battery staple 2"


class Array:
    """Somebody else's target with one LUN, a little larger than the volume. Its address stays."""

    def __init__(self, size: int = SIZE + MIB, *, naa: int = 0x3123456789ABCDEF) -> None:
        self.device = MemoryDevice(size, fast=True)
        self.device.data[:] = random.Random(1).randbytes(size)
        self.device.states[:] = [ExtentState.DATA] * len(self.device.states)
        self.naa = naa
        self.port = 0
        self.chap: ChapAccess | None = None
        self.server: IscsiServer | None = None

    async def start(self) -> None:
        self.unit = LogicalUnit(self.device, LunIdentity(serial="elsewhere", naa=self.naa))
        registry = make_registry(self.unit)
        target = registry.find(TARGET)
        assert target is not None
        target.chap = self.chap
        self.server = IscsiServer(registry)
        ((_, self.port),) = await self.server.start([("127.0.0.1", self.port)])

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(graceful=False)
            self.server = None

    def scribble(self, offset: int) -> None:
        """As its owner may, of whom we hear nothing."""
        self.device.data[offset] ^= 0xFF
        self.device.states[offset // 512] = ExtentState.DATA

    def url(self, user: str = "") -> str:
        return f"iscsi://{user}127.0.0.1:{self.port}/{TARGET}/0"


@asynccontextmanager
async def an_array(**options):
    array = Array(**options)
    await array.start()
    try:
        yield array
    finally:
        await array.stop()


async def done(engine, job):
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    assert job.state == "Completed", job.message
    return job


async def is_in(engine, *states: str):
    while (info := await engine.api.replica_show("r")).copy_state not in states:  # noqa: ASYNC110 - goes by itself
        await asyncio.sleep(0.02)
    return info


async def a_volume(engine) -> None:
    await engine.api.volume_create("v", SIZE)
    await engine.pool.volume("v").write(MIB, memoryview(os.urandom(2 * MIB)))


async def content(engine) -> bytearray:
    data = bytearray(SIZE)
    await engine.pool.volume("v").read(0, memoryview(data))
    return data


async def attach(engine, array, mode: str = "sync", *, secret: str | None = None, **terms):
    return await done(
        engine, await engine.api.replica_attach("v", array.url(), MirrorTerms(mode, **terms), name="r", secret=secret)
    )


async def write_somewhere(engine, count: int = 20) -> None:
    volume, rng = engine.pool.volume("v"), random.Random()
    for _ in range(count):
        await volume.write(rng.randrange(SIZE // 512) * 512, memoryview(os.urandom(512)))


async def test_everything_that_is_written_is_at_the_disk_and_nothing_beyond_the_volume(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        beyond = bytes(array.device.data[SIZE:])
        await a_volume(engine)
        await attach(engine, array)
        await write_somewhere(engine)
        volume = engine.pool.volume("v")
        await volume.discard(2 * MIB, 65536)
        await volume.write_zeroes(0, 4096)
        await volume.write(4096, memoryview(b"x" * 4096), fua=True)
        await volume.flush()
        assert array.device.data[:SIZE] == await content(engine)
        assert array.device.data[SIZE:] == beyond
        info = await engine.api.replica_show("r")
        assert (info.target, info.copy_state, info.exact, info.points) == (array.url(), "Synchronized", True, 0)
        assert info.target_consistent
        assert await engine.api.replica_points("r") == []
        with pytest.raises(NotFound):
            await engine.api.replica_expose("r")
        with pytest.raises(NotSupported):
            await engine.api.replica_promote("r")
        job = await done(engine, await engine.api.replica_verify("r"))
        assert (job.result["identical"], job.result["unverified_bytes"]) == (True, 0)
        await engine.api.replica_detach("r")
        assert not list((tmp_path / "pool" / "ledgers").iterdir())
        await write_somewhere(engine)
        assert array.device.data[:SIZE] != await content(engine)


async def test_after_an_interruption_only_what_changed_is_looked_at(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        volume = engine.pool.volume("v")
        await volume.write(0, memoryview(b"before it went " * 1024)[:4096])
        await array.stop()
        await volume.write(65536, memoryview(b"while it is away" * 256))  # the host hears nothing of it
        assert (await is_in(engine, "Broken")).next_action
        written = (await engine.api.replica_show("r")).written_bytes
        array.device.calls.clear()
        await array.start()
        info = await is_in(engine, "Synchronized")
        assert array.device.data[:SIZE] == await content(engine)
        assert 0 < info.written_bytes - written <= 65536
        # The regions of 4 MiB that were written to since, and nothing of the rest.
        assert all(offset < 4 * MIB for name, offset, _ in array.device.calls if name in ("read", "write"))


@pytest.mark.parametrize("mode", ["sync", "async"])
async def test_a_restart_goes_on_by_the_log(tmp_path, mode):
    options = {"rpo_s": 1.0} if mode == "async" else {}
    async with an_array() as array:
        async with opened(tmp_path / "pool") as engine:
            await a_volume(engine)
            await attach(engine, array, mode, **options)
            await write_somewhere(engine)
        array.device.calls.clear()
        async with opened(tmp_path / "pool") as engine:
            await is_in(engine, "Synchronized")
            await write_somewhere(engine)
            await done(engine, await engine.api.replica_resync("r")) if mode == "async" else None
            while array.device.data[:SIZE] != await content(engine):  # noqa: ASYNC110 - as far as its RPO lets it
                await asyncio.sleep(0.02)
            info = await engine.api.replica_show("r")
            assert info.identical_bytes + info.written_bytes < SIZE


async def test_what_was_written_to_a_fractured_disk_is_found(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        await engine.api.replica_fracture("r")
        array.scribble(5 * MIB)
        with pytest.raises(AssertionError):
            await done(engine, await engine.api.replica_verify("r"))
        await done(engine, await engine.api.replica_resync("r"))
        assert array.device.data[:SIZE] == await content(engine)


async def test_a_pause_is_no_fracture(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        await engine.api.replica_pause("r")
        await write_somewhere(engine, 1)
        await done(engine, await engine.api.replica_resume("r"))
        assert array.device.data[:SIZE] == await content(engine)
        assert (await engine.api.replica_show("r")).identical_bytes < 4 * MIB


async def test_chap_in_both_directions_and_what_is_kept_of_it(tmp_path):
    async with an_array() as array:
        await array.stop()
        array.chap = ChapAccess({"alice": SECRET.encode()}, ChapIdentity("array", OWN.encode()))
        await array.start()
        secrets = {"secret": SECRET, "mutual_user": "array", "mutual_secret": OWN}
        async with opened(tmp_path / "pool") as engine:
            await a_volume(engine)
            for wrong in (secrets | {"secret": "quite another 3"}, secrets | {"mutual_secret": "quite another 3"}):
                with pytest.raises(PermissionDenied):
                    await engine.api.replica_attach("v", array.url("alice@"), name="r", **wrong)
            assert not list((tmp_path / "pool" / "secrets").iterdir())
            job = await engine.api.replica_attach("v", array.url("alice@"), name="r", **secrets)
            await done(engine, job)
            info = await engine.api.replica_show("r")
            assert info.target == array.url("alice@")
            assert SECRET not in repr(info) + repr(await engine.api.event_list(100))
        files = list((tmp_path / "pool" / "secrets").iterdir())
        assert {path.read_text() for path in files} == {SECRET, OWN}
        assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o600}
        assert SECRET.encode() not in (tmp_path / "pool" / "catalog.sqlite").read_bytes()
        async with opened(tmp_path / "pool") as engine:
            await is_in(engine, "Synchronized")
            await engine.api.replica_detach("r")
            assert not list((tmp_path / "pool" / "secrets").iterdir())


async def test_another_disk_in_its_place_is_not_written(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        await array.stop()
        array.naa += 1
        array.device.data[:] = before = random.Random(2).randbytes(len(array.device.data))
        await write_somewhere(engine)
        await is_in(engine, "Broken")
        await array.start()
        while "another disk" not in (await engine.api.replica_show("r")).reason:  # noqa: ASYNC110 - tries by itself
            await asyncio.sleep(0.02)
        assert array.device.data == before


async def test_a_disk_of_another_size_is_compared_whole(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        await array.stop()
        array.device.resize(SIZE + 3 * MIB)
        array.scribble(5 * MIB)
        await array.start()
        await is_in(engine, "Broken")
        await is_in(engine, "Synchronized")
        assert array.device.data[:SIZE] == await content(engine)


async def test_a_full_disk_breaks_the_mirror_and_not_the_source(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        array.device.fast = False
        array.device.errors["write"] = OutOfSpace("the array is full")
        await write_somewhere(engine)
        info = await is_in(engine, "Broken")
        assert "27h/07h" in info.reason
        del array.device.errors["write"]
        await is_in(engine, "Synchronized")
        assert array.device.data[:SIZE] == await content(engine)


async def test_rot_at_the_disk_is_found_by_verify(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        array.scribble(MIB + 5)
        job = await engine.api.replica_verify("r")
        while job.finished_at is None:
            job = await engine.api.job_wait(job.job, after_version=job.version)
        assert job.state == "Exception"
        assert (await engine.api.replica_show("r")).copy_state == "Broken"
        await done(engine, await engine.api.replica_resync("r"))
        assert array.device.data[:SIZE] == await content(engine)


async def test_a_resized_source_and_its_disk(tmp_path):
    async with an_array(size=4 * SIZE) as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        for size in (SIZE - MIB, SIZE + 2 * MIB):
            await engine.api.volume_resize("v", size, shrink=True)
            await is_in(engine, "Synchronized")
        data = bytearray(SIZE + 2 * MIB)
        await engine.pool.volume("v").read(0, memoryview(data))
        assert array.device.data[: len(data)] == data
        await engine.api.volume_resize("v", 5 * SIZE)
        assert "enlarge it there" in (await is_in(engine, "Broken")).reason


async def test_the_look_at_a_disk_is_the_connection_that_the_mirror_begins_with(tmp_path, monkeypatch):
    opened_for_writing = []
    plain_open = MirrorDisks.open

    async def counted(self, *, writing):
        opened_for_writing.append(writing)
        return await plain_open(self, writing=writing)

    monkeypatch.setattr(MirrorDisks, "open", counted)
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        assert opened_for_writing == [True]


async def test_refusals(tmp_path):
    async with an_array(size=SIZE) as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        url = array.url()
        for error, target, terms, options in (
            (InvalidArgument, url, USUAL, {}),  # no name
            (InvalidArgument, "iscsi://somewhere", USUAL, {"name": "r"}),
            (InvalidArgument, array.url("alice%secretsecret@"), USUAL, {"name": "r"}),
            (InvalidArgument, url, USUAL, {"name": "r", "secret": SECRET}),
            (InvalidArgument, array.url("alice@"), USUAL, {"name": "r"}),
            (InvalidArgument, url, USUAL, {"name": "r", "mutual_user": "x"}),
            (NotSupported, url, MirrorTerms("adaptive"), {"name": "r"}),
            (NotSupported, url, MirrorTerms("async", points=3), {"name": "r"}),
            (InvalidArgument, "v", USUAL, {"name": "r", "secret": SECRET}),
        ):
            with pytest.raises(error) as refused:
                await engine.api.replica_attach("v", target, terms, **options)
            assert "secretsecret" not in str(refused.value)
        await engine.api.volume_create("larger", SIZE + 512)
        with pytest.raises(InvalidArgument):
            await engine.api.replica_attach("larger", url, name="r")
        while array.server.sessions():  # noqa: ASYNC110 - the array hears of it in a moment
            await asyncio.sleep(0.01)
        await array.stop()
        array.naa = engine.pool.volume("v").identity.naa
        await array.start()
        with pytest.raises(InvalidArgument, match="by that name"):
            await engine.api.replica_attach("v", url, name="r")
        assert await engine.api.replica_list() == []


async def test_a_disk_that_was_reset_begins_a_round(tmp_path):
    async with an_array() as array, opened(tmp_path / "pool") as engine:
        await a_volume(engine)
        await attach(engine, array)
        rounds = (await engine.api.replica_show("r")).rounds
        array.unit.establish_unit_attention(Asc.POWER_ON_OCCURRED)
        await write_somewhere(engine, 1)
        assert "was reset" in (await is_in(engine, "Broken")).reason
        await is_in(engine, "Synchronized")
        assert (await engine.api.replica_show("r")).rounds == rounds + 1
        assert array.device.data[:SIZE] == await content(engine)
