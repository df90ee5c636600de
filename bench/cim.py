"""How long do a WBEM client's questions take when there are 10,000 volumes?

``python -m bench.cim`` measures in one run:

* GetInstance, EnumerateInstanceNames, EnumerateInstances and AssociatorNames of one volume, in this process, against
  pywbem's FakedWBEMConnection with the same classes and instances; both return pywbem's objects, and the answers are
  compared (wanted: enumeration not slower, associators of one volume 50 times faster);
* the same over HTTPS with pywbem, server and client in processes of their own, and how much the client's own reading of
  the answer takes of it;
* the longest time for which the server's loop was held during an enumeration, in CPU time of its thread, from a ticker
  beside it (wanted: 10 ms);
* memory while 10,000 instances are pulled 100 at a time, against the memory before.

The engine is a catalogue of 10,000 volumes that answers as ``EngineApi``; what the data process takes to make and send
its list is not in these figures.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import os
import resource
import socket
import statistics
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pywbem
import pywbem_mock

from bench.machine import RESULTS, facts
from cim_facade import repository
from cim_facade.auth import Users, UsersFile
from cim_facade.context import User, View
from cim_facade.dispatch import Facade
from cim_facade.namespaces import SCHEMA, STORAGE
from cim_facade.operations import Filters, Operations
from cim_facade.registry import whole_registry
from cim_facade.server import CimServer
from engine.api import VOLUME_PAGE, PoolIdentity, PoolSpaceInfo, VolumeInfo, VolumePage
from engine.errors import NotFound
from twinvol import certificate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from multiprocessing.connection import Connection

    from pywbem import CIMInstance, CIMInstanceName

    from engine.api import EngineApi

VOLUMES = 10_000
ROUNDS = 5
PAGE = 100
VOLUME_CLASS = "MSISCSITARGET_StorageVolume"
ASSOCIATIONS = ("MSISCSITARGET_SystemDevice", "MSISCSITARGET_AllocatedFromStoragePool")
USER, PASSWORD = "bench", "correct-horse"


class Catalogue:
    """``EngineApi`` of a pool with many volumes and nothing else."""

    def __init__(self, count: int) -> None:
        self._volumes = [
            VolumeInfo(
                name=f"volume-{number}",
                volume_id=str(uuid.UUID(int=number + 1)),
                size_bytes=1 << 30,
                state="ok",
                reason=None,
                serial=f"{number:016x}",
                naa=f"3{number:015x}",
                physical_block_bytes=4096,
                write_cache=True,
                read_only=False,
                removable=False,
                snapshots=0,
                origin=None,
                file=f"/pool/volumes/{number}.tvol",
                target=None,
                lun=None,
            )
            for number in range(count)
        ]
        self._by_id = {each.volume_id: each for each in self._volumes}

    async def pool_identity(self) -> PoolIdentity:
        return PoolIdentity(str(uuid.UUID(int=0)), "/pool", "bench", 0.0)

    async def pool_space(self) -> PoolSpaceInfo:
        return PoolSpaceInfo("ok", None, 1 << 30, False, 90, 1 << 30, 1 << 40, 1 << 41, 1 << 40)

    async def volume_list(self) -> list[VolumeInfo]:
        return self._volumes

    async def volume_page(self, cursor: str | None = None, limit: int = VOLUME_PAGE) -> VolumePage:
        begin = int(cursor or 0)
        end = begin + limit
        return VolumePage(self._volumes[begin:end], str(end) if end < len(self._volumes) else None)

    async def volume_find(self, volume_id: str) -> VolumeInfo:
        try:
            return self._by_id[volume_id]
        except KeyError:
            raise NotFound("volume", volume_id) from None

    async def volume_allocated(self, volume_ids: list[str] | None = None) -> dict[str, int]:
        return dict.fromkeys(volume_ids or self._by_id, 1 << 20)

    async def element_name_list(self, guids: list[str] | None = None) -> dict[str, str]:
        return {}

    def __getattr__(self, name: str) -> Callable[..., Awaitable[list[Any]]]:
        """There is none of anything else."""
        if not name.endswith(("_list", "_luns", "_reasons", "_show", "_find")):
            raise AttributeError(name)

        async def nothing(*_: Any, **__: Any) -> list[Any]:
            if name.endswith(("_show", "_find")):
                raise NotFound(name, "anything")
            return []

        return nothing


def facade(count: int) -> Facade:
    return Facade(cast("EngineApi", Catalogue(count)), repository.load(), whole_registry())


class InProcess:
    """The facade's operations, each as a request of its own."""

    def __init__(self, made: Facade) -> None:
        self._facade = made
        self._user = User("", administrator=True, secure=True)

    def _operations(self) -> Operations:
        view = View(self._facade.api, self._user, self._facade.classes, self._facade.registry)
        return Operations(view, self._facade.classes, self._facade.registry)

    async def get_instance(self, path: CIMInstanceName) -> CIMInstance:
        return await self._operations().get_instance(path)

    async def names(self, class_name: str) -> list[CIMInstanceName]:
        return [each async for each in self._operations().enumerate_instance_names(STORAGE, class_name)]

    async def instances(self, class_name: str) -> list[CIMInstance]:
        return [each async for each in self._operations().enumerate_instances(STORAGE, class_name)]

    async def associators(self, path: CIMInstanceName) -> list[CIMInstanceName]:
        return [each async for each in self._operations().associator_names(path, Filters())]


