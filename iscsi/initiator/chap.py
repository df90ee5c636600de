"""The initiator's side of CHAP (RFC 7143 section 12.1.3); codecs and the exchange are in ``iscsi.chap``.

With mutual CHAP the target is believed only when it has answered a challenge of ours under the name and with the secret
that we know of it. Our challenge is new for each login and is never the target's own; an answer that we could have
given ourselves proves nothing (section 9.2.1).
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.errors import InvalidArgument
from iscsi.chap import (
    Algorithm,
    ChapIdentity,
    challenge_bytes,
    decode_binary,
    decode_identifier,
    encode_binary,
    response,
)
from iscsi.initiator.errors import TargetNotAuthentic
from iscsi.negotiation import parse_number
from iscsi.wire.errors import ProtocolError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from iscsi.chap import RandomBytes

OFFERED = "8,5,7"
"""SHA3-256, MD5, SHA-256. A target that takes the first one it knows, as LIO does, should meet the strongest first; tgt
1.0.85 takes 7 for SHA-1, and must meet MD5 before."""


@dataclass(frozen=True, slots=True)
class ChapCredentials:
    """Who we are, and who the target must prove to be; with ``target`` None it need not.

    Raises:
        InvalidArgument: both have the same secret.
    """

    own: ChapIdentity
    target: ChapIdentity | None = None

    def __post_init__(self) -> None:
        if self.target is not None and hmac.compare_digest(self.target.secret, self.own.secret):
            raise InvalidArgument("mutual CHAP needs a secret for each direction (RFC 7143 section 9.2.1)")

    @property
    def methods(self) -> str:
        """The AuthMethod list: who wants the target proven does not do without."""
        return "CHAP,None" if self.target is None else "CHAP"


class InitiatorChap:
    """One exchange: send ``first()``, then what ``answer`` makes of each text of the target, until ``done``."""

    def __init__(self, credentials: ChapCredentials, random_bytes: RandomBytes) -> None:
        self._credentials = credentials
        self._random_bytes = random_bytes
        self._algorithm: Algorithm | None = None
        self._identifier = 0
        self._challenge = b""
        self.done = False

    def first(self) -> dict[str, str]:
        """The algorithms that we offer."""
        return {"CHAP_A": OFFERED}

    def answer(self, keys: Mapping[str, str]) -> dict[str, str]:
        """The keys to send next; none when ``done``.

        Raises:
            ProtocolError: the target breaks the exchange.
            TargetNotAuthentic: it has not proven what it must.
        """
        assert not self.done
        if self._algorithm is None:
            return self._respond(keys)
        if self._credentials.target is not None:
            self._verify(keys, self._algorithm, self._credentials.target)
        elif keys:
            raise ProtocolError(f"{', '.join(sorted(keys))} were not asked for", None)
        self.done = True
        return {}

    def _respond(self, keys: Mapping[str, str]) -> dict[str, str]:
        """Prove ourselves, and challenge the target if it must do the same."""
        if keys.keys() != {"CHAP_A", "CHAP_I", "CHAP_C"}:
            raise ProtocolError(f"{', '.join(sorted(keys)) or 'no CHAP key'} instead of a challenge", None)
        chosen = parse_number(keys["CHAP_A"], 0, 255)
        if chosen is None or str(chosen) not in OFFERED.split(","):
            raise ProtocolError("the target chose a CHAP algorithm that was not offered", None)
        algorithm = self._algorithm = Algorithm(chosen)
        challenge = decode_binary("CHAP_C", keys["CHAP_C"])
        own = self._credentials.own
        proof = response(algorithm, decode_identifier(keys["CHAP_I"]), own.secret, challenge)
        answer = {"CHAP_N": own.name, "CHAP_R": encode_binary(proof)}
        if self._credentials.target is not None:
            self._identifier = self._random_bytes(1)[0]
            self._challenge = self._random_bytes(challenge_bytes(algorithm))
            if self._challenge == challenge:
                raise TargetNotAuthentic("the target knew our challenge beforehand")
            answer |= {"CHAP_I": str(self._identifier), "CHAP_C": encode_binary(self._challenge)}
        return answer

    def _verify(self, keys: Mapping[str, str], algorithm: Algorithm, target: ChapIdentity) -> None:
        if keys.keys() != {"CHAP_N", "CHAP_R"}:
            raise TargetNotAuthentic("the target did not answer our challenge")
        expected = response(algorithm, self._identifier, target.secret, self._challenge)
        is_right = hmac.compare_digest(decode_binary("CHAP_R", keys["CHAP_R"]), expected)
        if keys["CHAP_N"] != target.name or not is_right:
            raise TargetNotAuthentic(
                f"the target calls itself {keys['CHAP_N'][:64]!r}, and its secret or name is wrong"
            )
