"""Volumes and clones: their life, space, scrub, images. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from engine.api.jobs import JobInfo

VOLUME_BYTES_MAX = 1 << 46
"""What a volume with chunks of the usual size may have: 64 TiB."""


@dataclass(frozen=True, slots=True)
class VolumeInfo:
    """``state``: ok, read-only, failed (a sync failed: STORE section 2), damaged (not served), or locked (not served
    for want of its key); ``reason`` says why.

    ``digests``: the policy, lazy or always. ``bad_chunks``: of its file, marked bad. ``verified_at``: since when scrubs
    know all of it to be good.

    ``target`` and ``lun``: where initiators find it first, when it is exposed. ``origin``: VOLUME@SNAPSHOT of a
    linked clone. ``file``: its family's file. ``encryption``: where the key of an encrypted one is.
    """

    name: str
    volume_id: str
    size_bytes: int
    state: str
    reason: str | None
    serial: str
    naa: str
    physical_block_bytes: int
    write_cache: bool
    read_only: bool
    removable: bool
    snapshots: int
    origin: str | None
    file: str
    target: str | None
    lun: int | None
    encryption: str | None = None
    digests: str = "lazy"
    bad_chunks: int = 0
    verified_at: float | None = None


@dataclass(frozen=True, slots=True)
class ScrubRange:
    """``verified_at``: when it was last gone through; None: never."""

    offset: int
    length: int
    verified_at: float | None


@dataclass(frozen=True, slots=True)
class ScrubInfo:
    """The last scrub of a volume, or the one under way: ``job``.

    ``state``: never, running, paused, finished or failed. ``policy``: lazy (scrubs make digests) or always (digests are
    made soon after data is written). Chunks are counted for the last run; ``file_digests`` and ``file_bad_chunks`` are
    of the whole family's file. ``verified_at``: the oldest time of ``ranges``; None: some were never gone through.
    """

    volume: str
    policy: str
    state: str
    job: int | None
    rate_bytes_s: int
    started_at: float | None
    finished_at: float | None
    verified_chunks: int
    new_digests: int
    bad_chunks: int
    repaired_chunks: int
    transient_chunks: int
    chunk_bytes: int
    file_digests: int
    file_bad_chunks: int
    verified_at: float | None
    ranges: list[ScrubRange]


@dataclass(frozen=True, slots=True)
class SnapshotSpace:
    """Bytes in whole chunks, as ``engine.stores.Space`` defines them: of ``mapped_bytes``, what this snapshot alone has
    (unique) and what others have, too (shared); what the volume itself has no longer (pinned); what comes back if this
    snapshot alone is deleted now (reclaimable)."""

    name: str
    mapped_bytes: int
    unique_bytes: int
    shared_bytes: int
    pinned_bytes: int
    reclaimable_bytes: int


@dataclass(frozen=True, slots=True)
class FamilySpaceInfo:
    """The chunks of a volume file, each counted once: see ``engine.stores.FamilySpace``."""

    used_bytes: int
    pending_bytes: int
    free_bytes: int
    unpunched_bytes: int
    metadata_bytes: int


@dataclass(frozen=True, slots=True)
class SpaceInfo:
    """Bytes in whole chunks. ``pinned_bytes``: what comes back if all of its snapshots are deleted now;
    ``reclaimable_bytes``: if the volume is deleted with them. ``file_bytes``: what the family's file takes on the host.
    """

    name: str
    size_bytes: int
    mapped_bytes: int
    unique_bytes: int
    shared_bytes: int
    pinned_bytes: int
    reclaimable_bytes: int
    file_bytes: int
    snapshots: list[SnapshotSpace]
    family: FamilySpaceInfo


@dataclass(frozen=True, slots=True)
class DeletionInfo:
    """What deleting ``snapshots``, and with them the volume, would give back: ``freed_bytes`` in whole chunks, beyond
    what is coming back anyway. The host gets as much, less what was never written of these chunks.

    ``removed_file_bytes``: the volume's file goes as a whole, and the host gets so much; None: it stays.
    """

    volume: str
    snapshots: list[str]
    freed_bytes: int
    removed_file_bytes: int | None


@dataclass(frozen=True, slots=True)
class FlattenInfo:
    """What flattening a linked clone would copy, in whole chunks; its ``snapshots`` leave the origin with it."""

    volume: str
    origin: str
    copied_bytes: int
    snapshots: list[str]


VOLUME_PAGE = 250
"""Volumes in one page at most: what takes a few milliseconds to send and to receive, as many as there are."""


@dataclass(frozen=True, slots=True)
class VolumePage:
    """``cursor``: where the next page begins; None behind the last volume."""

    volumes: list[VolumeInfo]
    cursor: str | None


class VolumeApi(Protocol):
    """See ``engine.api``."""

    async def volume_create(
        self,
        name: str,
        size_bytes: int,
        *,
        chunk_bytes: int = 65536,
        physical_block_bytes: int = 4096,
        removable: bool = False,
        read_only: bool = False,
        write_cache: bool = True,
        expose: bool = False,
        key_source: str | None = None,
    ) -> VolumeInfo:
        """Make an empty volume. ``expose`` also makes a target of its name with the volume as LUN 0.

        Raises InvalidArgument, AlreadyExists, OutOfSpace.
        """
        ...

    async def volume_list(self) -> list[VolumeInfo]: ...

    async def volume_page(self, cursor: str | None = None, limit: int = VOLUME_PAGE) -> VolumePage:
        """Some of them, by name, from the beginning or from where a page before ended; ``each_volume`` follows.

        What is there all the while is in one page; what comes or goes meanwhile may be in one. Raises InvalidArgument:
        a limit that is not 1 to VOLUME_PAGE.
        """
        ...

    async def volume_show(self, name: str) -> VolumeInfo: ...

    async def volume_rekey(self, name: str, key_source: str) -> VolumeInfo:
        """Another key for an encrypted volume and all of its family. Raises InvalidState: it is not encrypted."""
        ...

    async def volume_resize(self, name: str, size_bytes: int, *, shrink: bool = False) -> VolumeInfo:
        """Change the size; making it smaller loses what lies beyond and needs ``shrink``."""
        ...

    async def volume_delete(self, name: str, *, force: bool = False) -> None:
        """Delete a volume and its exposure. Raises InUse: sessions, snapshots or linked clones hold it.

        ``force`` ends the sessions and deletes the snapshots; linked clones hold it always. Of a volume whose copy was
        interrupted, what is there is removed.
        """
        ...

    async def volume_delete_preview(self, name: str, *, force: bool = False) -> DeletionInfo:
        """What ``volume_delete`` would give back; raises what it would raise."""
        ...

    async def volume_scrub(self, name: str, *, rate_bytes_s: int | None = None) -> JobInfo:
        """Verify the chunks of a volume and its snapshots that have digests, and make those that are missing.

        Goes on with a scrub that was paused. ``rate_bytes_s``: what it reads at most; kept for the next ones.
        Raises InUse: one is under way.
        """
        ...

    async def volume_scrub_pause(self, name: str) -> ScrubInfo:
        """End the scrub under way; the next one goes on with it. Raises InvalidState: none is."""
        ...

    async def volume_scrub_show(self, name: str) -> ScrubInfo: ...

    async def volume_digests(self, name: str, policy: str) -> ScrubInfo:
        """``always``: data gets a digest soon after it was written; ``lazy``: scrubs make them."""
        ...

    async def volume_space(self, name: str) -> SpaceInfo: ...

    async def clone_create(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> VolumeInfo:
        """A linked clone of a snapshot; without one, of a snapshot made now and named after the clone."""
        ...

    async def clone_copy(self, source: str, snapshot: str | None, name: str, *, expose: bool = False) -> JobInfo:
        """Begin a full, verified clone in a family of its own. It appears when it is whole."""
        ...

    async def clone_list(self) -> list[VolumeInfo]:
        """The linked clones."""
        ...

    async def clone_flatten(self, name: str) -> JobInfo:
        """Begin to give a linked clone its own, verified copy of what it shares with its origin, which it then leaves
        with its snapshots. Raises InvalidState (no clone).
        """
        ...

    async def clone_flatten_preview(self, name: str) -> FlattenInfo:
        """What ``clone_flatten`` would copy now. Raises InvalidState (no clone)."""
        ...

    async def volume_import(
        self,
        source: str,
        name: str,
        *,
        format: str = "auto",
        chunk_bytes: int = 65536,
        expose: bool = False,
        secret: str | None = None,
        new_identity: bool = False,
    ) -> JobInfo:
        """A new volume from an image at an absolute path on the daemon's machine, or from a LUN (``iscsi://...``).

        ``format``: raw, vhdx, qcow2, or auto: by what the file begins with; it says nothing of a LUN. ``secret``: of
        the CHAP user in the URL. ``new_identity``: the source is a closed volume file; a copy of its family is taken
        in, with all snapshots, under other identities; of several volumes each is called NAME.VOLUME.

        The volume appears when it is whole. The job's result has ``root``, the root of its hash tree, ``format`` and
        ``logical_sector_bytes`` of the source. Asking again after an interruption goes on with it.

        Raises NotFound (also of a parent: the text names the paths tried), StoreCorrupt (the image breaks its format),
        NotSupported (it needs something unknown, or qcow2 without ``qemu-img``).
        """
        ...

    async def volume_export(
        self, name: str, snapshot: str | None, path: str, *, format: str = "raw", replace: bool = False
    ) -> JobInfo:
        """An image of a snapshot, or of the volume as it is now, at the absolute path ``path``.

        ``format``: raw, vhdx (dynamic), vhdx-fixed, qcow2. The file appears when it is whole. The job's result has
        ``root``. Asking again after an interruption goes on with it. Raises AlreadyExists without ``replace``.
        """
        ...

    async def volume_root(self, name: str, snapshot: str | None = None) -> JobInfo:
        """The root of the hash tree of a snapshot, or of the volume as it is now: ``root`` of the job's result."""
        ...


async def each_volume(api: VolumeApi) -> list[VolumeInfo]:
    """All volumes, by name, a page at a time: of thousands, too, no loop is held for long."""
    found: list[VolumeInfo] = []
    cursor = None
    while True:
        page = await api.volume_page(cursor)
        found += page.volumes
        cursor = page.cursor
        if cursor is None:
            return found
