"""A run as one self-contained HTML page: what came out, against what, at what privacy."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import yaml

from scarcity_ray.config import to_plain
from scarcity_ray.workloads.charts import (
    LABELS,
    accuracy_chart,
    budget_chart,
    rejection_chart,
    time_chart,
)
from scarcity_ray.workloads.comparison import DEFENCES
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.records import Outcome, Summary

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5c6675; --page: #fbfbfa; --line: #dcdfe4;
        --card: #ffffff; --strong: #2566b0; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e7ec; --soft: #9aa4b2; --page: #14171c;
        --line: #30363f; --card: #1b1f26; --strong: #6ba6e8; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.5rem 4rem; }
h1 { font-size: 1.7rem; margin: 0 0 .3rem; letter-spacing: -.01em; }
h2 { font-size: 1.12rem; margin: 2.6rem 0 .5rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.soft { color: var(--soft); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.6rem, 1fr)); gap: .8rem;
         margin: 1.5rem 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: .6rem; padding: .8rem 1rem; }
.tile b { display: block; font-size: 1.4rem; white-space: nowrap; font-weight: 650; letter-spacing: -.01em; }
.tile.main b { color: var(--strong); }
.tile span { color: var(--soft); font-size: .86rem; }
figure { margin: .6rem 0; background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
         padding: .6rem .8rem; }
svg { display: block; width: 100%; height: auto; }
svg text { font-family: system-ui, -apple-system, "Segoe UI", Roboto, sans-serif !important; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .38rem .9rem .38rem 0; border-bottom: 1px solid var(--line);
         vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .88rem; }
td.n, th.n { text-align: right; white-space: nowrap; }
tr.main td { font-weight: 650; }
ul { padding-left: 1.2rem; max-width: 46rem; }
li { margin: .35rem 0; }
.note { border-left: 3px solid #d18a1c; padding: .1rem 0 .1rem .9rem; }
pre { overflow-x: auto; font-size: .83rem; line-height: 1.45; background: var(--card);
      border: 1px solid var(--line); border-radius: .6rem; padding: .9rem 1rem; }
summary { cursor: pointer; }
"""


def render_report(config: RunConfig, outcome: Outcome) -> str:
    """The page; it loads nothing from anywhere."""
    summary = outcome.summary
    body = [
        f"<h1>{_text(summary.name)}</h1>",
        f"<p>{headline(summary)}</p>",
        _early_end(summary),
        _tiles(summary),
    ]
    if outcome.rounds:
        body += [
            "<h2>Accuracy</h2>",
            _chart(accuracy_chart(outcome.rounds, _curves(outcome))),
            _comparison_table(summary),
            "<h2>Privacy</h2>",
            _budget(outcome),
            "<ul>" + "".join(f"<li>{_text(line)}</li>" for line in summary.privacy_claim) + "</ul>",
            "<h2>Attacks and defences</h2>",
            _attack_table(summary),
            "<h2>Refused updates</h2>",
            _rejections(outcome),
            "<h2>Time</h2>",
            _chart(time_chart(outcome.rounds)),
            _time_table(summary),
        ]
    settings = yaml.safe_dump(to_plain(config), sort_keys=False)
    body.append(
        f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{_text(settings)}</pre></details>"
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(summary.name)} · scarcity_ray</title><style>{STYLE}</style></head>\n"
        f"<body><main>{chr(10).join(part for part in body if part)}</main></body></html>\n"
    )


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


def percent(value: float | None) -> str:
    """An accuracy for reading.

    >>> percent(0.84633), percent(None)
    ('84.6 %', '-')
    """
    return "-" if value is None else f"{100 * value:.1f} %"


def epsilon(value: float) -> str:
    """An epsilon for reading.

    >>> epsilon(9.7366), epsilon(math.inf)
    ('9.74', '∞')
    """
    return "∞" if math.isinf(value) else f"{value:.2f}"


def attack_name(name: str) -> str:
    """An attack's name for reading.

    >>> attack_name("sign_flip"), attack_name("alie")
    ('sign flip', 'ALIE')
    """
    words = {"alie": "ALIE", "ipm": "IPM", "nan": "NaN", "inf": "infinity"}
    return " ".join(words.get(word, word) for word in name.split("_"))


