"""What a session of secure aggregation is about: what its parties are told, and must agree on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.actors.signed_facts import SignedFacts
from scarcity_ray.plan import ReleasePlan
from scarcity_ray.secagg import SessionContext


@dataclass(frozen=True)
class SessionTerms:
    """What every party of a session is told before it takes part.

    Attributes:
        context: Parties, ring, threshold and the hash of what they agree on.
        release: Weights and scale.
        facts: Each party's public facts as it has signed them; the release's numbers follow from these.
        masked: Whether inputs are masked; if not, they are added up as they are.
    """

    context: SessionContext
    release: ReleasePlan
    facts: Mapping[str, SignedFacts]
    masked: bool

    @property
    def session_id(self) -> str:
        """The session's id in hexadecimal."""
        return self.context.session_id.hex()

    @property
    def charge_id(self) -> str:
        """The name of the charge of this one attempt: whatever differs between two is in the digest."""
        return f"layer2/{self.session_id}/{self.context.digest().hex()}"


def agreement_hash(latest: NDArray[np.float32], release: ReleasePlan) -> bytes:
    """What all parties of a session must agree on before they mask: the last model, and every number.

    SHA-256; a party refuses a session whose hash is not what it makes of its own last release, and parties
    whose hashes differ derive different masks, so that nothing unmasks.

    Args:
        latest: The last release, float32, shape (d,); empty before the first.
        release: The session's numbers, as the party was told them.
    """
    digest = hashlib.sha256(latest.tobytes())
    for name, value in sorted(asdict(release).items()):
        digest.update(repr((name, sorted(value.items()) if isinstance(value, dict) else value)).encode())
    return digest.digest()


__all__ = ["SessionTerms", "agreement_hash"]
