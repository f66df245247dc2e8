"""`fit` with workloads that behave and that do not."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, UsageError
from scarcity_ray.federation.evaluation import EarlyStopping
from scarcity_ray.federation.fit_terms import Stopped
from scarcity_ray_client import Cause, Client, ModelWarning, Trained, Workload

Open = Callable[..., HierarchicalFederation]
SETTINGS: dict[str, Any] = {
    "vector_dim": 2,
    "total_epsilon": 200.0,
    "total_delta": 1e-5,
    "gossip_budget_share": 0.0,
    "basket": {"min_clients": 3, "max_clients": 3},
    "layer1": {"aggregation_method": "mean", "min_updates": 2, "clip_norm": 1.0},
    "layer2": {
        "central_dp_epsilon": 8.0,
        "use_secure_aggregation": False,
        "clip_norm": 1.0,
        "min_baskets": 2,
    },
}
DISTANCE = EarlyStopping("distance", "min")
TARGET = np.array([0.5, -0.5], np.float32)


class Towards(Workload[dict[str, Any]]):
    """Each client moves the model a third of the way to one target; some do what `faults` says instead."""

    def __init__(self, faults: dict[str, str] | None = None, num_clients: int = 6) -> None:
        self.faults, self.num_clients = faults or {}, num_clients
        self.trained: list[str] = []

    def clients(self) -> list[Client]:
        return [
            Client(f"c{i}", f"domain{i // 3 % 2}", num_examples=10 + i, data=i)
            for i in range(self.num_clients)
        ]

    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(2, np.float32)}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        fault = self.faults.get(client.client_id, self.faults.get("all", ""))
        if fault == "raises":
            raise RuntimeError(f"no data for {client.client_id}")
        if fault == "hangs":
            time.sleep(0.6)
        if fault == "nan":
            return Trained(model={"w": np.full(2, np.nan)})
        if fault == "shape":
            return Trained(model={"w": np.zeros(3)})
        if fault == "model":
            model["w"] += 1
            return Trained(delta=model)
        if fault == "memory":
            raise MemoryError
        if fault == "nothing":
            return None  # type: ignore[return-value]
        return Trained(
            model={"w": model["w"] + (TARGET - model["w"]) / 3}, metrics={"examples": client.num_examples}
        )

    def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
        return {"distance": float(np.linalg.norm(model["w"] - TARGET))}


def test_a_model_is_trained(open_federation: Open) -> None:
    fed = open_federation({**SETTINGS, "layer2": {**SETTINGS["layer2"], "central_dp_epsilon": 30.0}})
    seen = []
    result = fed.fit(Towards(), rounds=4, stopping=DISTANCE, on_round=seen.append)
    assert result.stopped is Stopped.ROUNDS
    assert seen == list(result.history)
    assert [record.versions for record in seen] == [(1,), (2,), (3,), (4,)]
    assert [record.num_accepted for record in seen] == [6] * 4
    assert [record.round_id for record in seen] == [0, 1, 2, 3]
    assert result.refusals == {}
    assert result.model.keys() == {"w"}
    np.testing.assert_array_equal(result.model["w"], result.vector)
    assert result.epsilon_spent == fed.get_stats()["privacy_consumed_epsilon"] > 0
    distances = [record.evaluation["distance"] for record in seen]
    assert result.best_round == int(np.argmin(distances))
    assert result.best_model is not None
    assert Towards().evaluate(result.best_model)["distance"] == min(distances)
    for domain, weights in {"domain0": 10 + np.arange(3), "domain1": 13 + np.arange(3)}.items():
        mean = np.average(weights, weights=weights)
        assert seen[0].metrics[domain].metrics["examples"] == pytest.approx(mean)


def test_the_model_is_the_sum_of_what_was_released(open_federation: Open) -> None:
    fed = open_federation(SETTINGS)
    released = []
    result = fed.fit(Towards(), rounds=3, on_round=lambda record: released.append(fed.get_global_model()))
    np.testing.assert_allclose(result.vector, np.sum(released, axis=0), rtol=1e-6)


def test_an_evaluation_that_raises_ends_the_rounds_and_loses_no_model(open_federation: Open) -> None:
    class Broken(Towards):
        def evaluate(self, model: dict[str, Any]) -> dict[str, float]:
            if len(kept) == 2:
                raise ValueError("one class alone")
            return super().evaluate(model)

    kept: list[Any] = []
    result = open_federation(SETTINGS).fit(
        Broken(), rounds=4, on_release=lambda model, round_id: kept.append((round_id, model["w"].copy()))
    )
    assert result.stopped is Stopped.EVALUATION
    assert result.explanation.startswith("evaluate, after round 1: ValueError: one class alone")
    assert [(record.versions, len(record.evaluation)) for record in result.history] == [((1,), 1), ((2,), 0)]
    assert [round_id for round_id, _ in kept] == [0, 1]
    np.testing.assert_array_equal(kept[1][1], result.vector)


FAULTS = {
    "raises": Cause.RAISED,
    "nan": Cause.NOT_FINITE,
    "shape": Cause.WRONG_MODEL,
    "model": Cause.WRONG_RESULT,
    "nothing": Cause.WRONG_RESULT,
    "memory": Cause.OUT_OF_MEMORY,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_client_without_an_update_is_counted_by_reason_while_the_round_goes_on(
    fault: str, open_federation: Open
) -> None:
    result = open_federation(SETTINGS).fit(Towards({"c1": fault}), rounds=2)
    assert result.refusals == {"c1": {FAULTS[fault]: 2}}
    told = str(result.history[1].first_refusals[0])
    assert told.startswith(f"client 'c1', round 1: {FAULTS[fault]}: ")
    assert [record.num_accepted for record in result.history] == [5, 5]
    assert [record.refusals for record in result.history] == [{FAULTS[fault]: 1}] * 2
    assert [record.versions for record in result.history] == [(1,), (2,)]


def test_clients_that_share_a_task_fare_as_each_does_alone(open_federation: Open) -> None:
    faults = {"c1": "raises", "c4": "nan"}
    one, many = (
        open_federation(SETTINGS).fit(Towards(faults, 8), rounds=2, clients_per_task=count)
        for count in (1, 5)
    )
    assert many.refusals == one.refusals == {"c1": {"raised": 2}, "c4": {"not_finite": 2}}
    np.testing.assert_allclose(many.vector, one.vector, atol=1e-6)
    assert many.history[0].metrics == one.history[0].metrics


def test_a_train_many_that_fails_is_told_once(
    open_federation: Open, caplog: pytest.LogCaptureFixture
) -> None:
    class Slow(Towards):
        def train_many(self, models: Any, clients: Any, round_id: int) -> Any:
            raise RuntimeError("no product")

    result = open_federation(SETTINGS).fit(Slow(), rounds=2, clients_per_task=3)
    assert result.refusals == {}
    (told,) = [record.getMessage() for record in caplog.records if "train_many" in record.getMessage()]
    assert told.startswith(
        "train_many of Slow fails and each client is trained alone: RuntimeError: no product"
    )


class Tricks:
    """The lab's attackers: they poison, and send what they see turned round."""

    def __init__(self, *byzantine: str, poisons: bool = False, scale: float = -1.0) -> None:
        self.byzantine, self.poisons, self.scale = frozenset(byzantine), poisons, scale
        self.seen: list[tuple[Any, ...]] = []

    def sent(self, round_id: int, client_ids: Any, basket_ids: Any, rows: Any, clip_norm: float) -> Any:
        self.seen.append((round_id, tuple(client_ids), tuple(basket_ids), rows, clip_norm))
        changed = rows.copy()
        changed[[client_id in self.byzantine for client_id in client_ids]] *= np.float32(self.scale)
        return changed


