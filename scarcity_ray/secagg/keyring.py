"""The secrets of one party in one attempt, and when each of them is wiped.

::

    what                              made in     wiped after
    mask key, cipher key (X25519)     advertise   share_keys: shared out, and agreed with all
    self-mask seed                    advertise   mask
    secrets agreed with neighbours    share_keys  mask
    others' shares that it holds      mask        unmask

and all of it when the participant is closed. Wiping overwrites what Python can overwrite (seed, scalar and
held shares are bytearrays) and drops the rest; OpenSSL clears the memory of a key object that is dropped.
Copies that the interpreter made on the way cannot be wiped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

from scarcity_ray.errors import UsageError
from scarcity_ray.secagg.key_agreement import (
    KEY_BYTES,
    Agreements,
    Entropy,
    private_key_from,
    public_key_of,
)
from scarcity_ray.secagg.messages import Advert

_NO_KEY = private_key_from(bytes(KEY_BYTES))


class Keyring:
    """Fresh keys and a fresh seed, and what is derived from them.

    Attributes:
        seed: Of its self mask (32 bytes).
        scalar: Of its mask key, for sharing it out (32 bytes).
        cipher_public: Public half of the key that protects shares, 32 bytes.
        mask_public: Public half of the key that makes pair masks, 32 bytes.
        share_secrets: By neighbour, the pseudorandom key of the shares between them, 32 bytes.
        mask_secrets: By neighbour, the pseudorandom key of their mask keys' X25519 secret, 32 bytes.
        held: By dealer, the seed share and key share that this party holds (68 bytes).
    """

    __slots__ = (
        "_agreements",
        "_cipher_private",
        "_mask_private",
        "cipher_public",
        "held",
        "mask_public",
        "mask_secrets",
        "scalar",
        "seed",
        "share_secrets",
    )

    def __init__(self, entropy: Entropy, agreements: Agreements | None = None) -> None:
        self.seed = bytearray(entropy(KEY_BYTES))
        self.scalar = bytearray(entropy(KEY_BYTES))
        self._mask_private = private_key_from(bytes(self.scalar))
        self._cipher_private = private_key_from(entropy(KEY_BYTES))
        self.mask_public = public_key_of(self._mask_private)
        self.cipher_public = public_key_of(self._cipher_private)
        self._agreements = agreements or Agreements()
        self._agreements.made(self.mask_public)
        self._agreements.made(self.cipher_public)
        self.share_secrets: dict[str, bytes] = {}
        self.mask_secrets: dict[str, bytes] = {}
        self.held: dict[str, bytearray] = {}

    def agree_with(self, neighbours: Iterable[Advert]) -> None:
        """Agrees on both secrets with each neighbour.

        Raises:
            ProtocolViolation: if a neighbour's key is of low order; nothing is kept then.
        """
        adverts, agreed = list(neighbours), self._agreements
        cipher, ours = self._cipher_private, self.cipher_public
        share_secrets = {a.party_id: agreed.for_shares(cipher, ours, a.cipher_public) for a in adverts}
        mask, ours = self._mask_private, self.mask_public
        self.mask_secrets = {a.party_id: agreed.for_masks(mask, ours, a.mask_public) for a in adverts}
        self.share_secrets = share_secrets

    def wipe_private_keys(self) -> None:
        """After the secrets are agreed and the mask key is shared out."""
        self.scalar[:] = bytes(len(self.scalar))
        self._mask_private = self._cipher_private = _NO_KEY

    def wipe_mask_secrets(self) -> None:
        """After the input is masked and the inbox opened."""
        self.wipe_private_keys()
        self.seed[:] = bytes(len(self.seed))
        self.share_secrets, self.mask_secrets = {}, {}
        self._agreements.wipe()

    def wipe(self) -> None:
        """Everything."""
        self.wipe_mask_secrets()
        for shares in self.held.values():
            shares[:] = bytes(len(shares))
        self.held = {}

    def __repr__(self) -> str:
        return "Keyring(...)"

    def __reduce__(self) -> NoReturn:
        raise UsageError("a keyring is not pickled")
