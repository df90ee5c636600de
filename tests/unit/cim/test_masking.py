"""Volumes behind targets: exposed, hidden, to whom; as the documentation numbers its answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engine.errors import NotFound
from tests.support.cim_array import MIB, Array, array

if TYPE_CHECKING:
    from pathlib import Path

    import pytest
    from pywbem import CIMInstanceName

CONTROLLERS = "MSISCSITARGET_ControllerConfigurationService"
HARDWARE_IDS = "MSISCSITARGET_StorageHardwareIDManagementService"
NODES = "MSISCSITARGET_iSCSIConfigurationService"
PREFIX = "iqn.2026-11.org.twinvol:"
HOST, OTHER = "iqn.2026-11.org.example:host", "iqn.2026-11.org.example:other"


async def lu(front: Array, name: str, **more: Any) -> str:
    """A volume; its Name."""
    info = await front.api.volume_create(name, MIB, **more)
    return info.naa.upper()


async def exposed(front: Array, names: list[str], initiators: list[str], **more: Any) -> CIMInstanceName:
    code, out = await front.call(
        CONTROLLERS,
        "ExposePaths",
        LUNames=names,
        InitiatorPortIDs=initiators,
        DeviceAccesses=more.pop("DeviceAccesses", [2] * len(names)),
        **more,
    )
    assert code == 0
    (view,) = out["ProtocolControllers"]
    return view


async def state(front: Array) -> list[Any]:
    """Of all targets: who is admitted, and what they show to whom; and who is known."""
    targets = [
        (info.name, info.initiators, [(lun.lun, lun.volume, lun.snapshot, lun.initiators) for lun in info.luns])
        for info in await front.api.target_list()
    ]
    return [*targets, *(known.name for known in await front.api.initiator_list())]


async def test_a_volume_is_exposed_and_found_by_associations(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        name = await lu(front, "disk")
        view = await exposed(front, [name], [HOST], DeviceNumbers=["1F"])
        assert await state(front) == [(PREFIX + "disk", [HOST], [(31, "disk", None, [])]), HOST]
        (unit,) = await front.references(view, "MSISCSITARGET_ProtocolControllerForUnit", "Antecedent")
        assert (unit["DeviceNumber"], unit["DeviceAccess"], unit["AccessState"]) == ("1f", 2, 2)
        assert (await front.get(unit["Dependent"]))["Name"] == name
        (privilege,) = await front.references(view, "MSISCSITARGET_AuthorizedTarget", "TargetElement")
        (subject,) = await front.references(privilege["Privilege"], "MSISCSITARGET_AuthorizedSubject", "Privilege")
        assert (await front.get(subject["PrivilegedElement"]))["StorageID"] == HOST
        ports = await front.references(view, "MSISCSITARGET_SAPAvailableForElement", "ManagedElement")
        assert [port["AvailableSAP"].keybindings["Name"] for port in ports] == [
            f"{PREFIX}disk,t,0x0001",
            f"{PREFIX}disk,t,0x0002",
        ]
        code, _ = await front.call(CONTROLLERS, "HidePaths", LUNames=[name], ProtocolControllers=[view])
        assert code == 0
        assert await state(front) == [(PREFIX + "disk", [HOST], []), HOST]  # SPCAllowsNoLUs


async def test_everybody_is_said_and_never_meant_by_silence(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        name = await lu(front, "disk")
        for initiators in (None, []):
            code, _ = await front.call(
                CONTROLLERS, "ExposePaths", LUNames=[name], InitiatorPortIDs=initiators, DeviceAccesses=[2]
            )
            assert code == 5
        assert await state(front) == []
        view = await exposed(front, [name], [""])
        (privilege,) = await front.references(view, "MSISCSITARGET_AuthorizedTarget", "TargetElement")
        (subject,) = await front.references(privilege["Privilege"], "MSISCSITARGET_AuthorizedSubject", "Privilege")
        assert (await front.get(subject["PrivilegedElement"]))["StorageID"] == ""
        code, out = await front.call(CONTROLLERS, "HidePaths", InitiatorPortIDs=[""], ProtocolControllers=[view])
        assert (code, out["ProtocolControllers"]) == (0, [])
        assert await state(front) == []


async def test_default_views(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        one, two = await lu(front, "one"), await lu(front, "two")
        code, out = await front.call(CONTROLLERS, "ExposeDefaultLUs", LUNames=[one], DeviceAccesses=[2])
        assert code == 0
        views = out["ProtocolControllers"]
        assert (
            await front.call(
                CONTROLLERS, "ExposeDefaultLUs", LUNames=[two], DeviceAccesses=[2], ProtocolControllers=views
            )
        )[0] == 0
        assert (await front.call(CONTROLLERS, "HideDefaultLUs", LUNames=[one], ProtocolControllers=views))[0] == 0
        assert await state(front) == [(PREFIX + "one", [], [(1, "two", None, [])])]
        closed = await exposed(front, [one], [HOST])
        for method, more in (("ExposeDefaultLUs", {"DeviceAccesses": [2]}), ("HideDefaultLUs", {})):
            call = {"LUNames": [one], "ProtocolControllers": [closed], **more}
            assert (await front.call(CONTROLLERS, method, **call))[0] == 5


async def test_views_grow_and_shrink(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        one, two = await lu(front, "one"), await lu(front, "two")
        view = await exposed(front, [one], [HOST])

        async def change(method: str, **given: Any) -> int:
            return (await front.call(CONTROLLERS, method, ProtocolControllers=[view], **given))[0]

        assert await change("ExposePaths", LUNames=[two], DeviceAccesses=[2], DeviceNumbers=["a"]) == 0
        assert await change("ExposePaths", InitiatorPortIDs=[OTHER]) == 0
        assert (await state(front))[0] == (
            PREFIX + "one", [HOST, OTHER], [(0, "one", None, []), (10, "two", None, [])],
        )  # fmt: skip
        assert await change("ExposePaths", InitiatorPortIDs=[OTHER]) == 4101
        assert await change("ExposePaths", LUNames=[two], DeviceAccesses=[2]) == 4101
        assert await change("ExposePaths", LUNames=[two], DeviceAccesses=[2], InitiatorPortIDs=[HOST]) == 5
        assert await change("ExposePaths") == 5
        assert await change("ExposePaths", TargetPortIDs=[f"{PREFIX}one,t,0x0001"]) == 1
        assert await change("HidePaths", LUNames=[two, one]) == 0
        assert await change("HidePaths", LUNames=[two]) == 4100
        assert await change("HidePaths", InitiatorPortIDs=[HOST]) == 0
        assert await change("HidePaths", InitiatorPortIDs=[HOST]) == 4100
        assert await change("HidePaths", InitiatorPortIDs=["nobody"]) == 4098
        assert await change("HidePaths", TargetPortIDs=[f"{PREFIX}one"]) == 1
        assert await change("HidePaths") == 5
        assert await change("HidePaths", InitiatorPortIDs=[OTHER]) == 0  # the last one: the view goes
        assert await state(front) == [HOST, OTHER]
        assert await change("HidePaths", LUNames=[one]) == 5


async def test_a_view_within_a_target(tmp_path: Path) -> None:
    """LUs at the ports of a target, for some of those that it admits: a view of each LUN."""
    async with array(tmp_path / "pool") as front:
        one, two, three = [await lu(front, name) for name in ("one", "two", "three")]
        await exposed(front, [one], [HOST, OTHER])
        port = f"{PREFIX}one,t,0x0002"
        mine = await exposed(front, [two], [HOST], TargetPortIDs=[port])
        assert mine.keybindings["DeviceID"] == f"{PREFIX}one,lun,1"
        await exposed(front, [three], [HOST, OTHER], TargetPortIDs=[port, f"{PREFIX}one"])
        assert (await state(front))[0][2] == [
            (0, "one", None, []), (1, "two", None, [HOST]), (2, "three", None, []),
        ]  # fmt: skip
        before = await state(front)
        for initiators in (["iqn.2026-11.org.example:stranger"], [""]):
            code, _ = await front.call(
                CONTROLLERS,
                "ExposePaths",
                LUNames=[two],
                InitiatorPortIDs=initiators,
                TargetPortIDs=[port],
                DeviceAccesses=[2],
            )
            assert code == 4098
        assert await state(front) == before
        grow = {"InitiatorPortIDs": [OTHER], "ProtocolControllers": [mine]}
        assert (await front.call(CONTROLLERS, "ExposePaths", **grow))[0] == 0
        assert (await front.call(CONTROLLERS, "HidePaths", **grow))[0] == 0
        last = {"InitiatorPortIDs": [HOST], "ProtocolControllers": [mine]}
        assert (await front.call(CONTROLLERS, "HidePaths", **last))[0] == 0
        assert (await state(front))[0][2] == [(0, "one", None, []), (2, "three", None, [])]


async def test_each_invalid_parameter_has_its_code_and_changes_nothing(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        one, two = await lu(front, "one"), await lu(front, "two")
        fixed = await lu(front, "fixed", read_only=True)
        view = await exposed(front, [one], [HOST])
        before = await state(front)
        good = {"LUNames": [two], "InitiatorPortIDs": [OTHER], "DeviceAccesses": [2]}
        for code, given in [
            (4097, {"LUNames": ["3000000000000000"]}),
            (4098, {"InitiatorPortIDs": ["no iSCSI name"]}),
            (4098, {"InitiatorPortIDs": ["", HOST]}),
            (4099, {"TargetPortIDs": ["iqn.2026-11.org.example:nowhere"]}),
            (4099, {"TargetPortIDs": [f"{PREFIX}one,t,0x0009"]}),
            (4100, {"DeviceAccesses": [3]}),
            (4100, {"DeviceAccesses": [4]}),
            (4100, {"LUNames": [fixed]}),
            (5, {"DeviceAccesses": None}),
            (5, {"DeviceAccesses": [2, 2]}),
            (5, {"DeviceNumbers": ["1", "2"]}),
            (5, {"DeviceNumbers": ["100"]}),
            (5, {"DeviceNumbers": ["-1"]}),
            (5, {"DeviceNumbers": ["g"]}),
            (5, {"LUNames": [two, two], "DeviceAccesses": [2, 2]}),
            (5, {"LUNames": [one, two], "DeviceAccesses": [2, 2], "DeviceNumbers": ["1", "1"]}),
            (5, {"LUNames": None}),
            (5, {"ProtocolControllers": [view, view]}),
        ]:
            assert (await front.call(CONTROLLERS, "ExposePaths", **good | given))[0] == code, given
            assert await state(front) == before, given
        for given in ({"LUNames": [two, None], "DeviceAccesses": [2, 2]}, {"ProtocolControllers": [None]}):
            assert await front.handled(CONTROLLERS, "ExposePaths", **good | given) == 5
        taken = {"LUNames": [two], "DeviceAccesses": [2], "DeviceNumbers": ["0"], "ProtocolControllers": [view]}
        assert (await front.call(CONTROLLERS, "ExposePaths", **taken))[0] == 4102
        assert await state(front) == before


async def test_a_full_target(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        name = await lu(front, "disk")
        await front.api.target_create("full")
        for number in range(256):
            await front.api.target_lun_add("full", "disk", lun=number)
        other = await lu(front, "other")
        view = (await front.view().paths()).controller(PREFIX + "full")
        call = {"LUNames": [other], "DeviceAccesses": [2], "ProtocolControllers": [view]}
        assert (await front.call(CONTROLLERS, "ExposePaths", **call))[0] == 4103
        assert name


async def test_snapshots_are_read_only(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        await lu(front, "disk")
        snapshot = await front.api.snapshot_create("disk", "one")
        name = snapshot.naa.upper()
        call = {"LUNames": [name], "InitiatorPortIDs": [HOST]}
        assert (await front.call(CONTROLLERS, "ExposePaths", DeviceAccesses=[2], **call))[0] == 4100
        view = await exposed(front, [name], [HOST], DeviceAccesses=[3])
        (unit,) = await front.references(view, "MSISCSITARGET_ProtocolControllerForUnit", "Antecedent")
        assert (await front.get(unit["Dependent"]))["Access"] == 1
        assert unit["DeviceAccess"] == 3


async def test_sessions_keep_a_lun(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        name = await lu(front, "disk")
        view = await exposed(front, [name], [HOST])
        front.engine.exports.log_in(PREFIX + "disk", HOST)
        before = await state(front)
        call = {"LUNames": [name], "ProtocolControllers": [view]}
        assert (await front.call(CONTROLLERS, "HidePaths", **call))[0] == 6
        device = await front.path_of("disk")
        assert (await front.call(CONTROLLERS, "DetachDevice", ProtocolController=view, Device=device))[0] == 4097
        assert (await front.call(CONTROLLERS, "DeleteProtocolController", ProtocolController=view))[0] == 4097
        assert (await front.call(NODES, "DeleteiSCSINode", iSCSINode=view))[0] == 4097
        assert await state(front) == before


async def test_devices_one_by_one(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        device, other = await front.volume("disk"), await front.volume("other")
        code, out = await front.call(NODES, "CreateiSCSINode", Alias="shelf")
        assert code == 0
        node = out["iSCSINode"]
        assert (await front.call(NODES, "CreateiSCSINode", Alias="shelf"))[0] == 4097
        assert (await front.call(NODES, "CreateiSCSINode", Alias="not a name!"))[0] == 5
        assert [(await front.call(NODES, "CreateiSCSINode"))[0] for _ in range(2)] == [0, 0]
        attach = {"ProtocolController": node, "Device": device}
        code, out = await front.call(CONTROLLERS, "AttachDevice", DeviceNumber="c", **attach)
        assert (code, out["DeviceNumber"]) == (0, "c")
        assert (await front.call(CONTROLLERS, "AttachDevice", **attach))[0] == 5
        taken = {"ProtocolController": node, "Device": other, "DeviceNumber": "c"}
        assert (await front.call(CONTROLLERS, "AttachDevice", **taken))[0] == 4097
        assert (await front.call(CONTROLLERS, "AttachDevice", ProtocolController=node, Device=None))[0] == 4096
        assert (await front.call(CONTROLLERS, "DetachDevice", **attach))[0] == 0
        assert (await front.call(CONTROLLERS, "DetachDevice", **attach))[0] == 4096
        delete = {"ProtocolController": node}
        assert (await front.call(CONTROLLERS, "DeleteProtocolController", DeleteUnits=True, **delete))[0] == 1
        assert (await front.call(CONTROLLERS, "DeleteProtocolController", **delete))[0] == 0
        assert (await front.call(NODES, "DeleteiSCSINode", iSCSINode=node))[0] == 4096
        assert (await front.call(CONTROLLERS, "CreateProtocolControllerWithPorts"))[0] == 1


async def test_initiators(tmp_path: Path) -> None:
    async with array(tmp_path / "pool") as front:
        given = {"ElementName": "Blade 7", "StorageID": HOST.upper(), "IDType": 5}
        code, out = await front.call(HARDWARE_IDS, "CreateStorageHardwareID", **given)
        assert code == 0
        found = await front.get(out["HardwareID"])
        assert (found["StorageID"], found["ElementName"], found["IDType"]) == (HOST, "Blade 7", 5)
        assert (await front.call(HARDWARE_IDS, "CreateStorageHardwareID", **given))[0] == 4096
        for code, more in [
            (4097, {"IDType": 2}),
            (4097, {"IDType": None}),
            (5, {"StorageID": "x"}),
            (5, {"StorageID": None}),
            (5, {"ElementName": "two\nlines", "StorageID": OTHER}),
            (5, {"OtherIDType": "mine"}),
        ]:
            assert (await front.call(HARDWARE_IDS, "CreateStorageHardwareID", **given | more))[0] == code
        await exposed(front, [await lu(front, "disk")], [HOST])
        assert (await front.call(HARDWARE_IDS, "DeleteStorageHardwareID", **out))[0] == 4
        await front.api.target_delete("disk")
        assert (await front.call(HARDWARE_IDS, "DeleteStorageHardwareID", **out))[0] == 0
        assert (await front.call(HARDWARE_IDS, "DeleteStorageHardwareID", **out))[0] == 4096


async def test_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second LUN fails: neither it, nor the first, nor the target, nor the initiator stays."""
    async with array(tmp_path / "pool") as front:
        names = [await lu(front, "one"), await lu(front, "two")]
        add = front.api.target_lun_add

        async def failing(target: str, volume: str, **more: Any) -> Any:
            if volume == "two":
                raise NotFound("volume", volume)
            return await add(target, volume, **more)

        monkeypatch.setattr(front.api, "target_lun_add", failing)
        call = {"LUNames": names, "InitiatorPortIDs": [HOST], "DeviceAccesses": [2, 2]}
        assert (await front.call(CONTROLLERS, "ExposePaths", **call))[0] == 5
        assert await state(front) == []


