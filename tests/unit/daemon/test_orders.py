"""Several copies as one job: what it makes, takes back, and goes on with; relations and free texts."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from types import SimpleNamespace

import pytest

from engine import mirror_wait
from engine.api import CopyOrder, GroupOrder, MirrorTerms
from engine.errors import AlreadyExists, InUse, InvalidArgument, InvalidState, NotFound, NotSupported
from tests.support.engine import HeldMover, opened

MIB = 1 << 20


@pytest.fixture
async def engine(tmp_path):
    async with opened(tmp_path / "pool") as made:
        yield made


async def make(engine, *names, size=MIB, data=b"x" * 4096):
    for name in names:
        await engine.api.volume_create(name, size)
        await engine.pool.volume(name).write(0, data)


async def ended(engine, info):
    while info.state not in ("Completed", "Exception", "Terminated"):
        info = await engine.api.job_wait(info.job, after_version=info.version)
    return info


async def head_of(engine, name):
    found = bytearray(4096)
    await engine.pool.volume(name).read(0, memoryview(found))
    return bytes(found)


async def ordered(engine, *orders, **options):
    return await ended(engine, await engine.api.copies_make(list(orders), **options))


async def test_snapshots_clones_token_clones_and_mirrors(engine):
    await make(engine, "a")
    snapshot = await ordered(engine, CopyOrder("snapshot", "a", element_name="Nightly: Ä 1"))
    assert snapshot.state == "Completed", snapshot.message
    assert [info.name for info in await engine.api.snapshot_list("a")] == ["nightly-1"]
    (made,) = snapshot.result["copies"]
    assert (await engine.api.element_name_list()) == {made["guid"]: "Nightly: Ä 1"}

    clone = await ordered(engine, CopyOrder("clone", "a"), CopyOrder("clone", "a"))
    assert [info.name for info in await engine.api.volume_list()] == ["a", "a-clone", "a-clone-2"]
    assert await head_of(engine, "a-clone-2") == b"x" * 4096
    relations = await engine.api.relation_list()
    assert [info.target_id for info in relations] == [made["target_id"] for made in clone.result["copies"]]

    token = await ordered(engine, CopyOrder("token", "a", element_name="t", related=False))
    assert token.state == "Completed", token.message
    assert await head_of(engine, "t") == b"x" * 4096
    assert len(await engine.api.relation_list()) == 2
    assert not [point for point in engine.pool.volume("a").head.store.snapshots() if point.hidden]

    mirror = await ordered(engine, CopyOrder("mirror", "a", element_name="m", terms=MirrorTerms()))
    assert mirror.state == "Completed", mirror.message
    assert (await engine.api.replica_show("m")).copy_state == "Synchronized"


async def test_an_existing_volume_takes_a_clone_and_the_size_of_its_source(engine):
    await make(engine, "a")
    await make(engine, "b", size=2 * MIB, data=b"b" * 4096)
    await make(engine, "small", size=MIB // 2)
    done = await ordered(engine, CopyOrder("clone", "a", target="b"))
    assert done.state == "Completed", done.message
    assert (await head_of(engine, "b"), (await engine.api.volume_show("b")).size_bytes) == (b"x" * 4096, MIB)
    assert await engine.api.replica_list() == []
    assert [info.kind for info in await engine.api.relation_list()] == ["clone"]
    with pytest.raises(InvalidArgument, match="less than"):
        await engine.api.copies_make([CopyOrder("clone", "a", target="small")])
    with pytest.raises(NotSupported):
        await engine.api.copies_make([CopyOrder("snapshot", "a", target="b")])
    with pytest.raises(InvalidArgument, match="itself"):
        await engine.api.copies_make([CopyOrder("clone", "a", target="a")])
    await ordered(engine, CopyOrder("mirror", "a", target="b"))
    with pytest.raises(InUse):
        await engine.api.copies_make([CopyOrder("clone", "a", target="b")])
    await make(engine, "c")
    with pytest.raises(InUse):
        await engine.api.copies_make([CopyOrder("mirror", "b", target="c")])


async def test_what_makes_no_sense_is_refused_and_nothing_begins(engine):
    await make(engine, "a")
    for orders, options in (
        ([], {}),
        ([CopyOrder("copy", "a")], {}),
        ([CopyOrder("clone", "a", element_name="")], {}),
        ([CopyOrder("clone", "a", element_name="a\nb")], {}),
        ([CopyOrder("clone", "a", element_name="x" * 300)], {}),
        ([CopyOrder("clone", "a")], {"on_error": "hope"}),
        ([CopyOrder("clone", "a"), CopyOrder("snapshot", "a")], {}),
    ):
        with pytest.raises(InvalidArgument):
            await engine.api.copies_make(orders, **options)
    with pytest.raises(NotFound):
        await engine.api.copies_make([CopyOrder("clone", "x")])
    with pytest.raises(NotSupported):
        await engine.api.copies_make([CopyOrder("mirror", "a")], at_once=True)
    assert await engine.api.job_list() == []


async def test_an_order_that_stops_takes_back_what_it_has_made(engine):
    await make(engine, "a", "b")
    real = engine.api.snapshot_create

    async def failing(volume, name, **options):
        if volume == "b":
            raise InUse("not now")
        return await real(volume, name, **options)

    engine.api.snapshot_create = failing
    orders = [CopyOrder("snapshot", "a", element_name="S"), CopyOrder("snapshot", "b")]
    stopped = await ordered(engine, *orders)
    assert (stopped.state, stopped.error, stopped.message) == ("Exception", "InUse", "not now")
    assert await engine.api.snapshot_list("a") == []
    assert await engine.api.element_name_list() == {}
    went_on = await ordered(engine, *orders, on_error="continue")
    assert (went_on.state, went_on.result["copies"][1]["error"]) == ("Completed", "InUse")
    assert len(await engine.api.snapshot_list("a")) == 1
    failed = await ordered(engine, orders[1], on_error="continue")
    assert (failed.state, failed.error) == ("Exception", "InUse")


async def test_groups_of_copies(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    both = [CopyOrder("snapshot", "a"), CopyOrder("snapshot", "b")]
    done = await ordered(engine, *both, group=GroupOrder("Night", source_group="g", consistent=True))
    assert done.state == "Completed", done.message
    (shot,) = await engine.api.group_snapshot_list("g")
    (relation,) = await engine.api.group_relation_list()
    assert (relation.target_group, relation.guid, relation.name) == (shot.guid, done.result["group"], "Night")
    assert [pair.target for pair in relation.pairs] == [member.guid for member in shot.members]

    many = [CopyOrder("clone", "a", element_name=f"n_{number}") for number in (1, 2)]
    done = await ordered(engine, *many, group=GroupOrder("n"))
    assert done.state == "Completed", done.message
    assert (await engine.api.group_show("n")).members == ["n-1", "n-2"]
    relation = (await engine.api.group_relation_list())[1]
    assert relation.source == engine.pool.volume("a").volume_id
    await engine.api.group_relation_end(relation.guid)

    clones = [CopyOrder("clone", "a"), CopyOrder("clone", "b")]
    done = await ordered(engine, *clones, group=GroupOrder("at-once", source_group="g"), at_once=True)
    assert done.state == "Completed", done.message
    assert {info.name for info in await engine.api.group_list()} == {"g", "n", "at-once"}
    assert len(await engine.api.snapshot_list("a")) == 1  # the point of the clones is gone


async def test_a_job_goes_on_after_the_end_of_the_daemon_under_its_number(tmp_path):
    held = []

    def hold(mover):
        held.append(HeldMover(mover, 1))
        return held[-1]

    async with opened(tmp_path / "pool", hold) as engine:
        await make(engine, "a", size=64 * MIB)
        for at in range(0, 64, 2):
            await engine.pool.volume("a").write(at * MIB, b"y" * MIB)
        orders = [CopyOrder("clone", "a", element_name="one"), CopyOrder("clone", "a", element_name="two")]
        job = await engine.api.copies_make(orders, group=GroupOrder("both"))
        await held[0].holding.wait()
        assert (await engine.api.job_suspend(job.job)).state == "Suspended"
        assert (await engine.api.job_resume(job.job)).state == "Running"
        with pytest.raises(InvalidState):
            await engine.api.job_forget(job.job)
    async with opened(tmp_path / "pool") as engine:
        done = await ended(engine, await engine.api.job_show(job.job))
        assert done.state == "Completed", done.message
        assert {info.name for info in await engine.api.volume_list()} == {"a", "one", "two"}
        assert len(await engine.api.relation_list()) == 2
        await engine.api.job_forget(job.job)
        with pytest.raises(NotFound):
            await engine.api.job_show(job.job)
    async with opened(tmp_path / "pool") as engine:
        assert job.job not in [info.job for info in await engine.api.job_list()]
        assert len(await engine.api.relation_list()) == 2
        target = engine.pool.volume("one").volume_id
        await engine.api.group_remove("both", ["two"])
        await engine.api.volume_delete("two")
        assert [info.target_id for info in await engine.api.relation_list()] == [target]
        await engine.api.relation_end(target)
        with pytest.raises(NotFound):
            await engine.api.relation_end(target)


async def test_an_order_whose_source_is_gone_keeps_no_daemon_from_starting(tmp_path):
    document = {
        "orders": [asdict(CopyOrder("clone", "gone", name="copy"))],
        "source_guids": [None],
        "group": None,
        "at_once": False,
        "on_error": "stop",
        "until": "synchronized",
    }
    async with opened(tmp_path / "pool") as engine:
        await make(engine, "a")
        job = await ordered(engine, CopyOrder("snapshot", "a"))
        for number in (job.job, job.job + 1000):
            await engine.pool.catalog.relations.put_order(number, document)
    async with opened(tmp_path / "pool") as engine:
        assert await engine.pool.catalog.relations.orders() == {}
        assert (await engine.api.job_show(job.job)).state == "Completed"


async def test_free_texts_of_what_is_gone_are_forgotten_at_the_next_start(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await make(engine, "a")
        await ordered(engine, CopyOrder("snapshot", "a", element_name="Stays", relation_name="Too"))
        await ordered(engine, CopyOrder("snapshot", "a", element_name="Goes"))
        await engine.api.group_create("g", ["a"])
        await engine.api.element_name_set((await engine.api.group_show("g")).guid, "A group")
        await engine.api.snapshot_delete("a", "goes")
        assert len(await engine.api.element_name_list()) == 4
    async with opened(tmp_path / "pool") as engine:
        assert set((await engine.api.element_name_list()).values()) == {"Stays", "Too", "A group"}


async def test_a_cancelled_order_leaves_nothing(tmp_path):
    held = []

    def hold(mover):
        held.append(HeldMover(mover, 1))
        return held[-1]

    async with opened(tmp_path / "pool", hold) as engine:
        await make(engine, "a", size=64 * MIB)
        for at in range(0, 64, 2):
            await engine.pool.volume("a").write(at * MIB, b"y" * MIB)
        job = await engine.api.copies_make([CopyOrder("clone", "a", element_name="one")])
        await held[0].holding.wait()
        info = await engine.api.job_cancel(job.job)
        assert info.state == "Terminated"
        assert [info.name for info in await engine.api.volume_list()] == ["a"]
        assert (await engine.api.status()).interrupted_copies == []
        assert not [point for point in engine.pool.volume("a").head.store.snapshots() if point.hidden]
        assert await engine.api.element_name_list() == {}


async def held_clones(engine, held):
    """An order of two clones whose first is under way."""
    await make(engine, "a", size=64 * MIB)
    for at in range(0, 64, 2):
        await engine.pool.volume("a").write(at * MIB, b"y" * MIB)
    orders = [CopyOrder("clone", "a", element_name="one"), CopyOrder("clone", "a", element_name="two")]
    job = await engine.api.copies_make(orders)
    await held[0].holding.wait()
    return job


@pytest.mark.parametrize("restarted", [False, True])
async def test_nobody_else_takes_a_name_that_an_order_is_about_to_take(tmp_path, restarted):
    """Else the order would call another's volume its copy, and delete it when it is cancelled."""
    held = []

    def hold(mover):
        held.append(HeldMover(mover, 1))
        return held[-1]

    async with opened(tmp_path / "pool", hold) as engine:
        job = await held_clones(engine, held)
        if not restarted:
            await refused_names(engine)
            held[0].let_go()
            assert (await ended(engine, await engine.api.job_show(job.job))).state == "Completed"
            assert await head_of(engine, "two") == b"y" * 4096
            await engine.api.volume_delete("two")
            await make(engine, "two")  # it is anybody's again
    if not restarted:
        return
    async with opened(tmp_path / "pool", hold) as engine:
        del held[0]
        await held[0].holding.wait()
        await refused_names(engine)
        assert (await engine.api.job_cancel(job.job)).state == "Terminated"
        assert [info.name for info in await engine.api.volume_list()] == ["a"]
        await make(engine, "two")


