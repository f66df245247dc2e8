"""Differential privacy added up: what was spent of a claim (epsilon, delta), and what may still be.

::

    accountant    the sums: what fits, worst case over clients
    ceilings      what fits under the ceilings that clients have signed for themselves

What mu and rho amount to (`gaussian_dp`, `zcdp`, `modes`) is in the client's package, under the same names.
"""
