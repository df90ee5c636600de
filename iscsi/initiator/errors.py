"""What can go wrong for an initiator, by type. Breaches of the protocol by a target are ``ProtocolError``."""

from __future__ import annotations

from iscsi.scsi.command import Status
from iscsi.wire.opcodes import LoginStatus, RejectReason


class InitiatorError(Exception):
    """Anything that keeps an initiator from doing what it was asked."""


class ConnectionLost(InitiatorError):
    """The connection is gone, or silent for longer than allowed; what was in progress may or may not have happened."""


class LoginRefused(InitiatorError):
    """The target answered a login with ``status``; ``address`` is where it has moved to, if it said so."""

    def __init__(self, status: int, address: str | None = None) -> None:
        name = LoginStatus(status).name if status in LoginStatus.__members__.values() else f"{status:#06x}"
        super().__init__(f"login refused: {name}" + (f", moved to {address}" if address else ""))
        self.status = status
        self.address = address


class TargetNotAuthentic(InitiatorError):
    """Mutual CHAP: the target has not proven that it is who it should be."""


class CommandRejected(InitiatorError):
    """The target refused the PDU of a command with a Reject."""

    def __init__(self, reason: int) -> None:
        name = RejectReason(reason).name if reason in RejectReason.__members__.values() else f"{reason:#04x}"
        super().__init__(f"PDU rejected: {name}")
        self.reason = reason


class CommandFailed(InitiatorError):
    """A command ended with another status than GOOD. Sense fields are 0 when the target sent none."""

    def __init__(self, opcode: int, status: int, sense_key: int, asc: int, ascq: int) -> None:
        name = Status(status).name if status in Status.__members__.values() else f"{status:#04x}"
        super().__init__(f"command {opcode:#04x}: {name}, sense {sense_key:x}h/{asc:02x}h/{ascq:02x}h")
        self.opcode = opcode
        self.status = status
        self.sense_key = sense_key
        self.asc = asc
        self.ascq = ascq


class ShortTransfer(InitiatorError):
    """A command was GOOD but moved fewer bytes than its CDB asks for."""
