"""One of two machines that are peers, in a simulation: its volume, catalogue, clock, and way to the other.

Real are who decides (``Failovers``, ``Replicas``, ``Incoming``), the mirrors and leases, and the catalogue's SQL, which
is durable when a transaction returns. Simulated are the store (in memory), initiators' ways (``SimExposure``), and the
network between the two: calls take their time, and are lost when the link is cut or a machine ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sqlite3
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

from engine.catalog import _SCHEMA, Catalog, LunRow, VolumeRow
from engine.catalog_mirror_groups import GroupPointRow
from engine.errors import EngineError, PeerUnreachable, Superseded
from engine.failover import Failovers
from engine.files import StoreEnv
from engine.lease import ASKS_PER_LEASE
from engine.peers.rate import TokenBucket
from engine.pool_space import SpaceState
from engine.replicas import Replicas
from engine.volume import Volume
from tests.support.memory_store import MemoryStore
from tests.support.sim_control_files import SimControlFiles
from tests.support.sim_files import SimFileSystem
from tests.support.sim_link import SimDevice
from tests.support.sim_loop import SimLoop, SimWorkers

if TYPE_CHECKING:
    import random

LIFE: contextvars.ContextVar[Life | None] = contextvars.ContextVar("life", default=None)
NAMES = ("a", "b")


class Life:
    """A run of one machine's process: its tasks end with it."""

    def __init__(self) -> None:
        self.over = False
        self.tasks: list[asyncio.Task] = []

    def end(self) -> None:
        self.over = True
        for task in self.tasks:
            task.cancel()


class SiteLoop(SimLoop):
    """Tasks belong to the life in which they are made."""

    def create_task(self, coro, *, name=None, context=None):
        task = super().create_task(coro, name=name, context=context)
        life = LIFE.get() if context is None else context.get(LIFE)
        if life is not None:
            life.tasks.append(task)
            if life.over:
                task.cancel()
        return task


class SiteClock:
    """``rate``: against true time; ``ahead_s``: of the wall clock, which somebody may set."""

    def __init__(self, loop: SimLoop, rng: random.Random) -> None:
        self._loop = loop
        self.rate = 1 + rng.uniform(-0.01, 0.01)
        self.ahead_s = rng.uniform(-5, 5)

    def boottime(self) -> float:
        return 1000.0 + self._loop.time() * self.rate

    monotonic = boottime

    def time(self) -> float:
        return 1e6 + self._loop.time() * self.rate + self.ahead_s


class SimCatalog(Catalog):
    """In memory; a transaction is durable when it has run, and nobody hears of it whose process has ended."""

    def __init__(self, rng: random.Random) -> None:
        database = sqlite3.connect(":memory:")
        database.executescript(_SCHEMA)
        super().__init__(database, None, None)
        self._rng = rng

    async def _run(self, work):
        life = LIFE.get()
        await asyncio.sleep(self._rng.random() * 0.001)
        if life is not None and life.over:
            raise asyncio.CancelledError
        with self._database:
            found = work(self._database)
        await asyncio.sleep(self._rng.random() * 0.001)
        return found

    async def add_event(self, at, severity, subject, text):
        return None


