"""Seams to other systems: jobs, backends, lineage. Nothing in the library needs them."""

from __future__ import annotations

from tinker_async.ports.backend import (
    Backend,
    BackendCapabilities,
    BackendHealth,
    BackendMetrics,
    Completion,
    CompletionRequest,
    ModelReport,
    SamplingBackend,
)
from tinker_async.ports.jobs import (
    Job,
    JobContext,
    JobRetry,
    JobRunner,
    JobStatus,
    Scheduler,
)
from tinker_async.ports.lineage import LineageStore, export, follow

__all__ = (
    "Backend",
    "BackendCapabilities",
    "BackendHealth",
    "BackendMetrics",
    "Completion",
    "CompletionRequest",
    "Job",
    "JobContext",
    "JobRetry",
    "JobRunner",
    "JobStatus",
    "LineageStore",
    "ModelReport",
    "SamplingBackend",
    "Scheduler",
    "export",
    "follow",
)
