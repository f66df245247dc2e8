"""A round that sites outside the cluster train in: what they are told, and what is heard of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.updates import SigningScope
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.wire import RoundState


@dataclass(frozen=True)
class Site:
    """A site that has enrolled, as the federation registers it.

    Attributes:
        public_key: Ed25519, 32 bytes.
        num_examples: That it trains on; persons (records) where these are the unit. None: it does not say.
        policy: Its ceiling.
    """

    client_id: str
    domain_id: str
    public_key: bytes
    features: tuple[float, ...] | None = None
    num_examples: int | None = None
    policy: SignedPolicy | None = None


@dataclass(frozen=True)
class Measured:
    """What a client measured, of its training or of the model that it was handed."""

    client_id: str
    metrics: Mapping[str, float]
    num_examples: int


@dataclass(frozen=True)
class OpenRound:
    """The round as the server has published it.

    Attributes:
        number: Rises with each publication.
        closes_at: Unix seconds at the server; None: it waits for all.
        model_version: Of the last release that is in the model; 0: none.
        model_sha256: Hexadecimal, of the model's bytes; empty before there is one.
    """

    state: RoundState
    reason: str
    round_id: int
    scope: SigningScope
    clip_norm: float
    closes_at: float | None = None
    model_version: int = 0
    model_sha256: str = ""
    number: int = 0


@dataclass(frozen=True)
class Heard:
    """What the server's rounds need to know of the gateways' work.

    Attributes:
        accepted: Clients of which an update for the round is counted.
        refused: Clients with none, and the reason of the last refusal.
        refusals: Uploads that were refused, by client and reason.
        last_seen: Unix seconds by client.
        trained: Of accepted updates.
        evaluated: Of the model that the round began with.
        is_paused: Whether an operator has paused the rounds.
        is_published: Whether the register knows a round: one that was started again knows none.
        began: When it was started, unix seconds: until then nobody could be heard of.
    """

    accepted: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    refusals: Sequence[tuple[str, str]] = ()
    last_seen: Mapping[str, float] = field(default_factory=dict)
    trained: Sequence[Measured] = ()
    evaluated: Sequence[Measured] = ()
    is_paused: bool = False
    is_published: bool = True
    began: float = 0.0


class FrontDoor(Protocol):
    """What a served federation's rounds see of the gateways."""

    def sites(self) -> Sequence[Site]:
        """All sites that are enrolled and not revoked."""

    def revoked(self) -> Sequence[str]:
        """Clients that were revoked, by id."""

    def publish(self, opened: OpenRound, model: NDArray[np.float32] | None) -> None:
        """Tell sites of a round; the model stays if None is given."""

    def heard(self, round_id: int) -> Heard:
        """What came of a round so far."""

    def keep_only(self, round_id: int, accepted: Sequence[str]) -> None:
        """Have sites send again whose updates of a round are in no basket any more."""

    def wait(self, seconds: float) -> None:
        """Let sites send for so long."""
