"""What encryption adds to reads from the page cache and to writes: 4 KiB and 256 KiB, plain and encrypted."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from engine.files import RealFileSystem
from engine.tvol.cipher import EncryptedFile

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_benchmark.fixture import BenchmarkFixture

    from engine.files import BlockFile

SIZE = 4 << 20


@pytest.fixture(params=["plain", "encrypted"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockFile]:
    inner = RealFileSystem().create(tmp_path / "file")
    opened: BlockFile = EncryptedFile(inner, os.urandom(64)) if request.param == "encrypted" else inner
    opened.write((memoryview(bytes(SIZE)),), 0)
    yield opened
    inner.close()


@pytest.mark.parametrize("length", [4096, 262144])
def test_read(benchmark: BenchmarkFixture, file: BlockFile, length: int) -> None:
    view = memoryview(bytearray(length))
    if not file.read_now(view, 3 * length):
        pytest.skip("this file system cannot be read from the page cache alone (tmpfs)")
    assert benchmark(file.read_now, view, 3 * length)
    assert not any(view)


@pytest.mark.parametrize("length", [4096, 262144])
def test_write(benchmark: BenchmarkFixture, file: BlockFile, length: int) -> None:
    benchmark(file.write, (memoryview(bytes(length)),), 3 * length)
