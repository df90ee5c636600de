"""The one table from the engine's errors to what a client is told.

A method that was run and failed answers with a return code of its table; a CIM error is for what could not be run.
``ReturnCode`` has the codes that all methods share; MSFT_SM* has no In Use, but four codes of its own.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from pywbem import (
    CIM_ERR_ACCESS_DENIED,
    CIM_ERR_ALREADY_EXISTS,
    CIM_ERR_FAILED,
    CIM_ERR_INVALID_PARAMETER,
    CIM_ERR_NOT_FOUND,
    CIM_ERR_NOT_SUPPORTED,
    CIMError,
)

from engine import errors
from engine.errors import EngineError


class ReturnCode(enum.IntEnum):
    """Shared by the methods of the storage namespace; those of MSFT_SM* call 0 Success."""

    COMPLETED = 0
    NOT_SUPPORTED = 1
    UNKNOWN = 2
    TIMEOUT = 3
    FAILED = 4
    INVALID_PARAMETER = 5
    IN_USE = 6
    JOB_STARTED = 4096


class SmCode(enum.IntEnum):
    """What only methods of MSFT_SM* answer."""

    OBJECT_NOT_FOUND = 8
    ACCESS_DENIED = 40001
    NOT_ENOUGH_RESOURCES = 40002
    CACHE_OUT_OF_DATE = 40003


class Told(NamedTuple):
    """``code`` and ``sm_code`` are return codes; ``status`` is that of a CIM error."""

    code: int
    sm_code: int
    status: int


_R, _S = ReturnCode, SmCode

TABLE: dict[type[EngineError], Told] = {
    errors.NotFound: Told(_R.INVALID_PARAMETER, _S.OBJECT_NOT_FOUND, CIM_ERR_NOT_FOUND),
    errors.AlreadyExists: Told(_R.INVALID_PARAMETER, _R.INVALID_PARAMETER, CIM_ERR_ALREADY_EXISTS),
    errors.InUse: Told(_R.IN_USE, _R.FAILED, CIM_ERR_FAILED),
    errors.InvalidArgument: Told(_R.INVALID_PARAMETER, _R.INVALID_PARAMETER, CIM_ERR_INVALID_PARAMETER),
    errors.OutOfRange: Told(_R.INVALID_PARAMETER, _R.INVALID_PARAMETER, CIM_ERR_INVALID_PARAMETER),
    errors.OutOfSpace: Told(_R.FAILED, _S.NOT_ENOUGH_RESOURCES, CIM_ERR_FAILED),
    errors.InvalidState: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.Superseded: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.NotSupported: Told(_R.NOT_SUPPORTED, _R.NOT_SUPPORTED, CIM_ERR_NOT_SUPPORTED),
    errors.PermissionDenied: Told(_R.FAILED, _S.ACCESS_DENIED, CIM_ERR_ACCESS_DENIED),
    errors.Locked: Told(_R.FAILED, _S.ACCESS_DENIED, CIM_ERR_ACCESS_DENIED),
    errors.TimedOut: Told(_R.TIMEOUT, _R.TIMEOUT, CIM_ERR_FAILED),
    errors.WritesHeld: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.WriteProtected: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.MediumError: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.StoreFailed: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.StoreCorrupt: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.IntegrityError: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.PeerUnreachable: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.JobCancelled: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    errors.TokenInvalid: Told(_R.FAILED, _R.FAILED, CIM_ERR_FAILED),
    EngineError: Told(_R.UNKNOWN, _R.UNKNOWN, CIM_ERR_FAILED),
}


def told(error: EngineError) -> Told:
    """Of the nearest class of ``error`` in the table."""
    return next(TABLE[kind] for kind in type(error).__mro__ if kind in TABLE)


def told_of(name: str | None) -> Told:
    """Of the name of an engine error, as a job has it. An unknown one is of no kind."""
    kind = next((kind for kind in TABLE if kind.__name__ == name), EngineError)
    return TABLE[kind]


def cim_error(error: EngineError) -> CIMError:
    """For an operation that could not be run."""
    return CIMError(told(error).status, str(error))
