"""What the copying methods have in common before the engine is asked: values of parameters, exclusions, setting data.

All of it is pure. A value that makes no sense is ``Refused`` with a return code of the method; ``methods.md`` section 9
decides which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cim_facade.errors import ReturnCode
from cim_facade.value_maps import ENGINE_MODES, CopyMethodology, CopyState, CopyType, Mode, SyncType
from engine.api import ELEMENT_NAME_MAX, ORDER_MAX, RPO, MirrorTerms

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pywbem import CIMDateTime, CIMInstance

    from cim_facade.provider import Parameters

RPO_DEFAULT_S = 30.0


class Refused(Exception):
    """A method that was run, and answers with ``code``."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def invalid(text: str) -> Refused:
    return Refused(ReturnCode.INVALID_PARAMETER, text)


def unsupported(text: str) -> Refused:
    return Refused(ReturnCode.NOT_SUPPORTED, text)


@dataclass(frozen=True, slots=True)
class Kind:
    """What is to be made. ``mode``: of a mirror. ``related``: the association stays."""

    sync_type: SyncType
    mode: Mode | None = None
    related: bool = True

    @property
    def engine_kind(self) -> str:
        return _ENGINE_KINDS[self.sync_type]

    def terms(self, *, rpo_s: float | None = None, stops_host_io: bool = False) -> MirrorTerms:
        """What is asked of a mirror; of other copies it says nothing."""
        mode = ENGINE_MODES[self.mode or Mode.ASYNCHRONOUS]
        return MirrorTerms(mode, rpo_s=rpo_s, failed_copy_stops_host_io=stops_host_io)


_ENGINE_KINDS = {
    SyncType.MIRROR: "mirror",
    SyncType.SNAPSHOT: "snapshot",
    SyncType.CLONE: "clone",
    SyncType.TOKENIZED_CLONE: "token",
}

_OF_COPY_TYPE = {
    CopyType.ASYNC: Kind(SyncType.MIRROR, Mode.ASYNCHRONOUS),
    CopyType.SYNC: Kind(SyncType.MIRROR, Mode.SYNCHRONOUS),
    CopyType.UNSYNC_ASSOC: Kind(SyncType.SNAPSHOT),
    CopyType.UNSYNC_UNASSOC: Kind(SyncType.CLONE, related=False),
}


def of_copy_type(value: int | None) -> Kind:
    """0, 1, 6 to 32767 and the vendor's are no copy types."""
    if value not in tuple(CopyType):
        raise invalid(f"CopyType {value} is none of 2 to 5")
    return _OF_COPY_TYPE[CopyType(value)]


def of_sync_type(value: int | None, mode: int | None, *, later: bool = False) -> Kind:
    """``later``: TokenizedClone and Adaptive are values of the method, not reserved ones."""
    types = set(SyncType) if later else set(SyncType) - {SyncType.TOKENIZED_CLONE}
    modes = set(Mode) if later else set(Mode) - {Mode.ADAPTIVE}
    if value not in types:
        raise invalid(f"SyncType {value} is none of {', '.join(str(int(each)) for each in sorted(types))}")
    if mode is not None and mode not in modes:
        raise invalid(f"Mode {mode} is none of {', '.join(str(int(each)) for each in sorted(modes))}")
    sync_type = SyncType(value)
    if sync_type is not SyncType.MIRROR:  # a point in time has no mode to keep
        return Kind(sync_type)
    return Kind(sync_type, Mode.ASYNCHRONOUS if mode is None else Mode(mode))


def element_name(value: str | None) -> str | None:
    """A name that something may be called by; NULL: the system makes one."""
    if value is None:
        return None
    if not value.strip() or len(value) > ELEMENT_NAME_MAX or not value.isprintable():
        raise invalid(f"a name has 1 to {ELEMENT_NAME_MAX} printable characters")
    return value


def element_names(values: Sequence[str | None] | None, count: int) -> list[str | None]:
    """In order, and NULL for those that have none: the list may be shorter, not longer."""
    values = values or ()
    if len(values) > count:
        raise invalid(f"there are {len(values)} names for {count} elements")
    return [element_name(value) for value in values] + [None] * (count - len(values))


