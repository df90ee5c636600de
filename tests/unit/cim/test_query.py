"""Queries of filters and of enumerations: what they match, and what is refused, where."""

from __future__ import annotations

import pytest
from pywbem import (
    CIM_ERR_INVALID_QUERY,
    CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED,
    CIMDateTime,
    CIMError,
    CIMInstance,
    Uint16,
)

from cim_facade.namespaces import STORAGE
from cim_facade.query import MAX_DEPTH, MAX_QUERY, MAX_TERMS, parse_condition, parse_filter
from cim_facade.query_schema import ClassSchema
from tests.support.cim_array import classes

JOB = "MSISCSITARGET_ConcreteJob"


def schema_of(name: str) -> ClassSchema | None:
    if not classes().is_a(STORAGE, name, "CIM_Indication"):
        return None
    return ClassSchema(classes(), [STORAGE], name)


def job(**values: object) -> CIMInstance:
    return CIMInstance(JOB, properties=values)


def modification(before: CIMInstance, after: CIMInstance) -> CIMInstance:
    return CIMInstance("CIM_InstModification", {"PreviousInstance": before, "SourceInstance": after})


RUNNING = job(JobState=Uint16(4), OperationalStatus=[Uint16(2)], Name="a's", PercentComplete=Uint16(40))
DONE = job(
    JobState=Uint16(7),
    OperationalStatus=[Uint16(2), Uint16(17)],
    Name="b",
    PercentComplete=Uint16(100),
    StartTime=CIMDateTime("20261122010203.000000+000"),
)
ENDED = modification(RUNNING, DONE)

MODIFIED = "SELECT * FROM CIM_InstModification WHERE SourceInstance ISA CIM_ConcreteJob AND "


@pytest.mark.parametrize(
    "condition",
    [
        "SourceInstance.JobState <> PreviousInstance.JobState",
        "SourceInstance.CIM_ConcreteJob::JobState <> PreviousInstance.CIM_ConcreteJob::JobState",
        "CIM_InstModification.SourceInstance.JobState = 7",
        "SourceInstance.CIM_ConcreteJob::OperationalStatus=17",
        "ANY SourceInstance.CIM_ConcreteJob::OperationalStatus[*] = 17",
        "EVERY SourceInstance.OperationalStatus[*] <> 6",
        "SourceInstance.OperationalStatus[1] = 17 AND PreviousInstance.OperationalStatus[1] IS NULL",
        "SourceInstance.OperationalStatus <> PreviousInstance.OperationalStatus",
        "SourceInstance.PercentComplete >= 0x64 AND NOT PreviousInstance.PercentComplete > 99.5",
        "PreviousInstance.Name = 'a\\'s' AND PreviousInstance.Name < \"b\"",
        "(SourceInstance.JobState = 8 OR SourceInstance.JobState = 7) AND NOT (SourceInstance.JobState = 8)",
        "SourceInstance.StartTime > '20261122010203.000000+060'",
        "SourceInstance.Owner IS NULL AND sourceinstance.jobstate Is noT nUll",
        "NOT PreviousInstance ISA CIM_StorageVolume",
        "SourceInstance.JobState = 7 OR SourceInstance.Owner = 'x'",
    ],
)
def test_what_matches(condition: str):
    assert parse_filter("DMTF:CQL", MODIFIED + condition, schema_of).matches(ENDED)


@pytest.mark.parametrize(
    "condition",
    [
        "SourceInstance.JobState = PreviousInstance.JobState",
        "SourceInstance.Owner = 'x'",
        "NOT SourceInstance.Owner = 'x'",  # unknown stays unknown
        "SourceInstance.Owner <> PreviousInstance.Owner",
        "EVERY SourceInstance.OperationalStatus[*] = 17",
        "SourceInstance.OperationalStatus[7] = 17",
        "SourceInstance ISA CIM_StorageVolume",
        "PreviousInstance.StartTime < '20261122010203.000000+000'",
    ],
)
def test_what_does_not_match(condition: str):
    assert not parse_filter("wql", MODIFIED + condition, schema_of).matches(ENDED)


def test_another_kind_of_instance_has_not_the_property():
    query = parse_filter("WQL", "SELECT * FROM CIM_InstCreation WHERE SourceInstance.JobState = 7", schema_of)
    assert not query.matches(CIMInstance("CIM_InstCreation", {"SourceInstance": CIMInstance("CIM_Other")}))
    assert query.isa == frozenset()


def test_what_is_selected():
    assert parse_filter("CQL", "SELECT * FROM CIM_InstDeletion", schema_of).select is None
    query = parse_filter("WQL", "select SourceInstance, IndicationTime from CIM_InstCreation", schema_of)
    assert query.select == ("SourceInstance", "IndicationTime")