class Poisonous(Towards):
    def poison(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(model={"w": model["w"] + 0.25})


def test_updates_come_to_the_driver_for_an_adversary_alone(
    open_federation: Open, caplog: pytest.LogCaptureFixture
) -> None:
    tricks, fed = Tricks("c1", "c5", poisons=True, scale=np.nan), open_federation(SETTINGS)
    result = fed.fit(Poisonous({"c2": "raises"}), rounds=2, adversary=tricks, clients_per_task=2)
    assert result.refusals == {"c1": {"not_finite": 2}, "c2": {"raised": 2}, "c5": {"not_finite": 2}}
    assert "2 clients' updates are made up here, for the lab, and every client's update comes" in caplog.text
    first, second = tricks.seen
    assert [first[0], second[0]] == [0, 1]
    assert first[1] == ("c0", "c1", "c3", "c4", "c5")
    assert first[2] == ("domain0_basket_0",) * 2 + ("domain1_basket_0",) * 3
    np.testing.assert_allclose(first[3], [TARGET / 3, [0.25] * 2, TARGET / 3, TARGET / 3, [0.25] * 2])
    assert first[4] == SETTINGS["layer1"]["clip_norm"]


def test_an_adversary_that_cannot_be_played_is_refused(open_federation: Open) -> None:
    fed = open_federation(SETTINGS)
    for adversary, words in (
        (Tricks("c1", "nobody"), "nobody"),
        (Tricks("c1", poisons=True), "Towards has no poison"),
        (object(), "must be an Adversary"),
    ):
        with pytest.raises(UsageError, match=f"adversary.*{words}"):
            fed.fit(Towards(), rounds=1, adversary=adversary)  # type: ignore[arg-type]
    tricks = Tricks("c1")
    tricks.sent = lambda *given: np.zeros(3)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"adversary: sent gave float64 of shape \(3,\)"):
        fed.fit(Towards(), rounds=1, adversary=tricks)


