"""The socket API: the same operations and errors over the pool's Unix socket, and garbage on it."""

import asyncio
import dataclasses
import inspect
import json
import socket
import typing
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from engine.api import EngineApi
from engine.errors import AlreadyExists, EngineError, IntegrityError, InvalidArgument, NotFound
from engine.errors_json import ERRORS, error_from_json, error_to_json
from tests.support.engine import PREFIX, opened
from twinvol.api.client import open_api
from twinvol.api.frames import (
    MAX_REQUEST_BYTES,
    SOCKET_NAME,
    DaemonUnreachable,
    socket_address,
)
from twinvol.api.methods import methods
from twinvol.api.server import ApiServer, bind

MIB = 1 << 20


@asynccontextmanager
async def served(path: Path):
    async with opened(path) as engine:
        server = ApiServer(engine.api)
        listener = bind(path)
        await server.start(listener)
        try:
            yield engine
        finally:
            await server.close()


@pytest.fixture
async def pool(tmp_path: Path):
    async with served(tmp_path / "pool"):
        yield tmp_path / "pool"


async def raw(pool: Path, *lines: bytes) -> list[dict]:
    """Send bytes, and return the answers until the server closes or has answered each."""
    with socket_address(pool) as address:
        reader, writer = await asyncio.open_unix_connection(address, limit=1 << 24)
    writer.write(b"".join(lines))
    writer.write_eof()
    answers = [json.loads(line) async for line in reader]
    writer.close()
    await writer.wait_closed()
    return answers


async def test_what_the_engine_answers_arrives_equal(pool):
    async with open_api(pool) as api:
        created = await api.volume_create("v", MIB, expose=True)
        assert created.target == f"{PREFIX}:v"
        assert await api.volume_list() == [created]
        snapshot = await api.snapshot_create("v", "s")
        assert [each.guid for each in await api.snapshot_list("v")] == [snapshot.guid]
        assert (await api.volume_space("v")).snapshots[0].name == "s"
        assert (await api.snapshot_diff("v", None, "s")).extents == []
        target = await api.target_access(created.target, add=["iqn.2026-11.org.example:a"], remove=[])
        assert target.luns[0].volume == "v"
        assert await api.volume_delete("v", force=True) is None


async def test_engine_errors_travel_with_type_text_and_fields(pool):
    async with open_api(pool) as api:
        with pytest.raises(NotFound, match="'nothing'") as missing:
            await api.volume_show("nothing")
        assert (missing.value.kind, missing.value.name) == ("volume", "nothing")
        await api.volume_create("v", MIB)
        with pytest.raises(AlreadyExists):
            await api.volume_create("v", MIB)
        with pytest.raises(InvalidArgument):
            await api.volume_create("w", "large")


@pytest.mark.parametrize("kind", ERRORS.values(), ids=ERRORS.keys())
def test_every_engine_error_survives_the_way(kind):
    parameters = list(inspect.signature(kind.__init__).parameters.values())[1:]
    arguments = [7 if p.annotation == "int" else "x" for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD]
    error = kind(*arguments or ["x"])
    again = error_from_json(json.loads(json.dumps(error_to_json(error))))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_an_unknown_error_is_an_engine_error():
    assert type(error_from_json({"type": "os", "message": "m"})) is EngineError
    assert isinstance(error_from_json(error_to_json(IntegrityError("v", 0, 1, "a", "b"))), IntegrityError)


def test_every_operation_has_json_types_only():
    """What the protocol names must cross the socket: JSON values, lists and dataclasses of them."""

    def check(hint, seen=()):
        origin = typing.get_origin(hint)
        if origin is not None:
            return all(check(argument, seen) for argument in typing.get_args(hint))
        if dataclasses.is_dataclass(hint):
            return hint in seen or all(check(each, (*seen, hint)) for each in typing.get_type_hints(hint).values())
        return hint in (int, str, bool, float, type(None), typing.Any)

    assert methods().keys() == {name for name in dir(EngineApi) if not name.startswith("_")}
    for name in methods():
        for hint in typing.get_type_hints(getattr(EngineApi, name)).values():
            assert check(hint), name


async def test_requests_of_one_connection_run_at_the_same_time(tmp_path: Path):
    async with served(tmp_path / "pool") as engine, open_api(tmp_path / "pool") as api:
        job = await engine.pool.jobs.start("copy", "v", lambda job: asyncio.get_running_loop().create_future())
        while (await api.job_show(job.job_id)).state != "Running":
            pass
        version = (await api.job_show(job.job_id)).version
        waiting = asyncio.create_task(api.job_wait(job.job_id, after_version=version))
        assert (await api.status()).jobs_running == 1
        assert not waiting.done()
        await api.job_cancel(job.job_id)
        assert (await waiting).state == "Terminated"


@pytest.mark.parametrize(
    "line",
    [
        b"hello\n",
        b"[1]\n",
        b"\xff\xfe\x00\n",
        b"[" * 100_000 + b"\n",
        b'{"id": 1, "method": "' + b"x" * MAX_REQUEST_BYTES + b'"}\n',
    ],
    ids=["text", "no object", "binary", "deep", "long"],
)
async def test_garbage_is_answered_and_ends_the_connection_only(pool, line):
    (answer,) = await raw(pool, line, b'{"id": 2, "method": "status"}\n')
    assert (answer["id"], answer["error"]["type"]) == (None, "InvalidArgument")
    async with open_api(pool) as api:
        assert (await api.status()).health == "ok"


