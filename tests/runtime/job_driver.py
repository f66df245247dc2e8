"""The driver of `test_job_stop`, a Ray job: ``python -m tests.runtime.job_driver FOLDER VERB``.

Its federation has no name, so that its roles end with it. It begins, or goes on from what is stored.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from benchmarks._deaths_driver import Silence, Worker, config
from scarcity_ray import HierarchicalFederation


class Job(Worker):
    """A driver that nobody can attach to."""

    def opened(self) -> HierarchicalFederation:
        """Its federation, begun or restored."""
        state = self.folder / "state"
        self.round_id = 0
        if not state.exists():
            return self._watched(HierarchicalFederation(config(self.folder), noise=Silence()), "begin")
        fed = HierarchicalFederation.restore(str(state), noise=Silence())
        self.round_id = int(fed.get_stats()["current_round"])
        return self._watched(fed, "restore")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    job = Job("", Path(sys.argv[1]))
    with job.fed:
        {"work": job.rounds, "settle": job.settle}[sys.argv[2]]()
