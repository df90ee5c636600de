"""CHAP over iSCSI (RFC 7143 section 12.1.3, RFC 1994): the codecs of both sides, and the target's machine. No I/O.

The exchange, each line one login text:

    initiator  CHAP_A=<algorithms>
    target     CHAP_A=<algorithm>  CHAP_I=<identifier>  CHAP_C=<challenge>
    initiator  CHAP_N=<user>  CHAP_R=<response>      and CHAP_I, CHAP_C if it wants to know who the target is
    target     CHAP_N=<name>  CHAP_R=<response>      if so

A response is the hash of identifier, secret and challenge (RFC 1994 section 4.1). Kept here, beyond that:

* Identifier and challenge are new for each login, and from a source that cannot be guessed.
* An unknown user costs the same work and gets the same answer as a wrong secret.
* The target answers a challenge only to an initiator that has proven itself, never its own challenge back, and never
  when both directions have the same secret (section 9.2.1).
* A user named after an initiator and that initiator go together: neither is taken with another, so that what is granted
  to an initiator's name is granted to who has proven it.
* Each step takes exactly its keys; anything else ends the login.
"""

from __future__ import annotations

import base64
import binascii
import enum
import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from iscsi.negotiation import OF_SECURITY, parse_number
from iscsi.target import normalize_name
from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Set

    RandomBytes = Callable[[int], bytes]

CHAP_KEYS = OF_SECURITY - {"AuthMethod"}

MAX_BINARY_BYTES = 1024  # section 12.1.3: of CHAP_C and CHAP_R, decoded
MAX_NAME_BYTES = 255  # section 6.1, text-value
MAX_ALGORITHMS = 32
"""Values of a CHAP_A list that are looked at."""


class Algorithm(enum.IntEnum):
    """IANA's "PPP Authentication Algorithms"; a higher number is a stronger hash."""

    MD5 = 5
    SHA1 = 6
    SHA256 = 7
    SHA3_256 = 8


DEFAULT_ALGORITHMS = frozenset((Algorithm.MD5, Algorithm.SHA256, Algorithm.SHA3_256))
"""MD5 is what every initiator has (section 12.1.3); SHA-1 is offered by none that lacks something better."""

_HASHES = {
    Algorithm.MD5: hashlib.md5,
    Algorithm.SHA1: hashlib.sha1,
    Algorithm.SHA256: hashlib.sha256,
    Algorithm.SHA3_256: hashlib.sha3_256,
}


@dataclass(frozen=True, slots=True)
class ChapIdentity:
    """A name and the secret that proves it."""

    name: str
    secret: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ChapAccess:
    """Who may log in where CHAP is required.

    ``users``: secrets by user name; with none nobody may. ``mutual``: what proves the target to initiators that ask.
    """

    users: Mapping[str, bytes] = field(repr=False)
    mutual: ChapIdentity | None = None
    algorithms: Set[Algorithm] = DEFAULT_ALGORITHMS

    def fits(self, user: str, initiator_name: str) -> bool:
        """Whether ``user`` may log in under this normalized initiator name."""
        own = normalize_name(user)
        if own == initiator_name:
            return True
        return not own.startswith(("iqn.", "eui.", "naa.")) and initiator_name not in map(normalize_name, self.users)

    def accepts(self, proof: ChapIdentity, initiator_name: str) -> bool:
        """Whether somebody who proved this elsewhere could log in here."""
        secret = self.users.get(proof.name)
        return (
            secret is not None and hmac.compare_digest(secret, proof.secret) and self.fits(proof.name, initiator_name)
        )


def response(algorithm: Algorithm, identifier: int, secret: bytes, challenge: bytes) -> bytes:
    """What proves knowledge of ``secret`` (RFC 1994 section 4.1)."""
    return _HASHES[algorithm](bytes((identifier,)) + secret + challenge).digest()


def challenge_bytes(algorithm: Algorithm) -> int:
    """How long a challenge of ours is: as long as the hash."""
    return _HASHES[algorithm]().digest_size


def encode_binary(value: bytes) -> str:
    """A binary-value in its hexadecimal form (section 6.1)."""
    return "0x" + value.hex()


def decode_binary(key: str, value: str) -> bytes:
    """A binary-value in either of its forms, 1 to ``MAX_BINARY_BYTES`` long.

    Raises:
        ProtocolError: it is not; ``key`` names it.
    """
    prefix, digits = value[:2].lower(), value[2:]
    try:
        if len(digits) > 2 * MAX_BINARY_BYTES:
            raise ValueError
        if prefix == "0x" and digits.isalnum():  # fromhex skips blanks
            decoded = bytes.fromhex(digits)
        elif prefix == "0b":
            decoded = base64.b64decode(digits, validate=True)
        else:
            raise ValueError
    except (ValueError, binascii.Error):
        raise ProtocolError(f"{key} is no binary value", LoginStatus.INITIATOR_ERROR) from None
    if not 1 <= len(decoded) <= MAX_BINARY_BYTES:
        raise ProtocolError(
            f"{key} of {len(decoded)} bytes is not within 1..{MAX_BINARY_BYTES}", LoginStatus.INITIATOR_ERROR
        )
    return decoded