@pytest.mark.parametrize(
    "request_",
    [
        {"method": "nothing"},
        {"method": "__init__"},
        {"method": 7},
        {"method": "volume_show"},
        {"method": "volume_show", "params": []},
        {"method": "volume_show", "params": {"name": 7}},
        {"method": "volume_show", "params": {"name": "v", "more": 1}},
        {"method": "volume_create", "params": {"name": "v", "size_bytes": True}},
        {"method": "volume_create", "params": {"name": "v", "size_bytes": "1048576"}},
        {},
    ],
    ids=str,
)
async def test_requests_that_make_no_sense_are_refused(pool, request_):
    (answer,) = await raw(pool, json.dumps({"id": 5, **request_}).encode() + b"\n")
    assert (answer["id"], answer["error"]["type"]) == (5, "InvalidArgument")


async def test_a_client_without_a_daemon_hears_how_to_start_one(tmp_path: Path):
    with pytest.raises(DaemonUnreachable, match="twinvol serve --pool"):
        async with open_api(tmp_path):
            pass


async def test_a_daemon_that_ends_fails_the_calls_that_wait(tmp_path: Path):
    pool = tmp_path / "pool"
    async with AsyncExitStack() as client:
        async with served(pool) as engine:
            api = await client.enter_async_context(open_api(pool))
            job = await engine.pool.jobs.start("copy", "v", lambda job: asyncio.get_running_loop().create_future())
            waiting = asyncio.create_task(api.job_wait(job.job_id, after_version=100))
            await api.status()
        for call in (waiting, api.status()):
            with pytest.raises(DaemonUnreachable):
                await call


async def test_what_a_client_began_goes_on_when_the_client_is_killed(tmp_path: Path):
    """A socket that is closed with an answer unread resets the connection; what was begun must not end half way."""
    path = tmp_path / "pool"
    async with served(path) as engine:
        begun, may_end, over, outcome = asyncio.Event(), asyncio.Event(), asyncio.Event(), []

        async def volume_list():
            begun.set()
            try:
                await may_end.wait()
                outcome.append("done")
                return []
            except asyncio.CancelledError:
                outcome.append("cut off")
                raise
            finally:
                over.set()

        engine.api.volume_list = volume_list
        with socket_address(path) as address, socket.socket(socket.AF_UNIX) as client:
            client.connect(address)
            client.send(b'{"id": 1, "method": "status"}\n{"id": 2, "method": "volume_list"}\n')
            await begun.wait()
            await asyncio.to_thread(client.recv, 1, socket.MSG_PEEK)
        async with open_api(path) as api:
            for _ in range(3):  # the daemon has looked at its sockets then
                await api.status()
        may_end.set()
        await over.wait()
        assert outcome == ["done"]


async def test_the_socket_is_the_owners_and_fits_any_path(tmp_path: Path):
    pool = tmp_path / ("deep" * 30) / "pool"
    async with served(pool):
        assert (pool / SOCKET_NAME).stat().st_mode & 0o777 == 0o600
        async with open_api(pool) as api:
            assert (await api.status()).pool == str(pool)


async def test_a_list_of_snapshots_longer_than_an_answer_comes_in_pages(tmp_path, monkeypatch):
    names = [f"s{number}" for number in range(24)]
    monkeypatch.setattr("twinvol.api.server.MAX_ANSWER_BYTES", 8000)
    monkeypatch.setattr("engine.snapshots.SNAPSHOT_PAGE", 5)
    monkeypatch.setattr("engine.api.SNAPSHOT_PAGE", 5)
    async with served(tmp_path / "pool") as engine, open_api(tmp_path / "pool") as api:
        await api.volume_create("v", MIB)
        for name in names:
            await api.snapshot_create("v", name)
        with pytest.raises(InvalidArgument, match="too long for one message"):
            await api.snapshot_list("v")
        assert await paged(api, 5) == names
        assert await paged(api, 4) == names
        page = await api.snapshot_page("v", None, 5)
        for name in ("s4", "s5"):
            await api.snapshot_delete("v", name)
        following = await api.snapshot_page("v", page.cursor, 5)
        assert [info.name for info in following.snapshots] == ["s6", "s7", "s8", "s9", "s10"]
        for cursor, limit in ((None, 0), (None, 6), ("nonsense", 5)):
            with pytest.raises(InvalidArgument):
                await api.snapshot_page("v", cursor, limit)
        assert [info.name for info in await engine.api.snapshot_list("v")] == [
            name for name in names if name not in ("s4", "s5")
        ]


async def paged(api: EngineApi, limit: int) -> list[str]:
    found, cursor = [], None
    while True:
        page = await api.snapshot_page("v", cursor, limit)
        assert len(page.snapshots) == limit or page.cursor is None
        found += [info.name for info in page.snapshots]
        cursor = page.cursor
        if cursor is None:
            return found
