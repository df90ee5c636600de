"""Filters that are always there. Their names go by the rule of SMI-S and DSP1054: ORGANIZATION:PROFILE:NAME."""

from __future__ import annotations

from cim_facade.indications.records import Filter
from cim_facade.namespaces import STORAGE
from cim_facade.query import CQL

OWNING_ENTITY = "twinvol"
"""OwningEntity of alerts: the meaning of MessageID is this product's."""

RPO_MESSAGE, MODE_MESSAGE = "TVOL1", "TVOL2"
"""MessageID of alerts: the promise of a mirror has changed; an adaptive mirror has switched."""


def _filter(profile: str, name: str, query: str) -> Filter:
    return Filter(f"{profile}:{name}", query, CQL, (STORAGE,), element_name=name, predefined=True)


def _of_class(event: str, class_name: str, condition: str = "") -> str:
    return f"SELECT * FROM CIM_Inst{event} WHERE SourceInstance ISA {class_name}{condition}"


def _differs(class_name: str, name: str) -> str:
    return f" AND SourceInstance.{class_name}::{name} <> PreviousInstance.{class_name}::{name}"


_JOB, _VOLUME, _PAIR, _GROUP = (
    "CIM_ConcreteJob",
    "CIM_StorageVolume",
    "CIM_StorageSynchronized",
    "CIM_GroupSynchronized",
)
_JOBS, _BLOCKS, _COPIES, _OWN = (
    "SNIA:Job Control",
    "SNIA:Block Services",
    "SNIA:Replication Services",
    "TWINVOL:Mirrors",
)
_ENDED = " AND ANY SourceInstance.CIM_ConcreteJob::OperationalStatus[*] = 17"
_ALERT = f"SELECT * FROM CIM_AlertIndication WHERE OwningEntity = '{OWNING_ENTITY}' AND MessageID = "

PREDEFINED = (
    _filter(_JOBS, "JobCreation", _of_class("Creation", _JOB)),
    _filter(_JOBS, "JobStateChange", _of_class("Modification", _JOB, _differs(_JOB, "JobState"))),
    _filter(_JOBS, "JobProgress", _of_class("Modification", _JOB, _differs(_JOB, "PercentComplete"))),
    _filter(
        _JOBS,
        "JobSuccess",
        _of_class("Modification", _JOB, f"{_ENDED} AND ANY SourceInstance.{_JOB}::OperationalStatus[*] = 2"),
    ),
    _filter(
        _JOBS,
        "JobFailure",
        _of_class("Modification", _JOB, f"{_ENDED} AND ANY SourceInstance.{_JOB}::OperationalStatus[*] = 6"),
    ),
    _filter(_BLOCKS, "VolumeCreation", _of_class("Creation", _VOLUME)),
    _filter(_BLOCKS, "VolumeDeletion", _of_class("Deletion", _VOLUME)),
    _filter(_COPIES, "SynchronizationCreation", _of_class("Creation", _PAIR)),
    _filter(_COPIES, "SynchronizationDeletion", _of_class("Deletion", _PAIR)),
    _filter(_COPIES, "SynchronizationStateChange", _of_class("Modification", _PAIR, _differs(_PAIR, "CopyState"))),
    _filter(_COPIES, "SyncStateChange", _of_class("Modification", _PAIR, _differs(_PAIR, "SyncState"))),
    _filter(_COPIES, "GroupSynchronizationCreation", _of_class("Creation", _GROUP)),
    _filter(_COPIES, "GroupSynchronizationDeletion", _of_class("Deletion", _GROUP)),
    _filter(_OWN, "RecoveryPointObjective", f"{_ALERT}'{RPO_MESSAGE}'"),
    _filter(_OWN, "ModeSwitch", f"{_ALERT}'{MODE_MESSAGE}'"),
)
