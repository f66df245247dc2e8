"""A client's update as the mean over its persons, each of whom moves it by a bounded and small amount.

The federation's claim about one person (``privacy: {unit: person}``, docs/privacy_units.md) rests on the row
that a client sends. Replacing one of its n persons, with all of his records, may move the row by 2 C / n at
most. That holds of the mean over the persons of one *contribution* each, if

* a contribution is made of one person's records, of public numbers and of earlier *released* models alone;
* its norm is at most C (it is clipped);
* n is public. It is refused below a minimum that all parties know.

So the data must be prepared person by person, with public constants (`standardise`): what is computed from
all persons at once, such as the batch's own mean, a class weight or oversampling, ties each contribution to
all of them. Of a model in training the same holds: between two steps on the data there must be a release. The
exception is `local_steps`.

`person_mean` takes contributions from anywhere. `person_gradient` makes them for the models here, whose
gradients by record have a closed form: `LinearModel` (logistic, least squares), `SoftmaxModel` and `TanhMlp`.
With one person a record, without keys, the unit is a *record*, which is not a person.

Give the update as ``Trained(delta=..., num_persons=mean.num_persons)``. A delta is rounded to float32
relative to itself, which the claim allows for; a difference of two models would be rounded relative to them,
so ``Trained(model=...)`` is refused. ``num_examples`` counts nobody: it may count records.

Guarantees:
    no_person_moves_the_mean_further_than_the_bound: Replaced with all of his records, however many they are.
    a_contribution_is_a_function_of_one_persons_records: To the last bit.
    closed_forms_are_the_gradients: Of each model's loss, against finite differences.
    no_person_moves_several_steps_further_than_the_bound: `local_steps`, for either link.
    models_without_a_proof_take_no_local_steps: Softmax and the MLP, by name.
    a_batchs_own_statistics_are_refused: As mean or scale of `standardise`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import numpy as np
import numpy.typing as npt

from scarcity_ray_client.errors import TooFewPersons, UsageError, shown

Floats = npt.NDArray[np.float64]
BLOCK = 2**22
"""Numbers of gradients by record that are in memory at once, unless one person has more."""


@dataclass(frozen=True, eq=False)
class PersonMean:
    """The mean over a client's persons; two of them are compared field by field, as arrays are.

    Attributes:
        row: (d,) float64.
        num_persons: n, the number to state with the update.
        contribution_norm: C, which ``privacy.person_clip_norm`` must be at least.
        clipped_share: Share of the persons whose contribution was clipped, or was not finite and became zero.
            It is made of private data and no claim covers it: it is for the client's own eyes.
    """

    row: Floats
    num_persons: int
    contribution_norm: float
    clipped_share: float


class RecordGradients(Protocol):
    """A model whose loss has a gradient for each record."""

    def gradients(self, parameters: Floats, features: Floats, targets: npt.ArrayLike) -> Floats:
        """(N, d) gradients of the records' losses at `parameters` (d,); features (N, k), targets (N,).

        Each must be computed from its own record alone, to the last bit.
        """

    def num_parameters(self, num_features: int) -> int:
        """The length d of `parameters`."""


def person_mean(
    contributions: npt.ArrayLike,
    persons: npt.ArrayLike | None = None,
    *,
    clip_norm: float,
    min_persons: int,
) -> PersonMean:
    """The mean over persons of one clipped contribution each: the mean of the person's rows.

    One with many records counts as much as one with a single record. A contribution that is not finite
    becomes the zero vector.

    *Proof of 2 C / n.* The contributions of all but the replaced person are the same vectors, and the two
    that differ have norm C at most; n is the same. The federation's plan allows for the last bits of the sums
    (`ROW_SLACK`), up to 2^27 persons.

    Args:
        contributions: (N, d), one row a record.
        persons: (N,) keys, whose equals are one person; None: each record is a unit of its own.
        clip_norm: C.
        min_persons: The federation's ``privacy.min_persons``.

    Raises:
        TooFewPersons: For fewer than that.
        UsageError: For arguments of other shapes.

    >>> visits = [[3.0, 4.0], [0.0, 0.0], [0.6, 0.0]]
    >>> mean = person_mean(visits, ["a", "a", "b"], clip_norm=1.0, min_persons=2)
    >>> mean.row, mean.num_persons, mean.clipped_share
    (array([0.6, 0.4]), 2, 0.5)
    """
    rows = np.asarray(contributions, np.float64)
    if rows.ndim != 2:
        raise UsageError(f"contributions: the shape {rows.shape} is not accepted; (records, coordinates)")
    groups = _Persons(persons, len(rows), min_persons)
    _check_clip_norm(clip_norm)
    with np.errstate(all="ignore"):
        sums = np.add.reduceat(rows[groups.order], groups.starts, axis=0)
    total, clipped = _clipped_sum(sums, groups, clip_norm)
    return PersonMean(total / groups.number, groups.number, clip_norm, clipped / groups.number)


def person_gradient(
    model: RecordGradients,
    parameters: npt.ArrayLike,
    features: npt.ArrayLike,
    targets: npt.ArrayLike,
    persons: npt.ArrayLike | None = None,
    *,
    clip_norm: float,
    min_persons: int,
) -> PersonMean:
    """The mean over persons of the clipped gradient of each one's mean loss, over all of the data.

    The update is its negative, and the server's learning rate makes the step. `parameters` must be a function
    of released models alone. Gradients by record are made in blocks of whole persons (`BLOCK`).

    Args:
        model: One of those here, or another that keeps `RecordGradients`' promise.
        parameters: (d,).
        features: (N, k), prepared person by person.
        targets: (N,).
        persons: See `person_mean`, as for the other arguments.

    Raises:
        UsageError: As `person_mean`.

    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(600, 3)); y = x @ [1.0, -2.0, 0.5] > 0.0
    >>> model, w, persons = LinearModel("logistic"), np.zeros(4), np.arange(600) // 2
    >>> for _ in range(50):
    ...     w -= 2.0 * person_gradient(model, w, x, y, persons, clip_norm=1.0, min_persons=100).row
    >>> bool(np.mean((model.scores(w, x) > 0.0) == y) > 0.95)
    True
    """
    weights, x, y = _checked(model, parameters, features, targets)
    groups = _Persons(persons, len(x), min_persons)
    _check_clip_norm(clip_norm)
    total, clipped = np.zeros(len(weights)), 0
    for block in groups.blocks(max(1, BLOCK // len(weights))):
        records = groups.order[block.records]
        with np.errstate(all="ignore"):
            gradients = model.gradients(weights, x[records], y[records])
            sums = np.add.reduceat(gradients, groups.starts[block.persons] - block.records.start, axis=0)
        part, above = _clipped_sum(sums, groups, clip_norm, block.persons)
        total += part
        clipped += above
    return PersonMean(total / groups.number, groups.number, clip_norm, clipped / groups.number)


def local_steps(
    model: RecordGradients,
    parameters: npt.ArrayLike,
    features: npt.ArrayLike,
    targets: npt.ArrayLike,
    persons: npt.ArrayLike | None = None,
    *,
    steps: int,
    learning_rate: float,
    clip_norm: float,
    feature_norm: float,
    min_persons: int,
    l2: float = 0.0,
) -> PersonMean:
    """Several steps of gradient descent on all of the data, without noise between them: `LinearModel` alone.

    `row` is the change of the parameters, and `contribution_norm` is K eta C for K steps of rate eta: one of
    n persons moves the change by at most 2 K eta C / n. A record that is not finite has gradient zero.

    *Proof.* Each record's features are scaled to norm `feature_norm` at most, so with the intercept's 1 to a
    norm B that is public. A record's gradient is l'(z) x with the score z = <w, x>; it is clipped by limiting
    l' to [-C / |x|, C / |x|]. That is the gradient of another loss, whose derivative in z still never falls
    and rises no faster: convex, and smooth with beta = c B^2, c being the link's curvature (1/4 logistic, 1
    least squares). The means over a person's records, then over the persons, are convex and beta-smooth
    likewise; with (l2 / 2) |w|^2 the objective is convex and L-smooth, L = beta + l2. Its gradient g is then
    co-coercive, <g(v) - g(w), v - w> >= |g(v) - g(w)|^2 / L (Nesterov 2004, theorem 2.1.5). So a gradient
    step of rate eta <= 2 / L changes the squared distance of v and w by at most
    -eta (2 / L - eta) |g(v) - g(w)|^2, which is not above 0. Neighbours' objectives differ in one person's
    mean gradient, of norm C at most, over n. So their iterates' distance grows in each step by eta 2 C / n at
    most, from 0 at the released model.

    The gradient of softmax regression, once clipped, is not that of a convex function in general (it is a
    matrix that is shrunk, not a slope that is limited), and an MLP's loss is not convex to begin with. One
    person's influence may grow from step to step, so they have one step a release.

    Args:
        steps: K >= 1.
        learning_rate: eta, at most 2 / (beta + l2).
        clip_norm: C, of a record's gradient.
        feature_norm: To which each record's features are scaled where they exceed it.
        l2: Weight of the regulariser, which is no private data and is not clipped.

    Raises:
        UsageError: For a model without this proof, a rate above the bound, or parameters so large that
            rounding would not be small against the row.

    >>> x = np.random.default_rng(0).normal(size=(600, 2)); y = x[:, 0] > 0.0
    >>> model = LinearModel("logistic")
    >>> given = dict(steps=5, learning_rate=0.5, clip_norm=1.0, feature_norm=2.0, min_persons=100)
    >>> mean = local_steps(model, np.zeros(3), x, y, **given)
    >>> mean.contribution_norm, bool(np.mean((model.scores(mean.row, x) > 0.0) == y) > 0.95)
    (2.5, True)
    """
    if not isinstance(model, LinearModel):
        raise UsageError(
            f"local_steps: {type(model).__name__} is not accepted; only LinearModel, whose clipped gradients "
            "are those of a convex function: take one step a release (person_gradient)"
        )
    for name, value in (("learning_rate", learning_rate), ("feature_norm", feature_norm)):
        if not 0.0 < value < math.inf:
            raise UsageError(f"{name}: {shown(value)} is not accepted; a positive number")
    if type(steps) is not int or steps < 1:
        raise UsageError(f"steps: {shown(steps)} is not accepted; a positive int")
    if not 0.0 <= l2 < math.inf:
        raise UsageError(f"l2: {shown(l2)} is not accepted; a number from 0")
    _check_clip_norm(clip_norm)
    start, x, y = _checked(model, parameters, features, targets)
    steepest = model.curvature * (feature_norm**2 + model.intercept)
    if learning_rate > 2.0 / (steepest + l2):
        raise UsageError(
            f"learning_rate: {shown(learning_rate)} is not accepted; at most 2 / (beta + l2) = "
            f"{2.0 / (steepest + l2):.6g} with beta = {steepest:.6g}, or one person's influence could grow"
        )
    # A score is rounded by at most d B |w| 2^-53, which moves a step by eta beta / B as much: 2 d |w| 2^-53.
    # With the line below that is less than 2^-25 of a step's eta C, as float32's rounding of the row is.
    if len(start) * float(np.linalg.norm(start)) > 2.0**26 * learning_rate * clip_norm:
        raise UsageError(
            "parameters: their norm is too large for such small steps: rounding would move the row; raise "
            "learning_rate times clip_norm"
        )
    groups = _Persons(persons, len(x), min_persons)
    known = np.isfinite(x).all(axis=1) & np.isfinite(y)
    extended = model.extended(_at_most(np.where(known[:, None], x, 0.0), feature_norm))
    lengths = np.sqrt((extended**2).sum(axis=1))
    limits = np.where(known, clip_norm / np.where(lengths > 0.0, lengths, 1.0), 0.0)
    shares, y = groups.record_shares(), np.where(known, y, 0.0)
    moved, clipped = np.zeros(len(start)), np.zeros(len(x), np.bool_)
    for _ in range(steps):
        weights = start + moved
        slopes = model.slopes((extended * weights).sum(axis=1), y)
        clipped |= np.abs(slopes) > limits
        gradient = (np.clip(slopes, -limits, limits) * shares) @ extended
        moved -= learning_rate * (gradient + l2 * weights)
    touched = np.zeros(groups.number, np.bool_)
    np.logical_or.at(touched, groups.codes, clipped)
    norm = steps * learning_rate * clip_norm
    return PersonMean(moved, groups.number, norm, float(touched.mean()))


def standardise(
    features: npt.ArrayLike, mean: npt.ArrayLike, scale: npt.ArrayLike, *, norm: float | None = None
) -> Floats:
    """(features - mean) / scale with public constants, each record for itself.

    Take the constants from the literature, from a public data set, or from a release that was charged. A
    value that is missing (NaN) becomes 0, the public mean.

    Args:
        features: (N, k).
        mean: (k,) or a number.
        scale: (k,) or a number, above 0.
        norm: Scale each record to this norm at most.

    Raises:
        UsageError: If mean or scale are those of `features` themselves, which depend on every person. What
            has six digits at most is always taken: 0.5 may be the mean of a column that is balanced, and
            whether a client sends must not follow from that.

    >>> standardise([[120.0, np.nan], [150.0, 40.0]], mean=[130.0, 50.0], scale=[20.0, 10.0])
    array([[-0.5,  0. ],
           [ 1. , -1. ]])
    """
    x = np.asarray(features, np.float64)
    centre, width = np.asarray(mean, np.float64), np.asarray(scale, np.float64)
    if x.ndim != 2 or not all(part.shape in ((), x.shape[1:]) for part in (centre, width)):
        raise UsageError(
            f"features, mean, scale: the shapes {x.shape}, {centre.shape}, {width.shape} are not accepted; "
            "(records, k) and (k,) or numbers"
        )
    if not (np.isfinite(centre).all() and np.isfinite(width).all() and (width > 0.0).all()):
        raise UsageError("mean, scale: finite numbers are accepted, and scales above 0")
    known = np.isfinite(x)
    varies = np.array([len(np.unique(column[kept])) > 1 for column, kept in zip(x.T, known.T, strict=True)])
    if varies.any():
        own = np.where(known, x, np.nan)[:, varies]
        for name, given, batch in (
            ("mean", centre, np.nanmean(own, axis=0)),
            ("scale", width, np.nanstd(own, axis=0)),
            ("scale", width, np.nanstd(own, axis=0, ddof=1)),
        ):
            constants = np.broadcast_to(given, varies.shape)[varies]
            is_long = any(float(f"{constant:.6g}") != constant for constant in constants)
            if is_long and np.allclose(constants, batch, rtol=1e-9, atol=0.0):
                raise UsageError(
                    f"{name}: the data's own {name} is not accepted: it depends on every person; give public "
                    "constants"
                )
    prepared: Floats = np.where(known, (np.where(known, x, 0.0) - centre) / width, 0.0)
    return prepared if norm is None else _at_most(prepared, norm)


@dataclass(frozen=True)
class LinearModel:
    """A linear model with one score a record: logistic regression or least squares.

    Attributes:
        link: ``logistic`` (targets 0 and 1) or ``least_squares``.
        intercept: Whether the last parameter is one.
    """

    link: Literal["logistic", "least_squares"] = "logistic"
    intercept: bool = True
    _CURVATURES: ClassVar[dict[str, float]] = {"logistic": 0.25, "least_squares": 1.0}

    def __post_init__(self) -> None:
        if self.link not in self._CURVATURES:
            raise UsageError(f"link: {shown(self.link)} is not accepted; logistic or least_squares")

    @property
    def curvature(self) -> float:
        """The greatest second derivative of a record's loss by its score."""
        return self._CURVATURES[self.link]

    def num_parameters(self, num_features: int) -> int:
        """The length of `parameters`: a weight a feature, then the intercept."""
        return num_features + self.intercept

    def extended(self, features: Floats) -> Floats:
        """Features (N, k) with the intercept's column of ones, if there is one."""
        return np.hstack([features, np.ones((len(features), 1))]) if self.intercept else features

    def scores(self, parameters: Floats, features: npt.ArrayLike) -> Floats:
        """(N,) scores: predictions, or log odds."""
        scores: Floats = (self.extended(np.asarray(features, np.float64)) * parameters).sum(axis=1)
        return scores

    def slopes(self, scores: Floats, targets: Floats) -> Floats:
        """(N,) derivatives of the losses by the scores."""
        return (_logistic(scores) if self.link == "logistic" else scores) - targets

    def gradients(self, parameters: Floats, features: Floats, targets: npt.ArrayLike) -> Floats:
        """See `RecordGradients`."""
        extended = self.extended(features)
        slopes = self.slopes((extended * parameters).sum(axis=1), np.asarray(targets, np.float64))
        return slopes[:, None] * extended


