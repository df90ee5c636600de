"""Thousands of volumes and copies: no request keeps its loop while it goes through them (DESIGN: 10 ms)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pywbem import NocaseDict

from cim_facade import synchronizations
from cim_facade.context import View
from cim_facade.methods.synchronizations import METHODS
from engine.api import MirrorTerms, RelationInfo
from tests.support.cim_array import ADMINISTRATOR, REPLICATION, array, classes, registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

MANY = 50


class Breathing(View):
    """Counts when the loop was offered to others."""

    breaths = 0

    async def breathe(self) -> None:
        self.breaths += 1
        await super().breathe()


async def candidates(view: View) -> int:
    """GetAvailableTargetElements."""
    source = (await view.paths()).volume((await view.volumes())[0].volume_id)
    return await answered(view, "GetAvailableTargetElements", "Candidates", SyncType=8, SourceElement=source)


async def relationships(view: View) -> int:
    """GetReplicationRelationships, with a filter that none fits."""
    view.remember("mirrors", [synchronizations.mirror_of(each) for each in await view.replicas()])
    view.remember("clones", [])
    return MANY + await answered(view, "GetReplicationRelationships", "Synchronizations", Type=2, CopyState=6)


async def mirrors(view: View) -> int:
    return len(await synchronizations.mirrors(view))


async def clones(view: View) -> int:
    return len(await synchronizations.clones(view))


async def answered(view: View, method: str, output: str, **given: object) -> int:
    path = (await view.paths()).service(REPLICATION)
    code, outputs = await METHODS["CIM_ReplicationService", method](view, path, NocaseDict(given))
    assert code == 0
    return len(outputs[output])


@pytest.mark.parametrize("ask", [candidates, relationships, mirrors, clones])
async def test_others_may_have_a_turn_between_any_two(tmp_path: Path, ask: Callable[[View], Awaitable[int]]) -> None:
    async with array(tmp_path / "pool") as made:
        for name in ("a", "b"):
            await made.volume(name)
        volumes = await made.view().volumes()
        await made.api.replica_create("a", "r", MirrorTerms())
        info = await made.api.replica_show("r")
        clone = RelationInfo("clone", volumes[0].volume_id, volumes[1].volume_id, 0.0, None)
        view = Breathing(made.api, ADMINISTRATOR, classes(), registry())
        view.remember("volumes", [volumes[0], *[volumes[1]] * MANY])
        view.remember("replicas", [info] * MANY)
        view.remember("relations", [clone] * MANY)
        assert await ask(view) == MANY
        assert view.breaths >= MANY
