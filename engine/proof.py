"""What a copy holds, computed from what it returns now, and written down so that it can be checked again.

``tree_of`` reads a frozen device and digests it; holes are not read. ``Proof`` is the document of REPLICATION section
7: both roots, hash, leaf size, size, instants, software and result. It can be checked again later and elsewhere against
any holder of the copy, since the root depends on size and content only.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

from engine.copy_job import STRIP_BYTES, CopyControl, whole_leaves
from engine.errors import InvalidArgument
from engine.hash_tree import HASH_NAME, LEAF_BYTES, HashTree, leaf_digests
from engine.stores import BulkSource, Extent, ExtentState, SelfDigesting
from engine.strips import PIECE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engine.movers import Mover

SCHEMA = "twinvol.proof/1"
SEAL = "sha256"
MAX_DOCUMENT_CHARS = 1 << 20
"""A document has some 800."""
LANES = 4


class Readable(Protocol):
    """What ``tree_of`` needs of a device."""

    @property
    def size_bytes(self) -> int: ...
    async def read(self, offset: int, view: memoryview, /) -> None: ...
    async def extents(self, offset: int, length: int, /) -> list[Extent]: ...


async def tree_of(device: Readable, *, control: CopyControl | None = None, mover: Mover | None = None) -> HashTree:
    """The digest tree of a device that does not change meanwhile (a snapshot).

    Args:
        control: pauses it and is told of its progress, in bytes of data read.
        mover: reads and digests whole strips, where the device can lease its extents.
    """
    control = control or CopyControl()
    tree = HashTree(device.size_bytes)
    if not device.size_bytes:
        return tree
    extents = await device.extents(0, device.size_bytes)
    data = whole_leaves([e for e in extents if e.state is ExtentState.DATA], device.size_bytes)
    control.progress.total_bytes += sum(extent.length for extent in data)
    strips = _cut(data, STRIP_BYTES)
    leasing = device if mover is not None and isinstance(device, BulkSource) else None

    async def lane() -> None:
        buffer = memoryview(bytearray(PIECE_BYTES))
        for strip in strips:
            await control.passage()
            if isinstance(device, SelfDigesting):
                digests = await device.digests(strip.offset, strip.length)
            elif mover is not None and leasing is not None:
                digests = await _digest_leased(leasing, strip, mover)
            else:
                digests = await _digest(device, strip, buffer)
            tree.put(strip.offset, digests)
            control.progress.done_bytes += strip.length
            control.tell()

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(LANES):
                group.create_task(lane())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from errors
    return tree


async def _digest(device: Readable, strip: Extent, buffer: memoryview) -> bytes:
    digests = b""
    for piece in _cut([strip], PIECE_BYTES):
        view = buffer[: piece.length]
        await device.read(piece.offset, view)
        digests += leaf_digests(view)
    return digests


async def _digest_leased(device: BulkSource, strip: Extent, mover: Mover) -> bytes:
    lease = await device.lease_read(strip.offset, strip.length)
    try:
        return await mover.digest(strip.length, lease)
    finally:
        lease.release()


def _cut(extents: list[Extent], length: int) -> Iterator[Extent]:
    for extent in extents:
        for offset in range(extent.offset, extent.end, length):
            yield Extent(offset, min(length, extent.end - offset))


@dataclass(frozen=True, slots=True)
class Side:
    """One holder of the content. ``point``: GUID of the recovery point; ``instant``: seconds since the epoch."""

    name: str
    point: str
    instant: float
    root: str


@dataclass(frozen=True, slots=True)
class Proof:
    """A proof document. ``differing_bytes`` counts whole leaves; ``identical`` is the result.

    ``unverified_bytes``: of a target without snapshots, what was written to it meanwhile. The roots are those of the
    content that the source has there, and say nothing about it: such a document proves less than the whole.
    """

    relation: str
    source: Side
    target: Side
    size_bytes: int
    identical: bool
    differing_bytes: int
    checked_at: float
    software: str
    hash: str = HASH_NAME
    leaf_bytes: int = LEAF_BYTES
    schema: str = SCHEMA
    unverified_bytes: int = 0

    def serialize(self) -> str:
        """The document as JSON text, keys in a fixed order, the last one with a digest of all others."""
        values = asdict(self)
        return json.dumps(values | {SEAL: _sealed(values)}, indent=2) + "\n"

    @classmethod
    def parse(cls, text: str) -> Proof:
        """Read a document. Raises InvalidArgument when it is none, was changed, or is of another schema, hash or leaf
        size."""
        try:
            values: dict[str, Any] = json.loads(text)
            if values.pop(SEAL) != _sealed(values):
                raise InvalidArgument("the proof document is not as it was written: its digest is another one")
            if values["schema"] != SCHEMA or values["hash"] != HASH_NAME or values["leaf_bytes"] != LEAF_BYTES:
                raise InvalidArgument(f"a proof of schema {values['schema']} with {values['hash']} is not known here")
            values["source"] = Side(**values["source"])
            values["target"] = Side(**values["target"])
            return cls(**values)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InvalidArgument(f"not a proof document: {error}") from None

    def holds_for(self, tree: HashTree) -> bool:
        """Whether a device with this tree is what the proof is about."""
        if self.unverified_bytes:
            return False
        return tree.size_bytes == self.size_bytes and tree.root().hex() == self.source.root == self.target.root


def _sealed(values: dict[str, Any]) -> str:
    """Against rot and slips of an editor; who forges a document can make this, too."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def compare(
    relation: str,
    source: tuple[str, str, float, HashTree],
    target: tuple[str, str, float, HashTree],
    *,
    checked_at: float,
    software: str,
    unverified: Sequence[Extent] = (),
) -> tuple[Proof, list[Extent]]:
    """The proof of two sides, each as (name, point, instant, tree), and where they differ.

    ``unverified``: in whole leaves, what cannot be compared; there ``target`` gets the digests of the source.
    """
    source_tree, target_tree = source[3], target[3]
    for extent in unverified:
        target_tree.put(extent.offset, source_tree.digests(extent.offset, extent.length))
    differing = source_tree.differing(target_tree)
    roots = source_tree.root().hex(), target_tree.root().hex()
    proof = Proof(
        relation=relation,
        source=Side(*source[:3], roots[0]),
        target=Side(*target[:3], roots[1]),
        size_bytes=source_tree.size_bytes,
        identical=roots[0] == roots[1],
        differing_bytes=sum(extent.length for extent in differing),
        checked_at=checked_at,
        software=software,
        unverified_bytes=sum(extent.length for extent in unverified),
    )
    return proof, differing