def decode_identifier(value: str) -> int:
    """CHAP_I. Raises ProtocolError."""
    identifier = parse_number(value, 0, 255)
    if identifier is None:
        raise ProtocolError("CHAP_I is no number of 0..255", LoginStatus.INITIATOR_ERROR)
    return identifier


def decode_name(value: str) -> str:
    """CHAP_N: a text-value, which is taken as it is even if it begins with 0x. Raises ProtocolError."""
    if not 1 <= len(value.encode()) <= MAX_NAME_BYTES:
        raise ProtocolError(f"CHAP_N does not have 1..{MAX_NAME_BYTES} bytes", LoginStatus.INITIATOR_ERROR)
    return value


class TargetChap:
    """The target's side of one exchange: feed the CHAP keys of each login text to ``answer`` until it is ``done``.

    ``user`` is who has proven himself then.
    """

    def __init__(self, access: ChapAccess, random_bytes: RandomBytes) -> None:
        self._access = access
        self._random_bytes = random_bytes
        self._algorithm: Algorithm | None = None
        self._identifier = 0
        self._challenge = b""
        self.user: str | None = None

    @property
    def done(self) -> bool:
        return self.user is not None

    @property
    def proof(self) -> ChapIdentity | None:
        """Who has proven himself, and the secret that he knows."""
        return None if self.user is None else ChapIdentity(self.user, self._access.users[self.user])

    def answer(self, keys: Mapping[str, str]) -> list[tuple[str, str]]:
        """The keys that answer one text's.

        Raises:
            ProtocolError: the login is to be refused with the status that it names.
        """
        assert not self.done
        if self._algorithm is None:
            _require(keys, {"CHAP_A"})
            return self._begin(keys["CHAP_A"])
        wants_proof = "CHAP_I" in keys or "CHAP_C" in keys
        _require(keys, {"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"} if wants_proof else {"CHAP_N", "CHAP_R"})
        name, given = decode_name(keys["CHAP_N"]), decode_binary("CHAP_R", keys["CHAP_R"])
        if not wants_proof:
            self._verify(self._algorithm, name, given)
            self.user = name
            return []
        identifier, challenge = decode_identifier(keys["CHAP_I"]), decode_binary("CHAP_C", keys["CHAP_C"])
        self._verify(self._algorithm, name, given)
        mutual = self._access.mutual
        if mutual is None:
            raise _failure(f"CHAP user {name!r} asks for mutual CHAP, for which this target has no secret")
        if hmac.compare_digest(challenge, self._challenge):
            raise _failure(f"CHAP user {name!r} sends our own challenge back")
        self.user = name
        proof = response(self._algorithm, identifier, mutual.secret, challenge)
        return [("CHAP_N", mutual.name), ("CHAP_R", encode_binary(proof))]

    def _begin(self, offered: str) -> list[tuple[str, str]]:
        """Pick the strongest algorithm that both have, and challenge."""
        numbers = {parse_number(value, 0, 255) for value in offered.split(",", MAX_ALGORITHMS)[:MAX_ALGORITHMS]}
        common = [algorithm for algorithm in self._access.algorithms if algorithm in numbers]
        if not common:
            raise _failure("no CHAP algorithm in common")
        algorithm = self._algorithm = max(common)
        self._identifier = self._random_bytes(1)[0]
        self._challenge = self._random_bytes(challenge_bytes(algorithm))
        return [
            ("CHAP_A", str(int(algorithm))),
            ("CHAP_I", str(self._identifier)),
            ("CHAP_C", encode_binary(self._challenge)),
        ]

    def _verify(self, algorithm: Algorithm, name: str, given: bytes) -> None:
        """Raises ProtocolError unless ``given`` proves the user, doing the same work for every answer."""
        decoy = self._random_bytes(challenge_bytes(algorithm))
        known, mutual = self._access.users.get(name), self._access.mutual
        secrets = (known or decoy, mutual.secret if mutual else decoy)
        expected, ours = (response(algorithm, self._identifier, secret, self._challenge) for secret in secrets)
        is_right, is_ours = hmac.compare_digest(given, expected), hmac.compare_digest(given, ours)
        if known is None:
            raise _failure(f"no CHAP user {name!r}")
        if not is_right or is_ours:
            raise _failure(f"wrong secret of CHAP user {name!r}")


def _require(keys: Mapping[str, str], wanted: set[str]) -> None:
    if keys.keys() != wanted:
        found, due = ", ".join(sorted(keys)) or "no CHAP key", ", ".join(sorted(wanted))
        raise ProtocolError(f"{found} where {due} is due", LoginStatus.INITIATOR_ERROR)


def _failure(message: str) -> ProtocolError:
    return ProtocolError(message, LoginStatus.AUTHENTICATION_FAILURE)
