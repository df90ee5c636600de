"""The numbers are those of the served classes, every engine error has its code, and both generations keep in step."""

from __future__ import annotations

import re

import pytest

import engine.errors
from cim_facade import errors, repository, value_maps
from cim_facade.namespaces import STORAGE
from engine.errors import EngineError


@pytest.fixture(scope="module")
def classes():
    return repository.load()


def spelled(text):
    return re.sub(r"(?<=[a-z])(?=[A-Z])|[ -]", "_", text).upper()


@pytest.mark.parametrize(
    ("class_name", "name", "enum"),
    [
        ("CIM_Synchronized", "SyncType", value_maps.SyncType),
        ("CIM_Synchronized", "Mode", value_maps.Mode),
        ("CIM_Synchronized", "CopyState", value_maps.CopyState),
        ("CIM_Synchronized", "ProgressStatus", value_maps.ProgressStatus),
        ("CIM_StorageSynchronized", "ReplicaType", value_maps.ReplicaType),
        ("CIM_StorageSynchronized", "SyncState", value_maps.SyncState),
        ("CIM_StorageSynchronized", "CopyMethodology", value_maps.CopyMethodology),
        ("CIM_ConcreteJob", "JobState", value_maps.JobState),
        ("CIM_ManagedSystemElement", "OperationalStatus", value_maps.OperationalStatus),
    ],
)
def test_numbers_and_names_are_those_of_the_classes(classes, class_name, name, enum):
    declared = classes.get(STORAGE, class_name).properties[name]
    numbers = [int(number) for number in declared.qualifiers["ValueMap"].value]
    known = {number: spelled(text) for number, text in zip(numbers, declared.qualifiers["Values"].value, strict=True)}
    for member in enum:
        assert known[member] == member.name


def test_every_engine_error_has_its_codes():
    kinds = [kind for kind in vars(engine.errors).values() if isinstance(kind, type) and issubclass(kind, EngineError)]
    assert set(errors.TABLE) <= set(kinds)
    for kind in kinds:  # of one that is not in the table, those of its base
        assert errors.told(kind.__new__(kind)) in errors.TABLE.values()
    for kind, told in errors.TABLE.items():
        assert told.code in tuple(errors.ReturnCode)
        assert told.sm_code in (*errors.ReturnCode, *errors.SmCode)
        assert told.sm_code != errors.ReturnCode.IN_USE  # MSFT_SM* has no such code
        assert errors.told_of(kind.__name__) == told
    assert errors.told_of("Unheard") == errors.TABLE[EngineError]
    assert errors.cim_error(engine.errors.NotFound("volume", "x")).status_code == 6


def test_both_generations_are_in_step():
    S, P, T, old = value_maps.CopyState, value_maps.ProgressStatus, value_maps.SyncType, value_maps.SyncState
    for state in S:
        for progress in P:
            for sync_type in T:
                assert value_maps.sync_state(sync_type, state, progress) in old
    assert value_maps.sync_state(T.MIRROR, S.SYNCHRONIZED, P.COMPLETED) is old.SYNCHRONIZED
    assert value_maps.sync_state(T.SNAPSHOT, S.SYNCHRONIZED, P.COMPLETED) is old.IDLE
    assert value_maps.sync_state(T.CLONE, S.SYNCHRONIZED, P.COMPLETED) is old.FROZEN
    assert value_maps.sync_state(T.MIRROR, S.UNSYNCHRONIZED, P.SYNCHRONIZING) is old.COPY_IN_PROGRESS
    assert value_maps.sync_state(T.MIRROR, S.UNSYNCHRONIZED, P.RESYNCING) is old.RESYNC_IN_PROGRESS
    assert value_maps.sync_state(T.MIRROR, S.SUSPENDED, P.DORMANT) is old.QUIESCED
    assert value_maps.copy_type(T.MIRROR, value_maps.Mode.SYNCHRONOUS) == 3
    assert value_maps.copy_type(T.MIRROR, value_maps.Mode.ADAPTIVE) == 2
    assert value_maps.copy_type(T.SNAPSHOT, None) == 4
    assert set(value_maps.NEW_OPERATIONS) == set(value_maps.OldOperation)
