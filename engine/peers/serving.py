"""The target's side of a control connection: what a peer asks of the replicas that it has here.

Writes of the stream begin in the order in which they came, and so do flushes and marks among them: each is begun, or
its task made, in the step in which its frame was taken (``engine.links``). Everything else runs beside them. What is
refused is answered with the engine's error; what cannot be understood ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from typing import TYPE_CHECKING, Any, Protocol

from engine.catalog import VolumeRow
from engine.catalog_mirror_groups import GroupPointRow
from engine.catalog_peers import PeerTargetRow
from engine.errors import EngineError, NotSupported
from engine.errors_json import error_to_json
from engine.failover_facts import MAX_BYTES as MAX_FACTS_BYTES
from engine.hash_tree import LEAF_BYTES, leaf_digests
from engine.lease import ASKS_PER_LEASE
from engine.names import check_name
from engine.peers.frames import (
    MAX_DATA_BYTES,
    FrameError,
    FrameType,
    decode_json,
    encode_json,
    flag_of,
    number_of,
    optional_text,
    printable,
    text_of,
)
from engine.peers.identity import MAX_CERTIFICATE_BYTES
from engine.peers.writes import decode_apply, decode_lease, decode_ordered, encode_ack, encode_lease
from engine.stores import BulkSource
from engine.units import MIB

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from engine.failover import Failovers
    from engine.files import StoreEnv
    from engine.lease import TargetLease
    from engine.links import Ack
    from engine.peers.control import FrameConnection
    from engine.peers.frames import Frame
    from engine.peers.incoming import Incoming, IncomingReplica
    from engine.stores import BlockDevice, Extent

log = logging.getLogger(__name__)

IDLE_S = 45.0
"""A source that says nothing for so long, not even PING, is taken for gone."""

MAX_UNDER_WAY = 4096
MAX_UNDER_WAY_BYTES = 64 * MIB
"""Requests and their data that are in work; above that nothing more is read."""

MAX_READING = 8
"""Requests in work whose answers are long, at most ``MAX_DATA_BYTES`` each; further ones wait."""

MAX_EXTENTS = 4096
EXTENTS_WINDOW_BYTES = 128 * MIB
"""One answer's extents: at most those of so many bytes, which is ``MAX_EXTENTS`` at worst."""

MAX_DIGESTED_BYTES = 4 * MIB
MAX_LEASE_US = 60_000_000
MIN_ASK_S = 0.02
"""A target asks for a lease no more often, however short it is; a shorter one it does not hold all the time."""

MAX_CREDENTIAL_CHARS = 256
MAX_POINTS = 1024
MAX_MEMBERS = 64
"""Of a mirrored group."""
MODES = frozenset({"sync", "async", "adaptive"})


class Keeper(Protocol):
    """Who keeps the certificates of peers, and knows this pool's users."""

    async def knows(self, peer: str, fingerprint: str) -> None:
        """A peer has taken our next certificate."""
        ...

    async def take_next(self, peer: str, certificate: str) -> str:
        """A peer announces its next certificate, which is durable on return. Returns its fingerprint."""
        ...

    async def role_of(self, peer: str, username: str, password: str) -> str | None:
        """Of one of this pool's users, whose password a peer says; None: nobody's. Raises PermissionDenied: too many
        wrong ones have come from there; NotSupported: nobody is known here."""
        ...


