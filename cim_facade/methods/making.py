"""Have the engine make copies, and answer 0 or 4096.

0: all is made, there is no job. 4096: the parameters are checked and the work has begun, so that what can be refused
at its beginning is refused with a code; ``Job`` leads to the rest. A call waits no longer than ``CALL_WAIT_S``.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cim_facade.errors import ReturnCode, told_of
from cim_facade.methods.requests import Refused
from cim_facade.value_maps import CopyState, JobState, SyncType

if TYPE_CHECKING:
    from cim_facade.context import View
    from cim_facade.methods.requests import Kind
    from engine.api import CopyOrder, GroupOrder, JobInfo

CALL_WAIT_S = 10.0

FINAL = (JobState.COMPLETED, JobState.TERMINATED, JobState.EXCEPTION)


class JobFailed(Refused):
    """The work of a call has failed while the call waited. ``error``: the name of the engine's error."""

    def __init__(self, job: JobInfo) -> None:
        super().__init__(told_of(job.error).code, job.message)
        self.error = job.error


@dataclass(frozen=True, slots=True)
class Outcome:
    """``job``: the number of the one that goes on; None: all is made. ``copies``, ``group``, ``target_group``: what
    there is by now, as in the result of ``EngineApi.copies_make``."""

    job: int | None
    copies: list[dict[str, Any]] = field(default_factory=list)
    group: str | None = None
    target_group: str | None = None

    @property
    def code(self) -> ReturnCode:
        return ReturnCode.COMPLETED if self.job is None else ReturnCode.JOB_STARTED


async def make(
    view: View,
    kind: Kind,
    orders: list[CopyOrder],
    *,
    group: GroupOrder | None = None,
    at_once: bool = False,
    on_error: str = "stop",
    wait_for: CopyState | None = None,
) -> Outcome:
    """Begin, and wait for the end where that is near or asked for: snapshots take no time, ``wait_for`` asks."""
    until = "associated" if wait_for is CopyState.UNSYNCHRONIZED else "synchronized"
    job = await view.api.copies_make(orders, group=group, at_once=at_once, on_error=on_error, until=until)
    to_the_end = kind.sync_type is SyncType.SNAPSHOT or wait_for is not None
    outcome = await settled(view, job, to_the_end=to_the_end)
    view.forget()
    return outcome


async def settled(view: View, job: JobInfo, *, to_the_end: bool) -> Outcome:
    """The job's outcome once it is over, has begun, or the time is up. Raises JobFailed."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + CALL_WAIT_S
    while job.state_number not in FINAL and loop.time() < ends_at:
        if not to_the_end and job.result.get("begun"):
            break
        left = max(0.0, ends_at - loop.time())
        job = await view.api.job_wait(job.job, after_version=job.version, timeout_s=left)
    if job.state_number not in FINAL:
        return Outcome(job.job, job.result.get("copies", []), job.result.get("group"), job.result.get("target_group"))
    await view.api.job_forget(job.job)
    if job.state_number != JobState.COMPLETED:
        raise JobFailed(job)
    copies = [made for made in job.result.get("copies", []) if "error" not in made]
    return Outcome(None, copies, job.result.get("group"), job.result.get("target_group"))


async def of_job(view: View, job: int | None, *, wait: bool) -> Outcome:
    """Of an operation that takes this job. ``wait``: for its end, as long as a call may."""
    if job is None or not wait:
        return Outcome(job)
    return await settled(view, await view.api.job_show(job), to_the_end=True)
