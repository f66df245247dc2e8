"""The events that a ledger records: one frozen type for each kind of row, and its encoding.

A row states an event by its ``kind``, by its ``body``, which has the fields below as plain data, and for a
gossip charge by a payload. A field that is None is left out, except ``name``. Unknown fields are not read.

A gossip charge's payload says which clients it covers. The places of n clients out of N known ones are kept
as a bitmap (N / 8 bytes) or as a list (4 n bytes), whichever is shorter, so a round of 1e5 clients takes
12.5 kB of the ledger. Layout: one byte ``B`` (bitmap) or ``L`` (list of little-endian uint32); the length of
that part in bytes as uint64; the part; the newcomers' names as a JSON list in UTF-8, in the order of their
places.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Strict, StrictBool, StrictInt, TypeAdapter, ValidationError

from scarcity_ray.errors import LedgerError
from scarcity_ray_client.formats import why_not_read
from scarcity_ray_client.policy import Policy, SignedPolicy

KIND, FORMAT = "scarcity_ray ledger", 1
Number = Annotated[float, Strict(), BeforeValidator(lambda value: math.inf if value == "inf" else value)]
"""A number as a row keeps it, infinity as text."""


@dataclass(frozen=True, kw_only=True)
class Genesis:
    """A ledger is made: its first row.

    Attributes:
        accounting: What it adds up (`Accounting`); None in those of before there was a choice.
        federation_id: The federation's random id.
        name: For people; empty in a ledger of before there were random ids, whose id is what people call it.
    """

    format: Literal[1]
    total_epsilon: Number
    total_delta: Number
    gossip_share: Number
    accounting: str | None = None
    neighbours: str | None = None
    federation_id: str = ""
    name: str | None = ""


@dataclass(frozen=True, kw_only=True)
class WriterEpoch:
    """A process becomes the ledger's writer, and each earlier one is refused.

    Attributes:
        name: Of its federation; empty where an earlier version wrote none. The other fields are None then.
        incarnation: How often a federation had been opened on the ledger, this time included.
        run: This opening's random number.
        operator_key: Whose signature renewals need, where this opening is the first to state it.
        operator: Who took the ledger over.
        federation_id: The random id of a ledger that had none.
    """

    pid: StrictInt | None = None
    host: str | None = None
    name: str | None = ""
    incarnation: StrictInt | None = None
    run: StrictInt | None = None
    operator_key: str | None = None
    operator: str | None = None
    federation_id: str | None = None


@dataclass(frozen=True)
class ReleaseCharge:
    """A central release, charged to all clients.

    Attributes:
        mu: What it is charged as; its square adds up.
        epsilon_spent: Of its period, worst case over all clients, this charge included.
    """

    mu: Number
    epsilon_spent: Number
    details: object


@dataclass(frozen=True)
class GossipMembers:
    """The clients that a gossip charge covers.

    Attributes:
        places: int64, sorted: where the clients stand in the accountant's list.
        newcomers: Names that the charge adds to that list.
    """

    places: NDArray[np.int64]
    newcomers: tuple[str, ...]


@dataclass(frozen=True)
class GossipCharge:
    """One gossip message of each of some clients, charged to that client alone.

    Attributes:
        mu: Of one message.
        charged: Number of clients charged.
        asked: Number of clients that wanted to send.
        payload: The clients charged, packed (`pack_gossip`).
    """

    mu: Number
    charged: StrictInt
    asked: StrictInt
    details: object
    payload: bytes

    @cached_property
    def members(self) -> GossipMembers:
        """The clients charged.

        Raises:
            ValueError: If the payload does not say it.
        """
        return unpack_gossip(self.payload)


@dataclass(frozen=True)
class RowCharge(GossipCharge):
    """One row of each of some clients, which each noises before it sends it; charged to that client alone."""


@dataclass(frozen=True)
class VoidedRelease:
    """A release is given up before it is charged, for good."""

    details: object


@dataclass(frozen=True)
class Renewal:
    """A new budget period, by the operator's decision."""

    total_epsilon: Number
    total_delta: Number
    operator: str
    details: object = None


@dataclass(frozen=True, kw_only=True)
class PolicyGiven:
    """A client's ceiling, as it signed it (`scarcity_ray_client.policy`); a later one is stricter.

    Attributes:
        public_key: Of the client, in hexadecimal digits, as `signature` is.
    """

    client_id: str
    unit: str
    lifetime_epsilon: Number
    delta: Number
    is_newcomer: StrictBool
    public_key: str
    signature: str
    federation_id: str = ""

    @classmethod
    def of(cls, signed: SignedPolicy) -> PolicyGiven:
        """The event of a signed policy."""
        return cls(
            **asdict(signed.policy), public_key=signed.public_key.hex(), signature=signed.signature.hex()
        )

    @property
    def signed(self) -> SignedPolicy:
        """The policy and its signature.

        Raises:
            ValueError: If no policy can be so.
        """
        policy = Policy(
            self.client_id,
            self.unit,
            self.lifetime_epsilon,
            self.delta,
            self.federation_id,
            self.is_newcomer,
        )
        return SignedPolicy(policy, bytes.fromhex(self.public_key), bytes.fromhex(self.signature))


