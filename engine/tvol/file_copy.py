"""A copy of a closed volume file: sparse, durable, sharing blocks where the host can. In a worker."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from engine.errors import InUse
from engine.files import translate

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_FICLONE = 0x40049409
_COPY_BYTES = 8 << 20


def copy_file(path: Path, copy: Path, report: Callable[[int, int], None] | None = None) -> None:
    """Make ``copy``, which must not exist, of ``path``. ``report`` takes (bytes copied, bytes in all) now and then.

    Raises NotFound, InUse: somebody writes to it; AlreadyExists, OutOfSpace, PermissionDenied, MediumError.
    """
    made = False
    try:
        with path.open("rb") as source:
            try:
                fcntl.flock(source, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InUse(f"{path} is open in another process, or in this pool") from None
            with copy.open("xb") as target:
                made = True
                copy.chmod(0o600)
                try:
                    fcntl.ioctl(target, _FICLONE, source.fileno())
                except OSError:
                    _copy_data(source.fileno(), target.fileno(), report)
                os.fsync(target.fileno())
    except OSError as error:
        if made:
            copy.unlink(missing_ok=True)
        raise translate(error, f"copying {path}") from error


def _copy_data(source: int, target: int, report: Callable[[int, int], None] | None) -> None:
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    at = 0
    while at < size:
        try:
            at = os.lseek(source, at, os.SEEK_DATA)
        except OSError:
            return  # a hole up to the end
        end = os.lseek(source, at, os.SEEK_HOLE)
        while at < end:
            data = os.pread(source, min(_COPY_BYTES, end - at), at)
            if not data:
                raise OSError(errno.EIO, "it has become shorter meanwhile")
            at += os.pwrite(target, data, at)
            if report is not None:
                report(at, size)