class SimExposure:
    """Whether initiators can use the disk here."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self.withheld: set[str] = set()
        self.standby = True  # until the machine has read what it is
        self.access = self

    async def withhold(self, device_id, why):
        self.withheld.add(device_id)
        while self._site.writing:  # noqa: ASYNC110 - counted
            await asyncio.sleep(0.0005)

    async def release(self, device_id):
        self.withheld.discard(device_id)

    async def turn(self, volume, device_id, standby_of):
        await asyncio.sleep(self._site.rng.random() * 0.001)
        self.standby = standby_of is not None

    def luns_of(self, volume_id, guid=None):
        return [] if self.standby else [LunRow("t", 0, volume_id)]

    def target(self, name):
        return SimpleNamespace(initiators=(), port_group=1 + self._site.number, chap=SimpleNamespace(users=()))

    def written_bytes(self, device_id):
        return None

    async def expose_to(self, volume, initiators, not_groups):
        return None


class SimJob:
    def __init__(self, work) -> None:
        self.ended = asyncio.ensure_future(work(self))
        self.ended.add_done_callback(lambda task: task.cancelled() or task.exception())

    def progress(self, done, total):
        return None


class SimClient:
    """``PeerClient`` of one machine for the other."""

    def __init__(self, here: Site, there: Site) -> None:
        self.here, self.there = here, there
        self.life = here.life

    @property
    def session(self):
        return self.here.network.session(self.here, self.there)

    @property
    def is_connected(self):
        return self.session is not None

    def tell(self, op, **fields):
        return None

    async def request(self, op, **fields):
        return await self.call(lambda: self.there.serve(NAMES[self.here.number], op, fields))

    async def call(self, work):
        """Have work done at the other machine, by a task of its own. Raises PeerUnreachable: nobody knows how far."""
        network, session = self.here.network, self.session
        if session is None:
            raise PeerUnreachable("the peer is not connected")
        await network.way(self.here, self.there)
        if self.session is not session:
            raise PeerUnreachable("the connection is gone")
        task = self.there.spawn(work())
        while not task.done() or not session.open:
            if not session.open:
                raise PeerUnreachable("the connection is gone")
            await asyncio.wait([task], timeout=0.002)
        if task.cancelled():
            raise PeerUnreachable("the peer has ended")
        await network.way(self.there, self.here)
        if self.session is not session:
            raise PeerUnreachable("the answer was lost")
        return task.result()


class SimPeerLink:
    """``PeerLink`` over ``SimClient``, where a ``LocalLink`` does the work, as ``engine.peers.serving`` has it."""

    def __init__(self, client, replica_id, target_name, clock, *, may_fail_over=True) -> None:
        self.client = client
        self.replica_id = replica_id
        self.target_name = target_name
        self.grants_lease = may_fail_over
        self.superseded = lambda: None
        self.failure = None
        self.given_up = False
        self.brought_bytes = 0
        self.bucket = TokenBucket()
        self._clock = clock
        self._connection = 0

    @property
    def connection(self):
        return self._connection

    def _replica(self):
        return self.client.there.replicas.incoming.get(NAMES[self.client.here.number], str(self.replica_id))

    async def _watched(self, work):
        try:
            return await work
        except EngineError as error:
            self.failure = error
            if isinstance(error, Superseded):
                self.superseded()
            raise

    async def _call(self, work, *, connected=True):
        number = self._connection

        async def there():
            replica = self._replica()
            with replica.working(number if connected else None):
                return await work(replica.link)

        return await self._watched(self.client.call(there))

    async def ask(self, op, **fields):
        fields.setdefault("connection", self._connection)
        return await self._watched(self.client.request(op, replica=str(self.replica_id), **fields))

    async def connect(self):
        self._connection = 0

        async def there():
            return await self._replica().connect()

        state = await self._watched(self.client.call(there))
        self._connection = state.ack.connection
        self.failure = None
        return state

    async def disconnect(self):
        self._connection = 0

    async def changed(self, older, newer):
        return await self._call(lambda link: link.changed(older, newer))

    async def freeze_head(self, guid):
        await self._call(lambda link: link.freeze_head(guid))

    async def begin_staging(self, base, size_bytes):
        return SimDevice(self, await self._call(lambda link: link.begin_staging(base, size_bytes)))

    async def resume_staging(self):
        return SimDevice(self, await self._call(lambda link: link.resume_staging()))

    async def abort_staging(self):
        await self._call(lambda link: link.abort_staging(), connected=False)

    async def commit_staging(self, guid):
        async def commit(link):
            replica = self._replica()
            await link.commit_staging(guid)
            await self.client.there.replicas.incoming.switched(replica)

        await self._call(commit)

    def apply_now(self, write):
        return None

    async def apply(self, write):
        return await self._call(lambda link: link.apply(write))

    async def apply_in_order(self, writes):
        return await self._call(lambda link: link.apply_in_order(writes))

    async def flush(self):
        return await self._call(lambda link: link.flush())

    async def mark(self, guid):
        return await self._call(lambda link: link.mark(guid))

    async def point(self, guid):
        return SimDevice(self, await self._call(lambda link: link.point(guid), connected=False), connected=False)

    async def keep_points(self, guids):
        await self._call(lambda link: link.keep_points(guids), connected=False)

    def serve_lease(self, lease):
        there, connection, client = self.client.there, self._connection, self.client

        async def ask():
            replica = self._replica()
            held = replica.lend(connection, lease.length_s)
            while replica.is_asking(held, connection) and client.session is not None:
                number = held.ask(there.clock.boottime())
                there.spawn(answer(replica, held, number))
                await asyncio.sleep(held.length_s / ASKS_PER_LEASE)

        async def answer(replica, held, number):
            session = client.session
            await client.here.network.way(there, client.here)
            if session is None or client.session is not session or client.life.over or self._connection != connection:
                return
            if lease.grant(self._clock.boottime()):
                await client.here.network.way(client.here, there)
                if replica.is_asking(held, connection):
                    held.granted(number)
                    replica.exact_until = there.clock.time() + held.until - there.clock.boottime()

        with contextlib.suppress(EngineError):
            there.spawn(ask())

    async def demote(self):
        async def there():
            replica = self._replica()
            if replica.lease.held(self.client.there.clock.boottime()):
                replica.exact_until = self.client.there.clock.time()
            replica.lease.demoted()

        await self._watched(self.client.call(there))


class Session:
    def __init__(self) -> None:
        self.open = True


class Network:
    """Between the two machines. ``cut``: nothing gets through, and both notice."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.cut = False
        self.delay_s = 0.0002
        self._sessions: dict[tuple[int, int], Session] = {}

    def session(self, here: Site, there: Site):
        if self.cut or here.life is None or there.life is None or here.life.over or there.life.over:
            self.drop()
            return None
        return self._sessions.setdefault((here.number, there.number), Session())

    def drop(self) -> None:
        for session in self._sessions.values():
            session.open = False
        self._sessions.clear()

    async def way(self, _from: Site, _to: Site) -> None:
        await asyncio.sleep(self.rng.random() * 2 * self.delay_s)


