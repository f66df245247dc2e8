"""A self-contained HTML page and what it is made of."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence

import yaml

from scarcity_ray.config import to_plain
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray.workloads.records import Summary

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


def page(config: RunConfig, body: Sequence[str]) -> str:
    """The whole page, with the config at its end; it loads nothing from anywhere."""
    settings = yaml.safe_dump(to_plain(config), sort_keys=False)
    parts = [
        *body,
        f"<h2>Settings</h2><details><summary>config.yaml</summary><pre>{text(settings)}</pre></details>",
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{text(config.name)} · scarcity_ray</title><style>{STYLE}</style></head>\n"
        f"<body><main>{chr(10).join(part for part in parts if part)}</main></body></html>\n"
    )


def tiles(entries: Sequence[tuple[str, str]]) -> str:
    """Big figures with what they are; the first is the main one."""
    inner = "".join(
        f'<div class="tile{"" if place else " main"}"><b>{big}</b><span>{small}</span></div>'
        for place, (big, small) in enumerate(entries)
    )
    return f'<div class="tiles">{inner}</div>'


def claim(summary: Summary) -> str:
    """The privacy claim as a list."""
    return "<ul>" + "".join(f"<li>{text(line)}</li>" for line in summary.privacy_claim) + "</ul>"


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


def text(value: object) -> str:
    """Escaped."""
    return html.escape(str(value))


def figure(svg: str) -> str:
    """A chart in its frame."""
    return f"<figure>{svg}</figure>"


def early_end(summary: Summary) -> str:
    """A note where the budget ended before the run."""
    if not summary.budget_spent_early:
        return ""
    return (
        f'<p class="note">The privacy budget was spent after round {summary.rounds} of '
        f"{summary.rounds_configured}; the run ended there.</p>"
    )


def no_model(summary: Summary) -> str:
    """A note where no round released a model: what the last one waited for."""
    if not summary.waits_for:
        return ""
    lines = "<br>".join(text(line) for line in summary.waits_for.splitlines())
    return f'<p class="note">No round released a model.<br>{lines}</p>'


def warned(summary: Summary) -> str:
    """What the federation warned of, as a list."""
    if not summary.warnings:
        return ""
    return (
        "<h2>To know</h2><ul>" + "".join(f"<li>{text(w['message'])}</li>" for w in summary.warnings) + "</ul>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: set[int], main: int | None) -> str:
    """A table; columns of `numbers` are set right, and row `main` is bold."""

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
