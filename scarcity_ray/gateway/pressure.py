"""What a gateway takes at once: requests, bytes, and requests a second of each client.

Nothing waits here: what does not fit is told when to try again.

Guarantees:
    what_is_held_never_passes_a_cap
    everything_given_back_is_free_again
    a_client_makes_no_more_requests_than_its_rate_and_burst
    one_clients_requests_leave_room_for_others: And its bodies.
    memory_of_clients_is_bounded
    what_nobody_has_signed_is_counted_by_its_address
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from scarcity_ray.config.gateway import GatewayConfig

MOST_BUCKETS = 20_000
"""Clients whose rate is remembered; who was silent longest is forgotten, and begins with a full burst."""
CLIENT_SHARE = 0.25
"""Of all bytes, what several bodies of one client may hold; one that is its only one may be of any size."""
RETRY_SECONDS = 1.0
"""After which what was full may be tried again."""


class Rate:
    """A token bucket for each client.

    Args:
        per_second: Requests of one client, on average.
        burst: Requests that it may make at once.
    """

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second, self._burst = per_second, burst
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, client: str, now: float) -> float:
        """Count a request; 0 if it may be made, else the seconds until one may."""
        left, then = self._left.pop(client, (float(self._burst), now))
        left = min(float(self._burst), left + max(0.0, now - then) * self._per_second)
        allowed = left >= 1.0
        self._left[client] = (left - 1.0 if allowed else left, max(now, then))
        while len(self._left) > MOST_BUCKETS:
            self._left.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / self._per_second

    def give_back(self, client: str) -> None:
        """Forget one request of a client."""
        left, then = self._left.get(client, (0.0, 0.0))
        if client in self._left:
            self._left[client] = min(float(self._burst), left + 1.0), then


class Pressure:
    """One gateway's open requests and the bytes that their bodies hold."""

    def __init__(self, config: GatewayConfig) -> None:
        self._config = config
        self._rate = Rate(config.requests_per_second, config.request_burst)
        self._of: Counter[str] = Counter()
        self._held: Counter[str] = Counter()
        self.open = 0
        self.num_bytes = 0

    def begin(self, client: str, now: float, *, is_known: bool = True) -> float:
        """Begin a request of a client, or of an address before it is known who asks.

        Args:
            is_known: Whether `client` is who asks; else `become` follows once that is known. An address,
                which may be a proxy's, is then held to its rate alone.

        Returns:
            0 if it has begun, to be ended by `end`; else after how many seconds to try again.
        """
        most = self._config.open_requests_per_client if is_known else self._config.open_requests
        if self.open >= self._config.open_requests or self._of[client] >= most:
            return RETRY_SECONDS
        if wait := self._rate.take(client, now):
            return wait
        self.open += 1
        self._of[client] += 1
        return 0.0

    def become(self, address: str, client: str, now: float) -> float:
        """Count a request that an address has begun as its client's, who has signed it.

        So nobody uses up what another may ask, and an address uses up its own by what nobody has signed.

        Returns:
            0 if it goes on, to be ended as the client's; else, still the address's, when to try again.
        """
        if self._of[client] >= self._config.open_requests_per_client:
            return RETRY_SECONDS
        if wait := self._rate.take(client, now):
            return wait
        self._rate.give_back(address)
        self.end(address)
        self.open += 1
        self._of[client] += 1
        return 0.0

    def end(self, client: str) -> None:
        """A request is answered."""
        self.open -= 1
        self._of[client] -= 1
        if not self._of[client]:
            del self._of[client]

    def hold(self, client: str, num_bytes: int) -> Callable[[], None] | None:
        """Reserve memory for a body; gives it back when called, once. None: there is no room now."""
        most, held = self._config.bytes_in_flight, self._held[client]
        if self.num_bytes + num_bytes > most or (held and held + num_bytes > most * CLIENT_SHARE):
            return None
        self.num_bytes += num_bytes
        self._held[client] += num_bytes
        is_held = True

        def release() -> None:
            nonlocal is_held
            if is_held:
                is_held = False
                self.num_bytes -= num_bytes
                self._held[client] -= num_bytes
                if not self._held[client]:
                    del self._held[client]

        return release


def body_deadline(config: GatewayConfig, num_bytes: int) -> float:
    """Seconds in which a body of this size must have come."""
    return config.body_seconds + num_bytes / config.least_bytes_per_second