class Site:
    """See the module."""

    def __init__(
        self, number: int, loop: SiteLoop, network: Network, rng: random.Random, size_bytes: int, volumes: int = 1
    ) -> None:
        self.number, self.loop, self.network, self.rng = number, loop, network, rng
        self.name = NAMES[number]
        self.files_of_volumes = [MemoryStore() for _ in range(volumes)]
        for each, store in enumerate(self.files_of_volumes):
            store.create_volume(f"{self.name}{each}", size_bytes)
        self.clock = SiteClock(loop, rng)
        self.catalog = SimCatalog(rng)
        self.files = SimFileSystem(rng)
        self.boots = 0
        self.device_ids: dict[str, str] = {}
        self.life: Life | None = None
        self.other: Site
        self.is_ready = False
        """Its process has read what it is."""
        self.writing = 0
        self.members: list[Volume] = []
        self.replicas: Replicas
        self.failovers: Failovers
        self.exposure: SimExposure

    # --- the machine -------------------------------------------------------------------------------------------------

    def spawn(self, coro) -> asyncio.Task:
        """A task of this machine's process."""
        if self.life is None or self.life.over:
            coro.close()
            raise PeerUnreachable("the machine is down")
        context = contextvars.copy_context()
        context.run(LIFE.set, self.life)
        return self.loop.create_task(coro, context=context)

    @property
    def is_up(self) -> bool:
        return self.life is not None and not self.life.over

    async def start(self) -> None:
        self.life = Life()
        self.is_ready = False
        self.writing = 0
        await self.spawn(self._start())

    async def _start(self) -> None:
        workers = SimWorkers(self.loop, self.rng)
        self.files.boot_id = lambda: f"boot-{self.boots}"
        self.env = StoreEnv(self.files, workers, self.clock, control=SimControlFiles(self.files, workers))
        for store in self.files_of_volumes:
            store.now = self.clock.time
        self.members = [Volume(head) for head in self.heads()]
        self.device_ids = await self.catalog.identities.all()
        for volume in self.members:
            volume.device_id = self.device_id(volume.volume_id)
        self.exposure = SimExposure(self)
        self.replicas = Replicas(self, software="simulation")
        self.failovers = Failovers(self, self.exposure, self.replicas)
        await self.replicas.restore()
        for volume in self.members:
            if volume.fence_reason is not None:
                self.exposure.withheld.add(volume.device_id)
        self.exposure.standby = bool(self.replicas.incoming.all())
        self.is_ready = True
        await self.replicas.begin_remote(self)

    def end(self, *, power_loss: bool) -> None:
        """Its process or its power fails."""
        if not self.is_up:
            return
        self.life.end()
        self.network.drop()
        self.files_of_volumes = [store.crash(self.rng, power_loss=power_loss) for store in self.files_of_volumes]
        if power_loss:
            self.boots += 1
            self.files.lose_power()
        else:
            self.files.restart_process()

    @property
    def volume(self) -> Volume:
        """The first one."""
        return self.members[0]

    def heads(self):
        return [store.volumes()[0] for store in self.files_of_volumes]

    def is_usable(self) -> bool:
        """Whether an initiator would be served all disks here."""
        return self.is_up and self.is_ready and all(self._is_served(volume) for volume in self.members)

    def offers(self) -> bool:
        """Whether an initiator would be served any disk here."""
        return self.is_up and self.is_ready and any(self._is_served(volume) for volume in self.members)

    def fenced(self) -> str | None:
        return next((volume.fence_reason for volume in self.members if volume.fence_reason), None)

    def _is_served(self, volume: Volume) -> bool:
        served = volume.fence_reason is None and not volume.read_only and not self.exposure.standby
        return served and volume.device_id not in self.exposure.withheld

    def content(self, member: int = 0) -> bytes:
        head = self.heads()[member]
        return head.content(0, head.size_bytes)

    async def serve(self, peer: str, op: str, fields):
        """What ``engine.peers.serving`` does with a request."""
        match op:
            case "standing":
                return await self.failovers.standing(peer, fields)
            case "hand_over":
                return await self.failovers.hand_over(peer, fields["replica"])
            case "promote":
                return await self.failovers.promote(peer, fields)
            case "group_point":
                point = GroupPointRow(
                    fields["group"],
                    peer,
                    fields["name"],
                    fields["guid"],
                    fields["at_us"] / 1e6,
                    tuple(fields["replicas"]),
                )
                return await self.replicas.incoming.complete_group(point) or {}
        replica = self.replicas.incoming.get(peer, fields["replica"])
        match op:
            case "facts":
                return await self.failovers.facts(replica, fields["facts"])
            case "report":
                await self.replicas.incoming.protect(replica, fractured=fields["fractured"])
        return {}

    # --- as ``Pool`` and ``Peers`` -----------------------------------------------------------------------------------

    path = Path("/pool")
    integrity = SimpleNamespace(copies=None)
    space = SimpleNamespace(state=SpaceState.OK)

    @property
    def groups(self):
        async def of_exactly(name, _volumes):
            return name

        return SimpleNamespace(require_free=lambda *_: None, of_exactly=of_exactly)

    @property
    def jobs(self):
        async def start(kind, subject, work):
            return SimJob(work)

        return SimpleNamespace(require_unread=lambda *_: None, start=start)

    def volumes(self):
        return self.members

    def stores(self):
        return self.files_of_volumes

    def find(self, volume_id):
        return next((volume for volume in self.members if volume.volume_id == volume_id), None)

    by_id = find

    def name_of(self, volume_id):
        return self.name

    def row(self, volume):
        return VolumeRow(volume.volume_id, volume.name, "")

    def snapshots(self, volume):
        return [each for each in volume.head.store.snapshots(volume.volume_id) if not each.hidden]

    def device_id(self, volume_id):
        return self.device_ids.get(volume_id, volume_id)

    def identified(self, ids):
        self.device_ids.update(ids)
        for volume in self.members:
            volume.device_id = ids.get(volume.volume_id, volume.device_id)

    def client(self, name):
        return SimClient(self, self.other)

    def reaches(self, name):
        return self.network.session(self, self.other) is not None
