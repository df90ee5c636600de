"""A day of an array in minutes: ``python -m tests.integration.compressed_day --jobs 10000``

A daemon is served over HTTPS, by real processes. The day has 24 *hours*, each with its share of the jobs: full clones
by the engine's API and by CIM, mirrors that rest and go on, verifications, hash trees, snapshots in orders; and what is
no job: snapshots of groups, volumes, sessions of initiators, enumerations that a client begins and forgets, clients
that log in with a wrong password. In each hour 1,000 subscriptions, each of a destination of its own, hear that a
volume was deleted, in order and without a gap, over the restarts as well. After hours 6 and 18 the daemon is told to
stop and started again, after hour 12 it is killed. Its clock is not compressed: what ends after a minute of waiting
ends after a real one.

At the end of each hour, when all jobs have ended, it is looked at both processes: memory, descriptors, threads, tasks
that are not done, and at the pool: its catalogue, its folder, the jobs it remembers. All of it has to stay within what
it was after the first hour of that life and an allowance that does not grow with the hours.

``--trace``: what Python itself has allocated is counted, too, and shown per job; everything takes twice as long.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pywbem
from pywbem import Uint16

from engine.api import CopyOrder, MirrorTerms
from engine.catalog import JOB_HISTORY_MAX
from engine.units import KIB, MIB
from iscsi.initiator import connect
from tests.support import probing, wbem
from tests.support.counting_listener import CountingListener
from tests.support.daemon import Daemon
from tests.support.wbem import NAMESPACE, Wbem
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from engine.api import EngineApi, JobInfo
    from tests.support.probing import Figures

HOURS = 24
STOPPED, KILLED = (6, 18), (12,)
AT_A_TIME = 6
VOLUME_BYTES, FILLED_BYTES = 16 * MIB, 256 * KIB
SETTLE_S = 30.0
FORGOTTEN, WRONG_PASSWORDS, LOGINS = 3, 2, 4
"""In each hour: enumerations that nobody ends, clients with a wrong password, sessions of initiators."""

FDS, TASKS, THREADS = 16, 16, 24
"""Allowances: connections, contexts and threads of pools come and go. A leak of three in an hour is found in a life."""
RSS_MIB = 48.0
"""Allowance: caches fill, the last 1,000 jobs are remembered, and the allocator keeps what it has had. 20 KiB that each
job leaves are more than that in one life of a day of 10,000."""
CATALOGUE_MIB = 32.0

SUBSCRIPTIONS = 1000
TELL_S = 300.0
ANNOUNCED = "announced"
QUERY = (
    "SELECT * FROM CIM_InstDeletion WHERE SourceInstance ISA CIM_StorageVolume"
    f" AND SourceInstance.CIM_StorageVolume::ElementName = '{ANNOUNCED}'"
)

REPLICATION = "MSISCSITARGET_ReplicationService"
CONFIGURATION = "MSISCSITARGET_StorageConfigurationService"
VOLUME = "MSISCSITARGET_StorageVolume"
INTEROP = "interop"


@dataclass
class Hour:
    """What was found at the end of one."""

    number: int
    jobs: int
    seconds: float
    processes: list[Figures]
    remembered_jobs: int
    catalogue_mib: float
    pool_mib: float

    def line(self) -> str:
        parts = [
            f"{each.what} {each.rss_mib:6.1f} MiB {each.fds:3d} fds {each.tasks:3d} tasks {each.threads:3d} threads"
            + (f" traced {each.traced_mib:.2f} MiB" if each.traced_mib else "")
            for each in self.processes
        ]
        pool = f"jobs kept {self.remembered_jobs}, catalogue {self.catalogue_mib:.1f} MiB, pool {self.pool_mib:.0f} MiB"
        return f"{self.number:3d} h  {self.jobs:6d} jobs  {self.seconds:5.0f} s  " + "  ".join([*parts, pool])


@dataclass
class Day:
    """One day. ``jobs``: in all. ``say`` gets a line for each hour."""

    pool: Path
    probes: Path
    jobs: int
    listener: CountingListener
    subscriptions: int = SUBSCRIPTIONS
    hours: int = HOURS
    stopped: tuple[int, ...] = STOPPED
    killed: tuple[int, ...] = KILLED
    traced: bool = False
    say: Callable[[str], None] = lambda line: None
    done: Counter[str] = field(default_factory=Counter)
    lives: list[list[Hour]] = field(default_factory=list)
    _number: int = 0
    _announced: int = 0

    async def run(self) -> None:
        """Raises AssertionError: something failed, or grew."""
        environment = probing.environment(self.probes, traced=self.traced)
        hour = 0
        while hour < self.hours:
            daemon = await asyncio.to_thread(
                functools.partial(Daemon.start, self.pool, "--wbem", "127.0.0.1:0", environment=environment)
            )
            with daemon:
                made = Wbem(daemon)
                if hour == 0:
                    await asyncio.to_thread(wbem.add_user, self.pool, wbem.USER, "admin", wbem.PASSWORD)
                await asyncio.to_thread(made.wait)
                if hour == 0:
                    await asyncio.to_thread(self._subscribe, made)
                async with open_api(self.pool) as api:
                    if hour == 0:
                        await self._furnish(api, daemon)
                    with contextlib.closing(made.connection()) as client:
                        hour = await self._life(api, made, client, hour)
                if hour in self.killed:
                    daemon.kill()
                else:  # in a thread: the listener goes on
                    assert await asyncio.to_thread(daemon.stop) == 0

    async def _furnish(self, api: EngineApi, daemon: Daemon) -> None:
        for name in ("small", "other"):
            await api.volume_create(name, VOLUME_BYTES, expose=True)
            await self._host(api, daemon, name)
        await _ended(api, await api.replica_create("small", "twin"))
        await _ended(api, await api.replica_create("other", "copy", MirrorTerms("async", rpo_s=3600.0)))
        await api.group_create("pair", ["small", "other"])

    async def _life(self, api: EngineApi, made: Wbem, client: pywbem.WBEMConnection, hour: int) -> int:
        """Hours until the next restart; the number of the last."""
        self.lives.append([])
        kinds = self._kinds(api, client)
        while True:
            hour += 1
            began, share = time.monotonic(), self.jobs * hour // self.hours - self.jobs * (hour - 1) // self.hours
            await self._hour(api, made, kinds, share)
            found = await self._settled(api, hour, share, time.monotonic() - began)
            self.lives[-1].append(found)
            self.say(found.line())
            judge(self.lives[-1])
            if hour in self.stopped + self.killed or hour == self.hours:
                return hour

    async def _hour(
        self, api: EngineApi, made: Wbem, kinds: list[Callable[[str], Awaitable[None]]], share: int
    ) -> None:
        for _ in range(LOGINS):
            await self._host(api, made.daemon, "small")
        await asyncio.to_thread(self._careless_clients, made)
        await api.group_snapshot_create("pair", "instant")
        await api.volume_create("passing", VOLUME_BYTES)
        left = iter(range(share))

        async def work() -> None:
            for number in left:
                self._number += 1
                await kinds[number % len(kinds)](f"n{self._number}")

        async with asyncio.TaskGroup() as workers:
            for _ in range(AT_A_TIME):
                workers.create_task(work())
        await api.volume_delete("passing")
        await self._announce(api)
        await api.group_snapshot_delete("pair", "instant")

    # --- jobs -------------------------------------------------------------------------------------------------------

    def _kinds(self, api: EngineApi, client: pywbem.WBEMConnection) -> list[Callable[[str], Awaitable[None]]]:
        [service] = client.EnumerateInstanceNames(REPLICATION)
        [configuration] = client.EnumerateInstanceNames(CONFIGURATION)
        source = next(each.path for each in client.EnumerateInstances(VOLUME) if each["Caption"] == "small")
        resting = asyncio.Lock()  # one at a time tells the mirror to rest
        calling = asyncio.Lock()  # a pywbem connection is one thread's

        async def clone(name: str) -> None:
            await self._job("clone", api, await api.clone_copy("small", None, name))
            await api.volume_delete(name)

        async def clone_by_cim(name: str) -> None:
            async with calling:
                await asyncio.to_thread(self._clone_by_cim, client, service, configuration, source, name)
            self.done["clone by CIM"] += 1

        async def ordered_snapshot(name: str) -> None:
            job = await self._job("snapshot", api, await api.copies_make([CopyOrder("snapshot", "other", name)]))
            assert job.result["copies"]
            await api.snapshot_delete("other", name)

        async def verify(name: str) -> None:
            del name
            async with resting:
                await self._job("verify", api, await api.replica_verify("twin"))

        async def go_on(name: str) -> None:
            del name
            async with resting:
                await api.replica_pause("twin")
                await self._job("resume", api, await api.replica_resume("twin"))

        async def tree(name: str) -> None:
            del name
            await self._job("root", api, await api.volume_root("other"))

        return [clone, tree, clone_by_cim, ordered_snapshot, clone, verify, tree, go_on, ordered_snapshot, tree]

    async def _job(self, kind: str, api: EngineApi, job: JobInfo) -> JobInfo:
        job = await _ended(api, job)
        self.done[kind] += 1
        return job

    def _clone_by_cim(
        self,
        client: pywbem.WBEMConnection,
        service: pywbem.CIMInstanceName,
        configuration: pywbem.CIMInstanceName,
        source: pywbem.CIMInstanceName,
        name: str,
    ) -> None:
        code, out = client.InvokeMethod(
            "CreateElementReplica", service, SyncType=Uint16(8), SourceElement=source, ElementName=name
        )
        assert code in (0, 4096), code
        if code == 4096:
            while (job := client.GetInstance(out["Job"], PropertyList=["JobState"]))["JobState"] in (2, 3, 4):
                time.sleep(0.01)
            assert job["JobState"] == 7, job["JobState"]
        volumes = client.EnumerateInstances(VOLUME, PropertyList=["ElementName"])
        [made] = [each.path for each in volumes if each["ElementName"] == name]
        code, _ = client.InvokeMethod("ReturnToStoragePool", configuration, TheElement=made)
        assert code == 0, code

    # --- others -----------------------------------------------------------------------------------------------------

    async def _host(self, api: EngineApi, daemon: Daemon, name: str) -> None:
        info = await api.volume_show(name)
        assert info.target is not None
        host, port = daemon.portal.rsplit(":", 1)
        async with await connect((host, int(port)), info.target) as disk:
            await disk.write(0, os.urandom(FILLED_BYTES))
            await disk.flush()
        self.done["session of a host"] += 1

    def _careless_clients(self, made: Wbem) -> None:
        client = made.connection()
        for _ in range(FORGOTTEN):
            opened = client.OpenEnumerateInstances(VOLUME, MaxObjectCount=1, OperationTimeout=1)
            assert not opened.eos
            self.done["forgotten enumeration"] += 1
        client.close()
        for _ in range(WRONG_PASSWORDS):
            with contextlib.suppress(pywbem.AuthError, pywbem.HTTPError):
                made.connection(password="not-the-password").EnumerateClassNames()
            self.done["wrong password"] += 1

    def _subscribe(self, made: Wbem) -> None:
        client = made.connection(namespace=INTEROP)
        wanted = {"Name": "day", "Query": QUERY, "QueryLanguage": "DMTF:CQL", "SourceNamespaces": [NAMESPACE]}
        filter_path = client.CreateInstance(pywbem.CIMInstance("CIM_IndicationFilter", wanted))
        for number in range(self.subscriptions):
            to = {"Name": f"day-{number}", "Destination": f"{self.listener.url}/{number}"}
            destination = client.CreateInstance(pywbem.CIMInstance("CIM_ListenerDestinationCIMXML", to))
            ends = {"Filter": filter_path, "Handler": destination}
            client.CreateInstance(pywbem.CIMInstance("CIM_IndicationSubscription", ends))
        client.close()

    async def _announce(self, api: EngineApi) -> None:
        """Something that every subscription hears of. Raises TimeoutError, AssertionError: not, or not in order."""
        await api.volume_create(ANNOUNCED, VOLUME_BYTES)
        await api.volume_delete(ANNOUNCED)
        self._announced += 1

        def is_enough(told: Counter[str]) -> bool:
            return told.total() >= self._announced * self.subscriptions

        await self.listener.all_told(is_enough, TELL_S)
        assert self.listener.wrong == []
        assert set(self.listener.told.values()) == {self._announced}
        self.done["delivery"] = self.listener.told.total()
        self.done["delivery again"] = self.listener.again

    # --- looking ----------------------------------------------------------------------------------------------------

    async def _settled(self, api: EngineApi, hour: int, jobs: int, seconds: float) -> Hour:
        """What is there at rest: looked at until what comes to its end by itself has done so, or the time is up."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            found = Hour(
                hour,
                jobs,
                seconds,
                await asyncio.to_thread(probing.look, self.probes),
                len(await api.job_list()),
                (self.pool / "catalog.sqlite").stat().st_size / MIB,
                await asyncio.to_thread(_size_of, self.pool) / MIB,
            )
            if time.monotonic() > deadline or not grown([*self.lives[-1], found]):
                return found  # if it has grown, ``judge`` says so
            await asyncio.sleep(0.5)


