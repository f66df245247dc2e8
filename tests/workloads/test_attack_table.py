"""The table of accuracy under attack: its cases, its averages, how it is shown; and a slice of it, made."""

from __future__ import annotations

import json
import runpy
import sys
import xml.etree.ElementTree as ET

import pytest

from benchmarks.lab.attack_report import picture, tables, worst_cases
from benchmarks.lab.attack_table import (
    ARMS,
    BASKET_ATTACKS,
    BASKET_RULES,
    FLAT_ATTACKS,
    FLAT_RULES,
    averages,
    basket_cases,
    flat_cases,
    record,
)
from benchmarks.lab.laboratory import HONEST_MEAN, Case
from scarcity_ray.robust.rules import RULES
from scarcity_ray.workloads.attacks import ATTACKS


def _records(seeds=2):
    lines = []
    for seed in range(seeds):
        for place, (column, case) in enumerate(flat_cases(seed, 5)):
            lines.append(record("flat", column, case, (place % 97 + seed) / 100, 0.1))
        for place, (column, case) in enumerate(basket_cases(seed, 5)):
            lines.append(record("baskets", column, case, (place % 89 + seed) / 100, 0.1))
    return lines


def test_every_rule_and_every_attack_stands_in_it():
    names = {rule.name for rule in RULES.values()} - {"weighted"}
    assert names | {HONEST_MEAN} | {f"nnm + {r}" for r in ("krum", "median")} <= set(FLAT_RULES)
    assert set(FLAT_ATTACKS) == set(ATTACKS) - {"inf", "poison"}
    columns = {column for column, _ in flat_cases(0, 5)}
    assert columns == {f"{split}, f = {f}" for split in ("iid", "sorted") for f in (2, 5, 7)}


def test_a_rule_stands_in_every_column_whose_f_it_accepts():
    cases = list(flat_cases(0, 5))
    for rule in FLAT_RULES:
        columns = {column for column, case in cases if case.rule == rule}
        assert len(columns) == (4 if rule == "bulyan" else 6), rule
    assert len(cases) == 6 + (len(FLAT_RULES) - 1) * len(FLAT_ATTACKS) * 6 - 2 * len(FLAT_ATTACKS)


def test_the_comparison_holds_every_rule_and_attack_in_every_arm_on_the_same_clients():
    cases = list(basket_cases(3, 5))
    assert len(cases) == len(ARMS) * (1 + (len(BASKET_RULES) - 1) * len(BASKET_ATTACKS))
    assert {(c.split, c.num_clients, c.num_byzantine, c.clip_norm, c.seed) for _, c in cases} == {
        ("domains", 55, 10, 2.0, 3)
    }


def test_averages_are_over_the_seeds():
    case = Case("krum", "ipm")
    lines = [record("flat", "x", case, accuracy, 0.1) for accuracy in (0.5, 0.7, 0.9)]
    [entry] = averages(json.loads(json.dumps(lines)))
    assert (entry.rule, entry.attack, entry.lowest, entry.guaranteed) == ("krum", "ipm", 0.5, True)
    assert entry.accuracy == pytest.approx(0.7)


def test_the_worst_case_names_its_attack():
    lines = [record("flat", "x", Case("krum", a), v, 0.1) for a, v in (("none", 0.9), ("ipm", 0.2))]
    assert worst_cases(averages(lines)) == {"krum": "20 (IPM)"}


@pytest.mark.parametrize("markdown", [False, True])
def test_tables_show_every_number_and_mark_what_is_refused_or_outside_the_theorem(markdown):
    entries = averages(_records())
    text = tables(entries, markdown)
    for rule in (*FLAT_RULES, *BASKET_RULES):
        assert rule in text
    assert "*" in text.replace("**", "")
    bulyan = [line for line in text.splitlines() if "bulyan" in line]
    assert sum(" - " in line or line.endswith(" -") for line in bulyan) >= 2
    if markdown:
        for line in text.splitlines():
            assert not line.startswith("|") or line.count("|") in {7, 8, 10, 13}
    else:
        assert len({len(line) for line in text.split("\n\n")[1].splitlines()[1:]}) == 1


@pytest.mark.long
def test_the_picture_is_one_svg_that_shows_rules_and_arms():
    pytest.importorskip("matplotlib")
    entries = averages(_records())
    text = picture(entries)
    assert ET.fromstring(text).tag.endswith("svg")
    for word in ("geometric median", "optimised IPM", "baskets, attackers in one"):
        assert word in text
    assert len(text) < 400_000


@pytest.mark.long
def test_one_command_makes_the_table_the_lines_and_the_picture(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")

    def _run(*arguments):
        monkeypatch.setattr(sys, "argv", ["python -m benchmarks", "attacks", *arguments])
        with pytest.raises(SystemExit, match=r"^0$"):
            runpy.run_module("benchmarks", run_name="__main__")
        return capsys.readouterr().out

    arguments = ("--seeds", "1", "--steps", "2", "--rule", "krum", "--attack", "optimised_ipm")
    lines = [json.loads(line) for line in _run("--format", "json", *arguments).splitlines()]
    assert len(lines) == 6 * 3 + len(ARMS) * 3
    for line in lines:
        assert {"name", "n", "d", "seconds", "versus", "ratio"} <= line.keys()
        assert line["d"] == 650
    saved = tmp_path / "rows.jsonl"
    saved.write_text("\n".join(map(json.dumps, lines)))
    shown = _run("--rows", str(saved), "--picture", str(tmp_path / "attacks.svg"))
    assert "flat: sorted, f = 7" in shown
    text = (tmp_path / "attacks.svg").read_text()
    assert text.rstrip().endswith("</svg>")
    assert text == picture(averages(lines)), "the same lines give the same picture"
