"""Calls to roles that mypy must refuse; nothing here runs.

mypy reads this file with the package (`tool.mypy` in pyproject.toml) and complains of a ``type: ignore`` that
hides no error: so it finds a wrong call that would pass.
"""

from __future__ import annotations

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, basket_actor
from scarcity_ray.federation.driver import Driver
from scarcity_ray.privacy.ledger.answers import BudgetStatus
from scarcity_ray.runtime.rpc import Call, Peers


def right(peers: Peers, driver: Driver) -> tuple[BudgetStatus, BudgetStatus, dict[int, None]]:
    """Each call below differs from one of these in one thing."""
    Call(BasketHost.end_session, "id", ()).send(peers, basket_actor(0))
    driver.operations.run(Directory.disband, "basket", 0.0)
    return (
        Call(Accountant.status, 0.0).send(peers, ACCOUNTANT).result(),
        driver.client.call(ACCOUNTANT, Accountant.status, 0.0),
        driver.client.call_baskets({0: Call(BasketHost.set_read_only, True)}),
    )


def a_method_that_is_not_there(peers: Peers, driver: Driver) -> None:
    Call(Accountant.state, 0.0)  # type: ignore[attr-defined]
    driver.client.call(DIRECTORY, Directory.deregister, "ann", 0.0)  # type: ignore[attr-defined]
    driver.client.call(ACCOUNTANT, "status", 0.0)  # type: ignore[arg-type]


def a_method_of_another_role(peers: Peers, driver: Driver) -> None:
    Call(Accountant.status, 0.0).send(peers, DIRECTORY)  # type: ignore[arg-type]
    Call(Accountant.status, 0.0).send(peers, "accountant")  # type: ignore[arg-type]
    driver.client.call(DIRECTORY, Accountant.status, 0.0)  # type: ignore[misc]
    driver.client.call_baskets(Call(Directory.stats, 0.0))  # type: ignore[arg-type]
    driver.client.call_baskets({0: Call(Directory.faults)})  # type: ignore[arg-type]
    driver.operations.run(Accountant.status, 0.0)  # type: ignore[arg-type]


def a_wrong_argument(peers: Peers, driver: Driver) -> None:
    Call(Accountant.status, "now")  # type: ignore[arg-type]
    Call(BasketHost.end_session, b"id", ())  # type: ignore[arg-type]
    driver.client.call(ACCOUNTANT, Accountant.status, "now")  # type: ignore[arg-type]
    driver.client.call_baskets(Call(BasketHost.set_read_only, "yes"))  # type: ignore[arg-type]


def too_few_or_too_many(peers: Peers, driver: Driver) -> None:
    Call(Accountant.status)  # type: ignore[call-arg]
    driver.client.call(ACCOUNTANT, Accountant.status)  # type: ignore[call-arg]
    driver.client.call(ACCOUNTANT, Accountant.status, 0.0, 1.0)  # type: ignore[call-arg]
    driver.operations.run(Directory.disband, 0.0)  # type: ignore[call-arg]


def another_answer(peers: Peers, driver: Driver) -> int:
    float(driver.client.call(ACCOUNTANT, Accountant.status, 0.0))  # type: ignore[arg-type]
    return Call(Accountant.status, 0.0).send(peers, ACCOUNTANT).result()  # type: ignore[return-value]
