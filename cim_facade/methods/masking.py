"""Masking and mapping: volumes put behind targets and taken away, and who sees them.

A view is a target, or a LUN of one that only some initiators see (``providers.targets``). So:

- ExposePaths without a view and without target ports makes a target for its LUs and initiators. With the ports of a
  target it adds the LUs there, seen by these initiators only; whom the target does not admit is an invalid initiator
  (to admit it would show it the other LUNs).
- An initiator without a name is everybody. It is never added by leaving names out: new views need initiators.
- A view that loses its last initiator goes: a target without an access list would admit everybody.
- DeviceAccess is that of the volume: 2 (Read Write), or 3 (Read-Only) of a snapshot or a read-only volume.

What was done before a call fails is undone. Methods of one kind have different numbers for the same mistake: ``Codes``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from cim_facade import elements
from cim_facade.errors import ReturnCode
from cim_facade.methods.answering import answering
from cim_facade.methods.requests import Refused, invalid, unsupported
from cim_facade.paths import CONTROLLER_CLASS, read_port_name
from cim_facade.providers.targets import Shelf, find_port, find_shelf
from cim_facade.providers.volumes import Disk, disks
from engine.errors import AlreadyExists, InvalidArgument

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from pywbem import CIMInstanceName

    from cim_facade.context import View
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters
    from engine.api import TargetInfo

LUN_MAX = 255
"""Highest number of a LUN; the engine's."""

PATHS_MAX = 256
"""LUs, initiators or ports in one call."""

READ_WRITE, READ_ONLY = 2, 3


@dataclass(frozen=True, slots=True)
class Codes:
    """Of one method."""

    invalid_lu: int
    invalid_port: int
    invalid_initiator: int = ReturnCode.INVALID_PARAMETER
    invalid_access: int = ReturnCode.INVALID_PARAMETER
    combination: int = ReturnCode.INVALID_PARAMETER
    number_in_use: int = ReturnCode.INVALID_PARAMETER
    map_full: int = ReturnCode.FAILED


EXPOSE = Codes(
    invalid_lu=4097,
    invalid_initiator=4098,
    invalid_port=4099,
    invalid_access=4100,
    combination=4101,
    number_in_use=4102,
    map_full=4103,
)
EXPOSE_DEFAULT = Codes(invalid_lu=4097, invalid_port=4098, invalid_access=4099, number_in_use=4100, map_full=4101)
HIDE = Codes(invalid_lu=4097, invalid_initiator=4098, invalid_port=4099, combination=4100)
HIDE_DEFAULT = Codes(invalid_lu=4097, invalid_port=4098)


class Unit(NamedTuple):
    """What is to be a LUN. ``number``: None for the lowest that is free."""

    disk: Disk
    number: int | None


class Asked(NamedTuple):
    """A call's parameters. ``initiators``: names in lower case, "" for everybody; None: not given."""

    units: list[Unit]
    initiators: list[str] | None
    ports: list[str] | None
    shelf: Shelf | None


async def _asked(view: View, params: Parameters, codes: Codes, initiators: list[str] | None, *, expose: bool) -> Asked:
    names = _strings(params, "LUNames")
    found = await _disks_named(view, names or [], codes)
    numbers = _numbers(params, len(found)) if expose else [None] * len(found)
    if expose:
        _check_accesses(params, found, codes)
    units = [Unit(disk, number) for disk, number in zip(found, numbers, strict=True)]
    return Asked(units, initiators, _strings(params, "TargetPortIDs"), await _shelf(view, params))


def _strings(params: Parameters, name: str) -> list[str] | None:
    """An array without NULL, and without a value twice; None: not given, or empty."""
    given = params.get(name)
    if not given:
        return None
    if any(each is None for each in given):
        raise invalid(f"{name} has an entry that is NULL")
    lowered = [each.lower() for each in given]
    if len(set(lowered)) != len(given) or len(given) > PATHS_MAX:
        raise invalid(f"{name} has an entry twice, or more than {PATHS_MAX}")
    return list(given)


