"""Long work. See ``engine.api``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True)
class JobInfo:
    """``state`` and ``state_number``: CIM_ConcreteJob.JobState. ``version`` grows with each visible change.

    ``error``: name of the engine error that ended it; its text is ``message``. ``result``: what the work yields.
    """

    job: int
    kind: str
    subject: str
    state: str
    state_number: int
    done_bytes: int
    total_bytes: int
    rate_bytes_s: float
    eta_s: float | None
    created_at: float
    finished_at: float | None
    message: str
    error: str | None
    result: dict[str, Any]
    version: int


class JobApi(Protocol):
    """See ``engine.api``."""

    async def job_list(self) -> list[JobInfo]: ...

    async def job_show(self, job: int) -> JobInfo: ...

    async def job_wait(self, job: int, *, after_version: int = 0, timeout_s: float = 30.0) -> JobInfo:
        """The job once its version is above ``after_version``, it is over, or the time is up."""
        ...

    async def job_cancel(self, job: int) -> JobInfo:
        """Cancel and wait for its end. Raises InvalidState: it is over."""
        ...

    async def job_suspend(self, job: int) -> JobInfo:
        """Have a copy rest where it is. Raises InvalidState: it is over, or no work that can rest."""
        ...

    async def job_resume(self, job: int) -> JobInfo:
        """Raises InvalidState: it does not rest."""
        ...

    async def job_forget(self, job: int) -> None:
        """Take a job that is over out of the history. Raises InvalidState: it is not."""
        ...
