"""Measurements by hand: ``python -m benchmarks NAME [--format json]``. No test depends on a timing.

Each row has `name, n, d, seconds, versus, ratio`: what was measured, its size, the least seconds of one run,
what was measured beside it, and our seconds over the other's (below 1 we are faster).
"""