@dataclass(frozen=True)
class SoftmaxModel:
    """Softmax regression with cross-entropy; parameters are weights (k, c), row by row, then biases (c).

    Targets are classes from 0 to c - 1; a record of another target is none, as one that is not finite.
    """

    num_classes: int

    def num_parameters(self, num_features: int) -> int:
        """The length of `parameters`."""
        return (num_features + 1) * self.num_classes

    def scores(self, parameters: Floats, features: npt.ArrayLike) -> Floats:
        """(N, c) logits."""
        x = np.asarray(features, np.float64)
        weights, biases = _parts(parameters, (x.shape[1], self.num_classes), (self.num_classes,))
        return _products(x, weights) + biases

    def gradients(self, parameters: Floats, features: Floats, targets: npt.ArrayLike) -> Floats:
        """See `RecordGradients`."""
        slopes = _softmax_slopes(self.scores(parameters, features), targets)
        return np.hstack([_outer(features, slopes), slopes])


@dataclass(frozen=True)
class TanhMlp:
    """A network with one hidden layer of tanh and softmax cross-entropy.

    Tanh keeps activations, and so gradients, bounded, which trains better under clipping than ReLU (Papernot
    et al. 2021). Parameters: weights (k, h), biases (h), weights (h, c), biases (c), each row by row.
    """

    num_hidden: int
    num_classes: int

    def num_parameters(self, num_features: int) -> int:
        """The length of `parameters`."""
        return (num_features + 1) * self.num_hidden + (self.num_hidden + 1) * self.num_classes

    def initial(self, num_features: int, seed: int) -> Floats:
        """(d,) parameters to begin with: normal weights of variance one over their inputs, biases 0."""
        rng = np.random.default_rng(seed)
        first = rng.normal(size=(num_features, self.num_hidden)) / math.sqrt(num_features)
        second = rng.normal(size=(self.num_hidden, self.num_classes)) / math.sqrt(self.num_hidden)
        biases = np.zeros(self.num_hidden), np.zeros(self.num_classes)
        return np.concatenate([first.ravel(), biases[0], second.ravel(), biases[1]])

    def scores(self, parameters: Floats, features: npt.ArrayLike) -> Floats:
        """(N, c) logits."""
        return self._forward(parameters, np.asarray(features, np.float64))[2]

    def gradients(self, parameters: Floats, features: Floats, targets: npt.ArrayLike) -> Floats:
        """See `RecordGradients`."""
        hidden, second, scores = self._forward(parameters, features)
        slopes = _softmax_slopes(scores, targets)
        inner = _products(slopes, second.T) * (1.0 - hidden**2)
        return np.hstack([_outer(features, inner), inner, _outer(hidden, slopes), slopes])

    def _forward(self, parameters: Floats, features: Floats) -> tuple[Floats, Floats, Floats]:
        """Hidden activations, the second layer's weights, and logits."""
        h, c = self.num_hidden, self.num_classes
        first, bias, second, last = _parts(parameters, (features.shape[1], h), (h,), (h, c), (c,))
        hidden: Floats = np.tanh(_products(features, first) + bias)
        return hidden, second, _products(hidden, second) + last


