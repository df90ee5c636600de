"""The initiator's login machine (RFC 7143 section 6.3): one request at a time, no socket.

It begins in SecurityNegotiation, with CHAP if it has credentials, else with AuthMethod=None so that a target which
insists on authentication can say so; then it offers all operational keys at once.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from iscsi.chap import CHAP_KEYS
from iscsi.initiator.chap import ChapCredentials, InitiatorChap
from iscsi.initiator.errors import LoginRefused, TargetNotAuthentic
from iscsi.negotiation import Offerer, SessionParameters, Wishes
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus, Stage
from iscsi.wire.requests import LoginRequest
from iscsi.wire.text_keys import MAX_TEXT_BYTES, parse_text, serialize_text

if TYPE_CHECKING:
    from iscsi.chap import RandomBytes
    from iscsi.wire.responses import LoginResponse

MAX_REQUESTS = 16
"""Requests of one login; two suffice with a target that negotiates at once."""

FIRST_CMD_SN = 1
CID = 0
_ITT = 0


class InitiatorLogin:
    """One login. Send ``first()``, feed every response to ``receive`` and send what it returns, until it is None."""

    def __init__(
        self,
        initiator_name: str,
        target_name: str | None,
        isid: bytes,
        wishes: Wishes,
        chap: ChapCredentials | None = None,
        random_bytes: RandomBytes = secrets.token_bytes,
    ) -> None:
        """
        Args:
            target_name: None logs in to a discovery session.
            random_bytes: so many bytes that nobody can guess; for mutual CHAP.
        """
        self._names = {"InitiatorName": initiator_name}
        if target_name is None:
            self._names["SessionType"] = "Discovery"
        else:
            self._names |= {"SessionType": "Normal", "TargetName": target_name}
        self._isid = isid
        self._offerer = Offerer(wishes, discovery=target_name is None)
        self._stage = Stage.SECURITY
        self._credentials = chap
        self._random_bytes = random_bytes
        self._chap: InitiatorChap | None = None
        self._is_settled = False
        self._requests = 0
        self._text = bytearray()
        self.exp_stat_sn = 0
        self.max_cmd_sn = FIRST_CMD_SN
        self.tsih = 0

    def first(self) -> LoginRequest:
        """The request that opens the login."""
        if self._credentials is None:
            return self._request({**self._names, "AuthMethod": "None"})
        return self._request({**self._names, "AuthMethod": self._credentials.methods}, transit=False)

    def receive(self, response: LoginResponse) -> LoginRequest | None:
        """The next request, or None when the full feature phase is reached.

        Raises:
            LoginRefused: by the target, with its status.
            TargetNotAuthentic: it did not prove itself, and has to.
            ProtocolError: the target breaks the rules of login.
        """
        if response.status != LoginStatus.SUCCESS:
            moved = response.status >> 8 == 1  # a redirection carries TargetAddress (section 11.13.5)
            raise LoginRefused(response.status, parse_text(response.data).get("TargetAddress") if moved else None)
        if response.isid != self._isid or response.itt != _ITT or response.csg != self._stage:
            raise ProtocolError("the login response belongs to another login", None)
        self.exp_stat_sn = (response.stat_sn + 1) & 0xFFFFFFFF
        self.max_cmd_sn = response.max_cmd_sn
        if len(self._text) + len(response.data) > MAX_TEXT_BYTES:
            raise ProtocolError(f"more than {MAX_TEXT_BYTES} bytes of login text", None)
        self._text += response.data
        if response.continued:
            return self._request({}, transit=False)
        answers = parse_text(self._text)
        self._text.clear()
        keys = self._authenticate(answers)
        if keys is not None:
            if response.transit:
                raise ProtocolError("the target leaves the security stage in the middle of CHAP", None)
            return self._request(keys, transit="CHAP_A" not in keys)
        self._offerer.accept(answers)
        if not response.transit:
            return self._request({})
        if response.nsg <= self._stage or response.nsg not in Stage.__members__.values():
            raise ProtocolError(f"NSG {response.nsg} from CSG {response.csg}", None)
        self._stage = Stage(response.nsg)
        if self._stage is Stage.FULL_FEATURE:
            if not response.tsih:
                raise ProtocolError("the last login response has no TSIH", None)
            self.tsih = response.tsih
            return None
        return self._request(dict(self._offerer.offers()))

    def _authenticate(self, answers: dict[str, str]) -> dict[str, str] | None:
        """The CHAP keys to send next; None when there is none to send (any more)."""
        keys = {key: answers[key] for key in CHAP_KEYS & answers.keys()}
        if self._chap is not None and not self._chap.done:
            return self._chap.answer(keys) or None
        method = answers.get("AuthMethod", "None")
        if self._credentials is not None and not self._is_settled:
            self._is_settled = True
            if method == "CHAP" and not keys:
                self._chap = InitiatorChap(self._credentials, self._random_bytes)
                return self._chap.first()
            if self._credentials.target is not None:
                raise TargetNotAuthentic("the target wants no authentication, but has to prove itself")
        if keys or method != "None":
            raise ProtocolError("the target chose an AuthMethod that was not offered", None)
        return None

    def parameters(self) -> SessionParameters:
        """What was agreed. Raises ProtocolError when a digest that was insisted on was not."""
        return self._offerer.parameters()

    def _request(self, pairs: dict[str, str], *, transit: bool = True) -> LoginRequest:
        self._requests += 1
        if self._requests > MAX_REQUESTS:
            raise ProtocolError("login comes to no end", None)
        return LoginRequest(
            isid=self._isid,
            tsih=0,
            itt=_ITT,
            cid=CID,
            cmd_sn=FIRST_CMD_SN,
            exp_stat_sn=self.exp_stat_sn,
            csg=self._stage,
            nsg=(Stage.OPERATIONAL if self._stage is Stage.SECURITY else Stage.FULL_FEATURE) if transit else 0,
            transit=transit,
            data=serialize_text(pairs),
        )
