"""Column blocks as tasks give the very bytes that one thread gives."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.errors import TooFewUpdates
from scarcity_ray.layers import Layer1Aggregator
from scarcity_ray.robust.blocks import BLOCK_COLUMNS
from scarcity_ray.roles.handles import gather, map_tasks
from scarcity_ray.roles.layer1_tasks import blocks_as_tasks

SHAPES = [(9, 3), (9, BLOCK_COLUMNS), (9, BLOCK_COLUMNS + 1), (9, 19 * BLOCK_COLUMNS + 77)]


def rows_of(shape):
    rng = np.random.Generator(np.random.PCG64DXSM(1))
    return (0.01 * rng.standard_normal(shape)).astype(np.float32)


@pytest.mark.parametrize("method", [m.value for m in AggregationMethod])
def test_tasks_give_the_same_bytes_as_one_thread_for_any_grouping(method, compute_of):
    config = Layer1Config(aggregation_method=method, num_byzantine=int(method != "centered_clipping"))
    for shape in SHAPES:
        rows = rows_of(shape)
        inline = Layer1Aggregator(config).aggregate(rows)
        for parallelism in (2, 3, 16):
            compute = compute_of(parallelism)
            tasked = Layer1Aggregator(config, blocks_of=blocks_as_tasks(compute, 1)).aggregate(rows)
            assert tasked.aggregate.tobytes() == inline.aggregate.tobytes()
            assert tasked.selected == inline.selected
            assert compute.stored == 1


def test_small_work_and_one_worker_make_no_tasks(compute_of):
    config = Layer1Config(aggregation_method="krum", num_byzantine=1)
    for compute, least in ((compute_of(4), 10**6), (compute_of(1), 1)):
        Layer1Aggregator(config, blocks_of=blocks_as_tasks(compute, least)).aggregate(rows_of((9, 50)))
        assert (compute.tasks, compute.stored) == (0, 0)


def test_large_work_is_spread_over_all_workers(compute_of):
    compute = compute_of(4)
    config = Layer1Config(aggregation_method="mean")
    rows = rows_of((3, 8 * BLOCK_COLUMNS))
    Layer1Aggregator(config, blocks_of=blocks_as_tasks(compute, 1)).aggregate(rows)
    assert compute.tasks == 4


def test_a_refusal_comes_before_any_task(compute_of):
    compute = compute_of(4)
    config = Layer1Config(aggregation_method="krum", num_byzantine=4)
    with pytest.raises(TooFewUpdates):
        Layer1Aggregator(config, blocks_of=blocks_as_tasks(compute, 1)).aggregate(rows_of((9, 50)))
    assert (compute.tasks, compute.stored) == (0, 0)


def add(item, one, two):
    if item < 0:
        raise ValueError(str(item))
    return item + one + two


def test_mapped_tasks_answer_in_order_with_what_they_share_stored_once(compute_of):
    compute = compute_of(2)
    assert map_tasks(compute, add, [3, 1, 2], 10, 100) == [113, 111, 112]
    assert (compute.stored, compute.tasks) == (2, 3)


def test_gather_waits_for_all_and_raises_the_first_failure(compute_of):
    compute = compute_of(2)
    futures = [compute.submit(add, item, 0, 0) for item in (1, -1, -2, 2)]
    waited = []
    for future in futures:
        future.result = (lambda real: lambda: (waited.append(1), real())[1])(future.result)
    with pytest.raises(ValueError, match="-1"):
        gather(futures)
    assert len(waited) == 4
