"""Receipts for accepted updates: what a basket signs, and how a client shows that its update was counted.

A basket commits to each accepted row with a *hiding commitment*, a hash over a random salt and the row's
digest: a plain digest of an un-noised row would let anybody confirm a guess of it, whatever noise the release
has. Salt and receipt go to the client alone. One signature covers a batch, over the root of a `merkle` tree
of its receipts' keys. With a release each basket publishes, signed, the root over the keys of all updates
that are in its aggregate. So a receipt, the published roots and the paths that a basket gives show that the
update was counted, in one release and in no other (`audit_receipt`, docs/receipts.md).

*Counted* means: handed to the basket's rule, once. Whether the rule chose the row is not shown.

Guarantees:
    a_receipt_that_is_changed_or_forged_is_refused: In any field.
    a_receipt_says_nothing_of_the_row_without_its_salt: Under the random oracle model.
    an_update_in_one_release_is_shown_to_be_counted_once
    an_update_in_no_release_is_never_shown_to_be_counted
    two_releases_with_one_update_are_found
    a_signed_root_that_is_changed_is_refused
    what_is_not_shown_is_said: A release without a path of its own leaves the verdict open.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, TypeVar

from scarcity_ray_client.errors import UsageError, shown
from scarcity_ray_client.formats import why_not_read
from scarcity_ray_client.identity import IdentityKeyPair
from scarcity_ray_client.merkle import KEY_BYTES, MerklePath, MerkleTree

T = TypeVar("T")

SALT_BYTES = 32
RECEIPT, PROOF, RECORD = "scarcity_ray receipt", "scarcity_ray receipt proof", "scarcity_ray release record"
VERSIONS = {RECEIPT: 1, PROOF: 1, RECORD: 2}
"""Each kind of file, with the version that this release writes."""


class Fate(StrEnum):
    """What a basket says of an update that was accepted."""

    WAITING = "waiting"
    AGGREGATED = "aggregated"
    HANDED_IN = "handed_in"
    SUPERSEDED = "superseded"
    DISCARDED = "discarded"
    WITHDRAWN = "withdrawn"
    DROPPED = "dropped"


MEANINGS = {
    Fate.WAITING: "not yet: it waits in its basket for an aggregate",
    Fate.AGGREGATED: "not yet: it is in an aggregate that no release has used",
    Fate.HANDED_IN: "dropped: its aggregate was given to a release that did not count the basket",
    Fate.SUPERSEDED: "superseded: a newer aggregate took its aggregate's place before a release",
    Fate.DISCARDED: "discarded: a client in its aggregate left the basket before a release",
    Fate.WITHDRAWN: "withdrawn: its client left, or reached its ceiling, before an aggregate",
    Fate.DROPPED: "dropped: its basket closed while it waited",
}


def row_commitment(salt: bytes, digest: bytes) -> bytes:
    """The hiding commitment to a row, 32 bytes: SHA-256 over a name, the salt and the row's digest.

    Args:
        salt: 32 bytes from the operating system, used once.
        digest: `content_digest` of the row.
    """
    return hashlib.sha256(b"scarcity_ray/row/1\n" + salt + digest).digest()


@dataclass(frozen=True)
class ReceiptStatement:
    """What a basket says by a receipt: it has accepted this client's update.

    Attributes:
        run: Of the federation's opening, as in `SigningScope`.
        ledger_head: Of the privacy ledger, as the basket knew it; empty before its first answer.
        commitment: `row_commitment`.
    """

    federation_id: str
    run: int
    round_id: int
    client_id: str
    basket_id: str
    ledger_head: str
    commitment: bytes

    def encode(self) -> bytes:
        """As bytes; two that differ in any field have different ones."""
        content = [
            self.federation_id,
            self.run,
            self.round_id,
            self.client_id,
            self.basket_id,
            self.ledger_head,
            self.commitment.hex(),
        ]
        return _message("receipt", content)

    @property
    def key(self) -> bytes:
        """The receipt's key in Merkle trees, 32 bytes: no other update has it, as the salt is in it."""
        return hashlib.sha256(self.encode()).digest()


