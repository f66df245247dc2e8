"""Averages of gossiped vectors by other libraries' own functions, for `benchmarks.gossip`.

Each runs in an interpreter of its own, one thread: p2pfl asks for ``numpy<2``, which we do not run on.

- *gossipy* (``gossipy-dfl`` on the package index; ``gossipy`` there is a chat program): its model handler's
  merge. In the extra ``bench``.
- *p2pfl*: its FedAvg on the models that a node holds. For an interpreter of its own (``--peers``): ``pip
  install 'p2pfl[dp]' 'pyarrow<21'``; it imports both without asking for them.
- *decentralizepy* is not on the package index; it is installed from its repository, and its averaging is
  bound to its own processes and sockets, so there is no function to call beside ours.

Neither noises, clips, charges or doubts what it hears: only the plain average is comparable.
"""

from __future__ import annotations

import subprocess

SAME = 1e-5
"""Distance from the exact average, over its norm, within which a peer does the same work."""

SCRIPTS = {
    "p2pfl": """
from p2pfl.learning.aggregators.fedavg import FedAvg
from p2pfl.learning.frameworks.p2pfl_model import P2PFLModel
class Model(P2PFLModel):
    def build_copy(self, **kw): return Model(self.model, **kw)
    def get_parameters(self): return self.weights
    def set_parameters(self, params): self.weights = params
    def get_framework(self): return "numpy"
    def __init__(self, model, params=None, num_samples=1, contributors=None, **kw):
        self.model, self.weights = model, params
        self.num_samples, self.contributors = num_samples, contributors
    def get_num_samples(self): return self.num_samples
    def get_contributors(self): return self.contributors
models = [Model(None, [row], 1, [str(i)]) for i, row in enumerate(states)]
rule = FedAvg()
rule.set_addr("here")
def work():
    global merged
    merged = [rule.aggregate([models[i], *(models[j] for j in row)]) for i, row in enumerate(heard)]
def answer(): return np.stack([model.weights[0] for model in merged])
""",
    "gossipy": """
import torch
torch.set_num_threads(1)
from gossipy.model.handler import TorchModelHandler
class Net(torch.nn.Module):
    def __init__(self, row):
        super().__init__()
        self.p = torch.nn.Parameter(torch.from_numpy(row.copy()), requires_grad=False)
def handler(row):
    made = TorchModelHandler.__new__(TorchModelHandler)
    made.model, made.n_updates = Net(row), 0
    return made
models = [handler(row) for row in states]
mine = [handler(row) for row in states]
def work():
    for own, row in zip(mine, heard): TorchModelHandler._merge(own, [models[j] for j in row])
def answer(): return np.stack([own.model.p.numpy() for own in mine])
""",
}
HARNESS = """
import sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
n, d, k = map(int, sys.argv[1:4])
states = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
heard = [[(i + j + 1) % n for j in range(k)] for i in range(n)]
{body}
start = time.process_time(); work(); best = time.process_time() - start
right = np.stack([states[[i, *row]].mean(axis=0) for i, row in enumerate(heard)])
print("APART", np.linalg.norm(answer() - right) / np.linalg.norm(right))
for _ in range(2):
    start = time.process_time(); work(); best = min(best, time.process_time() - start)
print("SECONDS", best)
"""


def peer_seconds(python: str, peer: str, n: int, d: int, peers: int) -> float | str:
    """Processor seconds of a peer for n averages of K + 1 vectors, or why it was left out."""
    script = HARNESS.replace("{body}", SCRIPTS[peer])
    command = [python, "-c", script, str(n), str(d), str(peers)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"skipped: {error}"
    found = dict(line.split() for line in done.stdout.splitlines() if line.startswith(("SECONDS", "APART")))
    if "SECONDS" not in found:
        return f"skipped: {(done.stderr.strip().splitlines() or ['no output'])[-1]}"
    if float(found["APART"]) > SAME:
        return f"skipped: its average lies {float(found['APART']):.2g} from the average"
    return float(found["SECONDS"])
