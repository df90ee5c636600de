"""A logical unit: one block device as a SCSI disk, and the I_T_L nexuses through which initiators reach it.

How a command runs: ``LogicalUnit.execute`` finds it in ``commands.COMMANDS``, checks in the order of SAM-5 (known
command, unit attention, asymmetric access state, reservation, CDB fields, medium, write protection) and awaits its
handler. Handlers are the functions of the other modules of this package; state that all nexuses share is here.

The transport's fast path does not come here at all. It looks only at four slots of the nexus, and this module
keeps the invariant:

* ``fast_device`` is the device exactly when a READ of this nexus would be served now: no unit attention pends, no
  reservation refuses it, the medium is there, the target port group is active, and the transport wants the fast
  path (``plain_only``). Else None.
* ``fast_writable`` is True only if ``fast_device`` is set and a WRITE without FUA would be served: not write
  protected, not refused by a reservation, write cache on, and no read-modify-write command running (``write_order``).
* ``blocks`` and ``block_shift`` are the device's capacity in logical blocks and the logarithm of the block's length.

Every change of that state ends in ``refresh``. Everything runs in the loop's thread.
"""

from __future__ import annotations

import dataclasses
import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.files import SystemClock
from engine.sanitize import SanitizeState
from engine.stores import AtomicTarget
from engine.tokens import Tokens
from iscsi.scsi import sanitize, thresholds
from iscsi.scsi.alua import AsymmetricAccess
from iscsi.scsi.command import ScsiResult, Status
from iscsi.scsi.commands import COMMANDS
from iscsi.scsi.copy_manager import CopyManager
from iscsi.scsi.inquiry import absent_inquiry
from iscsi.scsi.mode import ModeParameters
from iscsi.scsi.reservations import Reservations
from iscsi.scsi.sense import (
    INTERNAL_FAILURE,
    Asc,
    CheckCondition,
    Effect,
    ReservationConflict,
    Sense,
    SenseKey,
    sense_for,
)
from iscsi.scsi.spc import lun_inventory
from iscsi.scsi.write_order import WriteOrder
from iscsi.stats import IoStats

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from engine.stores import BlockDevice
    from iscsi.chap import ChapIdentity
    from iscsi.scsi.command import ScsiCommand
    from iscsi.scsi.copy_manager import CopyOperation
    from iscsi.scsi.dispatch import CommandSpec
    from iscsi.scsi.it_nexus import ItNexus
    from iscsi.scsi.thresholds import Resources

_log = logging.getLogger(__name__)

MAX_UNIT_ATTENTIONS = 8
"""Per nexus. More than these have one meaning for a host: look again at everything; power on then stands for all."""

MAX_FAILURES_LOGGED = 16
FAILURES_S = 10.0
"""Failed commands of one unit that are logged one by one within so many seconds; then their number is."""

_REQUEST_SENSE, _INQUIRY, _REPORT_LUNS = 0x03, 0x12, 0xA0


@dataclass(frozen=True, slots=True)
class LunIdentity:
    """Who the disk says it is. It travels with the volume.

    ``serial``: printable ASCII, at most 36 characters (VPD 80h). ``naa``: 64 bits, NAA type 3h, locally assigned.
    """

    serial: str
    naa: int
    vendor: str = "TWINVOL"
    product: str = "VIRTUAL-DISK"
    revision: str = "0001"

    def __post_init__(self) -> None:
        assert self.naa >> 60 == 3, "NAA must be of type 3h (locally assigned)"
        assert len(self.serial) <= 36
        assert len(self.vendor) <= 8
        assert len(self.product) <= 16
        assert len(self.revision) <= 4


def _lun_0_only() -> Sequence[int]:
    return (0,)


async def _nothing_to_abort() -> None:
    return


