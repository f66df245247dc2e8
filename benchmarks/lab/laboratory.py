"""Accuracy under attack: small federations as plain array programs, without noise, clipping or Ray.

Softmax regression on all 64 cosine features of the digits. In each step every client takes the gradient on
all of its examples and sends its momentum m <- beta m + (1 - beta) gradient (worker momentum; Karimireddy,
He, Jaggi 2021; Farhadkhani et al. 2022); each group of clients applies the rule, and the model moves by the
mean of the groups' vectors, weighted by their clients. One group is a flat federation, several are baskets.

Guarantees:
    the same case gives the same accuracy
    an unattacked mean in groups is the unattacked flat mean
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.config import stream
from scarcity_ray.robust import aggregate, clip_rows, clip_vector, get_rule, row_norms
from scarcity_ray.workloads.attacks import Attack, AttackConfig, AttackName, BasketRule, make_attack, views
from scarcity_ray.workloads.digit_images import NUM_CLASSES, NUM_PIXELS, Dataset, load_digits
from scarcity_ray.workloads.softmax import accuracy, softmax

Split = Literal["iid", "sorted", "domains"]
Placement = Literal["random", "even", "packed"]
HONEST_MEAN = "honest mean"
"""Not a rule: the mean of the honest clients' rows alone, which nobody can compute."""
TEST_SHARE = 0.25
LEARNING_EVERY = 10
"""Steps after which an attack searches its strength or chooses its victim anew."""


@dataclass(frozen=True)
class Case:
    """One training run.

    Attributes:
        rule: A rule's name, with ``nnm + `` in front for nearest-neighbour mixing, or `HONEST_MEAN`.
        attack: What the Byzantine clients do.
        split: ``iid``: examples dealt out at random; ``sorted``: by label, so that a client has one or two;
            ``domains``: sorted among domains of `per_basket` clients, at random inside each.
        num_clients: n.
        num_byzantine: How many attack, and f of a flat federation.
        seed: Of the split, the Byzantine clients and the attack's draws.
        steps: Gradient steps.
        per_basket: Clients in a domain.
        baskets: Whether each domain is a basket with its own rule.
        placement: Byzantine clients anywhere (``random``), evenly many in each domain, or filling one domain
            after another (``packed``).
        clip_norm: To which rows and groups' vectors are clipped; None: not at all.
        learning_rate: Step length.
        momentum: Beta.
    """

    rule: str
    attack: AttackName = "none"
    split: Split = "iid"
    num_clients: int = 25
    num_byzantine: int = 5
    seed: int = 0
    steps: int = 125
    per_basket: int = 11
    baskets: bool = False
    placement: Placement = "random"
    clip_norm: float | None = None
    learning_rate: float = 2.0
    momentum: float = 0.9

    @property
    def domains(self) -> NDArray[np.int64]:
        """(n,) the domain of each client."""
        return np.arange(self.num_clients) // self.per_basket

    @property
    def groups(self) -> NDArray[np.int64]:
        """(n,) whose rows each client's row is aggregated with."""
        return self.domains if self.baskets else np.zeros(self.num_clients, dtype=np.int64)

    @property
    def group_byzantine(self) -> int:
        """The f of each group: with baskets, the federation's share of a basket, rounded down."""
        if not self.baskets:
            return self.num_byzantine
        return self.num_byzantine * self.per_basket // self.num_clients


def can_run(case: Case) -> bool:
    """Whether each group has the rows that the rule needs for its f (centred clipping: see `group_rule`)."""
    name, _ = rule_parts(case.rule)
    sizes = np.bincount(case.groups)
    if name in (HONEST_MEAN, "centered_clipping"):
        return True
    return bool(sizes.min() >= get_rule(name).least_rows(case.group_byzantine))


def within_guarantee(case: Case) -> bool:
    """Whether the rule's own theorem covers the case; False marks centred clipping with f above n / 10."""
    name, _ = rule_parts(case.rule)
    if name == HONEST_MEAN:
        return True
    return bool(np.bincount(case.groups).min() >= get_rule(name).least_rows(case.group_byzantine))


def rule_parts(rule: str) -> tuple[str, list[str]]:
    """A rule's own name, and what stands in front of it.

    >>> rule_parts("nnm + krum")
    ('krum', ['nnm'])
    """
    *pre, name = rule.split(" + ")
    return name, pre


