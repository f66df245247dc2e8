"""An update on its way: what counts as one and what its client signs, by NumPy and the standard library."""

from scarcity_ray.updates.reading import Rejection, read_array, read_row, read_rows
from scarcity_ray.updates.signing import (
    SigningScope,
    UpdateStatement,
    canonical_report,
    content_digest,
    sign_update,
    update_message,
    update_statement,
)

__all__ = [
    "Rejection",
    "SigningScope",
    "UpdateStatement",
    "canonical_report",
    "content_digest",
    "read_array",
    "read_row",
    "read_rows",
    "sign_update",
    "update_message",
    "update_statement",
]
