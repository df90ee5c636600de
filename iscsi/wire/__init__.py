"""Pure codecs of iSCSI PDUs: bytes in, objects out; no socket, clock or log."""
