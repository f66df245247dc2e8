"""Receipts, and what is shown with them."""

import hashlib
import json
import os
from dataclasses import fields, replace

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given
from hypothesis import strategies as st

from scarcity_ray_client import IdentityKeyPair, UsageError
from scarcity_ray_client.merkle import MerkleTree
from scarcity_ray_client.receipts import (
    MEANINGS,
    VERSIONS,
    CountedRoot,
    Fate,
    ReceiptBatch,
    ReceiptProof,
    ReceiptStatement,
    ReleaseRecord,
    SignedReceipt,
    audit_receipt,
)

BASKET, STRANGER = IdentityKeyPair.generate(), IdentityKeyPair.generate()
DIGEST = hashlib.sha256(b"row").digest()


def batch_of(count: int) -> ReceiptBatch:
    salts, digests = os.urandom(32 * count), DIGEST * count
    clients = tuple(f"c{i}" for i in range(count))
    scope = "f" * 32, 2**63, "d_basket_0", "aa"
    return ReceiptBatch(scope, (4,) * count, clients, salts, digests).signed(BASKET)


def release_of(version: int, *sets: list[bytes], signer: IdentityKeyPair = BASKET) -> ReleaseRecord:
    """A release with one basket for each set of keys."""
    roots = (
        CountedRoot("f" * 32, 2**63, f"d_basket_{i}", f"{version:032x}", version, MerkleTree(keys).root)
        for i, keys in enumerate(sets)
    )
    return ReleaseRecord(version, "bb", tuple(root.signed(signer) for root in roots))


def proof_of(receipt: SignedReceipt, *sets: list[bytes], fate: Fate | None = None) -> ReceiptProof:
    trees = [MerkleTree(keys) for keys in sets]
    return ReceiptProof(receipt.key, fate, {t.root.hex(): t.path(receipt.key) for t in trees})


RECEIPT = batch_of(3)[1]
OTHERS = {
    "federation_id": "g",
    "run": 1,
    "round_id": 5,
    "client_id": "c2",
    "basket_id": "d_basket_1",
    "ledger_head": "ab",
    "commitment": bytes(32),
}


def test_a_receipt_is_signed_as_it_is_written_down():
    """By another implementation of Ed25519's check, over bytes written out by hand."""
    receipt = batch_of(1)[0]
    said = receipt.statement
    assert said.commitment == hashlib.sha256(b"scarcity_ray/row/1\n" + receipt.salt + DIGEST).digest()
    content = json.dumps(["f" * 32, 2**63, 4, "c0", "d_basket_0", "aa", said.commitment.hex()])
    key = hashlib.sha256(b"scarcity_ray/receipt/1\n" + content.replace(", ", ",").encode()).digest()
    root = hashlib.sha256(b"\0" + key).hexdigest()
    message = f'scarcity_ray/batch/1\n["{root}"]'.encode()
    Ed25519PublicKey.from_public_bytes(receipt.basket_key).verify(receipt.signature, message)
    assert receipt.key == key


@given(st.integers(1, 9))
def test_one_signature_covers_each_receipt_of_a_batch(count):
    batch = batch_of(count)
    receipts = [batch[i] for i in range(count)]
    assert [receipt.refusal() for receipt in receipts] == [""] * count
    assert len({receipt.key for receipt in receipts}) == count
    assert len({receipt.signature for receipt in receipts}) == 1


@pytest.mark.parametrize("name", [field.name for field in fields(ReceiptStatement)])
def test_a_receipt_that_is_changed_or_forged_is_refused(name):
    changed = replace(RECEIPT, statement=replace(RECEIPT.statement, **{name: OTHERS[name]}))
    assert changed.refusal()
    assert changed.without_salt().refusal() == "the basket has not signed it"
    for forged in (
        replace(RECEIPT, siblings=RECEIPT.siblings[:-1]),
        replace(RECEIPT, siblings=(b"x",)),
        replace(RECEIPT, basket_key=STRANGER.public_bytes),
        replace(RECEIPT, signature=bytes(64)),
        replace(RECEIPT, salt=bytes(32)),
        replace(RECEIPT, digest=bytes(32)),
        replace(RECEIPT, salt=b""),
    ):
        assert forged.refusal()


def test_a_receipt_says_nothing_of_the_row_without_its_salt():
    """Two receipts for one row have nothing in common, and no field is the row's digest."""
    one, other = (batch_of(1)[0].without_salt() for _ in range(2))
    assert one.refusal() == other.refusal() == ""
    assert one.statement.commitment != other.statement.commitment
    for told in (one.to_text(), repr(one)):
        assert DIGEST.hex() not in told
        assert repr(DIGEST)[2:-1] not in told


def test_everything_is_read_back_from_its_text():
    release = release_of(3, [RECEIPT.key], [])
    proof = proof_of(RECEIPT, [RECEIPT.key], [], fate=Fate.HANDED_IN)
    for said in (RECEIPT, RECEIPT.without_salt(), release, proof, proof_of(RECEIPT)):
        read = type(said).from_text
        assert read(said.to_text()) == said
        given = json.loads(said.to_text())
        newest = VERSIONS[given["kind"]]
        with pytest.raises(
            UsageError, match=f"of version {newest + 1}, and this release reads 1 to {newest};"
        ):
            read(json.dumps({**given, "version": newest + 1}))
        for text in ("", "[]", "3", "[" * 10**5, json.dumps({**given, "kind": "else"})):
            with pytest.raises(UsageError, match="this is no scarcity_ray"):
                read(text)
        for name in given.keys() - {"kind", "version"}:
            with pytest.raises(UsageError, match="is torn or was changed"):
                read(json.dumps({k: v for k, v in given.items() if k != name}))


