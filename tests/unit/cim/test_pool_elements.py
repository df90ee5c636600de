"""Volumes made, changed and returned through the storage configuration service."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from engine.api import VOLUME_BYTES_MAX
from engine.errors import NotFound
from engine.tvol.layout import MAX_VOLUME_CHUNKS
from tests.support.cim_array import CONFIGURATION, MIB, Array, array

if TYPE_CHECKING:
    from pathlib import Path

    from pywbem import CIMInstanceName

CREATE = "CreateOrModifyElementFromStoragePool"
HARDWARE_IDS = "MSISCSITARGET_StorageHardwareIDManagementService"


async def created(front: Array, **given: object) -> CIMInstanceName:
    code, out = await front.call(CONFIGURATION, CREATE, ElementType=2, **given)
    assert code == 0
    return out["TheElement"]


def test_the_largest_volume_is_what_the_store_can_hold() -> None:
    assert VOLUME_BYTES_MAX == MAX_VOLUME_CHUNKS * 65536


async def test_a_volume_is_made_and_returned(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        pool = (await front.view().paths()).pool()
        code, out = await front.call(
            CONFIGURATION, CREATE, ElementName="Finance, 2026", ElementType=2, Size=MIB - 1, InPool=pool
        )
        assert (code, out["Size"]) == (0, MIB)
        instance = await front.get(out["TheElement"])
        assert instance["ElementName"] == "Finance, 2026"
        assert instance["BlockSize"] * instance["NumberOfBlocks"] == MIB
        assert [info.name for info in await front.api.volume_list()] == ["finance-2026"]
        code, _ = await front.call(CONFIGURATION, "ReturnToStoragePool", TheElement=out["TheElement"])
        assert code == 0
        assert await front.api.volume_list() == []
        assert await front.api.element_name_list() == {}
        code, _ = await front.call(CONFIGURATION, "ReturnToStoragePool", TheElement=out["TheElement"])
        assert code == 5


async def test_names_need_not_be_unique(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        paths = [await created(front, ElementName="disk", Size=MIB) for _ in range(3)]
        assert [(await front.get(path))["ElementName"] for path in paths] == ["disk"] * 3
        assert len({info.name for info in await front.api.volume_list()}) == 3
        unnamed = await created(front, Size=MIB)
        assert (await front.get(unnamed))["ElementName"] == "volume"


async def test_sizes(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        code, out = await front.call(CONFIGURATION, CREATE, ElementType=2, Size=0)
        assert (code, out["Size"]) == (4097, 512)
        code, out = await front.call(CONFIGURATION, CREATE, ElementType=2, Size=VOLUME_BYTES_MAX + 1)
        assert (code, out["Size"]) == (4097, VOLUME_BYTES_MAX)
        assert (await front.call(CONFIGURATION, CREATE, ElementType=2))[0] == 5
        assert await front.api.volume_list() == []
        pool = (await front.view().paths()).pool()
        code, out = await front.call(pool, "GetSupportedSizeRange", ElementType=3)
        assert (code, dict(out)) == (
            0,
            {"MinimumVolumeSize": 512, "MaximumVolumeSize": VOLUME_BYTES_MAX, "VolumeSizeDivisor": 512},
        )
        assert (await front.call(pool, "GetSupportedSizes", ElementType=3))[0] == 2
        assert (await front.call(pool, "GetSupportedSizes", ElementType=2))[0] == 1
        primordial = (await front.view().paths()).pool("primordial")
        assert (await front.call(primordial, "GetSupportedSizeRange", ElementType=3))[0] == 1


async def test_a_volume_grows_and_is_called_otherwise(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        path = await created(front, ElementName="disk", Size=MIB)
        code, out = await front.call(CONFIGURATION, CREATE, TheElement=path, Size=2 * MIB, ElementName="Größer")
        assert (code, out["Size"], out["TheElement"]) == (0, 2 * MIB, path)
        found = await front.get(path)
        assert (found["ElementName"], found["NumberOfBlocks"]) == ("Größer", 2 * MIB // 512)
        code, out = await front.call(CONFIGURATION, CREATE, TheElement=path, Size=MIB)
        assert (code, out["Size"]) == (4097, 2 * MIB)
        await front.call(CONFIGURATION, CREATE, TheElement=path, ElementName="disk")
        assert await front.api.element_name_list() == {}
        await front.api.snapshot_create("disk", "one")
        snapshot = (await front.all("MSISCSITARGET_StorageVolume"))[1].path
        assert (await front.call(CONFIGURATION, CREATE, TheElement=snapshot, Size=4 * MIB))[0] == 1
        assert (await front.call(CONFIGURATION, CREATE, TheElement=snapshot, ElementName="before"))[0] == 0
        assert (await front.get(snapshot))["ElementName"] == "before"


async def test_bad_parameters_make_nothing(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        paths = await front.view().paths()
        for code, given in [
            (1, {"ElementType": 3}),
            (1, {"ElementType": 4}),
            (5, {"ElementType": 1}),
            (5, {"ElementType": None}),
            (5, {"ElementName": ""}),
            (5, {"ElementName": "x" * 257}),
            (1, {"InPool": paths.pool("primordial")}),
            (5, {"InPool": paths.pool("other")}),
            (5, {"Goal": paths.pool()}),
            (5, {"TheElement": paths.volume("5a0c7d7e-1b7f-4a39-8f7e-1f2d3c4b5a69")}),
        ]:
            call = {"ElementType": 2, "Size": MIB, **given}
            assert (await front.call(CONFIGURATION, CREATE, **call))[0] == code, given
        assert await front.api.volume_list() == []


async def test_goals(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        (capabilities,) = await front.all("MSISCSITARGET_StorageCapabilities")
        for kind in (2, 3):
            code, out = await front.call(capabilities.path, "CreateSetting", SettingType=kind)
            assert code == 0
        assert (await front.call(capabilities.path, "CreateSetting", SettingType=4))[0] == 5
        await created(front, Size=MIB, Goal=out["NewSetting"])


async def test_what_is_used_is_not_returned(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        plain = await front.volume("plain")
        shown = await front.volume("shown")
        await front.api.target_create("shelf")
        await front.api.target_lun_add("shelf", "shown")
        with_snapshot = await front.volume("with-snapshot")
        snapshot = await front.api.snapshot_create("with-snapshot", "one")
        frozen = (await front.view().paths()).volume(
            (await front.api.volume_show("with-snapshot")).volume_id, snapshot.guid
        )
        assert (await front.call(CONFIGURATION, "ReturnToStoragePool", TheElement=shown))[0] == 6
        assert (await front.call(CONFIGURATION, "ReturnToStoragePool", TheElement=with_snapshot))[0] == 6
        elements = [plain, shown]
        assert (await front.call(CONFIGURATION, "ReturnElementsToStoragePool", TheElements=elements))[0] == 6
        assert await front.api.volume_show("plain")  # all or none
        assert await front.handled(CONFIGURATION, "ReturnElementsToStoragePool", TheElements=[plain, None]) == 5
        for given in ([], [plain, plain], [plain] * 300):
            code, _ = await front.call(CONFIGURATION, "ReturnElementsToStoragePool", TheElements=given)
            assert code == 5
        elements = [with_snapshot, plain, frozen]
        assert (await front.call(CONFIGURATION, "ReturnElementsToStoragePool", TheElements=elements))[0] == 0
        assert [info.name for info in await front.api.volume_list()] == ["shown"]
        call = {"TheElements": [plain, frozen]}
        assert (await front.call(CONFIGURATION, "ReturnElementsToStoragePool", **call))[0] == 5
        assert (await front.call(CONFIGURATION, "ReturnElementsToStoragePool", Options=2, **call))[0] == 0
        assert (await front.call(CONFIGURATION, "ReturnElementsToStoragePool", Options=9, **call))[0] == 5
        with pytest.raises(NotFound):
            await front.api.volume_show("plain")


async def test_what_nothing_here_could_mean(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        assert (await front.call(CONFIGURATION, "CreateOrModifyStoragePool", ElementName="x"))[0] == 1
        assert (await front.call(CONFIGURATION, "ScsiScan"))[0] == 1
        here = await front.service(CONFIGURATION)
        assert (await front.call(CONFIGURATION, "CreateReplicationBuffer", Host=here))[0] == 1
        assert (await front.call(HARDWARE_IDS, "CreateGatewayPathID", StorageID="x", IDType=2))[0] == 1
        path = await front.volume("disk")
        assert (await front.call(path, "RequestStateChange", RequestedState=3))[0] == 1
