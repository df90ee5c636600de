"""The one error that a peer's bytes can cause."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from iscsi.wire.opcodes import LoginStatus, RejectReason


class ProtocolError(Exception):
    """A peer broke RFC 7143. ``answer`` is what the RFC has it told, before anything else is done:

    * a ``RejectReason``: send a Reject with the PDU's header; the connection stays;
    * a ``LoginStatus``: send a Login Response with it, then close the connection;
    * ``None``: nothing sensible can be sent (the byte stream is lost): close the connection.
    """

    def __init__(self, message: str, answer: RejectReason | LoginStatus | None) -> None:
        super().__init__(message)
        self.answer = answer
