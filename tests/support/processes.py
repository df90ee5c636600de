"""Processes that are nobody's child here, and so cannot be waited for."""

from __future__ import annotations

from pathlib import Path


def has_ended(pid: int) -> bool:
    """Whether no thread of it is left: while one still writes, the first one is a zombie and the files are held."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return len(threads) == 1 and state == "Z"
