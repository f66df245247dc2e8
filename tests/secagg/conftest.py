"""A federation of parties in one process, driven message by message."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest

from scarcity_ray.secagg import Coordinator, IdentityKeyPair, Participant, Party, SessionContext

STEPS = ("advertise", "share_keys", "mask", "confirm", "unmask")


@functools.cache
def identity(index: int) -> IdentityKeyPair:
    return IdentityKeyPair.generate()


def party_id(index: int) -> str:
    return f"basket_{index}"


def make_context(num_parties: int = 4, **changes: object) -> SessionContext:
    values: dict[str, object] = {
        "federation_id": "tests",
        "session_id": b"session-" + bytes(8),
        "round_id": 3,
        "attempt": 0,
        "model_hash": hashlib.sha256(b"model").digest(),
        "dimension": 5,
        "ring_bits": 32,
        "threshold": num_parties // 2 + 1,
        "parties": tuple(Party(party_id(i), identity(i).public_bytes) for i in range(num_parties)),
    }
    return SessionContext(**(values | changes))  # type: ignore[arg-type]


@dataclass
class Session:
    """One coordinator and its participants; ``drops`` says at which step a party is silent from."""

    context: SessionContext
    vectors: Mapping[str, np.ndarray]
    drops: Mapping[str, str] = field(default_factory=dict)
    kinds: Mapping[str, type[Participant]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.coordinator = Coordinator(self.context)
        names = {identity(i).public_bytes: i for i in range(len(self.context.parties) + 8)}
        self.participants = {
            p.party_id: self.kinds.get(p.party_id, Participant)(
                self.context, p.party_id, identity(names[p.identity_public])
            )
            for p in self.context.parties
        }

    def alive(self, step: str) -> list[str]:
        """Who still speaks at ``step``."""
        at = STEPS.index(step)
        return [
            p
            for p in self.participants
            if STEPS.index(self.drops.get(p, step)) >= at
            and not (p in self.drops and STEPS.index(self.drops[p]) <= at)
        ]

    def advertise(self) -> None:
        for p in self.alive("advertise"):
            self.coordinator.add_advert(self.participants[p].advertise())

    def share_keys(self) -> None:
        adverts = self.coordinator.adverts()
        for p in self.alive("share_keys"):
            self.coordinator.add_key_shares(self.participants[p].share_keys(adverts))

    def mask(self) -> None:
        self.coordinator.sharers()
        for p in self.alive("mask"):
            inbox = self.coordinator.inbox(p)
            self.coordinator.add_masked(self.participants[p].mask(inbox, self.vectors[p]))

    def confirm(self) -> None:
        survivors = self.coordinator.survivors()
        for p in self.alive("confirm"):
            self.coordinator.add_confirmation(self.participants[p].confirm(survivors))

    def unmask(self) -> None:
        confirmations = self.coordinator.confirmations()
        for p in self.alive("unmask"):
            self.coordinator.add_unmask_shares(self.participants[p].unmask(confirmations))

    def until(self, step: str) -> Session:
        """Runs every step before ``step``, and closes the phases of all of them."""
        for name in STEPS[: STEPS.index(step)]:
            getattr(self, name)()
        self.open(step)
        return self

    def open(self, step: str) -> None:
        opens = {
            "share_keys": "adverts",
            "mask": "sharers",
            "confirm": "survivors",
            "unmask": "confirmations",
        }
        if step in opens:
            getattr(self.coordinator, opens[step])()

    def run(self) -> np.ndarray:
        for name in STEPS:
            getattr(self, name)()
        return self.coordinator.finish()


def random_vectors(context: SessionContext, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.Generator(np.random.PCG64DXSM(seed))
    dtype = np.dtype(f"uint{context.ring_bits}")
    high = 2**context.ring_bits - 1
    return {
        p.party_id: rng.integers(0, high, context.dimension, dtype=dtype, endpoint=True)
        for p in context.parties
    }


@pytest.fixture(scope="session")
def context_of() -> Callable[..., SessionContext]:
    return make_context


@pytest.fixture(scope="session")
def identity_of() -> Callable[[int], IdentityKeyPair]:
    return identity


@pytest.fixture(scope="session")
def session_of() -> Callable[..., Session]:
    """Makes a session with random inputs: ``session_of(n, drops={...}, **context changes)``."""

    def make(
        num_parties: int = 4,
        *,
        drops: Mapping[str, str] | None = None,
        kinds: Mapping[str, type[Participant]] | None = None,
        vectors: Mapping[str, np.ndarray] | None = None,
        **changes: object,
    ) -> Session:
        context = make_context(num_parties, **changes)
        return Session(context, vectors or random_vectors(context), drops or {}, kinds or {})

    return make
