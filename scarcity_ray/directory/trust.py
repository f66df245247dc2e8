"""How a client's trust follows what it does: a number in [0, 1] that is reported and never weighs.

Agreement with a basket's aggregate is made of private values, so what trust is made of it lies outside the
privacy claim, as basket models do. Where ``expose_basket_models`` is false nobody computes agreement, and
trust follows from what anybody may know: malformed updates that the client has signed, and those that were
accepted. What a driver sends on a client's behalf without its signature costs it nothing.

*Guarantees*
    - Trust stays in [0, 1].
    - Trust is monotone in each agreement and in what it was before.
    - Who always agrees tends to 1, who never does to 0, whatever the trust before.
    - A malformed update that the client has signed halves trust (`Standings.offend`: of a round, the first
      ``buffer.participation_cap`` of them).
"""

from __future__ import annotations

from scarcity_ray.config.arguments import number_of
from scarcity_ray.errors import UsageError

FIRST_TRUST = 1.0
"""Trust of a client that nothing is known of."""
AGREEMENT_RATE = 0.1
"""Weight of the latest agreement: half of what trust knows is less than seven aggregates old."""
REFUSAL_FACTOR = 0.5
"""What one malformed update that the client has signed leaves of trust."""
ACCEPTANCE_GAIN = 0.01
"""What one accepted update gives back, up to 1, where agreement is not computed."""


def after_agreement(trust: float, agreement: float) -> float:
    """The exponential average of agreement, one aggregate later.

    Args:
        trust: In [0, 1].
        agreement: With the aggregate, in [0, 1]; see `robust.agreement`.

    >>> round(after_agreement(1.0, 0.0), 3)
    0.9
    """
    return (1.0 - AGREEMENT_RATE) * trust + AGREEMENT_RATE * agreement


def after_refusal(trust: float) -> float:
    """Trust after a malformed or non-finite update that the client itself has signed."""
    return REFUSAL_FACTOR * trust


def after_acceptance(trust: float) -> float:
    """Trust after an accepted update, where agreement is not computed."""
    return min(1.0, trust + ACCEPTANCE_GAIN)


def check_trust(trust: float) -> None:
    """Refuse what is no trust.

    Raises:
        UsageError: If it is not in [0, 1].
    """
    if not 0.0 <= number_of("trust", trust) <= 1.0:
        raise UsageError(f"trust must be in [0, 1], got {trust!r}")
