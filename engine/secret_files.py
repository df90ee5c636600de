"""Secrets as files that their owner alone may read; the catalogue names them and never holds them.

A secret's file is written once, under a new name, and never changed: replacing a secret is a new file, then the
catalogue's transaction, then the removal of the old one. A file that no row names was left by a crash in between, and
``sweep`` removes it. Everything here blocks; callers run it in a thread.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
from typing import TYPE_CHECKING

from engine.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied
from engine.files import translate

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

log = logging.getLogger(__name__)

SECRET_FILE_MAX_BYTES = 4096
"""More is no secret, but the wrong file."""

_SUFFIX = ".secret"


def read_secret(path: Path) -> str:
    """The secret in a file as text. Raises as ``read_secret_bytes``, and InvalidArgument when it is not UTF-8."""
    try:
        return read_secret_bytes(path).decode()
    except UnicodeDecodeError:
        raise InvalidArgument(f"secret file {path} is not UTF-8") from None


def read_secret_bytes(path: Path) -> bytes:
    """The secret in a file, without one newline at its end.

    Raises:
        NotFound: there is no such file.
        PermissionDenied: it may not be read, or others than its owner may read it.
        InvalidArgument: it is too long.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_ISREG(mode) and mode & 0o077:
                raise PermissionDenied(
                    f"secret file {path} has mode {stat.S_IMODE(mode):04o}, so others may know it: chmod 600 {path},"
                    " and change the secret if they could read it"
                )
            content = file.read(SECRET_FILE_MAX_BYTES + 1)
    except FileNotFoundError:
        raise NotFound("secret file", str(path)) from None
    except OSError as error:
        raise translate(error, f"reading secret file {path}") from error
    if len(content) > SECRET_FILE_MAX_BYTES:
        raise InvalidArgument(f"{path} has more than {SECRET_FILE_MAX_BYTES} bytes: no secret")
    return content.removesuffix(b"\n").removesuffix(b"\r")


def write_secret(path: Path, secret: str) -> None:
    """Make ``path``, mode 0600, with a secret in it and no newline, which QEMU would take for a part of it; both are
    durable on return.

    Raises:
        AlreadyExists: something is there; nothing is overwritten.
        PermissionDenied, OutOfSpace, MediumError: the host does not take it.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists("file", str(path)) from None
    except OSError as error:
        raise translate(error, f"making secret file {path}") from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(secret.encode())
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise translate(error, f"writing secret file {path}") from error


class SecretFiles:
    """The secrets of a pool, in a folder of mode 0700 that is made when first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, secret: str) -> str:
        """Keep a secret; the name of its file. Durable on return."""
        if not self._folder.exists():
            try:
                self._folder.mkdir(mode=0o700)
                sync_folder(self._folder.parent)
            except OSError as error:
                raise translate(error, f"making {self._folder}") from error
        name = secrets.token_hex(8) + _SUFFIX
        write_secret(self._folder / name, secret)
        return name

    def get(self, name: str) -> str:
        """Raises as ``read_secret``."""
        return read_secret(self._folder / name)

    def remove(self, names: Collection[str]) -> None:
        """Forget secrets that no row names any more. What the host will not remove now, ``sweep`` tries again."""
        for name in names:
            try:
                (self._folder / name).unlink(missing_ok=True)
            except OSError as error:
                log.warning("secret file %s stays for now: %s", name, error)
        with contextlib.suppress(OSError):
            sync_folder(self._folder)

    def sweep(self, known: Collection[str]) -> None:
        """Remove the files that a crash left behind: all but the ``known`` ones."""
        left = [path.name for path in self._folder.glob(f"*{_SUFFIX}") if path.name not in known]
        if left:
            log.info("removing %d secret files that nothing names", len(left))
            self.remove(left)


def sync_folder(folder: Path) -> None:
    """What was made, renamed or removed in it is durable on return. Blocks. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
