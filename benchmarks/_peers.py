"""Layer 1 against other libraries' own functions, on one core, where they are installed.

The extra ``bench`` has Flower and ByzFL with the torch that they run on. ByzPy 0.1.4 asks for ``torch<2.6``
and ``numpy<2.1``, which ByzFL's torch and Ray do not go with, but runs on newer ones: ``pip install --no-deps
byzpy==0.1.4 cloudpickle``. ``krum`` needs Python 3.12; on an older one the extra leaves it out.

Function against function: the same rows and the same f, in the form that the other library hands to its rule,
one thread each. ``ratio`` is our time over theirs; *apart* is the distance from their result to ours over the
norm of ours. Of two calls of theirs the faster counts; one of more than `LONG_SECONDS` is called once.

Where a library computes something else than the rule's paper:

- *Flower new* (the Message API) selects once for Bulyan, without re-scoring, which *Flower legacy*
  (``flwr.server``) does. Its distances come from float32 products of rows that are not centred.
- *ByzFL* and *ByzPy* count n - f - 1 neighbours in Krum and Multi-Krum, the paper n - f - 2. ByzFL's
  Multi-Krum averages n - f rows, where the paper allows n - f - 2. Neither has Bulyan.
- *ByzFL* forms n (n - f) d entries for nearest-neighbour mixing: 32 GB at n = 100, d = 1e6, left out.
- *krum's* Bulyan picks n - 2f - 2 rows and takes their trimmed mean.
- *ByzPy's* median of an even number of rows is the lower of the two middle values.

Nearest-neighbour mixing is timed with the rule that follows it, on both sides: theirs forms n mixed rows,
ours none for the mean, and one block of them at a time for the trimmed mean.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks._adapters import ADAPTERS, Peer
from benchmarks._timing import BYZANTINE_SHARE, CASES, Row, cpu_time, least_time, matrix_of, progress, versus
from scarcity_ray.robust import aggregate, one_blas_thread

SIZES = [(100, 100_000), (50, 1_000_000), (100, 1_000_000)]
QUICK = [(20, 10_000)]
LONG_SECONDS = 10.0

SEEDS = (0, 1)
"""Of the rows. With the first Multi-Krum is in doubt at two of the sizes, with the second at none."""
IN_DOUBT = ("krum", "multi_krum")
"""Rules whose time depends on whether float32 distances settle the selection: measured with all seeds."""


def rows(quick: bool = False) -> Iterator[Row]:
    found = []
    for package, adapter in ADAPTERS:
        if importlib.util.find_spec(package) is None:
            progress(f"skipped: {adapter.__name__} ({package} is not installed)")
        else:
            found.append(adapter)
    with one_blas_thread():
        for n, d in QUICK if quick else SIZES:
            for seed in SEEDS:
                ours = Ours(n, d, seed)
                for adapter in found:
                    for peer in adapter(ours.updates, ours.f):
                        if seed == SEEDS[0] or peer.method in IN_DOUBT:
                            yield from measured(peer, ours)


class Ours:
    """The rows of one size, and our result and time for each rule once it was asked for."""

    def __init__(self, n: int, d: int, seed: int) -> None:
        self.n, self.d, self.f, self.seed = n, d, int(BYZANTINE_SHARE * n), seed
        self.updates = list(matrix_of(n, d, seed))
        self._known: dict[str, tuple[float, np.ndarray]] = {}

    def __call__(self, method: str) -> tuple[float, np.ndarray]:
        if method not in self._known:
            rule, pre = CASES[method]

            def run() -> Any:
                return aggregate(self.updates, method=rule, num_byzantine=self.f, pre=pre)

            self._known[method] = (least_time(run, 4), run().vector)
        return self._known[method]


def measured(peer: Peer, ours: Ours) -> Iterator[Row]:
    name = peer.method if ours.seed == SEEDS[0] else f"{peer.method}, seed {ours.seed}"
    case = f"{peer.owner}: {name} n={ours.n} d={ours.d}"
    progress(case)
    try:
        seconds, result = theirs(peer.call)
    except (RuntimeError, MemoryError) as error:
        progress(f"skipped: {case} ({str(error).splitlines()[0]})")
        return
    own, vector = ours(peer.method)
    row: Row = {"name": name, "n": ours.n, "d": ours.d, "seconds": own}
    row |= versus(own, peer.owner, seconds)
    apart = np.linalg.norm(np.asarray(result) - vector) / np.linalg.norm(vector)
    row["versus"] = row["versus"].replace(" s)", f" s, {apart:.0e} apart)")
    yield row


def theirs(call: Callable[[], Any]) -> tuple[float, Any]:
    results: list[Any] = []
    first = cpu_time(lambda: results.append(call()))
    return (first if first > LONG_SECONDS else min(first, cpu_time(call))), results[0]
