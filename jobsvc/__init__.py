"""jobsvc: a durable job service for Ray clusters. What it accepted, it finishes, whatever dies.

What users need is here, and light: neither Ray nor boto3 nor FastAPI is imported by `import jobsvc`.

The modules, from the bottom up; each imports from above it in this list (docs/architecture.md):

    words       errors settings jobs commands events access logs
    pure core   ready_lanes queue_state queue_snapshot decisions job_views
    journal     object_store directory_store s3_store faulty_store log_records snapshots journal
    behaviour   scaling worker_registry retirement commit_loop leader pool_scaler manager worker gateway tasks
    rims        leader_links manager_actor worker_actor job_runner job_process http_api client metrics
    entry       serve_app service demo doctor cli
"""

from typing import TYPE_CHECKING, Any

from .errors import (
    InvalidRequest,
    JobFailed,
    JobsvcError,
    Refused,
    Unavailable,
    WaitTimedOut,
)
from .tasks import task

if TYPE_CHECKING:
    from .client import Client
    from .client_jobs import Job, JobSet

__all__ = [
    "Client",
    "InvalidRequest",
    "Job",
    "JobFailed",
    "JobSet",
    "JobsvcError",
    "Refused",
    "Unavailable",
    "WaitTimedOut",
    "task",
]


def __getattr__(name: str) -> Any:
    """The client is imported when it is first used: job processes start without it, and faster."""
    if name == "Client":
        from .client import Client

        return Client
    if name in ("Job", "JobSet"):
        from . import client_jobs

        return getattr(client_jobs, name)
    raise AttributeError(name)
