"""What a claim about one person is worth, in figures that a reader can use beside epsilon.

The trade-off function of mu-GDP is known exactly (Dong, Roth, Su 2022, definition 2.6): whoever sees all
releases, and knows everything but one person's records, finds the person's presence with probability at most
Phi(mu + Phi^-1(a)) if he accuses an absent one with probability a. `Accounting` has the figures, for zCDP as
upper bounds.

Where rows are noised (``privacy: {noise: site}``), "all releases" are all rows, and with them whatever is
made of them. Whether that guards against the cluster's operator depends on where rows are made:
`AGAINST_OPERATOR`.

Guarantees:
    a_whole_client_and_a_group_are_claimed_no_better_than_they_are: By the plan's own sensitivities.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from scarcity_ray.config import HierarchicalFederationConfig, NoisePlace, PrivacyConfig, PrivacyUnit
from scarcity_ray.plan.federation import FederationPlan
from scarcity_ray.plan.release import BasketFacts

FALSE_POSITIVES = 0.01
"""Of those who were not there, the share that is accused wrongly."""
RECORDS_OF_ONE = 10
"""Records of one person that the group's figure is given for."""
GREATEST_COUNT = 2**31 - 1
"""Persons behind a row that a basket's facts can state at most."""
AGAINST = {
    NoisePlace.CENTRAL: "whoever sees every release",
    NoisePlace.SITE: "whoever sees every row, message, basket model and release",
}
"""Against whom a claim about one person holds."""
AGAINST_OPERATOR = {
    NoisePlace.CENTRAL: "no",
    NoisePlace.SITE: "only where clients train, draw noise and keep their ledgers in processes of their own, "
    "outside the cluster, and send rows with submit_update; with fit they train as the cluster's tasks",
}
"""Whether it holds against whoever operates the cluster, who can read its memory."""
_ROUNDED = 1.0 + 4e-12
"""By more than `Accounting.mu_of_claim` rounds down."""


@dataclass(frozen=True)
class PersonClaim:
    """A claim (epsilon, delta) about one person, or one record.

    Attributes:
        noise: Where it is added, which decides against whom the claim holds (`AGAINST`).
        membership_advantage: True less false positives of the best test of a person's presence, at most.
        true_positives: Its true positives at `FALSE_POSITIVES`, at most.
        two_clients_epsilon: At delta, for somebody who is in the data of two clients.
        ten_records_epsilon: At delta, for somebody with `RECORDS_OF_ONE` records at one client, where a
            record is the unit; else `epsilon`.
        client_epsilon: At delta, for all persons of a client at once, if the smallest client has min_persons;
            more if it has more.
    """

    unit: PrivacyUnit
    epsilon: float
    delta: float
    membership_advantage: float
    true_positives: float
    two_clients_epsilon: float
    ten_records_epsilon: float
    client_epsilon: float
    person_clip_norm: float
    min_persons: int
    noise: NoisePlace = NoisePlace.CENTRAL

    def sentences(self) -> tuple[str, ...]:
        """The claim in words: whom it protects, what that is worth, and whom it does not protect."""
        unit = self.unit.value
        protected = (
            f"Protected: any one {unit} of one client, over the whole run (neighbours replace one {unit}'s "
            f"data: replace-one). How many {unit}s each client has, that it took part, and which of its "
            "updates were accepted is public: the federation's roles and drivers learn it."
        )
        is_central = self.noise is NoisePlace.CENTRAL
        worth = (
            "Noise is central: it is added to each release. Whoever sees them all"
            if is_central
            else "Noise is added at the source: each client noises its own row before it leaves, and gossip, "
            "rules, basket models and releases are made of noised rows alone. Whoever sees all of these"
        )
        worth += (
            f", and knows all data but one {unit}'s, tells with an advantage over guessing of at most "
            f"{self.membership_advantage:.3g} whether a given {unit} is in, and recognises at most "
            f"{100 * self.true_positives:.3g} % of those who are, at 1 % false alarms."
        )
        elsewhere = (
            f"A {unit} at k clients loses {'k' if is_central else 'sqrt(k)'} times as much mu: at two, "
            f"epsilon is at most {self.two_clients_epsilon:.4g}."
        )
        if self.unit is PrivacyUnit.RECORD:
            elsewhere += (
                f" A record is not a person: for one with {RECORDS_OF_ONE} records at a client epsilon is at "
                f"most {self.ten_records_epsilon:.4g}."
            )
        whole = (
            f"A whole client is not protected so: for all of its {unit}s at once the same noise gives "
            f"epsilon {self.client_epsilon:.4g}, or more where the smallest client has more than "
            f"{self.min_persons}."
        )
        relied_on = (
            f"Relied on: each client's row is the mean over its {unit}s of contributions of norm at most "
            f"{self.person_clip_norm:g}, each made of one {unit}'s data and earlier releases. A client that "
            f"sends another row, or a false count, takes the protection of its own {unit}s alone."
        )
        if not is_central:
            relied_on += " So does one that draws no noise, or the same for two rows."
        return protected, worth, elsewhere, whole, relied_on