@dataclass(frozen=True)
class _Block:
    persons: slice
    records: slice


class _Persons:
    """Which records are whose.

    Attributes:
        number: Persons.
        codes: (N,) the person of each record.
        order: (N,) records by person.
        starts: (number,) where each person's begin in `order`.
        counts: (number,) records of each.
    """

    def __init__(self, persons: npt.ArrayLike | None, num_records: int, min_persons: int) -> None:
        keys = np.arange(num_records) if persons is None else np.asarray(persons)
        if keys.dtype.kind in "US" and not hasattr(persons, "dtype"):
            keys = np.array(persons, object)  # NumPy would make a person "nan" of what is missing
        if keys.shape != (num_records,):
            raise UsageError(
                f"persons: the shape {keys.shape} is not accepted; ({num_records},), a key a record"
            )
        if keys.dtype.kind == "O" and all(isinstance(key, str) for key in keys):
            keys = keys.astype(str)
        is_known = keys.dtype.kind in "iuUS" or (keys.dtype.kind == "f" and np.isfinite(keys).all())
        if not is_known or np.ma.is_masked(persons):
            raise UsageError("persons: keys are integers or texts, and none is missing")
        _, self.codes, self.counts = np.unique(keys, return_inverse=True, return_counts=True)
        self.number = len(self.counts)
        if self.number < max(1, min_persons):
            raise TooFewPersons(
                f"persons: {self.number} are not accepted; at least min_persons = {min_persons}, as each of "
                "them counts on so many"
            )
        self.order = np.argsort(self.codes, kind="stable")
        self.starts = np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    def record_shares(self) -> Floats:
        """(N,) each record's share of the mean over persons of the means over their records."""
        return 1.0 / (self.number * self.counts[self.codes])

    def blocks(self, most: int) -> Iterator[_Block]:
        """Whole persons, in order, of together `most` records unless one has more."""
        first, ends = 0, np.append(self.starts[1:], len(self.order))
        while first < self.number:
            begin = int(self.starts[first])
            last = max(first + 1, int(np.searchsorted(ends, begin + most, side="right")))
            yield _Block(slice(first, last), slice(begin, int(ends[last - 1])))
            first = last


