"""Control files on the host."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.control_files import AioControlFiles


def opened(path: Path) -> list[Path]:
    """Descriptors of this process for a file."""
    return [each for each in Path("/proc/self/fd").iterdir() if each.is_symlink() and each.readlink() == path]


@pytest.mark.parametrize("turns", range(6))
async def test_whoever_is_cancelled_leaves_no_file_open(tmp_path, turns):
    ledger = tmp_path / "ledger"
    making = asyncio.ensure_future(AioControlFiles().create(ledger))
    for _ in range(turns):
        await asyncio.sleep(0)
    making.cancel()
    await asyncio.wait([making])
    if not making.cancelled():  # it was there already
        await making.result().close()
    assert not opened(ledger)