def train(case: Case, dataset: Dataset | None = None) -> list[float]:
    """Train; the test accuracy after each tenth of the steps.

    Args:
        case: The run.
        dataset: `load_digits(NUM_PIXELS, TEST_SHARE, case.seed)`, if it is at hand.
    """
    data = load_digits(NUM_PIXELS, TEST_SHARE, case.seed) if dataset is None else dataset
    attack, byzantine = make_attack(AttackConfig(name=case.attack)), byzantine_clients(case)
    clients = Clients.of(case, data, attack, byzantine)
    model = np.zeros((NUM_PIXELS + 1) * NUM_CLASSES, dtype=np.float32)
    momenta = np.zeros((case.num_clients, model.size), dtype=np.float32)
    rule, groups = group_rule(case), case.groups
    shares = np.bincount(groups) / case.num_clients
    learned: dict[int, Attack] = {}
    curve = []
    for step in range(case.steps):
        momenta *= np.float32(case.momentum)
        momenta += np.float32(1.0 - case.momentum) * clients.gradients(model)
        sent = momenta.copy()
        rng = stream(case.seed, "laboratory", case.attack, step)
        for group, liars, view in views(momenta, byzantine, groups, rng, rule):
            if step % LEARNING_EVERY == 0:
                learned[group] = attack.learned(view)
            sent[liars] = learned[group].rows(view)
        move = np.zeros(model.size)
        for group, share in enumerate(shares):
            inside = groups == group
            rows = sent[inside & ~byzantine] if case.rule == HONEST_MEAN else sent[inside]
            if len(rows):
                move += share * rule(rows)
        model -= (case.learning_rate * move).astype(np.float32)
        if (step + 1) % max(1, case.steps // 10) == 0:
            curve.append(accuracy(model, data.test_features, data.test_labels))
    return curve


def group_rule(case: Case) -> BasketRule:
    """The rule of a group: rows that are not finite are refused and count against f, then clip, rule, clip.

    Centred clipping is run with the largest f that its theorem allows: it makes no use of f otherwise.
    """
    name, pre = rule_parts(case.rule)
    method = "mean" if name == HONEST_MEAN else name

    def rule(rows: NDArray[np.float32]) -> NDArray[np.float32]:
        norms = row_norms(rows)
        finite = np.isfinite(norms)
        kept, f = rows[finite], max(0, case.group_byzantine - int((~finite).sum()))
        if case.clip_norm is not None:
            kept = clip_rows(kept, norms[finite], case.clip_norm)
        if method == "centered_clipping":
            f = min(f, (len(kept) - 1) // 10)
        vector = aggregate(kept, method=method, num_byzantine=f, pre=pre).vector
        return vector if case.clip_norm is None else clip_vector(vector, case.clip_norm)

    return rule


def byzantine_clients(case: Case) -> NDArray[np.bool_]:
    """(n,) who attacks."""
    rng = stream(case.seed, "laboratory", "byzantine", case.placement)
    byzantine = np.zeros(case.num_clients, dtype=np.bool_)
    order = rng.permutation(case.num_clients)
    if case.placement == "packed":
        order = np.arange(case.num_clients)
    if case.placement == "even":
        rank_inside = np.empty(case.num_clients, dtype=np.int64)
        for domain in np.unique(case.domains):
            members = order[case.domains[order] == domain]
            rank_inside[members] = np.arange(len(members))
        order = order[np.argsort(rank_inside[order], kind="stable")]
    byzantine[order[: case.num_byzantine]] = True
    return byzantine


def deal_out(case: Case, labels: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Indices of each client's examples; every example has one client, and clients hold like numbers."""
    order = stream(case.seed, "laboratory", "split").permutation(len(labels))
    if case.split != "iid":
        order = order[np.argsort(labels[order], kind="stable")]
    if case.split != "domains":
        return np.array_split(order, case.num_clients)
    sizes = np.bincount(case.domains)
    borders = np.rint(np.cumsum(sizes)[:-1] * len(labels) / case.num_clients).astype(np.int64)
    rng = stream(case.seed, "laboratory", "inside domains")
    return [
        part
        for size, indices in zip(sizes, np.split(order, borders), strict=True)
        for part in np.array_split(rng.permutation(indices), size)
    ]


@dataclass(frozen=True, eq=False)
class Clients:
    """Every client's examples, padded to one rectangle.

    Attributes:
        features: (n, examples, features + 1) float32; the last feature is 1, padding is 0.
        backwards: The same with the last two axes exchanged.
        wanted: (n, examples, classes) float32, 1 at the label that the client trains on.
        share: (n, examples, 1) float32, 1 over the client's examples; 0 for padding.
    """

    features: NDArray[np.float32]
    backwards: NDArray[np.float32]
    wanted: NDArray[np.float32]
    share: NDArray[np.float32]

    @classmethod
    def of(cls, case: Case, data: Dataset, attack: Attack, byzantine: NDArray[np.bool_]) -> Clients:
        """Deal the training examples out; attackers may see other labels."""
        parts = deal_out(case, data.train_labels)
        longest = max(map(len, parts))
        features = np.zeros((len(parts), longest, data.train_features.shape[1] + 1), dtype=np.float32)
        wanted = np.zeros((len(parts), longest, NUM_CLASSES), dtype=np.float32)
        share = np.zeros((len(parts), longest, 1), dtype=np.float32)
        for client, part in enumerate(parts):
            labels = data.train_labels[part]
            if byzantine[client]:
                labels = attack.labels(labels, NUM_CLASSES)
            features[client, : len(part), :-1] = data.train_features[part]
            features[client, : len(part), -1] = 1.0
            wanted[client, np.arange(len(part)), labels] = 1.0
            share[client, : len(part)] = 1.0 / len(part)
        return cls(features, np.ascontiguousarray(features.transpose(0, 2, 1)), wanted, share)

    def gradients(self, model: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n, d) float32, the gradient of each client's mean cross-entropy at `model`."""
        count, examples, width = self.features.shape
        scores = self.features.reshape(-1, width) @ model.reshape(width, -1)
        residual = (softmax(scores).reshape(count, examples, -1) - self.wanted) * self.share
        gradients: NDArray[np.float32] = (self.backwards @ residual).reshape(count, -1)
        return gradients
