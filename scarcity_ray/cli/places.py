"""``scarcity-ray plan``, for privacy of a person: where to add the noise, with rounds, step and momentum."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from scarcity_ray.cli.plan import Planned
from scarcity_ray.config import CentralNoise, NoisePlace, PrivacyUnit, to_plain
from scarcity_ray.forecast import solve_for_rounds
from scarcity_ray.forecast.choosing import LENGTHS, Choice, Likeness
from scarcity_ray.forecast.noise_places import (
    Place,
    PlaceChoice,
    choose_places,
    recommended_place,
    with_central_noise,
    with_site_noise,
)

ROUNDS = 20
"""Of a training without noise, where neither the file nor ``--rounds`` says how many."""


def places_of(
    planned: Planned, sizes: tuple[int, ...], attackers: int, likeness: Likeness, update_norm: float | None
) -> tuple[tuple[PlaceChoice, ...], PlaceChoice] | None:
    """The best of each place, and the recommended one; None where the client is the unit or noise is off.

    Args:
        update_norm: Of the honest mean; None: ``layer1.clipping_radius``, or what `likeness` makes of the
            norm of a contribution.
    """
    federation = planned.federation
    if federation.privacy.unit is PrivacyUnit.CLIENT or math.isinf(federation.total_epsilon):
        return None
    contribution = federation.privacy.person_clip_norm or federation.layer1.clip_norm
    signal = update_norm or federation.layer1.clipping_radius or LENGTHS[likeness] * contribution
    found = choose_places(
        federation,
        sizes,
        attackers=attackers,
        needed=planned.rounds or ROUNDS,
        likeness=likeness,
        signal=signal,
        persons=planned.persons,
    )
    return found, recommended_place(found)


def numbers_of(choice: PlaceChoice, planned: Planned) -> dict[str, Any]:
    """One place's, as JSON has them."""
    training = choice.training
    return {
        "noise": choice.place.value,
        "guards_against": choice.place.guards_against,
        "rule": choice.rule,
        "clipping_radius": choice.clipping_radius,
        "rounds": training.rounds,
        "learning_rate": _rate(choice, planned),
        "momentum": training.momentum,
        "way_left_at_worst": training.error,
    }


def settings_of(choice: PlaceChoice, planned: Planned, made: Choice) -> dict[str, Any]:
    """The part of a file that makes this choice, with the baskets and the f of another."""
    *pre, rule = choice.rule.split(" + ")
    federation, rounds = planned.federation, choice.training.rounds
    centred = choice.clipping_radius is not None
    layer1: dict[str, Any] = {
        "aggregation_method": rule,
        "num_byzantine": 0 if centred else made.num_byzantine,
        "min_updates": federation.layer1.min_updates,
    }
    if pre:
        layer1["pre"] = pre
    if centred:
        layer1["clipping_radius"] = _short(choice.clipping_radius or 0.0)
    basket = {"min_clients": min(made.sizes), "max_clients": max(2, *made.sizes)}
    told: dict[str, Any] = {"basket": basket, "layer1": layer1}
    if choice.place is Place.SITE:
        site = with_site_noise(federation, rounds)
        told["privacy"] = to_plain(site.privacy)
        layer1 |= {"clip_norm": site.layer1.clip_norm, "momentum": choice.training.momentum}
        told["layer2"] = {"noise": site.layer2.noise.value}
    else:
        noise = CentralNoise.GAUSSIAN
        if choice.place is Place.SHARES:
            noise = CentralNoise.DISTRIBUTED_DISCRETE_GAUSSIAN
        central = with_central_noise(federation)
        solved = solve_for_rounds(replace(central, layer2=replace(central.layer2, noise=noise)), rounds)
        told["layer2"] = {"noise": noise.value, "central_dp_epsilon": solved.layer2.central_dp_epsilon}
        if planned.federation.privacy.noise is NoisePlace.SITE:
            told["privacy"] = to_plain(solved.privacy)
            layer1 |= {"clip_norm": solved.layer1.clip_norm, "momentum": 0.0}
    training = {
        "rounds": rounds,
        "optimizer": {"name": "sgd", "learning_rate": _rate(choice, planned)},
    }
    return {"federation": told, "training": training}


def print_places(
    choices: list[dict[str, Any]], chosen: str, unit: str, given: NoisePlace, console: Console
) -> None:
    """The table of places, the recommended one marked; said where the file asks for another."""
    console.print(f"where the noise for a {unit} is added, each with the rule that suits it", style="bold")
    table = Table(box=None, pad_edge=False)
    for heading in ("  noise", "rule", "rounds", "step", "beta", "left", "against"):
        right = heading in ("rounds", "step", "beta", "left")
        table.add_column(heading, justify="right" if right else "left", no_wrap=True)
    for each in choices:
        is_chosen = each["noise"] == chosen
        table.add_row(
            f"{'*' if is_chosen else ' '} {each['noise']}",
            each["rule"],
            str(each["rounds"]),
            f"{each['learning_rate']:.3g}",
            f"{each['momentum']:g}",
            f"{each['way_left_at_worst']:.2g}",
            each["guards_against"],
            style="bold" if is_chosen else "",
        )
    console.print(table)
    console.print(
        "beta: momentum; left: distance to the best model at the end, 1 at the start, under the worst "
        "attackers; recommended is what guards against most at about the least (docs/choosing.md)",
        markup=False,
    )
    if given is NoisePlace.SITE and chosen != Place.SITE.value:
        console.print(
            "the file has privacy.noise: site, which guards against more: to keep it, take rule, rounds, "
            "step and momentum from its line",
            markup=False,
        )


def _rate(choice: PlaceChoice, planned: Planned) -> float:
    return _short(choice.training.step * (planned.learning_rate or 1.0))


def _short(value: float) -> float:
    return float(f"{value:.3g}")
