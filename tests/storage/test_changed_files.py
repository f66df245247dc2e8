"""Changed stored files are refused by name with a documented error, or read as what they were.

A bit turns, the end is missing, two pieces have changed places, a piece is there twice or not at all. Nothing
but a `ScarcityError` may come out, and no other numbers.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray import HierarchicalFederationConfig, ScarcityError
from scarcity_ray.baskets.basket import Basket
from scarcity_ray.baskets.journalled import BasketJournal
from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.retained import CODEC, replay
from scarcity_ray.baskets.submission import Submission
from scarcity_ray.baskets.unsaved import Unsaved
from scarcity_ray.config import load
from scarcity_ray.plan import FederationPlan
from scarcity_ray.privacy import DurableBudget
from scarcity_ray.privacy.sampling.noise import SeededNoise
from scarcity_ray.secagg.roster import Roster
from scarcity_ray.storage.codec import Codec
from scarcity_ray.storage.journal import Journal, JournalPlace
from scarcity_ray.storage.snapshots import ChangingState, Snapshots
from scarcity_ray.workloads.config import load_run
from scarcity_ray_client import Policy, SiteLedger, load_model
from scarcity_ray_client.policy import SignedPolicy
from scarcity_ray_client.receipts import ReceiptProof, ReleaseRecord, SignedReceipt
from tests.storage.test_format_versions import FIXTURES, database

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@contextmanager
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as made:
        yield Path(made)


@st.composite
def changes(draw: st.DrawFn) -> Callable[[bytes], bytes]:
    """A change of a file's bytes; places are shares of its length."""
    kind = draw(st.sampled_from(["bit", "cut", "swap", "twice", "gone", "zeros"]))
    share, other = draw(st.floats(0, 1, exclude_max=True)), draw(st.floats(0, 1, exclude_max=True))
    size, bit = draw(st.integers(1, 64)), draw(st.integers(0, 7))

    def change(content: bytes) -> bytes:
        at, to = sorted((int(share * len(content)), int(other * len(content))))
        piece, then = content[at : at + size], content[to : to + size]
        if kind == "bit":
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
        if kind == "cut":
            return content[:at]
        if kind == "twice":
            return content[: at + size] + piece + content[at + size :]
        if kind == "gone":
            return content[:at] + content[at + size :]
        if kind == "zeros":
            return content[:at] + bytes(len(piece)) + content[at + size :]
        size_apart = min(size, to - at)
        piece, then = content[at : at + size_apart], content[to : to + size_apart]
        return content[:at] + then + content[at + len(then) : to] + piece + content[to + len(piece) :]

    return change


# Each reads its file as the product does, and gives what it says.


def ledger(path: Path) -> Any:
    with closing(DurableBudget.open(path, must_exist=True, now=3.0, **TERMS)) as budget:
        status = budget.status(3.0)
        return status.lifetime_epsilon, status.federation_id, status.period


def site_ledger(path: Path) -> Any:
    policy = Policy("ann", "person", 3.0, 1e-6, "f1")
    with closing(SiteLedger.open(path, policy, federation_id="f1", is_proof=True)) as kept:
        sent = kept.send("ann", 3, 0.1, lambda: np.zeros(2, np.float32))
        assert isinstance(sent, np.ndarray)
        return kept.epsilon_spent, sent.tolist()


def journal(path: Path) -> Any:
    place = path.parent / "journal" / "f1"
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.parent.chmod(0o700)
    shutil.copyfile(path, place / "basket-0.sqlite")
    (place / "basket-0.sqlite-wal").unlink(missing_ok=True)
    with closing(Journal(JournalPlace(str(place.parent)), "f1", 0, 1)) as file:
        kept = BasketJournal(file, keeps_states=True)
        told = []
        for name in kept.baskets():
            made = basket(name)
            clients = kept.restore(made)
            told.append((name, sorted(clients), [rows_of(made)], made.report().num_buffered))
        return told


def rows_of(made: Basket) -> Any:
    return [(u.client_id, u.round_id, u.update.tolist()) for u in made._buffer.updates()]


def snapshot(path: Path) -> Any:
    state = Snapshots(str(path.parent), "f1", 1).read_file(path.name, Codec())
    return state["round"], state["weights"].tolist()


def retained(path: Path) -> Any:
    kept = Snapshots(str(path.parent)).read_file(path.name, CODEC)
    return [(a.digest, replay(a).faults) for a in kept]


def model(path: Path) -> Any:
    return {name: value.tolist() for name, value in load_model(path).items()}


