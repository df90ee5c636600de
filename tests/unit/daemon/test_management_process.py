"""The management process where its surroundings fail: what it needs to start, its certificate."""

import asyncio
import socket
from pathlib import Path

import pytest

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
    (tmp_path / certificate.FOLDER).mkdir()
    for name in (certificate.KEY, certificate.CERTIFICATE):
        (tmp_path / certificate.FOLDER / name).write_text("no PEM")
        (tmp_path / certificate.FOLDER / name).chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as kept_by_the_data_process:
        address = kept_by_the_data_process.getsockname()
        server = await wbem.start(tmp_path, None, kept_by_the_data_process.dup(), None)
        try:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(*address)
        finally:
            await server.close()


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