def _clipped_sum(
    sums: Floats, groups: _Persons, clip_norm: float, persons: slice = slice(None)
) -> tuple[Floats, int]:
    """The sum of the clipped means of persons, given the sums over their records; how many were changed."""
    means = sums / groups.counts[persons, None]
    wrong = ~np.isfinite(means).all(axis=1)
    means[wrong] = 0.0
    peaks = np.maximum(np.abs(means).max(axis=1, initial=0.0), np.finfo(np.float64).tiny)[:, None]
    norms = peaks[:, 0] * np.sqrt(((means / peaks) ** 2).sum(axis=1))
    above = norms > clip_norm
    # Divided first: a norm may be beyond all floats.
    means[above] = means[above] / peaks[above] * (clip_norm / (norms[above] / peaks[above, 0]))[:, None]
    return means.sum(axis=0), int(above.sum() + wrong.sum())


def _at_most(rows: Floats, norm: float) -> Floats:
    """Each row scaled to this norm at most."""
    with np.errstate(over="ignore"):
        norms = np.sqrt((rows**2).sum(axis=1, keepdims=True))
    scaled: Floats = rows * np.minimum(1.0, norm / np.maximum(norms, np.finfo(np.float64).tiny))
    return scaled


def _checked(
    model: RecordGradients, parameters: npt.ArrayLike, features: npt.ArrayLike, targets: npt.ArrayLike
) -> tuple[Floats, Floats, Floats]:
    weights, x = np.asarray(parameters, np.float64), np.asarray(features, np.float64)
    y = np.asarray(targets, np.float64)
    if x.ndim != 2 or y.shape != x.shape[:1]:
        raise UsageError(
            f"features, targets: the shapes {x.shape}, {y.shape} are not accepted; (records, k) and "
            "(records,)"
        )
    if weights.shape != (due := (model.num_parameters(x.shape[1]),)):
        raise UsageError(
            f"parameters: the shape {weights.shape} is not accepted; {due} for {x.shape[1]} features"
        )
    return weights, x, y


