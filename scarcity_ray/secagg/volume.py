"""How many bytes a session moves, counted from its messages before there is one."""

from __future__ import annotations

from dataclasses import dataclass

from scarcity_ray.secagg.identity import SIGNATURE_BYTES
from scarcity_ray.secagg.key_agreement import KEY_BYTES
from scarcity_ray.secagg.messages import SEALED_BYTES
from scarcity_ray.secagg.shamir import SHARE_BYTES
from scarcity_ray.secagg.transcript import DIGEST_BYTES


@dataclass(frozen=True, slots=True)
class SessionVolume:
    """Bytes of content of one party's messages in a session in which nobody drops out.

    Attributes:
        sent: From the party: advert, key shares, masked input, confirmation, unmask shares.
        received: By the party: all adverts, its inbox, the set of survivors, all confirmations.
    """

    sent: int
    received: int


def session_volume(
    num_parties: int, *, degree: int | None, dimension: int, ring_bits: int, id_bytes: int
) -> SessionVolume:
    """Count one party's bytes; what carries the messages adds its own headers.

    Guarantees:
        * `volume_is_that_of_the_messages_of_a_session`

    Args:
        num_parties: Parties in the session.
        degree: Neighbours of each party; None: all others.
        dimension: Words in each input.
        ring_bits: 32 or 64, the bits of a word.
        id_bytes: Bytes of a party's id.
    """
    members = num_parties if degree is None else degree + 1
    head = id_bytes + DIGEST_BYTES
    signed = head + SIGNATURE_BYTES
    advert = signed + 2 * KEY_BYTES + DIGEST_BYTES
    shared = id_bytes + SEALED_BYTES + 2 * DIGEST_BYTES
    key_shares = signed + DIGEST_BYTES + members * shared
    masked = signed + DIGEST_BYTES + dimension * ring_bits // 8
    confirmation = signed + DIGEST_BYTES
    unmask_shares = signed + DIGEST_BYTES + members * (id_bytes + SHARE_BYTES)
    inbox = head + num_parties * id_bytes + members * shared
    return SessionVolume(
        sent=advert + key_shares + masked + confirmation + unmask_shares,
        received=num_parties * (advert + id_bytes + confirmation) + inbox,
    )
