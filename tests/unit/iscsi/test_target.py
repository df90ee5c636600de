"""Targets, access and SendTargets."""

import pytest

from engine.errors import AlreadyExists, InvalidArgument, NotFound
from iscsi.target import (
    MAX_LUNS,
    Portal,
    Target,
    TargetChange,
    TargetRegistry,
    is_plausible_name,
    normalize_name,
    validate_name,
)

IQN = "iqn.2026-11.org.twinvol:disk"
ASKER = "iqn.1993-08.org.debian:01:abc"
UNIT = object()  # what lies behind a LUN is of no interest here


@pytest.mark.parametrize(
    "name",
    [IQN, "iqn.2001-04.com.example", "iqn.2001-04.com.example:a:b.c-d", "eui.02004567a425678d", "naa.52004567ba64678d"],
)
def test_names_of_the_three_forms_are_taken(name):
    assert validate_name(name) == name


def test_a_name_is_compared_in_lower_case():
    assert validate_name("IQN.2026-11.org.TwinVol:Disk") == IQN
    registry = TargetRegistry()
    registry.add(Target(IQN))
    assert registry.find("iqn.2026-11.ORG.twinvol:DISK") is not None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "disk",
        "iqn.2026-13.org.x",
        "iqn.2026-11.",
        "iqn.2026-11.org.x:",
        "iqn.2026-11.org.x:a_b",
        "iqn.2026-11.org.x:a b",
        "eui.0200",
        "naa.123",
        "iqn.2026-11.org.x:" + "a" * 224,
        "iqn.2026-11.org.x:a\n",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(InvalidArgument):
        validate_name(name)


def test_luns_are_mapped_once_and_changes_are_told():
    target = Target(IQN)
    registry = TargetRegistry()
    seen = []
    unsubscribe = registry.subscribe(lambda about, change: seen.append((about.name, change)))
    registry.add(target)
    target.map_lun(3, UNIT)
    with pytest.raises(AlreadyExists):
        target.map_lun(3, UNIT)
    with pytest.raises(InvalidArgument):
        target.map_lun(-1, UNIT)
    with pytest.raises(InvalidArgument):
        target.map_lun(4, UNIT, ["no initiator name"])
    assert dict(target.luns) == {3: UNIT}, "what is refused is not shown, least of all to everybody"
    assert target.unmap_lun(3) is UNIT
    with pytest.raises(NotFound):
        target.unmap_lun(3)
    target.admit([ASKER])
    registry.remove(IQN)
    target.map_lun(0, UNIT)  # not served any more: nobody hears of it
    changes = [TargetChange.ADDED, TargetChange.LUNS, TargetChange.LUNS, TargetChange.ACCESS, TargetChange.REMOVED]
    assert seen == [(IQN, change) for change in changes]
    registry.add(target)
    unsubscribe()
    target.unmap_lun(0)
    assert len(seen) == 6


def test_a_registry_has_each_name_once():
    registry = TargetRegistry()
    registry.add(Target(IQN))
    with pytest.raises(AlreadyExists):
        registry.add(Target(IQN))
    with pytest.raises(NotFound):
        registry.remove(IQN + "x")


def served(portals, *targets):
    registry = TargetRegistry()
    registry.portals = [Portal(*portal) for portal in portals]
    for target in targets:
        registry.add(target)
    return registry


def test_send_targets_tells_only_what_the_asker_may_use():
    mine = Target(IQN + "-mine", initiators=[ASKER.upper()])
    others = Target(IQN + "-others", initiators=["iqn.2001-04.com.example:other"])
    everybodys = Target(IQN)
    registry = served([("127.0.0.1", 3260)], others, mine, everybodys)
    assert registry.send_targets(ASKER, Portal("127.0.0.1", 3260)) == [
        ("TargetName", IQN),
        ("TargetAddress", "127.0.0.1:3260,1"),
        ("TargetName", IQN + "-mine"),
        ("TargetAddress", "127.0.0.1:3260,1"),
    ]
    assert registry.send_targets(ASKER, Portal("127.0.0.1", 3260), IQN + "-others") == []
    assert registry.send_targets(ASKER, Portal("127.0.0.1", 3260), IQN)[0] == ("TargetName", IQN)


def addresses(registry, portal):
    return [value for key, value in registry.send_targets(ASKER, Portal(*portal)) if key == "TargetAddress"]


def test_a_wildcard_portal_is_told_as_the_address_that_was_reached():
    registry = served([("0.0.0.0", 3260), ("0.0.0.0", 3261)], Target(IQN))
    assert addresses(registry, ("192.0.2.7", 3260)) == ["192.0.2.7:3260,1", "192.0.2.7:3261,1"]


