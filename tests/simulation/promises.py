"""This file's part in group snapshots, among the other clients of a life: promised, then decided on or left.

What was promised is there after any crash until somebody decides; what was left is decided on at the next opening, by
chance. The whole of group operations, over several files, has a simulation of its own (``group_world.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.simulation.family import Snapshot
from tests.support.volume_oracle import Violation

if TYPE_CHECKING:
    import random

    from engine.tvol.file import TvolFile
    from tests.simulation.clients import Client
    from tests.simulation.family import Family


async def promise(client: Client, refusals: tuple[type[Exception], ...]) -> None:
    """Flip and promise a snapshot; then accept it, drop it, or leave it."""
    store, family, rng = client.store, client.family, client.rng
    await store.prepare_flips(1)
    volume = client._pick_volume()
    if client.files.dead or volume is None or volume.head is None or not store.ready_to_flip(1):
        return
    guid, name = client._guid(), f"p{family.next()}"
    content = volume.content.frozen_at(family.number)
    snapshot = Snapshot(guid, volume.volume_id, volume.size_bytes, volume.windows, content)
    family.tell(f"{family.number} {volume.head.name} promise {name}")
    volume.users += 1
    flip = store.flip(volume.head, name, guid=guid)
    family.snapshots[guid] = snapshot
    try:
        await store.prepare([flip])
        if client.files.dead:
            return
        snapshot.promised = True
        way = rng.random()
        if way < 0.6:
            await store.accept([flip.snapshot])
            if not client.files.dead:
                family.tell(f"promise {name} accepted")
                snapshot.frozen, snapshot.certain = flip.snapshot, True
        elif way < 0.8:
            snapshot.doomed = True
            await store.drop([flip.snapshot])
            if not client.files.dead:
                family.tell(f"promise {name} dropped")
                del family.snapshots[guid]
    except refusals:
        snapshot.doomed = True
        await store.drop([flip.snapshot])
        if not client.files.dead:
            del family.snapshots[guid]
        raise
    finally:
        volume.users -= 1


async def decide(store: TvolFile, family: Family, rng: random.Random) -> None:
    """At an opening: what was decided is kept to, the rest by chance; no promise is missing, and none unknown."""
    promised = store.prepared()
    there = {snapshot.guid for snapshot in (*promised, *store.snapshots())}
    for guid, snapshot in family.snapshots.items():
        if snapshot.promised and not snapshot.doomed and guid not in there:
            raise Violation(f"promised snapshot {guid} is gone")
    for found in promised:
        known = family.snapshots.get(found.guid)
        if known is None:
            raise Violation(f"promised snapshot {found.name!r} was dropped or never made")
        if known.certain or (not known.doomed and rng.random() < 0.5):
            family.tell(f"promise {found.name} is accepted now")
            await store.accept([found])
        else:
            known.doomed = True
            family.tell(f"promise {found.name} is dropped now")
            await store.drop([found])
            del family.snapshots[found.guid]
