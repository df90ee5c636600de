"""The target's login machine (RFC 7143 sections 6.3, 11.12 and 11.13). No socket, no clock.

A login walks SecurityNegotiation -> LoginOperationalNegotiation -> FullFeaturePhase; the initiator may begin with the
second and may skip it. It asks for each transition by T and NSG; we grant it in the answer to the same request, because
we never have a question of our own left. Where CHAP is required (``Target.chap``, ``TargetRegistry.discovery_chap``)
the login must begin with SecurityNegotiation and stays there until ``chap.TargetChap`` is done.

The first complete text says who asks and for what; everything that can refuse a login for that reason is decided there,
before anything is negotiated. A refusal is a Login Response with its status, after which the connection is to be closed
(``failed``). When all is well but for the session itself, ``outcome`` is set and no response is returned: the caller
makes the session (waiting for one that it replaces, if need be), then sends what ``grant`` or ``refuse`` returns.

Bounds: one login takes at most ``MAX_REQUESTS`` requests and holds at most ``MAX_TEXT_BYTES`` of unfinished text.
"""

from __future__ import annotations

import dataclasses
import enum
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from iscsi.chap import CHAP_KEYS, TargetChap
from iscsi.negotiation import IDENTITY, Responder, SessionParameters
from iscsi.target import DEFAULT_PORTAL_GROUP, is_plausible_name, normalize_name
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import VERSION, LoginStatus, Opcode, Stage
from iscsi.wire.requests import LoginRequest
from iscsi.wire.responses import LoginResponse
from iscsi.wire.text_keys import MAX_TEXT_BYTES, parse_text, serialize_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from iscsi.chap import ChapAccess, ChapIdentity, RandomBytes
    from iscsi.session import Session
    from iscsi.target import Target, TargetRegistry
    from iscsi.wire.pdu import Frame

MAX_REQUESTS = 32
"""Login Requests of one login; a CHAP login with every text split in two needs ten."""

MAX_ALIAS_BYTES = 255  # section 13.7

_SERIAL_MASK = 0xFFFFFFFF


class SessionType(enum.Enum):
    """Section 13.21; the values are those of the key."""

    NORMAL = "Normal"
    DISCOVERY = "Discovery"


@dataclass(frozen=True, slots=True)
class LoginOutcome:
    """What a login asks for that is about to be granted.

    ``target``: None in a discovery session. ``exp_cmd_sn``: CmdSN of the first command. ``stat_sn``: StatSN of the
    first response after the one that ``grant`` makes. A session of the same initiator name, ISID and target is
    replaced by this one (section 6.3.5). ``tsih``: of the session that this connection goes on with (connection
    reinstatement, section 6.3.4); 0 for a new session. ``chap_user``: as whom the initiator has proven itself, if it
    had to; ``chap_proof``: that, with the secret that it knew.
    """

    session_type: SessionType
    initiator_name: str
    initiator_alias: str
    isid: bytes
    cid: int
    target: Target | None
    parameters: SessionParameters
    exp_cmd_sn: int
    stat_sn: int
    tsih: int
    chap_user: str | None
    chap_proof: ChapIdentity | None


