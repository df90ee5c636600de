"""Rules of a synchronous mirror's rounds and stream, each removed: some seed of ``mirror_world`` must notice."""

from __future__ import annotations

import asyncio

from engine.copy_state import CopyEvent
from engine.errors import WritesHeld
from engine.links.local import LocalLink
from engine.mirror import Mirror
from engine.mirror_stream import MirrorStream, StreamMode
from engine.volume import Volume


def _drain_concurrently(patch) -> None:
    async def together(self, writes):
        return (await asyncio.gather(*[self.apply(write) for write in writes]))[0]

    patch.setattr(LocalLink, "apply_in_order", together)


def _catch_up_concurrently(patch) -> None:
    real = MirrorStream.submit

    def submit(self, change):
        if self.mode is not StreamMode.CATCH_UP:
            return real(self, change)
        self.mode = StreamMode.SYNC
        try:
            return real(self, change)
        finally:
            self.mode = StreamMode.CATCH_UP

    patch.setattr(MirrorStream, "submit", submit)


def _base_without_union(patch) -> None:
    real = LocalLink.changed

    async def changed(self, older, newer):
        return await real(self, older, newer) if newer is None else []

    patch.setattr(LocalLink, "changed", changed)


def _queue_one_step_late(patch) -> None:
    real = Volume.attach

    def attach(self, tap):
        if isinstance(tap, MirrorStream):
            asyncio.get_running_loop().call_soon(lambda: asyncio.get_running_loop().call_soon(real, self, tap))
        else:
            real(self, tap)

    patch.setattr(Volume, "attach", attach)
    patch.setattr(Volume, "detach", lambda self, tap: tap in self.taps and real_detach(self, tap))
    real_detach = _DETACH


_DETACH = Volume.detach


def _acknowledge_without_the_target(patch) -> None:
    real = MirrorStream.submit

    def submit(self, change):
        wait = real(self, change)
        return None if self.mode is StreamMode.SYNC else wait

    patch.setattr(MirrorStream, "submit", submit)


def _keep_the_initiators_buffer(patch) -> None:
    patch.setattr("engine.mirror_stream.bytes", lambda view: view, raising=False)


def _converge_without_flush(patch) -> None:
    real = MirrorStream.converge

    async def converge(self):
        async def no_flush():
            return self._ack

        link = self._link
        self._link = type("Unflushed", (), {"__getattr__": lambda _, name: getattr(link, name)})()
        self._link.flush = no_flush
        try:
            return await real(self)
        finally:
            self._link = link

    patch.setattr(MirrorStream, "converge", converge)


def _flush_the_source_only(patch) -> None:
    patch.setattr(MirrorStream, "flush", lambda self: None)


def _acknowledge_before_the_demotion_is_recorded(patch) -> None:
    real = MirrorStream.leave

    def leave(self, reason, *, retry):
        was = self.mode
        real(self, reason, retry=retry)
        if was is not self.mode is StreamMode.LEAVING:
            self._close()

    patch.setattr(MirrorStream, "leave", leave)
    patch.setattr(Volume, "detach", lambda self, tap: tap in self.taps and _DETACH(self, tap))


def _mark_without_holding(patch) -> None:
    def hold(self):
        self._staying(StreamMode.SYNC)

    async def drained(self):
        await asyncio.sleep(0.0005)  # the marker takes its time to the target, and nothing waits for it
        self._staying(StreamMode.SYNC)

    patch.setattr(MirrorStream, "hold", hold)
    patch.setattr(MirrorStream, "drained", drained)
    patch.setattr(MirrorStream, "release", lambda self: None)


def _hold_after_the_snapshot(patch) -> None:
    real = MirrorStream.hold
    held = MirrorStream.drained

    async def drained(self):
        real(self)
        await held(self)

    patch.setattr(MirrorStream, "hold", lambda self: None)
    patch.setattr(MirrorStream, "drained", drained)


def _ignore_a_write_the_source_refused(patch) -> None:
    patch.setattr(MirrorStream, "source_failed", lambda self, change, error: None)


def _trust_any_ledger(patch) -> None:
    patch.setattr("engine.ledger.LedgerKey.serialize", lambda self: b"one for all")
    patch.setattr("engine.ledger.Ledger.discard", _nothing)


async def _nothing(*args) -> None:
    return


def _synchronized_across_restarts(patch) -> None:
    async def start(self):
        if self._record.wanted == "active":
            self._begin(CopyEvent.RESYNC, "")

    patch.setattr(Mirror, "start", start)


def _hosts_go_on_alone(patch) -> None:
    patch.setattr(Volume, "hold_writes", lambda self, mirror, reason: None)


def _those_who_wait_are_acknowledged(patch) -> None:
    real = MirrorStream._demoted

    def demoted(self, record):
        if record.cancelled() or not isinstance(record.exception(), WritesHeld):
            real(self, record)
        else:
            self._close()

    patch.setattr(MirrorStream, "_demoted", demoted)


MUTATIONS = {
    "drain concurrently": _drain_concurrently,
    "concurrent before all below q is applied": _catch_up_concurrently,
    "the head as base without the union": _base_without_union,
    "the queue begins a step after the snapshot": _queue_one_step_late,
    "acknowledge without the target": _acknowledge_without_the_target,
    "keep the initiator's buffer": _keep_the_initiators_buffer,
    "synchronized without a target flush": _converge_without_flush,
    "flush at the source only": _flush_the_source_only,
    "acknowledge before the demotion is recorded": _acknowledge_before_the_demotion_is_recorded,
    "mark without holding the stream": _mark_without_holding,
    "hold a step after the snapshot": _hold_after_the_snapshot,
    "ignore a write that the source refused": _ignore_a_write_the_source_refused,
    "a ledger of another round counts": _trust_any_ledger,
    "hosts go on though a failed copy is to stop them": _hosts_go_on_alone,
    "a failed copy is to stop hosts, and those who wait are acknowledged": _those_who_wait_are_acknowledged,
    "serve before the restart's demotion is recorded": _synchronized_across_restarts,
}
