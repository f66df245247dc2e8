"""Column blocks as tasks give the very bytes that one thread gives."""

from __future__ import annotations

import numpy as np
import pytest

from scarcity_ray.actors.layer1_tasks import (
    STORE_SECONDS,
    TASKS_SECONDS,
    blocks_where_faster,
    shared_blocks,
)
from scarcity_ray.config import AggregationMethod, Layer1Config
from scarcity_ray.errors import TooFewUpdates
from scarcity_ray.layers import Layer1Aggregator
from scarcity_ray.robust import column_blocks, estimated_seconds, get_rule, gram_block
from scarcity_ray.robust.arrays.blocks import BLOCK_COLUMNS
from scarcity_ray.runtime.rpc import gather, map_tasks

SHAPES = [(9, 3), (9, BLOCK_COLUMNS), (9, BLOCK_COLUMNS + 1), (9, 19 * BLOCK_COLUMNS + 77)]


def always_shared(compute):
    return lambda rows, seconds: shared_blocks(compute, rows)


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
            tasked = Layer1Aggregator(config, blocks_of=always_shared(compute)).aggregate(rows)
            assert tasked.aggregate.tobytes() == inline.aggregate.tobytes()
            assert tasked.selected == inline.selected
            blocks = len(column_blocks(shape[1]))
            assert compute.stored == -(-blocks // -(-blocks // parallelism)) - 1


def test_clipped_rows_give_the_same_bytes_as_tasks(compute_of):
    config = Layer1Config(aggregation_method="trimmed_mean", num_byzantine=1, clip_norm=0.1)
    rows = rows_of((9, 3 * BLOCK_COLUMNS + 5))
    rows[::2] *= np.float32(0.01)
    inline = Layer1Aggregator(config).aggregate(rows)
    tasked = Layer1Aggregator(config, blocks_of=always_shared(compute_of(2))).aggregate(rows)
    assert tasked.aggregate.tobytes() == inline.aggregate.tobytes()


def test_each_share_is_stored_once_and_the_callers_own_never(compute_of):
    compute = compute_of(4)
    rows = rows_of((7, 8 * BLOCK_COLUMNS))
    driver = shared_blocks(compute, rows)
    for passes in (1, 2):
        assert [part.shape for part in driver(gram_block)] == [(7, 7)] * 8
        assert (compute.stored, compute.tasks) == (3, 3 * passes)
    stored = sum(row.nbytes for share in compute.values for row in share)
    assert stored == rows.nbytes * 3 // 4


def test_rows_are_shared_out_when_that_is_estimated_to_save_time(compute_of):
    entries = 3 * 10 * BLOCK_COLUMNS
    rows = rows_of((3, 10 * BLOCK_COLUMNS))
    store = STORE_SECONDS * entries
    cases = [(2, store + 2.1 * TASKS_SECONDS, True), (2, store + 1.9 * TASKS_SECONDS, False)]
    cases += [(16, store + 1.1 * TASKS_SECONDS, True), (1, 1e9, False), (16, 0.0, False)]
    for workers, seconds, shared in cases:
        compute = compute_of(workers)
        list(blocks_where_faster(compute)(rows, seconds)(gram_block))
        assert (compute.tasks > 0) == shared


def test_the_mean_of_rows_in_memory_is_never_shared_out(compute_of):
    for n, d in ((3, 10**9), (300, 10**7)):
        assert estimated_seconds(get_rule("mean"), n, d) < STORE_SECONDS * n * d
        assert estimated_seconds(get_rule("bulyan"), 100, d) > STORE_SECONDS * 100 * d


def test_small_work_and_one_worker_make_no_tasks(compute_of):
    config = Layer1Config(aggregation_method="krum", num_byzantine=1)
    for compute in (compute_of(4), compute_of(1)):
        Layer1Aggregator(config, blocks_of=blocks_where_faster(compute)).aggregate(rows_of((9, 50)))
        assert (compute.tasks, compute.stored) == (0, 0)


def test_a_refusal_comes_before_any_task(compute_of):
    compute = compute_of(4)
    config = Layer1Config(aggregation_method="krum", num_byzantine=4)
    with pytest.raises(TooFewUpdates):
        Layer1Aggregator(config, blocks_of=always_shared(compute)).aggregate(rows_of((9, 50)))
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
