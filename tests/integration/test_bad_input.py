"""What a running daemon does with input that makes no sense, and with a host that has nothing left to give.

Every test ends with the same question: does another initiator still get its data, and is the pool still whole?
"""

from __future__ import annotations

import json
import os
import resource
import socket
import struct
import subprocess
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bench.loadgen import OK, TARGET_LOST, Loadgen
from tests.support.daemon import Daemon, twinvol
from tests.support.raw_iscsi import LOGIN_RESPONSE, REJECT, SCSI_COMMAND, RawSession, login_pdu, pdu

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_10, WRITE_10, TEST_UNIT_READY, INQUIRY = 0x28, 0x2A, 0x00, 0x12
GOOD, CHECK_CONDITION = 0x00, 0x02


def iqn(url: str) -> str:
    return url.split("/")[3]


@pytest.fixture
def target(daemon: Daemon) -> Iterator[str]:
    """The IQN of a volume, which still has to answer at the end of the test."""
    name = iqn(daemon.volume("disk", "64M"))
    yield name
    assert daemon.process.poll() is None, "the daemon has ended"
    with RawSession(daemon.portal, source="127.0.0.99").login(name) as session:
        session.ping()
        ready_after_attention(session)
    assert [volume["name"] for volume in daemon.run("volume", "list")["volumes"]] == ["disk"]


def ready_after_attention(session: RawSession) -> None:
    """TEST UNIT READY until it is GOOD; a new nexus may have a unit attention or two to tell first."""
    for _ in range(4):
        if session.command(bytes([TEST_UNIT_READY]))[0] == GOOD:
            return
    pytest.fail("TEST UNIT READY never GOOD")


@pytest.mark.parametrize(
    "garbage",
    [
        b"GET / HTTP/1.1\r\nHost: storage\r\n\r\n" * 4,
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),  # a TLS client hello
        b"\xff" * 480,
        bytes(480),
        pdu(0x40 | 0x03, flags=0x87, data=b"=" * 3000),  # a login whose text has no key
        pdu(0x40 | 0x03, flags=0xFF, data=b"A=B\0"),  # reserved stages
        pdu(SCSI_COMMAND, tail=struct.pack(">III", 512, 1, 0)),  # a command before login
        b"\x43\x87\0\0\0\xff\xff\xff" + bytes(40),  # a login with a data segment of 16 MiB
    ],
    ids=["http", "tls", "ones", "zeroes", "no-key", "stages", "command-first", "16-MiB"],
)
def test_garbage_before_login_ends_that_connection_only(daemon: Daemon, target: str, garbage: bytes):
    with RawSession(daemon.portal) as good, RawSession(daemon.portal) as bad:
        good.login(target)
        bad.send(garbage)
        assert bad.is_closed()
        good.ping()


def test_a_pdu_cut_off_in_its_middle_leaves_nothing_behind(daemon: Daemon, target: str):
    whole = login_pdu(target)
    for length in (1, 20, 47, 48, 60, len(whole) - 1):
        with RawSession(daemon.portal) as cut:
            cut.send(whole[:length])
    command = pdu(SCSI_COMMAND, flags=0xA0, tail=struct.pack(">III", 4096, 1, 1) + write_10(0, 8), data=bytes(4096))
    for length in (47, 48, 1000):
        with RawSession(daemon.portal).login(target) as session:
            session.send(command[:length])
    with RawSession(daemon.portal).login(target) as session:
        ready_after_attention(session)
        status, data = session.command(read_10(0, 8), read_bytes=4096)
        assert (status, data) == (GOOD, bytes(4096)), "half a write took effect"


def test_a_login_byte_by_byte_is_a_login(daemon: Daemon, target: str):
    with RawSession(daemon.portal) as session:
        session.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in login_pdu(target):
            session.send(bytes([byte]))
        answer = session.receive()
        assert (answer.opcode, answer.header[36:38]) == (LOGIN_RESPONSE, b"\0\0")


