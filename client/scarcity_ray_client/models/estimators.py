"""scikit-learn's estimators before their first training: shapes without data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.models.forms import LEARNED, form_of


def initialised(estimator: Any, num_features: int, classes: Sequence[Any] | None = None) -> Any:
    """A copy of an unfitted estimator that has its shapes: a linear model of zeros, an MLP of random weights.

    Args:
        estimator: A linear model or an MLP with its parameters, such as ``SGDClassifier(loss="log_loss")``.
        num_features: Features of an example.
        classes: All classes that any client may have, for a classifier; a regressor has one target.

    Raises:
        UsageError: If a classifier comes without classes, or scikit-learn refuses the estimator's parameters.
        ModelRefused: If the estimator is of another kind.

    >>> from sklearn.linear_model import LogisticRegression
    >>> initialised(LogisticRegression(), 3, classes=["ill", "well"]).coef_
    array([[0., 0., 0.]])
    """
    from sklearn.base import clone, is_classifier

    if is_classifier(estimator) and (classes is None or len(set(classes)) < 2):
        raise UsageError("classes: give all classes that any client may have, two at least")
    labels = np.ones(2) if classes is None else np.array(sorted(set(classes)))
    examples = np.zeros((len(labels), num_features))
    made = clone(estimator)
    own = made.get_params()
    is_mlp = "hidden_layer_sizes" in own
    probe: dict[str, object] = {"early_stopping": False, "warm_start": False}
    if is_mlp:  # steps too small to move the random weights
        probe |= {
            "solver": "sgd",
            "learning_rate": "constant",
            "learning_rate_init": 1e-300,
            "batch_size": "auto",
        }
    made.set_params(**{name: value for name, value in probe.items() if name in own})
    try:
        if hasattr(made, "partial_fit"):
            made.partial_fit(examples, labels, **({} if classes is None else {"classes": labels}))
        else:
            made.fit(examples, labels)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{type(estimator).__name__} cannot be given its shapes: {error}") from None
    made.set_params(**own)
    form_of(made).tree(made)  # refuses other kinds
    if is_mlp:
        made.t_, made.n_iter_, made.loss_curve_ = 0, 0, []
        made.best_loss_ = None if made.early_stopping else np.inf
    else:
        for name in LEARNED[0]:
            setattr(made, name, np.zeros_like(getattr(made, name)))
        if hasattr(made, "t_"):
            made.t_ = 1.0
    return made


__all__ = ["initialised"]
