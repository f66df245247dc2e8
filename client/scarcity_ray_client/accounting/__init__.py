"""Differential privacy in numbers: from noise to (epsilon, delta) and back, for sites that add up.

::

    gaussian_dp   mu of Gaussian releases: exact, both ways between mu and (epsilon, delta)
    zcdp          rho of releases whose Renyi divergence is known, discrete and distributed noise among them
    modes         which of the two a ledger adds up, behind one interface
"""
