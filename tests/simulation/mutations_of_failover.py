"""Rules of failing over, each removed: some seed of ``failover_world`` must notice.
``replication_mutations.py`` prints the table of all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engine import failover_standing, lineage
from engine.catalog_failover import FailoverTables
from engine.copy_state import CopyEvent
from engine.errors import EngineError
from engine.failover import Failovers
from engine.failover_plan import Told as SourceTold
from engine.failover_units import told
from engine.mirror import Mirror
from engine.peers import incoming
from engine.peers.incoming import Incoming
from engine.replicas import Replicas
from tests.simulation.directed_failover import (
    AnswerLost,
    GroupReplaced,
    HandedOver,
    HeadFrozen,
    LeaseLeft,
    PowerLost,
    Told,
)
from tests.simulation.failover_world import FailoverWorld, GroupWorld, run

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Mutation = Callable[[pytest.MonkeyPatch], None]


async def _nothing(*_) -> None:
    return


def _serve_without_asking(patch) -> None:
    patch.setattr(Replicas, "_fence", _nothing)


def _lossless_without_a_lease(patch) -> None:
    patch.setattr(Failovers, "holds_lease", lambda self, replica: True)


def _acknowledge_while_the_lease_is_held(patch) -> None:
    patch.setattr(Mirror, "_end_lease", _nothing)


def _follow_whatever_was_acknowledged(patch) -> None:
    patch.setattr(lineage, "may_follow", lambda mine, theirs, **_: True)


def _go_on_whatever_is_heard(patch) -> None:
    patch.setattr(lineage, "goes_on", lambda mine, theirs, *, inherited: True)


def _hand_over_what_is_there(patch) -> None:
    """The target gets nothing more than its last recovery point."""

    async def bring_all(self, reason):
        assert self.common is not None
        await self._stop(CopyEvent.FRACTURE, reason)
        return self.common

    patch.setattr(Mirror, "bring_all", bring_all)


def _take_over_unseen(patch) -> None:
    """Whether the target has the released point is not looked at either."""

    async def promote(self, peer, message):
        (entry,) = lineage.from_json(message.get("entry"))
        async with self._locks[message["replica"]]:
            unit = self._asked_for(peer, message["replica"], message)
            for replica in unit.replicas:
                await replica.end()
            new = await self._take_over(unit, entry, planned=True)
        return {"members": told(self._units.members(new))}

    _hand_over_what_is_there(patch)
    patch.setattr(Failovers, "promote", promote)


def _release_unrecorded(patch) -> None:
    patch.setattr(FailoverTables, "release", _nothing)
    patch.setattr(Replicas, "_fence", _nothing)


def _content_after_a_power_loss(patch) -> None:
    patch.setattr(Incoming, "is_whole", lambda self, row: True)


def _frozen_heads_count(patch) -> None:
    patch.setattr(incoming, "is_recovery_point", lambda name, prefix: name.startswith(prefix))


def _refusal_takes_back(patch) -> None:
    """Whatever the peer answers to the release, the source goes on."""
    real = Failovers._give

    async def give(self, unit):
        try:
            await real(self, unit)
        except EngineError:
            present = self._units.present(unit)
            if present is not None:
                await self._take_back(present, self._units.running(present), self._count(present))
            raise

    patch.setattr(Failovers, "_give", give)


def _points_off_the_record(patch) -> None:
    patch.setattr(Failovers, "_drop_uncounted", _nothing)


def _plan_from_now(patch) -> None:
    patch.setattr(failover_standing, "_told", lambda message, now: SourceTold(now, 0.0, 0))


def _fences_uncounted(patch) -> None:
    """An answer that is older than a fence lifts it."""
    patch.setattr(Failovers, "_count", lambda self, unit: 0)


def _content_without_leases(patch) -> None:
    """What the members of a group hold is taken for one instant, without leases."""
    patch.setattr(
        Failovers,
        "_is_whole",
        lambda self, unit: all(self._replicas.incoming.is_whole(each.row) for each in unit.replicas),
    )
    real = Failovers._sealed

    async def sealed(self, unit, *, content):
        return await real(self, unit, content=True)

    patch.setattr(Failovers, "_sealed", sealed)


def _one_lease_is_enough(patch) -> None:
    """Whichever member holds it, the group has everything."""

    def holds_lease(self, unit):
        now = self._pool.env.clock.boottime()
        return any(replica.lease.held(now) for replica in unit.replicas)

    patch.setattr(Failovers, "holds_lease", holds_lease)


def _newest_of_each(patch) -> None:
    """Each member of a group goes on from the newest recovery point that it has itself."""

    async def roll_back(self, replica, guid):
        point = self._replicas.incoming.points(replica.row)[-1]
        await real(self, replica, point.guid)

    real = Failovers._roll_back
    patch.setattr(Failovers, "_roll_back", roll_back)


def _the_lead_is_fenced(patch) -> None:
    """The other members of a group go on being served."""
    real = Failovers._stop_serving

    def stop_serving(self, unit, why):
        served = [(volume, volume.fence_reason) for volume in self._units.volumes(unit)[1:]]
        count = real(self, unit, why)
        for volume, before in served:
            if before is None:
                volume.unfence()
        return count

    patch.setattr(Failovers, "_stop_serving", stop_serving)


MUTATIONS: dict[str, tuple[Mutation, type[FailoverWorld]]] = {
    "serve before the peer was asked": (_serve_without_asking, FailoverWorld),
    "call it without loss, whatever the lease": (_lossless_without_a_lease, FailoverWorld),
    "acknowledge alone while the target holds the lease": (_acknowledge_while_the_lease_is_held, FailoverWorld),
    "follow whatever was acknowledged": (_follow_whatever_was_acknowledged, FailoverWorld),
    "go on whatever is heard": (_go_on_whatever_is_heard, FailoverWorld),
    "release it without a record": (_release_unrecorded, FailoverWorld),
}

DIRECTED: dict[str, tuple[Mutation, type[FailoverWorld]]] = {
    "go on when the peer does not answer the release": (_refusal_takes_back, AnswerLost),
    "the plan knows of nothing that is missing": (_plan_from_now, Told),
    "take over without the rest": (_take_over_unseen, HandedOver),
    "the content after a loss of power is whole": (_content_after_a_power_loss, PowerLost),
    "a frozen head counts as a recovery point": (_frozen_heads_count, HeadFrozen),
    "the lead of a group is fenced, its others are not": (_the_lead_is_fenced, GroupReplaced),
    "a group's content is whole without leases": (_content_without_leases, LeaseLeft),
    "one member's lease is enough": (_one_lease_is_enough, LeaseLeft),
}
"""Seeds notice them seldom; ``directed_failover.py`` has a scene for each."""

CANDIDATES: dict[str, tuple[Mutation, type[FailoverWorld]]] = {
    "each member goes on from its own newest point": (_newest_of_each, GroupWorld),
    "an answer older than a fence lifts it": (_fences_uncounted, FailoverWorld),
    "points that are not on record count": (_points_off_the_record, FailoverWorld),
}


def notices(seed: int, kind: type[FailoverWorld]) -> bool:
    """Whether this seed fails."""
    try:
        run(seed, kind)
    except (AssertionError, EngineError):
        return True
    return False
