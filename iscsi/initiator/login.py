"""The initiator's login machine (RFC 7143 section 6.3): one request at a time, no socket.

It begins in SecurityNegotiation with AuthMethod=None, so that a target which insists on authentication can say so, then
offers all operational keys at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.initiator.errors import LoginRefused
from iscsi.negotiation import Offerer, SessionParameters, Wishes
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus, Stage
from iscsi.wire.requests import LoginRequest
from iscsi.wire.text_keys import MAX_TEXT_BYTES, parse_text, serialize_text

if TYPE_CHECKING:
    from iscsi.wire.responses import LoginResponse

MAX_REQUESTS = 16
"""Requests of one login; two suffice with a target that negotiates at once."""

FIRST_CMD_SN = 1
CID = 0
_ITT = 0


class InitiatorLogin:
    """One login. Send ``first()``, feed every response to ``receive`` and send what it returns, until it is None."""

    def __init__(self, initiator_name: str, target_name: str | None, isid: bytes, wishes: Wishes) -> None:
        """``target_name``: None logs in to a discovery session."""
        self._names = {"InitiatorName": initiator_name}
        if target_name is None:
            self._names["SessionType"] = "Discovery"
        else:
            self._names |= {"SessionType": "Normal", "TargetName": target_name}
        self._isid = isid
        self._offerer = Offerer(wishes, discovery=target_name is None)
        self._stage = Stage.SECURITY
        self._requests = 0
        self._text = bytearray()
        self.exp_stat_sn = 0
        self.max_cmd_sn = FIRST_CMD_SN
        self.tsih = 0

    def first(self) -> LoginRequest:
        """The request that opens the login."""
        return self._request({**self._names, "AuthMethod": "None"})

    def receive(self, response: LoginResponse) -> LoginRequest | None:
        """The next request, or None when the full feature phase is reached.

        Raises:
            LoginRefused: by the target, with its status.
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
        if answers.get("AuthMethod", "None") != "None":
            raise ProtocolError("the target chose an AuthMethod that was not offered", None)
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
