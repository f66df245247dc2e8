"""Federated training on real data, attacks on it, and the job that shows a federation at work."""

from scarcity_ray.workloads.attacks import AttackConfig
from scarcity_ray.workloads.config import PlaceConfig, RunConfig, WorkloadConfig, load_run

__all__ = ["AttackConfig", "PlaceConfig", "RunConfig", "WorkloadConfig", "load_run"]
