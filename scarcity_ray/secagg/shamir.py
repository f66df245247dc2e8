"""t-of-n Shamir shares of 32-byte secrets, for many holders and many secrets at once.

A secret is cut into sixteen 16-bit limbs, each shared by its own polynomial over GF(65537) (Shamir 1979,
applied limb by limb). The field is small enough that splitting and rebuilding are float64 matrix products
that are exact while t * 65536**2 < 2**53, which holds for every t that a session admits. Secrecy is
perfect: fewer than t shares of a limb are uniform whatever the limb is, because the other t-1
coefficients are uniform in the field.

Shamir shares carry no integrity. Who deals commits to every share, and to the secret
(`scarcity_ray.secagg.messages.KeyShares`), so a wrong one is found and its author named.

Own code because no maintained library fits: ``shamirs`` works on one Python integer at a time (600 ms to
combine at 100 holders) and serves as the tests' oracle; ``pycryptodome`` shares 16 bytes over GF(2**128)
and no more; ``cryptography`` has none.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from scarcity_ray.secagg.key_agreement import Entropy

PRIME = 65537
SECRET_BYTES = 32
SHARE_BYTES = 34
_LIMBS = SECRET_BYTES // 2

Field = npt.NDArray[np.int64]


def split(
    secrets: Sequence[bytes | bytearray], threshold: int, points: Sequence[int], entropy: Entropy
) -> list[list[bytes]]:
    """Shares each secret among the holders at ``points``.

    Args:
        secrets: m secrets of 32 bytes.
        points: Distinct field points in 1..65536, one a holder; at least ``threshold`` of them.

    Returns:
        For each secret, its 34-byte share for each point, in the order of ``points``.

    Guarantees:
        any_threshold_shares_rebuild_the_secret
        fewer_shares_are_uniform_whatever_the_secret
    """
    limbs = np.frombuffer(b"".join(bytes(s) for s in secrets), dtype="<u2").astype(np.float64)
    coefficients = np.vstack([limbs, _uniform((threshold - 1) * limbs.size, entropy).reshape(-1, limbs.size)])
    values = _mod(_powers(points, threshold).astype(np.float64) @ coefficients)
    rows = _to_bytes(values.reshape(len(points), len(secrets), _LIMBS).swapaxes(0, 1)).tobytes()
    shares = [rows[at : at + SHARE_BYTES] for at in range(0, len(rows), SHARE_BYTES)]
    return [shares[at : at + len(points)] for at in range(0, len(shares), len(points))]


def rebuild(points: Sequence[int], shares: Sequence[Sequence[bytes]]) -> list[bytes | None]:
    """Rebuilds secrets from shares at the same points.

    Args:
        points: The holders' points: exactly as many as the threshold, or more.
        shares: For each secret, its shares in the order of ``points``; each passes `is_share`.

    Returns:
        Each secret (32 bytes), or None where the shares give limbs that no secret has. Wrong shares
        may also give a wrong secret: compare with a commitment.

    Guarantees:
        any_threshold_shares_rebuild_the_secret
    """
    flat = np.frombuffer(b"".join(b"".join(row) for row in shares), dtype=np.uint8)
    values = _from_bytes(flat.reshape(len(shares), len(points), SHARE_BYTES)).astype(np.float64)
    weights = lagrange_at_zero(points).astype(np.float64)
    limbs = _mod(np.einsum("p,spl->sl", weights, values))
    return [None if np.any(row == PRIME - 1) else row.astype("<u2").tobytes() for row in limbs]


def is_share(share: bytes) -> bool:
    """Whether ``share`` (34 bytes) is the one encoding of sixteen field elements."""
    if len(share) != SHARE_BYTES:
        return False
    if share[SECRET_BYTES:] == b"\0\0":
        return True
    raw = np.frombuffer(share, dtype=np.uint8)
    low = raw[:SECRET_BYTES].view("<u2")
    return not np.any(low[np.unpackbits(raw[SECRET_BYTES:], bitorder="little") == 1])


def lagrange_at_zero(points: Sequence[int]) -> Field:
    """The weights w_i = prod_{j != i} x_j / (x_j - x_i) mod 65537 (int64, one a point)."""
    x = np.asarray(points, dtype=np.int64)
    differences = x[:, None] - x[None, :]
    numerators = np.repeat(x[:, None], x.size, axis=1)
    np.fill_diagonal(differences, 1)
    np.fill_diagonal(numerators, 1)
    return _product(numerators) * _inverse(_product(differences)) % PRIME


def _product(factors: Field) -> Field:
    """The product mod p over the first axis, by halves."""
    values = factors % PRIME
    while len(values) > 1:
        half = len(values) // 2
        values = np.concatenate([values[:half] * values[half : 2 * half] % PRIME, values[2 * half :]])
    return np.asarray(values[0], dtype=np.int64)


def _inverse(values: Field) -> Field:
    """Multiplicative inverses by Fermat: a**(p-2), and p-2 = 2**16 - 1."""
    result = np.ones_like(values)
    for _ in range(16):
        result = result * result % PRIME * values % PRIME
    return result


def _powers(points: Sequence[int], count: int) -> Field:
    """The Vandermonde matrix x_i**j mod p, int64 (len(points), count); each step doubles its columns."""
    x = np.asarray(points, dtype=np.int64)
    matrix = np.ones((x.size, count), dtype=np.int64)
    known = 1
    while known < count:
        new = min(known, count - known)
        step = matrix[:, known - 1, None] * x[:, None] % PRIME
        matrix[:, known : known + new] = matrix[:, :new] * step % PRIME
        known += new
    return matrix


def _uniform(count: int, entropy: Entropy) -> npt.NDArray[np.float64]:
    """Uniform field elements: 32-bit words mod p, less the one word (2**32 - 1) that would bias 0."""
    kept = np.empty(0, dtype=np.uint32)
    while kept.size < count:
        words = np.frombuffer(entropy(4 * (count - kept.size)), dtype="<u4")
        kept = np.concatenate([kept, words[words != np.uint32(0xFFFFFFFF)]])
    return (kept % np.uint32(PRIME)).astype(np.float64)


def _mod(values: npt.NDArray[np.float64]) -> Field:
    return values.astype(np.int64) % PRIME


def _to_bytes(values: Field) -> npt.NDArray[np.uint8]:
    """Field elements (..., 16) to bytes (..., 34): the low 16 bits of each, then a flag bit for 65536."""
    low = np.ascontiguousarray(values & 0xFFFF).astype("<u2").view(np.uint8)
    flags = np.packbits(values == PRIME - 1, axis=-1, bitorder="little")
    return np.concatenate([low, flags], axis=-1)


def _from_bytes(raw: npt.NDArray[np.uint8]) -> Field:
    low = np.ascontiguousarray(raw[..., :SECRET_BYTES]).view("<u2").astype(np.int64)
    flags = np.unpackbits(raw[..., SECRET_BYTES:], axis=-1, bitorder="little").astype(np.int64)
    return low + (flags << 16)
