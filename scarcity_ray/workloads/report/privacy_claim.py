"""The privacy claim of a run in sentences: what is claimed, for whom, and against whom."""

from __future__ import annotations

import math

from scarcity_ray.config import HierarchicalFederationConfig, NoisePlace
from scarcity_ray.plan import make_plan, person_claim
from scarcity_ray.privacy.accounting.modes import Accounting

_HOW_ADDED_UP = {
    Accounting.GAUSSIAN_DP: "All noise is Gaussian; what was spent is added up in Gaussian DP, exactly.",
    Accounting.ZCDP: "The releases' noise is drawn on the integers; what was spent is added up in "
    "zero-concentrated DP, an upper bound.",
}
_HOW_ROWS_ADD_UP = {
    Accounting.GAUSSIAN_DP: "All noise is Gaussian; each client's rows are added up in Gaussian DP, exactly.",
    Accounting.ZCDP: "Rows have discrete Gaussian noise; each client's are added up in zero-concentrated DP, "
    "an upper bound.",
}
_CLUSTER = (
    "Not against: whoever operates the Ray cluster or can read its memory, since clients trained as its "
    "tasks. That needs training, noise and the client's ledger in a process of its own outside the "
    "cluster: a site that is served."
)
_SERVER = (
    "Against whoever operates the server, too, but on their word for the noise: a site trains and noises at "
    "home, as loudly as the server tells it to. A site with a policy charges what it is told to a ledger of "
    "its own, and sends nothing beyond its ceiling, whatever it is told."
)
_LAB = (
    "This is a laboratory: the driver sees updates where there are simulated attackers, and the comparison "
    "runs are computed from the clients' data, all without protection."
)


def privacy_claim(
    config: HierarchicalFederationConfig,
    epsilon_spent: float,
    *,
    is_lab: bool = False,
    is_served: bool = False,
    renewals: int = 0,
) -> tuple[str, ...]:
    """The claim in sentences, the first of which has the figures.

    Args:
        config: The federation's.
        epsilon_spent: By the client that has spent most, in all periods of the budget together.
        is_lab: Whether there were simulated attackers or comparison runs.
        is_served: Whether clients were sites outside the cluster, which trained and noised at home.
        renewals: How often the budget was renewed, each time by totals of its own (the ledger has them).
    """
    budget = f"({config.total_epsilon:g}, {config.total_delta:g})"
    if renewals:
        budget += f" and was renewed {'once' if renewals == 1 else f'{renewals} times'} (ledger show)"
    if math.isinf(config.total_epsilon) or math.isinf(epsilon_spent):
        return ("No privacy claim: the budget is infinite, so releases may carry no noise.",)
    if not config.layer2.enabled:
        return (
            f"({epsilon_spent:.4g}, {config.total_delta:g})-differential privacy of all that any one client "
            f"gossips in the whole run; the budget is {budget}.",
            "Protected: the values of any one client's accepted updates, over the whole run (neighbours "
            "differ in one client's values: replace-one). That a client took part is public.",
            "Against: whoever sees every gossip message, the other members of its basket included. There is "
            "no global model.",
            "Not against: whoever operates the Ray cluster or can read its memory, where the clients' own "
            "states lie.",
            "Outside the claim: this driver reads clients' own models and the errors of their trainings as "
            "they are; baskets' models, all metrics and the choice of the settings come from them without "
            "protection.",
        )
    plan = make_plan(config)
    if config.privacy.noise is NoisePlace.SITE:
        return _of_noised_rows(config, epsilon_spent, budget, is_lab=is_lab, is_served=is_served)
    word = f" On trust: {plan.rule_claim}." if plan.rule_claim else ""
    return (
        f"({epsilon_spent:.4g}, {config.total_delta:g})-differential privacy of all global models released "
        f"under this budget together; the budget is {budget}. " + _HOW_ADDED_UP[plan.accounting],
        *_whom(config, epsilon_spent, word),
        "Not against: whoever operates the Ray cluster or can read its memory. Secure aggregation keeps "
        "single baskets from the aggregator's code, state and logs, not from the machine's operator.",
        *((_LAB,) if is_lab else ()),
        "Outside the claim: what clients tell (metrics, numbers of examples, errors) reaches the "
        "driver as it is, and settings may have been chosen by clients' data; basket models, outlier "
        "reports and how many updates were clipped are not covered either. Metrics on test "
        "data cost nothing if no client's data are among them: they see released models alone.",
    )


def _whom(config: HierarchicalFederationConfig, epsilon_spent: float, word: str) -> tuple[str, ...]:
    """Whom the claim on releases protects, on whose word, and against whom."""
    claim = person_claim(config, epsilon_spent)
    if claim is not None:
        protected, *rest = claim.sentences()
        return (
            protected + word,
            *rest,
            "Against: whoever sees every released global model. There is no gossip.",
        )
    gossip = (
        " A client's own noised gossip is counted in; each round of it is by itself "
        f"({config.gossip.local_dp_epsilon:g}, {config.gossip.local_dp_delta:g})-private against whoever "
        "sees every message."
    )
    return (
        "Protected: the values of any one client's accepted updates, over the whole run (neighbours differ "
        "in one client's values: replace-one). That a client took part, and which of its updates were "
        f"accepted, is public.{word}",
        f"Against: whoever sees every released global model.{gossip if config.gossip_budget_share else ''}",
    )


def _of_noised_rows(
    config: HierarchicalFederationConfig, epsilon_spent: float, budget: str, *, is_lab: bool, is_served: bool
) -> tuple[str, ...]:
    """The claim of a job whose clients noise their own rows, as tasks of the cluster or at home."""
    claim, plan = person_claim(config, epsilon_spent), make_plan(config)
    sentences = () if claim is None else claim.sentences()
    free = ["the rule", *(["gossip"] if config.gossip_budget_share else [])]
    free += [f"momentum ({config.layer1.momentum:g})"] if config.layer1.momentum else []
    return (
        f"({epsilon_spent:.4g}, {config.total_delta:g})-differential privacy of all rows that any one client "
        f"sent in the whole run; each client's budget is {budget}. " + _HOW_ROWS_ADD_UP[plan.accounting],
        *sentences,
        "Against: whoever reads messages, rows, basket models and released models, which are made of noised "
        f"rows: so {' and '.join(free)} cost nothing. A row counts once "
        + ("it came" if is_served else "its client was asked for it")
        + ", accepted or not.",
        _SERVER if is_served else _CLUSTER,
        *((_LAB,) if is_lab else ()),
        "Outside the claim: what clients tell (metrics, errors) reaches the driver as it is, and settings "
        "may have been chosen by clients' data. Metrics on test data cost nothing if no client's data are "
        "among them: they see released models alone.",
    )
