"""What a served pool is administered by: the API on its socket, duties by the clock, the management process; and peers.

No login needs any of it, and it takes a third of a daemon's start to load. So ``twinvol.daemon`` imports this module
after the ready line; who has connected to the pool's socket before is answered once it is there. Disks are served by
then: what is wrong with the peers' keys costs the peers, nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from engine.errors import EngineError
from engine.local_api import LocalApi
from engine.peers.registry import Peers
from twinvol import __version__
from twinvol.api.server import ApiServer
from twinvol.management_process import ManagementProcess
from twinvol.peer_users import peer_users
from twinvol.remote_disks import IscsiDisks
from twinvol.sockets import bound_address

if TYPE_CHECKING:
    import socket
    from contextlib import AsyncExitStack

    from engine.exposure import Exposure
    from engine.pool import Pool
    from engine.replicas import Replicas

log = logging.getLogger(__name__)


async def begin(
    ending: AsyncExitStack,
    pool: Pool,
    exposure: Exposure,
    replicas: Replicas,
    listener: socket.socket,
    management_listeners: dict[str, socket.socket],
    peer_listener: socket.socket | None,
) -> None:
    """Begin all of it; ``ending`` ends it. ``listener``: of the pool's socket; ``management_listeners``: of the
    management process; ``peer_listener``: where peers connect."""
    peers = await _restored_peers(pool, replicas)
    disks = IscsiDisks()
    local_api = LocalApi(pool, exposure, replicas, version=__version__, remotes=disks, peers=peers)
    await replicas.begin_disks(disks)
    if peers is not None:
        ending.push_async_callback(peers.close)
        try:
            await peers.start(peer_listener, None if peer_listener is None else bound_address(peer_listener))
        except EngineError as error:
            _give_up_peers(replicas, error)
        ending.push_async_callback(replicas.end_remote)
        await replicas.begin_remote(peers)
    if replicas.without_peers is not None and peer_listener is not None:
        peer_listener.close()  # nobody shall wait there
    await local_api.restore_relations()
    await local_api.restore_changes()
    ending.push_async_callback(local_api.close_changes)
    api = ApiServer(local_api)
    ending.push_async_callback(api.close)
    await api.start(listener)
    upkeep = asyncio.create_task(local_api.upkeep.run(), name="upkeep")
    ending.push_async_callback(_end, upkeep)
    await api.warm()
    if management_listeners:
        management = ManagementProcess(pool.path, management_listeners)
        ending.push_async_callback(management.close)
        management.start()


async def _restored_peers(pool: Pool, replicas: Replicas) -> Peers | None:
    """None: our key, or what is known of a peer, is damaged or cannot be read."""
    peers = Peers(pool, replicas.incoming, software=f"twinvol {__version__}")
    peers.users = peer_users(pool.path)
    try:
        await peers.restore()
    except EngineError as error:
        _give_up_peers(replicas, error)
        return None
    return peers


def _give_up_peers(replicas: Replicas, error: EngineError) -> None:
    log.error("peers are not served: %s", error)
    replicas.without_peers = str(error)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
