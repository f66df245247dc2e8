"""Jobs: anyone's workload trained through a federation, attacks on it, and what it is compared with."""

from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.config import (
    Job,
    LabConfig,
    PlaceConfig,
    RunConfig,
    TrainingConfig,
    WorkloadConfig,
    load_job,
    load_run,
)

__all__ = [
    "AttackConfig",
    "Job",
    "LabConfig",
    "PlaceConfig",
    "RunConfig",
    "TrainingConfig",
    "WorkloadConfig",
    "load_job",
    "load_run",
]
