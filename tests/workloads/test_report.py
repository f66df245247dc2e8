"""The page of a run."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads.config import load_run
from scarcity_ray.workloads.records import Outcome, RoundRecord, RunBeside, Summary
from scarcity_ray.workloads.report.charts import TEXT, basket_chart, metric_chart, require_matplotlib
from scarcity_ray.workloads.report.page import render_report
from scarcity_ray.workloads.report.privacy_claim import privacy_claim
from scarcity_ray_client import PrivateMetric

pytest.importorskip("matplotlib")
pytest.importorskip("sklearn")
CONFIGS = Path(__file__).parents[2] / "configs"
CONFIG = load_run(CONFIGS / "quickstart.yaml")
GOSSIP_CONFIG = load_run(CONFIGS / "decentralised.yaml")
STANDING = {
    **{"clients": 13, "byzantine": 2, "members": 0.5, "members_at_home": 0.6},
    **{"model": 0.7, "model_at_home": 0.8, "alone": {"members_at_home": 0.4, "members": 0.3}},
}
CURVE = (0.1, 0.2, 0.3, 0.4)


def _beside(run, attack, value, curve=CURVE):
    return RunBeside(run, attack, {} if value is None else {"accuracy": value}, curve)


def _outcome(rounds=4, **changes) -> Outcome:
    records = tuple(
        RoundRecord(
            round=i + 1,
            metrics={"accuracy": 0.2 + 0.1 * i},
            epsilon_spent=1.0 + i,
            epsilon_left=9.0 - i,
            sampled=260,
            accepted=250,
            rejected={"too_stale": i} if i else {},
            gossip_messages=400,
            released=True,
            clip_norm=1.0,
            seconds={"training": 0.1, "aggregation": 0.4},
            elapsed=0.5 * i,
            training={"domain_0": {"loss": 0.25}},
            clients={"domain_1": {"accuracy": 0.775}},
        )
        for i in range(rounds)
    )
    summary = Summary(
        name="<quick & start>",
        metric="accuracy",
        mode="max",
        metrics={"accuracy": 0.8463, "log_loss": 0.5221},
        initial={"accuracy": 0.0871},
        best_round=3,
        best_metrics={"accuracy": 0.8531},
        epsilon_spent=9.75,
        delta=1e-5,
        total_epsilon=10.0,
        budget_spent_early=False,
        stopped="",
        rounds=rounds,
        rounds_configured=4,
        releases=rounds,
        clients=260,
        domains={"domain_0": 130, "domain_1": 130},
        baskets=20,
        byzantine_clients=52,
        attack="sign_flip",
        rule="trimmed_mean",
        rejected={"too_stale": 6},
        refused={f"client_{i:02d}": {"too_stale": 1} for i in range(24)} | {"worst": {"timed_out": 3}},
        first_refusals=({"client": "worst", "round": 2, "cause": "timed_out", "detail": "it had not begun"},),
        gossip_messages=1600,
        wall_seconds=46.4,
        seconds={"aggregation": 24.7, "comparison": 10.8},
        runs=(
            _beside("federation", "sign_flip", 0.8129),
            _beside("clean", "none", 0.922),
            _beside("clipped_mean", "sign_flip", 0.8664),
            _beside("plain_mean", "sign_flip", None, (0.1, None, None, None)),
            _beside("local_only", "none", 0.31, ()),
            _beside("federation", "alie", 0.9087),
            _beside("clipped_mean", "alie", 0.9265),
            _beside("plain_mean", "alie", 0.931),
        ),
        privacy_claim=privacy_claim(CONFIG.federation, 9.75),
        basket_standings={},
        warnings=(),
        waits_for="",
        date="2026-01-02T03:04:05+00:00",
        versions={"python": "3.11.7", "workload": "scarcity_ray.workloads.digits:Digits"},
        load_model="model = load_model('model.npz')",
    )
    return Outcome(replace(summary, **changes), records)


class _Checker(HTMLParser):
    VOID = frozenset({"meta", "br"})

    def __init__(self):
        super().__init__()
        self.open, self.links, self.seen = [], [], []

    def handle_starttag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in {"src", "href", "xlink:href"}]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.seen.append(tag)
        self.links += [value for name, value in attributes if name in {"src", "href", "xlink:href"}]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_well_formed_and_loads_nothing_from_anywhere():
    page = render_report(CONFIG, _outcome())
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert all(link.startswith("#") for link in checker.links)
    assert not re.search(r"@import|url\((?!#)", page)


def test_the_page_holds_figures_plots_claim_and_settings():
    page = render_report(CONFIG, _outcome())
    for words in (
        "84.6 %",
        "plain mean not finite",
        "86.6 %",
        "92.2 %",
        "31.0 %",
        "0.5221",
        "8.7 %",
        "The best model was that of round 3",
        "loss, in training",
        "accuracy, of the release",
        "77.5 %",
        "worst, round 2: timed out:",
        "And 5 more clients, in summary.json.",
        "Begun 2026-01-02T03:04:05+00:00, with python 3.11.7",
        "model = load_model(&#39;model.npz&#39;)",
        "9.75 of 10",
        "52 of 260",
        'aria-label="Accuracy over rounds"',
        'aria-label="Epsilon spent over rounds"',
        'aria-label="Refused updates over rounds"',
        'aria-label="Seconds by phase over rounds"',
        "Not against: whoever operates the Ray cluster",
        "ALIE",
        "total_epsilon: 10.0",
    ):
        assert words in page


def test_names_are_escaped():
    page = render_report(CONFIG, _outcome())
    assert "&lt;quick &amp; start&gt;" in page
    assert "<quick" not in page


HOSTILE = "<script src='//evil'>$\\frac{&quot;</script>"


@pytest.mark.parametrize("config", [CONFIG, GOSSIP_CONFIG])
def test_nothing_that_a_run_was_given_becomes_markup(config):
    quiet = _outcome(
        name=HOSTILE,
        attack=HOSTILE,
        rule=HOSTILE,
        waits_for=f"{HOSTILE}\n{HOSTILE}",
        rejected={HOSTILE: 1},
        seconds={HOSTILE: 1.0},
        runs=(_beside("clean", "none", 0.5), _beside("federation", HOSTILE, 0.5)),
        refused={HOSTILE: {HOSTILE: 1}},
        first_refusals=({"client": HOSTILE, "round": 1, "cause": HOSTILE, "detail": HOSTILE},),
        domains={HOSTILE: 3},
        versions={HOSTILE: HOSTILE, "workload": HOSTILE},
        load_model=HOSTILE,
        stopped=HOSTILE,
        metrics={"accuracy": 0.5, HOSTILE: 0.5},
        privacy_claim=(HOSTILE,),
        warnings=({"code": "refused", "message": f"client {HOSTILE} has no key"},),
        basket_standings={HOSTILE: STANDING},
    )
    records = tuple(replace(r, rejected={HOSTILE: 1}, seconds={HOSTILE: 1.0}) for r in quiet.rounds)
    page = render_report(config, replace(quiet, rounds=records))
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert page.count("&lt;script") >= 9
    assert "<script" not in page


def test_baskets_without_any_figure_have_a_chart_all_the_same(recwarn):
    chart = basket_chart({"a_basket_0": dict.fromkeys(STANDING)}, "auc")
    assert "a_basket_0" in chart
    assert not recwarn


def test_what_is_written_beside_a_plot_stays_within_it_where_curves_end_together_at_the_top():
    runs = [_beside(name, "none", 0.999 + i * 1e-4, ()) for i, name in enumerate(("clean", "centralised"))]
    records = [replace(record, metrics={"accuracy": 1.0}) for record in _outcome().rounds]
    drawn = metric_chart(records, [*runs, _beside("clipped_mean", "none", 1.0, ())], "accuracy")
    heights = [float(y) for y in re.findall(r'text-anchor: start[^>]* y="(-?[\d.]+)"', drawn)]
    assert len(heights) == 4
    assert min(heights) > 5.0


def test_plots_take_the_pages_colour_in_light_and_dark():
    page = render_report(CONFIG, _outcome())
    assert "prefers-color-scheme: dark" in page
    assert TEXT not in page
    assert "currentColor" in page
    assert "fill: #ffffff" not in page


@pytest.mark.long
def test_the_same_run_gives_the_same_page():
    assert render_report(CONFIG, _outcome()) == render_report(CONFIG, _outcome())


def test_a_run_without_refusals_says_so_in_words():
    quiet = _outcome(rejected={})
    records = tuple(replace(record, rejected={}) for record in quiet.rounds)
    page = render_report(CONFIG, replace(quiet, rounds=records))
    assert "None: all 1,000 updates were well-formed and in time." in page
    assert "Refused updates over rounds" not in page


def test_a_run_of_no_or_one_round_still_has_a_page():
    none = _outcome(rounds=0, metrics=None, runs=(), budget_spent_early=True)
    page = render_report(CONFIG, none)
    assert "No round was made." in page
    assert "spent after round 0 of 4" in page
    assert "Accuracy over rounds" in render_report(CONFIG, _outcome(rounds=1))


def test_a_run_without_a_budget_has_no_budget_plot():
    page = render_report(CONFIG, _outcome(total_epsilon=float("inf"), epsilon_spent=float("inf")))
    assert "Epsilon spent over rounds" not in page


def test_the_headline_leaves_attackers_out_where_there_are_none():
    assert "without attackers." in _words(render_report(CONFIG, _outcome(attack="none")))
    page = _words(render_report(CONFIG, _outcome()))
    assert "while 52 of them attacked it (sign flip)." in page
    assert "without attackers." not in page


def test_a_run_by_gossip_shows_its_baskets():
    page = _words(
        render_report(
            GOSSIP_CONFIG,
            _outcome(
                runs=(_beside("federation", "sign_flip", 0.5),),
                basket_standings={"domain_1_basket_0": STANDING},
            ),
        )
    )
    for words in (
        "trained by gossip alone",
        "they reached accuracy 60.0 %, without gossip 40.0 %, while 52 attacked (sign flip).",
        '<td>domain_1_basket_0</td><td class="n">2 of 13</td><td class="n">50.0 %</td>',
        'aria-label="Accuracy of each basket"',
    ):
        assert words in page


def test_a_metric_that_is_no_share_is_shown_as_it_is_and_no_digits_are_spoken_of():
    records = tuple(
        replace(record, metrics={"auc": 0.7 + 0.01 * record.round}) for record in _outcome().rounds
    )
    changed = _outcome(metric="auc", metrics={"auc": 0.8123456}, initial={"auc": 0.5}, runs=())
    changed = replace(changed, rounds=records)
    versions = {"workload": "my_module:Mortality"}
    summary = replace(changed.summary, versions=versions, best_round=None)
    page = _words(render_report(CONFIG, replace(changed, summary=summary)))
    assert "my_module:Mortality, trained by 260 clients in 20 baskets, reached auc 0.8123" in page
    assert 'aria-label="Auc over rounds"' in page
    assert "digit" not in page.partition("<h2>Settings</h2>")[0]


def test_an_early_stop_is_told():
    page = render_report(CONFIG, _outcome(stopped="auc has not improved in 5 evaluations"))
    assert "It stopped after round 4 of 4: auc has not improved in 5 evaluations." in page


def _words(page):
    return " ".join(page.split())


def test_without_matplotlib_the_error_holds_the_command(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(UsageError, match=r"pip install 'scarcity-ray\[quickstart\]'"):
        require_matplotlib()


def test_what_clients_measured_privately_is_told_with_its_error_and_as_inside_the_claim():
    private = {
        "auc": PrivateMetric(0.8125, 0.03, 81.4, 4.2),
        "loss": PrivateMetric(None, None, -3.0, 40.0),
    }
    page = render_report(CONFIG, _outcome(private_evaluation=private))
    section = page.partition("privately</h2>")[2].partition("<h2>")[0]
    for words in ("inside the privacy claim", "auc", "81.4", "4.2", "unknown: the noise is larger"):
        assert words in section
    assert "privately</h2>" not in render_report(CONFIG, _outcome())
