"""Who must prove who they are: CHAP users and secrets of targets, and of discovery, which belongs to no target.

The catalogue has the names and which file holds each secret (``secret_files``); secrets are read at start and kept in
memory, since a login must not wait for a disk. A target with any row requires CHAP, also when a secret cannot be read:
its user is then locked out, nobody is let in.

RFC 7143 section 9.2.1: a secret that proves a target to initiators may prove no initiator anywhere, and the reverse.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from engine.catalog import ChapRow
from engine.errors import EngineError, InvalidArgument, NotFound
from engine.secret_files import SecretFiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engine.api import ChapInfo
    from engine.catalog import Catalog

log = logging.getLogger(__name__)

SECRETS_NAME = "secrets"
"""The folder within a pool."""

MAX_USERS = 64
"""CHAP users of one target; each is a host, or a cluster of them."""

MAX_USER_BYTES = 255
"""A text-value of RFC 7143 section 6.1; open-iscsi and ESXi take as many."""

MIN_SECRET_BYTES = 12
"""96 bits, below which RFC 7143 section 9.2.1 wants IPsec; Windows refuses shorter ones, too."""

MAX_SECRET_BYTES = 255
"""What open-iscsi and ESXi take at most. Windows takes 16."""


@dataclass(frozen=True, slots=True)
class ChapSecrets:
    """What a login is checked against: ``users`` by name, and the target's own name and secret for mutual CHAP."""

    users: Mapping[str, str] = field(repr=False)
    mutual: tuple[str, str] | None = field(repr=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A row with its secret; None if it could not be read, for the reason ``why``."""

    row: ChapRow
    secret: str | None = field(repr=False)
    why: str = ""


def check_user(name: str) -> str:
    """``name`` when a CHAP user may have it."""
    if not 1 <= len(name.encode()) <= MAX_USER_BYTES or not name.isprintable() or name != name.strip():
        raise InvalidArgument(
            f"{name!r} is no CHAP user name: 1-{MAX_USER_BYTES} bytes of printable text without blanks around it"
        )
    return name


def check_secret(secret: str) -> str:
    """``secret`` when it may be one. The error does not contain it."""
    if not secret.isprintable() or secret != secret.strip():
        raise InvalidArgument("a CHAP secret is one line of printable text without blanks around it")
    size = len(secret.encode())
    if not MIN_SECRET_BYTES <= size <= MAX_SECRET_BYTES:
        raise InvalidArgument(
            f"a CHAP secret has {MIN_SECRET_BYTES}-{MAX_SECRET_BYTES} bytes (12-16 for Windows initiators); this has"
            f" {size}. twinvol target chap generate FILE makes a good one"
        )
    return secret


class ChapUsers:
    """See the module. Keys are target names; None is discovery. The caller has at most one change under way."""

    def __init__(self, pool: Path, catalog: Catalog) -> None:
        self._catalog = catalog
        self._files = SecretFiles(pool / SECRETS_NAME)
        self._entries: dict[str | None, list[_Entry]] = {}

    async def restore(self) -> None:
        """Read what the catalogue names, and remove what it does not."""
        rows = await self._catalog.chap()
        disks = {
            file for mirror in await self._catalog.mirrors() if mirror.disk is not None for file in mirror.disk.files
        }
        await asyncio.to_thread(self._files.sweep, {row.file for row in rows} | disks)
        for row in rows:
            try:
                entry = _Entry(row, check_secret(await asyncio.to_thread(self._files.get, row.file)))
            except EngineError as error:
                log.error("CHAP %s of %s is locked out: %s", row.user, _owner(row.target), error)
                entry = _Entry(row, None, str(error))
            self._entries.setdefault(row.target, []).append(entry)

    def info(self, target: str | None) -> ChapInfo:
        from engine.api import ChapInfo  # late: see there

        entries = self._entries.get(target, [])
        return ChapInfo(
            required=bool(entries),
            users=[entry.row.user for entry in entries if not entry.row.mutual],
            mutual_user=next((entry.row.user for entry in entries if entry.row.mutual), None),
            reasons=[f"{entry.row.user} is locked out: {entry.why}" for entry in entries if entry.secret is None],
        )

    def reasons(self) -> list[str]:
        """One line for each user whose secret cannot be used."""
        return [f"CHAP of {_owner(target)}: {why}" for target in self._entries for why in self.info(target).reasons]

    def secrets(self, target: str | None) -> ChapSecrets | None:
        """What logins are to be checked against; None where CHAP is not required."""
        entries = self._entries.get(target, [])
        if not entries:
            return None
        usable = {(entry.row.mutual, entry.row.user): entry.secret for entry in entries if entry.secret is not None}
        users = {user: secret for (mutual, user), secret in usable.items() if not mutual}
        return ChapSecrets(users, next(((user, secret) for (mutual, user), secret in usable.items() if mutual), None))

    async def set(self, target: str | None, user: tuple[str, str] | None, mutual: tuple[str, str] | None) -> None:
        """Add or replace a user, and what proves the target itself; each a name and a secret. Durable on return."""
        new = [
            _Entry(ChapRow(target, check_user(name), "", mutual=is_mutual), check_secret(secret))
            for pair, is_mutual in ((user, False), (mutual, True))
            if pair is not None
            for name, secret in (pair,)
        ]
        if not new:
            raise InvalidArgument("name a user and a secret, or a mutual user and a mutual secret")
        old = self._entries.get(target, [])
        kept = [entry for entry in old if not any(_replaces(each.row, entry.row) for each in new)]
        entries = sorted([*kept, *new], key=lambda entry: (entry.row.mutual, entry.row.user))
        users = sum(not entry.row.mutual for entry in entries)
        if not users:
            raise InvalidArgument("mutual CHAP needs a user that initiators log in as; name one, too")
        if users > MAX_USERS:
            raise InvalidArgument(f"{_owner(target)} has {MAX_USERS} CHAP users already")
        self._require_one_direction(target, entries)
        # Should the catalogue fail, the next start sweeps the new files; whether it has taken them is not known before.
        await self._replace(target, [entry if entry.row.file else await self._stored(entry) for entry in entries])

    async def remove(self, target: str | None, user: str | None, *, mutual: bool) -> None:
        """Remove a user, or the mutual secret, or (with neither named) all: nobody needs CHAP then."""
        entries = self._entries.get(target, [])
        if not entries:
            raise NotFound("CHAP", _owner(target))
        gone = [entry for entry in entries if (user is None and not mutual) or _is_named(entry.row, user, mutual)]
        wanted = [name for name in (user, "the mutual user" if mutual else None) if name is not None]
        if len(gone) < len(wanted):
            raise NotFound("CHAP user", f"{' or '.join(wanted)} of {_owner(target)}")
        left = [entry for entry in entries if entry not in gone]
        if user is not None and not any(not entry.row.mutual for entry in left):
            raise InvalidArgument(
                f"{user} is the last CHAP user of {_owner(target)}, which would admit everybody without; remove all"
                " of its CHAP if that is meant"
            )
        await self._replace(target, left)

    async def forget(self, target: str) -> None:
        """The target is deleted, and its rows with it."""
        entries = self._entries.pop(target, [])
        await asyncio.to_thread(self._files.remove, [entry.row.file for entry in entries])

    async def _stored(self, entry: _Entry) -> _Entry:
        assert entry.secret is not None
        file = await asyncio.to_thread(self._files.put, entry.secret)
        return _Entry(ChapRow(entry.row.target, entry.row.user, file, mutual=entry.row.mutual), entry.secret)

    async def _replace(self, target: str | None, entries: list[_Entry]) -> None:
        old = self._entries.get(target, [])
        await self._catalog.set_chap(target, [entry.row for entry in entries])
        if entries:
            self._entries[target] = entries
        else:
            del self._entries[target]
        named = {entry.row.file for entry in entries}
        await asyncio.to_thread(self._files.remove, [each.row.file for each in old if each.row.file not in named])

    def _require_one_direction(self, target: str | None, entries: Sequence[_Entry]) -> None:
        """Raises InvalidArgument: some secret would prove a target and an initiator."""
        everywhere = [*entries, *(e for other, held in self._entries.items() if other != target for e in held)]
        mutual = {entry.secret for entry in everywhere if entry.row.mutual} - {None}
        if any(entry.secret in mutual for entry in everywhere if not entry.row.mutual):
            raise InvalidArgument(
                "a secret that proves a target to initiators may not be the secret of any user, here or elsewhere in"
                " the pool (RFC 7143 section 9.2.1): whoever knows the one could pose as the other"
            )


def _replaces(new: ChapRow, old: ChapRow) -> bool:
    return new.mutual == old.mutual and (new.mutual or new.user == old.user)


def _is_named(row: ChapRow, user: str | None, mutual: bool) -> bool:
    return mutual if row.mutual else row.user == user


def _owner(target: str | None) -> str:
    return "discovery" if target is None else f"target {target}"
