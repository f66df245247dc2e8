"""What became of the updates that baskets have signed receipts for, by the receipts' keys.

An update that waits, or is in the latest aggregate, is found there. What has left both is noted here, for a
number of rounds: with which aggregate it was handed in to a release, or why it was not.

Guarantees:
    what_was_handed_in_is_found_by_its_root: Whatever else is noted of it.
    a_restored_book_proves_what_the_book_before_did
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.layers.models import BasketModel
from scarcity_ray_client.merkle import KEY_BYTES, MerklePath, MerkleTree
from scarcity_ray_client.receipts import Fate, ReceiptProof


@dataclass(frozen=True, eq=False)
class Settled:
    """Updates that something has become of.

    Attributes:
        keys: Of their receipts, uint8, 32 for each.
        round_id: When.
        root: Over the keys, if they were handed in to a release; else empty.
    """

    fate: Fate
    keys: NDArray[np.uint8]
    round_id: int
    root: bytes = b""


class ReceiptBook:
    """One actor's notes.

    Attributes:
        unsaved: Changes for the journal, by name; None: forgotten.
    """

    def __init__(self) -> None:
        self.unsaved: dict[str, Settled | None] = {}
        self._settled: dict[str, Settled] = {}
        self._handed_in: dict[bytes, str] = {}
        self._trees: WeakKeyDictionary[BasketModel, MerkleTree] = WeakKeyDictionary()
        self._last = 0

    def root_of(self, model: BasketModel) -> bytes:
        """The root over the receipts for the updates in an aggregate."""
        if model not in self._trees:
            self._trees[model] = MerkleTree(split(model.receipts))
        return self._trees[model].root

    def settle(self, keys: bytes, fate: Fate, round_id: int, root: bytes = b"") -> None:
        """Note what has become of updates; nothing for no keys, or for a root that is noted already."""
        if not keys or (root and root in self._handed_in):
            return
        self._last += 1
        settled = Settled(fate, np.frombuffer(keys, np.uint8), round_id, root)
        self._note(str(self._last), settled)
        self.unsaved[str(self._last)] = settled

    def settle_model(self, model: BasketModel, fate: Fate, round_id: int) -> None:
        """Note what has become of an aggregate."""
        root = self.root_of(model) if fate is Fate.HANDED_IN and model.receipts else b""
        self.settle(model.receipts, fate, round_id, root)

    def prove(self, key: bytes, here: Fate | None = None) -> ReceiptProof:
        """What is known of an update, with its place in everything that was handed in.

        Args:
            here: If it waits, or is in a latest aggregate.
        """
        fates = {s.fate for s in self._settled.values() if key in set(split(s.keys.tobytes()))}
        # A handed-in aggregate may be discarded first, as a client leaves while the session goes on.
        fate = Fate.HANDED_IN if Fate.HANDED_IN in fates else next(iter(fates), here)
        paths: dict[str, MerklePath] = {}
        for root, name in self._handed_in.items():
            paths[root.hex()] = MerkleTree(split(self._settled[name].keys.tobytes())).path(key)
        return ReceiptProof(key, fate, paths)

    def forget_before(self, round_id: int) -> None:
        """Forget what was settled in earlier rounds."""
        for name in [name for name, settled in self._settled.items() if settled.round_id < round_id]:
            self._handed_in.pop(self._settled.pop(name).root, None)
            self.unsaved[name] = None

    def restore(self, found: Mapping[str, Settled]) -> None:
        """Take up what a journal has, in the place of everything."""
        self._settled, self._handed_in, self.unsaved = {}, {}, {}
        for name, settled in found.items():
            self._note(name, settled)
        self._last = max((int(name) for name in found), default=0)

    def _note(self, name: str, settled: Settled) -> None:
        self._settled[name] = settled
        if settled.root:
            self._handed_in[settled.root] = name


def split(keys: bytes) -> list[bytes]:
    """Keys one by one that lie one after the other."""
    return [keys[i : i + KEY_BYTES] for i in range(0, len(keys), KEY_BYTES)]
