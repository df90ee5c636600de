"""A journaled file system in a volume of a real daemon: what a crash leaves of it can be mounted, and has its files.

No kernel is needed: ``debugfs`` writes a file into a copy of the image, and what that changes goes to the volume over
iSCSI as a kernel would send it, in this order, with a flush between any two:

    superblock: needs recovery -> transaction in the journal -> its commit block -> the blocks in place -> journal empty
    -> superblock

Once the flush behind the commit block is answered, the file is promised. The daemon is killed in the middle; then the
host reads the disk again, has ``e2fsck`` replay the journal as mounting would, and goes on. Snapshots are taken all the
while. Of each crash image (``images.py``) the volume and its newest snapshots are written to raw files, and of each

    * ``e2fsck -p`` replays the journal and finds nothing that it may not mend unasked (what the kernel leaves, too);
    * ``e2fsck -fn`` finds nothing then;
    * each file that was promised when the image, or the snapshot, was made is there; no file has other bytes.

The file system has no checksums in its superblock, which a power loss may tear between its sectors.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from iscsi.initiator import InitiatorError, IscsiUrl, connect
from tests.crash_images.recording import TRACE_VARIABLE, VOLUME, Event, Recording
from tests.support.daemon import Daemon
from tests.support.volume_oracle import Violation
from twinvol.api.client import open_api

if TYPE_CHECKING:
    from engine.stores import Frozen, Head
    from engine.tvol.file import TvolFile
    from iscsi.initiator import IscsiDisk

SIZE = 12 << 20
BLOCK = 4096
JOURNAL_MIB = 4
SUPERBLOCK = 0
"""The block that has it."""
EXAMINED_SNAPSHOTS = 2
MENDED = (0, 1)
"""Exit statuses of ``e2fsck -p`` that are not complaints."""
MKFS = ("mkfs.ext4", "-q", "-F", "-b", str(BLOCK), "-J", f"size={JOURNAL_MIB}", "-O", "^metadata_csum")


def _tool(*command: str, statuses: tuple[int, ...] = (0,)) -> str:
    """Raises Violation when it ends with another status."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode not in statuses:
        raise Violation(f"{' '.join(command)}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


class Image:
    """A raw image in a folder for scratch files, worked on with the file system's tools."""

    def __init__(self, folder: Path, content: bytes) -> None:
        self._folder = folder
        self._path = folder / "image"
        self.content = content

    def _run(self, *commands: str) -> bytes:
        """What ``debugfs`` makes of the image; it stays as it was."""
        self._path.write_bytes(self.content)
        script = self._folder / "commands"
        script.write_text("\n".join(commands) + "\n")
        _tool("debugfs", "-w", "-f", str(script), str(self._path))
        return self._path.read_bytes()

    def with_transaction(self, name: str, data: bytes) -> bytes:
        """The image with a transaction in its journal, committed and not yet in place, that makes a file."""
        (self._folder / "new").write_bytes(data)
        made = self._run(f"write {self._folder / 'new'} {name}")
        blocks = changed(self.content, made)
        (self._folder / "blocks").write_bytes(b"".join(made[at * BLOCK : (at + 1) * BLOCK] for at in blocks))
        numbers = ",".join(map(str, blocks))
        return self._run("jo -c", f"jw -b {numbers} {self._folder / 'blocks'}", "jc")

    def recover(self) -> None:
        """Replay the journal, as mounting does. Raises Violation when the tool finds what it may not mend unasked."""
        self._path.write_bytes(self.content)
        _tool("e2fsck", "-p", str(self._path), statuses=MENDED)
        self.content = self._path.read_bytes()

    def check(self) -> None:
        """Raises Violation unless all is well."""
        self._path.write_bytes(self.content)
        _tool("e2fsck", "-f", "-n", str(self._path))

    def files(self, names: list[str]) -> dict[str, bytes]:
        """The content of those of the files that are there."""
        for number in range(len(names)):
            (self._folder / f"file{number}").unlink(missing_ok=True)
        self._run(*(f"dump {name} {self._folder / f'file{number}'}" for number, name in enumerate(names)))
        places = {name: self._folder / f"file{number}" for number, name in enumerate(names)}
        return {name: place.read_bytes() for name, place in places.items() if place.exists()}


def changed(before: bytes, after: bytes) -> list[int]:
    """Numbers of the blocks that differ."""
    places = range(0, len(after), BLOCK)
    return [at // BLOCK for at in places if before[at : at + BLOCK] != after[at : at + BLOCK]]


@dataclass(slots=True)
class _Host:
    """The machine that has the file system mounted."""

    image: Image
    rng: random.Random
    events: list[Event]
    contents: dict[str, bytes] = field(default_factory=dict)

    def note(self, what: str, name: str, *, answered: bool) -> None:
        self.events.append(Event(time.monotonic_ns(), what, len(self.events), answered, name=name))

    async def make(self, disk: IscsiDisk) -> None:
        """The empty file system, durably."""
        for at in changed(bytes(SIZE), self.image.content):
            await disk.write(at * BLOCK, self.image.content[at * BLOCK : (at + 1) * BLOCK])
        await disk.flush()
        self.note("made", VOLUME, answered=True)

    async def mount(self, disk: IscsiDisk) -> None:
        """Read the disk and recover it."""
        found = b"".join([await disk.read(at, 1 << 20) for at in range(0, SIZE, 1 << 20)])
        self.image.content = found
        self.image.recover()
        await self._step(disk, changed(found, self.image.content), self.image.content)

    async def put(self, disk: IscsiDisk, name: str) -> None:
        """Make a file."""
        data = self.contents[name] = self.rng.randbytes(self.rng.choice((100, 4000, 5000, 30_000)))
        before, journaled = self.image.content, self.image.with_transaction(name, data)
        self.image.content = journaled
        self.image.recover()
        after = self.image.content
        head, *body, commit = (at for at in changed(before, journaled) if at != SUPERBLOCK)
        in_place = [at for at in changed(journaled, after) if at not in (SUPERBLOCK, head)]
        self.note("file", name, answered=False)
        await self._step(disk, [SUPERBLOCK], journaled)
        await self._step(disk, [head, *body], journaled)
        await self._step(disk, [commit], journaled)
        self.note("file", name, answered=True)
        await self._step(disk, in_place, after)
        await self._step(disk, [head], after)
        await self._step(disk, [SUPERBLOCK], after)

    async def _step(self, disk: IscsiDisk, blocks: list[int], content: bytes) -> None:
        self.rng.shuffle(blocks)
        for at in blocks:
            await disk.write(at * BLOCK, content[at * BLOCK : (at + 1) * BLOCK])
        await disk.flush()


async def _life(daemon: Daemon, url: str, host: _Host, life: int, files: int, *, killed: bool) -> None:
    """Files are made one after the other, with a snapshot beside every other one; the daemon is killed beside the
    last."""
    at = IscsiUrl.parse(url)
    async with open_api(daemon.pool) as api, await connect((at.host, at.port), at.target, at.lun) as disk:
        if life:
            await host.mount(disk)
        else:
            await host.make(disk)
        for number in range(files):
            beside = asyncio.create_task(host.put(disk, f"f{life}-{number}"))
            if killed and number == files - 1:
                for _ in range(host.rng.randint(2, 40)):
                    await asyncio.sleep(0)
                daemon.kill()
            elif number % 2:
                name = f"s{life}-{number}"
                host.note("snapshot", name, answered=False)
                await api.snapshot_create(VOLUME, name)
                host.note("snapshot", name, answered=True)
            try:
                await beside
            except (InitiatorError, OSError):
                if daemon.process.poll() is None:
                    raise


def record_filesystem(folder: Path, *, seed: int, files: int, kills: int) -> tuple[Recording, dict[str, bytes]]:
    """Run a daemon on ``folder``; ``files`` of each life. Also what each file holds, whether it was promised or not."""
    rng, trace = random.Random(seed), folder / "trace"
    scratch = folder / "scratch"
    scratch.mkdir(parents=True)
    empty = scratch / "image"
    empty.write_bytes(bytes(SIZE))
    _tool(*MKFS, str(empty))
    host = _Host(Image(scratch, empty.read_bytes()), rng, [])
    for life in range(kills + 1):
        with Daemon.start(folder / "pool", environment={TRACE_VARIABLE: str(trace)}) as daemon:
            url = daemon.volume(VOLUME, str(SIZE)) if not life else daemon.url(daemon.run("volume", "show", VOLUME))
            asyncio.run(_life(daemon, url, host, life, files, killed=life < kills))
    (volume_file,) = (folder / "pool").rglob("*.tvol")
    return Recording(trace, volume_file, host.events, kills), host.contents


class Mounted:
    """What the host knows at a moment, and the judge of an image (``images.Promises``)."""

    def __init__(self, contents: dict[str, bytes]) -> None:
        self._contents = contents
        self._is_made = False
        self._certain: set[str] = set()
        self._snapshots: dict[str, set[str]] = {}
        """Of those that were asked for, the files that were promised then."""
        self._answered: set[str] = set()

    def play(self, event: Event) -> None:
        if event.what == "made":
            self._is_made = True
        elif event.what == "file" and event.answered:
            self._certain.add(event.name)
        elif event.what == "snapshot" and event.answered:
            self._answered.add(event.name)
        elif event.what == "snapshot":
            self._snapshots[event.name] = self._certain.copy()

    async def judge(self, store: TvolFile, *, power_lost: bool) -> None:
        """Raises Violation."""
        if not self._is_made:
            return
        snapshots = {snapshot.name: snapshot for snapshot in store.snapshots()}
        if missing := self._answered - snapshots.keys():
            raise Violation(f"snapshots {sorted(missing)} are gone")
        await self._examine(store.volume(VOLUME), self._certain)
        for name in list(snapshots)[-EXAMINED_SNAPSHOTS:]:
            await self._examine(snapshots[name], self._snapshots[name])

    async def _examine(self, device: Head | Frozen, certain: set[str]) -> None:
        content = bytearray(SIZE)
        for at in range(0, SIZE, 1 << 20):
            await device.read(at, memoryview(content)[at : at + (1 << 20)])
        with tempfile.TemporaryDirectory(prefix="twinvol-image-") as folder:
            image = Image(Path(folder), bytes(content))
            image.recover()
            image.check()
            found = image.files(list(self._contents))
        if missing := certain - found.keys():
            raise Violation(f"{device.name}: files {sorted(missing)} are gone")
        for name, data in found.items():
            if data != self._contents[name]:
                raise Violation(f"{device.name}: file {name} has other bytes")
