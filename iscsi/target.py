"""Targets: names, the logical units behind each, and who may use them; SendTargets (RFC 7143 sections 4.2.7 and 13.3).

``TargetRegistry`` holds all targets of a server and may change at any time: logins, SendTargets and REPORT LUNS look at
it when they are asked. Sessions that exist already learn of changes through ``subscribe``.

Portals form portal groups (section 4.4.1). A target is reached through the portals of the groups that it is bound to,
by default of all. A target in a portal group is one SCSI target port, named by the target's name and the group's tag.
"""

from __future__ import annotations

import enum
import ipaddress
import re
import unicodedata
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from engine.errors import AlreadyExists, InvalidArgument, NotFound
from iscsi.wire.lun import MAX_LUN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from iscsi.chap import ChapAccess
    from iscsi.scsi.it_nexus import ItNexus
    from iscsi.scsi.lun import LogicalUnit, Nexus

    Watcher = Callable[["Target", "TargetChange"], None]

DEFAULT_PORTAL_GROUP = 1
MAX_PORTAL_GROUP = 65535  # section 13.9
DEFAULT_PORT = 3260  # section 4.1 (IANA)
MAX_NAME_BYTES = 223  # section 4.2.7.1
MAX_ALIAS_BYTES = 255  # section 13.6
MAX_LUNS = 256  # per target; what initiators scan without being told otherwise

_IQN = re.compile(r"iqn\.\d{4}-(0[1-9]|1[0-2])\.[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[a-z0-9.:-]+)?")
_EUI = re.compile(r"eui\.[0-9a-f]{16}")
_NAA = re.compile(r"naa\.([0-9a-f]{16}|[0-9a-f]{32})")

Address = tuple[str, int]
"""A host's numeric address, IPv4 or IPv6, and a port."""


class Portal(NamedTuple):
    """Where the server listens, and the tag of the portal group that this address belongs to."""

    host: str
    port: int
    group: int = DEFAULT_PORTAL_GROUP


def normalize_name(name: str) -> str:
    """An iSCSI name as it is compared: compatibility forms folded, lower case (section 4.2.7.2, RFC 3722)."""
    return unicodedata.normalize("NFKC", name).lower()


def validate_name(name: str) -> str:
    """The normalized form of a node name that we give ourselves (section 4.2.7).

    Raises:
        InvalidArgument: not of a form that the RFC allows.
    """
    normalized = normalize_name(name)
    if len(normalized.encode()) > MAX_NAME_BYTES:
        raise InvalidArgument(f"an iSCSI name has at most {MAX_NAME_BYTES} bytes: {name!r}")
    if not any(form.fullmatch(normalized) for form in (_IQN, _EUI, _NAA)):
        raise InvalidArgument(f"{name!r} is no iSCSI name; write iqn.YYYY-MM.reversed.domain:name")
    return normalized


def is_plausible_name(name: str) -> bool:
    """Whether a peer may call itself that. Laxer than ``validate_name``: real initiators use underscores and more.

    ``name`` is normalized. With a comma, which section 4.2.7.1 does not allow, it could pass for another's port.
    """
    return 0 < len(name.encode()) <= MAX_NAME_BYTES and name.isprintable() and not set(" ,") & set(name)


class TargetChange(enum.Enum):
    """What a subscriber is told."""

    ADDED = "added"
    REMOVED = "removed"
    LUNS = "luns"  # the LUN inventory: REPORTED LUNS DATA HAS CHANGED for every session
    ACCESS = "access"  # who is admitted, and through which portal groups
    SERVICE = "service"  # how commands are served: paused, recorded, or no longer


