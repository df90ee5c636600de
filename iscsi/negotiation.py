"""Text negotiation of login and full feature phase (RFC 7143 sections 6.2 and 13).

``KEYS`` is the one table of operational keys: how a value is found, its default and range, when and by whom it may be
sent, and what this implementation takes. ``Responder`` is the answering side, ``Offerer`` the asking one; both end in
``SessionParameters``, which everything after login works with.

Rules of section 6.2 that are kept here:

* A key is negotiated or declared once per login; a second time is a protocol error.
* Operational keys come in the operational stage only (section 12 has the keys of the security stage), those of the
  session in its first login only, and a key comes from the side that may send it; else it is a protocol error.
* A boolean or a number has one result for both sides (AND, OR, minimum, maximum); a list's first value that the
  responder knows wins; a declaration is taken as it stands and not answered.
* An unknown key is answered NotUnderstood, an inadmissible value Reject, a key without meaning here Irrelevant; the
  parameter keeps its default then.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from iscsi.wire.errors import ProtocolError
from iscsi.wire.opcodes import LoginStatus, RejectReason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OUR_MAX_RECV_DATA_SEGMENT = 262_144  # bytes; one 256 KiB command in one PDU
NOT_UNDERSTOOD = "NotUnderstood"
IRRELEVANT = "Irrelevant"
REJECT = "Reject"
RESERVED_ANSWERS = frozenset((NOT_UNDERSTOOD, IRRELEVANT, REJECT))  # section 6.2

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]{1,8}|0|[1-9][0-9]{0,9}")  # section 6.1, numerical-value up to 32 bits
_MAX_LIST = 32  # values of one list that are looked at


class Rule(enum.Enum):
    """How two wishes become one value; section 6.2."""

    AND = "and"
    OR = "or"
    MINIMUM = "minimum"
    MAXIMUM = "maximum"
    FIRST_KNOWN = "first known"
    DECLARED = "declared"
    OBSOLETE = "obsolete"  # section 13.25: a fixed answer, no meaning


class When(enum.Enum):
    """The phase in which a key may be sent."""

    LOGIN = "login"  # operational negotiation only
    ANY = "any"  # there, and in full feature phase


@dataclass(frozen=True, slots=True)
class SessionParameters:
    """What a login has settled, with the RFC's defaults. Lengths in bytes, times in seconds.

    ``max_send_data_segment_length`` is the peer's MaxRecvDataSegmentLength, ``max_recv_...`` the one that we declared.
    """

    header_digest: bool = False
    data_digest: bool = False
    max_connections: int = 1
    initial_r2t: bool = True
    immediate_data: bool = True
    max_recv_data_segment_length: int = 8192
    max_send_data_segment_length: int = 8192
    max_burst_length: int = 262_144
    first_burst_length: int = 65_536
    default_time2wait: int = 2
    default_time2retain: int = 20
    max_outstanding_r2t: int = 1
    data_pdu_in_order: bool = True
    data_sequence_in_order: bool = True
    error_recovery_level: int = 0


DEFAULTS = SessionParameters()


@dataclass(frozen=True, slots=True)
class Key:
    """One negotiable key.

    ``ours``: what this implementation offers or combines with (a bool, a number, or the known list values, best first).
    ``field``: the attribute of ``SessionParameters``; None where only the answer matters.
    ``in_discovery``: whether it has a meaning in a discovery session; else it is Irrelevant there.
    ``of_connection``: whether each connection has its own value; the others are settled by the session's first login.
    """

    name: str
    rule: Rule
    section: str
    ours: bool | int | tuple[str, ...] | str
    field: str | None
    low: int = 0
    high: int = 0
    when: When = When.LOGIN
    in_discovery: bool = False
    offered: bool = True
    of_connection: bool = False


_DIGESTS = ("CRC32C", "None")
_MAX_LENGTH = 0xFFFFFF  # 2**24 - 1, the lengths' upper limit

KEYS: dict[str, Key] = {
    key.name: key
    for key in (
        Key("HeaderDigest", Rule.FIRST_KNOWN, "13.1", _DIGESTS, "header_digest", in_discovery=True, of_connection=True),
        Key("DataDigest", Rule.FIRST_KNOWN, "13.1", _DIGESTS, "data_digest", in_discovery=True, of_connection=True),
        Key("MaxConnections", Rule.MINIMUM, "13.2", 1, "max_connections", 1, 65535),
        Key("InitialR2T", Rule.OR, "13.10", False, "initial_r2t"),
        Key("ImmediateData", Rule.AND, "13.11", True, "immediate_data"),
        Key(
            "MaxRecvDataSegmentLength",
            Rule.DECLARED,
            "13.12",
            OUR_MAX_RECV_DATA_SEGMENT,
            "max_send_data_segment_length",
            512,
            _MAX_LENGTH,
            when=When.ANY,
            in_discovery=True,
            of_connection=True,
        ),
        Key("MaxBurstLength", Rule.MINIMUM, "13.13", 1_048_576, "max_burst_length", 512, _MAX_LENGTH),
        Key("FirstBurstLength", Rule.MINIMUM, "13.14", 262_144, "first_burst_length", 512, _MAX_LENGTH),
        Key("DefaultTime2Wait", Rule.MAXIMUM, "13.15", 0, "default_time2wait", 0, 3600, in_discovery=True),
        Key("DefaultTime2Retain", Rule.MINIMUM, "13.16", 0, "default_time2retain", 0, 3600, in_discovery=True),
        Key("MaxOutstandingR2T", Rule.MINIMUM, "13.17", 8, "max_outstanding_r2t", 1, 65535),
        Key("DataPDUInOrder", Rule.OR, "13.18", True, "data_pdu_in_order"),
        Key("DataSequenceInOrder", Rule.OR, "13.19", True, "data_sequence_in_order"),
        Key("ErrorRecoveryLevel", Rule.MINIMUM, "13.20", 0, "error_recovery_level", 0, 2, in_discovery=True),
        # RFC3720 semantics: a task that another nexus aborts gets no answer, and no response is fenced.
        Key("TaskReporting", Rule.FIRST_KNOWN, "13.23", ("RFC3720",), None, offered=False),
        Key("iSCSIProtocolLevel", Rule.MINIMUM, "13.24", 1, None, 0, 31, offered=False),
        Key("IFMarker", Rule.OBSOLETE, "13.25", "No", None, offered=False, in_discovery=True),
        Key("OFMarker", Rule.OBSOLETE, "13.25", "No", None, offered=False, in_discovery=True),
        Key("IFMarkInt", Rule.OBSOLETE, "13.25", REJECT, None, offered=False, in_discovery=True),
        Key("OFMarkInt", Rule.OBSOLETE, "13.25", REJECT, None, offered=False, in_discovery=True),
    )
}

IDENTITY = frozenset(("InitiatorName", "TargetName", "SessionType"))  # sections 13.5, 13.4, 13.21
"""Declarations that the first text of a login has and no other; login reads them by itself."""

DECLARATIONS = IDENTITY | {"InitiatorAlias", "X#NodeArchitecture"}  # sections 13.7, 13.26
"""Keys that an initiator tells and nobody negotiates: no answer goes back."""

OF_THE_TARGET = frozenset(("TargetAlias", "TargetAddress", "TargetPortalGroupTag"))  # sections 13.6, 13.8, 13.9
"""Declarations of a target: a protocol error from an initiator."""

OF_SECURITY = frozenset(("AuthMethod", "CHAP_A", "CHAP_I", "CHAP_C", "CHAP_N", "CHAP_R"))  # section 12.1
"""Keys of the security stage: a protocol error anywhere else."""

SEND_TARGETS = "SendTargets"  # section 13.3, full feature phase only


def parse_number(value: str, low: int, high: int) -> int | None:
    """A numerical value within its range, or None (sections 6.1 and 6.2.1)."""
    if not _NUMBER.fullmatch(value):
        return None
    number = int(value, 16) if value[:2] in ("0x", "0X") else int(value)
    return number if low <= number <= high else None


def parse_bool(value: str) -> bool | None:
    """Yes or No, or None for anything else."""
    return {"Yes": True, "No": False}.get(value)


def _spell(value: Any) -> str:
    if isinstance(value, bool):
        return "Yes" if value else "No"
    return str(value)


def _combine(key: Key, offered: str) -> Any:
    """The result of one offer: bool, int, or the chosen list value; None when the offer is inadmissible."""
    if key.rule in (Rule.AND, Rule.OR):
        wish = parse_bool(offered)
        if wish is None:
            return None
        return (wish and key.ours) if key.rule is Rule.AND else (wish or key.ours)
    if key.rule is Rule.FIRST_KNOWN:
        assert isinstance(key.ours, tuple)
        return next((value for value in offered.split(",", _MAX_LIST)[:_MAX_LIST] if value in key.ours), None)
    number = parse_number(offered, key.low, key.high)
    if number is None or key.rule is Rule.DECLARED:
        return number
    assert isinstance(key.ours, int)
    return min(number, key.ours) if key.rule is Rule.MINIMUM else max(number, key.ours)


def _to_field(key: Key, value: Any) -> Any:
    """A list value as the parameter's type: both lists that have a field are digests."""
    return value == "CRC32C" if key.rule is Rule.FIRST_KNOWN else value