def persons_of_a_client(plan: FederationPlan, num_persons: int | None = None) -> float:
    """How many times as far as one person a whole client moves a release, where all have so many persons.

    For rules with a constant that is their number (times layer1.clip_norm over the person's, if they differ,
    and less where rounding is not small against what a person moves); for the others 1, since their noise
    hides a whole client whatever the unit is.

    Args:
        num_persons: ``privacy.min_persons`` if None.
    """
    config = plan.config
    if plan.site_noise is not None:
        return plan.site_noise.whole_client(num_persons or plan.site_noise.min_persons)
    # Few rows, the greatest share: there rounding of the sum counts least beside what a person moves.
    members = config.basket.min_clients
    rows, f = plan.least_rows(members), plan.num_byzantine(members)
    facts = BasketFacts("", "", members, rows, f, plan.worst_row_share(rows), num_persons=num_persons)
    of_clients = FederationPlan(replace(config, privacy=PrivacyConfig()))
    return of_clients.sensitivity(facts) / plan.sensitivity(facts)


def person_claim(
    config: HierarchicalFederationConfig, epsilon: float, delta: float | None = None
) -> PersonClaim | None:
    """The claim that an epsilon at `delta` amounts to; None where the client is the unit.

    A person at two clients moves two rows. They are in one release, whose sum moves twice as far; or each has
    noise of its own, and mu squared adds up. Whoever has ten of a client's records moves its row ten times as
    far: by the triangle inequality what is noised moves that many times as far, and mu grows likewise. A
    whole client moves its row by 2 layer1.clip_norm, as in a plan whose unit is the client; by 2 C where it
    noises the row itself.

    Args:
        epsilon: Spent in all periods together, or that of the whole budget.
        delta: The configuration's total_delta if None.
    """
    plan = FederationPlan(config)
    privacy, clip_norm = config.privacy, plan.person_clip_norm
    if clip_norm is None:
        return None
    accounting = plan.accounting
    delta = config.total_delta if delta is None else delta
    mu = accounting.mu_of_claim(epsilon, delta) * _ROUNDED

    def times(factor: float) -> float:
        return accounting.epsilon_of(mu * factor, delta)

    whole = persons_of_a_client(plan)
    # With more records than the least the noise is less, so ten of them count for more.
    most = persons_of_a_client(plan, GREATEST_COUNT)
    records = min(RECORDS_OF_ONE, most) if privacy.unit is PrivacyUnit.RECORD else 1.0
    return PersonClaim(
        unit=privacy.unit,
        epsilon=epsilon,
        delta=delta,
        membership_advantage=accounting.advantage_of(mu),
        true_positives=accounting.true_positives_of(mu, FALSE_POSITIVES),
        two_clients_epsilon=times(2.0 if privacy.noise is NoisePlace.CENTRAL else math.sqrt(2.0)),
        ten_records_epsilon=times(records) if records > 1.0 else epsilon,
        client_epsilon=times(whole),
        person_clip_norm=clip_norm,
        min_persons=privacy.min_persons or 1,
        noise=privacy.noise,
    )
