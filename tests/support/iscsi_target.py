"""A target over one plain file: ``python -m tests.support.iscsi_target FILE [HOST:PORT]`` prints its URL and runs.

For measuring the transport without a store, and for trying real clients by hand.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from engine.files import real_env
from iscsi.scsi.lun import LogicalUnit, LunIdentity
from iscsi.server import IscsiServer
from tests.support.file_device import FileDevice
from tests.support.iscsi_link import TARGET, make_registry


async def serve(path: Path, host: str, port: int) -> None:
    env = real_env()
    device = FileDevice(env.files.open(path, writable=True), env.workers)
    unit = LogicalUnit(device, LunIdentity(serial="plain-file", naa=0x3123456789ABCDEF))
    server = IscsiServer(make_registry(unit))
    ((bound, port),) = await server.start([(host, port)])
    print(f"iscsi://{bound}:{port}/{TARGET}/0", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    sys.setswitchinterval(0.0001)
    where = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1:0"
    asyncio.run(serve(Path(sys.argv[1]), where.rpartition(":")[0], int(where.rpartition(":")[2])))
