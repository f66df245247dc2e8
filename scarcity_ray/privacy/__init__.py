"""Differential privacy: noise, exact accounting, sensitivities, and a budget on disk that is never overspent.

::

    accounting    mu, epsilon and delta of Gaussian releases, exactly
    sensitivity   how far one client's row moves each Layer 1 rule's result
    noise         where noise comes from
"""

from __future__ import annotations

from scarcity_ray.privacy.accounting import delta_of_mu, epsilon_of_mu, mu_of_gaussian, mu_of_pure
from scarcity_ray.privacy.noise import NoiseSource, SeededNoise, SystemNoise
from scarcity_ray.privacy.sensitivity import rule_sensitivity

__all__ = [
    "NoiseSource",
    "SeededNoise",
    "SystemNoise",
    "delta_of_mu",
    "epsilon_of_mu",
    "mu_of_gaussian",
    "mu_of_pure",
    "rule_sensitivity",
]