async def _disks_named(view: View, names: Sequence[str], codes: Codes) -> list[Disk]:
    """By StorageVolume.Name, in this order."""
    wanted = {name.upper() for name in names}
    found: dict[str, Disk] = {}
    for volume in await view.volumes() if wanted else ():  # volumes first: most often these are all
        found |= {volume.naa.upper(): Disk(volume)} if volume.naa.upper() in wanted else {}
    if wanted - found.keys():
        async for disk in disks(view):
            if disk.snapshot is not None and disk.snapshot.naa.upper() in wanted:
                found[disk.snapshot.naa.upper()] = disk
    for name in names:
        if name.upper() not in found:
            raise Refused(codes.invalid_lu, f"no volume has the Name {name!r}")
    return [found[name.upper()] for name in names]


def _numbers(params: Parameters, count: int) -> list[int | None]:
    """DeviceNumbers: hexadecimal, as DeviceNumber of ProtocolControllerForUnit."""
    given = params.get("DeviceNumbers")
    if not given:
        return [None] * count
    if len(given) != count:
        raise invalid(f"{len(given)} DeviceNumbers for {count} LUNames")
    found = [None if not text else device_number(text) for text in given]
    chosen = [number for number in found if number is not None]
    if len(set(chosen)) != len(chosen):
        raise invalid("DeviceNumbers has a number twice")
    return found


def device_number(text: str) -> int:
    digits = text.lower().removeprefix("0x")
    if not 0 < len(digits) <= 16 or not set(digits) <= set("0123456789abcdef") or int(digits, 16) > LUN_MAX:
        raise invalid(f"DeviceNumber {text!r} is not within 0 to {LUN_MAX:x}, in hexadecimal digits")
    return int(digits, 16)


def _check_accesses(params: Parameters, found: Sequence[Disk], codes: Codes) -> None:
    given = params.get("DeviceAccesses")
    if not found:
        if given or params.get("DeviceNumbers"):
            raise invalid("DeviceNumbers and DeviceAccesses belong to LUNames")
        return
    if not given or len(given) != len(found):
        raise invalid("DeviceAccesses has one for each of LUNames")
    for disk, access in zip(found, given, strict=True):
        read_only = disk.snapshot is not None or disk.volume.read_only
        if access != (READ_ONLY if read_only else READ_WRITE):
            has = "Read-Only" if read_only else "Read Write"
            raise Refused(codes.invalid_access, f"access {access} to {disk.volume.name}: it is {has}")


async def _shelf(view: View, params: Parameters) -> Shelf | None:
    """The one view that is given, if one is."""
    given = params.get("ProtocolControllers") or []
    if not given:
        return None
    if len(given) != 1 or given[0] is None:
        raise invalid("ProtocolControllers is one, or none")
    return await shelf_at(view, given[0], "ProtocolControllers")


async def shelf_at(view: View, path: CIMInstanceName | None, name: str) -> Shelf:
    paths = await view.paths()
    key = None
    if path is not None and path.classname.lower() == CONTROLLER_CLASS.lower():
        key = paths.controller_key(path.keybindings)
    shelf = await find_shelf(view, key)
    if shelf is None:
        raise invalid(f"{name} is no protocol controller that there is")
    return shelf


def _initiators(params: Parameters, codes: Codes) -> list[str] | None:
    """Names in lower case; that without a name stands alone."""
    given = _strings(params, "InitiatorPortIDs")
    if given is not None and "" in given and len(given) > 1:
        raise Refused(codes.invalid_initiator, "everybody and some initiators make no view together")
    return None if given is None else [name.lower() for name in given]