class ControlSession:
    """See the module.

    Args:
        connection: its HELLO was exchanged, and it is ``peer``'s.
        gate: is told of certificates, the peer's next one and whether it has ours; and asked about users.
    """

    def __init__(
        self,
        connection: FrameConnection,
        peer: str,
        incoming: Incoming,
        env: StoreEnv,
        gate: Keeper,
    ) -> None:
        self.peer = peer
        self._gate = gate
        self._connection = connection
        self._incoming = incoming
        self._env = env
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._unstarted = 0
        self._bytes = 0
        self._reading = asyncio.Semaphore(MAX_READING)
        self._asking: set[asyncio.Task[None]] = set()
        self._watch = self._loop.call_later(IDLE_S, self._look)
        connection.ended.add_done_callback(lambda _: self._watch.cancel())

    def close(self, reason: EngineError) -> None:
        self._connection.close(reason)

    async def finished(self) -> None:
        """Wait until nothing that was asked is in work any more. The connection has ended."""
        for task in self._asking:
            task.cancel()
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    def take(self, frame: Frame) -> None:
        """One frame, in order. Raises FrameError."""
        match frame.type:
            case FrameType.PING:
                self._connection.send(FrameType.PONG, frame.request)
            case FrameType.APPLY:
                self._apply_first(frame)
            case FrameType.ORDERED:
                self._start(frame, self._ordered(frame))
            case FrameType.REQUEST:
                self._start(frame, self._answer(frame))
            case FrameType.GRANT:
                self._granted(frame)
            case _:
                raise FrameError(f"a {frame.type.name} frame has no place here")

    def _look(self) -> None:
        left = self._connection.heard_at + IDLE_S - self._loop.time()
        if left <= 0:
            self._connection.abort(FrameError(f"nothing came for {IDLE_S:g} s"))
        else:
            self._watch = self._loop.call_later(left, self._look)

    # --- the stream --------------------------------------------------------------------------------------------------

    def _apply_first(self, frame: Frame) -> None:
        """Within this step where that is possible; else by a task."""
        if not self._unstarted:
            replica_id, connection, write = decode_apply(frame.payload)
            try:
                ack = self._replica(str(replica_id)).apply_now(connection, write)
            except EngineError as error:
                self._fail(frame, error)
                return
            if ack is not None:
                self._connection.send(FrameType.ACK, frame.request, encode_ack(ack))
                return
        self._start(frame, self._apply(frame))

    async def _apply(self, frame: Frame) -> None:
        replica_id, connection, write = decode_apply(frame.payload)
        replica = self._replica(str(replica_id))
        with replica.working(connection):
            self._acknowledge(frame, await replica.link.apply(write))

    async def _ordered(self, frame: Frame) -> None:
        replica_id, connection, writes = decode_ordered(frame.payload)
        replica = self._replica(str(replica_id))
        with replica.working(connection):
            self._acknowledge(frame, await replica.link.apply_in_order(writes))

    def _acknowledge(self, frame: Frame, ack: Ack) -> None:
        self._connection.send(FrameType.ACK, frame.request, encode_ack(ack))

    # --- the lease ---------------------------------------------------------------------------------------------------

    async def _lease(self, message: dict[str, Any]) -> None:
        """From now on the target asks for the lease, over this connection of the mirror."""
        replica = self._replica(text_of(message, "replica"))
        connection = number_of(message, "connection")
        lease = replica.lend(connection, number_of(message, "length_us", MAX_LEASE_US) / 1e6)
        task = self._loop.create_task(self._ask(replica, lease, connection))
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def _ask(self, replica: IncomingReplica, lease: TargetLease, connection: int) -> None:
        replica_id = uuid.UUID(replica.row.replica_id)
        while replica.is_asking(lease, connection) and not self._connection.ended.done():
            number = lease.ask(self._env.clock.boottime())
            self._connection.send(FrameType.LEASE, 0, encode_lease(replica_id, connection, number))
            await asyncio.sleep(max(MIN_ASK_S, lease.length_s / ASKS_PER_LEASE))

    def _granted(self, frame: Frame) -> None:
        replica_id, connection, number = decode_lease(frame.payload)
        replica = self._incoming.known(self.peer, str(replica_id))
        if replica is not None and replica.is_asking(replica.lease, connection):
            replica.lease.granted(number)
            replica.exact_until = self._env.clock.time() + replica.lease.until - self._env.clock.boottime()

    async def _demote(self, message: dict[str, Any]) -> None:
        replica = self._replica(text_of(message, "replica"))
        if replica.lease.held(self._env.clock.boottime()):
            replica.exact_until = self._env.clock.time()
        replica.lease.demoted()

    # --- requests ----------------------------------------------------------------------------------------------------

    def _start(self, frame: Frame, work: Coroutine[None, None, None]) -> None:
        self._unstarted += 1
        self._bytes += len(frame.payload)
        task = self._loop.create_task(self._run(frame, work))
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(done, len(frame.payload)))
        if len(self._tasks) >= MAX_UNDER_WAY or self._bytes >= MAX_UNDER_WAY_BYTES:
            self._connection.hold("requests in work")

    def _done(self, task: asyncio.Task[None], size: int) -> None:
        self._tasks.discard(task)
        self._bytes -= size
        if len(self._tasks) < MAX_UNDER_WAY // 2 and self._bytes < MAX_UNDER_WAY_BYTES // 2:
            self._connection.go_on("requests in work")

    async def _run(self, frame: Frame, work: Coroutine[None, None, None]) -> None:
        self._unstarted -= 1
        try:
            await work
        except FrameError as error:
            self._connection.close(error)
        except EngineError as error:
            self._fail(frame, error)
        except Exception as error:
            log.exception("a request of peer %s failed by a mistake in twinvol", self.peer)
            self._fail(frame, EngineError(f"internal error at the peer: {error!r}"))

    def _fail(self, frame: Frame, error: EngineError) -> None:
        self._connection.send(FrameType.FAILURE, frame.request, failure_payload(error))

    async def _answer(self, frame: Frame) -> None:
        message = decode_json(frame.payload)
        name = text_of(message, "op")
        operation = _OPERATIONS.get(name)
        if operation is None:
            raise NotSupported(f"this peer does not know {name!r}; it may be of an older version")
        if name not in _LONG:
            self._tell(frame, await operation(self, message))
            return
        async with self._reading:
            await self._connection.has_room.wait()
            self._tell(frame, await operation(self, message))

    def _tell(self, frame: Frame, answer: dict[str, Any] | bytes | None) -> None:
        if isinstance(answer, bytes):
            self._connection.send(FrameType.DATA, frame.request, answer)
        else:
            self._connection.send(FrameType.ANSWER, frame.request, encode_json(answer or {}))

    def _replica(self, replica_id: str) -> IncomingReplica:
        return self._incoming.get(self.peer, replica_id)

    @contextlib.contextmanager
    def _working(self, message: dict[str, Any]) -> Any:
        replica = self._replica(text_of(message, "replica"))
        with replica.working(number_of(message, "connection")):
            yield replica

    async def _create(self, message: dict[str, Any]) -> dict[str, Any]:
        row, policies = self._wanted(message)
        sizes = number_of(message, "size_bytes"), number_of(message, "chunk_bytes")
        volume = await self._incoming.create(row, policies, *sizes, encrypted=flag_of(message, "encrypted"))
        return {"volume_id": volume.volume_id}

    async def _attach(self, message: dict[str, Any]) -> dict[str, Any]:
        row, policies = self._wanted(message)
        name, size_bytes = check_name("volume", text_of(message, "volume")), number_of(message, "size_bytes")
        encrypted = flag_of(message, "encrypted")
        volume = await self._incoming.attach(row, name, policies, size_bytes, encrypted=encrypted)
        return {"volume_id": volume.volume_id}

    def _wanted(self, message: dict[str, Any]) -> tuple[PeerTargetRow, VolumeRow]:
        """The replica that is asked for, and what its volume is to be like."""
        row = PeerTargetRow(
            replica_id=_uuid_of(message, "replica"),
            peer=self.peer,
            name=text_of(message, "name", 64),
            volume_id="",
            source=check_name("volume", text_of(message, "source")),
            mode=text_of(message, "mode"),
        )
        if row.mode not in MODES:
            raise NotSupported(f"this peer does not know the mode {row.mode!r}")
        policies = VolumeRow(
            volume_id="",
            name=row.name,
            file="",
            physical_block_bytes=number_of(message, "physical_block_bytes"),
            write_cache=flag_of(message, "write_cache"),
            removable=flag_of(message, "removable"),
        )
        return row, policies

    async def _abandon(self, message: dict[str, Any]) -> None:
        await self._incoming.abandon(self.peer, _uuid_of(message, "replica"))

    async def _connect(self, message: dict[str, Any]) -> dict[str, Any]:
        replica = self._replica(text_of(message, "replica"))
        state = await replica.connect()
        return {
            "incarnation": state.ack.incarnation,
            "connection": state.ack.connection,
            "points": [point.guid for point in self._incoming.points(replica.row)][-MAX_POINTS:],
            "staging": state.staging,
        }

    async def _disconnect(self, message: dict[str, Any]) -> None:
        self._replica(text_of(message, "replica")).disconnect(number_of(message, "connection"))

    async def _changed(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._working(message) as replica:
            older, newer = optional_text(message, "older"), optional_text(message, "newer")
            found = await replica.link.changed_page(older, newer, number_of(message, "offset"), MAX_EXTENTS)
        rest = found[-1].end if len(found) == MAX_EXTENTS else None
        return {"extents": [[extent.offset, extent.length] for extent in found], "next": rest}

    async def _freeze_head(self, message: dict[str, Any]) -> None:
        with self._working(message) as replica:
            await replica.link.freeze_head(text_of(message, "guid"))

    async def _begin_staging(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._working(message) as replica:
            await replica.link.begin_staging(optional_text(message, "base"), number_of(message, "size_bytes"))
            return self._staging_of(replica)

    async def _resume_staging(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._working(message) as replica:
            return self._staging_of(replica)

    def _staging_of(self, replica: IncomingReplica) -> dict[str, Any]:
        staging = replica.staging()
        unit = self._incoming.unit_bytes(replica)
        return {"size_bytes": staging.size_bytes, "unit_bytes": max(LEAF_BYTES, unit)}

    async def _abort_staging(self, message: dict[str, Any]) -> None:
        replica = self._replica(text_of(message, "replica"))
        with replica.working(None):
            await replica.link.abort_staging()

    async def _commit_staging(self, message: dict[str, Any]) -> None:
        with self._working(message) as replica:
            await replica.link.commit_staging(text_of(message, "guid"))
            await self._incoming.switched(replica)

    async def _discard_staging(self, message: dict[str, Any]) -> None:
        with self._working(message) as replica:
            await replica.staging().discard(number_of(message, "offset"), number_of(message, "length"))

    async def _flush_staging(self, message: dict[str, Any]) -> None:
        with self._working(message) as replica:
            await replica.staging().flush()

    async def _flush(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._working(message) as replica:
            return _ack_fields(await replica.link.flush())

    async def _mark(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._working(message) as replica:
            return _ack_fields(await replica.link.mark(text_of(message, "guid")))

    async def _keep_points(self, message: dict[str, Any]) -> None:
        guids = message.get("guids")
        if not isinstance(guids, list) or len(guids) > MAX_POINTS or not all(isinstance(guid, str) for guid in guids):
            raise FrameError("a message without fitting guids")
        replica = self._replica(text_of(message, "replica"))
        with replica.working(None):
            await replica.link.keep_points({*guids, *self._incoming.kept_points(replica.row)})

    async def _group_point(self, message: dict[str, Any]) -> None:
        members = message.get("replicas")
        if not isinstance(members, list) or not 0 < len(members) <= MAX_MEMBERS:
            raise FrameError("a message without fitting replicas")
        if not all(isinstance(member, str) and len(member) <= 36 for member in members):
            raise FrameError("a message without fitting replicas")
        await self._incoming.complete_group(
            GroupPointRow(
                group_id=_uuid_of(message, "group"),
                peer=self.peer,
                name=check_name("replica group", text_of(message, "name", 64)),
                guid=_uuid_of(message, "guid"),
                at=number_of(message, "at_us") / 1e6,
                members=tuple(members),
            )
        )

    async def _point(self, message: dict[str, Any]) -> dict[str, Any]:
        return {"size_bytes": (await self._device(message)).size_bytes}

    async def _read(self, message: dict[str, Any]) -> bytes:
        length = number_of(message, "length", MAX_DATA_BYTES)
        data = memoryview(bytearray(length))
        await (await self._device(message)).read(number_of(message, "offset"), data)
        return leaf_digests(data) + bytes(data)

    async def _extents(self, message: dict[str, Any]) -> dict[str, Any]:
        offset, length = number_of(message, "offset"), number_of(message, "length", EXTENTS_WINDOW_BYTES)
        found: list[Extent] = await (await self._device(message)).extents(offset, length)
        return {"extents": [[extent.offset, extent.length, extent.state.value] for extent in found]}

    async def _digests(self, message: dict[str, Any]) -> dict[str, Any]:
        device = await self._device(message)
        offset, length = number_of(message, "offset"), number_of(message, "length", MAX_DIGESTED_BYTES)
        if not isinstance(device, BulkSource):
            raise NotSupported("this store does not digest")
        lease = await device.lease_read(offset, length)
        try:
            return {"digests": (await self._env.mover.digest(length, lease)).hex()}
        finally:
            lease.release()

    async def _device(self, message: dict[str, Any]) -> BlockDevice:
        """A recovery point (``point``), or the staging area."""
        replica, guid = self._replica(text_of(message, "replica")), optional_text(message, "point")
        return replica.staging() if guid is None else await replica.link.point(guid)

    async def _report(self, message: dict[str, Any]) -> None:
        replica = self._replica(text_of(message, "replica"))
        texts = ("copy_state", "progress_status", "reason")
        replica.report = {key: printable(text_of(message, key, 1000)) for key in texts}
        replica.report["percent_synced"] = number_of(message, "percent_synced", 100)
        replica.reported_at = self._env.clock.time()
        await self._incoming.protect(replica, fractured=flag_of(message, "fractured"))

    @property
    def _failovers(self) -> Failovers:
        if self._incoming.failovers is None:
            raise NotSupported("nobody decides on failovers here")
        return self._incoming.failovers

    async def _facts(self, message: dict[str, Any]) -> None:
        replica = self._replica(text_of(message, "replica"))
        await self._failovers.facts(replica, text_of(message, "facts", MAX_FACTS_BYTES))

    async def _standing(self, message: dict[str, Any]) -> dict[str, Any]:
        return await self._failovers.standing(self.peer, message)

    async def _promote(self, message: dict[str, Any]) -> dict[str, Any]:
        return await self._failovers.promote(self.peer, message)

    async def _hand_over(self, message: dict[str, Any]) -> dict[str, Any]:
        return await self._failovers.hand_over(self.peer, _uuid_of(message, "replica"))

    async def _detach(self, message: dict[str, Any]) -> None:
        await self._incoming.detach(self._replica(text_of(message, "replica")).row)

    async def _knows(self, message: dict[str, Any]) -> None:
        await self._gate.knows(self.peer, text_of(message, "fingerprint", 64))

    async def _next(self, message: dict[str, Any]) -> dict[str, Any]:
        certificate = text_of(message, "certificate", MAX_CERTIFICATE_BYTES)
        return {"knows": await self._gate.take_next(self.peer, certificate)}

    async def _authenticate(self, message: dict[str, Any]) -> dict[str, Any]:
        username = text_of(message, "username", MAX_CREDENTIAL_CHARS)
        password = text_of(message, "password", MAX_CREDENTIAL_CHARS)
        return {"role": await self._gate.role_of(self.peer, username, password)}

    async def _ping(self, message: dict[str, Any]) -> None:
        del message


_OPERATIONS: dict[str, Callable[[ControlSession, dict[str, Any]], Awaitable[dict[str, Any] | bytes | None]]] = {
    "create": ControlSession._create,
    "attach": ControlSession._attach,
    "abandon": ControlSession._abandon,
    "connect": ControlSession._connect,
    "disconnect": ControlSession._disconnect,
    "changed": ControlSession._changed,
    "freeze_head": ControlSession._freeze_head,
    "begin_staging": ControlSession._begin_staging,
    "resume_staging": ControlSession._resume_staging,
    "abort_staging": ControlSession._abort_staging,
    "commit_staging": ControlSession._commit_staging,
    "discard_staging": ControlSession._discard_staging,
    "flush_staging": ControlSession._flush_staging,
    "flush": ControlSession._flush,
    "mark": ControlSession._mark,
    "lease": ControlSession._lease,
    "demote": ControlSession._demote,
    "keep_points": ControlSession._keep_points,
    "group_point": ControlSession._group_point,
    "point": ControlSession._point,
    "read": ControlSession._read,
    "extents": ControlSession._extents,
    "digests": ControlSession._digests,
    "report": ControlSession._report,
    "detach": ControlSession._detach,
    "facts": ControlSession._facts,
    "standing": ControlSession._standing,
    "promote": ControlSession._promote,
    "hand_over": ControlSession._hand_over,
    "knows": ControlSession._knows,
    "next": ControlSession._next,
    "authenticate": ControlSession._authenticate,
    "ping": ControlSession._ping,
}

_LONG = frozenset({"changed", "read", "extents", "digests"})
"""Operations whose answers, or what they are made from, are long."""


def failure_payload(error: EngineError) -> bytes:
    """An error for the wire; long texts are cut."""
    message = error_to_json(error)
    message["message"] = message["message"][:1000]
    payload = encode_json(message)
    return payload if len(payload) <= 4096 else encode_json({"type": message["type"], "message": message["message"]})


def _uuid_of(message: dict[str, Any], key: str) -> str:
    try:
        return str(uuid.UUID(text_of(message, key, 36)))
    except ValueError:
        raise FrameError(f"a message without a fitting {key}") from None


def _ack_fields(ack: Ack) -> dict[str, Any]:
    return {"incarnation": ack.incarnation, "connection": ack.connection}
