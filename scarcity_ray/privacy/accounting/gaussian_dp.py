"""Gaussian differential privacy in numbers: the client's package holds it, as sites add up, too."""

from scarcity_ray_client.accounting.gaussian_dp import (
    check_delta,
    check_epsilon,
    check_mu,
    delta_of_mu,
    epsilon_of_mu,
    monotone_root,
    mu_of_gaussian,
    mu_of_pure,
)

__all__ = [
    "check_delta",
    "check_epsilon",
    "check_mu",
    "delta_of_mu",
    "epsilon_of_mu",
    "monotone_root",
    "mu_of_gaussian",
    "mu_of_pure",
]
