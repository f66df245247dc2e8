"""Differential privacy added up: what was spent of a claim (epsilon, delta), and what may still be.

::

    gaussian_dp   mu of Gaussian releases: exact, both ways between mu and (epsilon, delta)
    zcdp          rho of releases whose Renyi divergence is known, discrete and distributed noise among them
    modes         which of the two a ledger adds up, behind one interface
    accountant    the sums themselves: what fits, worst case over clients
"""