@dataclass(frozen=True)
class SignedReceipt:
    """A receipt, as its client keeps it.

    Attributes:
        siblings: The path to the root that is signed.
        basket_key: The basket's Ed25519 public key.
        signature: Of the batch that it came in.
        salt: Opens the commitment; a copy without it (`without_salt`) may be shown to anybody.
        digest: `content_digest` of the row; goes with the salt.
    """

    statement: ReceiptStatement
    siblings: tuple[bytes, ...]
    basket_key: bytes
    signature: bytes
    salt: bytes = b""
    digest: bytes = b""

    @property
    def key(self) -> bytes:
        """See `ReceiptStatement.key`."""
        return self.statement.key

    def without_salt(self) -> SignedReceipt:
        """A copy that shows as much and confirms no guess of the row."""
        return replace(self, salt=b"", digest=b"")

    def refusal(self) -> str:
        """Why it is no receipt by the holder of `basket_key`; empty if it is one."""
        is_open = bool(self.salt or self.digest)
        if is_open and row_commitment(self.salt, self.digest) != self.statement.commitment:
            return "its salt and digest do not open its commitment"
        root = MerklePath(self.siblings, self.key).root(self.key)
        if root is None or not _is_signed(self.basket_key, _message("batch", [root.hex()]), self.signature):
            return "the basket has not signed it"
        return ""

    def to_text(self) -> str:
        """As text, for a file that only its client should read."""
        said = self.statement
        return _text(
            RECEIPT,
            federation_id=said.federation_id,
            run=str(said.run),
            round_id=said.round_id,
            client_id=said.client_id,
            basket_id=said.basket_id,
            ledger_head=said.ledger_head,
            commitment=said.commitment.hex(),
            siblings=[sibling.hex() for sibling in self.siblings],
            basket_key=self.basket_key.hex(),
            signature=self.signature.hex(),
            salt=self.salt.hex(),
            digest=self.digest.hex(),
        )

    @classmethod
    def from_text(cls, text: str) -> SignedReceipt:
        """Read what `to_text` gave; `refusal` says whether it is genuine.

        Raises:
            UsageError: If it is something else, or of a newer version.
        """

        def read(given: Mapping[str, Any]) -> SignedReceipt:
            statement = ReceiptStatement(
                _str(given["federation_id"]),
                int(_str(given["run"])),
                _int(given["round_id"]),
                _str(given["client_id"]),
                _str(given["basket_id"]),
                _str(given["ledger_head"]),
                _key(given["commitment"]),
            )
            parts = (bytes.fromhex(given[name]) for name in ("basket_key", "signature", "salt", "digest"))
            return cls(statement, tuple(map(_key, given["siblings"])), *parts)

        return _read(RECEIPT, text, read)


