"""Secure aggregation: seconds a phase, bytes a party, against the keystream floor and Flower's SecAgg+.

``python -m benchmarks secagg [--format json] [--full]``. All figures are CPU seconds of one process, every
party and the coordinator in turn. The floor is what the masks alone cost: AES-256-CTR keystreams into a
reused buffer, added to a vector, with nothing around them, measured beside each session. Flower's figures
come from its own primitives, called as its client and server call them, and scaled up from one party and a
few secrets; they need ``pip install flwr`` and are left out otherwise.

A whole release of a federation, against its number of baskets, is ``python -m benchmarks layer2``.

With ``layer2.noise: distributed_discrete_gaussian`` each party also draws its share of the noise; its row
stands beside the masks' floor, and the seconds divided by d are what a coordinate costs.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from scarcity_ray.config import (
    AggregationMethod,
    CentralNoise,
    HierarchicalFederationConfig,
    Layer1Config,
    Layer2Config,
)
from scarcity_ray.errors import SecureAggregationAborted
from scarcity_ray.layers.layer2 import add_share
from scarcity_ray.plan import BasketFacts, make_plan
from scarcity_ray.privacy import SystemNoise
from scarcity_ray.secagg import (
    Coordinator,
    GraphChoice,
    IdentityKeyPair,
    Participant,
    Party,
    SessionContext,
    choose_graph,
    threshold_for,
)

BLOCK = 1 << 20
SPARSE_DEGREE = 16
Row = dict[str, Any]


class Stopwatch:
    """CPU seconds by label, and how often."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)

    def __call__(self, label: str, function: Callable[..., Any], *arguments: Any) -> Any:
        start = time.process_time()
        result = function(*arguments)
        self.seconds[label] += time.process_time() - start
        self.calls[label] += 1
        return result

    def each(self, label: str) -> float:
        return self.seconds[label] / self.calls[label]


def size_of(message: object) -> int:
    """Bytes of content in a message."""
    total = 0
    for field in dataclasses.fields(message):  # type: ignore[arg-type]
        value = getattr(message, field.name)
        items = value if isinstance(value, tuple) else (value,)
        total += sum(item.nbytes if isinstance(item, np.ndarray) else len(item) for item in items)
    return total


