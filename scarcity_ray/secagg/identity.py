"""Long-lived Ed25519 identities, from the client's own package: who is speaking, and nothing else."""

from scarcity_ray_client.identity import PUBLIC_BYTES, SIGNATURE_BYTES, IdentityKeyPair

__all__ = ["PUBLIC_BYTES", "SIGNATURE_BYTES", "IdentityKeyPair"]
