"""A run as one self-contained HTML page: what came out, against what, at what privacy."""

from __future__ import annotations

import math

from scarcity_ray.workloads.comparison import DEFENCES
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.records import Outcome, Summary
from scarcity_ray.workloads.report.charts import (
    LABELS,
    accuracy_chart,
    budget_chart,
    rejection_chart,
    time_chart,
)
from scarcity_ray.workloads.report.gossip import gossip_report
from scarcity_ray.workloads.report.page import (
    attack_name,
    claim,
    early_end,
    epsilon,
    figure,
    no_model,
    page,
    percent,
    table,
    text,
    tiles,
    warned,
)


def render_report(config: RunConfig, outcome: Outcome) -> str:
    """The page; it loads nothing from anywhere."""
    if not config.federation.layer2.enabled:
        return page(config, gossip_report(outcome))
    summary = outcome.summary
    body = [
        f"<h1>{text(summary.name)}</h1>",
        f"<p>{headline(summary)}</p>",
        early_end(summary),
        no_model(summary),
        _tiles(summary),
    ]
    if outcome.rounds:
        body += [
            "<h2>Accuracy</h2>",
            figure(accuracy_chart(outcome.rounds, _curves(outcome))),
            _comparison_table(summary),
            "<h2>Privacy</h2>",
            _budget(outcome),
            claim(summary),
            warned(summary),
            "<h2>Attacks and defences</h2>",
            _attack_table(summary),
            "<h2>Refused updates</h2>",
            _rejections(outcome),
            "<h2>Time</h2>",
            figure(time_chart(outcome.rounds)),
            _time_table(summary),
        ]
    return page(config, body)


def headline(summary: Summary) -> str:
    """What came out, in a sentence or two."""
    if summary.accuracy is None:
        return "No round was made."
    text = (
        f"A softmax classifier of digits, trained by {summary.clients} clients in {summary.baskets} baskets, "
        f"reached {percent(summary.accuracy)} "
    )
    if summary.byzantine_clients and summary.attack != "none":
        text += f"while {summary.byzantine_clients} of them attacked it ({attack_name(summary.attack)}). "
    else:
        text += "without attackers. "
    if summary.accuracy_mean_under_attack is not None and summary.accuracy_clean is not None:
        text += (
            f"A plain mean without protection reached {percent(summary.accuracy_mean_under_attack)} under "
            "the same conditions, and this federation without attack and noise "
            f"{percent(summary.accuracy_clean)}."
        )
    return text


def _tiles(summary: Summary) -> str:
    entries = [
        (percent(summary.accuracy), "accuracy on unseen digits"),
        (
            f"{epsilon(summary.epsilon_spent)} of {summary.total_epsilon:g}",
            f"epsilon spent, at delta {summary.delta:g}",
        ),
        (f"{summary.byzantine_clients} of {summary.clients}", "clients are Byzantine"),
        (f"{summary.releases} of {summary.rounds}", "rounds released a model"),
        (f"{summary.wall_seconds:.0f} s", "wall time, all runs"),
    ]
    return tiles(entries)


def _curves(outcome: Outcome) -> dict[str, list[float]]:
    attack = outcome.summary.attack
    wanted = {"clean": ("clean", "none"), "clipped_mean": ("clipped_mean", attack)}
    wanted["plain_mean"] = ("plain_mean", attack)
    return {name: outcome.curves[key] for name, key in wanted.items() if key in outcome.curves}


def _comparison_table(summary: Summary) -> str:
    noise = "central noise" if math.isfinite(summary.total_epsilon) else "no noise"
    rows = [
        (
            "this run",
            f"{text(summary.rule.replace('_', ' '))} in each basket, gossip, {noise}",
            summary.accuracy,
        ),
        (LABELS["clean"], DEFENCES["clean"], summary.accuracy_clean),
        (LABELS["clipped_mean"], DEFENCES["clipped_mean"], summary.accuracy_clipped_mean),
        (LABELS["plain_mean"], DEFENCES["plain_mean"], summary.accuracy_mean_under_attack),
    ]
    runs = table(
        ("", "how updates are aggregated", "accuracy"),
        [(name, what, percent(value)) for name, what, value in rows],
        {2},
        0,
    )
    return (
        "<p class='soft'>The other runs have the same clients, local training, rounds and attackers. They "
        "are plain array programs in the same job, with noise from a seed.</p>" + runs
    )


def _attack_table(summary: Summary) -> str:
    attacks = {name: runs for name, runs in summary.attacks.items() if name != "none"}
    names = ("federation", "clipped_mean", "plain_mean")
    rows = [
        (attack_name(attack), *(percent(runs.get(name)) for name in names))
        for attack, runs in attacks.items()
    ]
    return (
        "<p class='soft'>Simulated, same clients and rounds. A rule that trims pays with more noise than a "
        "mean for the same privacy, so where an attack does little, the means are ahead; and clipping alone "
        f"already stops an attack that only scales. {text(simulated_note(summary))}</p>"
        + table(("attack", "this federation's rule", "clipped mean", "plain mean"), rows, {1, 2, 3}, None)
    )


def simulated_note(summary: Summary) -> str:
    """Why the run and its simulation differ, in figures."""
    if summary.accuracy is None or summary.accuracy_simulated is None:
        return ""
    return (
        f"This run reached {percent(summary.accuracy)} and the simulation of the same rule under the same "
        f"attack {percent(summary.accuracy_simulated)}: one draw each. The run's noise is fresh from the "
        "operating system and its clients gossip; the simulation's noise comes from the seed, and it leaves "
        "gossip out. Another run gives another figure; `python -m pytest -m slow tests/workloads` measures "
        "how far they spread."
    )


def _budget(outcome: Outcome) -> str:
    if math.isinf(outcome.summary.total_epsilon):
        return ""
    return figure(budget_chart(outcome.rounds, outcome.summary.total_epsilon))


def _rejections(outcome: Outcome) -> str:
    if not outcome.summary.rejected:
        sent = sum(record.accepted for record in outcome.rounds)
        return f"<p>None: all {sent:,} updates were well-formed and in time.</p>"
    return figure(rejection_chart(outcome.rounds))


def _time_table(summary: Summary) -> str:
    phases = sorted(summary.seconds.items(), key=lambda item: -item[1])
    rows = [(text(phase), f"{seconds:.1f}") for phase, seconds in phases if seconds >= 0.05]
    return table(("phase, all rounds", "seconds"), rows, {1}, None)
