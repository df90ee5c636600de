"""One-time codes by which a peer is enrolled: where to connect, whom to find there, and a secret to be let in by.

    code   "tv1." and base64url of: 32s fingerprint, 16s secret, address (UTF-8), 4s checksum

Whoever has the code may become a peer, once, until it expires: it is a secret until then, and worthless afterwards. The
inviting pool keeps the secret's SHA-256 only. The fingerprint is compared before the secret is sent, so it reaches
nobody but the inviting pool.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from dataclasses import dataclass

from engine.errors import InvalidArgument

SECRET_BYTES = 16
FINGERPRINT_BYTES = 32
_CHECKSUM_BYTES = 4
_MARK = "tv1."
MAX_CODE_CHARS = 512
MAX_ADDRESS_CHARS = 255
LIFETIME_S = 3600.0
"""How long a code is good for, unless said otherwise."""
MAX_LIFETIME_S = 30 * 86400.0


@dataclass(frozen=True, slots=True)
class Invitation:
    """``fingerprint``: of the inviting pool, in hexadecimal; ``address``: HOST:PORT."""

    address: str
    fingerprint: str
    secret: bytes

    def __repr__(self) -> str:
        return f"Invitation({self.address!r}, {self.fingerprint!r})"  # never the secret

    @classmethod
    def make(cls, address: str, fingerprint: str) -> Invitation:
        return cls(address, fingerprint, secrets.token_bytes(SECRET_BYTES))

    def code(self) -> str:
        body = bytes.fromhex(self.fingerprint) + self.secret + self.address.encode()
        return _MARK + base64.urlsafe_b64encode(body + _checksum(body)).decode().rstrip("=")

    @classmethod
    def parse(cls, code: str) -> Invitation:
        """Raises InvalidArgument; its text has nothing of the code."""
        code = code.strip()
        if not code.startswith(_MARK) or len(code) > MAX_CODE_CHARS:
            raise InvalidArgument(f"this is no invitation: a code begins with {_MARK} (twinvol peer invite makes one)")
        text = code.removeprefix(_MARK)
        try:
            body = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
            address = body[FINGERPRINT_BYTES + SECRET_BYTES : -_CHECKSUM_BYTES].decode()
        except (ValueError, binascii.Error):
            raise InvalidArgument("the invitation is damaged; copy all of it") from None
        if not address or not hmac.compare_digest(_checksum(body[:-_CHECKSUM_BYTES]), body[-_CHECKSUM_BYTES:]):
            raise InvalidArgument("the invitation is damaged; copy all of it")
        secret = body[FINGERPRINT_BYTES : FINGERPRINT_BYTES + SECRET_BYTES]
        return cls(address, body[:FINGERPRINT_BYTES].hex(), secret)


def secret_hash(secret: bytes) -> str:
    """What the inviting pool keeps of a secret."""
    return hashlib.sha256(b"twinvol invitation" + secret).hexdigest()


def _checksum(body: bytes) -> bytes:
    """Against typing errors only."""
    return hashlib.sha256(body).digest()[:_CHECKSUM_BYTES]