def grown(life: list[Hour]) -> list[str]:
    """What is more at the end of a life's last hour than after its first, and than is allowed."""
    first, last = life[0], life[-1]
    wrong = [f"{last.remembered_jobs} jobs are remembered"] if last.remembered_jobs > JOB_HISTORY_MAX else []
    if last.catalogue_mib > CATALOGUE_MIB:
        wrong.append(f"the catalogue has {last.catalogue_mib:.1f} MiB")
    if [each.what for each in last.processes] != ["data", "management"]:
        return [*wrong, f"processes: {last.processes}"]
    for then, now in zip(first.processes, last.processes, strict=True):
        allowed = {"fds": FDS, "tasks": TASKS, "threads": THREADS, "rss_mib": RSS_MIB}
        for name, more in allowed.items():
            before, after = getattr(then, name), getattr(now, name)
            if after > before + more:
                wrong.append(f"{now.what}: {name} {before:g} -> {after:g}")
    return wrong


def judge(life: list[Hour]) -> None:
    wrong = grown(life)
    assert not wrong, f"hour {life[-1].number}: {'; '.join(wrong)}"


async def _ended(api: EngineApi, job: JobInfo) -> JobInfo:
    while job.finished_at is None:
        job = await api.job_wait(job.job, after_version=job.version)
    assert job.error is None, (job.kind, job.subject, job.message)
    return job


