"""``twinvol demo``: the main job end to end, on temporary files, with a real daemon in a process of its own.

    an ext4 image goes in over iSCSI -> snapshot -> writing goes on; meanwhile full clone, linked clone, synchronous
    mirror -> every copy verified by hash -> kill -9 in the middle of writing -> opened again, verified again

Nothing is taken on trust: what the volume must hold is kept here, byte by byte, from what the daemon *acknowledged*,
and the roots of hash trees are compared with those computed here. The demo succeeds only if every check held.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.errors import EngineError
from engine.hash_tree import LEAF_BYTES, HashTree, leaf_digests
from engine.proof import Proof
from engine.units import KIB, MIB, SECTOR_SIZE
from iscsi.initiator import InitiatorError, IscsiDisk, connect
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from engine.api import EngineApi, JobInfo
    from twinvol.demo_screen import Screen

VOLUME_BYTES = 256 * MIB
TREE_FILES, TREE_FILE_BYTES = 96, 1 * MIB
"""What goes into the image: 96 MiB of data in a directory tree, the rest of the volume stays a hole."""

WRITERS = 4
WRITE_PAUSE_S = 0.002
"""A host that works, not a benchmark: it leaves the machine something for the copies."""
WRITE_BYTES = (4 * KIB, 4 * KIB, 16 * KIB, 64 * KIB)
READY_TIMEOUT_S = 20.0
SYNCHRONIZED_TIMEOUT_S = 60.0


class DemoFailed(Exception):
    """A step could not be done, or a check did not hold."""


@dataclass
class Check:
    """Something that had to hold. ``detail`` is for people: a size, a rate, a root."""

    name: str
    ok: bool
    detail: str
    seconds: float


@dataclass
class Daemon:
    """``twinvol serve`` as a child process. ``ready``: its ready line."""

    process: asyncio.subprocess.Process
    ready: dict[str, Any]
    portal: tuple[str, int]
    started_s: float

    @classmethod
    async def start(cls, pool: Path, log: Path, *arguments: str, apart: bool = False) -> Daemon:
        """Start it on a free port, with more ``arguments``, and wait for its ready line.

        ``apart``: what the terminal tells this process, Ctrl-C or its own end, the daemon does not hear.
        Raises DemoFailed.
        """
        began = time.monotonic()
        with log.open("ab") as stderr:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "twinvol", "serve", "--iscsi", "127.0.0.1:0", "--pool", str(pool), *arguments),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=stderr,
                start_new_session=apart,
            )
        assert process.stdout is not None
        try:
            async with asyncio.timeout(READY_TIMEOUT_S):
                line = await process.stdout.readline()
            ready = json.loads(line)
        except (TimeoutError, ValueError, asyncio.CancelledError) as error:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            if isinstance(error, asyncio.CancelledError):
                raise
            tail = await asyncio.to_thread(log.read_text, errors="replace")
            raise DemoFailed(f"the daemon did not come up; its log ends:\n{tail[-2000:]}") from None
        host, port = ready["iscsi"][0].rsplit(":", 1)
        return cls(process, ready, (host, int(port)), time.monotonic() - began)

    async def kill(self) -> None:
        """``kill -9``."""
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; the exit code."""
        if self.process.returncode is None:
            self.process.terminate()
        return await self.process.wait()


@dataclass
class Content:
    """What the volume must hold: everything acknowledged, and what was on its way when the daemon died."""

    data: bytearray
    in_flight: dict[int, bytes] = field(default_factory=dict)

    def tree(self) -> HashTree:
        tree = HashTree(len(self.data))
        view = memoryview(self.data)
        for offset in range(0, len(self.data), 16 * LEAF_BYTES):
            tree.put(offset, leaf_digests(view[offset : offset + 16 * LEAF_BYTES]))
        return tree

    def root(self) -> str:
        return self.tree().root().hex()

    def difference(self, offset: int, found: bytes) -> int | None:
        """Where ``found`` is neither what was acknowledged nor what was on its way; None: nowhere.

        What is found of writes on their way is taken over: from now on it is the volume's content.
        """
        for at in range(offset, offset + len(found), SECTOR_SIZE):
            sector = found[at - offset : at - offset + SECTOR_SIZE]
            if sector == self.data[at : at + SECTOR_SIZE]:
                continue
            if not any(
                start <= at < start + len(new) and sector == new[at - start : at - start + SECTOR_SIZE]
                for start, new in self.in_flight.items()
            ):
                return at
            self.data[at : at + SECTOR_SIZE] = sector
        return None


