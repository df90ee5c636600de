"""What changed, brought to a peer: bytes on the wire and seconds, beside rsync. A part of ``bench.replication``.

``aligned``: 1 % of a volume's chunks of 64 KiB, each written whole, while the mirror was fractured; it has a common
point. ``hash``: 1 % of its blocks of 4 KiB, anywhere, and no common point: it was forgotten (in the catalogue, while
the daemon was down), so the two sides are compared by hash tree. rsync has the same changes in a file of the same
content, with its delta algorithm on. Bytes are those of both ways: ours with all that TLS and frames add, counted by a
relay between the daemons; rsync's as it counts them itself.

``cuts``: a first copy whose connections are all cut, again and again: how much was sent beyond the volume itself. What
was on its way when it was cut has to be; what had arrived has not.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import socket
import sqlite3
import statistics
import subprocess
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.loadgen import BenchError
from engine.units import KIB, MIB
from iscsi.initiator.disk import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from bench.replication import Pool

SHARE = 100
"""One in so many is changed."""
PIECES = {"aligned": 64 * KIB, "hash": 4 * KIB}
WANTED_BYTES = {"aligned": 1.05, "hash": 1.0}
"""At most: aligned, of the changed bytes; hash, of rsync's."""
WANTED_TIME = 4.0
"""Aligned: at least so many times as fast as rsync."""


@dataclass(frozen=True)
class Figures:
    """One round."""

    changed_bytes: int
    seconds: float
    sent_bytes: int
    rsync_seconds: float
    rsync_bytes: int

    def values(self) -> tuple[float, ...]:
        return self.changed_bytes, self.seconds, self.sent_bytes, self.rsync_seconds, self.rsync_bytes


class Relay:
    """Passes connections on and counts their bytes; in threads, so that nobody's loop is in the way."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.bytes = 0
        self.cuts = 0
        self.cut_every: int | None = None
        """All connections are cut each time that so many bytes have gone by."""
        self._cut_at = 0
        self._open: set[socket.socket] = set()
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        host, port = self._listener.getsockname()
        self.address = f"{host}:{port}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                here, _ = self._listener.accept()
                there = socket.create_connection(self._target)
                self._open |= {here, there}
                for sock in (here, there):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for a, b in ((here, there), (there, here)):
                    threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, source: socket.socket, sink: socket.socket) -> None:
        buffer = memoryview(bytearray(256 * KIB))
        with suppress(OSError):
            while size := source.recv_into(buffer):
                self.bytes += size
                if self.cut_every is not None and self.bytes >= self._cut_at:
                    self._cut()
                sink.sendall(buffer[:size])
        for sock in (source, sink):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            self._open.discard(sock)

    def begin_cutting(self, every: int) -> None:
        self.cut_every, self._cut_at = every, self.bytes + every

    def _cut(self) -> None:
        assert self.cut_every is not None
        self._cut_at = self.bytes + self.cut_every
        self.cuts += 1
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


@contextmanager
def relayed(address: str) -> Iterator[Relay]:
    """A relay to a daemon's socket for peers."""
    host, port = address.rsplit(":", 1)
    relay = Relay((host, int(port)))
    try:
        yield relay
    finally:
        relay.close()


def deltas(
    work: Path, served: Callable[[Path], AbstractContextManager[Pool]], image: Path, url: str, rounds: int
) -> dict[str, list[Figures]]:
    """Both tables' rows. ``image``: full of random data, and at ``url`` already."""
    found: dict[str, list[Figures]] = {kind: [] for kind in PIECES}
    size, here, there = image.stat().st_size, work / "delta-here", work / "delta-there"
    with served(there) as target, relayed(str(target.ready["peer"])) as relay:
        with served(here) as source:
            code = target.run("peer", "invite", "--address", relay.address)["code"]
            source.run("peer", "add", "far", "--code", code)
            wait_connected(source)
            source.run("volume", "import", "delta", "--from", str(image), "--expose")
            source.run("replica", "create", "delta", "far-copy", "--mode", "sync", "--peer", "far")
        for number in range(rounds):
            for kind, piece in PIECES.items():
                changed = changes(size, piece, number)
                with served(here) as source:
                    wait_connected(source)
                    source.run("replica", "fracture", "far-copy")
                    asyncio.run(write(source, changed))
                if kind == "hash":
                    forget_common_point(here, "far-copy")
                change_image(image, changed)
                with served(here) as source:
                    wait_connected(source)
                    ours = by_mirror(source, relay, "far-copy")
                found[kind].append(Figures(len(changed) * piece, *ours, *by_rsync(image, url)))
    return found