async def filled_mock(ours: InProcess) -> pywbem_mock.FakedWBEMConnection:
    """pywbem's mock with all that ``ours`` shows of volumes, and what is associated with them."""
    mock = pywbem_mock.FakedWBEMConnection(default_namespace=STORAGE)
    sources = repository.schema_sources()
    mock.compile_mof_string(sources["qualifiers"], namespace=STORAGE)
    declared = repository.collect(sources)
    mock.add_cimobjects([each for name in SCHEMA[STORAGE] for each in declared.classes[name]], namespace=STORAGE)
    for class_name in (VOLUME_CLASS, "MSFTSM_ComputerSystem", "MSISCSITARGET_StoragePool", *ASSOCIATIONS):
        mock.add_cimobjects(await ours.instances(class_name), namespace=STORAGE)
    return mock


class Timed:
    """Seconds of wall clock and of this process's CPU, one of each for each round."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.cpu: list[float] = []
        self._began = (0.0, 0.0)

    def __enter__(self) -> None:
        gc.collect()
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall.append(time.perf_counter() - self._began[0])
        self.cpu.append(time.process_time() - self._began[1])

    def ms(self) -> dict[str, float]:
        return {
            "wall_ms": round(statistics.median(self.wall) * 1e3, 3),
            "cpu_ms": round(statistics.median(self.cpu) * 1e3, 3),
        }


def canonical(paths: list[CIMInstanceName]) -> list[str]:
    found = []
    for path in paths:
        bare = path.copy()
        bare.host = None
        found.append(bare.to_wbem_uri(format="canonical"))
    return sorted(found)


async def in_process(count: int, rounds: int) -> dict[str, Any]:
    """Rows of the first kind, in alternating rounds."""
    ours = InProcess(facade(count))
    mock = await filled_mock(ours)
    path = (await ours.names(VOLUME_CLASS))[count // 2]
    assert canonical(await ours.names(VOLUME_CLASS)) == canonical(mock.EnumerateInstanceNames(VOLUME_CLASS))
    known = set(canonical(await ours.associators(path)))
    assert set(canonical(mock.AssociatorNames(path.copy()))) <= known
    assert (await ours.get_instance(path))["DeviceID"] == mock.GetInstance(path.copy())["DeviceID"]
    pairs: dict[str, tuple[Callable[[], Awaitable[object]], Callable[[], object]]] = {
        "GetInstance": (lambda: ours.get_instance(path), lambda: mock.GetInstance(path.copy())),
        "EnumerateInstanceNames": (
            lambda: ours.names(VOLUME_CLASS),
            lambda: mock.EnumerateInstanceNames(VOLUME_CLASS),
        ),
        "EnumerateInstances": (lambda: ours.instances(VOLUME_CLASS), lambda: mock.EnumerateInstances(VOLUME_CLASS)),
        "AssociatorNames": (lambda: ours.associators(path), lambda: mock.AssociatorNames(path.copy())),
    }
    rows: dict[str, Any] = {}
    for name, (ask_ours, ask_mock) in pairs.items():
        mine, other = Timed(), Timed()
        for _ in range(rounds):
            with mine:
                await ask_ours()
            with other:
                ask_mock()
        ratio = statistics.median(b / a for a, b in zip(mine.cpu, other.cpu, strict=True) if a)
        rows[name] = {"facade": mine.ms(), "mock": other.ms(), "times_faster": round(ratio, 2)}
        print(f"{name:24} {rows[name]}", flush=True)
    return rows


async def _serve(count: int, folder: Path, pipe: Connection) -> None:
    """The server's process: tells its address, then its longest pause and its memory whenever asked."""
    UsersFile(folder / "users").add(USER, "admin", PASSWORD)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    server = CimServer(facade(count), Users(folder / "users"), ConnectionAbortedError)
    served_with = certificate.ServerCertificate(folder, "127.0.0.1:0")
    await served_with.context()
    await server.start(listener, served_with.context)
    longest = 0.0

    async def ticker() -> None:
        nonlocal longest
        before = time.thread_time()  # the loop's own work: how long others had the processor says nothing of it
        while True:
            await asyncio.sleep(0)
            now = time.thread_time()
            longest, before = max(longest, now - before), now

    gc.freeze()
    pipe.send(listener.getsockname()[1])
    ticking: asyncio.Task[None] | None = None
    loop = asyncio.get_running_loop()
    while (asked := await loop.run_in_executor(None, pipe.recv)) is not None:
        if asked == "tick":
            longest = 0.0
            ticking = asyncio.create_task(ticker())
        elif ticking is not None:
            ticking.cancel()
            ticking = None
        pipe.send((longest, _resident_bytes(), time.process_time()))
    await server.close()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _server_process(count: int, folder: Path, pipe: Connection) -> None:
    asyncio.run(_serve(count, folder, pipe))


