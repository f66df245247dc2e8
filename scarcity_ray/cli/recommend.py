"""``scarcity-ray plan CONFIG --recommend``: rule, baskets and clip norm, why, against what, and the YAML."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from scarcity_ray.cli import places
from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.plan import Planned
from scarcity_ray.config import NoisePlace, PrivacyUnit
from scarcity_ray.forecast import Forecast
from scarcity_ray.forecast.choosing import (
    CLIP_LEARNING_RATE,
    CLIP_QUANTILE,
    Choice,
    Likeness,
    Recommendation,
    Verdict,
    recommend,
)
from scarcity_ray.forecast.noise_places import with_central_noise

ROUNDS = 20
"""Where neither the file nor ``--rounds`` says how many; the choice does not depend on it."""


def recommend_command(
    planned: Planned,
    form: str,
    *,
    attackers: int | None = None,
    likeness: str = Likeness.MIXED,
    update_norm: float | None = None,
    back_doors: bool = False,
) -> ExitCode:
    """Print the recommendation.

    Args:
        planned: The file's federation, its clients and rounds.
        attackers: Of all clients; None: as many as the file's layer1 reckons with.
        likeness: Of the honest clients (`Likeness`).
        update_norm: The usual norm of an honest update, where it is known without looking at clients' data;
            None: clipping that adapts is recommended.
        back_doors: Whether few attackers may plant what the others are silent on.
    """
    federation, clients = planned.federation, sum(planned.sizes)
    if attackers is None:
        attackers = sum(federation.layer1.byzantine_among(size) for size in planned.sizes)
    found = recommend(
        with_central_noise(federation),
        clients=clients,
        attackers=attackers,
        rounds=planned.rounds or ROUNDS,
        likeness=Likeness(likeness),
        back_doors=back_doors,
    )
    asked = {
        "clients": clients,
        "attackers": attackers,
        "epsilon": federation.total_epsilon,
        "coordinates": federation.vector_dim,
        "rounds": found.rounds,
        "clients_are": str(likeness),
        "back_doors": back_doors,
        "unit_of_privacy": federation.privacy.unit.value,
        "min_persons": federation.privacy.min_persons,
    }
    at = None
    if found.chosen is not None:
        at = places.places_of(planned, found.chosen.sizes, attackers, Likeness(likeness), update_norm)
    settings = None if found.chosen is None else settings_of(found.chosen, update_norm)
    if at is not None and found.chosen is not None:
        settings = places.settings_of(at[1], planned, found.chosen)
    told = {
        "asked": asked,
        "recommended": None if found.chosen is None else _numbers(found.chosen),
        "verdict": found.verdict.value,
        "why": reasons(found, clients, attackers),
        "min_persons_with_which_unit_person_teaches": found.min_persons,
        "alternatives": [_numbers(choice) for choice in found.by_rule],
        "noise_places": [] if at is None else [places.numbers_of(each, planned) for each in at[0]],
        "recommended_noise": None if at is None else at[1].place.value,
        "settings": settings,
    }
    if form == "json":
        click.echo(json.dumps({name: _finite(value) for name, value in told.items()}))
    else:
        _print(told, federation.privacy.noise, Console(highlight=False, soft_wrap=True))
    return ExitCode.DONE


def settings_of(choice: Choice, update_norm: float | None) -> dict[str, Any]:
    """The part of a file that makes this choice."""
    federation = choice.federation
    layer1: dict[str, Any] = {
        "aggregation_method": choice.rule.value,
        "num_byzantine": choice.num_byzantine,
        "min_updates": federation.layer1.min_updates,
    }
    if choice.pre:
        layer1["pre"] = list(choice.pre)
    layer2: dict[str, Any] = {"central_dp_epsilon": federation.layer2.central_dp_epsilon}
    by_clients = federation.privacy.unit is PrivacyUnit.CLIENT
    if update_norm is None and by_clients and not math.isinf(federation.total_epsilon):
        layer2 |= {
            "adaptive_clipping": True,
            "clip_quantile": CLIP_QUANTILE,
            "clip_learning_rate": CLIP_LEARNING_RATE,
        }
    elif update_norm is not None:
        least = federation.privacy.person_clip_norm or 0.0
        layer1["clip_norm"] = layer2["clip_norm"] = max(float(update_norm), least)
    if math.isinf(federation.total_epsilon):
        layer2["central_dp_epsilon"] = math.inf
    basket = {"min_clients": min(choice.sizes), "max_clients": max(2, *choice.sizes)}
    return {"federation": {"basket": basket, "layer1": layer1, "layer2": layer2}}


def reasons(found: Recommendation, clients: int, attackers: int) -> list[str]:
    """Why this setting, and what it does not do, in sentences."""
    chosen = found.chosen
    if chosen is None:
        return ["no rule that fits holds off back doors; with more clients, or fewer attackers, one does"]
    told = []
    if found.verdict in (Verdict.LITTLE, Verdict.NOTHING):
        signal, more = math.sqrt(found.rounds) * chosen.signal_norm, 1.0 / chosen.ratio
        told.append(
            ("no setting teaches anything here" if found.verdict is Verdict.NOTHING else "expect little")
            + f": noise norm {chosen.noise_norm:.3g} against signal {signal:.3g}, that of a release times "
            f"the root of {found.rounds} rounds; {more:.2g} times as many clients or as large a mu, or a "
            f"model of 1/{more**2:.2g} of the coordinates would bring the signal up to it"
        )
        if found.min_persons is not None:
            told.append(
                f"with privacy.unit: person and at least {found.min_persons} persons behind each client's "
                "update a setting would teach (set it, and ask again); that protects each person instead of "
                "the client, and an update must be a mean over persons (docs/privacy_units.md)"
            )
    elif found.verdict is Verdict.OUTWEIGHED:
        told.append(
            "attackers outweigh what the clients have in common: under the worst attack tried, no setting "
            "keeps their direction; make baskets of clients that are more alike"
        )
    plain = next((choice for choice in found.by_rule if choice.name == "mean"), None)
    robust = next((choice for choice in found.by_rule if choice.name != "mean"), None)
    if chosen.name == "mean" and attackers and robust is not None:
        times = robust.noise_norm / chosen.noise_norm if chosen.noise_norm else 1.0
        told.append(
            f"clipping alone does as well as a robust rule: a clipped update moves the mean by 1/{clients} "
            f"of the clip norm, while {robust.name} needs {times:.1f} times the noise"
        )
        told.append(
            f"it does not hold off back doors: {attackers} attackers together move a coordinate that nobody "
            f"else moves by {chosen.back_door:.2g} clip norms a round; --back-doors chooses among rules that "
            "stop that"
        )
    elif chosen.name == "mean":
        told.append("nobody is reckoned to attack, and no rule needs less noise than the mean")
    elif plain is not None and plain.ratio > chosen.ratio:
        told.append(
            f"the mean has {plain.ratio / chosen.ratio:.1f} times its ratio, but lets {plain.back_door:.2g} "
            f"clip norms of a back door through each round, {chosen.name} {chosen.back_door:.2g}"
        )
    elif plain is not None:
        told.append(
            f"under the worst attack tried it keeps {chosen.signal_norm:.3g} of signal, the mean "
            f"{plain.signal_norm:.3g}, which is worth its noise"
        )
    return told


def _numbers(choice: Choice) -> dict[str, Any]:
    federation = choice.federation
    adaptive = replace(federation, layer2=replace(federation.layer2, adaptive_clipping=True))
    factor: float | None = 1.0
    if federation.privacy.unit is not PrivacyUnit.CLIENT:
        factor = None
    elif choice.noise_norm:
        factor = Forecast(adaptive, choice.sizes, 1).adaptation_factor
    return {
        "rule": choice.name,
        "baskets": len(choice.sizes),
        "clients_each": [min(choice.sizes), max(choice.sizes)],
        "num_byzantine": choice.num_byzantine,
        "signal_norm": choice.signal_norm,
        "noise_norm": choice.noise_norm,
        "signal_to_noise_of_all_rounds": choice.ratio,
        "back_door_in_clip_norms": choice.back_door,
        "noise_is_larger_with_adaptive_clipping_by_the_factor": factor,
    }


def _finite(value: Any) -> Any:
    """The value with None in place of infinities, which JSON has no word for."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _print(told: dict[str, Any], given: NoisePlace, console: Console) -> None:
    asked, chosen = told["asked"], told["recommended"]
    unit, place = asked["unit_of_privacy"], told["recommended_noise"]
    at = next((each for each in told["noise_places"] if each["noise"] == place), None)
    each = "" if asked["min_persons"] is None else f" of at least {asked['min_persons']} {unit}s each"
    console.print(
        f"{asked['clients']} clients{each}, {asked['attackers']} of whom may attack, epsilon "
        f"{asked['epsilon']:g} for a {unit}, {asked['coordinates']} coordinates, {asked['rounds']} rounds, "
        f"clients {asked['clients_are']}",
        markup=False,
    )
    if chosen is not None:
        fewer, more = chosen["clients_each"]
        each = f"{fewer}" if fewer == more else f"{fewer} to {more}"
        teaches = told["verdict"] == Verdict.TEACHES
        style, verdict = ("bold", "recommended") if teaches else ("bold red", "the least bad")
        rule = chosen["rule"] if at is None else f"{at['rule']}, {at['noise']} noise, {at['rounds']} rounds"
        tolerated = f"f = {chosen['num_byzantine']}"
        if at is not None and at["clipping_radius"] is not None:
            tolerated = f"clipping radius {at['clipping_radius']:.3g}"  # it needs no f
        console.print(
            f"{verdict}: {rule}, {chosen['baskets']} baskets of {each}, {tolerated}",
            style=style,
            markup=False,
        )
    if at is not None:
        places.print_places(told["noise_places"], at["noise"], unit, given, console)
        console.print("rules by what one release of central noise moves", style="bold")
    for reason in told["why"] if at is None or at["rule"] == chosen["rule"] else ():
        console.print(f"  {reason}", markup=False)
    table = Table(box=None, pad_edge=False)
    for heading in ("  rule", "baskets", "f", "signal", "noise", "signal to noise", "back door"):
        table.add_column(heading, justify="left" if heading == "  rule" else "right", no_wrap=True)
    for each in told["alternatives"]:
        is_chosen = chosen is not None and each["rule"] == chosen["rule"]
        numbers = [each["signal_norm"], each["noise_norm"], each["signal_to_noise_of_all_rounds"]]
        table.add_row(
            f"{'*' if is_chosen else ' '} {each['rule']}",
            str(each["baskets"]),
            str(each["num_byzantine"]),
            *("unlimited" if math.isinf(number) else f"{number:.3g}" for number in numbers),
            f"{each['back_door_in_clip_norms']:.2g}",
            style="bold" if is_chosen else "",
        )
    console.print(table)
    console.print(
        "signal: what a release moves under the worst attack tried; signal to noise: of all rounds; back "
        "door: in clip norms a release (docs/choosing.md)",
        markup=False,
    )
    if told["settings"] is not None:
        console.print(yaml.safe_dump(told["settings"], sort_keys=False).rstrip(), markup=False)
