"""Jobs: RequestStateChange, KillJob, GetError and GetErrors of CIM_ConcreteJob. They act on the copy itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pywbem import CIM_ERR_NOT_FOUND, CIMError

from cim_facade.errors import told_of
from cim_facade.methods.answering import answering
from cim_facade.methods.requests import Refused, invalid, unsupported
from cim_facade.namespaces import STORAGE
from cim_facade.providers import jobs
from cim_facade.value_maps import JobState
from engine.errors import InvalidState

if TYPE_CHECKING:
    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.methods.answering import Answer
    from cim_facade.provider import MethodHandler, Parameters
    from engine.api import JobInfo

START, SUSPEND, TERMINATE, KILL, SERVICE = 2, 3, 4, 5, 6
"""Of RequestStateChange's RequestedState."""
INVALID_TRANSITION, NO_TIMEOUT = 4097, 4098

KILL_ACCESS_DENIED, KILL_NOT_FOUND = 6, 7


async def _job(view: View, path: CIMInstanceName) -> JobInfo:
    job = await jobs.find(view, path.keybindings)
    if job is None:  # it was removed since the instance was found
        raise CIMError(CIM_ERR_NOT_FOUND, "the job was removed")
    return job


@answering
async def request_state_change(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """RequestedState: 2 go on, 3 rest, 4 and 5 end it and take back what it has made."""
    state = params.get("RequestedState")
    if state not in (START, SUSPEND, TERMINATE, KILL, SERVICE):
        raise invalid(f"RequestedState {state} is none of 2 to 6")
    if state == SERVICE:
        raise unsupported("RequestedState 6: jobs here need no service")
    timeout = params.get("TimeoutPeriod")
    if timeout is not None and (not timeout.is_interval or timeout.timedelta.total_seconds()):
        raise Refused(NO_TIMEOUT, "the transition takes as long as it takes")
    job = await _job(view, path)
    try:
        if state == START:
            await view.api.job_resume(job.job)
        elif state == SUSPEND:
            await view.api.job_suspend(job.job)
        else:
            await view.api.job_cancel(job.job)
    except InvalidState as error:
        raise Refused(INVALID_TRANSITION, str(error)) from error
    return 0, {}


@answering
async def kill_job(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    """DeleteOnKill: the job goes, too."""
    job = await _job(view, path)
    if job.state_number not in jobs.FINAL:
        await view.api.job_cancel(job.job)
    if params.get("DeleteOnKill"):
        await view.api.job_forget(job.job)
    return 0, {}


def error_of(view: View, job: JobInfo, source: str) -> CIMInstance | None:
    """NULL while it runs, and when it ended well."""
    if job.error is None:
        return None
    terminated = job.state_number == JobState.TERMINATED
    error = view.make(
        STORAGE,
        "CIM_Error",
        ErrorType=4,
        OwningEntity="twinvol",
        MessageID=job.error,
        Message=job.message,
        PerceivedSeverity=2 if terminated else 5,
        ProbableCause=0,
        ErrorSource=source,
        ErrorSourceFormat=2,
        CIMStatusCode=told_of(job.error).status,
    )
    error.path = None
    return error


@answering
async def get_error(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    return 0, {"Error": error_of(view, await _job(view, path), str(path))}


@answering
async def get_errors(view: View, path: CIMInstanceName, params: Parameters) -> Answer:
    error = error_of(view, await _job(view, path), str(path))
    return 0, {"Errors": [] if error is None else [error]}


METHODS: dict[tuple[str, str], MethodHandler] = {
    ("CIM_ConcreteJob", "RequestStateChange"): request_state_change,
    ("CIM_ConcreteJob", "GetError"): get_error,
    ("CIM_ConcreteJob", "GetErrors"): get_errors,
    ("CIM_Job", "KillJob"): kill_job,
}
