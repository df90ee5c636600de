"""Text exchanges in full feature phase (RFC 7143 sections 11.10, 11.11): SendTargets, and whatever else is asked for.

A request may come in several PDUs (C bit), and so may the answer; the target transfer tag holds an exchange together.
At most one exchange is open; a request without a tag begins a new one and forgets the old.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from iscsi.wire import responses
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import RESERVED_TAG, RejectReason
from iscsi.wire.text_keys import MAX_TEXT_BYTES, parse_text, serialize_text

if TYPE_CHECKING:
    from collections.abc import Callable

    from iscsi.connection import Connection
    from iscsi.wire.requests import TextRequest

Pairs = list[tuple[str, str]]


class TextExchange:
    """The text exchange of one connection."""

    def __init__(self, connection: Connection, answer: Callable[[dict[str, str]], Pairs]) -> None:
        """``answer`` makes the pairs that answer a request's."""
        self._connection = connection
        self._answer = answer
        self._ttt = RESERVED_TAG
        self._asked = b""
        self._rest: bytes | None = None  # of the answer; None while the request is still coming

    def handle(self, request: TextRequest, max_segment: int) -> None:
        """Answer one request PDU. ``max_segment``: bytes of data that a PDU to the initiator may have."""
        if request.ttt == RESERVED_TAG:
            self._asked = b""
            self._rest = None
        elif request.ttt != self._ttt or self._ttt == RESERVED_TAG:
            raise ProtocolError("no text exchange has that tag", RejectReason.INVALID_PDU_FIELD)
        if self._rest is None:
            if len(self._asked) + len(request.data) > MAX_TEXT_BYTES:
                raise ProtocolError("text request too long", RejectReason.OUT_OF_RESOURCES)
            self._asked += bytes(request.data)
            if not request.continued:
                self._rest = serialize_text(self._answer(parse_text(self._asked)))
        data, self._rest = (b"", None) if self._rest is None else (self._rest[:max_segment], self._rest[max_segment:])
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
