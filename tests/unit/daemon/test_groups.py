"""Consistency groups on a real pool in a temporary folder."""

import asyncio
from pathlib import Path

import pytest

from engine.errors import (
    AlreadyExists,
    InUse,
    InvalidArgument,
    InvalidState,
    MediumError,
    NotFound,
    StoreCorrupt,
    StoreFailed,
)
from engine.groups import MAX_GROUPS, MAX_MEMBERS
from engine.tvol.file import TvolFile
from tests.support.engine import PREFIX, Engine, opened

MIB = 1 << 20


@pytest.fixture
async def engine(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        yield engine


async def make(engine: Engine, *names: str) -> None:
    for name in names:
        await engine.api.volume_create(name, MIB)


async def write(engine: Engine, text: str, *volumes: str) -> None:
    for name in volumes:
        await engine.pool.volume(name).write(0, memoryview(text.encode() * 512))


async def read(engine: Engine, volume: str, snapshot: str | None = None) -> str:
    view = bytearray(512)
    found = engine.pool.volume(volume)
    await (found if snapshot is None else engine.pool.snapshot(found, snapshot)).read(0, memoryview(view))
    assert len(set(view)) == 1
    return chr(view[0])


async def test_a_group_snapshot_is_one_of_each_member_and_says_so(engine):
    await make(engine, "a", "b", "other")
    await engine.api.snapshot_create("a", "own")
    await engine.api.clone_create("a", "own", "c")  # in the family of a
    group = await engine.api.group_create("g", ["a", "b", "c"])
    assert (group.members, group.size_bytes, group.state, group.snapshots) == (["a", "b", "c"], 3 * MIB, "ok", 0)
    await write(engine, "1", "a", "b", "c")
    info = await engine.api.group_snapshot_create("g", "s", expose=True)
    await write(engine, "2", "a", "b", "c")
    assert [await read(engine, name, "s") for name in "abc"] == ["1", "1", "1"]
    assert [member.target for member in info.members] == [f"{PREFIX}:{name}.snap.s" for name in "abc"]
    assert await engine.api.group_snapshot_list("g") == [info]
    assert [(each.name, each.group) for each in await engine.api.snapshot_list("a")] == [("own", None), ("s", "g@s")]
    assert (await engine.api.group_show("g")).snapshots == 1
    assert await engine.api.snapshot_list("other") == []


async def test_groups_and_their_snapshots_survive_a_restart(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await make(engine, "a", "b")
        group = await engine.api.group_create("g", ["b", "a"])
        snapshot = await engine.api.group_snapshot_create("g", "s")
    async with opened(tmp_path / "pool") as engine:
        assert await engine.api.group_list() == [await engine.api.group_show("g")]
        assert (await engine.api.group_show("g")).members == group.members == ["b", "a"]
        assert await engine.api.group_snapshot_list("g") == [snapshot]


async def test_a_member_of_a_group_snapshot_goes_with_it_only(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.group_snapshot_create("g", "s", expose=True)
    with pytest.raises(InUse, match="group snapshot g@s"):
        await engine.api.snapshot_delete("a", "s", force=True)
    with pytest.raises(InUse, match="group g"):
        await engine.api.volume_delete("a", force=True)
    await engine.api.group_remove("g", ["a"])
    with pytest.raises(InUse, match="group snapshot g@s"):
        await engine.api.volume_delete("a", force=True)
    engine.exports.log_in(f"{PREFIX}:b.snap.s")
    with pytest.raises(InUse, match="example:host"):
        await engine.api.group_snapshot_delete("g", "s")
    assert len(await engine.api.snapshot_list("a")) == 1
    await engine.api.group_snapshot_delete("g", "s", force=True)
    assert await engine.api.snapshot_list("a") == await engine.api.snapshot_list("b") == []
    assert await engine.api.group_snapshot_list("g") == []
    assert f"{PREFIX}:a.snap.s" not in engine.exports.shown
    await engine.api.volume_delete("a")


async def test_a_group_snapshot_with_a_clone_or_a_hold_stays(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.group_snapshot_create("g", "s")
    await engine.api.clone_create("b", "s", "c")
    with pytest.raises(InUse, match="clones"):
        await engine.api.group_snapshot_delete("g", "s", force=True)
    await engine.api.volume_delete("c")
    volume = engine.pool.volume("b")
    snapshot = engine.pool.snapshot(volume, "s")
    await volume.head.store.notes.hold(snapshot, "auditor", None)
    with pytest.raises(InUse, match="auditor"):
        await engine.api.group_snapshot_delete("g", "s", force=True)
    assert [len(await engine.api.snapshot_list(name)) for name in "ab"] == [1, 1]
    await volume.head.store.notes.release(snapshot, "auditor")
    await engine.api.group_snapshot_delete("g", "s")


async def test_what_makes_no_sense_is_refused(engine):
    await make(engine, "a", "b")
    with pytest.raises(InvalidArgument, match="once"):
        await engine.api.group_create("g", ["a", "a"])
    with pytest.raises(InvalidArgument):
        await engine.api.group_create("G", ["a"])
    with pytest.raises(NotFound):
        await engine.api.group_create("g", ["a", "x"])
    await engine.api.group_create("g", ["a"])
    with pytest.raises(AlreadyExists):
        await engine.api.group_create("g", ["b"])
    with pytest.raises(InUse, match="already"):
        await engine.api.group_add("g", ["a"])
    with pytest.raises(NotFound):
        await engine.api.group_remove("g", ["b"])
    assert (await engine.api.group_remove("g", ["a"])).members == []
    with pytest.raises(InvalidState, match="empty"):
        await engine.api.group_snapshot_create("g", "s")
    await engine.api.group_add("g", ["a"])
    for call in (engine.api.group_show, engine.api.group_snapshot_list, engine.api.group_delete):
        with pytest.raises(NotFound):
            await call("x")
    with pytest.raises(NotFound):
        await engine.api.group_snapshot_delete("g", "s")
    with pytest.raises(NotFound):
        await engine.api.group_rollback("g", "s")
    assert [info.members for info in await engine.api.group_list()] == [["a"]]


async def test_a_name_that_one_member_has_already_freezes_none(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.snapshot_create("b", "s")
    with pytest.raises(AlreadyExists, match="b@s"):
        await engine.api.group_snapshot_create("g", "s")
    assert await engine.api.snapshot_list("a") == []


async def test_as_many_members_as_there_may_be(tmp_path: Path):
    async with opened(tmp_path / "pool") as engine:
        await make(engine, "v0")
        await engine.api.snapshot_create("v0", "seed")
        names = ["v0"]
        for number in range(1, MAX_MEMBERS + 1):
            names.append(f"v{number}")
            await engine.api.clone_create("v0", "seed", names[-1])
        with pytest.raises(InvalidArgument, match=f"{MAX_MEMBERS} members at most"):
            await engine.api.group_create("g", names)
        await engine.api.group_create("g", names[:-1])
        with pytest.raises(InvalidArgument, match=f"{MAX_MEMBERS} members at most"):
            await engine.api.group_add("g", names[-1:])
        info = await engine.api.group_snapshot_create("g", "s")
        assert len(info.members) == MAX_MEMBERS
    async with opened(tmp_path / "pool") as engine:
        (again,) = await engine.api.group_snapshot_list("g")
        assert again == info


async def test_as_many_groups_as_there_may_be(engine):
    await make(engine, "a")
    for number in range(MAX_GROUPS):
        await engine.api.group_create(f"g{number}", ["a"])
    with pytest.raises(InvalidArgument, match=str(MAX_GROUPS)):
        await engine.api.group_create("more", ["a"])


async def test_a_group_with_snapshots_is_deleted_by_force_only(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.group_snapshot_create("g", "s")
    with pytest.raises(InUse, match="--force"):
        await engine.api.group_delete("g")
    await engine.api.group_delete("g", force=True)
    assert await engine.api.snapshot_list("a") == []
    assert await engine.api.group_list() == []


async def test_rollback_of_all_members_keeps_what_was(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await write(engine, "1", "a", "b")
    await engine.api.group_snapshot_create("g", "s")
    await write(engine, "2", "a", "b")
    events: list = []
    for name in "ab":
        engine.pool.volume(name).subscribe(lambda event, name=name: events.append((name, event.name)))
    kept = await engine.api.group_rollback("g", "s")
    assert [await read(engine, name) for name in "ab"] == ["1", "1"]
    assert [await read(engine, name, kept.name) for name in "ab"] == ["2", "2"]
    assert sorted(events) == [("a", "CONTENT_REPLACED"), ("b", "CONTENT_REPLACED")]
    assert kept.name == "before-rollback-1"
    await write(engine, "3", "a", "b")
    again = await engine.api.group_rollback("g", kept.name)
    assert (again.name, await read(engine, "a")) == ("before-rollback-2", "2")


async def test_rollback_to_another_size_tells_it(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.snapshot_create("b", "small")
    await engine.api.group_snapshot_create("g", "s")
    for name in "ab":
        await engine.api.volume_resize(name, 2 * MIB)
    events: list = []
    for name in "ab":
        engine.pool.volume(name).subscribe(lambda event, name=name: events.append((name, event.name)))
    await engine.api.group_rollback("g", "s")
    assert [engine.pool.volume(name).size_bytes for name in "ab"] == [MIB, MIB]
    assert events == [(name, each) for name in "ab" for each in ("RESIZED", "CONTENT_REPLACED")]
    await engine.api.volume_resize("b", 2 * MIB)
    events.clear()
    await engine.api.snapshot_rollback("b", "small")
    assert events == [("b", "RESIZED"), ("b", "CONTENT_REPLACED")]


async def test_rollback_under_sessions_needs_force(engine):
    await engine.api.volume_create("a", MIB, expose=True)
    await make(engine, "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.group_snapshot_create("g", "s")
    engine.exports.log_in(f"{PREFIX}:a")
    with pytest.raises(InUse, match="example:host"):
        await engine.api.group_rollback("g", "s")
    await engine.api.group_rollback("g", "s", force=True)


async def test_rollback_needs_the_members_of_the_snapshot(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a"])
    await engine.api.group_snapshot_create("g", "s")
    await engine.api.group_add("g", ["b"])
    with pytest.raises(InvalidState, match="same members"):
        await engine.api.group_rollback("g", "s")


async def test_a_clone_is_a_group_of_linked_clones(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await write(engine, "1", "a", "b")
    await engine.api.group_snapshot_create("g", "s")
    await write(engine, "2", "a", "b")
    info = await engine.api.group_clone("g", "s", "test", expose=True)
    assert info.members == ["test.a", "test.b"]
    assert [await read(engine, f"test.{name}") for name in "ab"] == ["1", "1"]
    assert {f"{PREFIX}:test.a", f"{PREFIX}:test.b"} <= set(engine.exports.shown)
    now = await engine.api.group_clone("g", None, "now")
    assert [await read(engine, name) for name in now.members] == ["2", "2"]
    assert [each.name for each in await engine.api.group_snapshot_list("g")] == ["s", "now"]
    with pytest.raises(AlreadyExists):
        await engine.api.group_clone("g", "s", "now")
    await make(engine, "next.b")
    with pytest.raises(AlreadyExists):
        await engine.api.group_clone("g", "s", "next")
    assert "next.a" not in [volume.name for volume in engine.pool.volumes()]


async def test_a_missing_file_leaves_the_others_served_and_comes_back_complete(tmp_path: Path):
    pool, away = tmp_path / "pool", tmp_path / "away.tvol"
    async with opened(pool) as engine:
        await make(engine, "a", "b")
        await engine.api.group_create("g", ["a", "b"])
        await write(engine, "1", "a", "b")
        for name in ("s", "gone"):
            await engine.api.group_snapshot_create("g", name)
    (pool / "volumes" / "b.tvol").rename(away)
    async with opened(pool) as engine:
        group = await engine.api.group_show("g")
        assert (group.state, group.reason, group.members) == ("degraded", "not served: b", ["a", "b"])
        assert [each.state for each in await engine.api.group_snapshot_list("g")] == ["incomplete", "incomplete"]
        assert [reason for reason in (await engine.api.status()).reasons if reason.startswith("group g:")]
        with pytest.raises(StoreCorrupt):
            await engine.api.group_snapshot_create("g", "t")
        with pytest.raises(StoreCorrupt):
            await engine.api.group_rollback("g", "s")
        with pytest.raises(InvalidState):
            await engine.api.group_clone("g", "s", "c")
        with pytest.raises(InUse):
            await engine.api.volume_delete("b", force=True)
        assert await read(engine, "a", "s") == "1"
        await engine.api.group_snapshot_delete("g", "gone")
        assert [each.name for each in await engine.api.snapshot_list("a")] == ["s"]
    away.rename(pool / "volumes" / "b.tvol")
    async with opened(pool) as engine:
        assert [(each.name, each.state) for each in await engine.api.group_snapshot_list("g")] == [("s", "ok")]
        assert [each.name for each in await engine.api.snapshot_list("b")] == ["s"]
        assert (await engine.api.group_show("g")).state == "ok"


async def test_a_damaged_member_can_be_taken_out_and_removed(tmp_path: Path):
    pool = tmp_path / "pool"
    async with opened(pool) as engine:
        await make(engine, "a", "b")
        await engine.api.group_create("g", ["a", "b"])
        await engine.api.group_snapshot_create("g", "s")
    (pool / "volumes" / "b.tvol").write_bytes(b"\0" * 4096)
    async with opened(pool) as engine:
        await engine.api.group_snapshot_delete("g", "s")
        await engine.api.group_remove("g", ["b"])
        await engine.api.volume_delete("b", force=True)
        assert (await engine.api.group_show("g")).state == "ok"
    async with opened(pool) as engine:
        assert await engine.pool.catalog.groups.group_snapshots() == []


@pytest.mark.parametrize("method", ["add_group_snapshot", "doom_group_snapshot", "begin_rollback", "add_group"])
async def test_a_catalogue_that_cannot_be_written_leaves_nothing_half_done(engine, method, monkeypatch):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await write(engine, "1", "a", "b")
    await engine.api.group_snapshot_create("g", "s")
    await write(engine, "2", "a", "b")

    async def full(*arguments):
        raise MediumError("the pool's catalogue cannot be written")

    monkeypatch.setattr(engine.pool.catalog.groups, method, full)
    if method == "add_group_snapshot":
        with pytest.raises(MediumError):
            await engine.api.group_snapshot_create("g", "t")
        assert [each.name for each in await engine.api.snapshot_list("a")] == ["s"]
    elif method == "doom_group_snapshot":
        with pytest.raises(MediumError):
            await engine.api.group_snapshot_delete("g", "s")
        assert [each.state for each in await engine.api.group_snapshot_list("g")] == ["ok"]
        assert [each.group for each in await engine.api.snapshot_list("a")] == ["g@s"]
    elif method == "begin_rollback":
        with pytest.raises(MediumError):
            await engine.api.group_rollback("g", "s")
        assert [await read(engine, name) for name in "ab"] == ["2", "2"]
        assert [each.name for each in await engine.api.group_snapshot_list("g")] == ["s", "before-rollback-1"]
        await write(engine, "3", "a", "b")  # nobody waits for ever
    else:
        with pytest.raises(MediumError):
            await engine.api.group_clone("g", "s", "c")
        assert [volume.name for volume in engine.pool.volumes()] == ["a", "b"]
    monkeypatch.undo()
    await engine.api.group_snapshot_create("g", "u")


async def test_what_a_member_could_not_lose_yet_is_seen_by_nobody_after_a_restart_either(tmp_path: Path, monkeypatch):
    pool = tmp_path / "pool"
    real = TvolFile.delete_snapshot

    async def refuses(self, snapshot):
        if self.path.name == "b.tvol":
            raise MediumError("not now")
        await real(self, snapshot)

    with monkeypatch.context() as patch:
        patch.setattr(TvolFile, "delete_snapshot", refuses)
        async with opened(pool) as engine:
            await make(engine, "a", "b")
            await engine.api.group_create("g", ["a", "b"])
            await engine.api.group_snapshot_create("g", "s")
            await engine.api.group_snapshot_delete("g", "s")
            assert await engine.api.snapshot_list("b") == []
        async with opened(pool) as engine:
            assert await engine.api.snapshot_list("b") == []
            with pytest.raises(NotFound):
                await engine.api.clone_create("b", "s", "c")
    async with opened(pool) as engine:
        assert engine.pool.volume("b").head.store.snapshots() == []
        assert await engine.pool.catalog.groups.group_snapshots() == []


async def test_a_hold_that_comes_while_a_deletion_waits_its_turn_counts(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.group_snapshot_create("g", "s")
    async with engine.pool.groups._changing:
        deletion = asyncio.create_task(engine.api.group_snapshot_delete("g", "s"))
        await asyncio.sleep(0)
        await engine.api.snapshot_hold("b", "s", "audit")
    with pytest.raises(InUse, match="b@s is held by audit"):
        await deletion
    assert [info.state for info in await engine.api.group_snapshot_list("g")] == ["ok"]
    await engine.api.snapshot_release("b", "s", "audit")
    await engine.api.group_snapshot_delete("g", "s")


async def test_initiators_of_a_member_are_told_though_anothers_file_fails_at_the_rollback(engine, monkeypatch):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await write(engine, "1", "a", "b")
    await engine.api.group_snapshot_create("g", "s")
    await write(engine, "2", "a", "b")
    real = TvolFile.replace_content

    async def fails(self, head, to, kept):
        if self.path.name == "b.tvol":
            raise StoreFailed("not now")
        await real(self, head, to, kept)

    monkeypatch.setattr(TvolFile, "replace_content", fails)
    events: list[str] = []
    engine.pool.volume("a").subscribe(lambda event: events.append(event.name))
    with pytest.raises(StoreFailed):
        await engine.api.group_rollback("g", "s")
    assert (await read(engine, "a"), events) == ("1", ["CONTENT_REPLACED"])


async def test_snapshots_are_listed_while_one_of_a_group_waits_for_its_decision(engine, monkeypatch):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.snapshot_create("a", "own")
    real = engine.pool.catalog.groups.add_group_snapshot
    seen = []

    async def decide(row):
        seen.extend(info.name for info in await engine.api.snapshot_list("a"))
        await real(row)

    monkeypatch.setattr(engine.pool.catalog.groups, "add_group_snapshot", decide)
    await engine.api.group_snapshot_create("g", "s")
    assert seen == ["own"]
    assert [(info.name, info.parent) for info in await engine.api.snapshot_list("a")] == [("own", None), ("s", "own")]


async def test_a_member_that_could_not_lose_its_snapshot_yet_can_be_deleted(engine, monkeypatch):
    await make(engine, "b")
    await engine.api.group_create("g", ["b"])
    await engine.api.group_snapshot_create("g", "s")

    async def refuses(*_args):
        raise MediumError("not now")

    monkeypatch.setattr(TvolFile, "delete_snapshot", refuses)
    await engine.api.group_delete("g", force=True)
    await engine.api.volume_delete("b")
    assert list((engine.pool.path / "volumes").glob("*.tvol")) == []


async def test_a_group_rolled_back_to_before_its_member_left_its_family_is_a_clone_again(engine):
    await make(engine, "a", "x")
    await engine.api.snapshot_create("a", "s")
    await engine.api.clone_create("a", "s", "c")
    await engine.api.group_create("g", ["c"])
    await engine.api.group_snapshot_create("g", "old")
    job = await engine.api.replica_attach("x", "c", name="r")  # with the first round c has a content of its own
    while job.finished_at is None:
        job = await engine.api.job_wait(job.job, after_version=job.version)
    await engine.api.replica_detach("r")
    assert (await engine.api.volume_show("c")).origin is None
    assert await engine.api.clone_list() == []
    await engine.api.group_rollback("g", "old")
    assert (await engine.api.volume_show("c")).origin == "a@s"
    with pytest.raises(InUse, match="linked clones"):
        await engine.api.volume_delete("a", force=True)
    assert [each.name for each in await engine.api.snapshot_list("a")] == ["s"], "nothing went before it was refused"


async def test_a_group_rollback_that_waited_while_a_member_became_a_target_is_refused(engine):
    await make(engine, "a", "b", "x")
    await engine.api.group_create("g", ["a", "b"])
    await engine.api.group_snapshot_create("g", "s")
    await write(engine, "2", "a", "b", "x")
    async with engine.pool.volume("b").quiesced():
        rollback = asyncio.create_task(engine.api.group_rollback("g", "s"))
        for _ in range(8):
            await asyncio.sleep(0)
        assert engine.pool.volume("a").is_quiesced
        await engine.api.replica_attach("x", "a", name="r")
    with pytest.raises(InUse, match="target of replica r"):
        await rollback
    await engine.api.replica_detach("r")


async def test_a_group_that_cannot_be_deleted_keeps_all_its_snapshots(engine):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])
    for name in ("one", "two"):
        await engine.api.group_snapshot_create("g", name)
    await engine.api.snapshot_hold("b", "two", "audit")
    with pytest.raises(InUse, match="audit"):
        await engine.api.group_delete("g", force=True)
    assert [each.name for each in await engine.api.group_snapshot_list("g")] == ["one", "two"]


async def test_group_clones_that_fail_leave_no_snapshot(engine, monkeypatch):
    await make(engine, "a", "b")
    await engine.api.group_create("g", ["a", "b"])

    async def full(*arguments):
        raise MediumError("the pool's catalogue cannot be written")

    monkeypatch.setattr(engine.pool.catalog.groups, "add_group", full)
    with pytest.raises(MediumError):
        await engine.api.group_clone("g", None, "now")
    assert await engine.api.group_snapshot_list("g") == []
    assert await engine.api.snapshot_list("a") == []
