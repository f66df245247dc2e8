"""Federated learning on Ray among parties that do not trust each other.

Clients of a domain form a basket; inside it they gossip under local differential privacy. Layer 1 aggregates
each basket by a Byzantine-robust rule; Layer 2 sums the baskets' aggregates by secure aggregation, adds
central noise, and charges a privacy budget that is spent once and never forgotten.

Its names are in `scarcity_ray.public`, which is imported when the first of them is asked for: a command or a
child process needs a part of the package. None of it imports Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scarcity_ray.public import *  # noqa: F403
else:

    def __getattr__(name):
        try:
            return getattr(import_module("scarcity_ray.public"), name)
        except AttributeError:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}", name=name) from None

    def __dir__():
        return sorted({*globals(), *__getattr__("__all__")})
