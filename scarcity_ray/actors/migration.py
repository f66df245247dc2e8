"""Migration of clients between basket actors, in sealed boxes that the carrying driver cannot read.

A client's state holds its raw updates. The actor that it leaves seals the state to the key of another actor
(X25519, HKDF, AES-256-GCM). That key must have a tag under the federation's actors' key, which drivers give
to the basket actors that they start, and to no other role.

Guarantees:
    Only the actor that a box is sealed to can open it, for the client, basket and operation that it was made
        for.
    A key without its tag is refused.
    A box holds known plain data types alone; nothing in it is executed.
"""

from __future__ import annotations

import hmac
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scarcity_ray.baskets.basket import Basket, ClientMigration
from scarcity_ray.baskets.reputation import Reputation
from scarcity_ray.baskets.update_buffer import BufferedUpdate, ClientUpdates, ReplayKey
from scarcity_ray.errors import ProtocolViolation
from scarcity_ray.gossip import GossipMessage, GossipMigration, GossipState
from scarcity_ray.secagg.key_agreement import (
    KEY_BYTES,
    agree,
    derive_key,
    private_key_from,
    public_key_of,
    seal,
    unseal,
)
from scarcity_ray.secagg.transcript import encode

_PARTS: dict[str, Callable[..., Any]] = {
    kind.__name__: kind
    for kind in (
        ClientMigration,
        ClientUpdates,
        BufferedUpdate,
        ReplayKey,
        GossipMigration,
        GossipState,
        GossipMessage,
        Reputation,
    )
}
_HEADER = 8


@dataclass(frozen=True)
class ActorKey:
    """The public half of an actor's key, 32 bytes, with the tag that proves that it is an actor's."""

    public: bytes
    tag: bytes


@dataclass(frozen=True, eq=False)
class SealedBox:
    """One client's state as ciphertext, with the public half of the key that it was sealed with."""

    client_id: str
    public: bytes
    sealed: bytes


class MigrationDesk:
    """One actor's side of the migrations of an operation.

    Calls may be repeated: the state of clients that left is kept until the basket closes, in case a box or
    its addressee is lost; a client that arrived is added once.

    Args:
        actors_key: Shared by all basket actors of the federation, 32 bytes.

    Attributes:
        key: Boxes for this actor are sealed to it.
    """

    def __init__(self, actors_key: bytes) -> None:
        self._actors_key = actors_key
        self._private = private_key_from(os.urandom(KEY_BYTES))
        public = public_key_of(self._private)
        self.key = ActorKey(public, self._tag(public))
        self._left: dict[str, ClientMigration] = {}
        self._arrived: set[str] = set()

    def begin(self) -> None:
        """Forget the operation before this one."""
        self._left.clear()
        self._arrived.clear()

    def forget_left(self) -> None:
        """Forget the clients that left: their basket is closed."""
        self._left.clear()

    def take(
        self, basket: Basket | None, homes: Mapping[str, tuple[str, ActorKey]], operation_id: str
    ) -> tuple[SealedBox, ...]:
        """Seal the states of clients that move.

        Args:
            basket: The basket that they leave; None once it is closed.
            homes: The basket that each moves to, and the key of the actor there.

        Raises:
            ProtocolViolation: If a key is no actor's.
        """
        if basket is not None:
            self._left |= {c: basket.take(c) for c in homes if c in basket.members}
        return tuple(
            self.seal(self._left[client_id], home, operation_id, key)
            for client_id, (home, key) in sorted(homes.items())
            if client_id in self._left
        )

    def put(
        self, baskets: Mapping[str, Basket], basket_id: str, boxes: Sequence[SealedBox], operation_id: str
    ) -> bool:
        """Add the states of clients that move to a basket; whether all boxes could be opened."""
        opened = True
        for box in boxes:
            if box.client_id not in self._arrived:
                moved = self.open(box, basket_id, operation_id)
                opened = opened and moved is not None
                if moved is not None:
                    baskets[basket_id].put(moved)
                    self._arrived.add(box.client_id)
        return opened

    def seal(self, moved: ClientMigration, basket_id: str, operation_id: str, to: ActorKey) -> SealedBox:
        """Seal a client's state for the actor of its new basket.

        Raises:
            ProtocolViolation: If the key is not that of an actor of this federation.
        """
        if not hmac.compare_digest(to.tag, self._tag(to.public)):
            raise ProtocolViolation("what belongs to a client is sealed to this federation's actors only")
        private = private_key_from(os.urandom(KEY_BYTES))
        public = public_key_of(private)
        bound = encode("parcel", moved.client_id, basket_id, operation_id, public, to.public)
        key = derive_key(agree(private, to.public), "parcel", bound)
        return SealedBox(moved.client_id, public, seal(key, packed(moved), bound))

    def open(self, box: SealedBox, basket_id: str, operation_id: str) -> ClientMigration | None:
        """The content of a box; None if it was made for another actor, basket or operation, or changed."""
        bound = encode("parcel", box.client_id, basket_id, operation_id, box.public, self.key.public)
        key = derive_key(agree(self._private, box.public), "parcel", bound)
        plain = unseal(key, box.sealed, bound)
        return None if plain is None else unpacked(plain)

    def _tag(self, public: bytes) -> bytes:
        return hmac.digest(self._actors_key, encode("actor", public), "sha256")