@dataclass(frozen=True, eq=False)
class ReceiptBatch:
    """The receipts for the updates of one batch that one basket has accepted, as their driver gets them.

    Attributes:
        scope: The federation, its run, the basket and the ledger's head, as in `ReceiptStatement`.
        rounds: One entry for each update, as in `clients`.
        salts: 32 bytes for each, one after the other, as in `digests`.
        signature: The basket's, over the root over all keys; empty before it has signed.
    """

    scope: tuple[str, int, str, str]
    rounds: tuple[int, ...]
    clients: tuple[str, ...]
    salts: bytes
    digests: bytes
    basket_key: bytes = b""
    signature: bytes = b""

    def __len__(self) -> int:
        return len(self.clients)

    def statement(self, index: int) -> ReceiptStatement:
        """What the basket says of the update at `index`."""
        federation_id, run, basket_id, ledger_head = self.scope
        return ReceiptStatement(
            federation_id,
            run,
            self.rounds[index],
            self.clients[index],
            basket_id,
            ledger_head,
            row_commitment(_part(self.salts, index), _part(self.digests, index)),
        )

    def signed(self, identity: IdentityKeyPair, keys: Sequence[bytes] | None = None) -> ReceiptBatch:
        """The batch with the basket's one signature.

        Args:
            keys: Of its statements, if the caller has them.
        """
        root = (self._tree if keys is None else MerkleTree(keys)).root
        signature = identity.sign(_message("batch", [root.hex()]))
        return replace(self, basket_key=identity.public_bytes, signature=signature)

    def __getitem__(self, index: int) -> SignedReceipt:
        said = self.statement(index)
        siblings = self._tree.path(said.key).siblings
        opened = _part(self.salts, index), _part(self.digests, index)
        return SignedReceipt(said, siblings, self.basket_key, self.signature, *opened)

    @cached_property
    def _tree(self) -> MerkleTree:
        return MerkleTree(self.statement(index).key for index in range(len(self)))


@dataclass(frozen=True)
class CountedRoot:
    """What a basket publishes with a release: the root over the receipts of its part in it, signed.

    Attributes:
        session_id: Of the release's session, hexadecimal.
        root: Over the keys of the receipts, 32 bytes.
        basket_key: The basket's Ed25519 public key.
        manifest: With ``retain_rounds``, SHA-256 of the manifest of what its rule ran on; else empty.
    """

    federation_id: str
    run: int
    basket_id: str
    session_id: str
    round_id: int
    root: bytes
    basket_key: bytes = b""
    signature: bytes = b""
    manifest: bytes = b""

    def encode(self) -> bytes:
        """The bytes that the basket signs; those of version 1 where it has no manifest."""
        where = [self.federation_id, self.run, self.basket_id, self.session_id, self.round_id]
        if not self.manifest:
            return _message("counted", [*where, self.root.hex()])
        return _message("counted", [*where, self.root.hex(), self.manifest.hex()], 2)

    def signed(self, identity: IdentityKeyPair) -> CountedRoot:
        """With the basket's signature."""
        return replace(self, basket_key=identity.public_bytes, signature=identity.sign(self.encode()))

    @property
    def is_valid(self) -> bool:
        """Whether the holder of the key has signed it."""
        return len(self.root) == KEY_BYTES and _is_signed(self.basket_key, self.encode(), self.signature)

    @property
    def is_formed(self) -> bool:
        """Whether each field is of its type."""
        texts, counts = (self.federation_id, self.basket_id, self.session_id), (self.run, self.round_id)
        parts = (self.root, self.basket_key, self.signature, self.manifest)
        return (
            all(type(text) is str for text in texts)
            and all(type(count) is int for count in counts)
            and all(type(part) is bytes for part in parts)
            and len(self.manifest) in (0, KEY_BYTES)
        )


@dataclass(frozen=True)
class ReleaseRecord:
    """What of a release an audit needs; it is public.

    Attributes:
        version: The release's.
        ledger_head: After its charge.
        roots: Of each basket whose aggregate is in it.
    """

    version: int
    ledger_head: str
    roots: tuple[CountedRoot, ...]

    def to_text(self) -> str:
        """As text, one line."""
        roots = [
            {
                "federation_id": root.federation_id,
                "run": str(root.run),
                "basket_id": root.basket_id,
                "session_id": root.session_id,
                "round_id": root.round_id,
                "root": root.root.hex(),
                "basket_key": root.basket_key.hex(),
                "signature": root.signature.hex(),
                "manifest": root.manifest.hex(),
            }
            for root in self.roots
        ]
        return _text(RECORD, release=self.version, ledger_head=self.ledger_head, roots=roots)

    @classmethod
    def from_text(cls, text: str) -> ReleaseRecord:
        """Read what `to_text` gave.

        Raises:
            UsageError: If it is something else, or of a newer version.
        """

        def root(given: Mapping[str, Any]) -> CountedRoot:
            return CountedRoot(
                _str(given["federation_id"]),
                int(_str(given["run"])),
                _str(given["basket_id"]),
                _str(given["session_id"]),
                _int(given["round_id"]),
                _key(given["root"]),
                bytes.fromhex(given["basket_key"]),
                bytes.fromhex(given["signature"]),
                bytes.fromhex(given.get("manifest", "")),  # version 1 had none
            )

        def read(given: Mapping[str, Any]) -> ReleaseRecord:
            return cls(_int(given["release"]), _str(given["ledger_head"]), tuple(map(root, given["roots"])))

        return _read(RECORD, text, read)


