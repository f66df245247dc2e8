"""Fixed clip norms against one that adapts, in simulated runs of a job, noise included.

A fixed clip norm must be known beforehand, and finding it by trying costs budget or clients' data that no
claim covers. A sweep shows what the best of them would give, and what adaptation gives from starts that
are far off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from scarcity_ray.plan import make_plan
from scarcity_ray.workloads.config import Job, LabConfig
from scarcity_ray.workloads.scene import Scene
from scarcity_ray.workloads.simulate import Defence, simulate

FIXED = (0.1, 0.2, 0.5, 0.7, 1.0, 1.5, 2.0, 3.0, 10.0)
STARTS = (0.1, 1.0, 10.0)
QUANTILE, LEARNING_RATE = 0.3, 1.0
"""For tens of rounds: a rate at which ten times too large is a matter of a few, and a clip norm below the
median, where clipping costs less accuracy than the noise of a larger one. Andrew et al. (2021) take 0.5 and
0.2, for thousands of rounds."""


@dataclass(frozen=True)
class ClippingCase:
    """One way to clip, in both layers.

    Attributes:
        clip_norm: The norm, or where it starts.
        adaptive: Whether it adapts.
        quantile: The quantile that it then follows.
        learning_rate: Of its steps.
    """

    clip_norm: float
    adaptive: bool = False
    quantile: float = QUANTILE
    learning_rate: float = LEARNING_RATE

    @property
    def name(self) -> str:
        """For tables."""
        return f"adaptive from {self.clip_norm:g}" if self.adaptive else f"fixed {self.clip_norm:g}"


@dataclass(frozen=True)
class ClippingResult:
    """What a case came to: the final accuracy of each seed."""

    case: ClippingCase
    accuracies: tuple[float, ...]

    @property
    def accuracy(self) -> float:
        """The median over the seeds."""
        return median(self.accuracies)


def clipping_cases(
    fixed: Sequence[float] = FIXED,
    starts: Sequence[float] = STARTS,
    quantile: float = QUANTILE,
    learning_rate: float = LEARNING_RATE,
) -> list[ClippingCase]:
    """The fixed norms, then adaptation from each start."""
    adaptive = [ClippingCase(start, True, quantile, learning_rate) for start in starts]
    return [*map(ClippingCase, fixed), *adaptive]


def run_clipping(jobs: Sequence[Job], cases: Sequence[ClippingCase]) -> Iterator[ClippingResult]:
    """Each case's runs under a job's attack, with its budget, rounds and rule; a job for each seed."""
    scenes = [Scene.of(job, "accuracy") for job in jobs]
    for case in cases:
        finals = tuple(_final(job, case, scene) for job, scene in zip(jobs, scenes, strict=True))
        yield ClippingResult(case, finals)


def best_fixed(results: Sequence[ClippingResult]) -> ClippingResult:
    """The fixed clip norm with the highest median."""
    return max((r for r in results if not r.case.adaptive), key=lambda result: result.accuracy)


def _final(job: Job, case: ClippingCase, scene: Scene) -> float:
    federation, lab = job.config.federation, job.config.lab or LabConfig()
    clipped = replace(
        federation,
        layer1=replace(federation.layer1, clip_norm=case.clip_norm),
        layer2=replace(
            federation.layer2,
            clip_norm=case.clip_norm,
            adaptive_clipping=case.adaptive,
            clip_quantile=case.quantile,
            clip_learning_rate=case.learning_rate,
        ),
    )
    return simulate(scene, lab.attack, Defence(make_plan(clipped))).metrics["accuracy"]