class Host:
    """Writers on one iSCSI session: never two writes to one place at a time, every acknowledgement noted."""

    def __init__(self, disk: IscsiDisk, content: Content) -> None:
        self.writes = 0
        self.slowest_s = 0.0
        self._disk = disk
        self._content = content
        self._ending = False
        self._rng = random.Random(2026)
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._write()) for _ in range(WRITERS)]

    async def stop(self) -> None:
        """End after the writes under way; also when the daemon is gone."""
        self._ending = True
        await asyncio.gather(*self._tasks)

    async def _write(self) -> None:
        content = self._content
        while not self._ending:
            length = self._rng.choice(WRITE_BYTES)
            offset = self._rng.randrange((len(content.data) - length) // (4 * KIB)) * 4 * KIB
            if any(start < offset + length and offset < start + len(new) for start, new in content.in_flight.items()):
                continue
            payload = self._rng.randbytes(64) * (length // 64)
            content.in_flight[offset] = payload
            began = time.monotonic()
            try:
                await self._disk.write(offset, payload)
            except InitiatorError:
                return  # the daemon was killed: this write may be there or not
            self.slowest_s = max(self.slowest_s, time.monotonic() - began)
            content.data[offset : offset + length] = payload
            del content.in_flight[offset]
            self.writes += 1
            await asyncio.sleep(WRITE_PAUSE_S)


class Demo:
    """The steps, in order; see the module."""

    def __init__(self, folder: Path, screen: Screen) -> None:
        self.checks: list[Check] = []
        self.copies: list[tuple[str, str, int, str]] = []
        """(what, how it was made, bytes of data, root)."""
        self._screen = screen
        self._folder = folder
        self._pool = folder / "pool"
        self._log = folder / "daemon.log"
        self._image = folder / "image.raw"
        self._content = Content(bytearray())
        self._daemon: Daemon | None = None

    async def run(self) -> None:
        """Raises DemoFailed at the first check that does not hold."""
        try:
            await self._image_goes_in()
            await self._copies_while_writing()
            await self._kill_and_reopen()
            await self._stop()
        finally:
            if self._daemon is not None and self._daemon.process.returncode is None:
                await self._daemon.kill()

    # --- the acts ---------------------------------------------------------------------------------------------------

    async def _image_goes_in(self) -> None:
        with self._screen.step("making an image") as step:
            kind = await asyncio.to_thread(make_image, self._folder / "tree", self._image)
            self._content.data[:] = await asyncio.to_thread(self._image.read_bytes)
            root = self._content.root()
            step.detail = f"{kind}, {size_text(VOLUME_BYTES)}"
        self._daemon = await self._start()
        async with open_api(self._pool) as api:
            await api.volume_create("disk", VOLUME_BYTES, expose=True)
            async with await self._connect(api) as disk:
                with self._screen.step("writing it over iSCSI", total=VOLUME_BYTES) as step:
                    written = await write_image(disk, self._content.data, step.advance)
                    await disk.flush()
                    step.detail = f"{size_text(written)} at {rate_text(written, step.seconds)}"
                with self._screen.step("reading it back", total=VOLUME_BYTES) as step:
                    await self._compare(disk, step.advance)
                    step.detail = f"equal, at {rate_text(VOLUME_BYTES, step.seconds)}"
                self._note("image over iSCSI, read back", step.seconds, step.detail)
            await self._compare_with_qemu()
            began = time.monotonic()
            await api.snapshot_create("disk", "before")
            took = time.monotonic() - began
            self._screen.line("snapshot disk@before", f"{took * 1000:.1f} ms")
            mine = await self._job(api, "hash tree of disk@before", api.volume_root("disk", "before"))
            self._equal("snapshot holds the image", mine.result["root"], root)
            self.copies.append(("disk@before", f"snapshot, {took * 1000:.0f} ms", written, root))

    async def _copies_while_writing(self) -> None:
        image_root = self.copies[0][3]
        async with open_api(self._pool) as api, await self._connect(api) as disk:
            host = Host(disk, self._content)
            host.start()
            try:
                clone = await self._job(api, "full clone of disk@before", api.clone_copy("disk", "before", "clone"))
                self._equal("full clone holds the image", clone.result["root"], image_root)
                self._copied("clone", "full clone", clone)
                began = time.monotonic()
                await api.clone_create("disk", "before", "linked")
                took = time.monotonic() - began
                self._screen.line("linked clone of disk@before", f"{took * 1000:.1f} ms")
                linked = await self._job(api, "hash tree of the linked clone", api.volume_root("linked"))
                self._equal("linked clone holds the image", linked.result["root"], image_root)
                self.copies.append(("linked", f"linked clone, {took * 1000:.0f} ms", 0, linked.result["root"]))
                mirror = await self._job(api, "synchronous mirror, while writing", api.replica_create("disk", "twin"))
                before = host.writes
                verified = await self._job(api, "verifying source against mirror", api.replica_verify("twin"))
                await asyncio.sleep(1.0)
                mirrored = f"{host.writes - before} of them to both sides"
                slowest = f"slowest {host.slowest_s * 1000:.0f} ms"
                self._screen.line("writing went on meanwhile", f"{host.writes} writes, {slowest}; {mirrored}")
            finally:
                await host.stop()
            proof = Proof.parse(verified.result["proof"])
            self._hold("mirror is identical, by proof", proof.identical, proof.source.root, 0)
            self._copied("twin", "sync mirror", mirror, root=proof.source.root)
            both = [await self._job(api, f"hash tree of {name}", api.volume_root(name)) for name in ("disk", "twin")]
            expected = self._content.root()
            self._equal("source holds all acknowledged writes", both[0].result["root"], expected)
            self._equal("mirror holds all acknowledged writes", both[1].result["root"], expected)

    async def _kill_and_reopen(self) -> None:
        assert self._daemon is not None
        async with open_api(self._pool) as api:
            disk = await self._connect(api)
        host = Host(disk, self._content)
        host.start()
        await asyncio.sleep(1.0)
        await self._daemon.kill()
        await host.stop()
        await disk.close()
        lost = f"after {host.writes} writes, {len(self._content.in_flight)} under way"
        self._screen.line("kill -9 in the middle of writing", lost)
        self._daemon = await self._start()
        async with open_api(self._pool) as api, await self._connect(api) as disk:
            with self._screen.step("verifying every acknowledged byte", total=VOLUME_BYTES) as step:
                await self._compare(disk, step.advance)
                step.detail = "nothing is lost"
            self._note(f"kill -9 {lost}: all acknowledged data is there", step.seconds, size_text(VOLUME_BYTES))
            self._content.in_flight.clear()
            with self._screen.step("mirror synchronizes again") as step:
                async with asyncio.timeout(SYNCHRONIZED_TIMEOUT_S):
                    while (info := await api.replica_show("twin")).copy_state != "Synchronized":
                        if info.copy_state != "Unsynchronized":
                            raise DemoFailed(f"replica twin is {info.copy_state}: {info.reason}")
                        await asyncio.sleep(0.05)
                step.detail = info.copy_state
            expected = self._content.root()
            verified = await self._job(api, "verifying source against mirror", api.replica_verify("twin"))
            self._equal("mirror after kill -9 holds the source's data", verified.result["root"], expected)
            image_root = self.copies[0][3]
            for name, snapshot in (("disk", "before"), ("clone", None), ("linked", None)):
                again = await self._job(api, f"hash tree of {name}", api.volume_root(name, snapshot))
                what = f"{name}@{snapshot}" if snapshot else name
                self._equal(f"{what} unchanged by kill -9", again.result["root"], image_root)
            self.copies.append(("disk", "the volume itself", len(self._content.data), expected))

    async def _stop(self) -> None:
        assert self._daemon is not None
        began = time.monotonic()
        code = await self._daemon.stop()
        self._hold("clean stop on SIGTERM", code == 0, f"exit {code}", time.monotonic() - began)
        from engine.tvol.check import check_file

        with self._screen.step("checking the volume files") as step:
            files = sorted((self._pool / "volumes").glob("*.tvol"))
            reports = [await asyncio.to_thread(check_file, file) for file in files]
            step.detail = f"{len(files)} files"
        damaged = [report.path for report in reports if report.damaged]
        self._hold("every structure of every file verifies", not damaged, f"{len(files)} files", step.seconds)

    # --- pieces -----------------------------------------------------------------------------------------------------

    async def _start(self) -> Daemon:
        daemon = await Daemon.start(self._pool, self._log)
        self._screen.line("daemon is ready", f"{daemon.started_s:.2f} s, iSCSI at port {daemon.portal[1]}")
        return daemon

    async def _connect(self, api: EngineApi) -> IscsiDisk:
        assert self._daemon is not None
        info = await api.volume_show("disk")
        assert info.target is not None
        return await connect(self._daemon.portal, info.target)

    async def _compare(self, disk: IscsiDisk, advance: Callable[[int], None]) -> None:
        for offset in range(0, disk.size_bytes, 4 * MIB):
            found = await disk.read(offset, min(4 * MIB, disk.size_bytes - offset))
            if found != self._content.data[offset : offset + len(found)]:
                wrong = self._content.difference(offset, found)
                if wrong is not None:
                    raise DemoFailed(f"the sector at byte {wrong} is not what was acknowledged")
            advance(len(found))

    async def _compare_with_qemu(self) -> None:
        """The same by a foreign program, over a raw export (its iSCSI driver is a package of its own)."""
        if shutil.which("qemu-img") is None:
            self._screen.line("qemu-img compare", "skipped: qemu-img is not installed")
            return
        out = self._folder / "export.raw"
        async with open_api(self._pool) as api:
            await self._job(api, "exporting a raw image", api.volume_export("disk", None, str(out)))
        with self._screen.step("qemu-img compare") as step:
            command = ["qemu-img", "compare", "-f", "raw", "-F", "raw", str(self._image), str(out)]
            done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
            step.detail = done.stdout.strip()
        self._hold("qemu-img compare agrees", done.returncode == 0, done.stdout.strip() or done.stderr, step.seconds)
        out.unlink()

    async def _job(self, api: EngineApi, what: str, starting: Any) -> JobInfo:
        """Start a job and show it to its end; it must succeed."""
        with self._screen.step(what) as step:
            job: JobInfo = await starting
            while job.finished_at is None:
                job = await api.job_wait(job.job, after_version=job.version)
                step.show(job.done_bytes, job.total_bytes)
            if job.error is not None:
                raise DemoFailed(f"{what}: {job.message}")
            if job.total_bytes:
                step.detail = f"{size_text(job.done_bytes)} at {rate_text(job.done_bytes, step.seconds)}"
        return job

    def _copied(self, name: str, kind: str, job: JobInfo, *, root: str | None = None) -> None:
        took = (job.finished_at or 0) - job.created_at
        how = f"{kind}, {rate_text(job.done_bytes, took)}"
        self.copies.append((name, how, job.done_bytes, root or str(job.result["root"])))

    def _equal(self, name: str, found: str, expected: str) -> None:
        self._hold(name, found == expected, f"root {found}", 0)

    def _note(self, name: str, seconds: float, detail: str) -> None:
        self._hold(name, True, detail, seconds)

    def _hold(self, name: str, ok: bool, detail: str, seconds: float) -> None:
        self.checks.append(Check(name, ok, detail, seconds))
        if not ok:
            raise DemoFailed(f"{name}: {detail}")


def make_image(tree: Path, image: Path) -> str:
    """An ext4 file system with a directory tree in it where e2fsprogs is present, else a made image. Says which."""
    rng = random.Random(1)
    for number in range(TREE_FILES):
        folder = tree / f"folder-{number % 8}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"file-{number}").write_bytes(rng.randbytes(TREE_FILE_BYTES))
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mkfs is not None:
        command = [mkfs, "-q", "-F", "-d", str(tree), str(image), f"{VOLUME_BYTES // KIB}k"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DemoFailed(f"mkfs.ext4: {done.stderr.strip()}")
        kind = "an ext4 file system"
    else:
        with image.open("wb") as file:
            for number in range(TREE_FILES):
                file.seek(number * 2 * MIB)
                file.write(rng.randbytes(MIB))
        kind = "made data (no mkfs.ext4 here)"
    with image.open("r+b") as file:
        file.truncate(VOLUME_BYTES)
    shutil.rmtree(tree)
    return kind


async def write_image(disk: IscsiDisk, data: bytearray, advance: Callable[[int], None]) -> int:
    """Write what is not zero; returns how many bytes that is."""
    view, written, zeroes = memoryview(data), 0, bytes(MIB)
    for offset in range(0, len(data), MIB):
        part = view[offset : offset + MIB]
        if bytes(part) != zeroes[: len(part)]:
            await disk.write(offset, part)
            written += len(part)
        advance(len(part))
    return written


def size_text(size: float) -> str:
    return f"{size / MIB:.0f} MiB"


def rate_text(size: float, seconds: float) -> str:
    return f"{size / MIB / max(seconds, 1e-3):.0f} MiB/s"


@contextlib.asynccontextmanager
async def temporary_folder() -> AsyncIterator[Path]:
    """Removed at the end, whatever happened."""
    folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="twinvol-demo-"))
    try:
        yield folder
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)


async def run(screen: Screen) -> dict[str, Any]:
    """Run the demo and show its summary; returns that, with ``ok``."""
    began = time.monotonic()
    async with temporary_folder() as folder:
        demo = Demo(folder, screen)
        failure = ""
        try:
            await demo.run()
        except (DemoFailed, EngineError, InitiatorError, TimeoutError) as error:
            failure = str(error) or type(error).__name__
            if demo.checks and demo.checks[-1].ok:
                demo.checks.append(Check("the demo went through", False, failure, 0))
        checks = [vars(check) for check in demo.checks]
        copies = [{"name": n, "made": made, "bytes": size, "root": root} for n, made, size, root in demo.copies]
        seconds = round(time.monotonic() - began, 2)
        result = {"ok": not failure, "failure": failure, "seconds": seconds, "checks": checks, "copies": copies}
        screen.summary(result)
    return result