@dataclass(frozen=True)
class ReceiptProof:
    """What baskets say of one receipt.

    Attributes:
        key: The receipt's.
        fate: None if no basket knows the update: it was lost with a basket that had no journal, or its rounds
            have passed.
        paths: By root, as hexadecimal: the way to the key's place.
    """

    key: bytes
    fate: Fate | None
    paths: Mapping[str, MerklePath]

    def joined_with(self, other: ReceiptProof) -> ReceiptProof:
        """With what another basket actor says."""
        return ReceiptProof(self.key, self.fate or other.fate, {**self.paths, **other.paths})

    def to_text(self) -> str:
        """As text."""
        paths = {
            root: {"siblings": [sibling.hex() for sibling in path.siblings], "found": path.found.hex()}
            for root, path in self.paths.items()
        }
        return _text(PROOF, key=self.key.hex(), fate=self.fate, paths=paths)

    @classmethod
    def from_text(cls, text: str) -> ReceiptProof:
        """Read what `to_text` gave.

        Raises:
            UsageError: If it is something else, or of a newer version.
        """

        def path(given: Mapping[str, Any]) -> MerklePath:
            return MerklePath(tuple(map(_key, given["siblings"])), bytes.fromhex(given["found"]))

        def read(given: Mapping[str, Any]) -> ReceiptProof:
            fate = None if given["fate"] is None else Fate(given["fate"])
            paths = {_str(root): path(said) for root, said in given["paths"].items()}
            return cls(_key(given["key"]), fate, paths)

        return _read(PROOF, text, read)


@dataclass(frozen=True)
class Verdict:
    """What is shown of a receipt.

    Attributes:
        is_counted_once: Whether the update is in exactly one of the releases, and shown to be in no other.
        words: The verdict, as a sentence.
        releases: Those that it is shown to be in, by version.
        faults: What is wrong with what was given; empty if nothing is.
    """

    is_counted_once: bool
    words: str
    releases: tuple[int, ...] = ()
    faults: tuple[str, ...] = ()


def audit_receipt(
    receipt: SignedReceipt,
    releases: Sequence[ReleaseRecord],
    proof: ReceiptProof | None = None,
    keys: Mapping[str, frozenset[bytes]] | None = None,
) -> Verdict:
    """Whether an update was counted, once, or why not.

    Args:
        releases: The federation's releases since the receipt, as they were published.
        proof: What the baskets say; without it nothing is shown but that the receipt is genuine.
        keys: By basket, the keys that rosters name. None: the keys in receipt and releases are believed.
    """
    faults = [fault] if (fault := receipt.refusal()) else []
    said = receipt.statement
    if not faults and keys is not None and receipt.basket_key not in keys.get(said.basket_id, ()):
        faults.append(f"its key is not one of basket {shown(said.basket_id)} on a roster")
    if proof is not None and proof.key != receipt.key:
        faults.append("the proof is of another receipt")
    if faults:
        return Verdict(False, f"no receipt: {faults[0]}", faults=tuple(faults))
    present, open_at = list[int](), list[str]()
    given = sorted(set(releases), key=lambda release: release.version)
    versions = [release.version for release in given]
    if len(set(versions)) < len(versions):
        faults.append("two different records are of one release")
    missing = sorted(set(range(versions[0], versions[-1])) - set(versions)) if versions else []
    open_at += [f"release {version}, which is not given" for version in missing]
    for release in given:
        baskets = [root.basket_id for root in release.roots]
        for root in release.roots:
            where = f"basket {shown(root.basket_id)} in release {release.version}"
            if baskets.count(root.basket_id) > 1:
                faults.append(f"{where}: it is there {baskets.count(root.basket_id)} times")
            if fault := _root_fault(root, said, keys):
                faults.append(f"{where}: {fault}")
                continue
            path = None if proof is None else proof.paths.get(root.root.hex())
            answer = None if path is None else path.shows(receipt.key, root.root)
            if answer:
                present.append(release.version)
            elif answer is None:
                open_at.append(where)
    return _verdict(present, open_at, faults, None if proof is None else proof.fate)


