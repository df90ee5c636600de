"""A running daemon and the load generator, as every integration test uses them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from bench import loadgen
from tests.support.daemon import Daemon
from tests.support.ports import free_address

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon on a new pool, stopped at the end of the test."""
    with Daemon.start(tmp_path / "pool", iscsi=free_address()) as running:
        yield running


@pytest.fixture(scope="session")
def loadgen_program() -> Path:
    """The compiled load generator. A test that uses it is marked ``client("loadgen")``."""
    return loadgen.build()
