"""Users of the facade, and what a request proves about who sends it.

A user is a name, a role and the scrypt (RFC 7914) of a password, in one JSON file of mode 0600, replaced as a whole.
``Users`` keeps the ways of the file: it is read again when it has changed, and by others than its owner it is refused.

HTTP Basic sends the password with each request, and one scrypt takes 50 ms and 16 MiB: what was once verified is
recognised by a keyed digest until the file changes. Guesses cost their full price, an unknown name as much as a wrong
password, and only ``MAX_VERIFYING`` is looked at at a time; who comes when ``MAX_WAITING`` wait is told to come again.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

USERS_NAME = "wbem-users.json"
SCHEMA = 1
ROLES = ("admin", "reader")

MAX_USERS = 1000
MAX_FILE_BYTES = 1 << 20
MIN_PASSWORD, MAX_PASSWORD = 8, 256
MAX_VERIFYING = 1
"""Strangers' guesses take a core, not all of them from the data process."""

MAX_WAITING = 32
MAX_RECOGNISED = 256

_COST = {"n": 1 << 14, "r": 8, "p": 1}
_KEY_BYTES = 32
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


class Overloaded(Exception):
    """More passwords wait to be verified than are looked at: come again later."""


@dataclass(frozen=True, slots=True)
class Account:
    """``salt`` and ``key`` are hexadecimal."""

    name: str
    role: str
    salt: str
    key: str
    n: int
    r: int
    p: int


class UsersFile:
    """The file; blocking. Raises PermissionDenied: others may read it; InvalidArgument: it is not understood."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> dict[str, Account]:
        try:
            with self.path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                content = file.read(MAX_FILE_BYTES + 1)
        except FileNotFoundError:
            return {}
        if mode & 0o077:
            raise PermissionDenied(
                f"{self.path} has mode {stat.S_IMODE(mode):04o}; others may read it: chmod 600 it, and change passwords"
            )
        try:
            document = json.loads(content)
            if document["schema"] != SCHEMA or len(content) > MAX_FILE_BYTES:
                raise ValueError("of another version, or too long")
            accounts = [Account(**fields) for fields in document["users"]]
            for each in accounts:
                bytes.fromhex(each.salt), bytes.fromhex(each.key)
                if each.role not in ROLES or {"n": each.n, "r": each.r, "p": each.p} != _COST:
                    raise ValueError(f"user {each.name}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise InvalidArgument(f"{self.path} is not understood: {error}") from error
        return {each.name: each for each in accounts}

    def add(self, name: str, role: str, password: str) -> None:
        """Raises AlreadyExists, InvalidArgument: a name, role or password that may not be."""
        if not _NAME.fullmatch(name):
            raise InvalidArgument("a user's name is 1-64 of letters, digits and ._@-, beginning with a letter or digit")
        if role not in ROLES:
            raise InvalidArgument(f"a role is one of {', '.join(ROLES)}")
        if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
            raise InvalidArgument(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
        salt = secrets.token_bytes(16)
        account = Account(name, role, salt.hex(), _derive(password, salt).hex(), **_COST)
        with self._changing() as accounts:
            if name in accounts:
                raise AlreadyExists("WBEM user", name)
            if len(accounts) >= MAX_USERS:
                raise InvalidArgument(f"there are {MAX_USERS} users already")
            accounts[name] = account

    def remove(self, name: str) -> None:
        """Raises NotFound."""
        with self._changing() as accounts:
            if name not in accounts:
                raise NotFound("WBEM user", name)
            del accounts[name]

    @contextlib.contextmanager
    def _changing(self) -> Iterator[dict[str, Account]]:
        """The accounts to change; written as a whole behind the block, durably, one changer after the other."""
        guard = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(guard, fcntl.LOCK_EX)
            accounts = self.read()
            yield accounts
            fields = [{name: getattr(each, name) for name in Account.__slots__} for each in accounts.values()]
            unfinished = self.path.with_suffix(".new")
            descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "w") as file:
                json.dump({"schema": SCHEMA, "users": fields}, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            unfinished.replace(self.path)
            os.fsync(guard)
        finally:
            os.close(guard)


class Users:
    """Verifies what clients send, by the file as it is now."""

    def __init__(self, path: Path) -> None:
        self._file = UsersFile(path)
        self._version: tuple[int, int, int] | None = None
        self._accounts: dict[str, Account] = {}
        self._key = secrets.token_bytes(32)
        self._recognised: dict[bytes, str] = {}
        self._verifying = asyncio.Semaphore(MAX_VERIFYING)
        self._waiting = 0
        self._nobody = Account("", "reader", secrets.token_hex(16), secrets.token_hex(_KEY_BYTES), **_COST)

    async def role(self, name: str, password: str) -> str | None:
        """The role of the user who has this password; None: nobody. Raises Overloaded, and as ``UsersFile.read``."""
        self._refresh()
        digest = hmac.digest(self._key, f"{name}\0{password}".encode("utf-8", "replace"), "sha256")
        known = self._recognised.get(digest)
        if known is not None:
            return known
        if self._waiting >= MAX_WAITING:
            raise Overloaded
        self._waiting += 1
        try:
            async with self._verifying:
                account = self._accounts.get(name, self._nobody)
                made = await asyncio.to_thread(_derive, password[:MAX_PASSWORD], bytes.fromhex(account.salt))
        finally:
            self._waiting -= 1
        right = hmac.compare_digest(made, bytes.fromhex(account.key)) and len(password) <= MAX_PASSWORD
        if not right or self._accounts.get(name) != account:  # it may be another one by now
            return None
        if len(self._recognised) >= MAX_RECOGNISED:
            self._recognised.clear()
        self._recognised[digest] = account.role
        return account.role

    def _refresh(self) -> None:
        try:
            found = self._file.path.stat()
            version = (found.st_mtime_ns, found.st_ino, found.st_size)
        except FileNotFoundError:
            version = (0, 0, 0)
        if version != self._version:
            self._recognised.clear()
            self._accounts = {}  # nobody, if it is not understood
            self._accounts = self._file.read()
            self._version = version


def parse_basic(header: str) -> tuple[str, str] | None:
    """Name and password of an Authorization header (RFC 7617); None: it has none."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(token.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon else None


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, dklen=_KEY_BYTES, **_COST)
