"""A target at a peer of which something has rotted: the source has it, and brings it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.unit.daemon.test_peers import content, fill, finished, pair, synchronized

if TYPE_CHECKING:
    from pathlib import Path


async def test_what_has_rotted_at_a_target_is_written_anew(tmp_path: Path):
    async with pair(tmp_path) as (source, target, _):
        await fill(source, "v", 0)
        await finished(source, await source.api.replica_create("v", "r", peer="target"))
        await synchronized(source, "r")
        await source.api.replica_pause("r")
        await finished(target, await target.api.volume_scrub("r"))
        volume = target.pool.volume("r")
        store = target.pool.store_of(volume)
        chunk = store.volume("r").node.map.lookup(0)
        with target.pool.file_of(volume).open("r+b") as file:
            file.seek(chunk * store.chunk_bytes + 4711)
            file.write(b"rotten")
        await finished(target, await target.api.volume_scrub("r"))
        assert store.bad_chunks == 1
        await fill(source, "v", 0)
        await source.api.replica_resume("r")
        await synchronized(source, "r")
        assert await content(target, "r") == await content(source, "v")
