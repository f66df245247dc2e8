"""How the models of each framework become trees of arrays, and again models.

Of scikit-learn, linear models (``coef_``, ``intercept_``) and MLPs (``coefs_``, ``intercepts_``) are carried:
what they learned lies in those attributes and ``classes_``. All else of an estimator (its parameters, its
counters of steps) comes from the model that the codec was made of, in each round anew, and an MLP's optimiser
starts afresh.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from scarcity_ray_client.errors import ModelRefused
from scarcity_ray_client.models.parts import copied
from scarcity_ray_client.models.trees import named_leaves, with_leaves

LEARNED = (("coef_", "intercept_"), ("coefs_", "intercepts_"))
FAMILIES = ("sklearn.linear_model.", "sklearn.neural_network.", "sklearn.svm.")


def is_module(thing: object) -> bool:
    """Whether it is a `torch.nn.Module`; without PyTorch in this process nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def is_estimator(thing: object) -> bool:
    """Whether it is an estimator of scikit-learn, of any kind."""
    base = sys.modules.get("sklearn.base")
    return base is not None and isinstance(thing, base.BaseEstimator)


def form_of(model: object) -> Form:
    """The form for a model's framework; what is no framework's is a tree."""
    return _ModuleForm() if is_module(model) else _EstimatorForm() if is_estimator(model) else Form()


class Form:
    """What a codec asks of a framework, and the answers for a model that is a tree itself."""

    def tree(self, model: Any) -> Any:
        """The model's parts as a tree; what is no model of the framework is taken for a tree already."""
        return model

    def template(self, model: Any) -> Any:
        """A copy that nobody trains, on the CPU."""
        return with_leaves(model, {name: copied(leaf) for name, leaf in named_leaves(model)})

    def frozen(self, model: Any) -> frozenset[str]:
        """Names of parts that the model itself says are not trained."""
        return frozenset()

    def facts(self, model: Any) -> dict[str, object]:
        """What must be the same beside the parts, as JSON values."""
        return {}

    def assemble(self, template: Any, leaves: Mapping[str, Any]) -> Any:
        """A new model like the template, with a leaf for each name."""
        return with_leaves(template, leaves)


class _ModuleForm(Form):
    """A `torch.nn.Module`, whose tree is its ``state_dict``; one by itself will do."""

    def tree(self, model: Any) -> Any:
        return model.state_dict() if is_module(model) else model

    def template(self, model: Any) -> Any:
        made = copy.deepcopy(model).cpu()
        made.zero_grad(set_to_none=True)
        return made

    def frozen(self, model: Any) -> frozenset[str]:
        named = model.named_parameters(remove_duplicate=False)
        return frozenset(name for name, parameter in named if not parameter.requires_grad)

    def assemble(self, template: Any, leaves: Mapping[str, Any]) -> Any:
        made = copy.deepcopy(template)
        made.load_state_dict(with_leaves(made.state_dict(), leaves))
        return made


class _EstimatorForm(Form):
    """A fitted or `initialised` estimator, whose tree is a dict of what it has learned."""

    def tree(self, model: Any) -> object:
        if not is_estimator(model):
            return model
        kind = type(model).__name__
        learned = [names for names in LEARNED if all(name in vars(model) for name in names)]
        if not any(cls.__module__.startswith(FAMILIES) for cls in type(model).__mro__):
            detail = "of scikit-learn, linear models and MLPs are carried; of a pipeline, give the last step"
            raise ModelRefused(kind, "unsupported", detail)
        if not learned:
            detail = "it has no coef_ and intercept_ yet; use initialised(estimator, num_features, classes)"
            raise ModelRefused(kind, "unsupported", detail)
        if getattr(model, "average", False):
            raise ModelRefused(
                kind, "unsupported", "it averages its own steps in a second vector; set average=False"
            )
        return {name: getattr(model, name) for name in learned[0]}

    def template(self, model: Any) -> Any:
        made = copy.deepcopy(model)
        vars(made).pop("_optimizer", None)
        return made

    def facts(self, model: Any) -> dict[str, object]:
        # The same shape with other classes, or in another order, is another model.
        return {"classes_": np.asarray(model.classes_).tolist()} if hasattr(model, "classes_") else {}

    def assemble(self, template: Any, leaves: Mapping[str, Any]) -> Any:
        made = copy.deepcopy(template)
        learned: dict[str, Any] = with_leaves(self.tree(template), leaves)
        for name, value in learned.items():
            setattr(made, name, value)
        return made


__all__ = ["LEARNED", "Form", "form_of", "is_estimator", "is_module"]
