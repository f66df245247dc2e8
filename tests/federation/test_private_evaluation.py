"""Metrics of clients through the secure sum: `fit` with a private evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, HierarchicalFederationConfig, IdentityKeyPair, UsageError
from scarcity_ray.baskets.submission import Submission
from scarcity_ray.config import Layer1Config, Layer2Config
from scarcity_ray.federation.task_cohort import Submitting
from scarcity_ray.layers import BasketModel, Layer2Aggregator
from scarcity_ray.layers.meta_parameters import encode_report, mean_reports
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.updates import Rejection
from scarcity_ray_client import Client, PrivateEvaluation, Trained, Workload

Open = Callable[..., HierarchicalFederation]
ASKED = PrivateEvaluation({"auc": (0.0, 1.0), "loss": (0.0, 4.0)}, max_examples=100)
EXACT: dict[str, Any] = {
    "vector_dim": 2,
    "total_epsilon": math.inf,
    "gossip_budget_share": 0.0,
    "basket": {"min_clients": 3, "max_clients": 6},
    "layer1": {"aggregation_method": "median", "min_updates": 3},
    "layer2": {"central_dp_epsilon": math.inf, "min_baskets": 2},
    "meta_parameters": {"rate": [0.0, 1.0], **ASKED.meta_parameters()},
}
EXAMPLES = {"c2": 10**9, "c7": 40}
SAYS: dict[str, Any] = {"c3": 1e6, "c4": -math.inf, "c5": "raises", "c6": None, "c8": math.nan}
"""AUCs of clients that measure none of their own."""


class Measured(Workload[dict[str, Any]]):
    """Twelve clients, some of which measure rubbish, lack the metric, or fail."""

    def clients(self) -> list[Client]:
        return [
            Client(f"c{i}", f"domain{i % 2}", data=i, num_examples=EXAMPLES.get(f"c{i}", 60 + i))
            for i in range(12)
        ]

    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(2, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        if client.client_id == "c9":
            raise RuntimeError("no data")
        return Trained(model={"w": model["w"] + np.float32(0.25)})

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        return {"mean": float(model["w"].mean())}

    def evaluate_client(self, model: dict[str, Any], client: Client) -> dict[str, float]:
        says = SAYS.get(client.client_id, client.data / 20)
        if says == "raises":
            raise RuntimeError("no table")
        found = {"loss": float(model["w"].mean()) + client.data / 10}
        return found if says is None else {**found, "auc": says}


def expected() -> tuple[float, float]:
    """The AUC and the loss of the first model over who trained and measured them, in float64."""
    clients = [client for client in Measured().clients() if client.client_id not in ("c5", "c9")]
    weights = np.array([min(client.num_examples, 100) for client in clients], np.float64)
    # Baskets weigh by their six members each; in one of them a client raised as it trained, so five sent.
    weights /= np.where([client.data % 2 for client in clients], 5, 6)
    auc = [SAYS.get(client.client_id, client.data / 20) for client in clients]
    has = np.array([value is not None and math.isfinite(value) for value in auc])
    clipped = np.clip([value if value is not None and math.isfinite(value) else 0 for value in auc], 0, 1)
    losses = [client.data / 10 for client in clients]
    return float(np.average(clipped, weights=weights * has)), float(np.average(losses, weights=weights))


def test_what_is_measured_privately_comes_back_in_releases_alone(
    open_federation: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    fed, answers = open_federation(EXACT), list[Any]()
    take = Submitting.take

    def noted(self: Submitting, held: Any) -> None:
        answers.extend(answer for answer, _ in held)
        take(self, held)

    monkeypatch.setattr(Submitting, "take", noted)
    first, second = fed.fit(Measured(), rounds=2, private_evaluation=ASKED, clients_per_task=4).history
    found = first.private_evaluation
    assert (found["auc"].mean, found["loss"].mean) == pytest.approx(expected(), abs=1e-5)
    assert found["auc"].standard_error == pytest.approx(0.0, abs=1e-5)
    assert second.private_evaluation["loss"].mean == pytest.approx(expected()[1] + 0.25, abs=1e-5)
    assert first.clients == {}
    assert len(answers) == 22
    assert all(answer.metrics == {} for answer in answers)
    assert first.refusals == {"evaluation_raised": 1, "raised": 1}
    assert "no table" in first.first_refusals[1].detail
    assert fed.get_meta_params()["rate"] == pytest.approx(0.5, abs=1e-5), "nobody reports it"


def test_the_same_comes_back_signed_and_past_an_adversary(open_federation: Open) -> None:
    class Nobody:
        byzantine, poisons = frozenset({"c1"}), False

        def sent(self, round_id: int, client_ids: Any, basket_ids: Any, rows: Any, clip_norm: float) -> Any:
            assert rows.shape == (11, 2)
            return rows

    for adversary in (None, Nobody()):
        fed = open_federation(EXACT)
        for i in range(12):
            fed.register_client(f"c{i}", f"domain{i % 2}", identity_keypair=IdentityKeyPair.generate())
        (record,) = fed.fit(Measured(), rounds=1, private_evaluation=ASKED, adversary=adversary).history
        assert record.num_accepted == 11
        found = record.private_evaluation
        assert (found["auc"].mean, found["loss"].mean) == pytest.approx(expected(), abs=1e-5)


def test_a_report_that_was_changed_on_its_way_has_a_bad_signature(
    open_federation: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scarcity_ray.baskets.basket import Basket

    fed, submit = open_federation(EXACT), Basket.submit
    fed.register_client("c1", "domain1", identity_keypair=IdentityKeyPair.generate())

    def changed(self: Basket, submission: Submission, *given: Any) -> Any:
        if submission.meta is not None:
            submission.meta["auc_times_examples"] = 1.0  # type: ignore[index]
        return submit(self, submission, *given)

    monkeypatch.setattr(Basket, "submit", changed)
    result = fed.fit(Measured(), rounds=1, private_evaluation=ASKED)
    assert result.refusals["c1"] == {Rejection.BAD_SIGNATURE: 1}


def test_it_is_charged_with_its_release_and_told_as_unknown_below_the_noise(open_federation: Open) -> None:
    spent, sigmas, metas = [], [], []
    private = {**EXACT, "total_epsilon": 20.0, "layer2": {"central_dp_epsilon": 2.0, "min_baskets": 2}}
    for names in ({}, ASKED.meta_parameters()):
        fed = open_federation({**private, "meta_parameters": names})
        result = fed.fit(Measured(), rounds=1, private_evaluation=ASKED if names else None)
        spent.append(result.epsilon_spent)
        metas.append(result.history[0].private_evaluation)
        sigmas.append(fed.get_global_meta_model().noise_sigma)
    assert spent[0] == spent[1] > 0
    assert 1.0 < sigmas[1] / sigmas[0] < 1.03
    assert metas[0] == {}
    assert metas[1]["auc"].mean is None, "two baskets of five are too few"
    assert metas[1]["auc"].examples_error > 10


def test_a_federation_that_was_not_configured_for_it_says_what_to_write(open_federation: Open) -> None:
    for declared in ({}, {**ASKED.meta_parameters(), "auc_examples": (0.0, 2.0)}):
        fed = open_federation({**EXACT, "meta_parameters": declared})
        with pytest.raises(UsageError, match=r"meta_parameters: {'auc_times_examples': \[-1.0, 1.0\]"):
            fed.fit(Measured(), rounds=1, private_evaluation=ASKED)
    with pytest.raises(UsageError, match="instance of PrivateEvaluation"):
        fed.fit(Measured(), rounds=1, private_evaluation={"auc": (0, 1)})  # type: ignore[arg-type]
    unmeasured = type("Unmeasured", (Measured,), {"evaluate_client": Workload.evaluate_client})
    with pytest.raises(UsageError, match="Unmeasured has no evaluate_client"):
        open_federation(EXACT).fit(unmeasured(), rounds=1, private_evaluation=ASKED)


def test_the_releases_error_is_the_stated_one() -> None:
    """The squares of 1,600 errors over their standard errors, of releases with fresh noise.

    Their mean is 1 but for five standard deviations of its own, 0.18: passed by chance once in a million.
    """
    asked = PrivateEvaluation({f"m{i}": (0.0, 1.0) for i in range(4)}, max_examples=100)
    ranges, rng = asked.meta_parameters(), np.random.default_rng(3)
    config = HierarchicalFederationConfig(
        vector_dim=2,
        total_epsilon=math.inf,
        meta_parameters=ranges,
        layer1=Layer1Config(aggregation_method="median"),
        layer2=Layer2Config(central_dp_epsilon=8.0),
    )
    told = rng.uniform(0.3, 0.9, (8, 40, 4))
    examples = rng.integers(60, 140, (8, 40))
    models = []
    for b in range(8):
        reports = [
            encode_report(
                asked.report({f"m{i}": told[b, c, i] for i in range(4)}, int(examples[b, c])), ranges
            )
            for c in range(40)
        ]
        meta = mean_reports(reports, 8)
        models.append(BasketModel(f"b{b}", np.zeros(2, np.float32), 40, 0, 0.0, 1.0, meta=meta, n_members=40))
    truth = np.average(told.reshape(-1, 4), axis=0, weights=np.minimum(examples, 100).reshape(-1))
    aggregator, errors = Layer2Aggregator(config, noise=SeededNoise(11)), []
    for round_id in range(400):
        found = asked.read(aggregator.aggregate(models, round_id=round_id).meta_means)
        for i in range(4):
            one = found[f"m{i}"]
            assert one.mean is not None
            assert one.standard_error is not None
            errors.append((one.mean - truth[i]) / one.standard_error)
            assert one.standard_error < 0.1
    assert 0.82 < np.mean(np.square(errors)) < 1.18
    assert abs(np.mean(errors)) < 0.15