@contextlib.asynccontextmanager
async def _known(view: View, names: Sequence[str], codes: Codes) -> AsyncIterator[None]:
    """Initiators that nobody knows yet get a hardware ID, which stays if what follows succeeds. Refused: no iSCSI
    name."""
    made = []
    try:
        for name in names:
            try:
                await view.api.initiator_add(name)
                made.append(name)
            except AlreadyExists:
                continue
            except InvalidArgument as error:
                raise Refused(codes.invalid_initiator, str(error)) from error
        yield
    except BaseException:
        for name in made:
            await view.api.initiator_remove(name)
        raise


# --- exposing -------------------------------------------------------------------------------------------------------


@answering
async def expose_paths(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """LUNames, InitiatorPortIDs, TargetPortIDs, DeviceNumbers, DeviceAccesses; in and out ProtocolControllers."""
    asked = await _asked(view, params, EXPOSE, _initiators(params, EXPOSE), expose=True)
    return await _expose(view, asked, EXPOSE)


@answering
async def expose_default(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """ExposePaths to everybody: LUNames, TargetPortIDs, DeviceNumbers, DeviceAccesses; ProtocolControllers."""
    given = await _asked(view, params, EXPOSE_DEFAULT, None, expose=True)
    if given.shelf is not None and not given.shelf.is_default:
        raise invalid("ProtocolControllers is no default view: it admits some initiators only")
    asked = given if given.shelf is not None else given._replace(initiators=[""])
    return await _expose(view, asked, EXPOSE_DEFAULT)


async def _expose(view: View, asked: Asked, codes: Codes) -> Answer:
    if asked.shelf is not None:
        return await extend(view, asked.shelf, asked, codes)
    if not asked.units:
        raise invalid("a new view needs LUNames")
    if not asked.initiators:
        raise invalid("a new view needs InitiatorPortIDs; one without a name is everybody")
    named = [] if asked.initiators == [""] else asked.initiators
    target = None
    if asked.ports is not None:
        target = await _target_of(view, asked.ports, codes)
    async with _known(view, named, codes):
        if target is None:
            return await _new_target(view, asked.units, named, codes)
        return await _add_to(view, target, asked.units, named, codes)


async def _add_to(view: View, target: TargetInfo, units: Sequence[Unit], named: list[str], codes: Codes) -> Answer:
    """Units in a target that there is, for these initiators only; without one for everybody."""
    admitted, whole = target.initiators, set(named) == set(target.initiators)
    if not whole and (not named or (admitted and set(named) - set(admitted))):
        raise Refused(codes.invalid_initiator, f"target {target.name} does not admit them all: add them to it first")
    return await _add(view, Shelf(target, None), units, [] if whole else named, codes)


async def _target_of(view: View, ports: Sequence[str], codes: Codes) -> TargetInfo:
    """The target whose ports these are: all of them, since all ports share its views; or its name alone."""
    found = None
    for port in ports:
        key = read_port_name(port.lower())
        target = await view.target(port.lower()) if key is None else await find_port(view, key)
        if target is None or (found is not None and target.name != found.name):
            raise Refused(codes.invalid_port, f"{port!r} is no target port, or one of another target")
        found = target
    assert found is not None, "an empty array is none"
    return found


async def _new_target(view: View, units: Sequence[Unit], initiators: list[str], codes: Codes) -> Answer:
    for name in elements.engine_names(_called(units[0])):
        try:
            target = await view.api.target_create(name, initiators=initiators)
            break
        except AlreadyExists:
            continue
    try:
        return await _add(view, Shelf(target, None), units, [], codes)
    except BaseException:
        await view.api.target_delete(target.name, force=True)
        raise


def _called(unit: Unit) -> str:
    disk = unit.disk
    return disk.volume.name if disk.snapshot is None else f"{disk.volume.name}.snap.{disk.snapshot.name}"


async def _add(view: View, shelf: Shelf, units: Sequence[Unit], mask: list[str], codes: Codes) -> Answer:
    """The units as LUNs of a target, all or none; seen by ``mask`` only, unless it is empty. The views that change."""
    taken = {lun.lun for lun in shelf.target.luns}
    if len(taken) + len(units) > LUN_MAX + 1:
        raise Refused(codes.map_full, f"a target has at most {LUN_MAX + 1} LUNs")
    chosen = {unit.number for unit in units if unit.number is not None}
    if taken & chosen:
        raise Refused(codes.number_in_use, f"LUN {min(taken & chosen)} of {shelf.target.name} is in use")
    shown = {(lun.volume_id, lun.snapshot_guid) for lun in shelf.luns}
    for unit in units:
        if (unit.disk.volume.volume_id, guid(unit.disk)) in shown:
            raise Refused(codes.combination, f"{_called(unit)} is exposed there already")
    free = (number for number in range(LUN_MAX + 1) if number not in taken | chosen)
    numbers = [next(free) if unit.number is None else unit.number for unit in units]
    added: list[int] = []
    try:
        for unit, number in zip(units, numbers, strict=True):
            await _show(view, shelf.target.name, unit.disk, number, mask)
            added.append(number)
    except BaseException:
        for number in added:
            await view.api.target_lun_remove(shelf.target.name, number, force=True)
        raise
    paths = await view.paths()
    views = [paths.controller(shelf.target.name, number) for number in numbers] if mask else []
    return ReturnCode.COMPLETED, {
        "Job": None,
        "ProtocolControllers": views or [paths.controller(shelf.target.name, shelf.lun)],
    }


def guid(disk: Disk) -> str | None:
    return None if disk.snapshot is None else disk.snapshot.guid


async def _show(view: View, target: str, disk: Disk, number: int, mask: list[str]) -> None:
    snapshot = None if disk.snapshot is None else disk.snapshot.name
    await view.api.target_lun_add(target, disk.volume.name, snapshot=snapshot, lun=number, initiators=mask or None)


async def extend(view: View, shelf: Shelf, asked: Asked, codes: Codes) -> Answer:
    """More LUs in a view, or more initiators."""
    given = [bool(asked.units), asked.initiators is not None, asked.ports is not None]
    if sum(given) != 1:
        raise invalid("to an existing view either LUNames, InitiatorPortIDs or TargetPortIDs are added")
    if asked.units:
        mask = [] if shelf.lun is None else [name for lun in shelf.luns for name in lun.initiators]
        return await _add(view, shelf, asked.units, mask, codes)
    if asked.initiators is None:
        raise unsupported("the ports of a target are its portal groups; all of them share its views")
    named = asked.initiators
    if shelf.is_default or (named != [""] and not set(named) - set(shelf.initiators)):
        raise Refused(codes.combination, "the view is exposed to them already")
    if named == [""]:
        await _admit_all(view, shelf)
    else:
        async with _known(view, named, codes):
            await _admit(view, shelf, named, codes)
    return ReturnCode.COMPLETED, {
        "Job": None,
        "ProtocolControllers": [(await view.paths()).controller(shelf.target.name, shelf.lun)],
    }


async def _admit(view: View, shelf: Shelf, named: list[str], codes: Codes) -> None:
    target = shelf.target
    if shelf.lun is None:
        await view.api.target_access(target.name, add=named, remove=[])
        return
    if target.initiators and set(named) - set(target.initiators):
        raise Refused(codes.invalid_initiator, f"target {target.name} does not admit them all: add them to it first")
    mask = [name for lun in shelf.luns for name in lun.initiators]
    await view.api.target_lun_mask(target.name, shelf.lun, initiators=sorted({*mask, *named}))


async def _admit_all(view: View, shelf: Shelf) -> None:
    if shelf.lun is None:
        await view.api.target_access(shelf.target.name, add=[], remove=[], admit_all=True)
    else:
        raise unsupported("the view of a LUN of its own admits some initiators only")


# --- hiding ---------------------------------------------------------------------------------------------------------


@answering
async def hide_paths(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """LUNames or InitiatorPortIDs or TargetPortIDs; in and out ProtocolControllers."""
    return await _hide(view, await _asked(view, params, HIDE, _initiators(params, HIDE), expose=False), HIDE)


@answering
async def hide_default(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """LUNames or TargetPortIDs; in and out ProtocolControllers, a default view."""
    asked = await _asked(view, params, HIDE_DEFAULT, None, expose=False)
    if asked.shelf is not None and not asked.shelf.is_default:
        raise invalid("ProtocolControllers is no default view: it admits some initiators only")
    return await _hide(view, asked, HIDE_DEFAULT)


async def _hide(view: View, asked: Asked, codes: Codes) -> Answer:
    shelf = asked.shelf
    if shelf is None:
        raise invalid("ProtocolControllers has the one view to change")
    given = [bool(asked.units), asked.initiators is not None, asked.ports is not None]
    if sum(given) != 1:
        raise invalid("from a view either LUNames, InitiatorPortIDs or TargetPortIDs are removed")
    if asked.units:
        await take_away(view, shelf, asked.units, codes)
    elif asked.initiators is not None:
        await _exclude(view, shelf, asked.initiators, codes)
    else:
        raise unsupported("the ports of a target are its portal groups; all of them share its views")
    view.forget()
    paths = await view.paths()
    left = await find_shelf(view, paths.controller_key(paths.controller(shelf.target.name, shelf.lun).keybindings))
    return ReturnCode.COMPLETED, {
        "Job": None,
        "ProtocolControllers": [] if left is None else [paths.controller(shelf.target.name, shelf.lun)],
    }


async def take_away(view: View, shelf: Shelf, units: Sequence[Unit], codes: Codes) -> None:
    """All of them, or none. Raises InUse: there are sessions."""
    luns = []
    for unit in units:
        key = (unit.disk.volume.volume_id, guid(unit.disk))
        here = [lun for lun in shelf.luns if (lun.volume_id, lun.snapshot_guid) == key and not lun.standby]
        if not here:
            raise Refused(codes.combination, f"{_called(unit)} is not exposed there")
        luns += [(lun, unit.disk) for lun in here]
    gone = []
    try:
        for lun, disk in luns:
            await view.api.target_lun_remove(shelf.target.name, lun.lun)
            gone.append((lun, disk))
    except BaseException:
        for lun, disk in gone:
            await _show(view, shelf.target.name, disk, lun.lun, lun.initiators)
        raise


async def _exclude(view: View, shelf: Shelf, names: list[str], codes: Codes) -> None:
    """Take initiators out of a view; it goes with its last one. Sessions that are admitted no longer end."""
    target = shelf.target
    if names == [""]:
        if not shelf.is_default:
            raise Refused(codes.combination, "the view is not exposed to everybody")
        await view.api.target_delete(target.name)
        return
    missing = set(names) - set(shelf.initiators)
    if missing:
        known = (await view.initiators()).keys() | {name for each in await view.targets() for name in each.initiators}
        code = codes.combination if missing <= known else codes.invalid_initiator
        raise Refused(code, f"the view is not exposed to {min(missing)}")
    listed = target.initiators if shelf.lun is None else [name for lun in shelf.luns for name in lun.initiators]
    left = set(listed) - set(names)
    if shelf.lun is None and left:
        await view.api.target_access(target.name, add=[], remove=names)
    elif shelf.lun is None:
        await view.api.target_delete(target.name)
    elif left:
        await view.api.target_lun_mask(target.name, shelf.lun, initiators=sorted(left))
    else:
        await view.api.target_lun_remove(target.name, shelf.lun)


_SERVICE = "CIM_ControllerConfigurationService"

METHODS: dict[tuple[str, str], MethodHandler] = {
    (_SERVICE, "ExposePaths"): expose_paths,
    (_SERVICE, "HidePaths"): hide_paths,
    (_SERVICE, "ExposeDefaultLUs"): expose_default,
    (_SERVICE, "HideDefaultLUs"): hide_default,
}
