"""Names of instances: what is made is read, and nothing else is."""

from __future__ import annotations

import uuid

from hypothesis import given
from hypothesis import strategies as st

from cim_facade.paths import ControllerKey, Paths, PortKey, VolumeKey

POOL = "5a0c7d7e-1b7f-4a39-8f7e-1f2d3c4b5a69"
PATHS = Paths(POOL)
ids = st.uuids().map(str)
targets = st.from_regex(r"iqn\.2026-11\.org\.twinvol:[a-z0-9.:-]{1,60}", fullmatch=True)


@given(ids, st.none() | ids)
def test_volumes(volume_id: str, guid: str | None) -> None:
    path = PATHS.volume(volume_id, guid)
    assert PATHS.volume_key(path.keybindings) == VolumeKey(volume_id, guid)
    assert len(path.keybindings["DeviceID"]) <= 64


@given(targets, st.none() | st.integers(0, 255), st.integers(1, 65535))
def test_targets(target: str, lun: int | None, tag: int) -> None:
    assert PATHS.controller_key(PATHS.controller(target, lun).keybindings) == ControllerKey(target, lun)
    assert PATHS.port_key(PATHS.port(target, tag).keybindings) == PortKey(target, tag)


def test_another_pool_s_names_are_not_read() -> None:
    other = Paths(str(uuid.UUID(int=1)))
    volume = PATHS.volume(POOL)
    assert other.volume_key(volume.keybindings) is None
    assert other.identity("pool", PATHS.pool().keybindings) is None
    assert PATHS.identity("job", PATHS.pool().keybindings) is None
    assert not other.is_system(PATHS.system().keybindings)


def test_a_key_too_many_too_few_or_of_another_type() -> None:
    keys = dict(PATHS.volume(POOL).keybindings)
    assert PATHS.volume_key(keys | {"Name": "x"}) is None
    assert PATHS.volume_key(keys | {"DeviceID": 7}) is None
    assert PATHS.volume_key(keys | {"CreationClassName": "CIM_StorageVolume"}) is None
    del keys["SystemName"]
    assert PATHS.volume_key(keys) is None