async def refused_names(engine):
    with pytest.raises(AlreadyExists):
        await engine.api.volume_create("two", MIB)
    with pytest.raises(AlreadyExists):
        await engine.api.replica_create("a", "two")
    with pytest.raises(AlreadyExists):
        await engine.api.clone_copy("a", None, "two")
    with pytest.raises(AlreadyExists):
        await engine.api.clone_create("a", None, "two")


async def test_what_was_there_before_is_not_taken_back(engine):
    """Somebody had begun a volume of that name when the order chose it."""
    await make(engine, "a")
    real = engine.api.clone_copy

    async def late(source, snapshot, name, **options):
        with engine.pool.reserved.taking({("", name)}):
            await make(engine, name, data=b"z" * 4096)
        return await real(source, snapshot, name, **options)

    engine.api.clone_copy = late
    stopped = await ordered(engine, CopyOrder("clone", "a", element_name="one"))
    assert (stopped.state, stopped.error) == ("Exception", "AlreadyExists")
    assert await head_of(engine, "one") == b"z" * 4096


async def test_a_snapshot_that_an_order_is_about_to_take_is_its_own(tmp_path):
    async with opened(tmp_path / "pool") as engine:
        await make(engine, "a")
        real, begun = engine.api.snapshot_create, asyncio.Event()

        async def held(*_):
            begun.set()
            await asyncio.Event().wait()

        engine.api.snapshot_create = held
        job = await engine.api.copies_make([CopyOrder("snapshot", "a", element_name="s")])
        await begun.wait()
        with pytest.raises(AlreadyExists):
            await real("a", "s")
        await real("a", "t")
    async with opened(tmp_path / "pool") as engine:
        done = await ended(engine, await engine.api.job_show(job.job))
        assert done.state == "Completed", done.message
        assert {info.name for info in await engine.api.snapshot_list("a")} == {"s", "t"}


