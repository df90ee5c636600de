"""The engine's errors: one tree, matched by type, never by message text.

Each leaf carries its facts as fields, and says in its message what to do next where something can be done.
``OSError`` is translated in ``engine/files.py`` only. A programmer's mistake is an ``AssertionError``, not one
of these.
"""

from __future__ import annotations

import enum


class EngineError(Exception):
    """Anything the engine refuses or fails to do."""


class NotFound(EngineError):
    """No object of that kind has that name."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"no {kind} is called {name!r}")
        self.kind = kind
        self.name = name


class AlreadyExists(EngineError):
    """An object of that kind has that name already."""

    def __init__(self, kind: str, name: str) -> None:
        super().__init__(f"a {kind} called {name!r} exists already")
        self.kind = kind
        self.name = name


class InUse(EngineError):
    """The object is held by something else; the message names the holders."""


class InvalidArgument(EngineError):
    """A name, size or combination of arguments that makes no sense."""


class OutOfRange(EngineError):
    """An extent reaches beyond the end of its volume, or is not sector-aligned."""

    def __init__(self, offset: int, length: int, size: int) -> None:
        super().__init__(f"extent {offset}+{length} is not within {size} bytes in whole sectors")
        self.offset = offset
        self.length = length
        self.size = size


class OutOfSpace(EngineError):
    """The host file system, a quota or a format limit has no room (ENOSPC, EDQUOT, EFBIG)."""


class WriteProtected(EngineError):
    """The volume is read-only: a snapshot, or made so."""


class MediumError(EngineError):
    """The host could not read or write an extent (EIO), or an extent is marked bad."""


class StoreFailed(EngineError):
    """A data or journal sync has failed: the file takes no writes until it is reopened and checked.

    Sticky by STORE section 2: what the host dropped from its cache after a failed sync is unknown.
    """


class StoreCorrupt(EngineError):
    """A structure on disk does not verify."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(f"{where}: {reason}")
        self.where = where
        self.reason = reason


class IntegrityError(EngineError):
    """Data read back differs from what was written or recorded."""

    def __init__(self, where: str, offset: int, length: int, expected: str, actual: str) -> None:
        super().__init__(f"{where}: extent {offset}+{length} has digest {actual}, expected {expected}")
        self.where = where
        self.offset = offset
        self.length = length
        self.expected = expected
        self.actual = actual


class InvalidState(EngineError):
    """The object's state does not allow the operation."""

    def __init__(self, what: str, current: str, wanted: str) -> None:
        super().__init__(f"{what} is {current}; this needs {wanted}")
        self.current = current
        self.wanted = wanted


class NotSupported(EngineError):
    """A cleanly refused feature."""


class PermissionDenied(EngineError):
    """The host or an access list refuses."""


class Locked(EngineError):
    """The key of an encrypted volume file is not to be had; the message says why."""


class WritesHeld(EngineError):
    """A mirror without which the volume must not be written has no target just now; ask again later."""


class Superseded(EngineError):
    """The volume is not, or may not be, the disk that initiators know it as: another one has taken its place."""


class TimedOut(EngineError):
    """A bounded wait ended without its event."""


class PeerUnreachable(EngineError):
    """There is no connection to a peer, or it broke before the answer."""


class JobCancelled(EngineError):
    """The job was cancelled by its user."""


class TokenFault(enum.StrEnum):
    """Why a token for offloaded copies is not good."""

    UNKNOWN = "unknown"  # never made, or made before the last start
    EXPIRED = "expired"
    CANCELLED = "cancelled"  # by the engine: its data is gone, or room was needed for another
    DELETED = "deleted"  # by its user


class TokenInvalid(EngineError):
    """A token that cannot be used (any more). ``fault``: a ``TokenFault``."""

    def __init__(self, fault: str) -> None:
        super().__init__(f"the token is {fault}; make a new one")
        self.fault = fault
