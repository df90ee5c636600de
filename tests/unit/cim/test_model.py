"""Everything that the storage namespace shows, checked as a whole over a pool with all kinds of things."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pywbem import CIMInstanceName

from cim_facade.context import View
from cim_facade.indications.records import (
    DESTINATION_CLASSES,
    PINNED_CLASS,
    Destination,
    Subscription,
    destination_key,
)
from cim_facade.indications.service import Indications
from cim_facade.namespaces import STORAGE
from cim_facade.operations import Filters, Operations
from cim_facade.registry import whole_registry
from cim_facade.repository import ClassRepository, load
from engine.api import CopyOrder, GroupOrder, MirrorTerms
from tests.support.cim_model import ADMINISTRATOR, Model
from tests.support.engine import Engine, opened
from tests.unit.daemon.test_peers import connected

if TYPE_CHECKING:
    from pathlib import Path

    from cim_facade.provider import Association
    from engine.api import EngineApi

HOST, OTHER = "iqn.2026-11.org.example:host", "iqn.2026-11.org.example:other"
MIB = 1 << 20


@pytest.fixture(scope="module")
def classes() -> ClassRepository:
    return load()


async def finished(api: EngineApi, job: int) -> None:
    info = await api.job_wait(job)
    while info.finished_at is None:
        info = await api.job_wait(job, after_version=info.version)
    assert info.error is None, info.message


async def furnish(engine: Engine) -> None:
    """Volumes, snapshots, clones, mirrors; targets that admit all, some, or some to one LUN; sessions."""
    api = engine.api
    for name in ("plain", "source", "shared"):
        await api.volume_create(name, 4 * MIB)
    await api.volume_create("shown", MIB, expose=True)
    await api.volume_create("fixed", MIB, read_only=True)
    for name in ("one", "two"):
        await api.snapshot_create("source", name, expose=name == "one", description=f"the snapshot {name}")
    await api.clone_create("source", "one", "linked")
    await finished(api, (await api.clone_copy("source", "two", "full")).job)
    await finished(api, (await api.replica_create("source", "mirror")).job)
    await api.target_create("shelf", initiators=[HOST])
    await api.target_lun_add("shelf", "shared")
    await api.target_create("masked", initiators=[HOST, OTHER], portal_groups=[2])
    await api.target_lun_add("masked", "shared", lun=3)
    await api.target_lun_add("masked", "plain", lun=17, initiators=[OTHER])
    await api.target_lun_add("masked", "fixed", lun=18, initiators=[OTHER])
    await api.target_create("second")
    await api.target_lun_add("second", "mirror", standby=True)
    await api.initiator_add("iqn.2026-11.org.example:announced", "a host to come")
    shown = await api.volume_show("shown")
    assert shown.target is not None
    engine.exports.log_in(shown.target, HOST)
    await api.group_create("pair", ["plain", "shared"])
    await api.group_snapshot_create("pair", "instant")
    orders = [CopyOrder("clone", name) for name in ("plain", "shared")]
    await finished(api, (await api.copies_make(orders, group=GroupOrder("copied", source_group="pair"))).job)


async def befriend(engine: Engine, other: Engine) -> None:
    """A mirror to another pool."""
    code = (await other.api.peer_invite(name="here")).code
    await engine.api.peer_add("there", code, address=other.peer_address)
    await connected(engine, "there")
    await finished(
        engine.api, (await engine.api.replica_create("plain", "far", MirrorTerms("async"), peer="there")).job
    )


async def subscribed(engine: Engine, classes: ClassRepository) -> Indications:
    """A subscription, and a destination of each class."""
    made = Indications(engine.api, classes, whole_registry())
    await made.start()
    for class_name in DESTINATION_CLASSES:
        url, pin = "https://127.0.0.1:9", "00" * 32 if class_name == PINNED_CLASS else None
        await made.book.put_destination(Destination(class_name, "listener", url, "id", fingerprint=pin), new=True)
    key = destination_key(DESTINATION_CLASSES[0], "listener")
    await made.subscribe(Subscription("SNIA:Job Control:JobCreation", key, 0, 0.0, 0.0))
    return made


def model_of(engine: Engine, classes: ClassRepository) -> Model:
    return Model(engine.api, classes, whole_registry(), STORAGE)


async def test_the_whole_model(tmp_path: Path, classes: ClassRepository) -> None:
    async with (
        opened(tmp_path / "pool", peer="127.0.0.1:0") as engine,
        opened(tmp_path / "other", peer="127.0.0.1:0") as other,
    ):
        await furnish(engine)
        await befriend(engine, other)
        indications = await subscribed(engine, classes)
        for namespace in classes.namespaces:
            model = Model(engine.api, classes, whole_registry(), namespace, indications)
            assert await model.problems() == []
            shown = {instance.classname for instance in await model.everything()}
            provided = {each.class_name for each in model.registry.all() if each.namespace == namespace}
            assert shown == provided
        await indications.close()


def test_every_declared_method_is_answered(classes: ClassRepository) -> None:
    registry = whole_registry()
    for provider in registry.all():
        declared = classes.get(provider.namespace, provider.class_name)
        assert declared is not None
        for method in declared.methods:
            handler = registry.method(classes, provider.namespace, provider.class_name, method)
            assert handler is not None, f"{provider.class_name}.{method}"


async def test_keys_are_the_same_after_a_restart(tmp_path: Path, classes: ClassRepository) -> None:
    async with opened(tmp_path / "pool") as engine:
        await furnish(engine)
        engine.exports.logged_in.clear()  # sessions end
        before = {instance.path for instance in await model_of(engine, classes).everything()}
    (tmp_path / "pool").rename(tmp_path / "moved")
    async with opened(tmp_path / "moved") as engine:
        model = model_of(engine, classes)
        assert {instance.path for instance in await model.everything()} == before
        assert await model.problems() == []


async def test_an_empty_pool(tmp_path: Path, classes: ClassRepository) -> None:
    async with opened(tmp_path / "pool") as engine:
        assert await model_of(engine, classes).problems() == []


async def test_what_is_not_there(tmp_path: Path, classes: ClassRepository) -> None:
    """Keys that nothing has, of every class: no instance, no references, and never a traceback."""
    async with opened(tmp_path / "pool") as engine:
        await furnish(engine)
        model = model_of(engine, classes)
        everything = await model.everything()
        for provider in model.registry.all():
            for instance in [each for each in everything if each.classname == provider.class_name][:1]:
                for keys in _wrong(instance.path):
                    assert await provider.instance(model.view(), keys) is None, (provider.class_name, keys)
                    wrong = CIMInstanceName(provider.class_name, keys, namespace=STORAGE)
                    for association in model.registry.associations(STORAGE):
                        await _leads_nowhere(model, association, wrong)


def _wrong(path: CIMInstanceName) -> list[dict[str, object]]:
    keys = dict(path.keybindings)
    strings = [name for name, value in keys.items() if isinstance(value, str)]
    return [
        {},
        {**keys, "More": "x"},
        *({**keys, name: wrong} for name in strings for wrong in ("", "x", 7, True)),
    ]


async def _leads_nowhere(model: Model, association: Association, path: CIMInstanceName) -> None:
    for end in association.ends:
        if model.classes.is_a(STORAGE, path.classname, end.class_name):
            found = [each.path async for each in association.references(model.view(), path, end.role)]
            assert found == [], (association.class_name, path)


class Asked:
    """The engine's API, with the names of the calls that it was asked."""

    def __init__(self, api: EngineApi) -> None:
        self._api = api
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> object:
        self.calls.append(name)
        return getattr(self._api, name)


OF_ALL = {"volume_list", "target_list", "session_list", "initiator_list", "status"}
"""Calls whose cost grows with what there is in the pool."""


async def test_the_neighbours_of_one_volume_are_no_scan(tmp_path: Path, classes: ClassRepository) -> None:
    async with opened(tmp_path / "pool") as engine:
        await furnish(engine)
        registry = whole_registry()
        info = await engine.api.volume_show("shown")
        asked = Asked(engine.api)
        view = View(asked, ADMINISTRATOR, classes, registry)  # type: ignore[arg-type]
        path = (await view.paths()).volume(info.volume_id)
        operations = Operations(view, classes, registry)
        filters = Filters(result_class="CIM_ManagedElement")
        found = [each.classname async for each in operations.associators(path, filters)]
        assert {"MSISCSITARGET_StoragePool", "MSISCSITARGET_SCSIProtocolController"} <= set(found)
        assert not OF_ALL & set(asked.calls), asked.calls
