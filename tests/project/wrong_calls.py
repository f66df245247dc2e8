"""Calls to roles that mypy must refuse; nothing here runs.

mypy reads this file with the package (`tool.mypy` in pyproject.toml) and complains of a ``type: ignore`` that
hides no error: so it finds a wrong call that would pass.
"""

from __future__ import annotations

from scarcity_ray.actors.accountant import Accountant
from scarcity_ray.actors.basket import BasketHost
from scarcity_ray.actors.directory import Directory
from scarcity_ray.actors.names import ACCOUNTANT, DIRECTORY, basket_actor
from scarcity_ray.federation.session import DriverSession
from scarcity_ray.privacy.ledger.answers import BudgetStatus
from scarcity_ray.runtime.rpc import Call, Peers


def right(peers: Peers, driver: DriverSession) -> tuple[BudgetStatus, BudgetStatus, dict[int, None]]:
    """Each call below differs from one of these in one thing."""
    Call(BasketHost.end_session, "id", ()).send(peers, basket_actor(0))
    driver.operate(lambda now: Call(Directory.disband, "basket", now))
    return (
        Call(Accountant.status, 0.0).send(peers, ACCOUNTANT).result(),
        driver.ask(ACCOUNTANT, Accountant.status, 0.0),
        driver.call_baskets({0: Call(BasketHost.set_read_only, True)}),
    )


def a_method_that_is_not_there(peers: Peers, driver: DriverSession) -> None:
    Call(Accountant.state, 0.0)  # type: ignore[attr-defined]
    driver.call(DIRECTORY, Directory.deregister, "ann", 0.0)  # type: ignore[attr-defined]
    driver.call(ACCOUNTANT, "status", 0.0)  # type: ignore[arg-type]


def asks_the_accountant(now: float) -> Call[Accountant, BudgetStatus]:
    return Call(Accountant.status, now)


def a_method_of_another_role(peers: Peers, driver: DriverSession) -> None:
    Call(Accountant.status, 0.0).send(peers, DIRECTORY)  # type: ignore[arg-type]
    Call(Accountant.status, 0.0).send(peers, "accountant")  # type: ignore[arg-type]
    driver.ask(DIRECTORY, Accountant.status, 0.0)  # type: ignore[misc]
    driver.tell_baskets(Directory.stats, 0.0)  # type: ignore[arg-type]
    driver.call_baskets({0: Call(Directory.faults)})  # type: ignore[arg-type]
    driver.operate(asks_the_accountant)  # type: ignore[arg-type]


def a_wrong_argument(peers: Peers, driver: DriverSession) -> None:
    Call(Accountant.status, "now")  # type: ignore[arg-type]
    Call(BasketHost.end_session, b"id", ())  # type: ignore[arg-type]
    driver.ask(ACCOUNTANT, Accountant.status, "now")  # type: ignore[arg-type]
    driver.tell_baskets(BasketHost.set_read_only, "yes")  # type: ignore[arg-type]


def too_few_or_too_many(peers: Peers, driver: DriverSession) -> None:
    Call(Accountant.status)  # type: ignore[call-arg]
    driver.ask(ACCOUNTANT, Accountant.status)  # type: ignore[call-arg]
    driver.ask(ACCOUNTANT, Accountant.status, 0.0, 1.0)  # type: ignore[call-arg]
    driver.operate(lambda now: Call(Directory.disband, now))  # type: ignore[call-arg]


def another_answer(peers: Peers, driver: DriverSession) -> int:
    float(driver.ask(ACCOUNTANT, Accountant.status, 0.0))  # type: ignore[arg-type]
    return Call(Accountant.status, 0.0).send(peers, ACCOUNTANT).result()  # type: ignore[return-value]
