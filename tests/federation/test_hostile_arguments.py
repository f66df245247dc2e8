"""Any public method with any arguments: an answer, or this package's own error; and a round works afterwards.

`test_rubbish` has what each method says of what is no name, number or array. Here arguments are drawn, so
that what nobody thought of meets them too.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederation, IdentityKeyPair, ScarcityError, UsageError
from scarcity_ray.config import HierarchicalFederationConfig, load
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray_client import Policy
from scarcity_ray_client.site_ledger import Extension, Head
from scarcity_ray_client.wire import KeyRequest

CLIENTS = ["c0", "c1", "c2", "c3", "c4"]
PLAIN: list[Any] = [
    None,
    True,
    0,
    -1,
    2**31,
    2**63,
    -(2**63) - 1,
    10**400,
    -0.0,
    1e-320,
    1e308,
    math.nan,
    math.inf,
]
PLAIN += [
    1 + 2j,
    "",
    "c0",
    "d",
    "d_basket_0",
    "n" * 300,
    "\x00",
    "\ud800",
    "../x",
    b"",
    b"x" * 64,
    bytearray(8),
]
NUMPY: list[Any] = [np.int64(3), np.float64(np.nan), np.str_("c0"), np.bool_(True), np.datetime64("2020")]
NUMPY += [
    np.zeros(4),
    np.zeros((1, 4)),
    np.zeros((0, 4)),
    np.zeros((4, 0)),
    np.zeros(4, "O"),
    np.zeros(4, "U1"),
]
NUMPY += [np.array(3.0), np.array("x"), np.zeros((1,) * 30), np.zeros(4, "m8[s]"), np.zeros(4, [("a", "f4")])]
NUMPY += [np.full((1, 4), np.nan), np.broadcast_to(np.float32(0), (1000, 4)), memoryview(b"abcd" * 4)]
MANY: list[Any] = [
    (),
    [],
    {},
    set(),
    range(3),
    range(2**62),
    [None],
    [1],
    [[0.1] * 4],
    [b"x"],
    [2**70],
    ["c0", "c0"],
]
MANY += [
    ("c0",),
    [("c9", "d"), ("c9", "e")],
    [("c0", "e")],
    {"rate": 10**400},
    {1: 2},
    [{"rate": "x"}],
    {"c0": 1},
]
ODD: list[Any] = [object(), threading.Lock(), len, int, lambda: None, iter([1]), IdentityKeyPair.generate()]
ODD += [KeyRequest(b"", b"", b""), Extension(2**70, ("x",)), Extension("a", None), Head(0, "")]  # type: ignore[arg-type]
ODD += [Policy("c0", "person", 1.0, 1e-6, "f")]
ANYTHING = [*PLAIN, *NUMPY, *MANY, *ODD]
LEFT_OUT = {"close", "terminate", "attach", "restore", "map_tasks", "tasks_beside"}
METHODS = {
    name: [p for p in list(inspect.signature(found).parameters.values())[1:]]
    for name, found in vars(HierarchicalFederation).items()
    if not name.startswith("_") and inspect.isfunction(found) and name not in LEFT_OUT
}


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, dict[str, Any]]:
    """A method's name, and arguments for it; some of those that it does not need are left out."""
    name = draw(st.sampled_from(sorted(METHODS)))
    asked = [p for p in METHODS[name] if p.default is p.empty or draw(st.booleans())]
    return name, {p.name: ANYTHING[draw(st.integers(0, len(ANYTHING) - 1))] for p in asked}


@pytest.fixture(scope="module")
def fed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HierarchicalFederation]:
    """Five clients of a domain, in one basket."""
    plain = {
        "vector_dim": 4,
        "meta_parameters": {"rate": (0.0, 1.0)},
        "ledger_path": str(tmp_path_factory.mktemp("hostile") / "ledger.sqlite"),
    }
    config = load(HierarchicalFederationConfig, plain)
    with HierarchicalFederation(config, runtime="local", noise=SeededNoise(7)) as made:
        made.register_clients([(client, "d") for client in CLIENTS])
        yield made


@pytest.mark.filterwarnings("ignore")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(calls(), min_size=20, max_size=20))
def test_any_call_gives_an_answer_or_the_packages_own_error(
    fed: HierarchicalFederation, made: list[tuple[str, dict[str, Any]]]
) -> None:
    for name, arguments in made:
        with suppress(ScarcityError):
            getattr(fed, name)(**arguments)
    fed.register_clients([(client, "d") for client in CLIENTS])
    fed.advance_round()
    assert all(fed.submit_updates(CLIENTS, np.full((len(CLIENTS), 4), 0.1)))


@pytest.mark.parametrize(
    "place", [None, 3, b"x", ["a"], np.zeros(4), np.datetime64("2020"), "\x00", "", "n" * 5_000]
)
def test_what_is_no_place_restores_nothing(place: Any, tmp_path: Path) -> None:
    for given_places in ({"storage_path": place}, {"storage_path": str(tmp_path), "ledger_path": place}):
        with pytest.raises(ScarcityError):
            HierarchicalFederation.restore(**given_places, runtime="local")


@pytest.mark.parametrize("now", [math.inf, -math.inf, math.nan, 10**400, "12:00", None])
def test_a_clock_that_gives_no_time_is_refused_and_forgotten(now: Any, tmp_path: Path) -> None:
    """The directory's time never goes back, for any driver: an infinite one would stay."""
    config = load(HierarchicalFederationConfig, {"ledger_path": str(tmp_path / "ledger.sqlite")})
    times: list[Any] = [1e9]
    with HierarchicalFederation(config, runtime="local", clock=lambda: times[-1]) as fed:
        fed.register_client("a", "d")
        times.append(now)
        with pytest.raises(UsageError, match=r"clock\(\) gives"):
            fed.advance_round()
        place: Any = fed._runtime
        with pytest.raises(UsageError, match="now: "):
            place.peers.handle("directory").call("stats", now).result()
        times.append(1e9 + 1.0)
        assert fed.advance_round() == 1
        (client,) = fed.get_clients()
        assert client.last_active < math.inf
