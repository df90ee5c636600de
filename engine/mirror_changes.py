"""Another mode, or other terms, for a mirror that is there.

It is what a restart of that mirror alone with another record would be: the one that runs comes to rest in order, at
this very moment; the new terms are recorded; a new one goes on from the common point, and from what the ledger has.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from engine.copy_state import CopyMode
from engine.errors import NotSupported
from engine.mirror_record import MirrorRecord
from engine.replica_making import require_unlimited
from engine.replica_table import POLICY_KEY, policy_of

if TYPE_CHECKING:
    from engine.catalog import MirrorRow
    from engine.mirror_terms import MirrorTerms
    from engine.replicas import Replicas


async def keep_otherwise(replicas: Replicas, name: str, terms: MirrorTerms) -> None:
    """See ``EngineApi.replica_mode``."""
    mirror = replicas.running(name)
    if terms.failover != mirror.policy.failover and not terms.failover:
        raise NotSupported(f"whether replica {name} may fail over is decided when it is made")
    if replicas.table.row(name).peer is None:
        require_unlimited(name, terms)
    if replicas.disks.link(name) is not None:
        if terms.copy_mode is CopyMode.ADAPTIVE:
            raise NotSupported("a disk without snapshots is not consistent at every moment, as an adaptive mirror is")
        if terms.points is not None or terms.points_age_s is not None:
            raise NotSupported("a disk of elsewhere keeps no recovery points")
    with replicas.renewing(name):
        await mirror.put_aside(f"{terms.mode} from now on")
        before = replicas.table.rows[name]
        row = _row(before, terms)
        try:
            await replicas.table.put(row)
        except BaseException:
            row = before
            raise
        finally:
            if not policy_of(row).stops_host_io:
                mirror.source.let_writes_go(name)
            await replicas.renew(row)


def _row(row: MirrorRow, terms: MirrorTerms) -> MirrorRow:
    policy = policy_of(row).with_terms(terms)
    record = MirrorRecord.parse(row.state)
    record.held = record.held and policy.stops_host_io
    return replace(row, mode=terms.mode, state=row.state | record.serialize() | {POLICY_KEY: policy.serialize()})
