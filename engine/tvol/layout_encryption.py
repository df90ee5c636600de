"""The ENCRYPTION root record (``engine.encryption``): pure, as ``layout.py``, whose errors it raises."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from engine.tvol.layout import LayoutError, pack_text, unpack_fields, unpack_text

AES_256_XTS = 1
SCRYPT = 1
UNIT_BYTES = 16384
"""A data unit of XTS (IEEE 1619): the tweak is the number of the unit in the file, its position / 16384."""

SALT_BYTES = 16
WRAPPED_BYTES = 72
"""A 64-byte key wrapped by RFC 3394."""
MAX_SOURCE_BYTES = 1024

_RECORD = struct.Struct("<HHI 16s BBBx 72s")
"""cipher, key derivation, data unit bytes; salt; log2 N, r, p of scrypt; wrapped key. Text: where the key is."""
assert _RECORD.size == 100


@dataclass(frozen=True, slots=True)
class EncryptionRecord:
    """How the payload of a file is encrypted, and what it takes to get its key. Nothing in it is secret."""

    salt: bytes
    log2_n: int
    r: int
    p: int
    wrapped_key: bytes
    source: str

    def serialize(self) -> bytes:
        scrypt = self.log2_n, self.r, self.p
        return _RECORD.pack(AES_256_XTS, SCRYPT, UNIT_BYTES, self.salt, *scrypt, self.wrapped_key) + pack_text(
            self.source
        )

    @classmethod
    def parse(cls, payload: bytes) -> EncryptionRecord:
        """Raises LayoutError: unknown methods, or a derivation that would take more than 128 MiB."""
        fields = unpack_fields(_RECORD, payload[: _RECORD.size])
        cipher, derivation, unit, salt, log2_n, r, p, wrapped = fields
        (source,), end = unpack_text(payload, _RECORD.size, 1)
        if (cipher, derivation, unit) != (AES_256_XTS, SCRYPT, UNIT_BYTES):
            raise LayoutError(f"encrypted by cipher {cipher} in units of {unit}, key derivation {derivation}")
        if not (10 <= log2_n <= 17 and 1 <= r <= 8 and 1 <= p <= 4) or end != len(payload):
            raise LayoutError(f"a key derivation with N=2^{log2_n}, r={r}, p={p}")
        return cls(salt, log2_n, r, p, wrapped, source)
