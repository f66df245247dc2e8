"""``scarcity-ray plan``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main
from scarcity_ray.privacy.accounting import epsilon_of_mu

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"


def _plan(*arguments):
    return CliRunner().invoke(main, ["plan", str(QUICKSTART), *arguments])


def test_json_holds_the_numbers():
    numbers = json.loads(_plan("--format", "json").stdout, parse_constant=pytest.fail)
    baskets, release = numbers["baskets"], numbers["release"]
    assert baskets["number"] == 20
    assert baskets["byzantine_clients_assumed"] == 2
    assert baskets["least_updates"] == 5
    assert release["sensitivity"] == pytest.approx(1 / 20 * 2 / 9, rel=1e-4)
    assert release["noise_sigma_per_coordinate"] == pytest.approx(
        release["sensitivity"] / release["mu"], rel=1e-3
    )
    assert release["releases_that_the_budget_buys"] >= release["rounds_configured"]
    spent = release["mu"] * release["releases_that_the_budget_buys"] ** 0.5
    assert epsilon_of_mu(spent, 1e-5) <= 10


def test_text_is_the_same_numbers_in_words():
    result = _plan()
    assert result.exit_code == 0
    assert "releases that the budget buys" in result.stdout
    assert "20 of 13" in result.stdout


def test_without_a_budget_everything_fits():
    result = _plan(
        "--set", "federation.total_epsilon=.inf", "--set", "federation.layer2.central_dp_epsilon=.inf"
    )
    assert "unlimited" in result.stdout


def test_an_impossible_config_is_exit_code_2():
    result = _plan("--set", "federation.layer2.central_dp_epsilon=50")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "scarcity-ray: federation.layer2.central_dp_epsilon: 50.0 is not accepted"
    )
