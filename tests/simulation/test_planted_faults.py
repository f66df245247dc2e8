"""The simulator finds faults that are put into the product, most within the programs that CI runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings

from tests.simulation.planted import BY_A_PROGRAM, FOUND_LATER, PLANTED, STORED, Plant
from tests.simulation.program import Program, programs
from tests.simulation.world import Violation, run, watched

SEED = 1
"""What is found once is found every time."""


LATER = [pytest.param(plant, marks=pytest.mark.slow) for plant in FOUND_LATER]


@pytest.mark.long
@pytest.mark.parametrize("plant", [*PLANTED, *STORED, *LATER], ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_found(plant: Plant, monkeypatch: pytest.MonkeyPatch) -> None:
    @seed(SEED)
    @settings(
        max_examples=settings.get_profile("ci").max_examples * 40,  # it ends at the first that is found
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(programs)
    def simulate(program: Program) -> None:
        stored = plant in STORED or program.setting.stored
        run(replace(program, setting=replace(program.setting, stored=stored)))

    plant(monkeypatch)
    with watched(), pytest.raises(Exception):  # noqa: B017 (a Violation, or what the product raises)
        simulate()


@pytest.mark.long
@pytest.mark.parametrize(("plant", "program"), BY_A_PROGRAM, ids=lambda it: getattr(it, "__name__", ""))
def test_a_planted_fault_is_found_by_a_program_that_finds_nothing_else(
    plant: Plant, program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    with watched():
        run(program)
    plant(monkeypatch)
    with watched(), pytest.raises(Violation):
        run(program)