def test_a_wildcard_portal_of_the_other_family_is_not_told():
    registry = served([("::", 3260), ("0.0.0.0", 3261)], Target(IQN))
    assert addresses(registry, ("192.0.2.7", 3261)) == ["192.0.2.7:3261,1"]
    assert addresses(registry, ("2001:db8::1", 3260)) == ["[2001:db8::1]:3260,1"]


def test_a_target_is_told_with_all_its_ways_and_only_through_its_portal_groups():
    both = Target(IQN + "-both", portal_groups=[1, 2])
    second = Target(IQN + "-second", portal_groups=[2])
    registry = served([("192.0.2.7", 3260, 1), ("198.51.100.7", 3260, 2), ("203.0.113.7", 3260, 3)], both, second)
    first_portal = [
        ("TargetName", IQN + "-both"),
        ("TargetAddress", "192.0.2.7:3260,1"),
        ("TargetAddress", "198.51.100.7:3260,2"),
    ]
    assert registry.send_targets(ASKER, Portal("192.0.2.7", 3260, 1)) == first_portal
    assert registry.send_targets(ASKER, Portal("192.0.2.7", 3260, 1), second.name) == []
    assert registry.send_targets(ASKER, Portal("198.51.100.7", 3260, 2))[3:] == [
        ("TargetName", IQN + "-second"),
        ("TargetAddress", "198.51.100.7:3260,2"),
    ]
    assert registry.send_targets(ASKER, Portal("203.0.113.7", 3260, 3)) == []
    second.bind(None)
    assert [value for _, value in registry.send_targets(ASKER, Portal("203.0.113.7", 3260, 3))] == [
        second.name,
        "203.0.113.7:3260,3",
        "192.0.2.7:3260,1",
        "198.51.100.7:3260,2",
    ]


@pytest.mark.parametrize("tag", [-1, 65536])
def test_a_portal_group_tag_has_sixteen_bits(tag):
    with pytest.raises(InvalidArgument):
        Target(IQN, portal_groups=[tag])


def test_loopback_is_not_told_to_others():
    registry = served([("127.0.0.1", 3260), ("192.0.2.7", 3260), ("2001:db8::1", 3260)], Target(IQN))
    assert addresses(registry, ("192.0.2.7", 3260)) == ["192.0.2.7:3260,1", "[2001:db8::1]:3260,1"]
    assert addresses(registry, ("127.0.0.1", 3260))[0] == "127.0.0.1:3260,1"


def test_link_local_addresses_are_told_on_a_link_only():
    portals = [("fe80::1", 3260), ("169.254.1.1", 3260), ("192.0.2.7", 3260), ("127.0.0.1", 3260)]
    registry = served(portals, Target(IQN))
    assert addresses(registry, ("192.0.2.7", 3260)) == ["192.0.2.7:3260,1"]
    assert addresses(registry, ("fe80::1%eth0", 3260)) == [
        "[fe80::1]:3260,1",
        "169.254.1.1:3260,1",
        "192.0.2.7:3260,1",
    ]


def test_mapped_and_scoped_addresses_are_written_plainly():
    registry = served([("::", 3260)], Target(IQN))
    assert addresses(registry, ("::ffff:192.0.2.7", 3260)) == ["192.0.2.7:3260,1"]
    assert addresses(registry, ("fe80::1%eth0", 3260)) == ["[fe80::1]:3260,1"]


def test_what_a_target_refuses():
    with pytest.raises(InvalidArgument):
        Target(IQN, alias="a" * 256)
    with pytest.raises(InvalidArgument):
        Target(IQN, initiators=["a name with spaces"])
    full = Target(IQN)
    for lun in range(MAX_LUNS):
        full.map_lun(lun, UNIT)
    with pytest.raises(InvalidArgument):
        full.map_lun(MAX_LUNS, UNIT)


def test_a_registry_is_walked_and_counted():
    registry = served([], Target(IQN), Target(IQN + "-2", initiators=[ASKER]))
    assert len(registry) == 2
    assert [str(target) for target in registry] == [IQN, IQN + "-2"]
    assert registry.find(IQN).initiators is None
    assert registry.find(IQN + "-2").initiators == {ASKER}


@pytest.mark.parametrize("name", ["", "a b", "a\n", "a,i,0x00023d000001", "a\uff0cb", "\ufdfa" * 70, "x" * 224])
def test_names_that_nobody_may_have(name):
    assert not is_plausible_name(normalize_name(name))


@pytest.mark.parametrize("name", ["iqn.1993-08.org.debian:01:abc", "IQN.Some_Host", "\uff49qn.x", "x" * 223])
def test_names_that_initiators_have(name):
    assert is_plausible_name(normalize_name(name))