def _settle(values: Mapping[str, Any], base: SessionParameters = DEFAULTS) -> SessionParameters:
    """``base``, with what was negotiated put over it, and the one relation between keys kept.

    FirstBurstLength must not exceed MaxBurstLength (section 13.14): an offer beyond it is taken as that much.
    """
    settled = dataclasses.replace(base, **values)
    if settled.first_burst_length > settled.max_burst_length:
        settled = dataclasses.replace(settled, first_burst_length=settled.max_burst_length)
    return settled


class Responder:
    """The target's side of operational negotiation: offers in, answers out."""

    def __init__(
        self,
        *,
        discovery: bool,
        recv_data_segment_length: int = OUR_MAX_RECV_DATA_SEGMENT,
        session: SessionParameters | None = None,
    ) -> None:
        """
        Args:
            discovery: whether the session is one; keys without a meaning there are Irrelevant.
            recv_data_segment_length: our MaxRecvDataSegmentLength in bytes, declared with the first answer.
            session: what was settled for the session that this connection's login goes on with; None: it begins one.
        """
        self._discovery = discovery
        self._is_leading = session is None
        self._base = DEFAULTS if session is None else _without_connection(session)
        self._recv_data_segment_length = recv_data_segment_length
        self._values: dict[str, Any] = {}
        self._seen: set[str] = set()
        self._declared = False

    def answer(self, offers: Iterable[tuple[str, str]], *, operational: bool = True) -> list[tuple[str, str]]:
        """Answer the keys of one login text; FirstBurstLength last, because MaxBurstLength limits it.

        ``operational``: whether this is the operational stage; our own declaration goes with its first answer.

        Raises:
            ProtocolError: a key comes a second time, in the wrong stage, in the wrong login or from the wrong side,
                or declares what cannot be.
        """
        answers = []
        for name, value in sorted(offers, key=lambda pair: pair[0] == "FirstBurstLength"):
            self._check_turn(name, operational=operational)
            if name in DECLARATIONS:
                continue
            answer = self._answer(name, value)
            if answer is not None:
                answers.append((name, answer))
        if operational and not self._declared:
            self._declared = True
            answers.append(("MaxRecvDataSegmentLength", str(self._recv_data_segment_length)))
            self._values["max_recv_data_segment_length"] = self._recv_data_segment_length
        return answers

    def _check_turn(self, name: str, *, operational: bool) -> None:
        key = KEYS.get(name)
        if name in self._seen:
            why = "came already"
        elif name in OF_THE_TARGET:
            why = "is a target's key"
        elif name == SEND_TARGETS:
            why = "belongs to the full feature phase"
        elif key is not None and not operational:
            why = "belongs to the operational stage"
        elif key is not None and not self._is_leading and not key.of_connection:
            why = "belongs to the session's first login"
        else:
            if key is not None or name in DECLARATIONS:
                self._seen.add(name)
            return
        raise ProtocolError(f"{name} {why}", LoginStatus.INITIATOR_ERROR)

    def _answer(self, name: str, offered: str) -> str | None:
        key = KEYS.get(name)
        if key is None:
            # Nobody asked for the initiator's NotUnderstood; answering it would begin a loop.
            return None if offered == NOT_UNDERSTOOD else NOT_UNDERSTOOD
        if key.rule is Rule.OBSOLETE:
            return str(key.ours)
        if self._discovery and not key.in_discovery:
            return IRRELEVANT
        result = _combine(key, offered)
        if result is None and key.rule is Rule.DECLARED:
            # Not negotiable, so nothing could be agreed on instead (section 6.2).
            raise ProtocolError(f"{name}={offered}", LoginStatus.INITIATOR_ERROR)
        if result is None:
            return None if offered in RESERVED_ANSWERS else REJECT
        if name == "FirstBurstLength":
            result = min(result, self._values.get("max_burst_length", self._base.max_burst_length))
        if key.field is not None:
            self._values[key.field] = _to_field(key, result)
        return None if key.rule is Rule.DECLARED else _spell(result)

    def parameters(self) -> SessionParameters:
        """What holds when login ends now."""
        return _settle(self._values, self._base)


