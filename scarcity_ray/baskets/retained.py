"""What a basket's rule ran on, retained where rows are noised at the source, and the replay of it.

With ``retain_rounds`` a basket keeps, for some rounds, the noised rows that it gave to its rule, with all
else that the result depends on. Its *manifest* names each input by its value or its SHA-256. The manifest's
own SHA-256 is in what the basket signs for the release (`CountedRoot.manifest`). So whoever has the retained
inputs can show that the signed aggregate is the rule's, on these inputs, or say which input was changed. What
nobody else has signed is the basket's word: that it masked this aggregate, that the updates are its clients'
(each client's receipt shows its own), and their momentum before.

Rows without noise are never retained.

Guarantees:
    a_replay_gives_the_same_bytes: With the same release of this package and of NumPy, on a processor of the
        same kind.
    an_input_that_was_changed_is_named
    no_code_is_loaded_from_a_retained_file: A rule from outside runs only if who replays it names it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from scarcity_ray.baskets.local_state import LocalStates, Row
from scarcity_ray.baskets.update_buffer import BasketBuffer, BufferedUpdate, ClientUpdates
from scarcity_ray.config import HierarchicalFederationConfig, RulePath, load, to_plain
from scarcity_ray.errors import ConfigError, ScarcityError, UsageError
from scarcity_ray.layers.layer1 import Layer1Aggregator, Layer1Input
from scarcity_ray.plan import FederationPlan
from scarcity_ray.release import __version__
from scarcity_ray.storage.codec import Codec
from scarcity_ray.updates import content_digest
from scarcity_ray_client.errors import shown
from scarcity_ray_client.merkle import MerkleTree

_PLACES = (
    "ledger_path",
    "storage_path",
    "journal_path",
    "journal_key_path",
    "durability",
    "retain_rounds",
    "runtime",
    "operator_key",
)
"""Settings that no aggregate depends on."""


@dataclass(frozen=True, eq=False)
class RetainedAggregate:
    """One aggregate of a basket, with all that it follows from.

    Attributes:
        number: Of the basket's aggregates, from 1 on.
        config: The federation's settings, with the clip norm of these rows.
        num_members: Registered members, which f is a fraction of.
        num_byzantine: The f that the rule ran with.
        seed: Of bucketing's permutation, and of a rule from outside.
        clients: In the order in which the rule had their rows.
        updates: Those behind the rows, by client, then in order of arrival.
        momenta: Of the clients that had one before.
        rows: What the rule had of each client, float32 (d,).
        weights: For the ``weighted`` method only.
        aggregate: What came of it, float32 (d,).
        manifest: As it was when the aggregate was made.
        software: Releases of this package and of NumPy.
    """

    federation_id: str
    run: int
    basket_id: str
    number: int
    round_id: int
    config: Mapping[str, Any]
    num_members: int
    num_byzantine: int
    seed: int
    clients: tuple[str, ...]
    updates: tuple[BufferedUpdate, ...]
    momenta: Mapping[str, Row]
    rows: tuple[Row, ...]
    weights: tuple[float, ...] | None
    aggregate: Row
    manifest: Mapping[str, str] = field(default_factory=dict)
    software: Mapping[str, str] = field(default_factory=dict)

    def with_manifest(self) -> RetainedAggregate:
        """With its manifest, and what it was made by."""
        made_by = {"scarcity_ray": __version__, "numpy": np.__version__}
        return replace(self, manifest=manifest_of(self), software=made_by)

    @property
    def digest(self) -> bytes:
        """SHA-256 of the manifest, which the basket signs."""
        return hashlib.sha256(json.dumps(sorted(self.manifest.items())).encode()).digest()

    @property
    def receipts(self) -> bytes:
        """The root over the receipts for its updates, which the basket signs."""
        return MerkleTree(sorted(update.receipt for update in self.updates if update.receipt)).root


CODEC = Codec(RetainedAggregate, BufferedUpdate)


def rows_folder(storage_path: str) -> str:
    """Where in a federation's storage what is retained lies: apart, as no restore needs it."""
    return f"{storage_path.rstrip('/')}/rows"


def settings_of(config: HierarchicalFederationConfig, clip_norm: float) -> dict[str, Any]:
    """The settings that an aggregate depends on, as `RetainedAggregate.config` has them."""
    current = replace(config, layer1=replace(config.layer1, clip_norm=clip_norm))
    return {name: value for name, value in to_plain(current).items() if name not in _PLACES}


def manifest_of(kept: RetainedAggregate) -> dict[str, str]:
    """Each input and the aggregate, by name."""
    layer1 = dict(kept.config["layer1"])
    others = {name: value for name, value in kept.config.items() if name != "layer1"}
    updates = [
        [u.client_id, u.round_id, u.num_examples, content_digest(u.update).hex()] for u in kept.updates
    ]
    return {
        "whose": json.dumps([kept.federation_id, kept.run, kept.basket_id, kept.number, kept.round_id]),
        "clip norm": repr(layer1.pop("clip_norm")),
        "rule": str(layer1.pop("aggregation_method")),
        "arguments of the rule": json.dumps(layer1, sort_keys=True),
        "other settings": _hashed(json.dumps(others, sort_keys=True).encode()),
        "f": str(kept.num_byzantine),
        "members": str(kept.num_members),
        "seed": str(kept.seed),
        "order of the rows": _hashed(json.dumps(kept.clients).encode()),
        "updates": _hashed(json.dumps(updates).encode()),
        "momentum": _hashed(*(part for c in sorted(kept.momenta) for part in (c.encode(), kept.momenta[c]))),
        "rows": _hashed(*kept.rows),
        "weights": json.dumps(kept.weights),
        "aggregate": _hashed(kept.aggregate),
    }


