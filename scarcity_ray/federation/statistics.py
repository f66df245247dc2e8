"""The federation's statistics, from the roles' answers, under the specification's keys."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isinf
from statistics import median
from typing import Any

from scarcity_ray.actors.messages import BasketPlace
from scarcity_ray.baskets.reports import BasketReport, ClippingReport, ReputationReport
from scarcity_ray.config import NoisePlace, PrivacyUnit
from scarcity_ray.federation.waiting import WaitingFor
from scarcity_ray.forecast import Warned, warning_of_clipping
from scarcity_ray.plan import AGAINST, AGAINST_OPERATOR, PersonClaim
from scarcity_ray.privacy.ledger.answers import BudgetStatus

WITHOUT_LAYER2: Mapping[str, Any] = {
    "n_layer2_aggregations": 0,
    "n_baskets": 0,
    "n_layer2_aborts": 0,
    "aborts": (),
    "n_layer2_violations": 0,
    "violations": (),
    "since": None,
    "aborted": None,
}
"""`GlobalAggregator.stats` for a federation without Layer 2."""


def federation_stats(
    directory: Mapping[str, Any],
    reports: Mapping[str, BasketReport],
    places: Sequence[BasketPlace],
    layer2: Mapping[str, Any],
    budget: BudgetStatus,
    faults: Sequence[str],
    conduct: Mapping[str, ReputationReport],
    waiting: WaitingFor,
    warned: Sequence[Mapping[str, Any]],
    claim: PersonClaim | None,
) -> dict[str, Any]:
    """The keys of docs/specification.md#models-and-statistics, and more; `conduct` is empty if private."""
    rejections: Counter[str] = Counter()
    for report in reports.values():
        rejections.update(report.rejections)
    if directory["unknown_clients"]:
        rejections["unknown_client"] += directory["unknown_clients"]
    total = {name: sum(getattr(r, name) for r in reports.values()) for name in _SUMMED}
    return {
        "n_clients": directory["n_clients"],
        "n_baskets": directory["n_baskets"],
        "n_updates_buffered": total["num_buffered"],
        "n_layer1_aggregations": total["layer1_aggregations"],
        "n_layer2_aggregations": layer2["n_layer2_aggregations"],
        "privacy_consumed_epsilon": budget.epsilon_spent,
        "privacy_accounting": budget.accounting.value,
        "privacy_claim": _claimed(claim, by_gossip=layer2 is WITHOUT_LAYER2),
        "current_round": directory["current_round"],
        "basket_stats": _by_domain(directory["statuses"], directory["sizes"], reports, places, conduct),
        "read_only": budget.read_only,
        "n_releases_left": None if isinf(budget.releases_left) else int(budget.releases_left),
        "privacy_lifetime_epsilon": budget.lifetime_epsilon,
        "read_only_reason": budget.read_only_reason,
        "ledger": budget.of_ledger(),
        "ledger_path": budget.ledger_path,
        "ledger_head": budget.head_hash,
        "rejections": dict(sorted(rejections.items())),
        "n_updates_rejected": rejections.total(),
        "n_updates_withdrawn": total["withdrawn"],
        "n_gossip_messages": total["messages_delivered"],
        "n_basket_models_superseded": total["superseded"],
        "n_basket_models_discarded": total["discarded"],
        "n_layer2_aborts": layer2["n_layer2_aborts"],
        "last_layer2_aborts": list(layer2["aborts"]),
        "n_layer2_violations": layer2["n_layer2_violations"],
        "last_layer2_violations": list(layer2["violations"]),
        "n_sessions_refused": total["sessions_refused"],
        "n_rule_failures": total["rule_failures"],
        "n_stale_baskets": directory["n_stale_baskets"],
        "n_trusts_dropped": directory["trusts_dropped"],
        "ceilings": budget.of_ceilings(),
        "faults": list(faults),
        "waiting_for": waiting.as_json(),
        "warnings": list(warned),
    }


def _claimed(claim: PersonClaim | None, *, by_gossip: bool) -> dict[str, Any]:
    """Unit, mode, against whom, and for a person or record the figures beside epsilon."""
    stated = {"noise": "central", "against": AGAINST[NoisePlace.CENTRAL], "against_operator": "no"}
    if by_gossip:
        stated |= {"noise": "local", "against": "whoever sees every gossip message"}
    if claim is None:
        return {"unit": PrivacyUnit.CLIENT.value, **stated}
    stated = {
        "noise": claim.noise.value,
        "against": AGAINST[claim.noise],
        "against_operator": AGAINST_OPERATOR[claim.noise],
    }
    return {**asdict(claim), "unit": claim.unit.value, **stated}


def warnings_of_clipping(reports: Sequence[ClippingReport]) -> tuple[Warned, ...]:
    """Warnings about the clipping of the rows behind some aggregates with one clip norm."""
    if not reports:
        return ()
    found = warning_of_clipping(
        sum(report.num_rows for report in reports),
        sum(report.num_clipped for report in reports),
        median(report.median_norm for report in reports),
        max(report.clip_norm for report in reports),
    )
    return () if found is None else (found,)


_SUMMED = (
    "num_buffered",
    "layer1_aggregations",
    "withdrawn",
    "messages_delivered",
    "superseded",
    "discarded",
    "sessions_refused",
    "rule_failures",
)


def _by_domain(
    statuses: Mapping[str, str],
    sizes: Mapping[str, int],
    reports: Mapping[str, BasketReport],
    places: Sequence[BasketPlace],
    conduct: Mapping[str, ReputationReport],
) -> dict[str, Any]:
    domains: dict[str, Any] = {}
    for place in places:
        entry = domains.setdefault(place.domain_id, {"clients": 0, "updates": 0, "baskets": {}})
        report = reports.get(place.basket_id)
        updates = report.num_buffered if report else 0
        clients = sizes.get(place.basket_id, 0)
        entry["clients"] += clients
        entry["updates"] += updates
        entry["baskets"][place.basket_id] = {
            "clients": clients,
            "updates": updates,
            "status": statuses.get(place.basket_id, "forming"),
            "layer1_needs_clients": report.least_rows if report else None,
            "fresh": report.facts.fresh if report else False,
            "gossip": report.gossip if report else {},
            **_conduct(conduct.get(place.basket_id)),
        }
    return domains


def _conduct(report: ReputationReport | None) -> dict[str, Any]:
    if report is None:
        return {}
    return {
        "outliers": list(report.outliers),
        "trust": {"mean": report.mean_trust, "least": report.least_trust},
        "clipping": None if report.clipping is None else asdict(report.clipping),
    }
