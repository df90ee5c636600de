"""Header and data digests: CRC32C (RFC 7143 sections 11.2.3 and 13.1).

``google_crc32c`` takes nothing but ``bytes``: it refuses bytearray, and memoryview even when read-only. Measured
ways in, per call: ``bytes(view)`` 0.2 us at 512 bytes, 2.8 us at 64 KiB, 11 us at 256 KiB; a ctypes array over the
buffer 0.6, 2.7 and 8.9 us. So the copy is made: it is the quickest up to 64 KiB and a third dearer at most.
The digest's four bytes are the CRC little-endian: the RFC's bit order, seen as bytes.
"""

from __future__ import annotations

import google_crc32c

from iscsi.wire.opcodes import DIGEST_SIZE


def crc32c(data: bytes | bytearray | memoryview) -> int:
    """CRC32C of ``data``."""
    return int(google_crc32c.value(data if isinstance(data, bytes) else bytes(data)))


def digest(data: bytes | bytearray | memoryview) -> bytes:
    """The four digest bytes that follow ``data`` (for a data segment: its padding included)."""
    return crc32c(data).to_bytes(DIGEST_SIZE, "little")
