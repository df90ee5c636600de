"""What lies in a pool's folder, and taking hold of it.

POOL/lock             held by the one daemon that has the pool open; holds its process id
POOL/catalog.sqlite   see ``engine.catalog``
POOL/catalog.ballast  see ``engine.ballast``
POOL/volumes/*.tvol   one family of volumes each
POOL/ledgers/         what copies under way have verified
"""

from __future__ import annotations

import asyncio
import dataclasses
import fcntl
import logging
import os
from typing import TYPE_CHECKING

from engine.errors import EngineError, InUse, InvalidArgument
from engine.files import measure_space, translate
from engine.pool_space import PoolSpace, SpaceState
from engine.tvol.file import TvolFile
from engine.units import MIB

if TYPE_CHECKING:
    from pathlib import Path

    from engine.catalog import Catalog
    from engine.files import HostSpace, StoreEnv

log = logging.getLogger(__name__)

CATALOG_NAME = "catalog.sqlite"
LOCK_NAME = "lock"
VOLUMES_NAME = "volumes"
UNFINISHED_NAME = ".unfinished"
"""Within the volumes' folder: files that are being made, moved out when they are whole. What a crash leaves there is
removed at the next opening, except a copy that has a ledger: doing the same copy again goes on with it."""
FILE_SUFFIX = ".tvol"
LEDGER_SUFFIX = ".ledger"
NEW_FILE_BYTES = 6 * MIB
"""What an empty volume's file takes: the journal, and the first metadata chunks."""
LEDGERS_NAME = "ledgers"
"""Folder of the ledgers of mirrors and of exports."""

LEFTOVER_WAIT_S, LEFTOVER_PAUSE_S = 10.0, 0.01
"""How long the files of a killed daemon may stay locked by its copying process, and how often that is looked at."""

_ALLOWED_BEFORE = frozenset({LOCK_NAME, VOLUMES_NAME, LEDGERS_NAME, "catalog.ballast", "lost+found"})
"""What a folder may hold that is to become a pool: what a crash while making one leaves, and an empty ext4's own."""


def take(path: Path, env: StoreEnv) -> int:
    """Make the folder where it is missing, and lock it. Returns the lock's descriptor."""
    try:
        return _lock(path, env)
    except OSError as error:
        raise translate(error, f"opening pool {path}") from error


def _lock(path: Path, env: StoreEnv) -> int:
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    entries = {entry.name for entry in path.iterdir()}
    if CATALOG_NAME not in entries and entries - _ALLOWED_BEFORE:
        raise InvalidArgument(f"{path} holds other files and is no pool; name an empty or missing folder")
    lock = os.open(path / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip() or "unknown"
            raise InUse(f"pool {path} is open in process {holder}; stop that daemon or use another pool") from None
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"{os.getpid()}\n".encode(), 0)
        (path / VOLUMES_NAME / UNFINISHED_NAME).mkdir(parents=True, exist_ok=True, mode=0o700)
        (path / LEDGERS_NAME).mkdir(exist_ok=True, mode=0o700)
        env.files.sync_directory(path)
    except BaseException:
        os.close(lock)
        raise
    return lock


async def watched_space(folder: Path, env: StoreEnv, catalog: Catalog) -> PoolSpace:
    """The limits of a pool, being watched; what crosses them is logged and an event."""

    async def tell(state: SpaceState, text: str) -> None:
        if state is SpaceState.FULL:
            severity, text = "error", f"full: writes that need new space are refused: {text}"
        elif state is SpaceState.LOW:
            severity, text = "warning", f"space is running low: {text}"
        else:
            severity, text = "info", f"there is space again: {text}"
        log.log(logging.getLevelNamesMapping()[severity.upper()], "the pool: %s", text)
        try:
            if state is not SpaceState.FULL:
                await catalog.restock()
            await catalog.add_event(env.clock.time(), severity, "pool", text)
        except EngineError as error:  # on a full disk not even this may fit
            log.warning("no event of it: %s", error)

    def measure() -> HostSpace:
        host = measure_space(folder, "*" + FILE_SUFFIX)
        return dataclasses.replace(host, free_bytes=max(0, host.free_bytes - catalog.owed_bytes()))

    space = PoolSpace(await catalog.space_limits(), env.workers, measure, tell)
    await space.start()
    return space


async def open_when_free(env: StoreEnv, path: Path) -> TvolFile:
    """Open a file of the pool, for writing.

    The copying process of a daemon that was killed keeps its files locked until it is gone, too: a moment, or as long
    as others keep it from the processor.
    """
    deadline = env.clock.monotonic() + LEFTOVER_WAIT_S
    while True:
        try:
            return await TvolFile.open(env, path)
        except InUse:
            if env.clock.monotonic() > deadline:
                raise
            await asyncio.sleep(LEFTOVER_PAUSE_S)


def remove_unfinished(path: Path) -> None:
    # The ledger first: it must never be beside a file that it is not about.
    path.with_suffix(LEDGER_SUFFIX).unlink(missing_ok=True)
    path.unlink(missing_ok=True)
