"""A mirror's target on a machine of its own, and the way to it: delay, loss, cuts, and a clock of another rate.

``TargetMachine`` goes down and comes up by itself, with or without a loss of power, while its source goes on. Its
lease lives in RAM. ``SimLink`` fulfils ``MirrorLink`` by calling a ``LocalLink`` there: each call takes its time to get
there and back, in the order of the calls; what is under way when the connection ends never arrives, or was done and
nobody hears of it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.lease import ASKS_PER_LEASE, TargetLease
from engine.links import Ack, LinkState
from engine.links.local import LocalLink
from engine.volume import Volume

if TYPE_CHECKING:
    import random
    from collections.abc import Callable

    from engine.lease import SourceLease
    from tests.support.memory_store import MemoryStore

IN_ORDER_S = 1e-6
"""Between two arrivals, so that they are two."""

STALL_LOOK_S = 0.002
KEEP_ALIVE_S = 0.25

NOTICED_S = 0.02
"""After this time without an answer a cut is noticed."""


class LinkDown(EngineError):
    """The target does not answer."""


class TargetMachine:
    """See the module. ``rate``: of its clock, against true time."""

    def __init__(self, store: MemoryStore, prefix: str, lease_s: float, rng: random.Random) -> None:
        self.store = store
        self.lease_s = lease_s
        self.rate = 1 + rng.choice((-0.01, 0.01, rng.uniform(-0.01, 0.01)))
        self.up = True
        self.opened = 0
        self._prefix = prefix
        self._rng = rng
        self.lease = TargetLease(lease_s)
        self.open()

    def open(self) -> None:
        """Its process starts."""
        self.up = True
        self.opened += 1
        self.lease = TargetLease(self.lease_s)
        self.volume = Volume(self.store.volumes()[0], read_only=True)
        self.link = LocalLink(self.volume, self._prefix)

    def crash(self, *, power_loss: bool) -> None:
        """Its process ends."""
        self.up = False
        self.store = self.store.crash(self._rng, power_loss=power_loss)

    def holds_lease(self, true_time: float) -> bool:
        """Whether it would say that it has everything."""
        return self.up and self.lease.held(self.clock(true_time))

    def clock(self, true_time: float) -> float:
        return true_time * self.rate


class SimLink:
    """See the module."""

    grants_lease = True

    def __init__(self, machine: TargetMachine, rng: random.Random) -> None:
        self.machine = machine
        self.delay_s = 0.0002
        self.loss = 0.0
        self.cut = False
        self.stalled = False
        """Nothing moves, and nobody is told."""
        self.switched: Callable[[], None] = lambda: None
        """Called when the target's content was replaced."""
        self._rng = rng
        self._connection = 0
        self._connected = False
        self._arrival = 0.0
        self._asking: asyncio.Task[None] | None = None
        self._lease: SourceLease | None = None

    @property
    def target_name(self) -> str:
        return self.machine.volume.name

    async def connect(self) -> LinkState:
        self._connection += 1
        self._connected = True
        self._lease = None
        opened = self.machine.opened
        state = await self._call(lambda link: link.connect())
        self._stop_asking()
        self._asking = asyncio.get_running_loop().create_task(self._ask(self._connection, opened))
        return LinkState(Ack(state.ack.incarnation, self._connection), state.points, state.staging)

    async def disconnect(self) -> None:
        self._connection += 1
        self._connected = False
        self._lease = None
        self._stop_asking()

    def _stop_asking(self) -> None:
        if self._asking is not None:
            self._asking.cancel()

    async def _way(self) -> None:
        """One message, in the order in which they are sent."""
        now = asyncio.get_running_loop().time()
        delay = self._rng.random() * 2 * self.delay_s
        self._arrival = max(self._arrival + IN_ORDER_S, now + delay)
        await asyncio.sleep(self._arrival - now)
        stalled_until = now + KEEP_ALIVE_S
        while self.stalled and not self.cut:
            if asyncio.get_running_loop().time() > stalled_until:
                raise LinkDown("the target has not answered for too long")
            self._arrival = max(self._arrival, asyncio.get_running_loop().time() + STALL_LOOK_S) + IN_ORDER_S
            await asyncio.sleep(self._arrival - asyncio.get_running_loop().time())

    async def _call(self, work, *, connected: bool = True):
        """There, done, and back. Raises LinkDown: nobody knows how far it got."""
        connection, opened = self._connection, self.machine.opened

        def check() -> None:
            lost = self._rng.random() < self.loss
            over = connected and (connection != self._connection or not self._connected)
            if self.cut or lost or over or not self.machine.up or opened != self.machine.opened:
                raise LinkDown("the connection to the target is gone")

        try:
            await self._way()
            check()
            result = await work(self.machine.link)
            await self._way()
            check()
        except LinkDown:
            await asyncio.sleep(NOTICED_S)
            raise
        return result

    def _ack(self, ack: Ack) -> Ack:
        return Ack(ack.incarnation, self._connection)

    # A round.

    async def changed(self, older, newer):
        return await self._call(lambda link: link.changed(older, newer))

    async def freeze_head(self, guid):
        await self._call(lambda link: link.freeze_head(guid))

    async def begin_staging(self, base, size_bytes):
        return SimDevice(self, await self._call(lambda link: link.begin_staging(base, size_bytes)))

    async def resume_staging(self):
        return SimDevice(self, await self._call(lambda link: link.resume_staging()))

    async def abort_staging(self):
        await self._call(lambda link: link.abort_staging())

    async def commit_staging(self, guid):
        async def commit(link):
            await link.commit_staging(guid)
            self.switched()

        await self._call(commit)

    # The stream.

    def apply_now(self, write):
        return None

    async def apply(self, write):
        return self._ack(await self._call(lambda link: link.apply(write)))

    async def apply_in_order(self, writes):
        return self._ack(await self._call(lambda link: link.apply_in_order(writes)))

    async def flush(self):
        return self._ack(await self._call(lambda link: link.flush()))

    async def mark(self, guid):
        return self._ack(await self._call(lambda link: link.mark(guid)))

    # Recovery points.

    async def point(self, guid):
        return SimDevice(self, await self._call(lambda link: link.point(guid), connected=False), connected=False)

    async def keep_points(self, guids):
        await self._call(lambda link: link.keep_points(guids))

    # The lease.

    def serve_lease(self, lease):
        self._lease = lease

    async def demote(self):
        async def demoted(link):
            self.machine.lease.demoted()

        await self._call(demoted, connected=False)

    async def _ask(self, connection: int, opened: int) -> None:
        """The target's part: asks again and again, over this connection, in this run of its process."""
        loop, machine = asyncio.get_running_loop(), self.machine
        while connection == self._connection and opened == machine.opened and machine.up:
            number = machine.lease.ask(machine.clock(loop.time()))
            loop.create_task(self._answer(machine.lease, number, connection))
            await asyncio.sleep(machine.lease_s / ASKS_PER_LEASE)

    async def _answer(self, target: TargetLease, number: int, connection: int) -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(self._rng.random() * 2 * self.delay_s)
        if self.cut or self._rng.random() < self.loss or connection != self._connection or self._lease is None:
            return
        if self._lease.grant(loop.time()):
            slow = (
                self._rng.random() < 0.3
            )  # an answer may lie in a queue for long; a cut does not take it out of there
            await asyncio.sleep(self._rng.random() * (self.machine.lease_s if slow else 2 * self.delay_s))
            target.granted(number)


class SimDevice:
    """A device of the target, from here."""

    def __init__(self, link: SimLink, device, *, connected: bool = True) -> None:
        self._link = link
        self._connected = connected
        self._device = device
        self.size_bytes = device.size_bytes
        self.read_only = device.read_only

    def try_read(self, offset, view):
        return False

    def try_write(self, offset, data):
        return False

    def end_pass(self):
        return None

    async def _call(self, work):
        return await self._link._call(work, connected=self._connected)

    async def read(self, offset, view):
        await self._call(lambda _: self._device.read(offset, view))

    async def write(self, offset, data, *, fua=False):
        payload = memoryview(bytes(data))
        await self._call(lambda _: self._device.write(offset, payload, fua=fua))

    async def write_zeroes(self, offset, length, *, fua=False):
        await self._call(lambda _: self._device.write_zeroes(offset, length, fua=fua))

    async def discard(self, offset, length):
        await self._call(lambda _: self._device.discard(offset, length))

    async def flush(self):
        await self._call(lambda _: self._device.flush())

    async def extents(self, offset, length):
        return await self._call(lambda _: self._device.extents(offset, length))
