"""scikit-learn's linear models and MLPs as models."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from scarcity_ray_client import (
    Cause,
    Client,
    ModelCodec,
    ModelRefused,
    Refusal,
    Trained,
    UsageError,
    Workload,
    initialised,
    load_model,
    save_model,
    train_client,
)

pytest.importorskip("sklearn", reason="scikit-learn is not installed")

from sklearn.datasets import load_breast_cancer
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import (
    ElasticNet,
    LinearRegression,
    LogisticRegression,
    PoissonRegressor,
    Ridge,
    RidgeClassifier,
    SGDClassifier,
    SGDRegressor,
)
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

CLASSIFIERS = [
    LogisticRegression(),
    SGDClassifier(loss="log_loss", random_state=0, early_stopping=True),
    RidgeClassifier(),
    LinearSVC(),
    MLPClassifier((4, 3), random_state=0),
    MLPClassifier((4,), solver="lbfgs", random_state=0, batch_size=32, early_stopping=True),
]
REGRESSORS = [
    LinearRegression(),
    LinearRegression(fit_intercept=False),
    Ridge(),
    ElasticNet(),
    PoissonRegressor(),
    SGDRegressor(random_state=0),
    MLPRegressor(hidden_layer_sizes=(4,), random_state=0),
]
POINTS = np.random.default_rng(0).normal(size=(60, 3))


def named(estimator):
    return f"{type(estimator).__name__}{estimator.get_params().get('solver', '')}"


def numbers(estimator):
    learned = [
        getattr(estimator, n)
        for n in ("coef_", "intercept_", "coefs_", "intercepts_")
        if n in vars(estimator)
    ]
    return np.concatenate([np.ravel(a) for x in learned for a in (x if isinstance(x, list) else [x])])


@pytest.mark.parametrize("estimator", [*CLASSIFIERS, *REGRESSORS], ids=named)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("labels", [["a", "b"], [0, 1, 2]], ids=["two", "three"])
def test_an_estimator_gets_its_shapes_and_comes_back(estimator, labels):
    classifier = estimator in CLASSIFIERS
    targets = np.resize(labels, 60) if classifier else np.abs(POINTS[:, 0])
    model = initialised(estimator, 3, labels if classifier else None)
    assert model.get_params() == estimator.get_params()
    assert not vars(estimator).get("n_features_in_")
    codec = ModelCodec(model)
    fitted = pickle.loads(pickle.dumps(estimator)).fit(POINTS, targets)
    vector = codec.encode(fitted)
    assert vector.size == codec.dimension == numbers(fitted).size
    again = codec.decode(vector)
    np.testing.assert_allclose(numbers(again), numbers(fitted), rtol=1e-6)
    if classifier:
        assert (again.predict(POINTS) == fitted.predict(POINTS)).all()
    else:
        np.testing.assert_allclose(again.predict(POINTS), fitted.predict(POINTS), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(codec.encode(again), vector)
    if "hidden_layer_sizes" not in model.get_params():
        assert not numbers(model).any()
    else:
        assert np.std(numbers(model)) > 0.1


@pytest.mark.parametrize("estimator", [CLASSIFIERS[1], CLASSIFIERS[4], *REGRESSORS[5:]], ids=named)
def test_a_decoded_estimator_trains_on_from_where_it_is(estimator):
    targets = np.resize([0, 1, 2], 60) if estimator in CLASSIFIERS else POINTS[:, 0]
    own = {"early_stopping": False, "learning_rate": "constant"}
    rate = "eta0" if "eta0" in estimator.get_params() else "learning_rate_init"
    estimator = pickle.loads(pickle.dumps(estimator)).set_params(**own, **{rate: 1e-12})
    model = initialised(estimator, 3, [0, 1, 2] if estimator.__sklearn_tags__().classifier_tags else None)
    codec = ModelCodec(model)
    vector = np.random.default_rng(1).normal(size=codec.dimension).astype(np.float32)
    after = codec.decode(vector)
    after.partial_fit(POINTS, targets)
    np.testing.assert_allclose(codec.encode(after), vector, atol=1e-4)
    np.testing.assert_array_equal(codec.encode(codec.decode(vector)), vector)
    if hasattr(after, "coefs_"):
        assert not hasattr(codec.decode(vector), "_optimizer")


def test_an_initialised_mlp_has_the_weights_that_its_own_fit_would_begin_with():
    begun = initialised(MLPClassifier((4,), random_state=3, alpha=5.0, learning_rate_init=0.5), 3, [0, 1])
    tiny = MLPClassifier((4,), random_state=3, max_iter=1, solver="sgd", learning_rate_init=1e-300, alpha=0)
    with pytest.warns(Warning, match="Maximum iterations"):
        tiny.fit(POINTS, np.resize([0, 1], 60))
    np.testing.assert_array_equal(numbers(begun), numbers(tiny))
    assert (begun.t_, begun.n_iter_, begun.best_loss_) == (0, 0, np.inf)


def test_what_keeps_its_knowledge_elsewhere_is_refused_by_name():
    features, targets = POINTS, np.resize([0, 1], 60)
    for model in (
        RandomForestClassifier(2).fit(features, targets),
        PCA(2).fit(features),
        make_pipeline(StandardScaler(), LogisticRegression()).fit(features, targets),
        SVC(kernel="linear").fit(features, targets),
        SGDClassifier(average=True).fit(features, targets),
        LogisticRegression(),
    ):
        with pytest.raises(ModelRefused) as refused:
            ModelCodec(model)
        assert (refused.value.part, refused.value.flaw) == (type(model).__name__, "unsupported")
    sparse = SGDClassifier().fit(features, targets).sparsify()
    with pytest.raises(ModelRefused, match="coef_: a sparse array"):
        ModelCodec(sparse)


def test_initialising_asks_for_what_it_needs():
    with pytest.raises(UsageError, match="all classes"):
        initialised(LogisticRegression(), 3)
    with pytest.raises(UsageError, match="all classes"):
        initialised(LogisticRegression(), 3, ["one"])
    with pytest.raises(UsageError, match="cannot be given its shapes"):
        initialised(LogisticRegression(C=-1.0), 3, [0, 1])
    with pytest.raises(ModelRefused, match="RandomForestClassifier"):
        initialised(RandomForestClassifier(2), 3, [0, 1])


def test_other_classes_are_another_model():
    codec = ModelCodec(initialised(LogisticRegression(), 3, [0, 1]))
    other = LogisticRegression().fit(POINTS, np.resize([0, 2], 60))
    with pytest.raises(ModelRefused, match=r"classes_: it is \[0, 2\]; \[0, 1\] is due"):
        codec.encode(other)
    three = LogisticRegression().fit(POINTS, np.resize([0, 1, 2], 60))
    with pytest.raises(ModelRefused, match="classes_"):
        codec.encode(three)


def test_a_saved_estimator_is_read_into_an_initialised_one(tmp_path):
    fitted = LogisticRegression().fit(POINTS, np.resize(["ill", "well"], 60))
    save_model(tmp_path / "model.npz", fitted)
    again = load_model(tmp_path / "model.npz", like=initialised(LogisticRegression(), 3, ["ill", "well"]))
    np.testing.assert_array_equal(again.coef_, fitted.coef_)
    np.testing.assert_array_equal(again.predict_proba(POINTS), fitted.predict_proba(POINTS))
    with pytest.raises(ModelRefused, match="classes_"):
        load_model(tmp_path / "model.npz", like=initialised(LogisticRegression(), 3, ["a", "b"]))


class Tumours(Workload):
    """Breast cancer at three sites, one of which has healthy patients only."""

    def __init__(self) -> None:
        features, self.labels = load_breast_cancer(return_X_y=True)
        self.features = (features - features.mean(axis=0)) / features.std(axis=0)

    def clients(self):
        return [Client(name, "sites", data=part) for name, part in (("a", [0, 200]), ("b", [200, 400]))]

    def initial_model(self):
        return initialised(SGDClassifier(loss="log_loss", random_state=0), 30, [0, 1])

    def train(self, model, client, round_id):
        rows = slice(*client.data)
        if round_id == 9:
            kept = self.labels[rows] == 0
            return Trained(model=model.fit(self.features[rows][kept], self.labels[rows][kept]))
        return Trained(model=model.partial_fit(self.features[rows], self.labels[rows]))

    def evaluate(self, model):
        return {"accuracy": model.score(self.features[400:], self.labels[400:])}


def test_an_estimator_is_trained_federated():
    workload = Tumours()
    codec, model = workload.codec(), workload.initial_model()
    vector = codec.encode(model)
    for round_id in range(3):
        updates = [train_client(workload, codec, vector, site, round_id) for site in workload.clients()]
        vector = vector + np.mean([update.delta for update in updates], axis=0)
    assert workload.evaluate(codec.decode(vector))["accuracy"] > 0.93
    refusal = train_client(workload, codec, vector, workload.clients()[0], 9)
    assert isinstance(refusal, Refusal)
    assert refusal.cause is Cause.RAISED
    assert "number of classes has to be greater than one" in refusal.detail