class Target:
    """An iSCSI target node: one name, its LUNs, its access list. Made here, served once a registry has it.

    ``chap``: who may log in, where that must be proven; a change holds from the next login on.
    """

    __slots__ = (
        "_initiators",
        "_luns",
        "_masks",
        "_paused",
        "_portal_groups",
        "_recorded",
        "_watchers",
        "alias",
        "chap",
        "name",
    )

    def __init__(
        self,
        name: str,
        *,
        alias: str = "",
        initiators: Iterable[str] | None = None,
        portal_groups: Iterable[int] | None = None,
    ) -> None:
        """
        Args:
            name: an iSCSI name; normalized.
            initiators: names of those that may log in; None admits every initiator.
            portal_groups: tags of those through which it is reached; None: all.

        Raises:
            InvalidArgument: the name, the alias or a tag is not allowed.
        """
        if len(alias.encode()) > MAX_ALIAS_BYTES or "\0" in alias:
            raise InvalidArgument(f"a target alias has at most {MAX_ALIAS_BYTES} bytes")
        self.name = validate_name(name)
        self.alias = alias
        self.chap: ChapAccess | None = None
        self._luns: dict[int, LogicalUnit] = {}
        self._masks: dict[int, frozenset[str]] = {}  # who alone sees a LUN
        self._initiators = _names(initiators)
        self._portal_groups = _tags(portal_groups)
        self._paused = False
        self._recorded = 0
        self._watchers: list[Watcher] = []

    def __str__(self) -> str:
        return self.name

    @property
    def luns(self) -> Mapping[int, LogicalUnit]:
        """The whole LUN map, live and read-only. What one initiator sees of it is ``unit_for`` and ``luns_for``."""
        return MappingProxyType(self._luns)

    def unit_for(self, initiator_name: str, lun: int) -> LogicalUnit | None:
        """What this initiator (by its normalized name) finds at ``lun``; None: nothing, or it is masked."""
        mask = self._masks.get(lun)
        return self._luns.get(lun) if mask is None or initiator_name in mask else None

    def luns_for(self, initiator_name: str) -> list[int]:
        """What REPORT LUNS tells this initiator, in order."""
        return [lun for lun in sorted(self._luns) if self.unit_for(initiator_name, lun) is not None]

    @property
    def initiators(self) -> frozenset[str] | None:
        """Who may log in; None: everybody."""
        return self._initiators

    def admits(self, initiator_name: str) -> bool:
        """Whether this initiator may log in and be told of the target."""
        return self._initiators is None or normalize_name(initiator_name) in self._initiators

    def admit(self, initiators: Iterable[str] | None) -> None:
        """Replace the access list (None: everybody). Whoever drops out loses its sessions (subscribers see to it)."""
        self._initiators = _names(initiators)
        self._notify(TargetChange.ACCESS)

    @property
    def portal_groups(self) -> frozenset[int] | None:
        """Tags of the groups that it is bound to; None: all."""
        return self._portal_groups

    def is_in(self, portal_group: int) -> bool:
        """Whether it is reached through this portal group."""
        return self._portal_groups is None or portal_group in self._portal_groups

    def serves(self, initiator_name: str, portal_group: int) -> bool:
        """Whether this initiator may have a session through this portal group."""
        return self.admits(initiator_name) and self.is_in(portal_group)

    def bind(self, portal_groups: Iterable[int] | None) -> None:
        """Replace the portal groups (None: all). Sessions through others end (subscribers see to it)."""
        self._portal_groups = _tags(portal_groups)
        self._notify(TargetChange.ACCESS)

    @property
    def paused(self) -> bool:
        """Whether commands are held instead of served; see ``Session.held``."""
        return self._paused

    def pause(self) -> None:
        """Hold all commands from now on. Those that run end as usual: ``IscsiServer.quiesced`` waits for them."""
        self._paused = True
        self._notify(TargetChange.SERVICE)

    def resume(self) -> None:
        """Serve what was held, and everything after it."""
        self._paused = False
        self._notify(TargetChange.SERVICE)

    @property
    def recorded(self) -> int:
        """How many commands of each session are remembered; 0: none."""
        return self._recorded

    def record(self, last: int) -> None:
        """Remember the last so many commands of each session. They leave the fast path for that; 0 ends it."""
        self._recorded = last
        self._notify(TargetChange.SERVICE)

    def map_lun(self, lun: int, unit: LogicalUnit, initiators: Iterable[str] | None = None) -> None:
        """Show ``unit`` at ``lun``, to these initiators only (None: to all that are admitted).

        Raises:
            InvalidArgument: no such LUN can be, the target is full, or a name is none. Nothing is shown then.
            AlreadyExists: the LUN is taken.
        """
        if not 0 <= lun <= MAX_LUN:
            raise InvalidArgument(f"LUN {lun} is not within 0..{MAX_LUN}")
        if lun in self._luns:
            raise AlreadyExists("LUN", f"{self.name}/{lun}")
        if len(self._luns) >= MAX_LUNS:
            raise InvalidArgument(f"target {self.name} has {MAX_LUNS} LUNs already")
        self._mask(lun, initiators)
        self._luns[lun] = unit
        self._notify(TargetChange.LUNS)

    def mask_lun(self, lun: int, initiators: Iterable[str] | None) -> None:
        """Show a LUN to these initiators only (None: to all that are admitted).

        Raises:
            NotFound: nothing is there.
        """
        if lun not in self._luns:
            raise NotFound("LUN", f"{self.name}/{lun}")
        self._mask(lun, initiators)
        self._notify(TargetChange.LUNS)

    def _mask(self, lun: int, initiators: Iterable[str] | None) -> None:
        names = _names(initiators)
        if names is None:
            self._masks.pop(lun, None)
        else:
            self._masks[lun] = names

    def unmap_lun(self, lun: int) -> LogicalUnit:
        """Take a LUN away; returns what was there.

        Raises:
            NotFound: nothing was.
        """
        if lun not in self._luns:
            raise NotFound("LUN", f"{self.name}/{lun}")
        unit = self._luns.pop(lun)
        self._masks.pop(lun, None)
        self._notify(TargetChange.LUNS)
        return unit

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Have ``watcher`` called in the same step as each change. Returns what ends that."""
        return _subscribe(self._watchers, watcher)

    def _notify(self, change: TargetChange) -> None:
        for watcher in list(self._watchers):
            watcher(self, change)


class TargetRegistry:
    """All targets of a server, by name."""

    def __init__(self) -> None:
        self._targets: dict[str, Target] = {}
        self._unsubscribe: dict[str, Callable[[], None]] = {}
        self._watchers: list[Watcher] = []
        self.portals: list[Portal] = []
        """Where the server listens, as bound; the shell sets it. Wildcard addresses are allowed."""
        self.discovery_chap: ChapAccess | None = None
        """Who may open discovery sessions, where that must be proven."""

    def __iter__(self) -> Iterator[Target]:
        return iter(list(self._targets.values()))

    def __len__(self) -> int:
        return len(self._targets)

    def find(self, name: str) -> Target | None:
        """The target of that name, in any spelling that means the same."""
        return self._targets.get(normalize_name(name))

    def add(self, target: Target) -> None:
        """Serve a target.

        Raises:
            AlreadyExists: one of that name is served.
        """
        if target.name in self._targets:
            raise AlreadyExists("target", target.name)
        self._targets[target.name] = target
        self._unsubscribe[target.name] = target.subscribe(self._notify)
        self._notify(target, TargetChange.ADDED)

    def remove(self, name: str) -> Target:
        """Serve a target no more. Its sessions end (subscribers see to it).

        Raises:
            NotFound: there is none of that name.
        """
        target = self.find(name)
        if target is None:
            raise NotFound("target", name)
        del self._targets[target.name]
        self._unsubscribe.pop(target.name)()
        self._notify(target, TargetChange.REMOVED)
        return target

    def units_for(self, nexus: Nexus) -> Iterator[LogicalUnit]:
        """The units that the initiator of a session may use: what copies in its name can read and write.

        That is what its own target shows it, and what it would find at any other that admits it at this portal group,
        as far as the unit is active there (SPC-4 section 5.15). A target that asks for CHAP shows it something only
        if its login here has proven what would be proven there.
        """
        who = nexus.it_nexus
        own = self._targets.get(who.target_name)
        if own is not None:  # first: it is looked at for every piece that is copied
            yield from _active_units(own, who)
        for target in self._targets.values():
            if target is not own and _would_log_in(target, nexus):
                yield from _active_units(target, replace(who, target_name=target.name))

    def subscribe(self, watcher: Watcher) -> Callable[[], None]:
        """Have ``watcher`` called in the same step as each change of any target. Returns what ends that."""
        return _subscribe(self._watchers, watcher)

    def send_targets(self, asker: str, portal: Portal, which: str = "All") -> list[tuple[str, str]]:
        """The answer to a SendTargets key: pairs of TargetName and TargetAddress (section 13.3, appendix C).

        Args:
            asker: the initiator's name; it hears only of targets that admit it.
            portal: the address that it reached us at; it hears only of targets that are reached through its group.
                Of these it is told all ways, those through other portal groups too, as appendix C wants it.
            which: "All" (discovery session), or one target's name.
        """
        if which == "All":
            targets = sorted(self._targets.values(), key=lambda target: target.name)
        else:
            found = self.find(which)
            targets = [] if found is None else [found]
        ways = self._ways(portal)
        pairs: list[tuple[str, str]] = []
        for target in targets:
            if target.serves(asker, portal.group):
                pairs.append(("TargetName", target.name))
                pairs.extend(
                    ("TargetAddress", f"{format_address((way.host, way.port))},{way.group}")
                    for way in ways
                    if target.is_in(way.group)
                )
        return pairs

    def _ways(self, portal: Portal) -> list[Portal]:
        """Portals that somebody who reached ``portal`` may try: that one first, then the others it can mean.

        A wildcard portal is told as the address that was reached, if it is of the same family: which address of the
        other family the asker could use is not known here. Loopback is told to loopback only, link-local addresses to
        those who came by one.
        """
        here = ipaddress.ip_address(_plain(portal.host))
        ways = [Portal(str(here), portal.port, portal.group)]
        for host, port, group in self.portals:
            address = ipaddress.ip_address(_plain(host))
            if address.is_unspecified:
                if address.version != here.version:
                    continue
                address = here
            elif (address.is_loopback and not here.is_loopback) or (address.is_link_local and not here.is_link_local):
                continue
            other = Portal(str(address), port, group)
            if other not in ways:
                ways.append(other)
        return ways

    def _notify(self, target: Target, change: TargetChange) -> None:
        for watcher in list(self._watchers):
            watcher(target, change)


def _would_log_in(target: Target, nexus: Nexus) -> bool:
    """Whether the initiator has proven to its own target what this one would ask for."""
    if target.chap is None:
        return True
    proof = nexus.chap_proof
    return proof is not None and target.chap.accepts(proof, nexus.it_nexus.initiator_name)


def _active_units(target: Target, who: ItNexus) -> Iterator[LogicalUnit]:
    """What an initiator sees of a target and may use there now."""
    if not target.admits(who.initiator_name) or not target.is_in(who.portal_group_tag):
        return
    for lun in target.luns:
        unit = target.unit_for(who.initiator_name, lun)
        if unit is not None and unit.access.group_of(who).state.is_active:
            yield unit


def _subscribe(watchers: list[Watcher], watcher: Watcher) -> Callable[[], None]:
    watchers.append(watcher)

    def unsubscribe() -> None:
        if watcher in watchers:
            watchers.remove(watcher)

    return unsubscribe


def format_address(address: Address) -> str:
    """``host:port`` with IPv6 in brackets (section 13.8)."""
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _plain(host: str) -> str:
    """A numeric address without its scope; IPv4 mapped into IPv6 as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    mapped = getattr(address, "ipv4_mapped", None)
    return str(mapped or address)


def _names(initiators: Iterable[str] | None) -> frozenset[str] | None:
    if initiators is None:
        return None
    names = frozenset(normalize_name(name) for name in initiators)
    for name in names:
        if not is_plausible_name(name):
            raise InvalidArgument(f"{name!r} is no initiator name")
    return names


def _tags(portal_groups: Iterable[int] | None) -> frozenset[int] | None:
    if portal_groups is None:
        return None
    tags = frozenset(portal_groups)
    for tag in tags:
        if not 0 <= tag <= MAX_PORTAL_GROUP:
            raise InvalidArgument(f"portal group tag {tag} is not within 0..{MAX_PORTAL_GROUP}")
    return tags