def test_the_average_is_handed_out_and_clients_train_on_from_the_last_model(open_federation: Open) -> None:
    fed, released = open_federation(SETTINGS), []
    result = fed.fit(
        Towards(),
        rounds=3,
        averaging_decay=1.0,
        on_round=lambda record: released.append(fed.get_global_model()),
    )
    last = np.cumsum(released, axis=0)
    assert result.last_model is not None
    np.testing.assert_allclose(result.last_model["w"], last[-1], rtol=1e-5)
    np.testing.assert_allclose(result.vector, np.average(last, axis=0, weights=[1, 2, 3]), rtol=1e-5)
    np.testing.assert_array_equal(result.model["w"], result.vector)
    assert result.history[-1].evaluation == pytest.approx(Towards().evaluate(result.model), rel=1e-6)
    assert fed.fit(Towards(), rounds=1).last_model is None


def test_it_goes_on_from_a_model(open_federation: Open) -> None:
    fed = open_federation(SETTINGS)
    start = {"w": np.array([3.0, 4.0], np.float32)}
    result = fed.fit(Towards(), rounds=1, start=start)
    np.testing.assert_allclose(result.vector, start["w"] + fed.get_global_model(), rtol=1e-6)
    assert result.history[0].round_id == 0
    with pytest.raises(UsageError, match="start: w: it is float64 of shape"):
        fed.fit(Towards(), rounds=1, start={"w": np.zeros(3)})


class Frozen(Towards):
    def initial_model(self) -> dict[str, Any]:
        return {"w": np.zeros(2, np.float32), "names": np.arange(3), "steps": 4, "none": None}

    def train(self, model: dict[str, Any], client: Client, round_id: int) -> Trained[dict[str, Any]]:
        return Trained(delta=(TARGET - model["w"]) / 3)


def test_parts_of_the_start_that_are_not_trained_are_told_if_they_differ(open_federation: Open) -> None:
    fed, start = open_federation(SETTINGS), Frozen().initial_model()
    with pytest.warns(ModelWarning, match=r"start: \('names', 'steps'\) are not trained and differ"):
        result = fed.fit(Frozen(), rounds=1, start={**start, "names": np.arange(3) + 1, "steps": 5})
    with warnings.catch_warnings():
        warnings.simplefilter("error", ModelWarning)
        fed.fit(Frozen(), rounds=1, start=result.model)


class Judged(Towards):
    def evaluate_client(self, model: dict[str, Any], client: Client) -> dict[str, float] | None:
        if client.client_id == self.faults.get("judge"):
            raise RuntimeError("no table")
        return None if client.data == 5 else {"data": client.data, "norm": np.linalg.norm(model["w"])}


def test_clients_evaluate_the_model_of_their_round(open_federation: Open) -> None:
    result = open_federation(SETTINGS).fit(
        Judged({"c3": "raises", "judge": "c4"}), rounds=1, evaluate_clients=True, clients_per_task=2
    )
    (record,) = result.history
    found = record.clients
    assert found["domain0"].metrics["data"] == pytest.approx((11 * 1 + 12 * 2) / 33)
    assert found["domain1"].num_clients == {"data": 1, "norm": 1}
    assert found["domain0"].metrics["norm"] == pytest.approx(np.linalg.norm(result.model["w"]), rel=1e-6)
    assert record.refusals == {"raised": 1, "evaluation_raised": 1}
    assert result.refusals == {"c3": {"raised": 1}, "c4": {"evaluation_raised": 1}}
    assert "no table" in record.first_refusals[1].detail
    assert open_federation(SETTINGS).fit(Judged(), rounds=1).history[0].clients == {}
    with pytest.raises(UsageError, match="Towards has no evaluate_client"):
        open_federation(SETTINGS).fit(Towards(), rounds=1, evaluate_clients=True)