def _text(value: object) -> str:
    return html.escape(str(value))


def _chart(svg: str) -> str:
    return f"<figure>{svg}</figure>"


def _early_end(summary: Summary) -> str:
    if not summary.budget_spent_early:
        return ""
    return (
        f'<p class="note">The privacy budget was spent after round {summary.rounds} of '
        f"{summary.rounds_configured}; the run ended there.</p>"
    )


def _tiles(summary: Summary) -> str:
    tiles = [
        (percent(summary.accuracy), "accuracy on unseen digits", "tile main"),
        (
            f"{epsilon(summary.epsilon_spent)} of {summary.total_epsilon:g}",
            f"epsilon spent, at delta {summary.delta:g}",
            "tile",
        ),
        (f"{summary.byzantine_clients} of {summary.clients}", "clients are Byzantine", "tile"),
        (f"{summary.releases} of {summary.rounds}", "rounds released a model", "tile"),
        (f"{summary.wall_seconds:.0f} s", "wall time, all runs", "tile"),
    ]
    inner = "".join(
        f'<div class="{kind}"><b>{big}</b><span>{small}</span></div>' for big, small, kind in tiles
    )
    return f'<div class="tiles">{inner}</div>'


def _curves(outcome: Outcome) -> dict[str, list[float]]:
    attack = outcome.summary.attack
    wanted = {"clean": ("clean", "none"), "clipped_mean": ("clipped_mean", attack)}
    wanted["plain_mean"] = ("plain_mean", attack)
    return {name: outcome.curves[key] for name, key in wanted.items() if key in outcome.curves}


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int], main: int | None) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="n">{cell}</{tag}>' if place in numbers else f"<{tag}>{cell}</{tag}>"
            for place, cell in enumerate(row)
        )

    lines = "".join(
        f"<tr{' class=main' if place == main else ''}>{cells('td', row)}</tr>"
        for place, row in enumerate(rows)
    )
    head_line = f"<tr>{cells('th', head)}</tr>"
    return f'<div class="wide"><table><thead>{head_line}</thead><tbody>{lines}</tbody></table></div>'


def _comparison_table(summary: Summary) -> str:
    noise = "central noise" if math.isfinite(summary.total_epsilon) else "no noise"
    rows = [
        (
            "this run",
            f"{_text(summary.rule.replace('_', ' '))} in each basket, gossip, {noise}",
            summary.accuracy,
        ),
        (LABELS["clean"], DEFENCES["clean"], summary.accuracy_clean),
        (LABELS["clipped_mean"], DEFENCES["clipped_mean"], summary.accuracy_clipped_mean),
        (LABELS["plain_mean"], DEFENCES["plain_mean"], summary.accuracy_mean_under_attack),
    ]
    table = _table(
        ("", "how updates are aggregated", "accuracy"),
        [(name, what, percent(value)) for name, what, value in rows],
        {2},
        0,
    )
    return (
        "<p class='soft'>The other runs have the same clients, local training, rounds and attackers. They "
        "are plain array programs in the same job, with noise from a seed.</p>" + table
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
        "already stops an attack that only scales.</p>"
        + _table(("attack", "this federation's rule", "clipped mean", "plain mean"), rows, {1, 2, 3}, None)
    )


def _budget(outcome: Outcome) -> str:
    if math.isinf(outcome.summary.total_epsilon):
        return ""
    return _chart(budget_chart(outcome.rounds, outcome.summary.total_epsilon))


def _rejections(outcome: Outcome) -> str:
    if not outcome.summary.rejected:
        sent = sum(record.accepted for record in outcome.rounds)
        return f"<p>None: all {sent:,} updates were well-formed and in time.</p>"
    return _chart(rejection_chart(outcome.rounds))


def _time_table(summary: Summary) -> str:
    phases = sorted(summary.seconds.items(), key=lambda item: -item[1])
    rows = [(_text(phase), f"{seconds:.1f}") for phase, seconds in phases if seconds >= 0.05]
    return _table(("phase, all rounds", "seconds"), rows, {1}, None)