FATES = st.sampled_from([None, *Fate])
# Who is in which release's basket: of four updates, for two baskets in each of three releases.
PLACES = st.lists(st.lists(st.sets(st.integers(0, 3)), min_size=2, max_size=2), min_size=1, max_size=3)


@given(PLACES, FATES)
def test_an_audit_says_how_often_an_update_was_counted(places, fate):
    batch = batch_of(4)
    keys = [batch[i].key for i in range(4)]
    sets = [[[keys[i] for i in sorted(held)] for held in baskets] for baskets in places]
    releases = [release_of(version, *baskets) for version, baskets in enumerate(sets, 1)]
    for i in range(4):
        proof = proof_of(batch[i], *(held for baskets in sets for held in baskets), fate=fate)
        verdict = audit_receipt(batch[i], releases, proof)
        times = sum(i in held for baskets in places for held in baskets)
        assert verdict.is_counted_once is (times == 1)
        assert len(verdict.releases) == times
        assert not verdict.faults
        if times == 0 and fate is not None:
            assert MEANINGS[fate] in verdict.words
        stolen = audit_receipt(batch[(i + 1) % 4], releases, proof)
        assert not stolen.is_counted_once
        assert not stolen.releases


def test_an_update_in_one_release_is_shown_to_be_counted_once():
    sets = [RECEIPT.key, bytes(32)], [b"\1" * 32]
    verdict = audit_receipt(RECEIPT, [release_of(7, *sets)], proof_of(RECEIPT, *sets))
    assert verdict.is_counted_once
    assert verdict.words == "counted once, in release 7"


def test_an_update_in_no_release_is_never_shown_to_be_counted():
    """Not with the path of a tree that was not published, nor with another's receipt."""
    here = proof_of(RECEIPT, [RECEIPT.key])
    published = release_of(1, [b"\1" * 32])
    verdict = audit_receipt(RECEIPT, [published], here)
    assert verdict.words.startswith(
        "not shown to be counted; nothing is shown of basket 'd_basket_0' in release 1"
    )
    (path,) = here.paths.values()
    moved = replace(here, paths={published.roots[0].root.hex(): path})
    assert not audit_receipt(RECEIPT, [published], moved).releases


def test_two_releases_with_one_update_are_found():
    once, twice = [RECEIPT.key], [RECEIPT.key, bytes(32)]
    for releases in (
        [release_of(1, once), release_of(2, twice)],
        [release_of(1, once), release_of(2, once)],
        [release_of(1, once, twice)],
    ):
        verdict = audit_receipt(RECEIPT, releases, proof_of(RECEIPT, once, twice))
        assert not verdict.is_counted_once
        assert verdict.words.startswith("counted 2 times")


def test_a_signed_root_that_is_changed_is_refused():
    whole = release_of(1, [RECEIPT.key])
    (root,) = whole.roots
    proof = proof_of(RECEIPT, [RECEIPT.key])
    for name, value in {
        "federation_id": "g",
        "run": 1,
        "basket_id": "d_basket_1",
        "session_id": "0",
        "round_id": 2,
        "root": bytes(32),
        "basket_key": STRANGER.public_bytes,
        "signature": bytes(64),
        "manifest": bytes(32),
    }.items():
        changed = replace(root, **{name: value})
        assert not changed.is_valid
        verdict = audit_receipt(RECEIPT, [replace(whole, roots=(changed,))], proof)
        assert not verdict.is_counted_once
        assert verdict.faults
    doubled = audit_receipt(RECEIPT, [replace(whole, roots=(root, root))], proof)
    assert not doubled.is_counted_once


def test_a_key_that_no_roster_names_is_refused():
    releases, proof = [release_of(1, [RECEIPT.key])], proof_of(RECEIPT, [RECEIPT.key])
    known = {"d_basket_0": frozenset([BASKET.public_bytes])}
    assert audit_receipt(RECEIPT, releases, proof, known).is_counted_once
    other = {"d_basket_0": frozenset([STRANGER.public_bytes])}
    assert not audit_receipt(RECEIPT, releases, proof, other).is_counted_once
    forged = [release_of(1, [RECEIPT.key], signer=STRANGER)]
    assert audit_receipt(RECEIPT, forged, proof).is_counted_once, "a restarted basket has another key"
    assert not audit_receipt(RECEIPT, forged, proof, known).is_counted_once


def test_what_is_not_shown_is_said():
    one, two = [RECEIPT.key], [b"\1" * 32]
    releases = [release_of(1, one), release_of(2, two)]
    verdict = audit_receipt(RECEIPT, releases, proof_of(RECEIPT, one))
    assert verdict.words.endswith(
        "perhaps not only there; nothing is shown of basket 'd_basket_0' in release 2"
    )
    assert "nothing is shown of" in audit_receipt(RECEIPT, releases).words
    gap = [release_of(1, one), release_of(3, two)]
    assert "release 2, which is not given" in audit_receipt(RECEIPT, gap, proof_of(RECEIPT, one, two)).words
    forked = [release_of(1, one), release_of(1, two)]
    assert audit_receipt(RECEIPT, forked, proof_of(RECEIPT, one, two)).faults
    assert not audit_receipt(RECEIPT, releases, proof_of(batch_of(1)[0], one, two)).is_counted_once
    assert not audit_receipt(RECEIPT, [], proof_of(RECEIPT)).is_counted_once
