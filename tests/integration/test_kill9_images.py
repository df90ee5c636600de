"""``kill -9`` of the daemon in the middle of an import and of an export: the same command goes on, with what was
recorded, and ends with the same root; nothing is left over."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from engine.units import MIB
from tests.integration.test_kill9 import check_files
from tests.support.daemon import Daemon
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from engine.api import EngineApi, JobInfo

SIZE = 128 * MIB


async def killed_in(daemon: Daemon, begin: Callable[[EngineApi], Awaitable[JobInfo]]) -> None:
    """Begin a job, and kill the daemon as soon as its ledger has something."""
    async with open_api(daemon.pool) as api:
        job = await begin(api)
        while not job.done_bytes:
            job = await api.job_wait(job.job, after_version=job.version)
        daemon.kill()
        assert job.state == "Running"


def left_in(folder: Path) -> list[str]:
    return [path.name for path in folder.glob("**/*") if "part" in path.name or path.suffix == ".ledger"]


@pytest.mark.parametrize("image_format", ["vhdx"])
async def test_an_import_and_an_export_go_on_after_kill_9(tmp_path: Path, image_format: str):
    pool, image, out = tmp_path / "pool", tmp_path / "image", tmp_path / "out"
    with image.open("wb") as file:
        file.truncate(2 * SIZE)
        file.write(random.Random(1).randbytes(SIZE))
    with Daemon.start(pool) as daemon:
        await killed_in(daemon, lambda api: api.volume_import(str(image), "v"))
    with Daemon.start(pool) as daemon:
        imported = daemon.run("volume", "import", "v", "--from", str(image))
        await killed_in(daemon, lambda api: api.volume_export("v", None, str(out), format=image_format))
    check_files(pool)
    with Daemon.start(pool) as daemon:
        assert daemon.run("status")["interrupted_exports"] == [str(out)]
        exported = daemon.run("volume", "export", "v", "--to", str(out), "--format", image_format)
        assert exported["root"] == imported["root"]
        again = daemon.run("volume", "import", "again", "--from", str(out))
        assert again["root"] == imported["root"]
        assert daemon.stop() == 0
    assert left_in(tmp_path) == []
    check_files(pool)
