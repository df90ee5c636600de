"""What would come back if a node were deleted now, in a file with shared chunks: there the tree's sums say too much.

A chunk comes back when its last claim ends. So the node's own claims are gathered, and those chunks counted of which
it has all. Linear in the claims; between pieces of it the loop serves others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.tvol.claims import Words
    from engine.tvol.core import Core
    from engine.tvol.tree import Node

_PIECE = 1 << 18
"""Claims looked at in one turn of the loop (2 ms)."""
_LEAVES = 64


async def unique_chunks(core: Core, node: Node) -> int:
    """As ``Node.unique``; of a node that changes meanwhile, as it was at some time for each part of it."""
    claims = core.family.claims
    mine = []
    for part in _own_claims(core, node):
        mine.append(claims.chunks_of(part))
        await asyncio.sleep(0)
    if not mine:
        return 0
    chunks, times = await core.env.workers.run(lambda: np.unique(np.concatenate(mine), return_counts=True))
    found = 0
    for at in range(0, len(chunks), _PIECE):
        piece = chunks[at : at + _PIECE]
        found += int(np.count_nonzero(times[at : at + _PIECE] == core.family.births.claims_on(piece)))
        await asyncio.sleep(0)
    return found


def _own_claims(core: Core, node: Node) -> Iterator[Words]:
    """The claims that end with the node, in pieces."""
    if not node.children:
        leaves = list(node.map.leaves)
        for at in range(0, len(leaves), _LEAVES):
            parts = [leaf.chunks() for leaf in leaves[at : at + _LEAVES] if leaf.birth > node.floor]
            if parts:
                claims = np.concatenate(parts)
                yield claims[core.family.claims.births_of(claims) > node.floor]
    elif len(node.children) == 1:
        buckets = list(node.children[0].dead.buckets.items())
        for bucket in [bucket for birth, bucket in buckets if birth > node.floor]:
            for at in range(0, len(bucket), _PIECE):
                yield np.array(bucket[at : at + _PIECE], np.uint32)