def packed(moved: ClientMigration) -> bytes:
    """A migration as bytes: a JSON header, and the arrays behind it as they lie in memory."""
    arrays: list[NDArray[Any]] = []
    header = json.dumps(_written(moved, arrays), separators=(",", ":")).encode()
    return b"".join([len(header).to_bytes(_HEADER, "big"), header, *(a.tobytes() for a in arrays)])


def unpacked(plain: bytes) -> ClientMigration:
    """The migration of which `packed` made these bytes."""
    start = _HEADER + int.from_bytes(plain[:_HEADER], "big")
    reader = _Reader(memoryview(plain)[start:])
    moved = reader.read(json.loads(plain[_HEADER:start]))
    if not isinstance(moved, ClientMigration):
        raise ProtocolViolation(f"a box of a client's belongings holds a {type(moved).__name__}")
    return moved


def _written(value: Any, arrays: list[NDArray[Any]]) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    if isinstance(value, np.ndarray):
        array = np.ascontiguousarray(value, value.dtype.newbyteorder("<"))
        arrays.append(array)
        return {"array": array.dtype.str, "shape": array.shape}
    if isinstance(value, ReplayKey) or is_dataclass(value):
        names = value._fields if isinstance(value, ReplayKey) else [f.name for f in fields(value)]
        parts = {name: _written(getattr(value, name), arrays) for name in names}
        return {"is": type(value).__name__, "of": parts}
    if type(value) is dict:
        return {"dict": [[_written(key, arrays), _written(item, arrays)] for key, item in value.items()]}
    for kind in (tuple, list, set, frozenset):
        if type(value) is kind:
            items = sorted(value) if kind in (set, frozenset) else value
            return {kind.__name__: [_written(item, arrays) for item in items]}
    raise TypeError(f"a box cannot hold a {type(value).__name__}")


class _Reader:
    """Reads what `_written` made; arrays are private copies, read-only."""

    def __init__(self, data: memoryview) -> None:
        self._data = data

    def read(self, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        if "is" in value:
            return _PARTS[value["is"]](**{name: self.read(part) for name, part in value["of"].items()})
        if "bytes" in value:
            return bytes.fromhex(value["bytes"])
        if "array" in value:
            dtype, shape = np.dtype(value["array"]), tuple(value["shape"])
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            array: NDArray[Any] = np.ndarray(shape, dtype, self._data[:size]).copy()
            self._data = self._data[size:]
            array.setflags(write=False)
            return array
        ((kind, items),) = value.items()
        if kind == "dict":
            return {self.read(key): self.read(item) for key, item in items}
        kinds = {"tuple": tuple, "list": list, "set": set, "frozenset": frozenset}
        return kinds[kind](self.read(item) for item in items)