async def test_a_lun_whose_initiators_the_target_does_not_admit(tmp_path: Path) -> None:
    """Nobody sees it: it is no default view, and hiding it from everybody deletes no target."""
    async with array(tmp_path / "pool") as front:
        one, two = await lu(front, "one"), await lu(front, "two")
        whole = await exposed(front, [one], [HOST, OTHER])
        mine = await exposed(front, [two], [OTHER], TargetPortIDs=[f"{PREFIX}one"])
        out = {"InitiatorPortIDs": [OTHER], "ProtocolControllers": [whole]}
        assert (await front.call(CONTROLLERS, "HidePaths", **out))[0] == 0
        before = await state(front)
        assert before[0] == (PREFIX + "one", [HOST], [(0, "one", None, []), (1, "two", None, [OTHER])])
        everybody = {"InitiatorPortIDs": [""], "ProtocolControllers": [mine]}
        assert (await front.call(CONTROLLERS, "HidePaths", **everybody))[0] == 4100
        assert (await front.call(CONTROLLERS, "HideDefaultLUs", LUNames=[two], ProtocolControllers=[mine]))[0] == 5
        stranger = {"InitiatorPortIDs": [OTHER], "ProtocolControllers": [mine]}
        assert (await front.call(CONTROLLERS, "ExposePaths", **stranger))[0] == 4098
        assert await state(front) == before
        add = {"InitiatorPortIDs": [HOST], "ProtocolControllers": [mine]}
        assert (await front.call(CONTROLLERS, "ExposePaths", **add))[0] == 0
        assert (await state(front))[0][2][1] == (1, "two", None, [HOST, OTHER])
        assert (await front.call(CONTROLLERS, "HidePaths", **add))[0] == 0
        assert await state(front) == before  # the initiator that is not admitted stays in the mask