def test_an_unknown_opcode_is_rejected_and_the_session_goes_on(daemon: Daemon, target: str):
    with RawSession(daemon.portal).login(target) as session:
        bad = pdu(0x40 | 0x1C, itt=0x55, tail=struct.pack(">III", 0, session.cmd_sn, session.exp_stat_sn))
        session.send(bad)
        answer = session.receive()
        assert answer.opcode == REJECT
        assert answer.header[2] in (0x04, 0x05, 0x09)  # protocol error, command not supported, invalid PDU field
        assert answer.data[:48] == bad[:48]  # the header in error comes back, RFC 7143 section 11.17
        session.exp_stat_sn += 1
        session.ping()


def read_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", READ_10, 0, lba, 0, blocks, 0)


def write_10(lba: int, blocks: int) -> bytes:
    return struct.pack(">BBIBHB", WRITE_10, 0, lba, 0, blocks, 0).ljust(16, b"\0")


@pytest.mark.parametrize(
    ("cdb", "key_and_code"),
    [
        (read_10(131072, 1), (0x5, 0x2100)),  # the first block behind the end: LBA out of range
        (read_10(131071, 2), (0x5, 0x2100)),
        (read_10(0xFFFFFFFF, 1), (0x5, 0x2100)),
        (b"\xee", (0x5, 0x2000)),  # no such operation code
    ],
    ids=["behind", "across", "far", "unknown-cdb"],
)
def test_a_cdb_beyond_the_end_or_unknown_gets_its_sense(
    daemon: Daemon, target: str, cdb: bytes, key_and_code: tuple[int, int]
):
    with RawSession(daemon.portal).login(target) as session:
        ready_after_attention(session)
        status, sense = session.command(cdb, read_bytes=512)
        assert status == CHECK_CONDITION
        assert (sense[2] & 0x0F, int.from_bytes(sense[12:14], "big")) == key_and_code
        session.ping()


def test_a_target_that_is_not_there_is_refused_by_name(daemon: Daemon, target: str):
    with RawSession(daemon.portal) as session:
        session.send(login_pdu("iqn.2026-11.org.twinvol:nobody"))
        answer = session.receive()
        assert (answer.opcode, answer.header[36:38]) == (LOGIN_RESPONSE, b"\x02\x03")  # not found
        assert session.is_closed()


def rss_kib(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * (os.sysconf("SC_PAGESIZE") // 1024)


def test_a_thousand_half_open_connections_cost_little_and_stop_nobody(daemon: Daemon, target: str):
    """Each holds half a login request. The session that is there goes on; another address can still log in."""
    half = login_pdu(target)[:40]
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with ExitStack() as stack:
            session = stack.enter_context(RawSession(daemon.portal).login(target))
            before = rss_kib(daemon.process.pid)
            for _ in range(1000):
                with suppress(ConnectionError):  # over the cap of its address: refused, as it should be
                    stack.enter_context(RawSession(daemon.portal)).send(half)
            session.ping()
            grown = rss_kib(daemon.process.pid) - before
            assert grown < 1000 * 8 + 16 * 1024, f"{grown} KiB for 1000 connections"
            with RawSession(daemon.portal, source="127.0.0.2").login(target) as other:
                other.ping()
            ready_after_attention(session)
            assert daemon.run("status")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_second_daemon_on_the_same_pool_says_so_and_touches_nothing(daemon: Daemon, target: str):
    second = twinvol("serve", "--iscsi", "127.0.0.1:0", "--pool", str(daemon.pool), timeout_s=30)
    assert second.returncode == 4, second.stderr
    assert second.stdout == ""
    assert "Traceback" not in second.stderr
    assert str(daemon.pool) in second.stderr
    with RawSession(daemon.portal).login(target) as session:
        session.ping()


def test_a_portal_that_is_taken_is_a_clear_failure(daemon: Daemon, target: str, tmp_path: Path):
    second = twinvol("serve", "--iscsi", daemon.portal, "--pool", str(tmp_path / "other"), timeout_s=30)
    assert second.returncode in (1, 4)
    assert "Traceback" not in second.stderr
    assert daemon.portal.rpartition(":")[2] in second.stderr


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("volume", "create", "Disk", "--size", "1M"), 2),  # an IQN has no capitals
        (("volume", "create", "a" * 65, "--size", "1M"), 2),
        (("volume", "create", "../up", "--size", "1M"), 2),
        (("volume", "create", "odd", "--size", "1000"), 2),  # not whole sectors
        (("volume", "create", "none", "--size", "0"), 2),
        (("volume", "create", "minus", "--size", "-1G"), 2),
        (("volume", "create", "words", "--size", "big"), 2),
        (("volume", "create", "disk", "--size", "1M"), 4),  # exists
        (("volume", "show", "nobody"), 3),
        (("snapshot", "create", "nobody", "s"), 3),
        (("volume", "explode"), 2),
    ],
    ids=lambda value: " ".join(value[2:])[:24] if isinstance(value, tuple) else None,
)
def test_names_and_sizes_that_make_no_sense_get_their_exit_code(
    daemon: Daemon, target: str, arguments: tuple[str, ...], code: int
):
    done = twinvol(*arguments, "--json", "--pool", str(daemon.pool))
    assert done.returncode == code, done.stdout + done.stderr
    assert done.stderr.strip() or json.loads(done.stdout)
    assert "Traceback" not in done.stderr


