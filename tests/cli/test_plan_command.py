"""``scarcity-ray plan``."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main
from scarcity_ray.config import AggregationMethod
from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.gaussian_dp import epsilon_of_mu
from scarcity_ray.privacy.accounting.zcdp import epsilon_of_rho

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


@pytest.mark.parametrize(
    ("baskets", "least", "missing"), [(2, 2, 0), (3, 3, 0), (4, 3, 1), (20, 4, 15), (21, 5, 13)]
)
def test_what_a_release_needs_is_said_once(baskets, least, missing, tmp_path):
    result = _plan_of("vector_dim: 64", tmp_path, "--baskets", str(baskets), "--format", "json")
    numbers = json.loads(result.stdout)
    told = numbers["baskets"]
    assert told["least_baskets_of_a_release"] == told["fresh_baskets_needed"] == least
    assert told["baskets_that_may_be_missing"] == missing
    notes = [warning for warning in numbers["warnings"] if warning["code"] == "all_baskets_needed"]
    if baskets != 3:
        assert notes == []
        return
    (note,) = notes
    assert note["message"] == "with 3 baskets all three must be there and fresh for a release"
    assert not note["loud"]


def test_what_liars_can_make_of_a_sensitivity_is_said():
    weighted = "federation.layer1={aggregation_method: weighted, byzantine_fraction: 0, max_examples: 20}"
    for rule, shares in ((None, (2 / 9, 2 / 9)), (weighted, (2 / 13, 2 * 20 / 32))):
        settings = [] if rule is None else ["--set", rule]
        release = json.loads(_plan("--format", "json", *settings).stdout)["release"]
        told = [release["sensitivity"], release["sensitivity_at_most"]]
        assert told == pytest.approx([share / 20 for share in shares], rel=1e-4)


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


NUMBER, LIMIT = (int, float), (int, float, type(None))
SCHEMA = {
    "baskets": {
        "number": int,
        "clients_each": dict,
        "rule": str,
        "byzantine_clients_assumed": int,
        "least_updates": int,
        "least_baskets_of_a_release": int,
        "least_survivors_of_a_session": int,
        "corrupt_baskets_assumed": int,
        "honest_baskets_counted_on": int,
        "fresh_baskets_needed": int,
        "baskets_that_may_be_missing": int,
        "baskets_that_may_drop_out": int,
        "sizes_that_never_aggregate": list,
    },
    "budget": {
        "epsilon": LIMIT,
        "delta": float,
        "accounting": str,
        "mu_total": LIMIT,
        "share_of_gossip": float,
        "mu_for_releases": LIMIT,
        "mu_for_gossip_of_a_client": LIMIT,
    },
    "privacy": {},
    "release": {
        "epsilon": LIMIT,
        "noise": str,
        "mu": LIMIT,
        "releases_that_the_budget_buys": LIMIT,
        "rounds_configured": int,
        "sensitivity": float,
        "sensitivity_at_most": float,
        "noise_sigma_per_coordinate": float,
        "coordinates": int,
    },
    "signal": {
        "norm_at_most": float,
        "noise_norm": float,
        "noise_norm_with_least_updates": float,
        "signal_to_noise_of_a_release": LIMIT,
        "signal_to_noise_of_all_rounds": LIMIT,
    },
    "site_noise": {},
    "ring": {"bits": int, "steps_to_a_unit": float, "headroom_bits": float},
    "gossip": {
        "epsilon_a_round": LIMIT,
        "rounds_that_the_share_buys": LIMIT,
        "noise_sigma_on_drift": NUMBER,
        "noise_sigma_per_coordinate": NUMBER,
        "noise_norm": NUMBER,
        "clip_norm": float,
        "messages_received": int,
        "mixing_weight": float,
    },
    "traffic": dict.fromkeys(("updates_bytes", "gossip_most_bytes", "secure_sum_bytes", "model_bytes"), int),
    "seconds": {
        **dict.fromkeys(
            ("updates", "gossip", "layer1", "secure_sum", "release", "a_round_on_one_core"), float
        ),
        "one_core_of": str,
    },
    "clipping": {},
    "changes": {
        "rounds_until_noise_is_as_large_as_signal": LIMIT,
        "baskets_until_noise_is_no_larger_than_signal": (int, type(None)),
    },
    "solved": {},
}
RULE = {
    "rule": str,
    "least_rows": int,
    "fits": bool,
    "sensitivity": (float, type(None)),
    "noise_norm": (float, type(None)),
    "signal_to_noise": (float, type(None)),
}
WARNING = {"code": str, "message": str, "loud": bool, "remedies": list, "about": str}


def _fits(given, schema):
    assert list(given) == list(schema)
    for name, kind in schema.items():
        assert isinstance(given[name], kind), name


UNLIMITED = (
    *("--set", "federation.total_epsilon=.inf", "--set", "federation.layer2.central_dp_epsilon=.inf"),
    *("--set", "federation.gossip.local_dp_epsilon=.inf"),
)


@pytest.mark.parametrize("arguments", [(), UNLIMITED], ids=["claim", "no claim"])
def test_json_has_one_shape(arguments):
    numbers = json.loads(_plan("--format", "json", *arguments).stdout, parse_constant=pytest.fail)
    assert list(numbers) == [*SCHEMA, "rules", "warnings"]
    for title, schema in SCHEMA.items():
        _fits(numbers[title], schema)
    for rule in numbers["rules"]:
        _fits(rule, RULE)
    for warning in numbers["warnings"]:
        _fits(warning, WARNING)
    assert {rule["rule"] for rule in numbers["rules"]} == set(AggregationMethod)


@pytest.mark.parametrize("unit", ["person", "record"])
def test_what_the_budget_is_worth_to_a_person_is_said(unit):
    chosen = (
        *("--set", f"federation.privacy={{unit: {unit}, min_persons: 200}}"),
        *("--set", "federation.gossip_budget_share=0", "--set", "federation.total_epsilon=3"),
        *("--set", "federation.total_delta=1e-6", "--set", "federation.layer2.central_dp_epsilon=0.3"),
        *("--set", "federation.layer1={aggregation_method: trimmed_mean}"),
    )
    result = _plan("--format", "json", *chosen)
    assert result.exit_code == 0, result.output
    numbers = json.loads(result.stdout, parse_constant=pytest.fail)
    told = numbers["privacy"]
    assert told["unit"] == f"{unit}, against whoever sees every release (central noise)"
    assert told[f"least_{unit}s_of_a_client"] == 200
    assert told["membership_advantage_at_most"] == pytest.approx(0.2535, abs=2e-3)
    assert told["true_positives_at_1_percent_false_ones"] == pytest.approx(0.0466, abs=5e-4)
    assert 6 < told[f"epsilon_of_a_{unit}_at_two_clients"] < 8
    assert told["epsilon_of_a_whole_client_with_as_few"] > 1000
    assert ("epsilon_of_10_records" in told) == (unit == "record")
    costs = {rule["rule"]: rule["sensitivity"] for rule in numbers["rules"] if rule["fits"]}
    assert costs["median"] == pytest.approx(2 / 200, rel=1e-2)
    assert costs["krum"] == pytest.approx(2.0, rel=1e-3)
    assert "membership advantage at most" in _plan(*chosen).stdout


def test_what_adaptive_clipping_costs_is_said():
    fixed = json.loads(_plan("--format", "json").stdout)
    adaptive = ("--set", "federation.layer2.adaptive_clipping=true")
    numbers = json.loads(_plan("--format", "json", *adaptive).stdout, parse_constant=pytest.fail)
    clipping = numbers["clipping"]
    _fits(clipping, dict.fromkeys(clipping, float))
    assert clipping["noise_is_larger_by_the_factor"] == pytest.approx((1 - 0.04) ** -0.5, rel=1e-3)
    sigma = fixed["release"]["noise_sigma_per_coordinate"]
    assert numbers["release"]["noise_sigma_per_coordinate"] / sigma == pytest.approx(
        clipping["noise_is_larger_by_the_factor"]
    )
    assert numbers["release"]["mu"] == fixed["release"]["mu"]
    assert clipping["noise_sigma_on_the_share_below"] == pytest.approx(
        5 / fixed["release"]["mu"] / 260, rel=1e-3
    )
    assert "noise is larger by the factor" in _plan(*adaptive).stdout


def test_rounds_solves_for_the_noise_and_epsilon_for_the_rounds():
    numbers = json.loads(_plan("--format", "json", "--rounds", "100", "--epsilon", "4").stdout)
    solved = numbers["solved"]
    assert solved["federation.total_epsilon"] == numbers["budget"]["epsilon"] == 4
    assert solved["releases"] == solved["gossip_rounds"] == numbers["release"]["rounds_configured"] == 100
    spent = numbers["release"]["mu"] * 10
    assert epsilon_of_mu(spent, 1e-5) <= 4
    for name in ("federation.layer2.central_dp_epsilon", "federation.gossip.local_dp_epsilon"):
        assert name in _plan("--rounds", "100").stdout
    copied = [f"{path}={value}" for path, value in solved.items() if "." in path]
    again = json.loads(_plan("--format", "json", *(w for c in copied for w in ("--set", c))).stdout)
    assert again["release"] == numbers["release"]
    assert again["signal"] == numbers["signal"]

    numbers = json.loads(_plan("--format", "json", "--epsilon", "4").stdout)
    accountant = PrivacyAccountant(4.0, 1e-5, gossip_share=0.1, delta_reserve=0.0)
    count = 0
    while accountant.spend_release(numbers["release"]["mu"]):
        count += 1
    assert numbers["solved"]["releases"] == count


def test_seconds_are_predicted_by_the_reference_rates_or_by_probed_ones():
    numbers = json.loads(_plan("--format", "json").stdout)["seconds"]
    parts = [numbers[name] for name in ("updates", "gossip", "layer1", "secure_sum", "release")]
    assert numbers["a_round_on_one_core"] == pytest.approx(sum(parts))
    assert 0.05 < sum(parts) < 5
    assert numbers["one_core_of"] == "the reference machine"
    probed = json.loads(_plan("--format", "json", "--measure").stdout)["seconds"]
    assert probed["one_core_of"] == "this machine, as probed"
    assert probed["a_round_on_one_core"] > 0
    assert "a round on one core" in _plan().stdout


def test_in_zcdp_the_plan_states_rho_and_solves_by_its_conversion():
    discrete = ("--set", "federation.layer2.noise=discrete_gaussian")
    numbers = json.loads(_plan("--format", "json", "--rounds", "100", *discrete).stdout)
    exact = json.loads(_plan("--format", "json", "--rounds", "100").stdout)
    assert numbers["budget"]["accounting"] == "zcdp"
    assert numbers["release"]["noise"] == "discrete_gaussian"
    assert not any(name.startswith("mu") for part in ("budget", "release") for name in numbers[part])
    assert numbers["solved"]["releases"] == numbers["solved"]["gossip_rounds"] == 100
    rho, delta = numbers["release"]["rho"], 1e-5
    assert numbers["release"]["epsilon"] == pytest.approx(epsilon_of_rho(rho, delta), rel=1e-5)
    assert 100 * rho <= numbers["budget"]["rho_for_releases"] * (1 + 1e-12)
    assert epsilon_of_rho(numbers["budget"]["rho_total"], delta) == pytest.approx(10, rel=1e-9)
    # The price: more noise for the same rounds and the same claim.
    worse = numbers["signal"]["noise_norm"] / exact["signal"]["noise_norm"]
    assert 1.0 < worse < 1.15
    assert "accounting" in _plan(*discrete).stdout


def test_drowned_noise_is_the_first_thing_in_the_text():
    loud = _plan("--set", "federation.layer1.aggregation_method=krum")
    assert loud.stdout.startswith("WARNING: a release's noise has norm 6.49, 6.49 times the greatest")
    assert "WARNING" not in _plan().stdout
    table = loud.stdout.split("noise that each Layer 1 rule would cost")[1]
    assert "* krum" in table
    assert all(method.value in table for method in AggregationMethod)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epsilon", "0"), "scarcity-ray: --epsilon: 0.0 is not accepted"),
        (("--epsilon", "nan"), "scarcity-ray: --epsilon: "),
        (("--epsilon", "0.01"), "scarcity-ray: federation."),
        (("--rounds", "10000000000000"), "scarcity-ray: --rounds: 10000000000000 is not accepted; fewer"),
    ],
)
def test_what_cannot_be_solved_is_one_line_and_exit_code_2(arguments, message):
    result = _plan(*arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(message)
    assert len(result.stderr.splitlines()) == 1


def test_an_impossible_config_is_exit_code_2():
    result = _plan("--set", "federation.layer2.central_dp_epsilon=50")
    assert result.exit_code == 2
    assert result.stderr.startswith(
        "scarcity-ray: federation.layer2.central_dp_epsilon: 50.0 is not accepted"
    )


def test_without_layer_2_the_plan_speaks_of_gossip_alone():
    left_out = ("lab.compare=[]", "training.averaging_decay=null", "training.optimizer.learning_rate=1.0")
    changes = ("federation.layer2.enabled=false", *left_out)
    alone = (*(word for change in changes for word in ("--set", change)), "--rounds", "40")
    result = _plan("--format", "json", *alone)
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout)
    assert plan["budget"]["share_of_gossip"] == 1.0
    assert plan["release"] == plan["signal"] == plan["ring"] == plan["changes"] == {}
    assert plan["rules"] == []
    assert plan["gossip"]["rounds_that_the_share_buys"] == plan["gossip"]["rounds_configured"] == 40
    assert plan["solved"]["federation.gossip.local_dp_epsilon"] == plan["gossip"]["epsilon_a_round"]
    assert [warning["code"] for warning in plan["warnings"] if warning["loud"]] == [
        "gossip_noise_drowns_signal"
    ]
    text = " ".join(_plan(*alone).stdout.split())
    assert "each basket trains by gossip alone, and all of the budget is gossip's" in text


DRIVERS = {
    "section": "name: mine\nfederation:\n  vector_dim: 64\n",
    "settings": "vector_dim: 64\n",
}


def _plan_of(content, tmp_path, *arguments):
    (tmp_path / "driver.yaml").write_text(content)
    return CliRunner().invoke(main, ["plan", str(tmp_path / "driver.yaml"), *arguments])


@pytest.mark.parametrize("content", DRIVERS.values(), ids=DRIVERS)
def test_a_drivers_config_is_planned_for_the_fewest_clients_and_says_so(content, tmp_path):
    result = _plan_of(content, tmp_path)
    assert result.exit_code == 0, result.output
    assert "noise has norm 29.8, 29.8 times" in result.stdout
    assert "2 baskets of 5 clients are assumed; say otherwise with --clients and --baskets" in result.stdout
    numbers = json.loads(_plan_of(content, tmp_path, "--format", "json").stdout)
    assert "rounds_configured" not in numbers["release"]


@pytest.mark.parametrize("content", DRIVERS.values(), ids=DRIVERS)
def test_a_drivers_config_is_planned_for_the_clients_that_are_told(content, tmp_path):
    arguments = ("--clients", "100", "--baskets", "7", "--format", "json")
    baskets = json.loads(_plan_of(content, tmp_path, *arguments).stdout)["baskets"]
    assert (baskets["number"], baskets["clients_each"]) == (7, {"14": 5, "15": 2})
    assert "assumed" not in baskets


def test_a_jobs_config_too_is_planned_for_the_clients_that_are_told():
    numbers = json.loads(_plan("--clients", "400", "--baskets", "20", "--format", "json").stdout)
    assert numbers["baskets"]["clients_each"] == {"20": 20}


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        ("vector_dim: 64", ("--baskets", "1"), "--baskets: 1 is not accepted; at least 2"),
        ("vector_dim: 64", ("--clients", "3"), "--clients: 3 is not accepted; more, or fewer --baskets"),
        ("federation: {vector_dims: 3}", (), "federation.vector_dims: 3 is not accepted; unknown key"),
        ("federation: {total_epsilon: 1}", (), "federation.gossip.local_dp_epsilon: 0.5 is not accepted"),
        ("total_epsilon: 1", (), "gossip.local_dp_epsilon: 0.5 is not accepted; at most 0.492"),
        ("federation: {}\nrun: {}", (), "run: {} is not accepted; only federation beside it"),
    ],
)
def test_what_a_drivers_config_cannot_be_planned_for_is_told(content, arguments, message, tmp_path):
    result = _plan_of(content, tmp_path, *arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"scarcity-ray: {message}")


def test_weak_settings_are_noted_in_the_plan():
    numbers = json.loads(_plan("--format", "json").stdout)
    assert {w["code"] for w in numbers["warnings"]} >= {"basket_models_exposed"}


@pytest.mark.long
@pytest.mark.parametrize("arguments", [(), ("--format", "json")])
def test_a_reader_that_has_enough_is_no_failure(arguments):
    script = "from scarcity_ray.cli.main import main; main()"
    plan = subprocess.Popen(
        [sys.executable, "-c", script, "plan", str(QUICKSTART), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    plan.stdout.close()
    assert plan.stderr.read() == b""
    assert plan.wait() == 0


def test_a_file_that_is_not_there_is_told_in_plain_words():
    result = CliRunner().invoke(main, ["plan", "nope.yaml"])
    assert result.exit_code == 2
    assert result.stderr == "scarcity-ray: nope.yaml: No such file or directory; give a readable YAML file\n"


def test_a_recommendation_says_what_to_choose_and_why():
    numbers = json.loads(
        _plan("--recommend", "--attackers", "0", "--format", "json").stdout, parse_constant=pytest.fail
    )
    assert numbers["asked"]["clients"] == 260
    assert numbers["recommended"]["rule"] == "mean"
    assert numbers["why"] == ["nobody is reckoned to attack, and no rule needs less noise than the mean"]
    assert numbers["settings"]["federation"]["layer2"]["adaptive_clipping"]
    assert numbers["alternatives"][0]["rule"] == "mean"


@pytest.mark.long
def test_the_recommended_settings_can_be_pasted(tmp_path):
    written = "federation: {vector_dim: 10, total_epsilon: 8.0, gossip_budget_share: 0.0}"
    asked = ("--clients", "24", "--attackers", "3", "--update-norm", "0.5")
    result = _plan_of(written, tmp_path, "--recommend", *asked, "--format", "json")
    settings = json.loads(result.stdout)["settings"]["federation"]
    pasted = {"vector_dim": 10, "total_epsilon": 8.0, "gossip_budget_share": 0.0, **settings}
    again = json.loads(_plan_of(json.dumps(pasted), tmp_path, "--clients", "24", "--format", "json").stdout)
    assert again["release"]["releases_that_the_budget_buys"] >= 20
    assert settings["layer1"]["clip_norm"] == settings["layer2"]["clip_norm"] == 0.5


def test_where_no_setting_teaches_it_is_said(tmp_path):
    written = "federation: {vector_dim: 100000, total_epsilon: 1.0, gossip_budget_share: 0.0}"
    text = _plan_of(written, tmp_path, "--recommend", "--clients", "20", "--attackers", "0").stdout
    assert "no setting teaches anything here: noise norm" in text
    assert "the least bad: mean" in text
    (persons,) = re.findall(r"with privacy.unit: person and at least (\d+) persons behind each", text)
    unit = f"federation: {{privacy: {{unit: person, min_persons: {persons}}},"
    asked = ("--recommend", "--clients", "20", "--attackers", "0")
    text = _plan_of(written.replace("federation: {", unit), tmp_path, *asked).stdout
    assert f"20 clients of at least {persons} persons each, 0 of whom may attack" in text
    assert "epsilon 1 for a person" in text
    assert "recommended: mean" in text
    assert "adaptive_clipping" not in text


@pytest.mark.long
def test_for_persons_it_says_where_to_add_the_noise_and_how_to_train(tmp_path):
    given = {"vector_dim": 30, "total_epsilon": 3.0, "total_delta": 1e-6, "gossip_budget_share": 0.0}
    privacy = {"unit": "person", "min_persons": 500}
    written = json.dumps({"federation": {**given, "privacy": privacy}})
    asked = ("--clients", "20", "--baskets", "4")
    numbers = json.loads(_plan_of(written, tmp_path, *asked, "--format", "json").stdout)
    assert numbers["site_noise"]["noise_of_the_mean_over_central_noise"] == "sqrt(20) = 4.47"
    assert "if honest rows are alike" in numbers["site_noise"]["error_of_the_rule_at_most"]
    asked = (*asked, "--recommend", "--clients-are", "alike", "--update-norm", "0.1", "--attackers")
    for attackers, places in (("0", {"central", "shares"}), ("4", {"site"})):
        told = json.loads(_plan_of(written, tmp_path, *asked, attackers, "--format", "json").stdout)
        assert [place["noise"] for place in told["noise_places"]] == ["central", "shares", "site"]
        assert told["recommended_noise"] in places
        pasted = {**given, "privacy": privacy, **told["settings"]["federation"]}
        again = _plan_of(json.dumps(pasted), tmp_path, "--clients", "20", "--format", "json").stdout
        rounds = told["settings"]["training"]["rounds"]
        assert json.loads(again)["release"]["releases_that_the_budget_buys"] == rounds
    text = _plan_of(written, tmp_path, *asked, "4").stdout
    assert "where the noise for a person is added" in text
    assert max(map(len, text.split("beta: momentum")[0].splitlines()[2:])) <= 80


def test_what_is_asked_of_a_recommendation_needs_one():
    result = _plan("--attackers", "3")
    assert result.exit_code == 2
    assert "--attackers: 3 is not accepted; only with --recommend" in result.stderr


def test_scale_prints_a_round_of_few_to_many_clients_on_few_to_many_nodes():
    wide = ("--scale", "--set", "federation.basket.max_clients=100")
    rows = [json.loads(line) for line in _plan(*wide, "--format", "json").stdout.splitlines()]
    assert [(row["clients"], row["nodes"]) for row in rows] == [
        (clients, nodes) for clients in (1_000, 10_000, 100_000, 1_000_000) for nodes in (1, 10, 100, 1_000)
    ]
    assert all(row["seconds"] > 0 and row["actor_bytes"] > 2**26 for row in rows)
    table = _plan(*wide, "--clients", "1000", "--cores", "2").stdout
    assert "on nodes of 2 cores" in table
    assert len(table.splitlines()) == 2 + 4
    refused = _plan("--scale", "--clients", "1000000")
    assert "raise basket.max_clients to 100" in refused.stdout
    assert refused.exit_code == 2
    assert _plan("--cores", "2").exit_code == 2