def _without_connection(session: SessionParameters) -> SessionParameters:
    """What another connection of a session begins with: the session's parameters, and defaults for its own."""
    own = {key.field: getattr(DEFAULTS, key.field) for key in KEYS.values() if key.of_connection and key.field}
    own["max_recv_data_segment_length"] = DEFAULTS.max_recv_data_segment_length
    return dataclasses.replace(session, **own)


def answer_in_full_feature_phase(
    parameters: SessionParameters, offers: Mapping[str, str]
) -> tuple[list[tuple[str, str]], SessionParameters]:
    """Answer the keys of a text request (SendTargets is the caller's), and the parameters that hold after it.

    Only MaxRecvDataSegmentLength may change then (section 13.12), and the initiator may tell another alias (13.7). A
    key that belongs to login or to a target is a protocol error.

    Raises:
        ProtocolError: such a key came, answered by a Reject.
    """
    answers = []
    for name, value in offers.items():
        key = KEYS.get(name)
        if name in ("InitiatorAlias", SEND_TARGETS):
            continue
        if name in DECLARATIONS or name in OF_THE_TARGET or name in OF_SECURITY:
            raise ProtocolError(f"{name} in full feature phase", RejectReason.PROTOCOL_ERROR)
        if key is None:
            if value != NOT_UNDERSTOOD:
                answers.append((name, NOT_UNDERSTOOD))
        elif key.rule is Rule.OBSOLETE:
            answers.append((name, str(key.ours)))
        elif key.when is not When.ANY:
            raise ProtocolError(f"{name} is negotiated at login only", RejectReason.PROTOCOL_ERROR)
        else:
            length = parse_number(value, key.low, key.high)
            if length is None:
                answers.append((name, REJECT))
            else:
                parameters = dataclasses.replace(parameters, max_send_data_segment_length=length)
    return answers, parameters


