"""Gradients by record of a PyTorch module, for the mean over a client's persons (`persons.person_gradient`).

`torch.func` differentiates the loss of each record by itself, as a batch of one: what a module makes of a
batch, a record sees of itself alone. Modules that keep statistics of the records they have seen (batch norm)
are refused by name.

Guarantees:
    gradients_are_those_of_autograd_record_by_record
    a_records_gradient_does_not_depend_on_the_others: To the last bit, for linear and convolutional layers on
        the CPU.
    modules_with_statistics_of_a_batch_are_refused: Batch norm, instance norm that tracks, and whatever writes
        into a buffer.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import numpy.typing as npt
import torch
from torch.func import functional_call, grad, vmap

from scarcity_ray_client.errors import UsageError

Floats = npt.NDArray[np.float64]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
_STATISTICAL = (torch.nn.modules.batchnorm._BatchNorm,)
_TRACKING = (torch.nn.modules.instancenorm._InstanceNorm,)


class TorchModel:
    """A module and a loss as `persons.RecordGradients`; parameters are the module's, in its order, flat.

    It is a copy in float64 and in evaluation mode: dropout is off. Only parameters that require gradients
    count. Each record is an item of its own in every kernel, weights repeated beside it (`expand`, no copy);
    relied on is that a kernel treats all items of a batch alike. Where one does not, in its last bits, the
    plan's slack (2^-22 of C, `ROW_SLACK`) has room for gradients as exact as 2^-23 of C.

    Args:
        module: Takes (1, k) features, and gives the scores of one record, (1, ...).
        loss: Of scores (1, ...) and targets (1,), a scalar, as `torch.nn.functional.cross_entropy`.
        num_classes: Targets are int64 from 0 to one less, and a record of another is none; None: they are
            float64.

    Raises:
        UsageError: For a module that keeps statistics of batches, or has no parameters.

    >>> net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    >>> model = TorchModel(net, torch.nn.functional.cross_entropy, num_classes=2)
    >>> model.gradients(model.initial(), np.ones((5, 3)), np.zeros(5)).shape
    (5, 26)
    """

    def __init__(self, module: torch.nn.Module, loss: Loss, *, num_classes: int | None) -> None:
        for name, part in module.named_modules():
            tracks = isinstance(part, _TRACKING) and part.track_running_stats
            if isinstance(part, _STATISTICAL) or tracks:
                raise UsageError(
                    f"module: {name or 'it'} is {type(part).__name__}, which is not accepted: its statistics "
                    "tie each record to all others; use GroupNorm or LayerNorm"
                )
        self._module = _copied(module)
        self._loss, self._num_classes = loss, num_classes
        self._shapes = {n: p.shape for n, p in self._module.named_parameters() if p.requires_grad}
        frozen = {n: p.detach() for n, p in self._module.named_parameters() if not p.requires_grad}
        self._fixed = frozen | dict(self._module.named_buffers())
        self._number = sum(int(shape.numel()) for shape in self._shapes.values())
        if not self._number:
            raise UsageError("module: it has no parameters that require gradients")

    def initial(self) -> Floats:
        """(d,) the module's parameters as they were given."""
        named = dict(self._module.named_parameters())
        return np.concatenate([named[name].detach().numpy().ravel() for name in self._shapes])

    def num_parameters(self, num_features: int) -> int:
        """The length of `parameters`, whatever the features are."""
        return self._number

    def load(self, parameters: npt.ArrayLike) -> torch.nn.Module:
        """A copy of the module, in float64, with these parameters (d,)."""
        made = _copied(self._module)
        with torch.no_grad():
            named = dict(made.named_parameters())
            for name, part in self._parts(parameters).items():
                named[name].copy_(part)
        return made

    def gradients(self, parameters: Floats, features: Floats, targets: npt.ArrayLike) -> Floats:
        """See `persons.RecordGradients`; a target that is none gives NaN.

        Raises:
            UsageError: If the module writes into a buffer, draws at random, or branches on the numbers.
        """
        y = np.asarray(targets, np.float64)
        count, known = len(y), np.isfinite(y)
        if self._num_classes is not None:
            known &= (y >= 0.0) & (y < self._num_classes)
        if not count:
            return np.zeros((0, self._number))
        weights = {name: part.expand(count, *part.shape) for name, part in self._parts(parameters).items()}
        given = torch.from_numpy(np.where(known, y, 0.0))
        given = given if self._num_classes is None else given.long()
        try:
            made = vmap(grad(self._loss_of_one))(weights, torch.from_numpy(features.copy()), given)
        except RuntimeError as error:
            raise UsageError(
                f"module: it cannot be differentiated record by record ({str(error).splitlines()[0]}); it "
                "must not write into buffers, draw at random, or branch on the numbers"
            ) from error
        rows: Floats = torch.cat([made[name].reshape(count, -1) for name in self._shapes], 1).numpy()
        rows[~known] = np.nan
        return rows

    def _loss_of_one(
        self, weights: dict[str, torch.Tensor], features: torch.Tensor, target: torch.Tensor
    ) -> torch.Tensor:
        scores = functional_call(self._module, {**self._fixed, **weights}, (features[None],))
        return self._loss(scores, target[None])

    def _parts(self, parameters: npt.ArrayLike) -> dict[str, torch.Tensor]:
        flat = torch.from_numpy(np.array(parameters, np.float64))
        pieces = torch.split(flat, [shape.numel() for shape in self._shapes.values()])
        return {
            name: piece.reshape(shape)
            for (name, shape), piece in zip(self._shapes.items(), pieces, strict=True)
        }


def _copied(module: torch.nn.Module) -> torch.nn.Module:
    return deepcopy(module).to("cpu", torch.float64).eval()


__all__ = ["TorchModel"]
