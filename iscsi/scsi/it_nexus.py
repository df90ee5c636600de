"""An I_T nexus by its names, which outlive the session."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ItNexus:
    """Initiator port and target port (RFC 7143 section 4.4.1). Reservations belong to it."""

    initiator_name: str
    isid: bytes
    target_name: str
    portal_group_tag: int = 1

    @property
    def initiator_port(self) -> str:
        return f"{self.initiator_name},i,0x{self.isid.hex()}"

    @property
    def target_port(self) -> str:
        return f"{self.target_name},t,0x{self.portal_group_tag:04x}"