@dataclass(frozen=True, slots=True)
class Wishes:
    """What an initiator asks for where it has a choice. Lengths in bytes."""

    header_digest: str = "None,CRC32C"
    data_digest: str = "None,CRC32C"
    initial_r2t: bool = False
    immediate_data: bool = True
    max_recv_data_segment_length: int = OUR_MAX_RECV_DATA_SEGMENT
    max_burst_length: int = 1_048_576
    first_burst_length: int = 262_144
    max_outstanding_r2t: int = 8


class Offerer:
    """The initiator's side: offers everything at once, then reads the answers."""

    def __init__(self, wishes: Wishes, *, discovery: bool) -> None:
        self._discovery = discovery
        self._wishes = wishes
        self._values: dict[str, Any] = {}

    def offers(self) -> list[tuple[str, str]]:
        """The keys to send in operational negotiation."""
        wanted = {field.name: getattr(self._wishes, field.name) for field in dataclasses.fields(self._wishes)}
        pairs = []
        for key in KEYS.values():
            if not key.offered or (self._discovery and not key.in_discovery):
                continue
            field = "max_recv_data_segment_length" if key.rule is Rule.DECLARED else key.field
            pairs.append((key.name, _spell(wanted.get(field or "", key.ours))))
        self._values["max_recv_data_segment_length"] = self._wishes.max_recv_data_segment_length
        return pairs

    def accept(self, answers: Mapping[str, str]) -> None:
        """Take the target's answers to ``offers``, and its declarations.

        Raises:
            ProtocolError: a value that our offer does not allow.
        """
        offered = dict(self.offers())
        for name, value in answers.items():
            key = KEYS.get(name)
            if key is None or key.field is None or name not in offered or value in RESERVED_ANSWERS:
                continue
            if not self._is_allowed(key, offered[name], value):
                raise ProtocolError(f"the target answered {name}={value} to {offered[name]}", None)
            if key.rule is Rule.FIRST_KNOWN:
                self._values[key.field] = value == "CRC32C"
            elif key.rule in (Rule.AND, Rule.OR):
                self._values[key.field] = parse_bool(value)
            else:
                self._values[key.field] = parse_number(value, key.low, key.high)

    def _is_allowed(self, key: Key, offered: str, value: str) -> bool:
        """Whether ``value`` can be the result of our offer by the key's rule."""
        match key.rule:
            case Rule.FIRST_KNOWN:
                return value in offered.split(",")
            case Rule.AND:
                return value == "No" or value == offered == "Yes"
            case Rule.OR:
                return value == "Yes" or value == offered == "No"
        number = parse_number(value, key.low, key.high)
        if number is None:
            return False
        if key.rule is Rule.MINIMUM:
            return number <= int(offered)
        return key.rule is Rule.DECLARED or number >= int(offered)

    def parameters(self) -> SessionParameters:
        """What holds when login ends now.

        Raises:
            ProtocolError: a digest that was insisted on was not granted (a target may refuse it by silence, too).
        """
        settled = _settle(self._values)
        wanted = (("HeaderDigest", self._wishes.header_digest), ("DataDigest", self._wishes.data_digest))
        for (name, wish), granted in zip(wanted, (settled.header_digest, settled.data_digest), strict=True):
            if not granted and "None" not in wish.split(","):
                raise ProtocolError(f"{name}={wish} was not granted", None)
        return settled
