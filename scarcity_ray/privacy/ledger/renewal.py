"""What an operator signs to open a new budget period."""

from __future__ import annotations

import json


def renewal_message(
    federation_id: str, period: int, total_epsilon: float, total_delta: float, operator: str
) -> bytes:
    r"""The bytes to sign: good for one federation, one period, these totals and this name, and so once.

    Args:
        federation_id: The federation's random id.
        period: The period that ends.
        total_epsilon: The new period's claim.
        total_delta: Its delta.
        operator: Who decides it, as the ledger will record.

    >>> renewal_message("ab", 0, 10, 1e-5, "ann")
    b'scarcity_ray/renewal/1\n["ab",0,"0x1.4000000000000p+3","0x1.4f8b588e368f1p-17","ann"]'
    """
    content = [federation_id, period, float(total_epsilon).hex(), float(total_delta).hex(), operator]
    return b"scarcity_ray/renewal/1\n" + json.dumps(content, separators=(",", ":")).encode()


__all__ = ["renewal_message"]
