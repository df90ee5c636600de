"""What has changed, told to whoever watches: by the engine's API, over restarts and crowds."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from engine.api import RECORDS_MAX, MirrorTerms
from engine.catalog_changes import CHANGE_HISTORY_MAX, ChangeRow, ChangeTables
from engine.errors import InvalidArgument, NotFound, OutOfSpace
from tests.support.engine import opened

if TYPE_CHECKING:
    from pathlib import Path

    from engine.api import ChangeInfo, EngineApi

MIB = 1 << 20


class Feed:
    """The changes that a watcher is told, one after the other."""

    def __init__(self, api: EngineApi, position: int) -> None:
        self._api = api
        self.position = position
        self._there: list[ChangeInfo] = []

    async def next(self, kind: str, verb: str) -> ChangeInfo:
        """The next one of that kind; what else comes before it is passed over."""
        while True:
            while not self._there:
                self._there = (await self._api.change_list(self.position, timeout_s=30)).changes
                assert self._there, f"no {kind} was {verb}"
            change = self._there.pop(0)
            assert change.number == self.position + 1
            self.position = change.number
            if (change.kind, change.verb) == (kind, verb):
                return change


async def test_nothing_is_recorded_while_nobody_watches(tmp_path: Path):
    async with opened(tmp_path) as engine:
        await engine.api.volume_create("early", MIB)
        position = await engine.api.change_watch("me")
        assert (await engine.api.change_list(0)).changes == []
        await engine.api.volume_create("late", MIB)
        change = await Feed(engine.api, position).next("volume", "created")
        assert change.after is not None
        assert change.after["name"] == "late"
        await engine.api.change_unwatch("me")
        await engine.api.volume_create("later", MIB)
        assert (await engine.api.change_list(0)).changes == []
        with pytest.raises(NotFound):
            await engine.api.change_done("me", 1)


async def test_volumes_and_snapshots_come_and_go(tmp_path: Path):
    async with opened(tmp_path) as engine:
        api = engine.api
        feed = Feed(api, await api.change_watch("me"))
        info = await api.volume_create("v", MIB)
        assert (await feed.next("volume", "created")).subject == info.volume_id
        shot = await api.snapshot_create("v", "s")
        made = await feed.next("snapshot", "created")
        assert made.subject == shot.guid
        assert made.after is not None
        assert made.after["volume_id"] == info.volume_id
        await api.group_create("g", ["v"])
        await api.group_snapshot_create("g", "t")
        assert (await feed.next("snapshot", "created")).after["name"] == "t"
        await api.snapshot_rollback("v", "s")
        assert (await feed.next("snapshot", "created")).after["name"] == "before-rollback-1"
        await api.snapshot_delete("v", "s")
        gone = await feed.next("snapshot", "deleted")
        assert (gone.subject, gone.after) == (shot.guid, None)
        await api.group_delete("g", force=True)
        assert (await feed.next("snapshot", "deleted")).before["name"] == "t"
        await api.clone_create("v", None, "c")
        assert (await feed.next("volume", "created")).after["name"] == "c"
        await api.volume_delete("c")
        assert (await feed.next("volume", "deleted")).before["origin"] == "v@c"


async def test_a_volume_goes_with_all_its_snapshots(tmp_path: Path):
    async with opened(tmp_path) as engine:
        api = engine.api
        await api.volume_create("v", MIB)
        for name in ("a", "b"):
            await api.snapshot_create("v", name)
        feed = Feed(api, await api.change_watch("me"))
        await api.volume_delete("v", force=True)
        names = [(await feed.next("snapshot", "deleted")).before["name"] for _ in "ab"]
        assert names == ["a", "b"]
        assert (await feed.next("volume", "deleted")).before["name"] == "v"


async def test_jobs_and_the_relation_of_a_clone(tmp_path: Path):
    async with opened(tmp_path) as engine:
        api = engine.api
        source = await api.volume_create("v", MIB)
        feed = Feed(api, await api.change_watch("me"))
        job = await api.clone_copy("v", None, "copy")
        begun = await feed.next("job", "created")
        assert (begun.subject, begun.before, begun.after["state"]) == (str(job.job), None, "Running")
        while True:
            change = await feed.next("job", "modified")
            if change.after["state"] == "Completed":
                break
        assert change.before["state"] == "Running"
        await api.volume_delete("copy")
        assert (await feed.next("volume", "deleted")).before["name"] == "copy"
        assert source.volume_id


async def test_a_mirror_from_its_making_to_its_end(tmp_path: Path):
    async with opened(tmp_path) as engine:
        api = engine.api
        await api.volume_create("v", MIB)
        feed = Feed(api, await api.change_watch("me"))
        job = await api.replica_create("v", "m", MirrorTerms("adaptive"))
        assert (await feed.next("replica", "created")).subject == "m"
        await api.job_wait(job.job, after_version=1 << 30, timeout_s=30)
        while True:
            change = await feed.next("replica", "modified")
            if change.after["copy_state"] == "Synchronized":
                break
        await api.replica_fracture("m")
        change = await feed.next("replica", "modified")
        assert (change.before["copy_state"], change.after["copy_state"]) == ("Synchronized", "Fractured")
        await api.replica_detach("m")
        assert (await feed.next("replica", "deleted")).before["copy_state"] == "Fractured"


async def test_what_changes_over_a_restart_is_told(tmp_path: Path):
    async with opened(tmp_path) as engine:
        api = engine.api
        await api.volume_create("v", MIB)
        await api.replica_create("v", "m")
        position = await api.change_watch("me")
        release = asyncio.Event()

        async def work(_: object) -> dict[str, object]:
            await release.wait()
            return {}

        job = await engine.pool.jobs.start("clone", "v", work)
        feed = Feed(api, position)
        assert (await feed.next("job", "created")).subject == str(job.job_id)
    async with opened(tmp_path) as engine:
        assert await engine.api.change_watch("me") == position
        feed = Feed(engine.api, feed.position)
        ended = await feed.next("job", "modified")
        while ended.subject != str(job.job_id):  # that of the replica may have ended before, or with it
            ended = await feed.next("job", "modified")
        assert (ended.before["state"], ended.after["state"]) == ("Running", "Exception")


async def test_what_is_done_with_goes_and_what_is_too_old_too(tmp_path: Path):
    async with opened(tmp_path) as engine:
        api, tables = engine.api, engine.pool.catalog.changes
        position = await api.change_watch("me")
        row = ChangeRow(0, 0.0, "volume", "created", "x", None, {})
        newest = await tables.add([row] * 10, [])
        assert newest == position + 10
        await api.change_done("me", position + 7)
        assert [each.number for each in await tables.after(0, 100)] == [position + n for n in (8, 9, 10)]
        newest = await tables.add([row] * (CHANGE_HISTORY_MAX + 5), [])
        assert (await tables.after(0, 1))[0].number == newest - CHANGE_HISTORY_MAX + 1


async def test_records_are_kept_and_limited(tmp_path: Path):
    async with opened(tmp_path) as engine:
        await engine.api.record_put("filter", {"a": "1", "b": "2"})
        await engine.api.record_put("filter", {"a": None, "c": "3"})
        await engine.api.record_put("other", {"a": "x"})
        with pytest.raises(InvalidArgument, match="longer"):
            await engine.api.record_put("filter", {"d": "x" * 70_000})
        with pytest.raises(InvalidArgument, match="already"):
            await engine.api.record_put("filter", {str(n): "" for n in range(RECORDS_MAX)})
    async with opened(tmp_path) as engine:
        assert await engine.api.record_list("filter") == {"b": "2", "c": "3"}
        assert await engine.api.record_list("other") == {"a": "x"}


async def test_an_end_while_the_catalogue_takes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """What cannot be recorded is lost; nobody waits for it."""
    refused = asyncio.Event()

    async def full(*_: object) -> int:
        refused.set()
        raise OutOfSpace("the pool's catalogue cannot be written")

    async with asyncio.timeout(60), opened(tmp_path) as engine:
        await engine.api.change_watch("me")
        monkeypatch.setattr(ChangeTables, "add", full)
        await engine.api.volume_create("v", MIB)
        await refused.wait()
