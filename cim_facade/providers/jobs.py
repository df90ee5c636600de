"""Jobs of copies: MSISCSITARGET_ConcreteJob, what it affects and what it belongs to.

Shown are the engine's jobs that make or change copies, while they run and five minutes after: those also after a
restart. A job that is part of another one's work is not shown beside it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from cim_facade import elements, synchronizations
from cim_facade.errors import told_of
from cim_facade.namespaces import STORAGE
from cim_facade.provider import Association, End, Provider
from cim_facade.providers.synchronizations import interval, point_in_time
from cim_facade.value_maps import JobState, OperationalStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from pywbem import CIMInstance, CIMInstanceName

    from cim_facade.context import View
    from cim_facade.provider import Keys
    from engine.api import JobInfo

RETENTION_S = 300.0
"""TimeBeforeRemoval: how long a job is shown when it is over."""

KINDS = {
    "copies": "Make copies",
    "clone": "Full clone",
    "token clone": "Full clone by token",
    "flatten": "Separate a clone",
    "replica": "Mirror",
    "resync": "Resynchronize",
    "resume": "Resume",
    "restore": "Restore",
    "failover": "Fail over",
    "failback": "Fail back",
    "verify": "Verify",
}
"""Of the engine's jobs those that are shown, and what they are called."""

FINAL = (JobState.COMPLETED, JobState.TERMINATED, JobState.EXCEPTION)

_STATUS = {
    JobState.NEW: (OperationalStatus.OK,),
    JobState.RUNNING: (OperationalStatus.OK,),
    JobState.SUSPENDED: (OperationalStatus.OK,),
    JobState.COMPLETED: (OperationalStatus.OK, OperationalStatus.COMPLETED),
    JobState.TERMINATED: (OperationalStatus.ERROR, OperationalStatus.COMPLETED),
    JobState.EXCEPTION: (OperationalStatus.ERROR, OperationalStatus.COMPLETED),
}
"""OperationalStatus, as the job control of SMI-S has it."""

SERVICE_CLASS = "MSISCSITARGET_ReplicationService"


def is_shown(job: JobInfo) -> bool:
    """Whether a job is one of copies, and not over for long."""
    return job.kind in KINDS and (job.finished_at is None or time.time() - job.finished_at < RETENTION_S)


async def shown(view: View) -> list[JobInfo]:
    """Oldest first."""

    async def ask() -> list[JobInfo]:
        jobs = await view.api.job_list()
        parts = {part for job in jobs for part in job.result.get("jobs", ())}
        return [job for job in jobs if is_shown(job) and job.job not in parts]

    return await view.once("jobs", ask)


async def find(view: View, keys: Keys) -> JobInfo | None:
    """One that is shown, by its key."""
    text = (await view.paths()).identity(elements.JOB, keys)
    job = None if text is None else await elements.job_numbered(view, text)
    return job if job is not None and is_shown(job) else None