def with_cuts(work: Path, served: Callable[[Path], AbstractContextManager[Pool]], image: Path) -> tuple[int, int, int]:
    """A first copy that is cut ten times or so: cuts, bytes of the volume, and bytes that went by."""
    here, there, size = work / "cut-here", work / "cut-there", image.stat().st_size
    with served(there) as target, relayed(str(target.ready["peer"])) as relay, served(here) as source:
        code = target.run("peer", "invite", "--address", relay.address)["code"]
        source.run("peer", "add", "far", "--code", code)
        wait_connected(source)
        source.run("volume", "import", "delta", "--from", str(image))
        before = relay.bytes
        relay.begin_cutting(size // 10)
        source.run("replica", "create", "delta", "far-copy", "--mode", "async", "--rpo", "1d", "--peer", "far")
        relay.cut_every = None
        sent = relay.bytes - before
        wait_connected(source)
        if not source.run("replica", "verify", "far-copy")["identical"]:
            raise BenchError("the two sides differ")
    return relay.cuts, size, sent


def wait_connected(source: Pool) -> None:
    while not all(peer["connected"] for peer in source.run("peer", "list")["peers"]):
        time.sleep(0.1)


def report(found: dict[str, list[Figures]]) -> None:
    """A line for each kind of change, by medians."""
    print("\nwhat changed, to a peer: bytes of both ways, seconds")
    for kind, rows in found.items():
        changed, seconds, sent, rsync_s, rsync_sent = (
            statistics.median(column) for column in zip(*(row.values() for row in rows), strict=True)
        )
        what = {"aligned": "chunks of 64 KiB, from the common point", "hash": "blocks of 4 KiB, by hash tree"}[kind]
        print(f"  1 % in {what}: {changed / MIB:.2f} MiB changed")
        ratio, wanted = {
            "aligned": (sent / changed, "of the changed bytes"),
            "hash": (sent / rsync_sent, "of rsync's bytes"),
        }[kind]
        verdict = "yes" if ratio <= WANTED_BYTES[kind] else "no"
        print(f"    twinvol {sent / MIB:9.2f} MiB {seconds:7.2f} s   {ratio:.3f}x {wanted}"
              f"   wanted at most {WANTED_BYTES[kind]:g}x: {verdict}")  # fmt: skip
        faster = rsync_s / seconds
        goal = f"   wanted {WANTED_TIME:g}x: {'yes' if faster >= WANTED_TIME else 'no'}" if kind == "aligned" else ""
        print(f"    rsync   {rsync_sent / MIB:9.2f} MiB {rsync_s:7.2f} s   twinvol is {faster:.1f}x as fast{goal}")


def changes(size: int, piece: int, seed: int) -> dict[int, bytes]:
    """New content of one in ``SHARE`` pieces, by offset."""
    rng = random.Random(seed)
    places = rng.sample(range(size // piece), size // piece // SHARE)
    return {place * piece: os.urandom(piece) for place in sorted(places)}


async def write(here: Pool, changed: dict[int, bytes]) -> None:
    """As a host does, through iSCSI."""
    host, port = str(here.ready["iscsi"][0]).rsplit(":", 1)
    async with await connect((host, int(port)), here.run("volume", "show", "delta")["target"], 0) as disk:
        for offset, data in changed.items():
            await disk.write(offset, data)
        await disk.flush()


def forget_common_point(pool: Path, name: str) -> None:
    """While its daemon is down."""
    with sqlite3.connect(pool / "catalog.sqlite") as database:
        (text,) = database.execute("SELECT state FROM mirrors WHERE name = ?", (name,)).fetchone()
        state = json.loads(text) | {"common": None, "round_source": None, "points": []}
        database.execute("UPDATE mirrors SET state = ? WHERE name = ?", (json.dumps(state), name))


def by_rsync(image: Path, url: str) -> tuple[float, int]:
    """Seconds, and bytes of both ways."""
    started = time.monotonic()
    command = ["rsync", "--inplace", "--no-whole-file", "--ignore-times", "--stats", str(image), url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout.replace(",", "")
    seconds = time.monotonic() - started
    found = [re.search(rf"Total bytes {way}: (\d+)", text) for way in ("sent", "received")]
    if None in found:
        raise BenchError("rsync tells no bytes")
    return seconds, sum(int(match[1]) for match in found if match is not None)


def by_mirror(here: Pool, relay: Relay, name: str) -> tuple[float, int]:
    """Seconds, and bytes of both ways."""
    before = relay.bytes
    job = here.run("replica", "resync", name)
    seconds, sent = float(job["finished_at"]) - float(job["created_at"]), relay.bytes - before
    if not here.run("replica", "verify", name)["identical"]:
        raise BenchError("the two sides differ")
    return seconds, sent


def change_image(image: Path, changed: dict[int, bytes]) -> None:
    with image.open("r+b") as file:
        for offset, data in changed.items():
            file.seek(offset)
            file.write(data)