def _verdict(present: list[int], open_at: list[str], faults: list[str], fate: Fate | None) -> Verdict:
    found, wrong = tuple(present), tuple(faults)
    more = f" and {len(open_at) - 3} more" if len(open_at) > 3 else ""
    unshown = f"; nothing is shown of {', '.join(open_at[:3])}{more}" if open_at else ""
    if len(found) > 1:
        return Verdict(False, f"counted {len(found)} times, in releases {found}", found, wrong)
    if found:
        if open_at or wrong:
            flaw = f"; {wrong[0]}" if wrong else ""
            words = f"counted in release {found[0]}, perhaps not only there{unshown}{flaw}"
            return Verdict(False, words, found, wrong)
        return Verdict(True, f"counted once, in release {found[0]}", found)
    if open_at:
        return Verdict(False, f"not shown to be counted{unshown}", (), wrong)
    why = "no basket knows the update any more" if fate is None else MEANINGS[fate]
    return Verdict(False, f"not counted in any of the releases given; {why}", (), wrong)


def _root_fault(
    root: CountedRoot, said: ReceiptStatement, keys: Mapping[str, frozenset[bytes]] | None
) -> str:
    if root.federation_id != said.federation_id:
        return "the root is another federation's"
    if not root.is_valid:
        return "the root is not signed by its key"
    if keys is not None and root.basket_key not in keys.get(root.basket_id, ()):
        return "the root's key is on no roster"
    return ""


def _part(joined: bytes, index: int) -> bytes:
    return joined[index * SALT_BYTES : (index + 1) * SALT_BYTES]


def _is_signed(key: bytes, message: bytes, signature: bytes) -> bool:
    return IdentityKeyPair.verify_with(key, message, signature)


def _message(what: str, content: Sequence[object], version: int = 1) -> bytes:
    return f"scarcity_ray/{what}/{version}\n{json.dumps(content, separators=(',', ':'))}".encode()


def _text(kind: str, **content: object) -> str:
    return json.dumps({"kind": kind, "version": VERSIONS[kind], **content})


def _read(kind: str, text: str, read: Callable[[Mapping[str, Any]], T]) -> T:
    try:
        given = json.loads(text)
        found = (given.get("kind"), given.get("version")) if isinstance(given, dict) else (None, None)
    except (ValueError, RecursionError):
        found = (None, None)
    if why := why_not_read(kind, VERSIONS[kind], *found):
        raise UsageError(why)
    try:
        return read(given)
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise UsageError(f"this {kind} is torn or was changed: {error!r:.150}") from None


def _str(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.40} is no text")
    return value


def _int(value: object) -> int:
    if type(value) is not int:
        raise TypeError(f"{value!r:.40} is no integer")
    return value


def _key(value: object) -> bytes:
    key = bytes.fromhex(_str(value))
    if len(key) != KEY_BYTES:
        raise ValueError(f"{len(key)} bytes, not {KEY_BYTES}")
    return key