def numbered_names(name: str | None, count: int) -> list[str | None]:
    """Of the targets of a relation: its name with _1, _2 ..."""
    if name is None:
        return [None] * count
    return [f"{name}_{number}" for number in range(1, count + 1)]


def check_count(count: int) -> int:
    if not 0 < count <= ORDER_MAX:
        raise invalid(f"1 to {ORDER_MAX} copies can be made at once, not {count}")
    return count


WAIT_STATES = {
    SyncType.MIRROR: (CopyState.UNSYNCHRONIZED, CopyState.SYNCHRONIZED),
    SyncType.SNAPSHOT: (CopyState.SYNCHRONIZED,),
    SyncType.CLONE: (CopyState.SYNCHRONIZED,),
    SyncType.TOKENIZED_CLONE: (CopyState.SYNCHRONIZED,),
}
"""What WaitForCopyState may be when a copy is made. A clone is a copy of anything when it is Synchronized, not before;
a mirror flows from the beginning, so it is never Initialized or Inactive for anybody to see."""


def wait_state(value: int | None, sync_type: SyncType) -> CopyState | None:
    if value is None:
        return None
    if value not in WAIT_STATES[sync_type]:
        raise invalid(f"WaitForCopyState {value} is not supported here")
    return CopyState(value)


@dataclass(frozen=True, slots=True)
class Settings:
    """What a CIM_ReplicationSettingData asks for and is honoured.

    ``unequal_lists``, ``unequal_groups``: 2 error, 3 the sources may be more, 4 the targets may be more.
    ``supplier``: TargetElementSupplier. ``at_once``: all copies hold one instant. ``rpo_s``: of asynchronous mirrors.
    ``stops_host_io``: FailedCopyStopsHostIO, of synchronous ones.
    """

    on_error: str = "stop"
    unequal_lists: int = 2
    unequal_groups: int = 2
    exact_order: bool = False
    at_once: bool = False
    rpo_s: float | None = None
    stops_host_io: bool = False
    supplier: int = 4

    def check_supplier(self, *, targets_given: bool) -> None:
        """Whether the targets are there that the supplier says there are."""
        if self.supplier == 1 and not targets_given:
            raise unsupported("TargetElementSupplier 1: no idle volumes are kept here; hand in the targets")
        if self.supplier == 5 and not targets_given:
            raise invalid("TargetElementSupplier 5: the client supplies the targets, and there are none")
        if self.supplier == 2 and targets_given:
            raise invalid("TargetElementSupplier 2: new targets are made, and there are some already")


METHODOLOGIES = {
    SyncType.MIRROR: (CopyMethodology.FULL_COPY, CopyMethodology.INCREMENTAL_COPY, CopyMethodology.DELTA_UPDATE),
    SyncType.SNAPSHOT: (CopyMethodology.REDIRECT_ON_WRITE,),
    SyncType.CLONE: (CopyMethodology.FULL_COPY,),
    SyncType.TOKENIZED_CLONE: (CopyMethodology.FULL_COPY,),
}

_CHOICES = {
    "Pairing": (2, 3, 4),
    "UnequalGroupsAction": (2, 3, 4),
    "UnequalListsAction": (2, 3, 4),
    "OnGroupOrListError": (2, 3),
    "TargetElementSupplier": (1, 2, 3, 4, 5),
    "ThinProvisioningPolicy": (2, 3, 4, 5, 6, 7),
    "DesiredCopyMethodology": tuple(range(1, 12)),
    "CopyPriority": (0, 1, 2, 3, 4),
}
"""Values of the properties that are honoured; others are reserved."""

_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "Multihop": (1,),
    "CopyRecoveryMode": (4,),
    "StorageCompressionPolicy": (7,),
    "AutoDelete": (False,),
    "TargetElementGoal": (2,),
    "TargetElementResourcePool": (2, 3),
    "ConsistencyExempt": (False,),
    "ConsistentAsyncCopy": (False,),
}
"""What the others may say: their defaults, and what is so anyway."""

_HONOURED = {*(name.lower() for name in _CHOICES), "consistentpointintime", "desiredrpo", "failedcopystopshostio"}
_DESCRIBING = {"instanceid", "elementname", "caption", "description"}


