"""``twinvol check --data``: does every chunk that has a digest still hold what was digested?

Chunks that the journal frees are left out: they may hold something else by now. One that is marked bad already is told
as a note; every other mismatch is damage.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from engine.tvol import layout

if TYPE_CHECKING:
    from engine.tvol.check_image import Findings, Image, Loader


def verify_data(loader: Loader, image: Image, findings: Findings) -> int:
    """Read and compare. Returns how many chunks were right."""
    size = image.superblock.chunk_bytes
    bad = set(image.bad)
    right = 0
    for number in range(len(image.digest_pages)):
        first = number * layout.DIGESTS_PER_PAGE
        births = image.births[first : first + layout.DIGESTS_PER_PAGE]
        here = image.digested[first : first + len(births)]
        chunks = first + np.flatnonzero(here & (births != layout.BIRTH_FREE) & (births != layout.BIRTH_METADATA))
        digests = loader.digests_of(image, number) if len(chunks) else b""
        for chunk in chunks.tolist():
            at = (chunk - first) * layout.DIGEST_BYTES
            data = loader.bytes_at(chunk * size, size, f"chunk {chunk}")
            if data is None:
                continue
            if _digest(data) == digests[at : at + layout.DIGEST_BYTES]:
                right += 1
            elif chunk in bad:
                findings.note(f"chunk {chunk}", "its data is not what was digested; it is marked bad")
            else:
                findings.damage(f"chunk {chunk}", "its data is not what was digested")
    return right


def _digest(chunk: bytes) -> bytes:
    """The xxh3_128 of 64 KiB, or of the digests of its parts of 64 KiB."""
    leaves = b"".join(xxhash.xxh3_128_digest(chunk[at : at + 65536]) for at in range(0, len(chunk), 65536))
    return leaves if len(leaves) == layout.DIGEST_BYTES else xxhash.xxh3_128_digest(leaves)
