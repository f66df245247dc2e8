"""Updates on their way from a driver to the baskets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.buffer import Rejection, read_row
from scarcity_ray.buffer.signing import update_message
from scarcity_ray.secagg import IdentityKeyPair


@dataclass(frozen=True, eq=False)
class Submission:
    """One update as it reaches its basket.

    Attributes:
        client_id: Who sends it.
        update: What was sent: an array of numbers, or why what was sent is none.
        round_id: The round that it was made for; None is the current one; anything but an integer is refused.
        signature: Ed25519 signature of `buffer.signing.update_message`, if the client registered a key.
        meta: The client's encoded report of meta-parameters, or None.
    """

    client_id: str
    update: NDArray[Any] | Rejection
    round_id: object = None
    signature: bytes | None = None
    meta: NDArray[np.float64] | None = None


@dataclass(frozen=True, eq=False)
class SubmissionBatch:
    """Updates of many clients; stacked into one array they travel fastest.

    Attributes:
        client_ids: Who sends them.
        rows: (n, d) array, or one entry an update as in `Submission`.
        round_id: As in `Submission`, the same for all.
        signatures: One an update, or None.
        meta: (n, k) encoded reports, or None.
    """

    client_ids: tuple[str, ...]
    rows: NDArray[Any] | tuple[NDArray[Any] | Rejection, ...]
    round_id: object = None
    signatures: tuple[bytes | None, ...] | None = None
    meta: NDArray[np.float64] | None = None

    def take(self, indices: Sequence[int]) -> SubmissionBatch:
        """The updates at `indices`, in that order."""
        return SubmissionBatch(
            tuple(self.client_ids[i] for i in indices),
            self.rows[list(indices)]
            if isinstance(self.rows, np.ndarray)
            else tuple(self.rows[i] for i in indices),
            self.round_id,
            None if self.signatures is None else tuple(self.signatures[i] for i in indices),
            None if self.meta is None else self.meta[list(indices)],
        )

    def __getitem__(self, index: int) -> Submission:
        return Submission(
            self.client_ids[index],
            self.rows[index],
            self.round_id,
            None if self.signatures is None else self.signatures[index],
            None if self.meta is None else self.meta[index],
        )

    def __len__(self) -> int:
        return len(self.client_ids)


def is_signed(
    submission: Submission, public_key: bytes | None, round_id: int, federation_id: str, dimension: int
) -> bool:
    """Whether an update bears its client's signature, where the client registered a key.

    What cannot be an update needs none: it is refused for what it is.

    Args:
        submission: The update.
        public_key: The client's, or None.
        round_id: The round that it is taken for.
        federation_id: The federation.
        dimension: Length of an update.
    """
    if public_key is None or isinstance(submission.update, Rejection):
        return True
    if not isinstance(submission.round_id, int | np.integer | None):
        return True
    row = read_row(submission.update, dimension)
    if isinstance(row, Rejection):
        return True
    message = update_message(federation_id, submission.client_id, round_id, row)
    signature = submission.signature
    return isinstance(signature, bytes) and IdentityKeyPair.verify_with(public_key, message, signature)


def signed(
    batch: SubmissionBatch,
    round_id: object,
    keypairs: Mapping[str, IdentityKeyPair],
    federation_id: str,
    dimension: int,
) -> SubmissionBatch:
    """The batch with a signature for every update whose key is held here and that has none yet.

    What cannot be an update is left unsigned: it is refused for what it is.

    Args:
        batch: The updates.
        round_id: The round that they are made for, which is signed along.
        keypairs: Keys by client.
        federation_id: The federation, which is signed along.
        dimension: Length of an update.
    """
    signatures = list(batch.signatures or [None] * len(batch))
    for index, client_id in enumerate(batch.client_ids):
        keypair = keypairs.get(client_id)
        if keypair is None or signatures[index] is not None or not isinstance(round_id, int | np.integer):
            continue
        row = read_row(batch.rows[index], dimension)
        if not isinstance(row, Rejection):
            signatures[index] = keypair.sign(update_message(federation_id, client_id, int(round_id), row))
    return SubmissionBatch(batch.client_ids, batch.rows, round_id, tuple(signatures), batch.meta)