def over_https(count: int, rounds: int) -> dict[str, Any]:
    """Rows of the other kinds."""
    here, there = multiprocessing.get_context("spawn").Pipe()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = multiprocessing.get_context("spawn").Process(target=_server_process, args=(count, folder, there))
        process.start()
        try:
            port = here.recv()
            return _asked(port, folder, here, rounds)
        finally:
            here.send(None)
            process.join()


def _asked(port: int, folder: Path, server: Connection, rounds: int) -> dict[str, Any]:
    for variable in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):  # win over ca_certs
        os.environ.pop(variable, None)
    trusted = str(folder / certificate.FOLDER / certificate.CA)
    connection = pywbem.WBEMConnection(
        f"https://127.0.0.1:{port}", (USER, PASSWORD), default_namespace=STORAGE, ca_certs=trusted, timeout=120
    )
    names = connection.EnumerateInstanceNames(VOLUME_CLASS)
    path = names[len(names) // 2]

    def state(what: str) -> tuple[float, int, float]:
        server.send(what)
        answer: tuple[float, int, float] = server.recv()
        return answer

    rows: dict[str, Any] = {}
    asked: dict[str, Callable[[], object]] = {
        "GetInstance": lambda: connection.GetInstance(path),
        "EnumerateInstanceNames": lambda: connection.EnumerateInstanceNames(VOLUME_CLASS),
        "EnumerateInstances": lambda: connection.EnumerateInstances(VOLUME_CLASS),
        "AssociatorNames": lambda: connection.AssociatorNames(path),
    }
    for name, ask in asked.items():
        timed, served = Timed(), []
        for _ in range(rounds):
            before = state("state")[2]
            with timed:
                ask()
            served.append(state("state")[2] - before)
        rows[name] = {**timed.ms(), "server_cpu_ms": round(statistics.median(served) * 1e3, 3)}
        print(f"HTTPS {name:24} {rows[name]}", flush=True)
    for name in ("EnumerateInstanceNames", "EnumerateInstances"):
        state("tick")
        getattr(connection, name)(VOLUME_CLASS)
        rows[f"longest pause of the loop, {name}, ms"] = round(state("stop")[0] * 1e3, 2)
    before, most = state("state")[1], 0
    count = 0
    for _ in connection.IterEnumerateInstances(VOLUME_CLASS, MaxObjectCount=PAGE):
        count += 1
        if count % (10 * PAGE) == 0:
            most = max(most, state("state")[1])
    assert count == len(names)
    rows["memory while pulled, MiB"] = {"before": before >> 20, "most": most >> 20}
    for name in list(rows)[4:]:
        print(f"{name}: {rows[name]}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.cim", description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--volumes", type=int, default=VOLUMES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    results = {
        "machine": facts(RESULTS),
        "volumes": options.volumes,
        "in process": asyncio.run(in_process(options.volumes, options.rounds)),
        "over HTTPS": over_https(options.volumes, options.rounds),
    }
    (RESULTS / "cim.json").write_text(json.dumps(results, indent=1) + "\n")
    print(f"written: {RESULTS / 'cim.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