def test_if_no_client_can_evaluate_the_rounds_end_with_the_model(open_federation: Open) -> None:
    class Blind(Towards):
        def evaluate_client(self, model: dict[str, Any], client: Client) -> dict[str, float]:
            raise OSError("no such table")

    result = open_federation(SETTINGS).fit(Blind(), rounds=3, evaluate_clients=True)
    assert result.stopped is Stopped.EVALUATION
    assert result.explanation.startswith("evaluate_client, after round 0: all 6 clients failed; the first: ")
    assert "OSError: no such table" in result.explanation
    assert result.history[0].refusals == {"evaluation_raised": 6}
    assert result.history[0].versions == (1,)
    assert result.vector.any()


def test_a_round_tells_its_progress_and_its_costs(open_federation: Open) -> None:
    told: list[Any] = []
    fed = open_federation(SETTINGS)
    (record,) = fed.fit(Judged(), rounds=1, on_progress=told.append, evaluate_clients=True).history
    assert [one.num_done for one in told] == [0, 1, 2, 3, 4, 5, 6]
    assert {(one.round_id, one.num_due) for one in told} == {(0, 6)}
    assert told[0].seconds_left is None
    assert told[0].slowest_client in {f"c{i}" for i in range(6)}
    assert (told[-1].seconds_left, told[-1].slowest_client) == (0.0, None)
    assert record.clip_norm == 1.0
    assert record.gossip_messages == 0
    assert record.epsilon_left == fed.get_privacy_budget()[0]
    phases = {"training", "submission", "aggregation", "accounting", "evaluation", "client_evaluation"}
    assert record.phases.keys() == phases
    assert 0.0 < sum(record.phases.values()) <= record.seconds


def test_under_adaptive_clipping_the_model_follows_the_clip_norm(open_federation: Open) -> None:
    adaptive = {**SETTINGS["layer2"], "adaptive_clipping": True}
    fed = open_federation({**SETTINGS, "layer2": adaptive})
    result = fed.fit(Towards(), rounds=3)
    norms = [record.clip_norm for record in result.history]
    assert norms[0] == 1.0
    assert len(set(norms)) == 3
    assert fed.get_meta_params()["clip_norm"] not in norms


def test_a_hang_past_the_deadline_costs_whoever_is_late(open_federation: Open) -> None:
    result = open_federation(SETTINGS).fit(Towards({"c1": "hangs"}), rounds=1, deadline_seconds=0.4, seed=3)
    counted = result.refusals
    assert counted["c1"] == {"timed_out": 1}
    assert set().union(*counted.values()) == {"timed_out"}
    assert result.history[0].num_accepted == 6 - len(counted)
    assert result.history[0].seconds >= 0.4


def test_a_round_in_which_every_client_failed_is_an_error_with_the_first_traceback(
    open_federation: Open,
) -> None:
    with pytest.raises(UsageError, match="all 6 clients of round 0 failed") as caught:
        open_federation(SETTINGS).fit(Towards({"all": "raises"}), rounds=2)
    assert "Traceback" in str(caught.value)
    assert "no data for c" in str(caught.value)


def test_a_spent_budget_ends_the_rounds_and_is_told(open_federation: Open) -> None:
    for strict in (False, True):
        fed = open_federation({**SETTINGS, "total_epsilon": 12.0, "strict": strict})
        result = fed.fit(Towards(), rounds=50)
        assert result.stopped is Stopped.BUDGET
        assert "budget" in result.explanation
        assert 0 < len(result.history) < 50
        assert 0 < result.epsilon_spent <= 12.0
        assert fed.fit(Towards(), rounds=1).history == ()


def test_a_round_without_a_release_says_what_it_waits_for(open_federation: Open) -> None:
    fed = open_federation(SETTINGS)
    result = fed.fit(Towards({f"c{i}": "raises" for i in range(1, 6)}), rounds=1)
    assert result.history[0].versions == ()
    assert result.history[0].evaluation == {}
    assert result.explanation == result.history[0].waiting_for
    assert "domain0_basket_0" in result.explanation
    np.testing.assert_array_equal(result.vector, 0)


def test_clients_are_drawn_anew_each_round_and_reproducibly(open_federation: Open) -> None:
    def drawn(seed: int) -> list[Any]:
        fed = open_federation({**SETTINGS, "layer1": {**SETTINGS["layer1"], "min_updates": 1}})
        result = fed.fit(Towards(), rounds=4, clients_per_round=2, seed=seed)
        assert [record.num_sampled for record in result.history] == [2] * 4
        return [record.metrics for record in result.history]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert len({str(metrics) for metrics in drawn(1)}) > 1