@dataclass(frozen=True)
class Replayed:
    """What a replay has shown.

    Attributes:
        aggregate: SHA-256 of what the rule gives now, hexadecimal.
        faults: What differs, by name; empty if nothing does.
        notes: What could not be followed back.
    """

    aggregate: str
    faults: tuple[str, ...]
    notes: tuple[str, ...] = ()


def replay(kept: RetainedAggregate, rule: str | None = None) -> Replayed:
    """Run a basket's rule again, and say what differs from what was retained.

    Args:
        rule: The import path of a rule from outside that may be loaded and run.

    Raises:
        UsageError: If `kept` is nothing that a basket retains, or its rule is from outside and not `rule`.
    """
    try:
        return _replay(kept, rule)
    except (ConfigError, ArithmeticError, TypeError, ValueError, LookupError, AttributeError) as error:
        raise UsageError(f"these retained rows are torn or were changed: {error!r:.200}") from None


def _replay(kept: RetainedAggregate, rule: str | None) -> Replayed:
    if not _is_formed(kept):
        raise TypeError("a field of another type")
    now = manifest_of(kept)
    faults = [
        f"{name}: was changed, {_short(kept.manifest.get(name))} then and {_short(now.get(name))} now"
        for name in sorted({*now, *kept.manifest})
        if now.get(name) != kept.manifest.get(name)
    ]
    config = load(HierarchicalFederationConfig, kept.config)
    method = config.layer1.aggregation_method
    if isinstance(method, RulePath) and str(method) != rule:
        raise UsageError(
            f"rule {shown(str(method))} is not of this package: read it, and name it with --rule to run it"
        )
    notes = []
    if kept.momenta:
        notes.append(f"the momentum of {len(kept.momenta)} clients is the basket's word: taken as retained")
    if config.gossip_budget_share > 0.0:
        notes.append("gossip has mixed the rows, which is not replayed: they are taken as retained")
    else:
        faults += _unfollowed(kept, config)
    f = FederationPlan(config).num_byzantine(kept.num_members)
    if f != kept.num_byzantine:
        faults.append(
            f"f: the settings say {f} of {kept.num_members} members, the rule had {kept.num_byzantine}"
        )
    given = Layer1Input(kept.rows, kept.weights, kept.clients, kept.num_members, basket_id=kept.basket_id)
    try:
        vector = Layer1Aggregator(config.layer1).aggregate_basket(given, seed=kept.seed).aggregate
    except (ConfigError, UsageError):
        raise
    except ScarcityError as error:
        return Replayed("", (*faults, f"aggregate: the rule gives none ({error})"), tuple(notes))
    if vector.tobytes() != kept.aggregate.tobytes():
        differ = int((vector != kept.aggregate).sum())
        faults.append(
            f"aggregate: the rule gives other bytes in {differ} of {len(vector)} coordinates (made by "
            f"{dict(kept.software)})"
        )
    return Replayed(hashlib.sha256(vector.tobytes()).hexdigest(), tuple(faults), tuple(notes))


def _is_formed(kept: RetainedAggregate) -> bool:
    """Whether each field is of its type, as nothing checks what comes in a file."""
    counts = (kept.run, kept.number, kept.round_id, kept.num_members, kept.num_byzantine, kept.seed)
    texts = (kept.federation_id, kept.basket_id, *kept.clients, *kept.manifest, *kept.manifest.values())
    rows = (*kept.rows, *kept.momenta.values(), *(update.update for update in kept.updates), kept.aggregate)
    return (
        all(type(count) is int for count in counts)
        and all(type(text) is str for text in (*texts, *(update.client_id for update in kept.updates)))
        and all(type(update.receipt) is bytes and type(update.round_id) is int for update in kept.updates)
        and all(isinstance(row, np.ndarray) and row.dtype == np.float32 for row in rows)
        and {row.shape for row in rows} == {kept.aggregate.shape}
        and kept.aggregate.ndim == 1
    )


def _unfollowed(kept: RetainedAggregate, config: HierarchicalFederationConfig) -> list[str]:
    """The clients whose rows do not follow from their updates and momentum."""
    buffer = BasketBuffer(config.buffer, config.vector_dim, kept.basket_id, round_id=kept.round_id)
    states = LocalStates(config, buffer)
    for client_id, momentum in kept.momenta.items():
        states.put(client_id, None, None, momentum)
    for update in kept.updates:
        buffer.put_client(ClientUpdates(update.client_id, (update,), ()))
    if buffer.clients() != kept.clients:
        return ["order of the rows: not that of the clients with updates"]
    for client_id in kept.clients:
        states.form(client_id)
    again: Sequence[Row] = states.rows(kept.clients)
    return [
        f"rows: that of client {shown(client_id)} does not follow from its updates and momentum"
        for client_id, row, had in zip(kept.clients, again, kept.rows, strict=True)
        if row.tobytes() != had.tobytes()
    ]


def _hashed(*parts: bytes | Row) -> str:
    digest = hashlib.sha256()
    for part in parts:
        content = part if isinstance(part, bytes) else part.tobytes()
        digest.update(len(content).to_bytes(8, "big") + content)
    return digest.hexdigest()


def _short(said: str | None) -> str:
    return "nothing" if said is None else shown(said)
