"""The peers of a pool: invited, enrolled, connected to, given another certificate, removed.

Invariants:

* A peer is let in by the certificate that its row has, or by the one that it has announced as its next. The first
  connection with the next one makes it the only one.
* A rotation ends when every peer has confirmed that it knows the new certificate; until then the old one is shown. The
  new key is on disk before anybody hears of it, and takes the old one's place in one rename.
* An invitation is used in one transaction with the new row. Whoever lost the answer says the same again.
* Removing a peer ends its connections at once, and its certificate opens none any more.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from engine.addresses import address_text, parse_address
from engine.catalog_peers import PeerRow, require_peer
from engine.encryption import check_source
from engine.errors import (
    AlreadyExists,
    EngineError,
    InUse,
    InvalidArgument,
    InvalidState,
    NotSupported,
    PeerUnreachable,
    PermissionDenied,
)
from engine.names import check_name
from engine.peers.client import PeerClient, open_tls
from engine.peers.control import HANDSHAKE_S, FrameConnection
from engine.peers.frames import (
    HELLO_ONLY,
    Frame,
    FrameType,
    Kind,
    decode_json,
    encode_json,
    failure_of,
    optional_text,
    text_of,
)
from engine.peers.identity import (
    CURRENT,
    FOLDER,
    MAX_CERTIFICATE_BYTES,
    NEXT,
    Identity,
    check_certificate,
    client_context,
    enrolment_context,
    fingerprint_of,
    same,
    server_context,
)
from engine.peers.invitation import MAX_ADDRESS_CHARS, MAX_LIFETIME_S, Invitation, secret_hash
from engine.peers.rate import check_rate
from engine.peers.server import PeerServer

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from engine.peers.incoming import Incoming
    from engine.pool import Pool

log = logging.getLogger(__name__)

MAX_PEERS = 64
ENROLLED_PAUSE_S = 0.5
"""Before we connect to a peer that was enrolled a moment ago."""

_WILDCARDS = frozenset({"0.0.0.0", "::"})


class Peers:
    """See the module. ``software`` is what others are told about us."""

    def __init__(self, pool: Pool, incoming: Incoming, *, software: str) -> None:
        self.incoming = incoming
        incoming.key_for = lambda peer: self.row(peer).key_source
        self._pool = pool
        self._software = software
        self._folder = pool.path / FOLDER
        self._rows: dict[str, PeerRow] = {}
        self._identity: Identity | None = None
        self._next: Identity | None = None
        self._clients: dict[str, PeerClient] = {}
        self._server: PeerServer | None = None
        self._address: str | None = None
        self._context: ssl.SSLContext | None = None
        self._pins: dict[str, str] = {}
        self._changing = asyncio.Lock()
        self._serving = False
        self._announcing: set[asyncio.Task[None]] = set()
        self.began: Callable[[str], None] = lambda _peer: None
        """Called when there is a new client for a peer."""
        self.users: Callable[[str, str, str], Awaitable[str | None]] | None = None
        """By a peer, a username and a password: the role of this pool's user; None: nobody here knows users."""

    async def restore(self) -> None:
        """Read who is trusted. Nobody is connected yet."""
        self._rows = {row.name: row for row in await self._pool.catalog.peers.all()}
        if (self._folder / CURRENT).exists():
            self._identity = await asyncio.to_thread(Identity.load, self._folder / CURRENT)
        if (self._folder / NEXT).exists():
            self._next = await asyncio.to_thread(Identity.load, self._folder / NEXT)
        self._refresh()

    async def start(self, listener: socket.socket | None, address: str | None) -> None:
        """Connect to the peers, and serve those who connect to ``listener``, which is bound to ``address``."""
        self._serving = True
        if listener is not None:
            await self._mine()
            self._address = address
            self._server = PeerServer(listener, self, self.incoming, self._pool.env)
            self._server.start()
        for row in self._rows.values():
            self._begin(row)

    async def close(self) -> None:
        """End all connections."""
        self._serving = False
        await asyncio.gather(*(client.close() for client in self._clients.values()))
        if self._announcing:
            await asyncio.wait(self._announcing)
        if self._server is not None:
            await self._server.close()

    # --- looking ----------------------------------------------------------------------------------------------------

    def rows(self) -> list[PeerRow]:
        return [self._rows[name] for name in sorted(self._rows)]

    def row(self, name: str) -> PeerRow:
        """Raises NotFound."""
        return require_peer(self._rows, name)

    def standing(self, name: str) -> tuple[bool, bool, str]:
        """Whether we are connected to a peer, whether it is to us, and why we are not."""
        client = self._clients.get(name)
        served = self.is_served(name)
        if client is None:
            return False, served, "it has said no address: it connects to us only"
        return client.is_connected, served, "" if client.is_connected else client.why

    def sent_bytes(self, name: str) -> int:
        """To a peer, for mirrors, since the start."""
        client = self._clients.get(name)
        return 0 if client is None else client.sent_bytes

    def is_served(self, name: str) -> bool:
        """Whether a peer has a control connection to us."""
        return self._server is not None and self._server.is_connected(name)

    def reaches(self, name: str) -> bool:
        """Whether we have a control connection to a peer."""
        client = self._clients.get(name)
        return client is not None and client.is_connected

    def has_client(self, name: str) -> bool:
        """Whether requests can be sent to a peer now. Raises NotFound."""
        self.row(name)
        return self.reaches(name)

    def client(self, name: str) -> PeerClient:
        """Raises NotFound, and PeerUnreachable when the peer has no address."""
        self.row(name)
        client = self._clients.get(name)
        if client is None:
            raise PeerUnreachable(f"peer {name} has said no address; it was not listening when it was enrolled")
        return client

    # --- changing ---------------------------------------------------------------------------------------------------

    async def invite(self, name: str | None, address: str | None, lifetime_s: float) -> tuple[str, float]:
        """A one-time code, and when it expires. ``name``: what the peer will be called here.

        Raises InvalidState (no socket for peers), InvalidArgument, AlreadyExists.
        """
        if self._address is None:
            raise InvalidState("this daemon", "not listening for peers", "serve --peer HOST:PORT")
        if not 0 < lifetime_s <= MAX_LIFETIME_S:
            raise InvalidArgument(f"an invitation is good for at most {MAX_LIFETIME_S:.0f} s")
        address = address or self._address
        host, port = parse_address(address)
        if host in _WILDCARDS or not port or len(address) > MAX_ADDRESS_CHARS:
            raise InvalidArgument(f"a peer cannot connect to {address}; say where it can: --address HOST:PORT")
        if name is not None:
            self._require_new(name)
        invitation = Invitation.make(address, (await self._mine()).fingerprint)
        now = self._pool.env.clock.time()
        await self._pool.catalog.peers.invite(secret_hash(invitation.secret), name, now + lifetime_s, now)
        return invitation.code(), now + lifetime_s

    async def add(self, name: str, code: str, address: str | None = None) -> PeerRow:
        """Become the peer of the pool that made ``code``, which is called ``name`` here. ``address``: where it is, if
        not where the code says.

        Raises InvalidArgument (no code), PermissionDenied (used, expired; another pool answers), PeerUnreachable.
        """
        async with self._changing:
            self._require_new(name)
            invitation = Invitation.parse(code)
            if same(invitation.fingerprint, (await self._mine()).fingerprint):
                raise InvalidArgument("this pool made that invitation itself; use it at the other one")
            where = address or invitation.address
            answer, certificate = await self._enrol_at(where, invitation)
            if self.peer_with(check_certificate(certificate)) is not None:
                raise AlreadyExists("peer with this certificate", str(self.peer_with(check_certificate(certificate))))
            row = PeerRow(name, certificate, None, where, self._pool.env.clock.time())
            await self._pool.catalog.peers.put(row)
            self._take(row)
            log.info("peer %s: enrolled; it calls us %s", name, answer.get("name"))
            self._begin(row)
            return row

    async def remove(self, name: str, *, force: bool = False) -> None:
        """Trust a peer no longer, from now on. Raises InUse: replicas are here for it, or there for us."""
        self.row(name)
        held = [row.name for row in self.incoming.of_peer(name)]
        if held and not force:
            raise InUse(f"peer {name} has replicas here ({', '.join(held[:8])}); detach them first, or use --force")
        async with self._changing:
            row = self.row(name)
            await self._pool.catalog.peers.remove(name)
            del self._rows[name]
            self._refresh()
            if self._server is not None:
                self._server.drop(name, "this peer was removed")
            client = self._clients.pop(name, None)
            if client is not None:
                await client.close()
            log.warning("peer %s: removed, its certificate %s is not trusted any more", name, _shown(row.certificate))

    async def limit(self, name: str, rate_bytes_s: int) -> PeerRow:
        """Send a peer at most so many bytes a second by copies; 0: no limit. Raises NotFound, InvalidArgument."""
        check_rate(rate_bytes_s)
        async with self._changing:
            row = await self._put(replace(self.row(name), rate_bytes_s=rate_bytes_s))
            if name in self._clients:
                self._clients[name].bucket.rate_bytes_s = rate_bytes_s
            return row

    async def set_key(self, name: str, key_source: str | None) -> PeerRow:
        """Where the key is for replicas of a peer's encrypted volumes here. Raises NotFound, InvalidArgument."""
        if key_source is not None:
            check_source(key_source)
        async with self._changing:
            return await self._put(replace(self.row(name), key_source=key_source))

    async def rotate(self) -> str:
        """Begin to replace our key and certificate; ends by itself once all peers know. The new fingerprint.

        Said again while one is under way it goes on with that.
        """
        async with self._changing:
            await self._mine()
            if self._next is None:
                self._next = await asyncio.to_thread(Identity.make, self._folder / NEXT)
            fingerprint = self._next.fingerprint
        for name in list(self._clients):
            await self._announce(name)
        for row in self.rows():  # who only connects to us hears it at the next connection
            if row.address is None and self._server is not None:
                self._server.drop(row.name, "the certificate is being replaced")
        await self._finish_rotation()
        return fingerprint

    # --- engine.peers.server.Gatekeeper ------------------------------------------------------------------------------

    @property
    def context(self) -> ssl.SSLContext:
        assert self._context is not None
        return self._context

    def peer_with(self, fingerprint: str) -> str | None:
        for pinned, name in list(self._pins.items()):
            if same(pinned, fingerprint):
                return name
        return None

    async def greet(self, peer: str, fingerprint: str, hello: dict[str, Any]) -> dict[str, Any]:
        await self._heard(peer, fingerprint, hello)
        return self.hello(peer)

    async def enrol(self, hello: dict[str, Any], host: str) -> dict[str, Any]:
        certificate = text_of(hello, "certificate", MAX_CERTIFICATE_BYTES)
        fingerprint = check_certificate(certificate)
        address = optional_text(hello, "address", MAX_ADDRESS_CHARS)
        if address is not None:
            at, port = parse_address(address)
            address = address_text(host if at in _WILDCARDS else at, port)
        try:
            secret = bytes.fromhex(text_of(hello, "secret", 64))
        except ValueError:
            raise PermissionDenied("that is no invitation") from None
        if len(self._rows) >= MAX_PEERS:
            raise InvalidState("this pool", f"at {MAX_PEERS} peers", "fewer")
        now = self._pool.env.clock.time()
        wanted = PeerRow(f"peer-{fingerprint[:8]}", certificate, None, address, now)
        async with self._changing:
            row = await self._pool.catalog.peers.enrol(secret_hash(secret), fingerprint, wanted, now)
            known = row.name in self._rows
            self._take(row)
            if not known:
                log.info("peer %s: enrolled from %s", row.name, host)
                self._begin(row, after_s=ENROLLED_PAUSE_S)  # until it has the answer it does not know us
        return {"name": row.name, "software": self._software}

    async def knows(self, peer: str, fingerprint: str) -> None:
        async with self._changing:
            if self._next is None or not same(fingerprint, self._next.fingerprint):
                return
            await self._put(replace(self.row(peer), told=fingerprint))
        await self._finish_rotation()

    async def take_next(self, peer: str, certificate: str) -> str:
        """A peer announces the certificate that it will have. Returns its fingerprint, now known here."""
        fingerprint = check_certificate(certificate)
        async with self._changing:
            row = self.row(peer)
            if certificate not in (row.certificate, row.next_certificate):
                await self._put(replace(row, next_certificate=certificate))
        return fingerprint

    # --- of clients --------------------------------------------------------------------------------------------------

    def hello(self, peer: str) -> dict[str, Any]:
        """What ``peer`` is told at the beginning of a control connection, whoever made it."""
        row = self._rows.get(peer)
        newest = None if row is None else row.next_certificate or row.certificate
        return {
            "software": self._software,
            "features": [],
            "knows": None if newest is None else check_certificate(newest),
            "next": None if self._next is None else self._next.certificate,
        }

    async def heard_from(self, peer: str, fingerprint: str, hello: dict[str, Any]) -> str | None:
        """The HELLO of a peer that we connected to. Returns the fingerprint of its next certificate, to be told it."""
        await self._heard(peer, fingerprint, hello)
        row = self._rows.get(peer)
        return None if row is None or row.next_certificate is None else check_certificate(row.next_certificate)

    def pinned(self, peer: str) -> tuple[str, list[str]]:
        """The certificates that a peer may have: as PEM, and their fingerprints. Raises NotFound."""
        row = self.row(peer)
        found = [each for each in (row.certificate, row.next_certificate) if each is not None]
        return "".join(found), [check_certificate(each) for each in found]

    async def role_of(self, peer: str, username: str, password: str) -> str | None:
        if self.users is None:
            raise NotSupported("this pool knows no users")
        return await self.users(peer, username, password)

    def context_for(self, peer: str) -> ssl.SSLContext:
        """To connect to a peer with. Raises InvalidState: we have no identity."""
        if self._identity is None:
            raise InvalidState("this pool", "without a key of its own", "one")
        return client_context(self._identity, self.pinned(peer)[0])

    # --- inside ------------------------------------------------------------------------------------------------------

    async def _heard(self, peer: str, fingerprint: str, hello: dict[str, Any]) -> None:
        """Promote the certificate that was shown, and take what is told of the next ones."""
        async with self._changing:
            row = self.row(peer)
            if row.next_certificate is not None and same(check_certificate(row.next_certificate), fingerprint):
                await self._put(replace(row, certificate=row.next_certificate, next_certificate=None))
                log.info("peer %s: has another certificate now, %s", peer, fingerprint)
        coming = optional_text(hello, "next", MAX_CERTIFICATE_BYTES)
        if coming is not None:
            await self.take_next(peer, coming)
        known = optional_text(hello, "knows", 64)
        if known is not None:
            await self.knows(peer, known)

    async def _announce(self, peer: str) -> None:
        """Tell a peer that we are connected to of the certificate that we are going to have."""
        client, coming = self._clients.get(peer), self._next
        if client is None or coming is None or not client.is_connected:
            return
        try:
            answer = await client.request("next", certificate=coming.certificate)
            await self.knows(peer, text_of(answer, "knows", 64))
        except EngineError as error:
            log.warning("peer %s will hear of the new certificate later: %s", peer, error)

    def _connected(self, peer: str) -> None:
        if self._next is not None and self._rows[peer].told != self._next.fingerprint:
            task = asyncio.get_running_loop().create_task(self._announce(peer))
            self._announcing.add(task)
            task.add_done_callback(self._announcing.discard)

    async def _finish_rotation(self) -> None:
        async with self._changing:
            coming = self._next
            if coming is None or any(row.told != coming.fingerprint for row in self._rows.values()):
                return
            self._identity = await asyncio.to_thread(coming.become, self._folder / CURRENT)
            self._next = None
            for row in self.rows():
                await self._put(replace(row, told=None))
            log.info("all peers know the new certificate %s; it is the only one now", self._identity.fingerprint)
        for client in self._clients.values():
            client.reconnect()

    async def _enrol_at(self, address: str, invitation: Invitation) -> tuple[dict[str, Any], str]:
        """Use an invitation. Returns the answer, and the inviting pool's certificate."""
        mine = await self._mine()
        loop = asyncio.get_running_loop()
        first: asyncio.Future[Frame] = loop.create_future()

        def take(frame: Frame) -> None:
            if not first.done():
                first.set_result(frame)

        def ended(why: asyncio.Future[EngineError]) -> None:
            if not first.done():
                first.set_exception(why.result())
                first.exception()

        connection = FrameConnection(HELLO_ONLY, take)
        connection.ended.add_done_callback(ended)
        try:
            async with asyncio.timeout(HANDSHAKE_S):
                await open_tls(connection, parse_address(address), Kind.ENROL, enrolment_context())
                certificate = connection.certificate() or b""
                if not same(fingerprint_of(certificate), invitation.fingerprint):
                    raise PermissionDenied(f"who answers at {address} is not who made the invitation")
                hello = {
                    "secret": invitation.secret.hex(),
                    "certificate": mine.certificate,
                    "address": self._address,
                    "software": self._software,
                }
                connection.send(FrameType.HELLO, 0, encode_json(hello))
                answer = decode_json((await first).payload)
        except TimeoutError:
            raise PeerUnreachable(f"{address} has not answered within {HANDSHAKE_S:g} s") from None
        except ssl.SSLError as error:
            raise PeerUnreachable(f"{address}: no TLS: {error.reason or error}") from error
        finally:
            connection.abort(PeerUnreachable("enrolment is over"))
        refusal = answer.get("error")
        if isinstance(refusal, dict):
            raise failure_of(refusal)
        return answer, ssl.DER_cert_to_PEM_cert(certificate)

    async def _mine(self) -> Identity:
        """Our identity, made when it is first needed."""
        if self._identity is None:
            self._identity = await asyncio.to_thread(Identity.make, self._folder / CURRENT)
            self._refresh()
        return self._identity

    def _require_new(self, name: str) -> None:
        check_name("peer", name)
        if name in self._rows:
            raise AlreadyExists("peer", name)
        if len(self._rows) >= MAX_PEERS:
            raise InvalidState("this pool", f"at {MAX_PEERS} peers", "fewer")

    async def _put(self, row: PeerRow) -> PeerRow:
        await self._pool.catalog.peers.put(row)
        self._take(row)
        return row

    def _take(self, row: PeerRow) -> None:
        self._rows[row.name] = row
        self._refresh()

    def _refresh(self) -> None:
        """The pins and the server's TLS follow from rows and identity."""
        pins: dict[str, str] = {}
        pem = ""
        for row in self._rows.values():
            for certificate in (row.certificate, row.next_certificate):
                if certificate is not None:
                    pins[check_certificate(certificate)] = row.name
                    pem += certificate
        self._pins = pins
        self._context = None if self._identity is None else server_context(self._identity, pem)

    def _begin(self, row: PeerRow, *, after_s: float = 0.0) -> None:
        """Connect to a peer, and keep that up. Who asks it something before ``after_s`` is over waits."""
        wanted = self._serving and row.name in self._rows and row.name not in self._clients
        if not wanted or row.address is None or self._identity is None:
            return
        name = row.name
        client = self._clients[name] = PeerClient(_Settings(self, name), lambda: self._connected(name))
        client.bucket.rate_bytes_s = row.rate_bytes_s
        client.start(after_s)
        self.began(name)


class _Settings:
    """``engine.peers.client.PeerSettings`` of one peer, as the registry has it now."""

    def __init__(self, peers: Peers, name: str) -> None:
        self._peers = peers
        self.name = name

    @property
    def address(self) -> tuple[str, int]:
        address = self._peers.row(self.name).address
        if address is None:
            raise PeerUnreachable(f"peer {self.name} has said no address")
        return parse_address(address)

    @property
    def context(self) -> ssl.SSLContext:
        return self._peers.context_for(self.name)

    @property
    def pinned(self) -> list[str]:
        return self._peers.pinned(self.name)[1]

    def hello(self) -> dict[str, Any]:
        return self._peers.hello(self.name)

    async def greeted(self, fingerprint: str, hello: dict[str, Any]) -> str | None:
        return await self._peers.heard_from(self.name, fingerprint, hello)


def _shown(certificate: str) -> str:
    try:
        return check_certificate(certificate)
    except InvalidArgument:
        return "(damaged)"
