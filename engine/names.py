"""Rules for the names and sizes that users choose, and the names that the engine chooses itself."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from engine.errors import InvalidArgument
from engine.units import CHUNK_SIZES, SECTOR_SIZE

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME_MAX = 64
SUFFIX_CHARACTERS = 8
"""Room for a number behind a name that is made."""

CLONE_PREFIX, DIFF_PREFIX, EXPORT_PREFIX = "full-clone.", "diff.", "export."
OFFLOAD_PREFIX, ROOT_PREFIX, TOKEN_PREFIX = "offload.", "root.", "token."
HIDDEN_PREFIXES = (CLONE_PREFIX, DIFF_PREFIX, EXPORT_PREFIX, OFFLOAD_PREFIX, ROOT_PREFIX, TOKEN_PREFIX)
"""How hidden snapshots are called that are taken when a volume, not one of its snapshots, is copied, compared,
exported, read for an offloaded copy, digested, or held by a token. What a crash leaves of them is removed."""

_NAME = re.compile(r"[a-z0-9][a-z0-9.-]*")
_FOREIGN = re.compile(r"[^a-z0-9.-]+")
_ISCSI_NAME = re.compile(
    r"iqn\.\d{4}-\d{2}\.[a-z0-9.-]+(:[a-z0-9.:-]+)?|eui\.[0-9a-f]{16}|naa\.([0-9a-f]{16}|[0-9a-f]{32})"
)
_ISCSI_NAME_MAX = 223
"""RFC 7143 section 4.2.7.1."""


def check_name(kind: str, name: str) -> str:
    """``name`` when a volume or snapshot may have it. An iSCSI name, which it becomes part of, allows no more."""
    if len(name) > NAME_MAX or not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is no {kind} name: 1-{NAME_MAX} of a-z, 0-9, '.' and '-', beginning with a letter or digit"
        )
    return name


def view_name(volume: str, snapshot: str) -> str:
    """What the writable view of a snapshot is called: nothing that a user may call a volume."""
    return f"{volume}@{snapshot}"


def is_view(name: str) -> bool:
    """Whether a volume of this name is a writable view."""
    return "@" in name


def check_iscsi_name(name: str) -> str:
    """``name`` in lower case when it is an iSCSI name (RFC 7143 section 4.2.7, without the non-ASCII ones)."""
    name = name.lower()
    if len(name) > _ISCSI_NAME_MAX or not _ISCSI_NAME.fullmatch(name):
        raise InvalidArgument(f"{name!r} is no iSCSI name, such as iqn.2026-11.org.example:name")
    return name


def check_size(size_bytes: int) -> int:
    """``size_bytes`` when a volume may have it as far as its users are concerned; the store may allow less."""
    if size_bytes <= 0 or size_bytes % SECTOR_SIZE:
        raise InvalidArgument(f"a size of {size_bytes} bytes makes no sense: whole {SECTOR_SIZE}-byte sectors, above 0")
    return size_bytes


def check_choice(what: str, value: int, choices: tuple[int, ...]) -> int:
    """``value`` when it is one of ``choices``."""
    if value not in choices:
        raise InvalidArgument(f"{what} is {value}; it may be {' or '.join(map(str, choices))}")
    return value


def check_chunk(chunk_bytes: int) -> int:
    return check_choice("chunk size", chunk_bytes, CHUNK_SIZES)


def made_names(text: str) -> Iterator[str]:
    """Names after a free text: the nearest one that may be, then with numbers."""
    stem = _FOREIGN.sub("-", text.lower()).strip(".-")[: NAME_MAX - SUFFIX_CHARACTERS].strip(".-") or "copy"
    yield stem
    for number in range(2, 10**6):
        yield f"{stem}-{number}"
