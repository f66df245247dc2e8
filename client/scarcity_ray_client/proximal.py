"""FedProx: keep a client's training near the model that it began from."""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from scarcity_ray_client.errors import UsageError, shown

Array = TypeVar("Array", bound=Any)


def proximal_gradient(parameter: Array, start: Array, mu: float) -> Array:
    """What FedProx adds to a parameter's gradient: mu (w - w_start), the gradient of mu/2 |w - w_start|^2.

    It holds back clients whose data pulls far from the others' (Li et al. 2020, equation 2; mu of 0.001 to 1
    there). It needs no state between rounds, and the update is still the delta, so privacy costs the same.

    In PyTorch, between ``backward()`` and ``step()``, with ``start = [p.detach().clone() for p in
    model.parameters()]`` from before the training::

        for parameter, before in zip(model.parameters(), start):
            if parameter.grad is not None:
                parameter.grad += proximal_gradient(parameter.detach(), before, mu=0.01)

    Args:
        parameter: An array or tensor as it stands in training.
        start: The same of the model handed in: a copy, as training changes the model in place.
        mu: From 0, which is plain training.

    Raises:
        UsageError: For a negative or infinite mu, or a start of another shape.

    >>> import numpy as np
    >>> proximal_gradient(np.array([3.0, 1.0]), np.array([1.0, 1.0]), mu=0.5)
    array([1., 0.])
    """
    if not 0.0 <= mu < math.inf:
        raise UsageError(f"mu: {shown(mu)} is not accepted; a number from 0")
    if np.shape(parameter) != np.shape(start):
        raise UsageError(f"start: the shape {np.shape(start)} is not accepted; {np.shape(parameter)} is due")
    pull: Array = mu * (parameter - start)
    return pull


__all__ = ["proximal_gradient"]
