"""Zero-concentrated differential privacy in numbers: the client's package holds it."""

from scarcity_ray_client.accounting.zcdp import (
    LEAST_SIGMA,
    check_rho,
    delta_of_rho,
    departure,
    epsilon_of_rho,
    rho_of_claim,
    rho_of_pure,
    rho_of_shares,
    share_sigma,
)

__all__ = [
    "LEAST_SIGMA",
    "check_rho",
    "delta_of_rho",
    "departure",
    "epsilon_of_rho",
    "rho_of_claim",
    "rho_of_pure",
    "rho_of_shares",
    "share_sigma",
]
