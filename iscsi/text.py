"""Text exchanges in full feature phase (RFC 7143 sections 11.10, 11.11): SendTargets, and whatever else is asked for.

A request may come in several PDUs (C bit), and so may the answer; the target transfer tag holds an exchange together.
At most one exchange is open; a request without a tag begins a new one and forgets the old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.negotiation import REJECT, SEND_TARGETS, answer_in_full_feature_phase
from iscsi.wire import responses
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import RESERVED_TAG, RejectReason
from iscsi.wire.text_keys import MAX_TEXT_BYTES, parse_text, serialize_text

if TYPE_CHECKING:
    from iscsi.connection import Connection
    from iscsi.target import Portal, TargetRegistry
    from iscsi.wire.requests import TextRequest


class TextExchange:
    """The text exchange of one connection."""

    def __init__(self, connection: Connection, registry: TargetRegistry, portal: Portal) -> None:
        """``portal``: where the connection came in."""
        self._connection = connection
        self._registry = registry
        self._portal = portal
        self._forget()

    def _forget(self) -> None:
        self._ttt = RESERVED_TAG
        self._asked = b""
        self._rest: bytes | None = None  # of the answer; None while the request is still coming

    def handle(self, request: TextRequest) -> None:
        """Answer one request PDU.

        Raises:
            ProtocolError: it is refused, and the exchange is over (RFC 7143 section 7.12).
        """
        if request.ttt != RESERVED_TAG and request.ttt != self._ttt:
            raise ProtocolError("no text exchange has that tag", RejectReason.INVALID_PDU_FIELD)
        if request.ttt == RESERVED_TAG:
            self._forget()
        try:
            data = self._next_piece(request)
        except ProtocolError:
            self._forget()
            raise
        continued = bool(self._rest)
        final = request.final and not continued
        self._ttt = RESERVED_TAG if final else 1
        self._connection.send(
            responses.TextResponse(
                request.itt,
                ttt=self._ttt,
                lun=request.lun,
                final=final,
                continued=continued,
                data=data,
                **self._connection.status_numbers(),
            )
        )

    def _next_piece(self, request: TextRequest) -> bytes:
        """Take what the request brings; what of the answer goes back now."""
        if self._rest is None:
            if len(self._asked) + len(request.data) > MAX_TEXT_BYTES:
                raise ProtocolError("text request too long", RejectReason.OUT_OF_RESOURCES)
            self._asked += bytes(request.data)
            if request.continued:
                return b""
            self._rest = serialize_text(self._answer(parse_text(self._asked)))
        length = min(self._connection.segment_bytes, MAX_TEXT_BYTES)
        data, self._rest = self._rest[:length], self._rest[length:]
        if not self._rest:
            self._asked, self._rest = b"", None
        return data

    def _answer(self, asked: dict[str, str]) -> list[tuple[str, str]]:
        """SendTargets (RFC 7143 section 13.3 and appendix C), and what else may be said now."""
        connection = self._connection
        others, parameters = answer_in_full_feature_phase(connection.parameters, asked)
        if parameters is not connection.parameters:
            connection.settle_on(parameters)
        which = asked.get(SEND_TARGETS)
        return others if which is None else self._send_targets(which) + others

    def _send_targets(self, which: str) -> list[tuple[str, str]]:
        session = self._connection.session
        assert session is not None
        if session.target is None:
            return self._registry.send_targets(session.initiator_name, self._portal, which or "All")
        if which and self._registry.find(which) is not session.target:
            return [(SEND_TARGETS, REJECT)]  # "All" and other targets are for discovery sessions
        return self._registry.send_targets(session.initiator_name, self._portal, session.target.name)
