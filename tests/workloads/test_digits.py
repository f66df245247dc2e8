"""The data set, its projection, and the workload."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.fft import dctn

from scarcity_ray.errors import UsageError
from scarcity_ray.workloads import digit_images
from scarcity_ray.workloads.digit_images import (
    KERNEL_WIDTH,
    frequencies,
    load_digits,
    projection,
    random_fourier,
)
from scarcity_ray.workloads.digits import Digits
from scarcity_ray_client import train_client, train_clients


def test_the_projection_is_scipys_cosine_transform_cut_to_low_frequencies():
    image = np.random.default_rng(0).random((8, 8))
    transformed = dctn(image, norm="ortho")
    expected = [transformed[pair] for pair in frequencies(24)]
    assert np.allclose(image.ravel() @ projection(24), expected)
    assert np.allclose(projection(64).T @ projection(64), np.eye(64))


def test_frequencies_come_lowest_first_and_once():
    assert frequencies(4) == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert len(set(frequencies(64))) == 64


def test_the_products_of_random_features_approach_the_gaussian_kernel():
    rows = np.random.default_rng(0).standard_normal((20, 24)) / 3
    lifted = random_fourier(rows, 50_000)
    distances = np.square(rows[:, None] - rows[None]).sum(axis=2)
    # a product is a mean of 50,000 bounded by 2 in size: Hoeffding, 400 pairs, two-sided, below 1e-10
    assert np.allclose(lifted @ lifted.T, np.exp(-distances / (2 * KERNEL_WIDTH**2)), atol=0.07)
    assert np.array_equal(lifted, random_fourier(rows, 50_000))


def test_random_features_take_the_projected_ones_place():
    pytest.importorskip("sklearn")
    plain, lifted = load_digits(64, 0.25, 1), load_digits(64, 0.25, 1, 100)
    assert lifted.train_features.shape == (1348, 100)
    assert np.array_equal(plain.test_labels, lifted.test_labels)


def test_every_digit_is_in_one_part_and_the_seed_decides_which():
    pytest.importorskip("sklearn")
    first, again, other = (load_digits(8, 0.25, seed) for seed in (1, 1, 2))
    assert len(first.train_labels) + len(first.test_labels) == 1797
    assert first.train_features.shape == (1348, 8)
    assert first.train_features.dtype == np.float32
    assert np.array_equal(first.test_labels, again.test_labels)
    assert not np.array_equal(first.test_labels, other.test_labels)
    counts = np.bincount(first.train_labels) + np.bincount(first.test_labels)
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


@pytest.mark.parametrize("file", [digit_images.DIGITS_FILE, "not there"])
def test_they_are_the_digits_that_scikit_learn_gives(file, monkeypatch):
    theirs = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    monkeypatch.setattr(digit_images, "DIGITS_FILE", file)
    table = digit_images._bundled.__wrapped__()
    assert np.array_equal(table[:, :-1], theirs[0])
    assert np.array_equal(table[:, -1], theirs[1])


def test_without_scikit_learn_the_error_holds_the_command(monkeypatch):
    digit_images._bundled.cache_clear()
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(UsageError, match=r"pip install 'scarcity-ray\[quickstart\]'"):
        load_digits(8, 0.25, 0)


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return Digits(clients=12, domains=3)


def test_the_workload_learns_what_it_says(digits):
    codec = digits.codec()
    vector = codec.encode(digits.initial_model())
    assert codec.dimension == 250
    before = digits.evaluate(codec.decode(vector))["accuracy"]
    for number in range(5):
        updates = train_clients(digits, codec, vector, digits.clients(), number)
        vector = vector + np.mean([update.delta for update in updates], axis=0)
    after = digits.evaluate(codec.decode(vector))["accuracy"]
    assert after > 0.8 > before
    assert digits.evaluate(digits.centralised())["accuracy"] > after
    at_home = digits.evaluate_client(codec.decode(vector), digits.clients()[0])["accuracy"]
    assert 0.5 < at_home <= 1.0


def test_clients_trained_together_give_what_each_gives_alone_from_any_models(digits):
    codec, clients = digits.codec(), digits.clients()[:3]
    vectors = np.random.default_rng(0).standard_normal((3, 250)).astype(np.float32)
    together = train_clients(digits, codec, vectors, clients, 0, {clients[1].client_id})
    for row, update in enumerate(together):
        alone = train_client(digits, codec, vectors[row], clients[row], 0, attacker=row == 1)
        assert alone.delta.tobytes() == update.delta.tobytes()
        assert update.num_examples == clients[row].num_examples


def test_an_attacker_turns_its_labels(digits):
    model, client = digits.initial_model(), digits.clients()[0]
    honest, poisoned = (
        trained.delta.reshape(25, 10)
        for trained in (digits.train(model, client, 0), digits.poison(model, client, 0))
    )
    # from zeros the first step treats all classes alike, so that turned labels turn the columns
    first = Digits(clients=12, domains=3, local_steps=1)
    plain, turned = first.train(model, client, 0).delta, first.poison(model, client, 0).delta
    np.testing.assert_allclose(turned.reshape(25, 10)[:, ::-1], plain.reshape(25, 10), atol=1e-7)
    assert not np.allclose(honest, poisoned)


def test_at_home_weighs_digits_as_the_domains_own_are(digits):
    always_three = digits.initial_model()
    always_three["bias"][3] = 1.0
    for domain in range(3):
        inside = [client for client in digits.clients() if client.domain_id == f"domain_{domain}"]
        rows = [client.data[0] for client in inside]
        held = digits._examples.labels[rows][digits._examples.present[rows] > 0]
        found = digits.evaluate_client(always_three, inside[0])["accuracy"]
        assert found == pytest.approx(float((held == 3).mean()))


@pytest.mark.parametrize("name", ["clients", "domains", "features", "local_steps"])
def test_arguments_out_of_range_are_named(name):
    with pytest.raises(UsageError, match=f"^{name}: 0 is not accepted; an integer from 1"):
        Digits(**{name: 0})
