"""Caps hold whatever comes in whatever order."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray.config.gateway import GatewayConfig
from scarcity_ray.gateway.pressure import MOST_BUCKETS, Pressure, Rate, body_deadline
from tests.gateway.sites import Served, Site, job

CONFIG = GatewayConfig(
    open_requests=4, open_requests_per_client=2, requests_per_second=2.0, request_burst=3, bytes_in_flight=100
)


@given(
    st.lists(st.tuples(st.sampled_from(["begin", "end", "hold", "release"]), st.integers(0, 3)), max_size=40)
)
def test_what_is_held_never_passes_a_cap(acts: list[tuple[str, int]]) -> None:
    pressure, now = Pressure(CONFIG), 0.0
    open_of: dict[str, int] = {}
    held: list[tuple[int, Callable[[], None]]] = []
    for act, number in acts:
        now += 0.3
        client = f"c{number}"
        if act == "begin" and pressure.begin(client, now) == 0.0:
            open_of[client] = open_of.get(client, 0) + 1
        elif act == "end" and open_of.get(client):
            pressure.end(client)
            open_of[client] -= 1
        elif act == "hold":
            size = 10 + 20 * number
            if (release := pressure.hold(client, size)) is not None:
                held.append((size, release))
        elif act == "release" and held:
            _, release = held.pop()
            release()
            release()  # once
        assert pressure.open == sum(open_of.values()) <= 4
        assert max(open_of.values(), default=0) <= 2
        assert pressure.num_bytes == sum(size for size, _ in held) <= 100
    for client, count in open_of.items():
        for _ in range(count):
            pressure.end(client)
    for _, release in held:
        release()
    assert (pressure.open, pressure.num_bytes) == (0, 0)


@given(st.lists(st.floats(0.0, 2.0), min_size=1, max_size=60))
def test_a_client_makes_no_more_requests_than_its_rate_and_burst(pauses: list[float]) -> None:
    rate, now, taken = Rate(2.0, 3), 100.0, 0
    for pause in pauses:
        now += pause
        wait = rate.take("a", now)
        if wait == 0.0:
            taken += 1
        else:
            assert rate.take("a", now + wait + 1e-9) == 0.0, "who waits as told may go on"
            taken, now = taken + 1, now + wait + 1e-9
    assert taken <= 3 + 2.0 * (now - 100.0) + 1e-6


def test_one_clients_requests_leave_room_for_others() -> None:
    pressure = Pressure(CONFIG)
    assert [pressure.begin("a", 0.0) for _ in range(3)][:2] == [0.0, 0.0]
    assert pressure.begin("a", 0.0) > 0.0
    assert pressure.begin("b", 0.0) == 0.0
    release = pressure.hold("a", 60)
    assert release is not None, "one of any size"
    assert pressure.hold("a", 10) is None
    assert pressure.hold("b", 10) is not None
    release()
    assert [pressure.hold("a", 10) is None for _ in range(4)] == [False, False, True, True]


def test_memory_of_clients_is_bounded() -> None:
    rate = Rate(1.0, 1)
    for number in range(MOST_BUCKETS + 50):
        rate.take(str(number), float(number) / 1e6)
    assert len(rate._left) == MOST_BUCKETS


def test_a_large_body_has_longer() -> None:
    assert body_deadline(CONFIG, 0) == 30.0
    assert body_deadline(CONFIG, 16 * 1024 * 100) == 130.0


def test_what_nobody_has_signed_is_counted_by_its_address() -> None:
    """Who knows a site's id uses up its address's requests, not the site's; what is signed is the site's."""
    pressure = Pressure(CONFIG)
    for _ in range(3):
        assert pressure.begin("address", 0.0, is_known=False) == 0.0
        pressure.end("address")
    assert pressure.begin("address", 0.0, is_known=False) > 0.0
    for _ in range(3):
        assert pressure.begin("proxy", 0.0, is_known=False) == 0.0
        assert pressure.become("proxy", "site", 0.0) == 0.0
        pressure.end("site")
    assert pressure.begin("proxy", 0.0, is_known=False) == 0.0, "all were given back"
    assert pressure.become("proxy", "site", 0.0) > 0.0, "it is the site that has asked too often"
    assert pressure.become("proxy", "other", 0.0) == 0.0
    pressure.end("other")
    assert (pressure.open, dict(pressure._of)) == (0, {})


@pytest.mark.long
def test_what_is_sent_in_a_sites_name_uses_up_nothing_of_its_rate(tmp_path: Path) -> None:
    """Where a proxy ends TLS, and signatures alone tell who asks: end to end."""
    limits = {"requests_per_second": 1e-3, "request_burst": 4}
    served = Served(tmp_path, job(tmp_path, tls="server", **limits))
    served.start()
    victim, other = served.site("a-1", "a"), served.site("a-2", "a")
    thief = Site("a-1", served.port, victim.trust, authority=victim.authority, address="127.0.0.2")
    thief.federation_id = victim.federation_id
    assert [thief.ask("GET", "/v1/me").status for _ in range(6)] == [401] * 4 + [429] * 2
    thief.address = "127.0.0.3"
    thief.hang_up()
    assert thief.ask("GET", "/v1/me").status == 401, "each address has its own"
    assert [victim.ask("GET", "/v1/me").status for _ in range(5)] == [200] * 4 + [429]
    assert other.ask("GET", "/v1/me").status == 200, "and what a site has signed is not its proxy's"
