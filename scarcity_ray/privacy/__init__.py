"""Differential privacy: noise, exact accounting, sensitivities, and a durable budget that is never overspent.

::

    modes         what a ledger adds up, Gaussian DP or zCDP, and what a claim (epsilon, delta) buys in it
                  (accounting: mu of Gaussian releases, exactly; concentrated: rho of any)
    sensitivity   how far one client's row moves each Layer 1 rule's result
    noise         where noise comes from (ziggurat: how normal values are made of words)
    mechanisms    clip and noise, for a client's message and for the global model
    accountant    what is spent of a budget, worst case over clients
    budget        the accountant behind a ledger: check, record durably, then allow
    ledger        append-only, hash-chained, one writer at a time
                  (chain: its rows; store: where they are kept; sqlite: in a file; postgres and
                  postgres_session: in a database; members: who a gossip charge covers; replay: what the rows
                  add up to)
    discrete      the discrete Gaussian, for integer sums
    distributed   what a sum of several parties' shares of it claims
    clipping      a clip norm that follows a quantile of the norms, privately
    audit         lower bounds on what a mechanism really gives, to hold claims against
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
