"""The table of ``docs/cim-reference.md`` that says which test shows which line of the documentation: held to both."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cim_facade.namespaces import STORAGE, STORAGE_MANAGEMENT
from tests.support.cim_array import classes

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "cim-reference.md").read_text()
BEGIN, END = "### The contract, line by line", "Codes that cannot occur here:"
CONTRACT = PAGE[PAGE.index(BEGIN) : PAGE.index(END)]
FILES = dict(re.findall(r"\b([A-Z]{2,3}): `(tests/[\w/]+\.py)`", CONTRACT))
ROWS = [line.strip("|").split(" | ") for line in CONTRACT.splitlines() if line.startswith("| ")]
METHODS = {
    "CIM_StorageConfigurationService.CreateReplica": STORAGE,
    "MSFT_SMStorageVolume.CreateReplica": STORAGE_MANAGEMENT,
    "MSISCSITARGET_ReplicationService.CreateListReplica": STORAGE,
    "MSISCSITARGET_ReplicationService.CreateGroupReplica": STORAGE,
    "MSISCSITARGET_StorageConfigurationService.AttachReplica": STORAGE,
}


def rows_of(title: str) -> list[str]:
    """What the lines below a heading are about."""
    begin = next(number for number, row in enumerate(ROWS) if f"**{title}**" in row[0])
    below = [row[0] for row in ROWS[begin + 1 :]]
    return below[: next((number for number, text in enumerate(below) if "**" in text), len(below))]


def test_every_test_that_is_named_is_there() -> None:
    tests = {key: set(re.findall(r"def test_(\w+)\(", (ROOT / file).read_text())) for key, file in FILES.items()}
    named = 0
    for row in ROWS:
        assert len(row) == 2, row
        if "**" in row[0]:
            continue
        key = None
        for found, name in re.findall(r"\b([A-Z]{2,3})(?= `)|`([\w.]+)`", row[1]):
            key = found or key
            if name:
                assert key is not None, row
                pattern = re.compile(re.escape(name).replace(r"\.\.\.", r"\w*"))
                assert any(pattern.fullmatch(each) for each in tests[key]), f"{key} {name}"
                named += 1
    assert named > len(ROWS)


@pytest.mark.parametrize("method", METHODS)
def test_every_parameter_and_every_code_has_a_line(method: str) -> None:
    class_name, name = method.split(".")
    declared = classes().get(METHODS[method], class_name).methods[name]
    lines = rows_of(method)
    words = set(re.findall(r"\w+", " ".join(line for line in lines if not line.strip().startswith("code"))))
    assert [each for each in declared.parameters if each not in words] == []
    told = set(re.findall(r"\d+", " ".join(re.split(r"[:(]", each)[0] for each in lines if "code " in each)))
    codes = [each for each in declared.qualifiers["ValueMap"].value if ".." not in each]
    assert [code for code in codes if code not in told] == []
