"""The management process where its surroundings fail: what it needs to start, its certificate."""

import asyncio
import contextlib
import socket
from pathlib import Path

import pytest

from tests.support.engine import opened
from twinvol import certificate, management_process, wbem
from twinvol.management_process import ManagementProcess


async def test_one_that_cannot_be_started_is_tried_again(tmp_path, monkeypatch):
    tries = 0
    again = asyncio.Event()

    async def no_descriptors(*_, **__):
        nonlocal tries
        tries += 1
        if tries == 3:
            again.set()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio, "create_subprocess_exec", no_descriptors)
    monkeypatch.setattr(management_process, "BACKOFF_FIRST_S", 0.001)
    management = ManagementProcess(tmp_path, {})
    management.start()
    await again.wait()
    await management.close()


async def test_nobody_waits_where_tls_cannot_be_served(tmp_path):
    """The data process keeps the listening socket; closing the management process's own is not enough."""
    pool = tmp_path / "pool"
    async with opened(pool) as engine, contextlib.AsyncExitStack() as ending:
        (pool / certificate.FOLDER).mkdir()
        for name in (certificate.KEY, certificate.CERTIFICATE):
            (pool / certificate.FOLDER / name).write_text("no PEM")
            (pool / certificate.FOLDER / name).chmod(0o600)
        kept_by_the_data_process = ending.enter_context(socket.create_server(("127.0.0.1", 0)))
        await wbem.start(ending, pool, engine.api, kept_by_the_data_process.dup(), None)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*kept_by_the_data_process.getsockname())


@pytest.mark.parametrize("steps", range(4))
def test_a_certificate_whose_making_crashed_is_made_at_the_next_start(tmp_path, monkeypatch, steps):
    """The authority's key and certificate appear, then the server's."""
    done = []
    replace = Path.replace

    def crashing(path, target):
        if len(done) == steps:
            raise KeyboardInterrupt
        done.append(replace(path, target))
        return target

    monkeypatch.setattr(Path, "replace", crashing)
    with pytest.raises(KeyboardInterrupt):
        certificate.server_context(tmp_path, "127.0.0.1:0")
    monkeypatch.undo()
    certificate.server_context(tmp_path, "127.0.0.1:0")
