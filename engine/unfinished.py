"""A volume that a copy grows in, with the ledger of that copy: begun, or gone on with after an interruption.

Going on needs both: the file, and a ledger *of the same copy* that has recorded something. A file that another copy
left, or whose ledger says nothing, may hold anything, where the copy loop relies on zeroes: it is begun anew.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from engine.ledger import Ledger
from engine.names import EXPORT_PREFIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from engine.ledger import LedgerKey
    from engine.pool import Pool, UnfinishedVolume

SCRATCH_SUFFIX = ".raw"
"""Of what ``qemu-img`` makes of a qcow2 image, beside the volume that is being made."""


async def begin_copy(
    pool: Pool,
    name: str,
    size_bytes: int,
    chunk_bytes: int,
    key_of: Callable[[str], LedgerKey],
    *,
    key_source: str | None = None,
) -> tuple[UnfinishedVolume, Ledger]:
    """Begin volume ``name``, or go on with it. ``key_of``: says what is copied, from the volume's id.

    The caller closes the ledger or removes it, and then finishes or abandons the volume.

    ``key_source``, and what is raised: as of ``Pool.begin``.
    """
    unfinished = await pool.begin(name, size_bytes, chunk_bytes, resume=True, key_source=key_source)
    try:
        ledger = await _ledger(pool, unfinished, key_of)
        if not unfinished.resumed or ledger.done_bytes:
            return unfinished, ledger
        await ledger.remove()
    except BaseException:
        await pool.abandon(unfinished, keep=True)
        raise
    await pool.abandon(unfinished)
    unfinished = await pool.begin(name, size_bytes, chunk_bytes, key_source=key_source)
    try:
        return unfinished, await _ledger(pool, unfinished, key_of)
    except BaseException:
        await pool.abandon(unfinished)
        raise


async def _ledger(pool: Pool, unfinished: UnfinishedVolume, key_of: Callable[[str], LedgerKey]) -> Ledger:
    key = key_of(unfinished.head.volume_id)
    return await Ledger.open(pool.env.control_files, unfinished.ledger_path, key)


def part_of(path: Path) -> Path:
    """Under which name the export to ``path`` grows."""
    return path.with_name(f".{path.name}.twinvol-part")


async def interrupted_exports(pool: Pool) -> dict[str, Path]:
    """The exports that can go on: name of the hidden snapshot and where to. What has lost its part is removed."""
    found = {}
    for ledger in await asyncio.to_thread(lambda: sorted(pool.ledgers.glob(f"{EXPORT_PREFIX}*.ledger"))):
        key = await Ledger.key_at(pool.env.control_files, ledger)
        path = None if key is None else Path(key.target)
        if path in pool.exporting:
            continue
        if path is None or not await asyncio.to_thread(part_of(path).exists):
            await Ledger.discard(pool.env.control_files, ledger)
            continue
        found[ledger.stem] = path
    return found
