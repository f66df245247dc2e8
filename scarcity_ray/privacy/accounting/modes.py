"""The two accountings: the client's package holds them, as sites add up, too."""

from scarcity_ray_client.accounting.modes import (
    ROUNDING,
    Accounting,
    mu_of_rho,
    rho_of_mu,
)

__all__ = [
    "ROUNDING",
    "Accounting",
    "mu_of_rho",
    "rho_of_mu",
]
