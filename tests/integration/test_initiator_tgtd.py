"""Our initiator against somebody else's target: tgtd, over one sparse file."""

from __future__ import annotations

import os
import subprocess

import pytest

from bench.targets import tgtd, why_no_tgtd
from iscsi.initiator import (
    ChapCredentials,
    ChapIdentity,
    CommandFailed,
    IscsiUrl,
    LoginRefused,
    TargetNotAuthentic,
    Wishes,
    connect,
    discover,
)
from iscsi.wire.opcodes import LoginStatus
from tests.support.engine import opened
from tests.unit.daemon.test_interchange import done

SIZE = 64 << 20


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory):
    """A tgtd of our own with one disk; tgtd keeps LUN 0 for its controller, so the disk is LUN 1."""
    if reason := why_no_tgtd():
        pytest.skip(reason)
    with tgtd(tmp_path_factory.mktemp("tgtd"), "disk", SIZE, cpu=0) as endpoint:
        yield IscsiUrl.parse(endpoint.url)


@pytest.mark.client("tgtd")
@pytest.mark.parametrize(
    "wishes",
    [
        Wishes(),
        Wishes(header_digest="CRC32C,None", data_digest="CRC32C,None"),
        Wishes(initial_r2t=True, immediate_data=False, max_burst_length=65536, first_burst_length=8192),
        Wishes(max_recv_data_segment_length=4096),
    ],
    ids=["default", "digests if it may", "all solicited", "short segments"],
)
async def test_reads_and_writes(url, wishes):
    async with await connect(url.portal, url.target, url.lun, wishes=wishes) as disk:
        assert disk.size_bytes == SIZE
        data = os.urandom((3 << 20) + 512)
        await disk.write(512, data)
        await disk.flush()
        assert await disk.read(512, len(data)) == data
        await disk.write_zeroes(512, 65536)
        assert await disk.read(0, 131072) == bytes(66048) + data[65536 : 65536 + 65024]


@pytest.mark.client("tgtd")
async def test_discovery_and_refusals(url):
    (found,) = await discover(url.portal)
    assert (found.name, found.addresses) == (url.target, (f"127.0.0.1:{url.port},1",))
    with pytest.raises(LoginRefused):
        await connect(url.portal, url.target + "x")
    with pytest.raises(CommandFailed):
        await connect(url.portal, url.target, 9)
    async with await connect(url.portal, url.target, url.lun) as disk:
        assert url.lun in await disk.report_luns()
        assert (await disk.inquiry()).vendor == "IET"
        outcome = await disk.execute(b"\x88" + SIZE.to_bytes(9, "big") + b"\0\0\0\1\0\0", data_in_length=512)
        assert outcome.status == 2


ALICE, ARRAY = ChapIdentity("alice", b"correct horse 1"), ChapIdentity("array", b"battery staple 2")
WRONG = b"something else 3"


@pytest.fixture(scope="module")
def chap_url(tmp_path_factory: pytest.TempPathFactory):
    """Another, with CHAP for its initiators and a secret of its own."""
    if reason := why_no_tgtd():
        pytest.skip(reason)

    def account(control: str, user: ChapIdentity, *options: str) -> None:
        adm = ["tgtadm", "-C", control, "--lld", "iscsi", "--mode", "account"]
        new = ["--op", "new", "--user", user.name, "--password", user.secret.decode()]
        for command in (new, ["--op", "bind", "--tid", "1", "--user", user.name, *options]):
            subprocess.run([*adm, *command], check=True)

    with tgtd(tmp_path_factory.mktemp("tgtd"), "secret", SIZE, cpu=0) as endpoint:
        account(endpoint.control, ALICE)
        account(endpoint.control, ARRAY, "--outgoing")
        yield IscsiUrl.parse(endpoint.url)


@pytest.mark.client("tgtd")
@pytest.mark.parametrize("target", [None, ARRAY], ids=["one way", "mutual"])
async def test_chap(chap_url, target):
    chap = ChapCredentials(ALICE, target)
    wishes = Wishes(header_digest="CRC32C,None", data_digest="CRC32C,None")
    async with await connect(chap_url.portal, chap_url.target, chap_url.lun, chap=chap, wishes=wishes) as disk:
        await disk.write(0, b"x" * 65536)
        assert await disk.read(0, 65536) == b"x" * 65536


@pytest.mark.client("tgtd")
@pytest.mark.parametrize(
    "chap",
    [None, ChapCredentials(ChapIdentity("alice", WRONG)), ChapCredentials(ChapIdentity("mallory", ALICE.secret))],
    ids=["nobody", "wrong secret", "unknown user"],
)
async def test_chap_refusals(chap_url, chap):
    with pytest.raises(LoginRefused) as refused:
        await connect(chap_url.portal, chap_url.target, chap_url.lun, chap=chap)
    assert refused.value.status == LoginStatus.AUTHENTICATION_FAILURE


@pytest.mark.client("tgtd")
@pytest.mark.parametrize("target", [ChapIdentity("array", WRONG), ChapIdentity("other", ARRAY.secret)])
async def test_a_target_that_cannot_prove_itself(chap_url, target):
    with pytest.raises(TargetNotAuthentic):
        await connect(chap_url.portal, chap_url.target, chap_url.lun, chap=ChapCredentials(ALICE, target))


@pytest.mark.client("tgtd")
async def test_a_disk_of_tgtd_is_imported_as_a_volume(url, tmp_path):
    async with await connect(url.portal, url.target, url.lun) as disk:
        written = {5 << 20: os.urandom(3 << 20), SIZE - 512: os.urandom(512)}
        for offset, data in written.items():
            await disk.write(offset, data)
        content = await disk.read(0, SIZE)
    async with opened(tmp_path / "pool") as engine:
        await done(engine, await engine.api.volume_import(str(url), "v"))
        found = bytearray(SIZE)
        await engine.pool.volume("v").read(0, memoryview(found))
        assert found == content