async def test_a_volume_that_the_end_of_the_daemon_left_without_its_mirror_is_made_anew(tmp_path):
    mirror = asdict(CopyOrder("mirror", "a", name="m", terms=MirrorTerms()))
    document = {
        "orders": [mirror],
        "source_guids": [None],
        "group": None,
        "at_once": False,
        "on_error": "stop",
        "until": "synchronized",
    }
    async with opened(tmp_path / "pool") as engine:
        await make(engine, "a")
        job = await ordered(engine, CopyOrder("snapshot", "a"))
        await engine.api.volume_create("m", MIB)
        await engine.pool.catalog.relations.put_order(job.job, document)
    async with opened(tmp_path / "pool") as engine:
        done = await ended(engine, await engine.api.job_show(job.job))
        assert done.state == "Completed", done.message
        assert (await engine.api.replica_show("m")).copy_state == "Synchronized"
        assert await head_of(engine, "m") == b"x" * 4096


def holding(held):
    def hold(mover):
        held.append(HeldMover(mover, 1))
        return held[-1]

    return hold


async def much(engine, name):
    """A volume that takes a while to be copied."""
    await make(engine, name, size=64 * MIB)
    for at in range(0, 64, 2):
        await engine.pool.volume(name).write(at * MIB, b"y" * MIB)


