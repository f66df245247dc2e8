"""What the directory knows of a client, a basket and an operation, as plain data.

Lifecycle of a basket::

    FORMING -> ACTIVE     from `min_clients` members on (and back when members fall below)
    ACTIVE  -> STALE      after more than `stale_threshold` seconds without activity (and back on activity)
    any     -> DISBANDED  by `disband_basket` or `split_basket`; terminal

The status is computed from members, time and activity whenever it is read. A basket that never reached
`min_clients` is STALE too when it is idle. A DISBANDED basket is in no list or count, but `get_basket` and
`moves_from` still answer for it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import numpy as np
import numpy.typing as npt

from scarcity_ray.errors import UsageError
from scarcity_ray_client.errors import shown

MAX_NAME_LENGTH = 200
"""Characters that a client's or a domain's id may have."""
FIRST_TRUST = 1.0
"""Trust of a client that nothing is known of."""


class BasketStatus(Enum):
    """Where a basket stands in its lifecycle."""

    FORMING = "forming"
    ACTIVE = "active"
    STALE = "stale"
    DISBANDED = "disbanded"


@dataclass(slots=True)
class ClientInfo:
    """What is known of one client; a snapshot, the caller's to keep.

    Attributes:
        domain_id: The domain it registered in (its basket may be of another one with `allow_cross_domain`).
        features: Its fingerprint, float64 (p,), or None.
        joined_at: Seconds on the manager's clock.
        last_active: Seconds on the manager's clock.
        n_updates: Updates accepted from it since it joined.
        trust_score: In [0, 1], as its basket last reported it (`baskets.reputation`); no aggregate uses it.
    """

    client_id: str
    domain_id: str
    basket_id: str | None
    features: npt.NDArray[np.float64] | None = field(compare=False)
    joined_at: float
    last_active: float
    n_updates: int = 0
    trust_score: float = FIRST_TRUST


@dataclass
class BasketInfo:
    """What is known of one basket; a snapshot, the caller's to keep.

    Attributes:
        basket_id: ``<domain>_basket_<k>``.
        clients: Ids of its members.
        created_at: Seconds on the manager's clock.
        last_activity: Seconds on the manager's clock.
    """

    basket_id: str
    domain_id: str
    status: BasketStatus
    clients: set[str]
    created_at: float
    last_activity: float


@dataclass(frozen=True)
class Move:
    """One client's way from a basket that closed to another."""

    client_id: str
    from_basket: str
    to_basket: str


@dataclass(frozen=True, slots=True)
class Departure:
    """What is remembered of a client that unregistered: its last basket, and how far it was trusted."""

    basket_id: str
    trust_score: float


@dataclass(frozen=True, order=True, slots=True)
class OrderNumber:
    """The place of an operation in the order of all operations.

    Attributes:
        life: Of the directory; a restarted directory begins a later one.
        count: Operations begun in this life.
    """

    life: int = 0
    count: int = 0


def check_name(kind: str, value: object) -> str:
    """Return `value` as a plain str if it can be an id; `kind` is what it names, for the error.

    Raises:
        UsageError: If it is anything but a printable str of 1 to `MAX_NAME_LENGTH` characters.

    >>> check_name("client id", "hospital_1")
    'hospital_1'
    """
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME_LENGTH or not value.isprintable():
        raise UsageError(
            f"{kind} must be a printable str of 1 to {MAX_NAME_LENGTH} characters, got {shown(value)}"
        )
    return str(value)
