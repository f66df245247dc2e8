"""Differential privacy: noise, exact accounting, sensitivities, and a durable budget that is never overspent.

::

    accounting          what adds up to what: Gaussian DP, zCDP, and the accountant of a budget
    ledger              the accountant's memory: charges in a hash chain, in a file or a database
    sampling            where noise comes from: the normal by ziggurat, the discrete Gaussian
    sensitivity         how far one client's row moves each Layer 1 rule's result
    mechanisms          clip and noise, for a client's message and for the global model
    adaptive_clipping   a clip norm that follows a quantile of the norms, privately
"""

from __future__ import annotations

from scarcity_ray.privacy.accounting.accountant import PrivacyAccountant
from scarcity_ray.privacy.accounting.gaussian_dp import delta_of_mu, epsilon_of_mu, mu_of_gaussian, mu_of_pure
from scarcity_ray.privacy.accounting.modes import Accounting
from scarcity_ray.privacy.ledger.answers import BudgetStatus, Charge
from scarcity_ray.privacy.ledger.budget import DurableBudget
from scarcity_ray.privacy.ledger.ledger import Ledger
from scarcity_ray.privacy.mechanisms import CentralDPMechanism, GaussianMechanism, LocalDPMechanism
from scarcity_ray.privacy.sampling.noise import NoiseSource, SeededNoise, SystemNoise
from scarcity_ray.privacy.sensitivity import rule_sensitivity

__all__ = [
    "Accounting",
    "BudgetStatus",
    "CentralDPMechanism",
    "Charge",
    "DurableBudget",
    "GaussianMechanism",
    "Ledger",
    "LocalDPMechanism",
    "NoiseSource",
    "PrivacyAccountant",
    "SeededNoise",
    "SystemNoise",
    "delta_of_mu",
    "epsilon_of_mu",
    "mu_of_gaussian",
    "mu_of_pure",
    "rule_sensitivity",
]
