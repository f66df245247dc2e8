"""Privacy: charges a second, noise against its entropy source, and epsilon against other ways to compose.

``python -m benchmarks.privacy [--format json] [--full]``. Seconds are wall-clock, the noise's those of its
thread, the best of several runs; the ledger is made in ``--folder`` (its disk decides what a durable charge
takes), and once more in a PostgreSQL server of its own there, over TCP on this machine. The compositions are
those of 100 releases of the quickstart's noise (of the default configuration where there is none); RDP and
PLD are Google's dp-accounting, and are left out where it is not installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes

from benchmarks._postgres import PrivateServer, server_folder
from scarcity_ray.config import CentralNoise, HierarchicalFederationConfig, Layer2Config, load, read_yaml
from scarcity_ray.layers.layer2 import add_share, noised_mean
from scarcity_ray.plan import BasketFacts, ReleasePlan, make_plan
from scarcity_ray.privacy import (
    Accounting,
    Charge,
    DurableBudget,
    PrivacyAccountant,
    SystemNoise,
    epsilon_of_mu,
)
from scarcity_ray.privacy.sampling.discrete_gaussian import DiscreteGaussian

QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
Row = dict[str, Any]


def best_of(times: int, function: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds of the fastest of several calls."""
    best = math.inf
    for _ in range(times):
        start = clock()
        function()
        best = min(best, clock() - start)
    return best


cpu_of = partial(best_of, clock=time.thread_time)


def charges(folder: str | None, full: bool) -> Iterator[Row]:
    """Charging in memory, durably one by one, and for many clients at once."""
    events = 100_000 if full else 10_000
    accountant = PrivacyAccountant(1e4, 1e-5, delta_reserve=0.0)
    seconds = best_of(1, lambda: [accountant.spend_release(0.01) for _ in range(events)])
    yield {"name": "charge in memory, each", "n": events, "seconds": seconds / events}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        count = 500
        sync = best_of(3, lambda: [synced_write(Path(place) / "probe") for _ in range(count)]) / count
        yield from durable_charges("SQLite", str(Path(place) / "ledger.sqlite"), count, sync)
        programs = server_folder()
        if programs is None or importlib.util.find_spec("psycopg") is None:
            yield {"name": "PostgreSQL: no server or driver here"}
            return
        server = PrivateServer(programs, folder=folder or tempfile.gettempdir())
        try:
            yield from durable_charges("PostgreSQL", server.url(), count, sync)
        finally:
            server.remove()


def durable_charges(kind: str, path: str, count: int, sync: float) -> Iterator[Row]:
    """Charging one by one, a round of gossip for many clients at once, and going on after a restart."""
    begin = partial(
        DurableBudget.open,
        path,
        name="benchmark",
        total_epsilon=1e4,
        total_delta=1e-5,
        gossip_share=0.5,
        now=0.0,
    )
    budget = begin(must_exist=False)
    numbers = iter(range(10**9))

    def release(number: int) -> Charge:
        return budget.charge_release(f"r{number}", 0.01, now=0.0, details={"sigma": 100.0})

    seconds = best_of(3, lambda: [release(next(numbers)) for _ in range(count)]) / count
    row: Row = {"name": f"{kind}: durable charge, each", "n": 3 * count}
    yield row | versus(seconds, "a write and fsync", sync)
    clients = [f"client_{i}" for i in range(100_000)]

    def gossip() -> None:
        budget.charge_gossip(f"g{next(numbers)}", clients, 0.01, now=0.0, details={})

    gossip()
    yield {"name": f"{kind}: a round's gossip charge", "n": len(clients), "seconds": best_of(9, gossip)}
    budget.close()
    start = time.perf_counter()
    begin(must_exist=True).close()
    seconds = time.perf_counter() - start
    yield {"name": f"{kind}: reopen and replay", "n": 3 * count + 10, "seconds": seconds}