def setting_data(instance: CIMInstance | None, kind: Kind) -> Settings:
    """What an embedded CIM_ReplicationSettingData asks for; None: the defaults.

    A value that cannot be had is Not Supported, never ignored; a reserved one is Invalid Parameter.
    """
    if instance is None:
        return Settings()
    values = {name.lower(): value for name, value in instance.items() if value is not None}
    for name, choices in _CHOICES.items():
        if name.lower() in values and values[name.lower()] not in choices:
            raise invalid(f"ReplicationSettingData.{name} cannot be {values[name.lower()]}")
    for name, defaults in _DEFAULTS.items():
        if name.lower() in values and values[name.lower()] not in defaults:
            raise unsupported(f"ReplicationSettingData.{name} {values[name.lower()]} is not supported")
    known = _HONOURED | _DESCRIBING | {name.lower() for name in _DEFAULTS}
    for name in values.keys() - known:
        raise unsupported(f"ReplicationSettingData.{name} is not supported")
    if values.get("pairing") == 4:
        raise unsupported("ReplicationSettingData.Pairing 4: there is nothing here that one pair has better")
    if values.get("thinprovisioningpolicy") == 3:
        raise unsupported("ReplicationSettingData.ThinProvisioningPolicy 3: targets are thin")
    if values.get("copypriority") not in (None, 0, 2):
        raise unsupported("ReplicationSettingData.CopyPriority: all copies have the same")
    methodology = values.get("desiredcopymethodology", CopyMethodology.IMPLEMENTATION_DECIDES)
    if methodology not in (CopyMethodology.IMPLEMENTATION_DECIDES, *METHODOLOGIES[kind.sync_type]):
        raise unsupported(f"ReplicationSettingData.DesiredCopyMethodology {methodology} is not how this is copied")
    if values.get("failedcopystopshostio") and kind.mode is not Mode.SYNCHRONOUS:
        raise unsupported("ReplicationSettingData.FailedCopyStopsHostIO: of synchronous mirrors; others fall behind")
    return Settings(
        on_error="continue" if values.get("ongrouporlisterror") == 2 else "stop",
        unequal_lists=values.get("unequallistsaction", 2),
        unequal_groups=values.get("unequalgroupsaction", 2),
        exact_order=values.get("pairing") == 3,
        at_once=bool(values.get("consistentpointintime", False)),
        rpo_s=_interval(values.get("desiredrpo"), kind),
        stops_host_io=bool(values.get("failedcopystopshostio", False)),
        supplier=values.get("targetelementsupplier", 4),
    )


def _interval(value: CIMDateTime | None, kind: Kind) -> float | None:
    if value is None:
        return None
    if not value.is_interval:
        raise invalid("ReplicationSettingData.DesiredRPO is an interval")
    return rpo_seconds(value.timedelta.total_seconds(), kind)


def rpo_seconds(value: float | None, kind: Kind) -> float | None:
    """RecoveryPointObjective, in seconds. NULL and 0: nothing is asked for; a point in time keeps none."""
    if value is None or value == 0 or kind.sync_type is not SyncType.MIRROR:
        return None
    if kind.mode is Mode.SYNCHRONOUS:
        raise invalid("a synchronous copy has no recovery point objective but 0")
    if not RPO.low <= value <= RPO.high:
        raise invalid(f"a recovery point objective is {RPO.low:g} to {RPO.high:g} seconds, not {value:g}")
    return float(value)


def paired(sources: int, targets: int, action: int, what: str) -> int:
    """How many pairs there are of so many sources and targets. ``action``: UnequalListsAction, UnequalGroupsAction."""
    if sources > targets and action != 3:
        raise invalid(f"there are more sources ({sources}) than targets ({targets}): {what}")
    if sources < targets and action != 4:
        raise invalid(f"there are fewer sources ({sources}) than targets ({targets}): {what}")
    return check_count(min(sources, targets))


def given(params: Parameters, name: str) -> bool:
    """Whether a parameter has a value. NULL is as if it were left out; an array without elements has one."""
    return params.get(name) is not None