class Nexus:
    """One session's view of one logical unit. Made by ``LogicalUnit.attach``.

    ``abort_tasks`` may be set by the transport: it ends all this nexus's commands on the unit and returns when none of
    them can touch the medium any more; PREEMPT AND ABORT awaits it. ``chap_proof``: by what the initiator has proven
    who it is, if it had to. With ``plain_only`` (and ``refresh``) it keeps
    the nexus off the fast path.
    """

    __slots__ = (
        "abort_tasks",
        "block_shift",
        "blocks",
        "chap_proof",
        "copies",
        "fast_device",
        "fast_writable",
        "it_nexus",
        "lu",
        "luns",
        "plain_only",
        "port_group",
        "prevents_removal",
        "sanitize_polls",
        "stats",
        "unit_attentions",
    )

    def __init__(self, lu: LogicalUnit, it_nexus: ItNexus, luns: Callable[[], Sequence[int]]) -> None:
        self.lu = lu
        self.it_nexus = it_nexus
        self.luns = luns
        self.fast_device: BlockDevice | None = None
        self.fast_writable = False
        self.blocks = 0
        self.block_shift = lu.block_shift
        self.unit_attentions: list[Asc] = [Asc.POWER_ON_OCCURRED]
        self.prevents_removal = False
        self.sanitize_polls = 0
        self.copies: dict[int, CopyOperation] = {}  # by list identifier
        self.chap_proof: ChapIdentity | None = None
        self.plain_only = False
        self.port_group = lu.access.group_of(it_nexus)
        self.stats = IoStats()
        self.abort_tasks: Callable[[], Awaitable[None]] = _nothing_to_abort

    def establish_unit_attention(self, asc: Asc) -> None:
        """Report ``asc`` with the next command that may report it (SAM-5 section 5.14)."""
        pending = self.unit_attentions
        if asc in pending:
            return
        if len(pending) >= MAX_UNIT_ATTENTIONS:
            pending[:] = [Asc.POWER_ON_OCCURRED]
        else:
            pending.append(asc)
        self.lu.refresh(self)

    def withdraw_unit_attention(self, asc: Asc) -> None:
        """The initiator has learned it otherwise."""
        if asc in self.unit_attentions:
            self.unit_attentions.remove(asc)
            self.lu.refresh(self)

    def take_unit_attention(self, *, but: frozenset[Asc] = frozenset()) -> Sense | None:
        """The oldest pending unit attention that is not one of ``but``; it is reported thereby."""
        for asc in self.unit_attentions:
            if asc not in but:
                self.withdraw_unit_attention(asc)
                threshold = asc is Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED
                information = thresholds.NOTIFICATION_INFORMATION if threshold else None
                return Sense(SenseKey.UNIT_ATTENTION, asc, information=information)
        return None


