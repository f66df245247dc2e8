"""Three sites with 300 made-up patients each: will one come back within a month? NumPy alone."""

import numpy as np

from scarcity_ray_client import Client, Trained, Workload

SITES = ("north", "south", "west")
TRUTH = np.array([1.5, -2.0, 0.5, 1.0, 0.0])


def patients(seed):
    """Measurements (300, 5) and answers (300,) that a site, or the test set, has."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((300, 5))
    return x, rng.random(300) < 1 / (1 + np.exp(-x @ TRUTH))


class Readmission(Workload):
    """Logistic regression, a few steps of gradient descent a round."""

    def clients(self):
        """Each site is a domain, and a basket, of its own."""
        return [Client(site, site, data=number, num_examples=300) for number, site in enumerate(SITES)]

    def initial_model(self):
        """Nothing is known yet."""
        return {"weights": np.zeros(5, np.float32)}

    def train(self, model, client, round_id):
        """At the site, on its own patients."""
        x, y = patients(client.data)
        for _ in range(5):
            model["weights"] -= 0.5 * x.T @ (1 / (1 + np.exp(-x @ model["weights"])) - y) / len(y)
        return Trained(model=model)

    def evaluate(self, model):
        """At the gateway, on patients that no site has."""
        x, y = patients(99)
        return {"accuracy": float(np.mean((x @ model["weights"] > 0) == y))}