def synced_write(path: Path) -> int:
    """What durability costs at least: one page written and synced; the bytes."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT)
    written = os.write(handle, bytes(4096))
    os.fsync(handle)
    os.close(handle)
    return written


def noise(full: bool) -> Iterator[Row]:
    """Noise generation against its keystream, the kernel's entropy and NumPy's generator."""
    source = SystemNoise()
    for d in (10**4, 10**6, 10**7) if full else (10**4, 10**6):
        times = 5 if d > 10**6 else 15
        keystream = cpu_of(times, partial(aes_ctr, d))
        encryptor, room, zeros = cipher(), bytearray(8 * d + 15), bytes(8 * d)
        warm = cpu_of(times, partial(encryptor.update_into, zeros, room))
        kernel = cpu_of(times, partial(os.urandom, 8 * d))
        plain = cpu_of(times, partial(np.random.default_rng(0).standard_normal, d))
        continuous = cpu_of(times, partial(source.standard_normal, d))
        for name, other in (
            ("AES-256-CTR keystream, as new bytes", keystream),
            ("the same into a warm buffer", warm),
            ("os.urandom", kernel),
            ("NumPy, no secret", plain),
        ):
            yield {"name": "continuous Gaussian", "d": d} | versus(continuous, name, other)
        for sigma in (3.0, 1e3, 1e6):
            gaussian = DiscreteGaussian(sigma)
            seconds = cpu_of(times, partial(gaussian.sample, d))
            row = {"name": f"discrete Gaussian, sigma {sigma:g}", "d": d}
            yield row | versus(seconds, "100 ns a sample", 1e-7 * d)


def aes_ctr(words: int) -> bytes:
    """The keystream that the noise is made of, by itself."""
    return cipher().update(bytes(8 * words))


def cipher() -> CipherContext:
    """The cipher whose keystream it is."""
    return Cipher(algorithms.AES(bytes(32)), modes.CTR(bytes(16))).encryptor()


def compositions() -> Iterator[Row]:
    """Epsilon of 100 releases, by the sum of mu^2 and by others."""
    config = HierarchicalFederationConfig()
    if QUICKSTART.exists():
        content = read_yaml(QUICKSTART)
        config = load(HierarchicalFederationConfig, content.get("federation", content))
    mu, delta, count = make_plan(config).mu_release, config.total_delta, 100
    exact = epsilon_of_mu(math.sqrt(count) * mu, delta)
    seconds = best_of(5, lambda: epsilon_of_mu(math.sqrt(count) * mu, delta))
    yield {"name": "exact (Gaussian DP)", "n": count, "seconds": seconds, "epsilon": exact, "versus": "truth"}
    each = epsilon_of_mu(mu, delta / (2 * count))
    advanced = math.sqrt(2 * count * math.log(2 / delta)) * each + count * each * math.expm1(each)
    others: list[tuple[str, float, float | None]]
    others = [("naive", count * epsilon_of_mu(mu, delta / count), None), ("advanced", advanced, None)]
    others += [("zCDP", Accounting.ZCDP.epsilon_of(math.sqrt(count) * mu, delta), None)]
    others += by_dp_accounting(mu, delta, count)
    for name, epsilon, taken in others:
        row: Row = {"name": f"{name} composition", "n": count, "epsilon": epsilon}
        yield row | {"seconds": taken, "versus": f"exact ({exact:.4f})", "ratio": epsilon / exact}
    total = config.total_epsilon
    bought = [mode.mu_of_claim(total, delta) for mode in (Accounting.GAUSSIAN_DP, Accounting.ZCDP)]
    yield {
        "name": "noise of a ledger in zCDP",
        "n": count,
        "epsilon": total,
        "versus": f"that of Gaussian DP, both at epsilon {total:g}",
        "ratio": bought[0] / bought[1],
    }


def layer2(full: bool) -> Iterator[Row]:
    """Noise on a release: a basket's share, where it comes in shares, and from the sum to released floats."""
    names = list("abcdefghij")
    for d in (10**6, 10**7) if full else (10**6,):
        ring_sum = np.random.default_rng(0).integers(0, 2**22, d, dtype=np.uint32)
        for kind in CentralNoise:
            config = HierarchicalFederationConfig(vector_dim=d, layer2=Layer2Config(noise=kind))
            release = make_plan(config).release([BasketFacts(name, "", 20, 20, 4) for name in names])

            def noised(part: Any, release: ReleasePlan = release) -> None:
                part = add_share(part, release, SystemNoise(), "")
                noised_mean(part, release, names, SystemNoise(), "")

            seconds = best_of(5, partial(noised, ring_sum))
            yield {"name": f"release, {kind.value}", "d": d} | versus(seconds, "100 ns a sample", 1e-7 * d)


def by_dp_accounting(mu: float, delta: float, count: int) -> Iterator[tuple[str, float, float]]:
    """Google's accountants; add-or-remove with sigma / Delta is replace-one with our Delta."""
    try:
        import dp_accounting
        from dp_accounting import pld, rdp
    except ImportError:
        return
    event = dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(1 / mu), count)
    for name, make in (("RDP", rdp.RdpAccountant), ("PLD", pld.PLDAccountant)):
        start = time.perf_counter()
        epsilon = make().compose(event).get_epsilon(delta)
        yield name, float(epsilon), time.perf_counter() - start


def versus(seconds: float, name: str, other: float) -> Row:
    """``ratio`` is ours over theirs."""
    return {"seconds": seconds, "versus": f"{name} ({other:.4g} s)", "ratio": seconds / other}


def rows(full: bool = False, folder: str | None = None) -> Iterator[Row]:
    """Every row; ``full`` adds d = 1e7 and more events."""
    empty = {
        "name": "",
        "n": None,
        "d": None,
        "seconds": None,
        "epsilon": None,
        "versus": None,
        "ratio": None,
    }
    for part in (charges(folder, full), noise(full), layer2(full), compositions()):
        for row in part:
            yield empty | row


def run(output: str = "table", full: bool = False, folder: str | None = None) -> int:
    """Prints every row as soon as it is measured; ``output`` is ``table`` or ``json`` (a line a row)."""
    columns = ("name", "n", "d", "seconds", "epsilon", "ratio", "versus")
    widths = (38, 8, 9, 12, 9, 8, 0)
    if output != "json":
        print("  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True)))
    for row in rows(full, folder):
        if output == "json":
            print(json.dumps(row), flush=True)
            continue
        formats = {"seconds": ".8f", "epsilon": ".4f", "ratio": ".3f"}
        cells = ["" if row[c] is None else format(row[c], formats.get(c, "")) for c in columns]
        print("  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--full", action="store_true", help="also d = 1e7 and 1e5 events")
    parser.add_argument("--folder", help="where to make the ledger")
    arguments = parser.parse_args()
    return run(arguments.format, arguments.full, arguments.folder)


if __name__ == "__main__":
    raise SystemExit(main())
