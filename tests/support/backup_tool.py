"""A backup program as somebody else would write one: the command line says what changed, iSCSI has the bytes.

    python -m tests.support.backup_tool POOL PORTAL VOLUME SNAPSHOT PREVIOUS|- FOLDER

Holds the snapshot, exposes it, lists what changed since PREVIOUS (all that is allocated without one) with digests,
reads that from the exposed snapshot, compares digests, writes ``FOLDER/SNAPSHOT.json`` and ``.data``, and gives the
snapshot free. It knows nothing of twinvol but documented answers; the initiator is the project's own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xxhash

from iscsi.initiator.disk import connect

if TYPE_CHECKING:
    from collections.abc import Iterator

LEAF = 64 * 1024
OWNER = "backup"


class Cli:
    """``twinvol`` on one pool."""

    def __init__(self, pool: str) -> None:
        self._end = ["--json", "--pool", pool]

    def run(self, *arguments: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "twinvol", *arguments, *self._end]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    def lines(self, *arguments: str) -> Iterator[dict[str, Any]]:
        command = [sys.executable, "-m", "twinvol", *arguments, "--progress", *self._end]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                yield json.loads(line)
        assert process.returncode == 0


async def back_up(pool: str, portal: str, volume: str, snapshot: str, previous: str, folder: Path) -> None:
    cli = Cli(pool)
    cli.run("snapshot", "hold", volume, snapshot, OWNER, "--for", "1h")
    exposed = cli.run("snapshot", "expose", volume, snapshot)
    since = [] if previous == "-" else ["--from", previous]
    host, _, port = portal.rpartition(":")
    parts = []
    async with await connect((host, int(port)), exposed["target"], exposed["lun"]) as disk:
        with (folder / f"{snapshot}.data").open("wb") as out:
            for line in cli.lines("volume", "diff", f"{volume}@{snapshot}", "--digests", *since):
                if line["event"] == "end":
                    size = line["size_bytes"]
                    assert line["count"] == len(parts)
                    continue
                parts.append([line["offset"], line["length"], line["state"]])
                if line["state"] == "data":
                    data = await disk.read(line["offset"], line["length"])
                    digests = [xxhash.xxh3_128_hexdigest(data[at : at + LEAF]) for at in range(0, len(data), LEAF)]
                    assert digests == line["digests"], f"offset {line['offset']} was read as something else"
                    out.write(data)
    (folder / f"{snapshot}.json").write_text(json.dumps({"size": size, "previous": previous, "parts": parts}))
    cli.run("snapshot", "unexpose", volume, snapshot)
    cli.run("snapshot", "release", volume, snapshot, OWNER)


def restore(folder: Path, snapshot: str) -> bytearray:
    """The image of a snapshot from its chain of backups."""
    index = json.loads((folder / f"{snapshot}.json").read_text())
    image = bytearray() if index["previous"] == "-" else restore(folder, index["previous"])
    image = image[: index["size"]] + bytes(max(0, index["size"] - len(image)))
    with (folder / f"{snapshot}.data").open("rb") as data:
        for offset, length, state in index["parts"]:
            image[offset : offset + length] = data.read(length) if state == "data" else bytes(length)
        assert not data.read(1)
    return image


if __name__ == "__main__":
    asyncio.run(back_up(*sys.argv[1:6], Path(sys.argv[6])))
