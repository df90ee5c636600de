"""A place for a volume file, and the machine's files and threads."""

from pathlib import Path

import pytest

from engine.files import real_env


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "v.tvol"


@pytest.fixture
def env():
    made = real_env()
    yield made
    made.workers.close()
