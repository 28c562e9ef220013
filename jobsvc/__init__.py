"""jobsvc: a durable job service for Ray clusters. What it accepted, it finishes, whatever dies.

What users need is here, and light: neither Ray nor boto3 nor FastAPI is imported by `import jobsvc`.

The modules, from the bottom up; a module imports from its own layer and from those above it in this list
(`tests/test_house_rules.py` holds it, `docs/architecture.md` explains it):

    words       errors settings jobs commands events
    pure core   ready_lanes queue_state queue_snapshot decisions job_views scaling
    journal     object_store directory_store s3_store faulty_store log_records journal snapshots
    behaviour   worker_registry throughput retirement commit_loop leader pool_scaler manager
                attempts prefetch call_pace worker_objects payload_fetch job_frames worker simulated_runner
                tasks flights payload_packs feed_watch gateway
    rims        Ray: leader_links manager_actor worker_actor manager_status actor_titles ray_head serve_proxy
                processes: job_* process_tree service_processes
                HTTP: http_* metrics access logs   the user's side: client* discovery project_tasks ports
    entry       serve_app service demo doctor cli*
"""

from typing import TYPE_CHECKING, Any

from .errors import (
    CompletionsLost,
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
    "CompletionsLost",
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
