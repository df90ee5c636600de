"""``twinvol demo --serve``: an array for WBEM clients to be tried on, on temporary files, until it is told to stop.

Two pools are served by daemons of their own: *array*, with the CIM facade over HTTPS, and *far*, its peer. In the array
there is one of everything that a client may meet: volumes, exposed or not, snapshots, linked and full clones, mirrors
in all modes here and at the peer, a group with group snapshots and a mirror of its own, jobs that have ended. A host
writes to a volume all the time, and jobs come and go that take long enough to be watched.

Invariants:

* It ends with its daemons and leaves no files, whether it is told to stop, fails, or is told so while it begins.
* The password is in a file of mode 0600 of the temporary folder. It is nobody's argument, and in no log and no JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
import signal
from typing import TYPE_CHECKING, Any

from cim_facade.auth import USERS_NAME, UsersFile
from engine.api import CopyOrder, GroupOrder, MirrorTerms
from engine.errors import EngineError, NotFound
from engine.units import KIB, MIB
from iscsi.initiator import InitiatorError, connect
from twinvol.api.client import open_api
from twinvol.api.frames import DaemonUnreachable
from twinvol.demo import Daemon, DemoFailed, temporary_folder

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from engine.api import EngineApi, JobInfo

USER = "demo"
PEER = "far"
LOOPBACK = "127.0.0.1:0"

VOLUMES = {"orders": 256 * MIB, "stock": 64 * MIB, "home": 128 * MIB, "media": 256 * MIB, "empty": 1024 * MIB}
EXPOSED = ("orders", "stock", "home", "media")
FILLED_BYTES = 8 * MIB

MIRRORS = {
    "home-twin": ("home", MirrorTerms("sync"), None),
    "stock-hourly": ("stock", MirrorTerms("async", rpo_s=30.0, points=3), None),
    "orders-far": ("orders", MirrorTerms("adaptive", rpo_s=10.0), PEER),
    "media-far": ("media", MirrorTerms("async", rpo_s=600.0), PEER),
}
GROUP, GROUP_MIRROR = "shop", "shop-copy"

SLOW_BYTES_S = 1 * MIB
"""What copies of ``media-far`` send: the job that brings the changes of ``CHANGED_BYTES`` takes a quarter minute."""
CHANGED_BYTES = 16 * MIB
CYCLE_S = 30.0
KEPT_CLONES = 2

STOP_TIMEOUT_S = 20.0
WRITE_PAUSE_S = 0.05
SCSI_BYTES = 512 * KIB


async def serve(wbem: str, ready: Callable[[dict[str, Any], str], None]) -> None:
    """Serve the array until SIGTERM, SIGINT or SIGHUP.

    Args:
        wbem: HOST:PORT of the CIM facade, port 0 for any.
        ready: called once with what clients need, and the password, which is not in there.

    Raises DemoFailed: it did not come up, or a daemon ended by itself.
    """
    work = asyncio.create_task(_serve(wbem, ready))
    loop = asyncio.get_running_loop()
    stopping = False

    def stop() -> None:
        nonlocal stopping
        if not stopping:  # whoever is impatient does not keep it from removing its files
            stopping = True
            work.cancel()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, stop)
    await asyncio.wait([work])
    if not (stopping and work.cancelled()):
        work.result()


async def _serve(wbem: str, ready: Callable[[dict[str, Any], str], None]) -> None:
    async with temporary_folder() as folder, contextlib.AsyncExitStack() as ending:
        array, far = folder / "array", folder / PEER
        there = await _started(ending, far, "--peer", LOOPBACK)
        here = await _started(ending, array, "--peer", LOOPBACK, "--wbem", wbem)
        try:
            async with open_api(array) as api:
                async with open_api(far) as peer:
                    invitation = await peer.peer_invite(name="array", address=there.ready["peer"])
                await api.peer_add(PEER, invitation.code)
                await _fill(api, here.portal)
                password = secrets.token_urlsafe(12)
                await asyncio.to_thread(_make_user, array, folder / "password", password)
                ready(_facts(folder, here, there), password)
                await _live(api, here, there)
        except (EngineError, InitiatorError, DaemonUnreachable) as error:
            raise DemoFailed(str(error)) from error


def _make_user(pool: Path, file: Path, password: str) -> None:
    file.touch(mode=0o600)
    file.write_text(password + "\n", encoding="utf-8")
    UsersFile(pool / USERS_NAME).add(USER, "admin", password)


async def _started(ending: contextlib.AsyncExitStack, pool: Path, *arguments: str) -> Daemon:
    daemon = await Daemon.start(pool, pool.with_suffix(".log"), *arguments, apart=True)
    ending.push_async_callback(_stop, daemon)
    return daemon


async def _stop(daemon: Daemon) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await daemon.stop()
    if daemon.process.returncode is None:
        await daemon.kill()


def _facts(folder: Path, here: Daemon, there: Daemon) -> dict[str, Any]:
    return {
        "event": "ready",
        "url": f"https://{here.ready['wbem']}",
        "user": USER,
        "password_file": str(folder / "password"),
        "ca_certs": str(folder / "array" / "tls" / "ca.crt"),
        "pool": str(folder / "array"),
        "peer_pool": str(folder / PEER),
        "iscsi": here.ready["iscsi"],
        "pids": [here.process.pid, there.process.pid],
    }


# --- what is in it ----------------------------------------------------------------------------------------------------


async def _fill(api: EngineApi, portal: tuple[str, int]) -> None:
    rng = random.Random(7)
    for name, size_bytes in VOLUMES.items():
        await api.volume_create(name, size_bytes, expose=name in EXPOSED)
        if name in EXPOSED:
            await _write(api, portal, name, FILLED_BYTES, rng)
    for number, day in enumerate(("monday", "tuesday")):
        await api.snapshot_create("orders", day, expose=day == "tuesday", description=f"working day {number + 1}")
        await _write(api, portal, "orders", 1 * MIB, rng)
    await api.snapshot_create("home", "before-update")
    await api.clone_create("orders", "tuesday", "orders-test")
    await _ended(api, api.copies_make([CopyOrder("clone", "home", element_name="Home for Research")]))
    await api.group_create(GROUP, ["orders", "stock"])
    members = [CopyOrder("snapshot", name) for name in ("orders", "stock")]
    instant = GroupOrder("Closing Time", source_group=GROUP, consistent=True)
    await _ended(api, api.copies_make(members, group=instant))
    for name, (source, terms, peer) in MIRRORS.items():
        await _ended(api, api.replica_create(source, name, terms, peer=peer))
    await _ended(api, api.group_replica_create(GROUP, GROUP_MIRROR, MirrorTerms("async", rpo_s=30.0)))
    await api.replica_expose("stock-hourly")
    await api.replica_limit("media-far", SLOW_BYTES_S)


async def _write(api: EngineApi, portal: tuple[str, int], name: str, size_bytes: int, rng: random.Random) -> None:
    """As a host does, anywhere in the volume."""
    async with await connect(portal, await _target(api, name)) as disk:
        for _ in range(0, size_bytes, SCSI_BYTES):
            offset = rng.randrange(disk.size_bytes // SCSI_BYTES) * SCSI_BYTES
            await disk.write(offset, rng.randbytes(SCSI_BYTES))
        await disk.flush()


async def _target(api: EngineApi, name: str) -> str:
    """Raises NotFound: somebody has hidden it, or it is gone."""
    target = (await api.volume_show(name)).target
    if target is None:
        raise NotFound("target of volume", name)
    return target


async def _ended(api: EngineApi, starting: Awaitable[JobInfo]) -> None:
    """Raises DemoFailed: the job failed."""
    job = await starting
    while job.finished_at is None:
        job = await api.job_wait(job.job, after_version=job.version)
    if job.error is not None:
        raise DemoFailed(f"{job.kind} {job.subject}: {job.message}")


# --- what goes on in it -----------------------------------------------------------------------------------------------


async def _live(api: EngineApi, here: Daemon, there: Daemon) -> None:
    """Until cancelled, or a daemon ends: then DemoFailed.

    A client may do anything meanwhile, also take away what this works on; then that part stands still until it is back.
    """
    ends = [asyncio.create_task(daemon.process.wait()) for daemon in (here, there)]
    parts = [asyncio.create_task(part(api, here.portal)) for part in (_host, _slow_copies, _clones)]
    try:
        await asyncio.wait([*ends, *parts], return_when=asyncio.FIRST_COMPLETED)
        for part in parts:
            if part.done():
                part.result()
        raise DemoFailed("one of the daemons has ended")
    finally:
        for task in (*ends, *parts):
            task.cancel()
        await asyncio.wait([*ends, *parts])


async def _host(api: EngineApi, portal: tuple[str, int]) -> None:
    """Small writes to one volume, on a session that stays."""
    rng = random.Random(8)
    while True:
        with contextlib.suppress(EngineError, InitiatorError):
            async with await connect(portal, await _target(api, "orders")) as disk:
                while True:
                    await disk.write(rng.randrange(disk.size_bytes // (4 * KIB)) * 4 * KIB, rng.randbytes(4 * KIB))
                    await asyncio.sleep(WRITE_PAUSE_S)
        await asyncio.sleep(CYCLE_S)


async def _slow_copies(api: EngineApi, portal: tuple[str, int]) -> None:
    """Jobs to watch: a mirror rests while its source is written, and then takes its time."""
    rng = random.Random(9)
    while True:
        with contextlib.suppress(EngineError, InitiatorError, DemoFailed):
            await api.replica_pause("media-far")
            await _write(api, portal, "media", CHANGED_BYTES, rng)
            await _ended(api, api.replica_resume("media-far"))
        await asyncio.sleep(CYCLE_S)


async def _clones(api: EngineApi, portal: tuple[str, int]) -> None:
    """Volumes, snapshots and jobs that come and go."""
    del portal
    number = 0
    while True:
        await asyncio.sleep(CYCLE_S)
        number += 1
        with contextlib.suppress(EngineError, DemoFailed):
            await _ended(api, api.clone_copy("orders", None, f"nightly-{number}"))
            if number > KEPT_CLONES:
                await api.volume_delete(f"nightly-{number - KEPT_CLONES}")
