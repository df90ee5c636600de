"""Rules of mirrors to disks without snapshots, each removed: some seed of ``disk_world`` must notice."""

from __future__ import annotations

import asyncio

import numpy as np

from engine.activity_log import ActivityLog
from engine.links.disk import DiskLink
from tests.support.sim_disk import Connection, SimDisk


def _write_before_the_mark(patch) -> None:
    async def mark(self, offset, length, *, host):
        if not self.mark_now(offset, length, host=host):
            task = asyncio.ensure_future(self._uncancelled(self._write_marks))
            task.add_done_callback(lambda done: done.cancelled() or done.exception())

    patch.setattr(ActivityLog, "mark", mark)


def _marks_without_sync(patch) -> None:
    real = ActivityLog._write_marks

    async def write_marks(self):
        file = self._file
        self._file = type("Unsynced", (), {"__getattr__": lambda _, name: getattr(file, name), "sync": _nothing})()
        try:
            await real(self)
        finally:
            self._file = file

    patch.setattr(ActivityLog, "_write_marks", write_marks)


async def _nothing(*args) -> None:
    return


def _clean_before_the_point(patch) -> None:
    """Marks of the older point go before a newer one is durable."""
    real = ActivityLog._add_point

    async def add_point(self, guid, size_bytes):
        self._heat[:] = 0
        await self._clean()
        await self._file.sync()
        await real(self, guid, size_bytes)

    patch.setattr(ActivityLog, "_add_point", add_point)


def _a_point_that_is_not_flushed(patch) -> None:
    real = DiskLink._add_point

    async def unflushed(self, guid):
        size_bytes = self._require_log().staging_bytes or self._source_size()
        await real(self, guid, size_bytes)
        return self._ack()

    patch.setattr(DiskLink, "commit_staging", unflushed)
    patch.setattr(DiskLink, "mark", unflushed)


def _overlapping_writes_at_once(patch) -> None:
    async def at_once(self, write):
        ack, disk = self._ack(), self._require_disk()
        await self.submit(disk, write.kind, write.offset, write.length, write.data, host=True)
        if write.fua:
            await disk.flush()
        return ack

    patch.setattr(DiskLink, "apply", at_once)


def _a_fractured_disk_is_still_known(patch) -> None:
    patch.setattr(DiskLink, "release", _nothing)


def _a_reset_is_not_noticed(patch) -> None:
    def check(self):
        self.resets = self.disk.resets
        _CHECK(self)

    patch.setattr(Connection, "_check", check)


_CHECK = Connection._check


def _an_old_session_goes_on(patch) -> None:
    """What it had under way is carried out some time later."""
    real = SimDisk.put

    def put(self, offset, data, *, whole):
        if whole and self.left and self.rng.random() < 0.3:
            late, old = self.left.pop()
            real(self, late, old, whole=True)
        real(self, offset, data, whole=whole)

    patch.setattr(SimDisk, "settle", lambda self: None)
    patch.setattr(SimDisk, "put", put)


def _beyond_the_point_is_forgotten(patch) -> None:
    real = DiskLink.changed

    async def changed(self, older, newer):
        found = await real(self, older, newer)
        known = min(self._log.points.values()) if self._log is not None and self._log.points else None
        return found if older is None or known is None else [e for e in found if e.offset < known]

    patch.setattr(DiskLink, "changed", changed)


def _what_is_written_meanwhile_counts(patch) -> None:
    patch.setattr("engine.links.disk._AsItIs.end", _nothing_written)


async def _nothing_written(self):
    return []


def _marks_of_this_run_only(patch) -> None:
    real = ActivityLog._read_marks

    async def read_marks(self, file):
        await real(self, file)
        if np.count_nonzero(self._on_disk) < len(self._on_disk):
            self._heat[:] = 0

    patch.setattr(ActivityLog, "_read_marks", read_marks)


MUTATIONS = {
    "a write is submitted before its mark is durable": _write_before_the_mark,
    "marks are not synced": _marks_without_sync,
    "marks are cleaned before the newer point is durable": _clean_before_the_point,
    "a point that the disk has not flushed": _a_point_that_is_not_flushed,
    "writes that overlap go to the disk at once": _overlapping_writes_at_once,
    "marks of an earlier run do not count": _marks_of_this_run_only,
    "a disk that was somebody else's is still known": _a_fractured_disk_is_still_known,
    "the reset of a disk is not noticed": _a_reset_is_not_noticed,
    "commands of an old session are carried out later": _an_old_session_goes_on,
    "what lies beyond a point is taken for known": _beyond_the_point_is_forgotten,
    "what is written meanwhile counts as verified": _what_is_written_meanwhile_counts,
}
