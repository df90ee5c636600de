"""What a mirror to a peer needs beside its link: it begins again by itself, and the other side knows how it is.

One task tends all of them. A synchronous mirror that broke because its peer was away, full or slow is resynchronized
when the peer is there again, with growing pauses and for ever: what the ledger has is not sent again. (Asynchronous and
adaptive ones do so themselves, ``engine.mirror_run``.) A mirror that broke because the two sides differ stays broken.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from engine.copy_state import CopyMode, CopyState, label
from engine.errors import EngineError, IntegrityError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.links.peer import PeerLink
    from engine.mirror import Mirror
    from engine.mirror_group import GroupMirror
    from engine.volume import Volume

log = logging.getLogger(__name__)

TEND_S = 0.5
RETRY_S, RETRY_MAX_S = 0.5, 60.0


@dataclass(slots=True)
class _Tended:
    mirror: Mirror | GroupMirror
    links: Sequence[PeerLink]
    """One, or those of a group's members, at the same peer."""
    sources: Sequence[Volume]
    pause_s: float = RETRY_S
    not_before: float = 0.0
    brought_bytes: int = 0
    reported: tuple[object, dict[str, Any]] | None = field(default=None)
    session: object | None = None
    """The connection over which it was told to try again last."""


class Outgoing:
    """See the module."""

    def __init__(self) -> None:
        self._tended: dict[str, _Tended] = {}
        self._task: asyncio.Task[None] | None = None

    def add(self, key: str, mirror: Mirror | GroupMirror, links: Sequence[PeerLink], sources: Sequence[Volume]) -> None:
        """``key``: a replica's name, or ``group NAME``: a replica and a replica group may be of one name."""
        self._tended[key] = _Tended(mirror, links, sources)
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._tend(), name="mirrors to peers")

    def remove(self, key: str) -> None:
        self._tended.pop(key, None)

    def link(self, key: str) -> PeerLink | None:
        """Of a mirror to a peer."""
        tended = self._tended.get(key)
        return None if tended is None else tended.links[0]

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def report(self, key: str, *, fractured: bool) -> None:
        """Tell the target now how it is, and whether it is its users'. Raises PeerUnreachable, InUse."""
        tended = self._tended[key]
        for link in tended.links:
            await link.ask("report", connection=None, **(_report(tended.mirror) | {"fractured": fractured}))

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
        mirror, client = tended.mirror, tended.links[0].client
        session = client.session
        if session is None:
            if mirror.figures.is_exact:  # nobody has written since; this finds it out as a write would
                for source in tended.sources:
                    await source.flush()
            return
        now = asyncio.get_running_loop().time()
        state = mirror.standing.state
        if state is CopyState.SYNCHRONIZED:
            tended.pause_s = RETRY_S
        brought_bytes = sum(link.brought_bytes for link in tended.links)
        if brought_bytes != tended.brought_bytes:  # the last attempt got on
            tended.brought_bytes = brought_bytes
            tended.pause_s = RETRY_S
        failures = [link.failure for link in tended.links if link.failure is not None]
        differs = any(isinstance(failure, IntegrityError) for failure in failures)
        may_heal = not differs if failures else mirror.common is not None
        broken = state is CopyState.BROKEN and mirror.mode is CopyMode.SYNCHRONOUS and not mirror.differs
        if broken and may_heal and now >= tended.not_before:
            tended.not_before = now + tended.pause_s
            tended.pause_s = min(tended.pause_s * 2, RETRY_MAX_S)
            await mirror.resync()
        waits = state is CopyState.BROKEN and mirror.mode is not CopyMode.SYNCHRONOUS and not mirror.is_at_rest
        if waits and not mirror.differs and tended.session is not session:
            await mirror.resync()
        tended.session = session
        report = _report(mirror)
        if tended.reported != (session, report):
            for link in tended.links:
                client.tell("report", replica=str(link.replica_id), **report)
            tended.reported = (session, report)


def _report(mirror: Mirror | GroupMirror) -> dict[str, Any]:
    standing = mirror.standing
    return {
        "copy_state": label(standing.state),
        "progress_status": label(standing.progress),
        "percent_synced": mirror.figures.percent_synced,
        "reason": standing.reason[:900],
        "fractured": standing.state is CopyState.FRACTURED,
    }
