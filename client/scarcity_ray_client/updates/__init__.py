"""An update on its way: what counts as one and what its client signs, by NumPy and the standard library."""

from scarcity_ray_client.updates.reading import (
    FloatRow,
    Rejection,
    given_array,
    read_array,
    read_row,
    read_rows,
)
from scarcity_ray_client.updates.signing import (
    GREATEST,
    SigningScope,
    UpdateStatement,
    canonical_report,
    content_digest,
    sign_update,
    update_message,
    update_statement,
)

__all__ = [
    "GREATEST",
    "FloatRow",
    "Rejection",
    "SigningScope",
    "UpdateStatement",
    "canonical_report",
    "content_digest",
    "given_array",
    "read_array",
    "read_row",
    "read_rows",
    "sign_update",
    "update_message",
    "update_statement",
]