@pytest.mark.parametrize("verb", ["fracture", "detach"])
async def test_a_mirror_that_was_taken_over_is_not_taken_back(tmp_path, verb):
    held = []
    async with opened(tmp_path / "pool", holding(held)) as engine:
        await make(engine, "small")
        await much(engine, "a")
        orders = [CopyOrder("mirror", "small", element_name="s"), CopyOrder("mirror", "a", element_name="m")]
        job = await engine.api.copies_make(orders)
        await held[0].holding.wait()
        assert (await engine.api.replica_show("m")).copy_state == "Unsynchronized"
        await getattr(engine.api, f"replica_{verb}")("m")
        done = await ended(engine, job)
        assert done.state == "Exception"
        assert [info.name for info in await engine.api.volume_list()] == ["a", "m", "small"]  # s was made by the job
        assert [info.name for info in await engine.api.replica_list()] == (["m"] if verb == "fracture" else [])


async def test_a_group_of_any_name_is_no_orders(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("order-1", ["a"])
    done = await ordered(engine, CopyOrder("clone", "a"), CopyOrder("clone", "b"), at_once=True)
    assert done.state == "Completed", done.message
    assert [info.name for info in await engine.api.group_list()] == ["order-1"]


async def test_two_copies_of_a_group_at_the_same_time_have_names_of_their_own(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    both = [CopyOrder("snapshot", "a"), CopyOrder("snapshot", "b")]
    group = GroupOrder("Night", source_group="g", consistent=True)
    first = await engine.api.copies_make(both, group=group)
    second = await engine.api.copies_make(both, group=group)
    for job in (first, second):
        done = await ended(engine, job)
        assert done.state == "Completed", done.message
    assert {shot.name for shot in await engine.api.group_snapshot_list("g")} == {"night", "night-2"}


@pytest.mark.parametrize("target", ["t", None])
async def test_a_mirror_that_was_detached_before_the_end_of_the_daemon_is_not_begun_again(tmp_path, target):
    held = []
    async with opened(tmp_path / "pool", holding(held)) as engine:
        await make(engine, "small", "t", data=b"old." * 1024)
        await much(engine, "a")
        first = CopyOrder("mirror", "small", element_name="m", target=target, terms=MirrorTerms())
        job = await engine.api.copies_make([first, CopyOrder("mirror", "a")])
        await held[0].holding.wait()
        await engine.api.replica_detach("m")
        await engine.pool.volume(target or "m").write(0, b"mine" * 1024)
    async with opened(tmp_path / "pool") as engine:
        done = await ended(engine, await engine.api.job_show(job.job))
        assert done.state == "Exception"
        assert await head_of(engine, target or "m") == b"mine" * 1024
        assert await engine.api.replica_list() == []


async def test_a_whole_copy_onto_an_existing_volume_is_not_made_again(tmp_path):
    held = []
    async with opened(tmp_path / "pool", holding(held)) as engine:
        await make(engine, "small", "t", "u")
        await much(engine, "a")
        await engine.api.volume_resize("u", 64 * MIB)
        orders = [CopyOrder("clone", "small", target="t"), CopyOrder("clone", "a", target="u")]
        job = await engine.api.copies_make(orders)
        await held[0].holding.wait()
        assert [info.target for info in await engine.api.replica_list()] == ["u"]
        await engine.pool.volume("t").write(0, b"mine" * 1024)
    async with opened(tmp_path / "pool") as engine:
        done = await ended(engine, await engine.api.job_show(job.job))
        assert done.state == "Completed", done.message
        assert await head_of(engine, "t") == b"mine" * 1024
        assert len(await engine.api.relation_list()) == 2


async def test_names_stay_promised_while_a_source_is_not_served(tmp_path):
    held = []
    async with opened(tmp_path / "pool", holding(held)) as engine:
        await much(engine, "a")
        await engine.api.copies_make([CopyOrder("clone", "a", element_name=name) for name in ("one", "two")])
        await held[0].holding.wait()
    file = tmp_path / "pool" / "volumes" / "a.tvol"
    whole = file.read_bytes()
    file.write_bytes(b"damaged" + whole[7:4096])
    async with opened(tmp_path / "pool") as engine:
        with pytest.raises(AlreadyExists):
            await engine.api.volume_create("two", MIB)


async def test_who_suspends_a_mirror_that_is_waited_for_has_it_suspended(monkeypatch):
    monkeypatch.setattr(mirror_wait, "POLL_S", 0)
    states = ["Unsynchronized", "Suspended", "Suspended", "Unsynchronized", "Synchronized"]
    resumed = []

    async def show(name):
        return SimpleNamespace(copy_state=states.pop(0), percent_synced=0, mode="async")

    async def resume(name):
        resumed.append(len(states))

    verbs = mirror_wait.MirrorVerbs(show, resume, resume)
    await mirror_wait.until_synchronized(verbs, mirror_wait.Rest(), "m", lambda percent: None)
    assert (states, resumed) == ([], [])
    states += ["Suspended", "Unsynchronized", "Synchronized"]  # as the end of the daemon left it
    await mirror_wait.until_synchronized(verbs, mirror_wait.Rest(), "m", lambda percent: None)
    assert resumed == [2]


async def test_a_mirror_whose_roles_were_reversed_is_not_taken_back(tmp_path):
    held = []
    async with opened(tmp_path / "pool", holding(held)) as engine:
        await make(engine, "small")
        await much(engine, "a")
        orders = [
            CopyOrder("mirror", "small", element_name="s", terms=MirrorTerms()),
            CopyOrder("mirror", "a", element_name="m"),
        ]
        job = await engine.api.copies_make(orders)
        await held[0].holding.wait()
        await mirror_wait.until_synchronized(
            mirror_wait.of_replica(engine.api), mirror_wait.Rest(), "s", lambda _percent: None
        )
        await engine.api.replica_reverse("s")  # s is the disk from now on
        await engine.pool.volume("s").write(0, b"n" * 4096)
        await engine.api.replica_abort("m")
        assert (await ended(engine, job)).state == "Exception"
        assert [info.name for info in await engine.api.volume_list()] == ["a", "s", "small"]
        assert await head_of(engine, "s") == b"n" * 4096
        assert [(info.source, info.target) for info in await engine.api.replica_list()] == [("s", "small")]


async def test_an_order_ends_when_its_mirror_is_restored_from(engine):
    await make(engine, "a")
    job = await ordered(engine, CopyOrder("mirror", "a", element_name="m"))
    assert job.state == "Completed", job.message
    await ended(engine, await engine.api.replica_restore("m"))
    assert (await engine.api.replica_show("m")).copy_state == "Restored"
    verbs = mirror_wait.of_replica(engine.api)
    with pytest.raises(InvalidState, match="Restored"):
        async with asyncio.timeout(20):
            await mirror_wait.until_synchronized(verbs, mirror_wait.Rest(), "m", lambda _percent: None)


async def test_a_clone_is_of_the_snapshot_that_was_there_when_it_was_ordered(tmp_path):
    held = []
    async with opened(tmp_path / "pool", holding(held)) as engine:
        await make(engine, "b")
        await engine.api.snapshot_create("b", "s")
        await much(engine, "a")
        orders = [CopyOrder("clone", "a", element_name="first"), CopyOrder("clone", "b", snapshot="s")]
        job = await engine.api.copies_make(orders)
        await held[0].holding.wait()
        await engine.api.snapshot_delete("b", "s")
        await engine.pool.volume("b").write(0, b"y" * 4096)
        await engine.api.snapshot_create("b", "s")  # another one
        held[0].let_go()
        done = await ended(engine, job)
        assert (done.state, done.error) == ("Exception", "NotFound")
        assert [info.name for info in await engine.api.volume_list()] == ["a", "b"]