def _size_of(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_blocks * 512
    return total


@contextlib.asynccontextmanager
async def folders() -> AsyncIterator[tuple[Path, Path]]:
    """For the pool, and for the probes' sockets; removed at the end."""
    with tempfile.TemporaryDirectory(prefix="day-") as name:
        probes = Path(name) / "probes"
        probes.mkdir()
        yield Path(name) / "pool", probes


def summary(day: Day) -> list[str]:
    """Of each life: how much more each process had at its end than after its first hour, and per job."""
    lines = [", ".join(f"{count} {kind}" for kind, count in sorted(day.done.items()))]
    for number, life in enumerate(day.lives, 1):
        if len(life) < 2:
            continue
        jobs = sum(hour.jobs for hour in life[1:])
        for then, now in zip(life[0].processes, life[-1].processes, strict=True):
            change = f"{then.rss_mib:.1f} -> {now.rss_mib:.1f} MiB, fds {then.fds} -> {now.fds}"
            change += f", tasks {then.tasks} -> {now.tasks}, threads {then.threads} -> {now.threads}"
            if now.traced_mib:
                change += f", traced {(now.traced_mib - then.traced_mib) * MIB / max(1, jobs):.0f} bytes a job"
            lines.append(f"life {number}, {jobs} jobs after its first hour: {now.what}: {change}")
    return lines


async def _main(jobs: int, subscriptions: int, traced: bool) -> None:
    def say(line: str) -> None:
        print(line, flush=True)

    async with folders() as (pool, probes), CountingListener() as listener:
        day = Day(pool, probes, jobs, listener, subscriptions, traced=traced, say=say)
        try:
            await day.run()
        finally:
            for line in summary(day):
                say(line)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--subscriptions", type=int, default=SUBSCRIPTIONS)
    parser.add_argument("--trace", action="store_true")
    options = parser.parse_args()
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        os.environ.pop(name, None)
    asyncio.run(_main(options.jobs, options.subscriptions, options.trace))
    return 0


if __name__ == "__main__":
    sys.exit(main())
