"""A volume file with everything in it, on a simulated machine, for tests that damage or check it."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from engine.files import StoreEnv
from engine.tvol import layout
from engine.tvol.check_image import Findings, Image, Loader, Node
from engine.tvol.file import TvolFile
from tests.support.sim_files import SimFileSystem
from tests.support.sim_loop import SimClock, SimLoop, SimWorkers

if TYPE_CHECKING:
    import numpy as np

PATH = Path("/pool/v.tvol")
CHUNK = 65536
SIZE = 20 * CHUNK


@dataclass
class MadeVolume:
    """A closed or killed file, and what its devices hold by name."""

    files: SimFileSystem
    contents: dict[str, bytes] = field(default_factory=dict)

    def run(self, main):
        """Run ``main(env)`` in a process of its own; the file is left as a kill leaves it."""
        loop = SimLoop()
        env = StoreEnv(self.files, SimWorkers(loop, random.Random(1)), SimClock(loop))
        try:
            return loop.run_until_complete(main(env))
        finally:
            self.files.kill()
            loop.close()
            self.files.restart_process()

    def image(self) -> Image:
        """The file as the checker reads it."""
        file = self.files.open(PATH, writable=False)
        findings = Findings()
        image = Loader(file, findings).load()
        assert image is not None
        used_pages(image)  # so that it has all its maps when the file is closed
        file.close()
        assert not findings.items
        return image

    def pages(self, part: str) -> list[int]:
        """Pages whose use contains ``part`` ("births", "deadlist", "map leaf", ...)."""
        return [page for page, use in used_pages(self.image()).items() if part in use]

    def flip(self, offset: int, mask: int = 1) -> None:
        self.files.flip(PATH, offset, mask)

    def flip_page(self, page: int, within: int = 100) -> None:
        self.flip(page * layout.PAGE_SIZE + within)

    async def read_back(self, env: StoreEnv) -> dict[str, bytes]:
        """Open it and read all its devices."""
        store = await TvolFile.open(env, PATH)
        found = {}
        for device in [*store.volumes(), *store.snapshots()]:
            buffer = bytearray(device.size_bytes)
            await device.read(0, memoryview(buffer))
            found[device.name] = bytes(buffer)
        await store.close()
        return found


def used_pages(image: Image) -> dict[int, str]:
    """Every page of a file and what it is used as."""
    found = dict(image.uses.items())
    for node in image.nodes.values():
        found.update((ref.page, f"{node.where}, map top") for ref in node.record.top_pages)
        found.update((ref.page, f"{node.where}, deadlist") for ref in node.record.deadlist_pages)
        found.update((leaf.page, f"{node.where}, map leaf {leaf.number}") for leaf in stored_leaves(image, node))
    return found


class StoredLeaf(NamedTuple):
    """A leaf of a map as it is in the file."""

    number: int
    page: int
    entries: np.ndarray


def stored_leaves(image: Image, node: Node) -> list[StoredLeaf]:
    """Those that a node's map has."""
    rows = [row for number in range(len(node.tops)) for row in image.maps.top(node.tops, number, node.where)]
    return [
        StoredLeaf(number, int(row["page"]), image.maps.entries(row, node.where))
        for number, row in enumerate(rows)
        if row["page"]
    ]


def make_volume(*, closed: bool = True, shared: bool = False) -> MadeVolume:
    """Two snapshots, a clone, deadlists, holes; closed cleanly, or killed with a journal of committed records.

    ``shared``: with chunks of a snapshot in another place of the clone, some of them overwritten since.
    """
    made = MadeVolume(SimFileSystem(random.Random(7)))
    rng = random.Random(8)

    async def main(env: StoreEnv) -> None:
        store = await TvolFile.create(
            env, PATH, volume_name="vol", size_bytes=SIZE, chunk_bytes=CHUNK, journal_bytes=CHUNK
        )
        head = store.volumes()[0]

        async def scribble(device, count: int) -> None:
            for _ in range(count):
                offset = rng.randrange(SIZE // 4096) * 4096
                length = min(rng.choice((4096, CHUNK, 3 * CHUNK)), SIZE - offset)
                await device.write(offset, memoryview(rng.randbytes(length)))
            await device.discard(rng.randrange(16) * CHUNK, CHUNK)

        await scribble(head, 12)
        await store.snapshot(head, "one")
        await scribble(head, 8)
        if shared:
            await head.write(0, memoryview(rng.randbytes(6 * CHUNK)))  # no slot names a partial chunk
        two = await store.snapshot(head, "two")
        await scribble(head, 8)
        copy = await store.clone(two, "copy")
        await scribble(copy, 5)
        if shared:
            await store.share(two, 0, copy, 9 * CHUNK, 6 * CHUNK)
            await copy.write(10 * CHUNK, memoryview(rng.randbytes(2 * CHUNK)))
        await head.flush()
        if closed:
            await store.close()

    made.run(main)
    made.contents = made.run(made.read_back) if closed else {}
    return made
