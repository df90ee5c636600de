"""Rules of mirrored groups, each removed: some seed of ``group_replica_world`` must notice.
``replication_mutations.py`` prints the table of all.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from engine import mirror_group
from engine.errors import EngineError
from engine.mirror_group import GroupMirror, GroupRounds
from engine.mirror_group_links import GroupStream
from tests.simulation.group_replica_world import GroupReplicaWorld
from tests.simulation.mirror_world import run

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

    Mutation = Callable[[pytest.MonkeyPatch], None]


def _each_flips_for_itself(patch) -> None:
    async def flipped(self, guid):
        flips = {}
        for store, members in self._by_store().items():
            await asyncio.sleep(0)
            flips[store] = [
                store.flip(each.source.head, each.point_name(guid), guid=guid, hidden=True) for each in members
            ]
        return flips

    patch.setattr(GroupRounds, "_flipped", flipped)


def _one_holds_later(patch) -> None:
    def hold(self):
        first, *rest = self._streams
        first.hold()
        for stream in rest:
            asyncio.get_running_loop().call_later(0.0005, stream.hold)

    patch.setattr(GroupStream, "hold", hold)


def _one_leaves_alone(patch) -> None:
    patch.setattr(GroupStream, "_one_leaves", lambda self, reason, retry: None)


def _others_wait_for_no_demotion(patch) -> None:
    async def demoted(self, reason, retry):
        if self._demotion is None:
            self._demotion = asyncio.get_running_loop().create_task(self._demoted(reason, retry))

    patch.setattr(GroupMirror, "_demoted_together", demoted)


def _complete_when_one_has_switched(patch) -> None:
    async def switch(self, members, guid):
        for number, member in enumerate(members):
            await member.link.commit_staging(guid)
            if not number:
                await self._completed(mirror_group.RecoveryPoint(guid, 0.0))

    patch.setattr(GroupRounds, "_switch", switch)


def _older_points_go_first(patch) -> None:
    async def switch(self, members, guid):
        for member in members:
            await member.link.commit_staging(guid)
            await member.link.keep_points({guid})

    patch.setattr(GroupRounds, "_switch", switch)


def _told_before_it_is_on_record(patch) -> None:
    """The older points go when the target has not heard of the newer one."""

    async def finish(self):
        keep = {point.guid for point in self._record.points} | self.pinned
        for member in self.members:
            await member.link.keep_points(keep)
        await real(self)

    real = GroupRounds._finish
    patch.setattr(GroupRounds, "_finish", finish)


def _some_go_on_and_some_begin_anew(patch) -> None:
    """A member whose part of the round is lost copies what its source has by now, under the round's name."""

    def resumable(self, state):
        guid = self._record.round_source
        points = [member.source_point(guid) for member in self.members]
        return points if guid != self._record.common and all(points) else None

    async def bring(self, member, point, common, resumed):
        if not resumed or member.record.round_source == point.guid:
            return await real(self, member, point, common, resumed)
        await member.drop_staging()
        return await real(self, member, member.source.head, common, False)

    real = GroupRounds._bring
    patch.setattr(GroupRounds, "_resumable", resumable)
    patch.setattr(GroupRounds, "_bring", bring)


def _streams_begin_later(patch) -> None:
    """The stream of a member begins a step after the instant."""

    async def flip(self, new_streams):
        points = await real(self, None)
        if new_streams is not None:
            for member, stream in zip(self.members, new_streams(), strict=True):
                member.source.attach(stream)
        return points

    real = GroupRounds._flip
    patch.setattr(GroupRounds, "_flip", flip)


def _synchronized_when_one_is(patch) -> None:
    async def converge(self):
        return any([await stream.converge() for stream in self._streams])

    patch.setattr(GroupStream, "converge", converge)
    patch.setattr(GroupStream, "mode", property(lambda self: self._streams[0].mode))


MUTATIONS: dict[str, Mutation] = {
    "each member flips for itself": _each_flips_for_itself,
    "one member's writes are held a step later": _one_holds_later,
    "a member leaves alone": _one_leaves_alone,
    "other members' hosts wait for no demotion": _others_wait_for_no_demotion,
    "complete when one member has switched": _complete_when_one_has_switched,
    "older points go before all have switched": _older_points_go_first,
    "older points go before the target knows of the newer": _told_before_it_is_on_record,
    "some members go on, others begin anew": _some_go_on_and_some_begin_anew,
    "the streams begin after the instant": _streams_begin_later,
    "synchronized when one member is": _synchronized_when_one_is,
}


def notices(seed: int) -> bool:
    """Whether a run fails."""
    try:
        run(seed, GroupReplicaWorld)
    except (AssertionError, EngineError):
        return True
    return False