@pytest.mark.parametrize(
    ("text", "at", "why"),
    [
        ("", 1, "SELECT is expected"),
        ("SELECT", 7, "a property"),
        ("SELECT * FROM CIM_Gone", 15, "no indication class"),
        ("SELECT * FROM CIM_ConcreteJob", 15, "no indication class"),
        ("SELECT Gone FROM CIM_InstCreation", 8, "has no property Gone"),
        ("SELECT SourceInstance.JobState FROM CIM_InstCreation", 22, "not selected"),
        ("SELECT * FROM CIM_InstCreation ORDER BY x", 32, "the end is expected"),
        ("SELECT * FROM CIM_InstCreation WHERE", 37, "a property or a value"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance", 52, "a comparison"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance ISA CIM_Gone", 57, "no class CIM_Gone"),
        ("SELECT * FROM CIM_InstCreation WHERE Gone = 1", 38, "no property Gone"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.Gone = 1", 38, "no property SourceInstance.Gone"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.CIM_Job::BlockSize = 1", 38, "CIM_Job::BlockSize"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.JobState = 'seven'", 38, "cannot be compared"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.Name LIKE 'x%'", 58, "LIKE is not supported"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.Name = NULL", 60, "IS NULL"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.Name != 'x'", 58, "a comparison"),
        ("SELECT * FROM CIM_InstCreation WHERE 1 = 1", 38, "two literals"),
        ("SELECT * FROM CIM_InstCreation WHERE (SourceInstance.Name = 'x'", 64, ") is expected"),
        ("SELECT * FROM CIM_InstCreation WHERE SourceInstance.Name = 'x", 60, "is not understood"),
        ("SELECT * FROM CIM_InstCreation WHERE f(SourceInstance.Name) = 'x'", 38, "no property f"),
        ("SELECT * FROM CIM_InstCreation WHERE ANY SourceInstance.JobState[*] = 1", 42, "asked of an array"),
        ("SELECT * FROM CIM_InstCreation; DROP", 31, "is not understood"),
    ],
)
def test_what_is_refused_and_where(text: str, at: int, why: str):
    with pytest.raises(CIMError) as refused:
        parse_filter("DMTF:CQL", text, schema_of)
    assert refused.value.status_code == CIM_ERR_INVALID_QUERY
    assert why in refused.value.status_description
    assert refused.value.status_description.startswith(f"at character {at} ")


def test_limits():
    comparison = "SourceInstance.JobState = 7"
    for text in (
        "x" * (MAX_QUERY + 1),
        f"{MODIFIED}{'(' * (MAX_DEPTH + 1)}{comparison}{')' * (MAX_DEPTH + 1)}",
        f"{MODIFIED}{'NOT ' * (MAX_DEPTH + 1)}{comparison}",
        MODIFIED + " OR ".join(["SourceInstance.JobState=7"] * (MAX_TERMS + 1)),
    ):
        with pytest.raises(CIMError) as refused:
            parse_filter("WQL", text, schema_of)
        assert refused.value.status_code == CIM_ERR_INVALID_QUERY


def test_other_languages():
    for language in ("DMTF:FQL", "SQL", "", "x" * 1000):
        with pytest.raises(CIMError) as refused:
            parse_filter(language, "SELECT * FROM CIM_InstCreation", schema_of)
        assert refused.value.status_code == CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED


def test_conditions_of_enumerations():
    schema = ClassSchema(classes(), [STORAGE], "CIM_Job")
    assert parse_condition("DMTF:FQL", "JobState = 7 AND ANY OperationalStatus[*] = 17", schema)(DONE)
    assert not parse_condition("dmtf:fql", "JobState = 7", schema)(RUNNING)
    for text in ("JobState ISA CIM_Job", "SELECT * FROM CIM_Job", "Gone = 1", "BlockSize = 512", ""):
        with pytest.raises(CIMError) as refused:
            parse_condition("DMTF:FQL", text, schema)
        assert refused.value.status_code == CIM_ERR_INVALID_QUERY
    with pytest.raises(CIMError) as refused:
        parse_condition("DMTF:CQL", "JobState = 7", schema)
    assert refused.value.status_code == CIM_ERR_QUERY_LANGUAGE_NOT_SUPPORTED


@pytest.mark.parametrize("number", ["1" * 5000, "0x" + "F" * 5000])
def test_a_number_of_thousands_of_digits_is_refused(number: str):
    """Python refuses to read one of more than 4,300, by a ValueError."""
    with pytest.raises(CIMError) as caught:
        parse_filter("WQL", f"{MODIFIED}SourceInstance.JobState = {number}", schema_of)
    assert caught.value.status_code == CIM_ERR_INVALID_QUERY