def percent(job: JobInfo) -> int:
    """100 only when it is over, and well."""
    if job.state_number == JobState.COMPLETED:
        return 100
    return min(99, 100 * job.done_bytes // job.total_bytes) if job.total_bytes else 0


def error_code(job: JobInfo) -> int:
    """0 unless it ended badly: never NULL, since clients read it without asking."""
    return 0 if job.error is None else told_of(job.error).code


def properties(job: JobInfo) -> dict[str, Any]:
    """Those that jobs of both models have."""
    ended = job.finished_at or time.time()
    return {
        "Description": f"{KINDS[job.kind]}: {job.subject}",
        "JobState": job.state_number,
        "JobStatus": job.message or job.state,
        "PercentComplete": percent(job),
        "ErrorCode": error_code(job),
        "ErrorDescription": job.message if job.error is not None else "",
        "OperationalStatus": list(_STATUS[JobState(job.state_number)]),
        "StatusDescriptions": [job.message or job.state for _ in _STATUS[JobState(job.state_number)]],
        "LocalOrUtcTime": 2,
        "TimeSubmitted": point_in_time(job.created_at),
        "StartTime": point_in_time(job.created_at),
        "ElapsedTime": interval(max(0.0, ended - job.created_at)),
        "TimeOfLastStateChange": point_in_time(job.finished_at or job.created_at),
        "TimeBeforeRemoval": interval(RETENTION_S),
    }


async def affected(view: View, job: JobInfo) -> list[tuple[CIMInstanceName, bool]]:
    """The elements that a job is about, and whether it makes them. Targets come first: clients take the first."""
    paths = await view.paths()
    found: list[tuple[CIMInstanceName, bool]] = []
    copies = job.result.get("copies", [])
    for copy in await elements.made_copies(view, copies):
        path = await elements.target_path(view, copy)
        if copy.is_remote or await elements.find(view, path) is not None:
            found.append((path, True))
    relation = await elements.group_relation(view, job.result.get("group"))
    if relation is not None:
        found.append((paths.by_id(elements.GROUP_CLASS, elements.GROUP, relation.target_group), True))
    for source in dict.fromkeys((copy["source_id"], copy.get("source_guid")) for copy in copies):
        path = paths.volume(*source)
        if await elements.find(view, path) is not None:
            found.append((path, False))
    if not copies:
        found += [(path, False) for path in await _subjects(view, job)]
    return list({str(path): (path, made) for path, made in found}.values())


async def _subjects(view: View, job: JobInfo) -> list[CIMInstanceName]:
    """Of a job that the engine knows by names only: of replicas, or of volumes."""
    paths = await view.paths()
    words = job.subject.split()
    mirrors = {copy.replica: copy for copy in await synchronizations.mirrors(view)}
    volumes = await view.volumes_named(words)
    found = [await elements.target_path(view, mirrors[word]) for word in words if word in mirrors]
    return found + [paths.volume(volumes[word].volume_id) for word in words if word in volumes]


class ConcreteJob(Provider):
    class_name = elements.JOB_CLASS

    async def instances(self, view: View) -> AsyncIterator[CIMInstance]:
        for job in await shown(view):
            yield await self.made(view, job)

    async def instance(self, view: View, keys: Keys) -> CIMInstance | None:
        job = await find(view, keys)
        return None if job is None else await self.made(view, job)

    async def delete(self, view: View, path: CIMInstanceName) -> None:
        job = await find(view, path.keybindings)
        if job is not None:
            await view.api.job_forget(job.job)

    async def made(self, view: View, job: JobInfo) -> CIMInstance:
        return view.make(
            STORAGE,
            self.class_name,
            InstanceID=(await view.paths()).instance_id(elements.JOB, job.job),
            Name=f"{KINDS[job.kind]} {job.job}",
            ElementName=f"{KINDS[job.kind]} {job.job}",
            DeleteOnCompletion=True,
            HealthState=25 if job.error is not None else 5,
            **properties(job),
        )


class AffectedJobElement(Association):
    """What a job makes (ElementEffects 5) and what it reads."""

    class_name = "MSISCSITARGET_AffectedJobElement"
    ends = (End("AffectingElement", elements.JOB_CLASS), End("AffectedElement", "CIM_ManagedElement"))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        if role == "AffectingElement":
            job = await find(view, path.keybindings)
            jobs = [] if job is None else [job]
        else:
            jobs = await shown(view)
        for job in jobs:
            affecting = paths.by_id(elements.JOB_CLASS, elements.JOB, job.job)
            for element, made in await affected(view, job):
                if role == "AffectingElement" or elements.same(element, path):
                    yield view.make(
                        STORAGE,
                        self.class_name,
                        AffectingElement=affecting,
                        AffectedElement=element,
                        ElementEffects=[5 if made else 3],
                    )


class OwningJobElement(Association):
    """Every job belongs to the replication service."""

    class_name = "MSISCSITARGET_OwningJobElement"
    ends = (End("OwningElement", SERVICE_CLASS), End("OwnedElement", elements.JOB_CLASS))

    async def references(self, view: View, path: CIMInstanceName, role: str) -> AsyncIterator[CIMInstance]:
        paths = await view.paths()
        service = paths.service(SERVICE_CLASS)
        if role == "OwningElement":
            jobs = await shown(view) if elements.same(service, path) else []
        else:
            job = await find(view, path.keybindings)
            jobs = [] if job is None else [job]
        for job in jobs:
            owned = paths.by_id(elements.JOB_CLASS, elements.JOB, job.job)
            yield view.make(STORAGE, self.class_name, OwningElement=service, OwnedElement=owned)


PROVIDERS: tuple[Provider, ...] = (ConcreteJob(), AffectedJobElement(), OwningJobElement())