def config(path: Path) -> Any:
    return load_run(path)


def texts(read: Callable[[str], Any]) -> Callable[[Path], Any]:
    return lambda path: read(path.read_text(errors="surrogateescape"))


TERMS: dict[str, Any] = {"name": "town", "total_epsilon": 10.0, "total_delta": 1e-5, "gossip_share": 0.25}
PLAN = FederationPlan(
    load(HierarchicalFederationConfig, {"vector_dim": 2, "ledger_path": ":memory:", "total_epsilon": 100.0})
)


def basket(name: str) -> Basket:
    made = Basket(name, "d", PLAN, "f1", SeededNoise(1), 0, 1, 0, None)
    made.unsaved = Unsaved()
    return made


def a_journal(path: Path) -> None:
    place = JournalPlace(str(path.parent / "made"))
    with closing(Journal(place, "f1", 0, 1)) as file:
        kept, made = BasketJournal(file, keeps_states=True), [basket("b0"), basket("b1")]
        for number in range(3):
            for one in made:
                one.admit(Member(f"c{number}", "d"))
                row = np.array([number, ord(one.basket_id[-1])], np.float32)
                assert one.submit(Submission(f"c{number}", row, 0), False, 1.0)
            kept.save(made)
    shutil.move(place.path("f1", 0), path)


def a_log(path: Path) -> None:
    kept, held = ChangingState(Snapshots(str(path.parent / "log"), "f1"), "directory", Codec()), list[int]()
    for number in range(6):
        held.append(number)
        kept.change([number], lambda: list(held))
    *_, file = sorted((path.parent / "log").iterdir())
    (path.parent / "log-name").write_text(file.name)
    shutil.copyfile(file, path)


def log(path: Path) -> Any:
    file = path.parent / "log" / (path.parent / "log-name").read_text()
    shutil.copyfile(path, file)
    state = ChangingState(Snapshots(str(file.parent), "f1"), "directory", Codec()).read()
    return state


def fixture(name: str) -> Callable[[Path], object]:
    if name.endswith(".sql"):
        return lambda path: database(path, name)
    return lambda path: shutil.copyfile(FIXTURES / name, path)


FILES: dict[str, tuple[Callable[[Path], object], Callable[[Path], Any]]] = {
    "ledger": (fixture("ledger-1.sql"), ledger),
    "site_ledger": (fixture("site_ledger-2.sql"), site_ledger),
    "journal": (a_journal, journal),
    "log": (a_log, log),
    "snapshot": (fixture("snapshot-1.model.00000001.000000000001"), snapshot),
    "retained": (fixture("retained-1.rows"), retained),
    "model": (fixture("model-1.npz"), model),
    "config": (fixture("config-1.yaml"), config),
    "receipt": (fixture("receipt-1.json"), texts(SignedReceipt.from_text)),
    "proof": (fixture("receipt_proof-1.json"), texts(ReceiptProof.from_text)),
    "record": (fixture("release_record-2.jsonl"), texts(ReleaseRecord.from_text)),
    "roster": (fixture("roster-1.json"), texts(Roster.from_json)),
    "policy": (fixture("policy-1.json"), texts(SignedPolicy.from_text)),
}
BY_PERSON = {"config", "receipt", "proof", "record", "roster", "policy", "model"}
"""Files without a checksum of their own: people write them, or a signature that is checked elsewhere covers
them. Changed, they may say something else."""


def said(read: Callable[[Path], Any], path: Path) -> Any:
    """What a file says, or the error that refuses it."""
    try:
        return read(path)
    except ScarcityError as refused:
        return refused


def is_start(told: Any, whole: Any) -> bool:
    """Whether a log ends earlier: its end is what a change that was stopped leaves, and is not read."""
    return bool(told[0] == whole[0] and told[1] == whole[1][: len(told[1])])


@pytest.mark.parametrize("kind", FILES)
@given(change=changes())
def test_a_changed_file_is_refused_by_name_or_says_what_it_said(
    kind: str, change: Callable[[bytes], bytes]
) -> None:
    make, read = FILES[kind]
    with folder() as place:
        path = place / "kept.file"
        make(path)
        content = path.read_bytes()
        expected = read(path)
        path.write_bytes(change(content))
        for beside in place.glob("kept.file-*"):
            beside.unlink()
        told = said(read, path)
        if kind not in BY_PERSON:
            assert told == expected or str(place) in str(told) or (kind == "log" and is_start(told, expected))
