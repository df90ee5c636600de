"""Users of the facade, and what a request proves about who sends it.

A user is a name, a role and the scrypt (RFC 7914) of a password, in one JSON file of mode 0600, replaced as a whole.
``Users`` keeps the ways of the file: it is read again when it has changed, and by others than its owner it is refused.

HTTP Basic sends the password with each request, and one scrypt takes 50 ms and 16 MiB: what was once verified is
recognised by a keyed digest until the file changes. Guesses cost their full price, an unknown name as much as a wrong
password; one is looked at at a time, so that strangers take a core and not all of them from the data process. Whose
turn it is, and who has guessed too often: ``cim_facade.guesses``. A connection on which a password was right goes on
with it while its place is locked out, so that guesses from beside it do not end a manager's work.
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
import logging
import os
import re
import secrets
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cim_facade.guesses import LockedOut, Lockout, Overloaded, Turns, place_of
from engine.errors import AlreadyExists, InvalidArgument, NotFound, PermissionDenied

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

log = logging.getLogger(__name__)

USERS_NAME = "wbem-users.json"
SCHEMA = 1
ROLES = ("admin", "reader")

MAX_USERS = 1000
MAX_FILE_BYTES = 1 << 20
MIN_PASSWORD, MAX_PASSWORD = 8, 256
MAX_RECOGNISED = 256

_COST = {"n": 1 << 14, "r": 8, "p": 1}
_KEY_BYTES = 32
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", re.ASCII)


__all__ = ["LockedOut", "Login", "Overloaded", "Users", "UsersFile", "parse_basic"]


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
        account = _account(name, role, password)
        with self._changing() as accounts:
            if name in accounts:
                raise AlreadyExists("WBEM user", name)
            if len(accounts) >= MAX_USERS:
                raise InvalidArgument(f"there are {MAX_USERS} users already")
            accounts[name] = account

    def set_password(self, name: str, password: str) -> None:
        """Raises NotFound, InvalidArgument."""
        with self._changing() as accounts:
            if name not in accounts:
                raise NotFound("WBEM user", name)
            accounts[name] = _account(name, accounts[name].role, password)

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


@dataclass(slots=True)
class Login:
    """What one connection has proven; made with it. ``address``: where it comes from."""

    address: str = "here"
    proven: bytes = b""


class Users:
    """Verifies what clients send, by the file as it is now."""

    def __init__(self, path: Path, lockout: Lockout | None = None) -> None:
        self._file = UsersFile(path)
        self._version: tuple[int, int, int] | None = None
        self._accounts: dict[str, Account] = {}
        self._key = secrets.token_bytes(32)
        self._recognised: dict[bytes, str] = {}
        self._lockout = lockout or Lockout()
        self._turns = Turns()
        self._under_way: dict[tuple[str, bytes], asyncio.Task[str | None]] = {}
        self._nobody = Account("", "reader", secrets.token_hex(16), secrets.token_hex(_KEY_BYTES), **_COST)

    async def role(self, name: str, password: str, login: Login | None = None) -> str | None:
        """The role of the user who has this password; None: nobody.

        ``login``: the connection's. Raises LockedOut, Overloaded, and as ``UsersFile.read``.
        """
        login = login or Login()
        self._refresh()
        digest = hmac.digest(self._key, f"{name}\0{password}".encode("utf-8", "replace"), "sha256")
        known = self._recognised.get(digest)
        if known is not None and hmac.compare_digest(digest, login.proven):
            return known
        place = place_of(login.address)
        self._lockout.check(place, name)
        if known is None:
            known = await self._verified(name, password, place, digest)
        if known is not None:
            self._lockout.right(place, name)
            login.proven = digest
        return known

    async def _verified(self, name: str, password: str, place: str, digest: bytes) -> str | None:
        """Once for all who ask the same from the same place at the same time: a manager opens several connections."""
        asked = place, digest
        task = self._under_way.get(asked)
        if task is None:
            task = asyncio.get_running_loop().create_task(self._verify(name, password, place, digest))
            self._under_way[asked] = task
            task.add_done_callback(lambda _: self._under_way.pop(asked))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to hear it
        return await asyncio.shield(task)

    async def _verify(self, name: str, password: str, place: str, digest: bytes) -> str | None:
        async with self._turns.of(place):
            account = self._accounts.get(name, self._nobody)
            made = await asyncio.to_thread(_derive, password[:MAX_PASSWORD], bytes.fromhex(account.salt))
        right = hmac.compare_digest(made, bytes.fromhex(account.key)) and len(password) <= MAX_PASSWORD
        if not right:
            seconds = self._lockout.wrong(place, name)
            if seconds:
                log.warning("too many wrong passwords from %s: none is looked at for %.0f s", place, seconds)
            return None
        if self._accounts.get(name) != account:  # it may be another one by now
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
            self._lockout.forget()
            self._accounts = {}  # nobody, if it is not understood
            self._accounts = self._file.read()
            self._version = version


def _account(name: str, role: str, password: str) -> Account:
    if not MIN_PASSWORD <= len(password) <= MAX_PASSWORD:
        raise InvalidArgument(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if _CONTROL.search(password) or any("\ud800" <= each <= "\udfff" for each in password):
        raise InvalidArgument("a password has no control characters, and is UTF-8: no client could send it")
    salt = secrets.token_bytes(16)
    return Account(name, role, salt.hex(), _derive(password, salt).hex(), **_COST)


def parse_basic(header: str) -> tuple[str, str] | None:
    """Name and password of an Authorization header; None: it has none, or control characters in it (RFC 7617 2)."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(token.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return None
    name, colon, password = text.partition(":")
    return (name, password) if colon and not _CONTROL.search(text) else None


def _derive(password: str, salt: bytes) -> bytes:
    return hashlib.scrypt(password.encode(), salt=salt, dklen=_KEY_BYTES, **_COST)
