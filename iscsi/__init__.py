"""iSCSI target and a small initiator (RFC 7143)."""