class LogicalUnit:
    """A block device with a SCSI face. Targets map it to a LUN; sessions attach."""

    def __init__(
        self,
        device: BlockDevice,
        identity: LunIdentity,
        *,
        logical_block: int = 512,
        physical_block: int = 4096,
        removable: bool = False,
        read_only: bool = False,
        write_cache: bool = True,
        thin: bool = True,
        reservations: Reservations | None = None,
        copy_manager: CopyManager | None = None,
        resources: Resources | None = None,
    ) -> None:
        """
        Args:
            logical_block, physical_block: bytes, powers of two, 512 <= logical <= physical.
            read_only: refuse writes here, whatever the device allows.
            write_cache: whether a write may be answered before it is durable; tells WCE.
            thin: whether to offer UNMAP and tell LBPME.
            reservations: those that the disk has had so far; by default none, and none will survive this process.
            copy_manager: the server's; None: one that knows this unit alone.
            resources: what the unit draws from when it is thin; None: there are no thresholds.
        """
        assert logical_block in (512, 4096)
        assert physical_block >= logical_block
        assert physical_block & (physical_block - 1) == 0
        self._take_device(device)
        self.identity = identity
        self.logical_block = logical_block
        self.physical_block = physical_block
        self.block_shift = logical_block.bit_length() - 1
        self.removable = removable
        self.thin = thin
        self.resources = resources if thin else None
        self.loaded = True
        self.mode = ModeParameters(write_cache=write_cache, thresholds=self.resources is not None)
        self.reservations = reservations or Reservations()
        self.access = AsymmetricAccess()
        self.write_order = WriteOrder(self.refresh_all, self.require_not_sanitizing)
        self.copy_manager = copy_manager or CopyManager(Tokens(SystemClock()))
        self.nexuses: list[Nexus] = []
        self._past = IoStats()  # of nexuses that are gone
        self._failures = 0  # of commands, within the time that ends at ``_failures_until``
        self._failures_until = 0.0
        self._read_only = read_only
        self._blocks = device.size_bytes >> self.block_shift

    def _take_device(self, device: BlockDevice) -> None:
        """``commands`` are those that it can serve; ``sanitizer`` is who sanitizes it, None where that cannot be."""
        self.device = device
        self.commands = COMMANDS.of(device)
        self.sanitizer = sanitize.sanitizer_of(device)

    @property
    def blocks(self) -> int:
        """Capacity in logical blocks, as last told to the initiators."""
        return self._blocks

    @property
    def max_atomic_blocks(self) -> int:
        """Longest WRITE ATOMIC(16); 0: there is none."""
        return self.device.atomic_write_bytes >> self.block_shift if isinstance(self.device, AtomicTarget) else 0

    @property
    def sanitize_state(self) -> SanitizeState:
        """Whether the unit is being sanitized, or that has failed."""
        return SanitizeState.NONE if self.sanitizer is None else self.sanitizer.state

    @property
    def write_protected(self) -> bool:
        return self._read_only or self.device.read_only or self.mode.software_write_protect

    @property
    def shows_protection(self) -> bool:
        """WP of MODE SENSE (SBC-3 table 174). What stands in for a disk in standby is protected for its source's sake:
        the disk is not, and an initiator that took it for that would not write by another path either."""
        own = self._read_only or self.mode.software_write_protect
        return own or (self.device.read_only and self.access.is_active)

    def stats(self) -> IoStats:
        """What all nexuses, also those that are gone, have done with the unit since it is shown."""
        stats = IoStats()
        for part in (self._past, *(nexus.stats for nexus in self.nexuses)):
            stats.add(part)
        return stats

    # -- nexuses

    def portal_group_tags(self, who: ItNexus) -> Sequence[int]:
        """The ports by which this unit is reached at the target of ``who``."""
        return tuple(self.access.group_of(who).ports())

    def attach(self, it_nexus: ItNexus, luns: Callable[[], Sequence[int]] = _lun_0_only) -> Nexus:
        """A session of ``it_nexus`` begins. ``luns`` answers REPORT LUNS: what this session may see, now.

        The nexus starts with the unit attention POWER ON (SPC-4 section 5.8.2).
        """
        nexus = Nexus(self, it_nexus, luns)
        self.nexuses.append(nexus)
        self.refresh(nexus)
        return nexus

    def detach(self, nexus: Nexus) -> None:
        """The session ended (I_T nexus loss). Persistent reservations stay; RESERVE(6) and PREVENT end with it."""
        self.nexuses.remove(nexus)
        self._past.add(nexus.stats)
        nexus.fast_device = None
        nexus.fast_writable = False
        self.reservations.nexus_lost(nexus)
        self.refresh_all()

    def refresh(self, nexus: Nexus) -> None:
        """Recompute what the fast path of a nexus may do."""
        usable = self.loaded and self.sanitize_state is SanitizeState.NONE
        ready = not nexus.unit_attentions and usable and not nexus.plain_only and nexus.port_group.state.is_active
        readable = ready and not self.reservations.forbid(nexus, Effect.READ)
        nexus.blocks = self._blocks
        nexus.fast_device = self.device if readable else None
        nexus.fast_writable = (
            readable
            and not self.write_protected
            and self.mode.write_cache
            and not self.write_order.exclusive_count
            and not self.reservations.forbid(nexus, Effect.WRITE)
        )

    def refresh_all(self) -> None:
        for nexus in self.nexuses:
            self.refresh(nexus)

    def establish_unit_attention(self, asc: Asc, *, by: Nexus | None = None) -> None:
        """For every nexus but ``by``."""
        for nexus in self.nexuses:
            if nexus is not by:
                nexus.establish_unit_attention(asc)

    # -- events from outside

    def capacity_changed(self) -> None:
        """The device has another size now: tell every nexus (SBC-3 section 4.5, 2Ah/09h)."""
        self._blocks = self.device.size_bytes >> self.block_shift
        self.establish_unit_attention(Asc.CAPACITY_DATA_CHANGED)
        self.refresh_all()

    def content_replaced(self, device: BlockDevice | None = None) -> None:
        """Rollback, restore or failover put other data under the hosts: 28h/00h. ``device``: where it is, if new."""
        if device is not None:
            self._take_device(device)
        self._blocks = self.device.size_bytes >> self.block_shift
        self.establish_unit_attention(Asc.MEDIUM_MAY_HAVE_CHANGED)
        self.refresh_all()

    def soft_threshold_reached(self) -> None:
        """Little is left of what thin units draw from (SBC-4 section 4.7.3.7.6)."""
        if self.resources is not None and self.mode.threshold_reports:
            self.establish_unit_attention(Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED)

    def thresholds_changed(self) -> None:
        """The administrator has set another threshold."""
        if self.resources is not None:
            self.establish_unit_attention(Asc.MODE_PARAMETERS_CHANGED)

    def write_protection_changed(self, *, read_only: bool | None = None) -> None:
        """The device became read-only or writable, or this unit shall be. Hosts see it in MODE SENSE."""
        if read_only is not None:
            self._read_only = read_only
        self.establish_unit_attention(Asc.MODE_PARAMETERS_CHANGED)
        self.refresh_all()

    def reset(self) -> None:
        """Logical unit reset (SAM-5 section 6.3.3), after the transport has ended the unit's commands.

        Releases RESERVE(6), restores mode parameters, allows removal; persistent reservations stay. Every nexus, also
        that of the one who asked, gets 29h/03h.
        """
        self.reservations.reset()
        self.mode.reset()
        for nexus in self.nexuses:
            nexus.prevents_removal = False
            nexus.copies.clear()
        self.establish_unit_attention(Asc.BUS_DEVICE_RESET_OCCURRED)
        self.refresh_all()

    # -- commands

    def data_out_length(self, cdb: bytes) -> int:
        """Bytes which the CDB asks of the initiator; 0 for none or an unknown command.

        A transport gathers at most ``MAX_TRANSFER_BYTES``; what asks for more is executed at once, without data,
        and gets refused.
        """
        cdb = _padded(cdb)
        spec = self.commands.find(cdb)
        return 0 if spec is None or spec.data_out is None else spec.data_out(self, cdb)

    async def execute(self, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
        """Run one command. Failures are results; only cancellation leaves by an exception."""
        cdb = _padded(command.cdb)
        if cdb is not command.cdb:
            command = dataclasses.replace(command, cdb=cdb)
        spec = self.commands.find(cdb)
        effect = Effect.NONE if spec is None else spec.effect
        result = await self.outcome(self._perform(spec, nexus, command), f"opcode {cdb[0]:02X}h", effect)
        if spec is not None and spec.data_out is not None:
            result.data_out_wanted = spec.data_out(self, cdb)
        return result

    async def outcome(self, work: Awaitable[ScsiResult], what: str, effect: Effect) -> ScsiResult:
        """The result of ``work`` that does ``effect``, its failures too. ``what``: for the log."""
        try:
            return await work
        except CheckCondition as failure:
            return self._check_condition(failure.sense)
        except ReservationConflict:
            return ScsiResult(Status.RESERVATION_CONFLICT)
        except EngineError as error:
            self._log_failure(what, error)
            return self._check_condition(sense_for(error, effect))
        except Exception:
            # Ours, not the peer's: the command fails visibly, the session and its other commands go on.
            _log.exception("%s met an internal error", what)
            return self._check_condition(INTERNAL_FAILURE)

    def _log_failure(self, what: str, error: EngineError) -> None:
        """A host whose disk is full fails thousands of commands a second, and goes on: the first ones tell it all."""
        now = monotonic()
        if now >= self._failures_until:
            if self._failures > MAX_FAILURES_LOGGED:
                _log.warning("unit %s: %d commands have failed", self.identity.serial, self._failures)
            self._failures, self._failures_until = 0, now + FAILURES_S
        self._failures += 1
        if self._failures <= MAX_FAILURES_LOGGED:
            _log.warning("unit %s: %s failed: %s", self.identity.serial, what, error)

    async def _perform(self, spec: CommandSpec | None, nexus: Nexus, command: ScsiCommand) -> ScsiResult:
        if spec is None:
            raise self.commands.unknown(command.cdb)
        self._admit(nexus, spec, command.cdb)
        return await spec.handler(self, nexus, command)

    def _admit(self, nexus: Nexus, spec: CommandSpec, cdb: bytes) -> None:
        """The checks common to all commands, in their order of precedence (SAM-5 section 5.3.3, SPC-4 section 5.9)."""
        if nexus.unit_attentions and not spec.ignores_unit_attention:
            sense = nexus.take_unit_attention(but=spec.passes)
            if sense is not None:
                raise CheckCondition(sense)
        nexus.port_group.require(spec.available)
        self.reservations.check(nexus, spec)
        spec.check_fields(cdb)
        if self.sanitize_state not in spec.while_sanitizing:
            self._require_sanitized()
        if spec.effect is not Effect.NONE or spec.needs_medium:
            self._require_loaded()
        if spec.effect is Effect.WRITE and self.write_protected:
            raise CheckCondition(Sense(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED))

    def set_loaded(self, loaded: bool, *, by: Nexus) -> None:
        """A removable medium is loaded or ejected by ``by``; loading means 28h/00h for the others."""
        inserted = loaded and not self.loaded
        self.loaded = loaded
        if inserted:
            self.establish_unit_attention(Asc.MEDIUM_MAY_HAVE_CHANGED, by=by)
        self.refresh_all()

    def require_medium(self) -> None:
        """Raises NOT READY when the medium is ejected or being sanitized, MEDIUM ERROR when the latter has failed."""
        self._require_sanitized()
        self._require_loaded()

    def require_not_sanitizing(self) -> None:
        """Raises NOT READY while the unit is being sanitized."""
        if self.sanitize_state is SanitizeState.RUNNING:
            self._require_sanitized()

    def _require_sanitized(self) -> None:
        if self.sanitizer is not None and self.sanitizer.state is not SanitizeState.NONE:
            raise CheckCondition(sanitize.state_sense(self.sanitizer))

    def _require_loaded(self) -> None:
        if not self.loaded:
            raise CheckCondition(Sense(SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT))

    def _check_condition(self, sense: Sense) -> ScsiResult:
        return ScsiResult(Status.CHECK_CONDITION, sense=sense.serialize(descriptor=self.mode.descriptor_sense))


def execute_absent(command: ScsiCommand, luns: Sequence[int]) -> ScsiResult:
    """Answer a command to a LUN that maps to nothing (SAM-5 section 5.11). ``luns``: what exists."""
    cdb = _padded(command.cdb)
    not_supported = Sense(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED)
    try:
        if cdb[0] == _REPORT_LUNS:
            return lun_inventory(cdb, luns)
        if cdb[0] == _INQUIRY and not cdb[1] & 1:
            return ScsiResult(data_in=absent_inquiry()[: int.from_bytes(cdb[3:5], "big")])
        if cdb[0] == _REQUEST_SENSE:
            return ScsiResult(data_in=not_supported.serialize(descriptor=bool(cdb[1] & 1))[: cdb[4]])
    except CheckCondition as failure:
        return ScsiResult(Status.CHECK_CONDITION, sense=failure.sense.serialize())
    return ScsiResult(Status.CHECK_CONDITION, sense=not_supported.serialize())


def _padded(cdb: bytes) -> bytes:
    """At least 16 bytes, so that every field of every supported CDB can be read."""
    return cdb if len(cdb) >= 16 else cdb.ljust(16, b"\0")