class TargetLogin:
    """One connection's login. Feed it every frame until it has an ``outcome`` or has ``failed``; ``why`` is for the
    log then: who was refused what for which reason, without anything secret."""

    def __init__(
        self,
        registry: TargetRegistry,
        find_session: Callable[[int], Session | None],
        *,
        portal_group: int = DEFAULT_PORTAL_GROUP,
        random_bytes: RandomBytes = secrets.token_bytes,
    ) -> None:
        """
        Args:
            registry: targets and who may use them.
            find_session: the session of a TSIH.
            portal_group: tag of the portal's group.
            random_bytes: so many bytes that nobody can guess; for CHAP.
        """
        self._registry = registry
        self._portal_group = portal_group
        self._find_session = find_session
        self._reinstated: Session | None = None
        self._first: LoginRequest | None = None
        self._last: LoginRequest | None = None
        self._requests = 0
        self._stage: int = Stage.SECURITY
        self._text = bytearray()
        self._stat_sn = 0
        self._session_type = SessionType.NORMAL
        self._initiator_name = ""
        self._initiator_alias = ""
        self._target: Target | None = None
        self._responder: Responder | None = None
        self._random_bytes = random_bytes
        self._access: ChapAccess | None = None
        self._auth_settled = False
        self._chap: TargetChap | None = None
        self._final_text = b""
        self.outcome: LoginOutcome | None = None
        self.failed = False
        self.why = ""

    def receive(self, frame: Frame) -> LoginResponse | None:
        """Take one PDU; return the response to send, or None when ``outcome`` waits for ``grant`` or ``refuse``.

        Raises:
            ProtocolError: something other than a Login Request came first: close the connection without a word.
        """
        assert self.outcome is None
        assert not self.failed
        if frame.opcode != Opcode.LOGIN_REQUEST:
            if self._last is None:
                raise ProtocolError(f"opcode {frame.opcode:#04x} before login", None)
            return self._refuse(LoginStatus.INVALID_DURING_LOGIN, f"opcode {frame.opcode:#04x} during login")
        try:
            request = LoginRequest.parse(frame.bhs, frame.ahs, frame.data)
            # Kept before it is checked, so that a bad request is answered under its own tag; without its data,
            # which lies in the receive buffer.
            self._last = dataclasses.replace(request, data=b"")
            request.check()
            return self._advance(request)
        except ProtocolError as error:
            if self._last is None:
                raise
            status = error.answer if isinstance(error.answer, LoginStatus) else LoginStatus.INITIATOR_ERROR
            return self._refuse(status, str(error))

    def grant(self, tsih: int, max_cmd_sn: int) -> LoginResponse:
        """The response that ends a login well: the session has this TSIH (not 0) and command window."""
        assert self.outcome is not None
        assert self._last is not None
        return self._respond(self._last, text=self._final_text, transit=True, tsih=tsih, max_cmd_sn=max_cmd_sn)

    def refuse(self, status: LoginStatus) -> LoginResponse:
        """The response that ends a login badly for a reason of the caller's, such as OUT_OF_RESOURCES."""
        return self._refuse(status, "the target cannot take it now")

    def _refuse(self, status: LoginStatus, why: str) -> LoginResponse:
        assert self._last is not None
        whither = self._target or ("discovery" if self._session_type is SessionType.DISCOVERY else "no target")
        self.why = f"{self._initiator_name or 'an unnamed initiator'} to {whither}, {status.name}: {why}"
        return self._respond(self._last, status=status)

    def _advance(self, request: LoginRequest) -> LoginResponse | None:
        self._check_header(request)
        if len(self._text) + len(request.data) > MAX_TEXT_BYTES:
            raise ProtocolError(f"more than {MAX_TEXT_BYTES} bytes of login text", LoginStatus.INITIATOR_ERROR)
        self._text += request.data
        if request.continued:
            return self._respond(request)
        pairs = parse_text(self._text)
        self._text.clear()
        answers = []
        if self._responder is None:
            answers += self._identify(pairs)
            self._responder = Responder(
                discovery=self._session_type is SessionType.DISCOVERY,
                session=None if self._reinstated is None else self._reinstated.connection.parameters,
            )
        elif IDENTITY & pairs.keys():
            raise ProtocolError("who asks for what is said in the first text", LoginStatus.INITIATOR_ERROR)
        operational = self._stage == Stage.OPERATIONAL
        answers += self._authenticate(pairs)
        if not self._is_authentic and (operational or (request.transit and self._chap is None)):
            raise ProtocolError("CHAP is required and was not offered", LoginStatus.AUTHENTICATION_FAILURE)
        answers += self._responder.answer(pairs.items(), operational=operational)
        text = serialize_text(answers)
        if not request.transit or not self._is_authentic:
            return self._respond(request, text=text)
        if request.nsg != Stage.FULL_FEATURE:
            response = self._respond(request, text=text, transit=True)
            self._stage = request.nsg
            return response
        self._conclude(request, text)
        return None

    def _check_header(self, request: LoginRequest) -> None:
        """What may not change, or must be so, from request to request."""
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise ProtocolError("login takes too many requests", LoginStatus.INITIATOR_ERROR)
        if request.version_min > VERSION:
            raise ProtocolError(f"iSCSI version {request.version_min}", LoginStatus.UNSUPPORTED_VERSION)
        first = self._first
        if first is None:
            self._first = self._last
            self._stage = request.csg
            self._stat_sn = request.exp_stat_sn
            return
        if (request.isid, request.tsih, request.cid) != (first.isid, first.tsih, first.cid):
            raise ProtocolError("ISID, TSIH or CID changed during login", LoginStatus.INITIATOR_ERROR)
        if request.csg != self._stage:
            raise ProtocolError(f"CSG {request.csg} in stage {self._stage}", LoginStatus.INITIATOR_ERROR)

    def _identify(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        """Who asks, for which session of which target; the keys that the first response owes (section 13.9)."""
        name = normalize_name(pairs.get("InitiatorName", ""))
        if not name:
            raise ProtocolError("no InitiatorName", LoginStatus.MISSING_PARAMETER)
        if not is_plausible_name(name):
            raise ProtocolError("bad InitiatorName", LoginStatus.INITIATOR_ERROR)
        self._initiator_name = name
        self._initiator_alias = pairs.get("InitiatorAlias", "")
        if len(self._initiator_alias.encode()) > MAX_ALIAS_BYTES:
            raise ProtocolError("InitiatorAlias is too long", LoginStatus.INITIATOR_ERROR)
        kind = pairs.get("SessionType", SessionType.NORMAL.value)
        if kind == SessionType.DISCOVERY.value:
            self._session_type = SessionType.DISCOVERY
        elif kind != SessionType.NORMAL.value:
            raise ProtocolError("unknown SessionType", LoginStatus.SESSION_TYPE_NOT_SUPPORTED)
        answers = []
        self._access = self._registry.discovery_chap
        if self._session_type is SessionType.NORMAL:
            self._target = self._find_target(pairs)
            self._access = self._target.chap
            answers.append(("TargetPortalGroupTag", str(self._portal_group)))
            if self._target.alias:
                answers.append(("TargetAlias", self._target.alias))
        self._check_tsih()
        return answers

    def _find_target(self, pairs: dict[str, str]) -> Target:
        name = pairs.get("TargetName", "")
        if not name:
            raise ProtocolError("no TargetName", LoginStatus.MISSING_PARAMETER)
        target = self._registry.find(name)
        if target is None or not target.is_in(self._portal_group):
            raise ProtocolError("no such target at this portal", LoginStatus.NOT_FOUND)
        if not target.admits(self._initiator_name):
            raise ProtocolError(f"{self._initiator_name} is not admitted", LoginStatus.AUTHORIZATION_FAILURE)
        return target

    def _check_tsih(self) -> None:
        """A TSIH asks to go on with a session (section 6.3.1): by the same CID it replaces the connection, by another
        one it would add one, and there is one connection per session here.

        An initiator that begins anew after a broken connection sends TSIH 0, which replaces its session.
        """
        first = self._first
        assert first is not None
        if not first.tsih:
            return
        session = self._find_session(first.tsih)
        mine = (self._initiator_name, bytes(first.isid), self._target, self._portal_group)
        if session is None or mine != (session.initiator_name, session.isid, session.target, session.portal_group):
            raise ProtocolError(f"no session of its own has TSIH {first.tsih}", LoginStatus.SESSION_DOES_NOT_EXIST)
        if session.target is None or session.connection.cid != first.cid:
            raise ProtocolError("a session has one connection", LoginStatus.TOO_MANY_CONNECTIONS)
        self._reinstated = session

    def _authenticate(self, pairs: dict[str, str]) -> list[tuple[str, str]]:
        """Settle AuthMethod (section 12.1) and carry the method through; takes its keys out of ``pairs``."""
        offered = pairs.pop("AuthMethod", None)
        keys = {key: pairs.pop(key) for key in CHAP_KEYS & pairs.keys()}
        if offered is None and self._chap is not None and not self._chap.done:
            return self._continue_chap(self._chap, keys)
        if keys:
            raise ProtocolError(f"{', '.join(sorted(keys))} out of turn", LoginStatus.INITIATOR_ERROR)
        if offered is None:
            return []
        if self._stage != Stage.SECURITY or self._auth_settled:
            raise ProtocolError("AuthMethod comes once, in the security stage", LoginStatus.INITIATOR_ERROR)
        method = "None" if self._access is None else "CHAP"
        if method not in offered.split(","):
            raise ProtocolError(f"AuthMethod {method} was not offered", LoginStatus.AUTHENTICATION_FAILURE)
        self._auth_settled = True
        if self._access is not None:
            self._chap = TargetChap(self._access, self._random_bytes)
        return [("AuthMethod", method)]

    def _continue_chap(self, chap: TargetChap, keys: dict[str, str]) -> list[tuple[str, str]]:
        answers = chap.answer(keys)
        assert self._access is not None
        if chap.user is not None and not self._access.fits(chap.user, self._initiator_name):
            raise ProtocolError(
                f"CHAP user {chap.user!r} is not {self._initiator_name}", LoginStatus.AUTHORIZATION_FAILURE
            )
        return answers

    @property
    def _is_authentic(self) -> bool:
        """Whether all is proven that has to be."""
        return self._access is None or (self._chap is not None and self._chap.done)

    def _conclude(self, request: LoginRequest, text: bytes) -> None:
        assert self._responder is not None
        self._final_text = text
        self.outcome = LoginOutcome(
            session_type=self._session_type,
            initiator_name=self._initiator_name,
            initiator_alias=self._initiator_alias,
            isid=bytes(request.isid),
            cid=request.cid,
            target=self._target,
            parameters=self._responder.parameters(),
            exp_cmd_sn=request.cmd_sn,
            stat_sn=(self._stat_sn + 1) & _SERIAL_MASK,
            tsih=request.tsih,
            chap_user=None if self._chap is None else self._chap.user,
            chap_proof=None if self._chap is None else self._chap.proof,
        )

    def _respond(
        self,
        request: LoginRequest,
        *,
        status: LoginStatus = LoginStatus.SUCCESS,
        text: bytes = b"",
        transit: bool = False,
        tsih: int | None = None,
        max_cmd_sn: int | None = None,
    ) -> LoginResponse:
        """A response to ``request``, numbered. A status other than success ends the login.

        The command window is the session's where there is one already, which a stranger is not told; a new one begins
        at the request's CmdSN.
        """
        session = self._reinstated if self._is_authentic else None
        exp_cmd_sn = request.cmd_sn if session is None else session.exp_cmd_sn
        response = LoginResponse(
            isid=request.isid,
            tsih=request.tsih if tsih is None else tsih,
            itt=request.itt,
            stat_sn=self._stat_sn,
            exp_cmd_sn=exp_cmd_sn,
            max_cmd_sn=exp_cmd_sn if max_cmd_sn is None else max_cmd_sn,
            status=status,
            csg=request.csg if status is LoginStatus.SUCCESS else 0,
            nsg=request.nsg if transit else 0,
            transit=transit,
            version_max=VERSION,
            version_active=VERSION,
            data=text,
        )
        self._stat_sn = (self._stat_sn + 1) & _SERIAL_MASK
        self.failed = status is not LoginStatus.SUCCESS
        return response
