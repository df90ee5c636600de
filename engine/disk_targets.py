"""Mirrors to disks of elsewhere: what reaches them, their secrets, and who begins them again.

A mirror to a disk is a ``Mirror`` over a ``DiskLink``. Whoever composes the program hands in how a disk is opened
(``DiskOpener``); the engine knows its URL and keeps its secrets, as files (``engine.secret_files``).

A synchronous mirror that broke because its disk was away, full or slow is resynchronized when the disk can be opened
again, with growing pauses and for ever. (Asynchronous ones do so themselves, ``engine.mirror_run``.) One that broke
because the two sides differ stays broken.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from engine.activity_log import ActivityLog
from engine.catalog import DiskRow
from engine.chap import SECRETS_NAME, check_secret, check_user
from engine.copy_state import CopyMode, CopyState
from engine.errors import EngineError, InvalidArgument, InvalidState, NotSupported
from engine.links.disk import DiskLink
from engine.pool_folder import LEDGERS_NAME
from engine.secret_files import SecretFiles
from engine.units import SECTOR_SIZE

if TYPE_CHECKING:
    from pathlib import Path

    from engine.catalog import MirrorRow
    from engine.links.disk import Disks
    from engine.mirror import Mirror
    from engine.pool import Pool
    from engine.volume import Volume

log = logging.getLogger(__name__)

LOG_SUFFIX = ".activity"
TEND_S = 0.5
RETRY_S, RETRY_MAX_S = 0.5, 60.0


@dataclass(frozen=True, slots=True)
class DiskSecrets:
    """CHAP of a disk. ``secret``: of the user in its URL; ``mutual``: who its target has to prove to be, and how."""

    secret: str | None = field(default=None, repr=False)
    mutual: tuple[str, str] | None = field(default=None, repr=False)

    def check(self) -> None:
        """Raises InvalidArgument."""
        if self.secret is not None:
            check_secret(self.secret)
        if self.mutual is not None:
            check_user(self.mutual[0])
            check_secret(self.mutual[1])
            if self.secret is None:
                raise InvalidArgument("mutual CHAP needs a user that we log in as, and its secret")
            if self.mutual[1] == self.secret:
                raise InvalidArgument("the target's own secret may not be that of the user (RFC 7143 section 9.2.1)")


class DiskOpener(Protocol):
    """Opens disks of elsewhere for mirrors; handed in from outside of the engine."""

    def is_disk(self, url: str, /) -> bool:
        """Whether this is meant as such a URL, well-formed or not."""
        ...

    def disks(self, url: str, secrets: DiskSecrets, relation: str, /) -> Disks:
        """``relation``: an id by which the disk knows our logins of before. Raises InvalidArgument."""
        ...


@dataclass(slots=True)
class _Tended:
    mirror: Mirror
    link: DiskLink
    pause_s: float = RETRY_S
    not_before: float = 0.0


class DiskTargets:
    """See the module."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._files = SecretFiles(pool.path / SECRETS_NAME)
        self._opener: DiskOpener | None = None
        self._tended: dict[str, _Tended] = {}
        self._task: asyncio.Task[None] | None = None

    def begin(self, opener: DiskOpener) -> None:
        self._opener = opener

    async def stop(self) -> None:
        """No mirror is begun again from now on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def close(self) -> None:
        """The mirrors have stopped."""
        for tended in self._tended.values():
            await tended.link.close()

    def is_disk(self, target: str) -> bool:
        return self._opener is not None and self._opener.is_disk(target)

    def link(self, name: str) -> DiskLink | None:
        """Of a mirror to a disk."""
        tended = self._tended.get(name)
        return None if tended is None else tended.link

    async def row(self, url: str, secrets: DiskSecrets) -> DiskRow:
        """What the catalogue is to know of a disk. Its secrets are kept, durably, when it returns."""
        secrets.check()
        shown = self._disks(url, secrets, "").name
        files = [
            None if secret is None else await asyncio.to_thread(self._files.put, secret) for secret in _all(secrets)
        ]
        return DiskRow(shown, files[0], None if secrets.mutual is None else secrets.mutual[0], files[1])

    async def forget(self, row: DiskRow) -> None:
        """No row names its secrets any more."""
        if row.files:
            await asyncio.to_thread(self._files.remove, row.files)

    async def link_to(self, row: MirrorRow, source: Volume) -> DiskLink:
        """Raises NotFound, PermissionDenied (a secret is not to be had), InvalidArgument."""
        assert row.disk is not None
        secret, own = [None if f is None else await asyncio.to_thread(self._files.get, f) for f in _files(row.disk)]
        mutual = None if row.disk.mutual_user is None or own is None else (row.disk.mutual_user, own)
        disks = self._disks(row.disk.url, DiskSecrets(secret, mutual), row.target_id)
        return DiskLink(disks, self._pool.env.control_files, self._log_path(row.name), lambda: source.size_bytes)

    async def require_fit(self, link: DiskLink, source: Volume) -> None:
        """Raises InvalidState, NotSupported, InvalidArgument: that disk cannot take this volume. PeerUnreachable,
        PermissionDenied: it cannot be opened."""
        disk = await link.probe()
        if disk.sector_bytes != SECTOR_SIZE:
            raise NotSupported(f"{link.target_name} has blocks of {disk.sector_bytes} bytes; {SECTOR_SIZE} are needed")
        if disk.size_bytes < source.size_bytes:
            raise InvalidArgument(f"{link.target_name} has {disk.size_bytes} bytes, the source {source.size_bytes}")
        for volume in self._pool.volumes():
            if f"{volume.identity.naa:016x}" in disk.identity:
                raise InvalidArgument(
                    f"{link.target_name} is volume {volume.name} of this pool: attach it by that name"
                )

    def add(self, mirror: Mirror, link: DiskLink) -> None:
        self._tended[mirror.name] = _Tended(mirror, link)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tend(), name="mirrors to disks")

    def let_be(self, name: str) -> None:
        """The mirror of that name is not begun again any more."""
        if name in self._tended:
            self._tended[name].not_before = float("inf")

    async def remove(self, name: str) -> None:
        """The relation is over."""
        tended = self._tended.pop(name, None)
        if tended is not None:
            await tended.link.close()
        await ActivityLog.discard(self._pool.env.control_files, self._log_path(name))

    def _log_path(self, name: str) -> Path:
        return self._pool.path / LEDGERS_NAME / (name + LOG_SUFFIX)

    async def _tend(self) -> None:
        while True:
            for tended in list(self._tended.values()):
                try:
                    await self._look(tended)
                except EngineError as error:
                    log.debug("%s: %s", tended.mirror.name, error)
                except Exception:
                    log.exception("tending mirror %s failed by a mistake in twinvol", tended.mirror.name)
            await asyncio.sleep(TEND_S)

    async def _look(self, tended: _Tended) -> None:
        mirror, now = tended.mirror, asyncio.get_running_loop().time()
        state = mirror.standing.state
        if mirror.figures.is_exact and not tended.link.is_connected:
            await mirror.source.flush()  # nobody has written since; this finds it out as a write would
        if state is CopyState.SYNCHRONIZED:
            tended.pause_s = RETRY_S
        broken = state is CopyState.BROKEN and mirror.mode is CopyMode.SYNCHRONOUS and not mirror.differs
        if not broken or now < tended.not_before:
            return
        tended.not_before = now + tended.pause_s
        tended.pause_s = min(tended.pause_s * 2, RETRY_MAX_S)
        await tended.link.probe()
        if tended.not_before < float("inf"):
            await mirror.resync()

    def _disks(self, url: str, secrets: DiskSecrets, relation: str) -> Disks:
        if self._opener is None:
            raise InvalidState("the initiator", "not there yet", "a daemon that has started")
        return self._opener.disks(url, secrets, relation)


def _all(secrets: DiskSecrets) -> tuple[str | None, str | None]:
    return secrets.secret, None if secrets.mutual is None else secrets.mutual[1]


def _files(row: DiskRow) -> tuple[str | None, str | None]:
    return row.secret_file, row.mutual_file