def test_a_command_without_a_daemon_says_that_it_is_not_reachable(tmp_path: Path):
    done = twinvol("status", "--json", "--pool", str(tmp_path / "nothing"))
    assert done.returncode == 20, done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def fill_until_refused(daemon: Daemon, program: Path, ledger: Path, url: str) -> str:
    """Write until the host has no room; what the initiator was told."""
    filled = Loadgen(program, url, ledger).run("fill")
    assert filled.code == TARGET_LOST, filled.explain()
    verified = Loadgen(program, url, ledger).run("verify")
    assert verified.code == OK, verified.explain()
    return str(filled.figures["failure"])


@pytest.mark.client("loadgen")
def test_a_file_size_limit_of_the_host_is_a_scsi_error_and_loses_nothing(loadgen_program: Path, tmp_path: Path):
    """EFBIG from the host, which needs no privileges to bring about."""
    pool = tmp_path / "pool"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (48 << 20, hard))
    try:
        daemon = Daemon.start(pool)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    with daemon:
        url = daemon.volume("disk", "256M")
        told = fill_until_refused(daemon, loadgen_program, tmp_path / "ledger", url)
        assert told == "sense key 7, asc/ascq 2707"  # DATA PROTECT, SPACE ALLOCATION FAILED WRITE PROTECT
        assert daemon.stop() == 0
    check_and_verify_again(pool, loadgen_program, tmp_path / "ledger", url)


@pytest.mark.client("loadgen")
def test_a_full_disk_is_a_scsi_error_and_space_that_comes_back_is_used(loadgen_program: Path, tmp_path: Path):
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(mount)], capture_output=True, text=True, check=False
    )
    if made.returncode != 0:
        pytest.skip(f"needs a small file system of its own: {made.stderr.strip()}")
    try:
        pool = mount / "pool"
        ballast = mount / "ballast"
        ballast.write_bytes(bytes(16 << 20))
        with Daemon.start(pool) as daemon:
            url = daemon.volume("disk", "256M")
            told = fill_until_refused(daemon, loadgen_program, tmp_path / "ledger", url)
            assert told == "sense key 7, asc/ascq 2707"
            ballast.unlink()
            again = Loadgen(loadgen_program, url, tmp_path / "ledger").run("write", seconds=0.5, span=32 << 20)
            assert again.code == OK, again.explain()
            assert daemon.stop() == 0
        check_and_verify_again(pool, loadgen_program, tmp_path / "ledger", url)
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def check_and_verify_again(pool: Path, program: Path, ledger: Path, url: str) -> None:
    """The file checks clean, and a new daemon reads back everything that was acknowledged."""
    (volume_file,) = pool.rglob("*.tvol")
    checked = twinvol("check", str(volume_file))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with Daemon.start(pool) as daemon:
        new_url = f"iscsi://{daemon.portal}/{url.split('/', 3)[3]}"
        verified = Loadgen(program, new_url, ledger).run("verify")
        assert verified.code == OK, verified.explain()