def _check_clip_norm(clip_norm: float) -> None:
    if not 0.0 < clip_norm < math.inf:
        raise UsageError(f"clip_norm: {shown(clip_norm)} is not accepted; a positive number")


def _logistic(scores: Floats) -> Floats:
    logistic: Floats = 0.5 * (1.0 + np.tanh(0.5 * scores))
    return logistic


def _softmax_slopes(scores: Floats, targets: npt.ArrayLike) -> Floats:
    """(N, c) derivatives of cross-entropy by the logits; NaN where a target is no class."""
    given = np.asarray(targets, np.float64)
    # No error, which would tell of one person's record that it is malformed: its gradient is not finite.
    known = (given >= 0.0) & (given < scores.shape[1])
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    slopes: Floats = powers / powers.sum(axis=1, keepdims=True)
    slopes[np.arange(len(given)), np.where(known, given, 0.0).astype(np.int64)] -= 1.0
    slopes[~known] = np.nan
    return slopes


def _products(rows: Floats, matrix: Floats) -> Floats:
    """Rows @ matrix, each row for itself: BLAS would let a row's last bits depend on how many there are."""
    products: Floats = (rows[:, :, None] * matrix).sum(axis=1)
    return products


def _outer(left: Floats, right: Floats) -> Floats:
    """(N, a b) outer products of the rows of (N, a) and (N, b)."""
    return (left[:, :, None] * right[:, None, :]).reshape(len(left), -1)


def _parts(parameters: Floats, *shapes: tuple[int, ...]) -> tuple[Floats, ...]:
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    pieces = np.split(np.asarray(parameters, np.float64), ends[:-1])
    return tuple(piece.reshape(shape) for piece, shape in zip(pieces, shapes, strict=True))


__all__ = [
    "LinearModel",
    "PersonMean",
    "RecordGradients",
    "SoftmaxModel",
    "TanhMlp",
    "local_steps",
    "person_gradient",
    "person_mean",
    "standardise",
]
