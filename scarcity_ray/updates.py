"""An update on its way: what counts as one and what its client signs, from the client's own package."""

from scarcity_ray_client.updates import (
    GREATEST,
    FloatRow,
    Rejection,
    SigningScope,
    UpdateStatement,
    canonical_report,
    content_digest,
    given_array,
    read_array,
    read_row,
    read_rows,
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
