"""The HTTP API's secret: a file of mode 0600 in the pool, made at the first start with ``--api``."""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_NAME = "api.token"


def make(pool: Path) -> None:
    """Make the file where it is missing."""
    path = pool / TOKEN_NAME
    if path.exists():
        return
    unfinished = path.with_suffix(".new")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(32) + "\n")
    unfinished.rename(path)


def read(pool: Path) -> str:
    return (pool / TOKEN_NAME).read_text().strip()
