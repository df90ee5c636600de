"""Encrypted volumes with a real daemon: nothing of the data in the file, no key no volume, a new key, clones."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

import pytest

from iscsi.initiator import IscsiUrl, connect
from tests.support.daemon import CommandFailed, Daemon

if TYPE_CHECKING:
    from pathlib import Path

MARK = b"what nobody may read, 512 bytes of it. "
DATA = (MARK * 2000)[:65536]


def write_and_flush(url: str) -> None:
    async def work() -> None:
        at = IscsiUrl.parse(url)
        async with await connect((at.host, at.port), at.target, at.lun) as disk:
            await disk.write(4096, DATA)
            await disk.flush()

    asyncio.run(work())


def read(url: str) -> bytes:
    async def work() -> bytes:
        at = IscsiUrl.parse(url)
        async with await connect((at.host, at.port), at.target, at.lun) as disk:
            return await disk.read(4096, len(DATA))

    return asyncio.run(work())


def new_key(path: Path) -> Path:
    path.touch(0o600)
    path.write_bytes(os.urandom(32))
    return path


def is_in_files_of(pool: Path, text: bytes) -> bool:
    return any(text in path.read_bytes() for path in pool.rglob("*") if path.is_file())


def test_no_key_no_volume_and_another_key(tmp_path: Path):
    pool, key = tmp_path / "pool", new_key(tmp_path / "key")
    with Daemon.start(pool) as daemon:
        daemon.volume("open", "1M")
        write_and_flush(daemon.volume("secret", "8M", "--key-file", str(key)))
        assert daemon.run("volume", "show", "secret")["encryption"] == f"file:{key}"
        assert daemon.run("volume", "show", "open")["encryption"] is None
        daemon.stop()
    assert not is_in_files_of(pool, MARK)
    assert not is_in_files_of(pool, key.read_bytes())
    hidden = key.rename(tmp_path / "elsewhere")
    with Daemon.start(pool) as daemon:
        shown = daemon.run("volume", "show", "secret")
        assert (shown["state"], str(key) in shown["reason"]) == ("locked", True)
        with pytest.raises(CommandFailed) as refused:
            daemon.run("snapshot", "create", "secret", "now")
        assert (refused.value.code, str(key) in refused.value.stderr) == (7, True)
        assert daemon.run("volume", "show", "open")["state"] == "ok"
        daemon.stop()
    hidden.rename(key)
    other = new_key(tmp_path / "other")
    with Daemon.start(pool) as daemon:
        assert read(daemon.url(daemon.run("volume", "show", "secret"))) == DATA
        assert daemon.run("volume", "rekey", "secret", "--key-file", str(other))["encryption"] == f"file:{other}"
        daemon.kill()
    key.unlink()
    with Daemon.start(pool) as daemon:
        assert read(daemon.url(daemon.run("volume", "show", "secret"))) == DATA


def test_clones_of_an_encrypted_volume_are_encrypted_too(tmp_path: Path):
    pool, key = tmp_path / "pool", new_key(tmp_path / "key")
    with Daemon.start(pool) as daemon:
        write_and_flush(daemon.volume("secret", "8M", "--key-file", str(key)))
        daemon.run("snapshot", "create", "secret", "point")
        linked = daemon.run("clone", "create", "secret@point", "linked", "--expose")
        full = daemon.run("clone", "create", "secret@point", "full", "--full", "--expose")
        assert read(daemon.url(linked)) == read(daemon.url(full)) == DATA
        shown = daemon.run("volume", "show", "full")
        assert shown["encryption"] == f"file:{key}"
        assert shown["file"] != daemon.run("volume", "show", "secret")["file"]
        daemon.stop()
    assert not is_in_files_of(pool, MARK)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--key-file", "/nowhere/key"], 3),
        (["--key-credential", "name"], 6),
        (["--key-credential", "../name"], 2),
        (["--key-file", "/a", "--key-credential", "b"], 2),
    ],
    ids=["no file", "no credentials", "no name", "both"],
)
def test_a_key_that_is_not_there_makes_no_volume(daemon: Daemon, options: list[str], code: int):
    with pytest.raises(CommandFailed) as refused:
        daemon.run("volume", "create", "secret", "--size", "8M", *options)
    assert refused.value.code == code
    assert daemon.run("volume", "list")["volumes"] == []
