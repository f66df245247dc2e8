"""Other libraries' aggregation functions, each called as its own library calls it.

An adapter gives calls on rows that are in the form that the library hands to its rule. What they compute is
theirs; where it is not the rule as it was published, `_peers` says so.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

Rows = list[np.ndarray]
MOST_BYTES = 8e9
"""Beyond this much memory of its own a call is left out."""
MOST_RESCORING = 1.1e12
"""n^3 d beyond which a Bulyan that measures anew in each step, which then takes minutes, is left out."""


class Peer(NamedTuple):
    """One function: our name of the rule, whose function it is, and the call, which gives a vector."""

    method: str
    owner: str
    call: Callable[[], Any]


def flower_new(updates: Rows, f: int) -> Iterator[Peer]:
    from flwr.app import ArrayRecord, MetricRecord, RecordDict
    from flwr.serverapp.strategy.bulyan import aggregate_n_closest_weights
    from flwr.serverapp.strategy.fedtrimmedavg import trim_mean
    from flwr.serverapp.strategy.multikrum import select_multikrum
    from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords

    n = len(updates)
    contents = [
        RecordDict({"arrays": ArrayRecord(numpy_ndarrays=[row]), "metrics": MetricRecord({"w": 1})})
        for row in updates
    ]

    def krum(count: int) -> np.ndarray:
        record = aggregate_arrayrecords(select_multikrum(contents, f, count), "w")
        return record.to_numpy_ndarrays()[0]

    def bulyan() -> np.ndarray:
        chosen = select_multikrum(contents, f, n - 2 * f)
        arrays = [content["arrays"].to_numpy_ndarrays() for content in chosen]
        medians = [np.median(layer, axis=0) for layer in zip(*arrays, strict=True)]
        return aggregate_n_closest_weights(medians, arrays, n - 4 * f)[0]

    yield Peer("krum", "Flower new", lambda: krum(1))
    yield Peer("multi_krum", "Flower new", lambda: krum(n - f - 2))
    yield Peer("bulyan", "Flower new", bulyan)
    yield Peer("median", "Flower new", lambda: np.median(np.stack(updates), axis=0))
    yield Peer("trimmed_mean", "Flower new", lambda: trim_mean(np.stack(updates), (f + 0.5) / n))


def flower_legacy(updates: Rows, f: int) -> Iterator[Peer]:
    from flwr.server.strategy import aggregate as theirs

    n, d = len(updates), len(updates[0])
    results = [([row], 1) for row in updates]
    owner = "Flower legacy"

    def bulyan() -> np.ndarray:
        rule = theirs.aggregate_krum
        return theirs.aggregate_bulyan(list(results), f, aggregation_rule=rule, to_keep=0)[0]

    yield Peer("krum", owner, lambda: theirs.aggregate_krum(results, f, 0)[0])
    yield Peer("multi_krum", owner, lambda: theirs.aggregate_krum(results, f, n - f - 2)[0])
    yield Peer("median", owner, lambda: theirs.aggregate_median(results)[0])
    yield Peer("trimmed_mean", owner, lambda: theirs.aggregate_trimmed_avg(results, (f + 0.5) / n)[0])
    if n**3 * d <= MOST_RESCORING:
        yield Peer("bulyan", owner, bulyan)


def byzfl_numpy(updates: Rows, f: int) -> Iterator[Peer]:
    yield from byzfl("ByzFL numpy", updates, f)


def byzfl_torch(updates: Rows, f: int) -> Iterator[Peer]:
    yield from byzfl("ByzFL torch", tensors(updates), f)


def byzfl(owner: str, given: list[Any], f: int) -> Iterator[Peer]:
    rules = without_its_init("byzfl", "aggregators.aggregators")
    nnm = without_its_init("byzfl", "aggregators.preaggregators").NNM(f)
    n, d = len(given), len(given[0])
    yield Peer("krum", owner, lambda: rules.Krum(f)(given))
    yield Peer("multi_krum", owner, lambda: rules.MultiKrum(f)(given))
    yield Peer("median", owner, lambda: rules.Median()(given))
    yield Peer("trimmed_mean", owner, lambda: rules.TrMean(f)(given))
    if 4 * n * (n - f) * d <= MOST_BYTES:
        yield Peer("nnm + mean", owner, lambda: rules.Average()(nnm(given)))
        yield Peer("nnm + trimmed_mean", owner, lambda: rules.TrMean(f)(nnm(given)))


def byzpy(updates: Rows, f: int) -> Iterator[Peer]:
    import torch
    from byzpy.aggregators.coordinate_wise.median import CoordinateWiseMedian
    from byzpy.aggregators.coordinate_wise.trimmed_mean import CoordinateWiseTrimmedMean
    from byzpy.aggregators.geometric_wise.krum import Krum, MultiKrum
    from byzpy.pre_aggregators.nnm import NearestNeighborMixing

    given, n = tensors(updates), len(updates)
    trimmed, nnm = CoordinateWiseTrimmedMean(f), NearestNeighborMixing(f)
    yield Peer("krum", "ByzPy", lambda: Krum(f).aggregate(given))
    yield Peer("multi_krum", "ByzPy", lambda: MultiKrum(f, n - f - 2).aggregate(given))
    yield Peer("median", "ByzPy", lambda: CoordinateWiseMedian().aggregate(given))
    yield Peer("trimmed_mean", "ByzPy", lambda: trimmed.aggregate(given))
    yield Peer("nnm + mean", "ByzPy", lambda: torch.stack(nnm.pre_aggregate(given)).mean(dim=0))
    yield Peer("nnm + trimmed_mean", "ByzPy", lambda: trimmed.aggregate(nnm.pre_aggregate(given)))


def krum(updates: Rows, f: int) -> Iterator[Peer]:
    from krum.primitives.aggregators.bulyan import Bulyan
    from krum.primitives.aggregators.krum import Krum
    from krum.primitives.aggregators.median import Median
    from krum.primitives.aggregators.multikrum import MultiKrum
    from krum.primitives.aggregators.trimmed_mean import TrimmedMean

    given, n = tensors(updates), len(updates)
    yield Peer("krum", "krum", lambda: Krum.aggregate(given, n=n, f=f))
    yield Peer("multi_krum", "krum", lambda: MultiKrum.aggregate(given, n=n, f=f, m=n - f - 2))
    yield Peer("median", "krum", lambda: Median.aggregate(given))
    yield Peer("trimmed_mean", "krum", lambda: TrimmedMean.aggregate(given, f=f))
    if n**3 * len(updates[0]) <= MOST_RESCORING:
        yield Peer("bulyan", "krum", lambda: Bulyan.aggregate(given, n=n, f=f, m=1))


ADAPTERS: list[tuple[str, Callable[[Rows, int], Iterator[Peer]]]] = [
    ("byzpy", byzpy),
    ("byzfl", byzfl_numpy),
    ("byzfl", byzfl_torch),
    ("flwr", flower_new),
    ("flwr", flower_legacy),
    ("krum", krum),
]


def tensors(updates: Rows) -> list[Any]:
    """The rows as torch's tensors, without copying them; torch then uses one thread."""
    import torch

    torch.set_num_threads(1)
    return [torch.from_numpy(row) for row in updates]


def without_its_init(package: str, module: str) -> ModuleType:
    """A module of a package whose ``__init__`` is not run.

    ByzFL's imports its experiments, and with them torchvision, whose compiled part must match torch's build;
    its aggregators need neither.
    """
    if package not in sys.modules:
        spec = importlib.util.find_spec(package)
        assert spec is not None
        bare = ModuleType(package)
        bare.__path__ = list(spec.submodule_search_locations or ())
        sys.modules[package] = bare
    return importlib.import_module(f"{package}.{module}")
