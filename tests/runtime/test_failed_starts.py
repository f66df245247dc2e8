"""A federation whose start fails leaves nothing behind, at whatever step it fails."""

from __future__ import annotations

from typing import Any

import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.errors import ActorLost, UsageError
from scarcity_ray.federation.supervisor import Opening
from scarcity_ray.runtime import LocalRuntime, RoleSpec
from scarcity_ray.runtime.rpc import Role


class Stumbling:
    """A local runtime whose n-th step raises: a call of the runtime, of a role, or the making of a role."""

    def __init__(self, fails_at: int, error: BaseException) -> None:
        self.inner = LocalRuntime()
        self.peers = self
        self.compute = self.inner.compute
        self.home = self.driver = self.inner.home
        self.default_basket_actors = 2
        self.gpus = None
        self.is_one_process, self.node_bytes = True, self.inner.node_bytes
        self.fails_at, self.error = fails_at, error
        self.steps: list[str] = []
        self.closed = 0

    @property
    def has_begun(self) -> bool:
        return self.inner.has_begun

    def step(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) == self.fails_at:
            raise self.error

    def start(self, specs: list[RoleSpec], *, card: object = None) -> None:
        self.step("start")
        made = [RoleSpec(s.name, self.maker(s), s.arguments, s.cpus, s.resources, s.spread) for s in specs]
        self.inner.start(made, card=card)

    def maker(self, spec: RoleSpec) -> Any:
        def make(**arguments: Any) -> Any:
            self.step(f"make {spec.name}")
            return spec.factory(**arguments)

        return make

    def handle(self, name: str) -> Any:
        runtime, inner = self, self.inner.peers.handle(name)

        class Handle:
            def call(self, method: str, *arguments: object) -> Any:
                runtime.step(f"{name}.{method}")
                return inner.call(method, *arguments)

        return Handle()

    def is_alive(self, name: str) -> bool:
        self.step(f"is {name} alive")
        return self.inner.is_alive(name)

    def names(self) -> tuple[str, ...]:
        self.step("names")
        return self.inner.names()

    def kill(self, name: str) -> None:
        self.step(f"kill {name}")
        self.inner.kill(name)

    def card(self) -> Any:
        self.step("card")
        return self.inner.card()

    def withdraw(self) -> None:
        self.step("withdraw")
        self.inner.withdraw()

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def stumble(monkeypatch: pytest.MonkeyPatch, open_config: Any):
    """``stumble(n, error)``: start a federation that stumbles at its n-th step; runtime and exception."""

    def start(fails_at: int, error: BaseException) -> tuple[Stumbling, BaseException | None]:
        runtime = Stumbling(fails_at, error)
        monkeypatch.setattr("scarcity_ray.federation.hierarchical.open_runtime", lambda *_: runtime)
        try:
            HierarchicalFederation(open_config(runtime={"baskets_per_actor": None}))
        except BaseException as raised:
            return runtime, raised
        return runtime, None

    return start


@pytest.mark.parametrize(
    "error",
    [KeyError("a bug"), UsageError("misuse"), ActorLost("directory", "it died", False), KeyboardInterrupt()],
)
def test_a_start_that_fails_at_any_step_is_undone(stumble, error) -> None:
    for fails_at in range(1, 100):
        runtime, raised = stumble(fails_at, error)
        if raised is None:
            break
        assert runtime.inner.names() == (), runtime.steps
        assert runtime.inner.card() is None, runtime.steps
        assert runtime.closed == 1, runtime.steps
        made = isinstance(raised, ActorLost) and "failed as it started" in str(raised)
        assert raised is error or made, (raised, runtime.steps)
    steps = runtime.steps
    assert fails_at == len(steps) + 1, "it starts when no step fails"
    for name in ("accountant", "directory", "global", "basket:0", "basket:1"):
        assert f"make {name}" in steps
    assert {"names", "start"} <= set(steps)


def test_what_a_driver_that_died_had_begun_to_open_is_ended(monkeypatch, open_config) -> None:
    place = LocalRuntime()
    monkeypatch.setattr("scarcity_ray.federation.hierarchical.open_runtime", lambda *_: place)
    place.start([RoleSpec("accountant", Role, {})], card=Opening(place.driver))
    with pytest.raises(UsageError, match="is running"):
        HierarchicalFederation(open_config())
    place.kill("accountant")
    place.start([RoleSpec("accountant", Role, {})], card=Opening("another, which died"))
    with HierarchicalFederation(open_config()) as federation:
        federation.register_client("c", "d")
        assert federation.get_stats()["n_clients"] == 1


def test_what_cannot_be_ended_is_said_beside_why_the_start_failed(stumble, monkeypatch) -> None:
    runtime, _ = stumble(0, KeyError())
    last = len(runtime.steps)
    for name in runtime.inner.names():
        runtime.inner.kill(name)
    monkeypatch.setattr(LocalRuntime, "kill", lambda self, name: 1 / 0)
    runtime, raised = stumble(last, KeyError("why"))
    assert raised.args == ("why",)
    assert "could not be ended" in raised.__notes__[0]
    assert runtime.closed == 1


def test_closing_lets_go_of_the_runtime_though_a_role_cannot_be_ended(
    stumble, monkeypatch, open_config
) -> None:
    runtime = Stumbling(0, KeyError())
    monkeypatch.setattr("scarcity_ray.federation.hierarchical.open_runtime", lambda *_: runtime)
    federation = HierarchicalFederation(open_config())
    runtime.fails_at, runtime.error = len(runtime.steps) + 1, ActorLost("directory", "it died", False)
    with pytest.raises(ActorLost):
        federation.close()
    assert runtime.closed == 1
    federation.close()
    assert runtime.closed == 1
