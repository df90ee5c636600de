"""Exit codes, which other programs rely on: one table from the engine's errors."""

from __future__ import annotations

from enum import IntEnum

from engine import errors
from engine.errors_json import ERRORS
from twinvol.api.frames import DaemonUnreachable


class ExitCode(IntEnum):
    OK = 0
    FAILURE = 1
    USAGE = 2
    NOT_FOUND = 3
    EXISTS_OR_IN_USE = 4
    ILLEGAL_STATE = 5
    NOT_SUPPORTED = 6
    NO_PERMISSION = 7
    TIMEOUT = 8
    MISMATCH = 9
    DEGRADED = 10
    UNREACHABLE = 20


_OF_ERROR: dict[type[Exception], ExitCode] = {
    errors.EngineError: ExitCode.FAILURE,
    errors.InvalidArgument: ExitCode.USAGE,
    errors.OutOfRange: ExitCode.USAGE,
    errors.NotFound: ExitCode.NOT_FOUND,
    errors.AlreadyExists: ExitCode.EXISTS_OR_IN_USE,
    errors.InUse: ExitCode.EXISTS_OR_IN_USE,
    errors.InvalidState: ExitCode.ILLEGAL_STATE,
    errors.Superseded: ExitCode.ILLEGAL_STATE,
    errors.WritesHeld: ExitCode.ILLEGAL_STATE,
    errors.WriteProtected: ExitCode.ILLEGAL_STATE,
    errors.NotSupported: ExitCode.NOT_SUPPORTED,
    errors.PermissionDenied: ExitCode.NO_PERMISSION,
    errors.Locked: ExitCode.NO_PERMISSION,
    errors.TimedOut: ExitCode.TIMEOUT,
    errors.IntegrityError: ExitCode.MISMATCH,
    errors.StoreCorrupt: ExitCode.MISMATCH,
    DaemonUnreachable: ExitCode.UNREACHABLE,
}


def exit_code_for(error: Exception) -> ExitCode:
    """The code of the nearest class of ``error`` in the table."""
    for kind in type(error).__mro__:
        if kind in _OF_ERROR:
            return _OF_ERROR[kind]
    return ExitCode.FAILURE


def exit_code_for_job(error: str | None) -> ExitCode:
    """The code of a finished job by the name of the error that ended it; None is success."""
    if error is None:
        return ExitCode.OK
    kind = ERRORS.get(error)
    return ExitCode.FAILURE if kind is None else _OF_ERROR.get(kind, ExitCode.FAILURE)