@dataclass(frozen=True)
class LeftOut:
    """Clients are left out: their ceilings have no room for the next charge, and no release is theirs now.

    Attributes:
        clients: Their ids.
        mu: Of the charge that no longer fits.
    """

    clients: tuple[str, ...]
    mu: Number


@dataclass(frozen=True)
class SiteHeads:
    """Sites have told how far their own ledgers are: the number of rows and the head, by client."""

    heads: dict[str, tuple[StrictInt, str]]


@dataclass(frozen=True)
class UnknownEvent:
    """A row of a kind that this version does not know: it is shown, and charges nothing."""

    kind: str


Event = (
    Genesis
    | WriterEpoch
    | ReleaseCharge
    | GossipCharge
    | RowCharge
    | VoidedRelease
    | Renewal
    | PolicyGiven
    | LeftOut
    | SiteHeads
    | UnknownEvent
)

_TYPES: dict[str, type[Event]] = {
    "genesis": Genesis,
    "writer": WriterEpoch,
    "release": ReleaseCharge,
    "gossip": GossipCharge,
    "row": RowCharge,
    "void": VoidedRelease,
    "renewal": Renewal,
    "policy": PolicyGiven,
    "left_out": LeftOut,
    "site_heads": SiteHeads,
}
_KINDS = {made: kind for kind, made in _TYPES.items()}
_READERS: dict[str, TypeAdapter[Any]] = {kind: TypeAdapter(made) for kind, made in _TYPES.items()}


def kind_of(event: Event) -> str:
    """The kind that a row states for the event.

    >>> kind_of(VoidedRelease(details={}))
    'void'
    """
    return event.kind if isinstance(event, UnknownEvent) else _KINDS[type(event)]


def encode(event: Event) -> tuple[dict[str, object], bytes]:
    """An event's body and payload."""
    stated = {field.name: getattr(event, field.name) for field in fields(event)}
    body = {name: value for name, value in stated.items() if value is not None or name == "name"}
    body.pop("payload", None)
    return body, event.payload if isinstance(event, GossipCharge) else b""


def decode(kind: str, body: dict[str, object], payload: bytes) -> Event:
    """The event that a row states.

    Raises:
        ValueError: If a field is missing or is not what it must be; names the field.
        LedgerError: If the ledger is of a newer format.
    """
    version = body.get("format") if kind == "genesis" else None
    if type(version) is int and version > FORMAT:
        raise LedgerError(why_not_read(KIND, FORMAT, KIND, version))
    reader = _READERS.get(kind)
    if reader is None:
        return UnknownEvent(kind)
    try:
        event: Event = reader.validate_python({**body, "payload": payload})
    except ValidationError as error:
        wrong = error.errors()[0]
        raise ValueError(f"{kind}: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from None
    return event


def pack_gossip(places: NDArray[np.int64], newcomers: Sequence[str]) -> bytes:
    """Pack distinct places >= 0 and new names.

    >>> unpack_gossip(pack_gossip(np.array([5, 2]), ["ann"]))
    GossipMembers(places=array([2, 5]), newcomers=('ann',))
    """
    count = int(places.max(initial=-1)) + 1
    if count < 32 * places.size:
        bits = np.zeros(count, dtype=np.bool_)
        bits[places] = True
        tag, part = b"B", np.packbits(bits, bitorder="little").tobytes()
    else:
        tag, part = b"L", np.sort(places).astype("<u4").tobytes()
    return tag + len(part).to_bytes(8, "little") + part + json.dumps(list(newcomers)).encode()


def unpack_gossip(payload: bytes) -> GossipMembers:
    """Read what `pack_gossip` wrote."""
    end = 9 + int.from_bytes(payload[1:9], "little")
    part = payload[9:end]
    if payload[:1] == b"B":
        places = np.flatnonzero(np.unpackbits(np.frombuffer(part, dtype=np.uint8), bitorder="little"))
    else:
        places = np.frombuffer(part, dtype="<u4")
    return GossipMembers(places.astype(np.int64), tuple(json.loads(payload[end:])))


def renewal_message(
    federation_id: str, period: int, total_epsilon: float, total_delta: float, operator: str
) -> bytes:
    r"""The message that an operator signs to open a new budget period; it is valid for one federation, once.

    Args:
        period: The period that ends.
        operator: Who decides it, as the ledger will record.

    >>> renewal_message("ab", 0, 10, 1e-5, "ann")
    b'scarcity_ray/renewal/1\n["ab",0,"0x1.4000000000000p+3","0x1.4f8b588e368f1p-17","ann"]'
    """
    content = [federation_id, period, float(total_epsilon).hex(), float(total_delta).hex(), operator]
    return b"scarcity_ray/renewal/1\n" + json.dumps(content, separators=(",", ":")).encode()