def session(
    n: int, d: int, dropout: float, degree: int | None = None
) -> tuple[Stopwatch, SessionContext, int, int]:
    """One whole attempt; the last parties drop before they send their masked inputs.

    With ``degree`` on a graph of that degree, else on the one that `choose_graph` picks.

    Returns:
        The stopwatch, the context, masks that the coordinator removed, and bytes that one party sent.
    """
    threshold = threshold_for(n, 2 / 3)
    graph = choose_graph(n, threshold, corrupt_fraction=0.1, dropout_fraction=0.2)
    if degree is not None:
        graph = GraphChoice(degree, degree // 2 + 1, None)
    identities = {f"basket_{i:05}": IdentityKeyPair.generate() for i in range(n)}
    context = SessionContext(
        federation_id="benchmark",
        session_id=os.urandom(16),
        round_id=0,
        attempt=0,
        model_hash=bytes(32),
        dimension=d,
        ring_bits=32,
        threshold=threshold,
        parties=tuple(Party(name, identity.public_bytes) for name, identity in identities.items()),
        degree=graph.degree,
        share_threshold=graph.share_threshold,
    )
    vector = np.arange(d, dtype=np.uint32)
    watch = Stopwatch()
    coordinator = Coordinator(context)
    parties = {
        name: watch("advertise", Participant, context, name, identity)
        for name, identity in identities.items()
    }
    for party in parties.values():
        watch("collect", coordinator.add_advert, watch("advertise", party.advertise))
    adverts = watch("collect", coordinator.adverts)
    for party in parties.values():
        shares = watch("share_keys", party.share_keys, adverts)
        watch("collect", coordinator.add_key_shares, shares)
    sent = size_of(adverts[0]) + size_of(shares)
    names = watch("collect", coordinator.sharers)
    alive = names[: n - math.floor(dropout * n)]
    for name in alive:
        inbox = watch("collect", coordinator.inbox, name)
        masked = watch("mask", parties[name].mask, inbox, vector)
        watch("sum", coordinator.add_masked, masked)
    sent += size_of(masked)
    survivors = watch("collect", coordinator.survivors)
    for name in survivors:
        watch("collect", coordinator.add_confirmation, watch("confirm", parties[name].confirm, survivors))
    confirmations = watch("collect", coordinator.confirmations)
    for name in survivors:
        unmasked = watch("unmask", parties[name].unmask, confirmations)
        watch("collect", coordinator.add_unmask_shares, unmasked)
    sent += size_of(confirmations[0]) + size_of(unmasked)
    total = watch("finish", coordinator.finish)
    if not np.array_equal(total, vector * np.uint32(len(alive))):
        raise RuntimeError("the sum is wrong")
    neighbours = n - 1 if context.degree is None else context.degree
    removed = len(alive) + round((n - len(alive)) * neighbours * len(alive) / max(n - 1, 1))
    return watch, context, removed, sent


def completed_session(n: int, d: int, dropout: float, degree: int) -> tuple[Stopwatch, int]:
    """The first attempt that is not aborted: so small a neighbourhood can lose too many of its holders.

    That it can is why `choose_graph` picks a larger degree; here only the cost at Flower's degree is wanted.
    """
    while True:
        try:
            watch, _, _, sent = session(n, d, dropout, degree)
        except SecureAggregationAborted:
            continue
        return watch, sent


def floor(masks: int, d: int) -> float:
    """CPU seconds of ``masks`` keystreams of d 32-bit words, added to a vector (the best of three)."""
    vector = np.zeros(d, dtype=np.uint32)
    zeros = np.zeros(min(BLOCK, 4 * d), dtype=np.uint8)
    keystream = np.empty_like(zeros)
    best = math.inf
    for _ in range(3):
        ciphers = [
            Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor() for _ in range(masks)
        ]
        start = time.process_time()
        for at in range(0, d, BLOCK // 4):
            part = vector[at : at + BLOCK // 4]
            words = keystream[: part.nbytes].view(np.uint32)
            for cipher in ciphers:
                cipher.update_into(zeros[: part.nbytes].data, keystream[: part.nbytes].data)
                np.add(part, words, out=part)
        best = min(best, time.process_time() - start)
    return best


def noise_share(n: int, d: int) -> float:
    """CPU seconds in which a party adds its share of the noise to its input (the best of three)."""
    federation = HierarchicalFederationConfig(
        vector_dim=d,
        layer1=Layer1Config(aggregation_method=AggregationMethod.MEAN),
        layer2=Layer2Config(noise=CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN),
    )
    baskets = [BasketFacts(f"basket_{i:05}", "domain", 20, 20) for i in range(n)]
    release = make_plan(federation).release(baskets)
    part = np.zeros(d, dtype=np.uint32 if release.ring_bits == 32 else np.uint64)
    best = math.inf
    for _ in range(3):
        start = time.process_time()
        add_share(part, release, SystemNoise(), "")
        best = min(best, time.process_time() - start)
    return best


def flower(n: int, d: int, neighbours: int, dropped: int) -> tuple[float, float] | None:
    """CPU seconds of a party's masking, and of a whole serial round, with Flower's primitives."""
    try:
        from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
        from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
            decrypt,
            encrypt,
            generate_shared_key,
        )
        from flwr.common.secure_aggregation.ndarrays_arithmetic import parameters_addition, parameters_mod
        from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen
        from flwr.supercore.primitives.asymmetric import (
            bytes_to_private_key,
            bytes_to_public_key,
            generate_key_pairs,
            private_key_to_bytes,
            public_key_to_bytes,
        )
    except ImportError:
        return None
    modulus, alive = 1 << 32, n - dropped
    threshold = math.floor(2 * (neighbours + 1) / 3) + 1
    answering = math.ceil((neighbours + 1) * alive / n)
    watch = Stopwatch()
    private, public = watch("keys", generate_key_pairs)
    secret, peer = private_key_to_bytes(private), public_key_to_bytes(public)
    seed_shares = watch("share", create_shares, os.urandom(32), threshold, neighbours + 1)
    key_shares = watch("share", create_shares, secret, threshold, neighbours + 1)

    def agree() -> bytes:
        return generate_shared_key(bytes_to_private_key(secret), bytes_to_public_key(peer))

    key = watch("agree", agree)
    sealed = watch("seal", encrypt, key, bytes(20) + seed_shares[0] + key_shares[0])
    watch("seal", decrypt, key, sealed)
    vector = [np.zeros(d, dtype=np.int64)]

    def add_one_mask(into: list[Any]) -> list[Any]:
        return parameters_addition(into, pseudo_rand_gen(key, modulus, [(d,)]))

    for _ in range(3):
        vector = watch("mask", add_one_mask, vector)
    watch("mod", parameters_mod, vector, modulus)
    watch("combine seed", combine_shares, seed_shares[:answering])
    watch("combine key", combine_shares, key_shares[:answering])
    masking = (neighbours + 1) * watch.each("mask") + neighbours * watch.each("agree") + watch.each("mod")
    sharing = (
        2 * watch.each("keys")
        + watch.seconds["share"]
        + neighbours * (watch.each("agree") + watch.seconds["seal"])
    )
    unmasking = (
        alive * (watch.each("combine seed") + watch.each("mask"))
        + dropped * watch.each("combine key")
        + dropped * neighbours * (watch.each("agree") + watch.each("mask"))
    )
    return masking, n * sharing + alive * masking + unmasking


def rows(full: bool = False) -> Iterator[Row]:
    """Every row; ``full`` adds n = 500 and d = 1e7."""
    cases = [(n, d, dropout) for n in (10, 50, 100) for d in (10**5, 10**6) for dropout in (0.0, 0.1, 0.2)]
    if full:
        cases += [(50, 10**7, 0.2), (500, 10**5, 0.0), (500, 10**5, 0.2)]
    for n, d, dropout in cases:
        watch, context, removed, sent = session(n, d, dropout)
        neighbours = n - 1 if context.degree is None else context.degree
        mask_floor, finish_floor = floor(neighbours, d), floor(removed, d)
        case = {"n": n, "d": d, "dropout": dropout, "degree": neighbours, "bytes": sent}
        for phase in ("advertise", "share_keys", "confirm", "unmask"):
            per_party = watch.seconds[phase] / (
                n if phase in ("advertise", "share_keys") else n - dropped_of(n, dropout)
            )
            yield case | {"name": f"{phase}, a party", "seconds": per_party, "versus": None, "ratio": None}
        yield case | _versus("mask, a party", watch.each("mask"), "keystream floor", mask_floor)
        if not dropout:
            yield case | _versus("noise share, a party", noise_share(n, d), "keystream floor", mask_floor)
        yield case | {
            "name": "sum, the coordinator",
            "seconds": watch.seconds["sum"] + watch.seconds["collect"],
            "versus": None,
            "ratio": None,
        }
        yield case | _versus(
            "finish, the coordinator", watch.seconds["finish"], "keystream floor", finish_floor
        )
        whole = sum(watch.seconds.values())
        compared = flower(n, d, n - 1, dropped_of(n, dropout))
        if compared is None:
            yield case | {"name": "whole serial round", "seconds": whole, "versus": None, "ratio": None}
            continue
        yield case | _versus("mask, a party", watch.each("mask"), "Flower, complete graph", compared[0])
        yield case | _versus("whole serial round", whole, "Flower, complete graph", compared[1])
        if n >= 3 * SPARSE_DEGREE and (sparse := flower(n, d, SPARSE_DEGREE, dropped_of(n, dropout))):
            watch, sent = completed_session(n, d, dropout, SPARSE_DEGREE)
            whole = sum(watch.seconds.values())
            case |= {"degree": SPARSE_DEGREE, "bytes": sent}
            yield case | _versus("whole serial round", whole, "Flower, the same degree", sparse[1])


def dropped_of(n: int, dropout: float) -> int:
    """Parties that drop."""
    return math.floor(dropout * n)


def _versus(name: str, seconds: float, versus: str, other: float) -> Row:
    """``ratio`` is ours over theirs: below 1 we are faster."""
    return {"name": name, "seconds": seconds, "versus": f"{versus} ({other:.4g} s)", "ratio": seconds / other}


def run(output: str = "table", full: bool = False) -> int:
    """Prints every row as soon as it is measured; ``output`` is ``table`` or ``json`` (a line a row)."""
    columns = ("name", "n", "d", "dropout", "degree", "bytes", "seconds", "ratio", "versus")
    widths = (24, 4, 9, 8, 7, 9, 9, 7, 0)
    if output != "json":
        print("  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True)))
    for row in rows(full):
        if output == "json":
            print(json.dumps(row), flush=True)
            continue
        shown = row | {
            "seconds": f"{row['seconds']:.5f}",
            "ratio": "" if row["ratio"] is None else f"{row['ratio']:.3f}",
            "versus": row["versus"] or "",
        }
        cells = (str(shown[name]).rjust(width) for name, width in zip(columns, widths, strict=True))
        print("  ".join(cells), flush=True)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--format", choices=("table", "json"), default="table")
    parser.add_argument("--full", action="store_true", help="also n = 500 and d = 1e7")
    arguments = parser.parse_args()
    return run(arguments.format, arguments.full)


if __name__ == "__main__":
    raise SystemExit(main())
