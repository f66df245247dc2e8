"""`fit` with workloads that behave and that do not; and a round's training by itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, UsageError
from scarcity_ray.federation.evaluation import EarlyStopping
from scarcity_ray.federation.fitting import Answer, Stopped, TrainingRound
from scarcity_ray.runtime.base import TaskEnd
from scarcity_ray_client import Cause, Client, Refusal, Trained, Workload

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


def test_a_hang_past_the_deadline_costs_whoever_is_late(open_federation: Open) -> None:
    result = open_federation(SETTINGS).fit(Towards({"c1": "hangs"}), rounds=1, deadline_seconds=0.4, seed=3)
    counted = result.refusals
    assert counted["c1"] == {"timed_out": 1}
    assert set().union(*counted.values()) == {"timed_out"}
    assert result.history[0].num_accepted == 6 - len(counted)
    assert result.history[0].seconds >= 0.4


def test_a_round_in_which_every_client_raised_is_an_error_with_the_first_traceback(
    open_federation: Open,
) -> None:
    with pytest.raises(UsageError, match="all 6 clients of round 0 raised") as caught:
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
    assert fed.get_stats()["n_gossip_messages"] > 0


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
    held = Towards()
    held.file = open(__file__)  # type: ignore[attr-defined]  # noqa: SIM115
    with held.file, pytest.raises(UsageError, match="open files and connections in train"):  # type: ignore[attr-defined]
        fed.fit(held, rounds=1)


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


# A round's training, without a runtime.


def clients(count: int) -> list[Client]:
    return [Client(f"c{i}", "d") for i in range(count)]


def answered(training: TrainingRound, client: Client) -> None:
    answer = Answer(client.client_id, training.round_id, 1, {}, b"")
    training.note(TaskEnd(training.key(client), answer, "ref"), is_late=False)


def test_clients_in_flight_are_bounded() -> None:
    training = TrainingRound(0, clients(10), 10, most_in_flight=4)
    begun: list[Client] = training.next()
    assert len(begun) == 4
    assert training.next() == []
    answered(training, begun[0])
    assert training.next() == [], "an update that is not submitted takes its place"
    assert training.take() == []
    answered(training, begun[1])
    assert len(training.take()) == 2
    assert len(training.next()) == 2
    assert not training.is_over


def test_whoever_has_not_answered_is_counted_once() -> None:
    training = TrainingRound(7, clients(5), 5, most_in_flight=3)
    first, second, third = training.next()
    answered(training, first)
    training.note(TaskEnd(training.key(second), cause=Cause.LOST, detail="killed"), is_late=False)
    assert training.close(lambda late: ["no node"] * len(late)) == [training.key(third)]
    assert training.is_over
    assert [(r.client_id, r.cause) for r in training.refusals] == [
        ("c1", Cause.LOST),
        ("c2", Cause.TIMED_OUT),
        ("c3", Cause.TIMED_OUT),
        ("c4", Cause.TIMED_OUT),
    ]
    assert (
        str(training.refusals[1])
        == "client 'c2', round 7: timed_out: it had not ended at the deadline; no node"
    )
    assert [answer.client_id for answer, _ in training.take()] == ["c0"]
    assert training.all_raised() is None


def test_nobody_is_late_before_the_deadline() -> None:
    training = TrainingRound(0, clients(5), 2, most_in_flight=3)
    first, second, third = training.next()
    answered(training, first)
    answered(training, second)
    assert training.is_over
    assert training.close(None) == [training.key(third)]
    assert training.refusals == []
    assert training.num_surplus == 3


def test_all_raised_means_all_that_were_drawn() -> None:
    training = TrainingRound(0, clients(2), 2, most_in_flight=8)
    one, two = training.next()
    training.note(TaskEnd(training.key(one), Refusal("c0", 0, Cause.RAISED, "x")), is_late=False)
    assert training.all_raised() is None
    training.note(TaskEnd(training.key(two), cause=Cause.RAISED, detail="y"), is_late=False)
    first = training.all_raised()
    assert first is not None
    assert first.detail == "x"