def test_a_round_ends_when_enough_have_trained(open_federation: Open) -> None:
    result = open_federation(SETTINGS).fit(
        Towards({"c0": "raises"}), rounds=1, clients_per_round=4, extra_clients=2, seed=0
    )
    (record,) = result.history
    assert (record.num_sampled, record.num_accepted) == (6, 4)
    assert record.num_surplus == 2 - sum(record.refusals.values())


def test_it_ends_without_improvement(open_federation: Open) -> None:
    result = open_federation(SETTINGS).fit(Towards(), rounds=30, stopping=EarlyStopping("distance", "max", 2))
    assert result.stopped is Stopped.NO_IMPROVEMENT
    assert len(result.history) < 30
    assert result.history[-3].round_id == result.best_round


def test_a_metric_that_evaluate_does_not_give_is_told_once(
    open_federation: Open, caplog: pytest.LogCaptureFixture
) -> None:
    result = open_federation(SETTINGS).fit(Towards(), rounds=2, stopping=EarlyStopping("acuracy"))
    assert result.best_model is None
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "stopping: evaluate gave no finite acuracy, it gave: distance"


def test_updates_are_signed_where_this_driver_holds_the_key(open_federation: Open) -> None:
    fed = open_federation(SETTINGS)
    fed.register_client("c0", "domain0", identity_keypair=IdentityKeyPair.generate())
    assert fed.fit(Towards(), rounds=2).refusals == {}
    fed._driver.keypairs["c0"] = IdentityKeyPair.generate()
    with pytest.raises(UsageError, match="c0"):
        fed.fit(Towards(), rounds=1)


def test_gossip_runs_where_it_has_a_share(open_federation: Open) -> None:
    settings = {k: v for k, v in SETTINGS.items() if k not in ("gossip", "gossip_budget_share")}
    fed = open_federation({**settings, "gossip_budget_share": 0.3, "gossip": {"local_dp_epsilon": 1.0}})
    result = fed.fit(Towards(), rounds=2)
    assert [record.versions for record in result.history] == [(1,), (2,)]
    messages = sum(record.gossip_messages for record in result.history)
    assert fed.get_stats()["n_gossip_messages"] == messages > 0


def test_what_cannot_be_fitted_is_a_usage_error(open_federation: Open) -> None:
    fed = open_federation(SETTINGS)
    rubbish: dict[str, list[Any]] = {
        "rounds": [0, -1, 1.5, True, None, "3"],
        "clients_per_round": [0, 7, "2"],
        "extra_clients": [-1, None, 6],
        "deadline_seconds": [0, -1, np.nan, np.inf, "x"],
        "optimizer": [3, "adam", object()],
        "stopping": [3, "distance"],
        "seed": [-1, "x"],
        "on_round": [3],
        "on_progress": ["x"],
        "on_release": [0],
        "clients_per_task": [0, 1.5, None],
        "averaging_decay": [-1, np.nan, "x"],
        "start": [3, {"w": "x"}, {}],
        "evaluate_clients": [1, None],
        "private_evaluation": [3, {"auc": (0, 1)}],
    }
    for name, values in rubbish.items():
        for value in values:
            with pytest.raises(UsageError, match=f"{name}|{name.split('_')[0]}"):
                fed.fit(Towards(), **{"rounds": 1, name: value})
    for nothing in (None, "my_module:Mortality", Towards):
        with pytest.raises(UsageError, match="workload"):
            fed.fit(nothing, rounds=1)  # type: ignore[type-var]
    with pytest.raises(UsageError, match="set vector_dim: 2"):
        open_federation({**SETTINGS, "vector_dim": 3}).fit(Towards(), rounds=1)
    blind = Towards()
    blind.codec = lambda: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(UsageError, match=r"codec\(\) gave a NoneType"):
        fed.fit(blind, rounds=1)
    held = Towards()
    held.file = open(__file__)  # type: ignore[attr-defined]  # noqa: SIM115
    with held.file, pytest.raises(UsageError, match="open files and connections in train"):  # type: ignore[attr-defined]
        fed.fit(held, rounds=1)


@pytest.mark.long
def test_the_example_of_the_documentation_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (Path(__file__).parents[2] / "docs" / "workloads.md").read_text()
    example = page.partition("## Train")[2].partition("```python\n")[2].partition("```")[0]
    assert len(example.splitlines()) <= 25
    found: dict[str, Any] = {}
    exec(compile(example, "docs/workloads.md", "exec"), found)
    result = found["result"]
    assert result.history[-1].versions == (15,)
    assert result.history[-1].evaluation["loss"] < 1.0 < result.history[0].evaluation["loss"]
    assert "weights" in capsys.readouterr().out
