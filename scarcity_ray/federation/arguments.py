"""Checks of a driver's arguments, before they go to a role.

A client's mistake is answered (`Receipt`, None, False), never raised: an id of the wrong type becomes the
empty one, which no client has. The driver's own mistake is a `UsageError` that names the value and what is
accepted.

Guarantees:
    rubbish_is_refused_or_a_usage_error: On either runtime, whatever its type, and nothing is changed by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scarcity_ray.baskets.reports import Member
from scarcity_ray.baskets.submission import SubmissionBatch
from scarcity_ray.config import HierarchicalFederationConfig, NoisePlace, PrivacyConfig, PrivacyUnit
from scarcity_ray.config.arguments import check_clock, instance_of
from scarcity_ray.directory import check_name
from scarcity_ray.errors import UsageError
from scarcity_ray.layers.meta_parameters import Ranges, check_report
from scarcity_ray.privacy.sampling.noise import NoiseSource
from scarcity_ray.updates import Rejection, canonical_report, given_array, read_array
from scarcity_ray_client.errors import shown
from scarcity_ray_client.policy import SignedPolicy

ADDED_TYPE = 2
"""What `numpy.dtype.isbuiltin` says of a type that a package has added, such as bfloat16."""


def check_opening(config: object, clock: object, noise: object) -> None:
    """Check what a federation is made of; config and noise may be None.

    Raises:
        UsageError: For a value of the wrong type.
    """
    if config is not None and not isinstance(config, HierarchicalFederationConfig):
        raise UsageError(
            f"config: {shown(config)} is not accepted; a HierarchicalFederationConfig, as "
            "scarcity_ray.config.load(HierarchicalFederationConfig, mapping) makes one of plain data"
        )
    check_clock(clock)
    wanted = [name for name in vars(NoiseSource) if not name.startswith("_")]
    if noise is not None and not all(callable(getattr(noise, name, None)) for name in wanted):
        raise UsageError(f"noise must have the methods {' and '.join(wanted)}, got {shown(noise)}")


def check_place(what: str, place: object, *, is_needed: bool = True) -> None:
    """Check a file's or a folder's path, or a URL.

    Args:
        is_needed: Whether None is none.

    Raises:
        UsageError: If it is no printable str.
    """
    is_place = isinstance(place, str) and place != "" and place.isprintable()
    if not is_place and (is_needed or place is not None):
        raise UsageError(f"{what}: {shown(place)} is not accepted; a path or a URL, as a str")


def id_of(client_id: object) -> str:
    """The client's id; what is no str becomes the empty one, which nobody can register."""
    return client_id if isinstance(client_id, str) else ""


def ids_of(client_ids: Iterable[object]) -> tuple[str, ...]:
    """`id_of` each of several clients.

    Raises:
        UsageError: If it is no sequence of ids, such as a single str.

    >>> ids_of(["ann", 3])
    ('ann', '')
    """
    return tuple(map(id_of, _items("client_ids", client_ids, "ids, one a client")))


def basket_of(basket_id: object) -> str:
    """The name of a basket, or of a domain with one basket.

    Raises:
        UsageError: If it is no str.
    """
    if not isinstance(basket_id, str):
        raise UsageError(f"there is no basket or domain {shown(basket_id)}; name one with a str")
    return basket_id


def members_of(clients: Iterable[object]) -> tuple[Member, ...]:
    """The clients to register, from pairs of their ids and domains.

    Raises:
        UsageError: If these are no pairs of names.

    >>> members_of([("ann", "healthcare")])[0].domain_id
    'healthcare'
    """
    wanted = "pairs (client_id, domain_id)"
    members = []
    for index, pair in enumerate(_items("clients", clients, wanted)):
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UsageError(f"clients must be {wanted}, got {shown(pair)} at place {index}")
        members.append(Member(check_name("client id", pair[0]), check_name("domain id", pair[1])))
    return tuple(members)


def policies_of(given: Iterable[tuple[str, bytes | None, object]]) -> tuple[SignedPolicy, ...]:
    """The signed policies among (client's id, its public key if it registers one, its policy or None).

    Raises:
        UsageError: If one is no policy, another client's, or under another key than the client registers.
    """
    policies = []
    for client_id, public_key, policy in given:
        if policy is None:
            continue
        signed = instance_of(f"policy of client {shown(client_id)}", policy, SignedPolicy)
        if signed.policy.client_id != client_id:
            raise UsageError(f"client {shown(client_id)}: the policy is of {shown(signed.policy.client_id)}")
        if public_key not in (None, signed.public_key):
            raise UsageError(f"client {shown(client_id)}: the policy is signed with another key than its own")
        policies.append(signed)
    return tuple(policies)


def integer_of(value: object) -> object:
    """A round, or what else counts, as its role is to judge it; what is no number becomes the empty str.

    So nothing goes to a role that cannot be sent, and no object of a caller's own class does.
    """
    return value if value is None or isinstance(value, int | float | np.integer | np.floating) else ""


def signature_of(signature: object) -> bytes | None:
    """A signature, or None; what is no bytes becomes the empty signature, which is never valid."""
    return signature if signature is None or isinstance(signature, bytes) else b""


def numbers_of(what: str, values: ArrayLike) -> NDArray[Any]:
    """An array of integers or floats, of any shape.

    Raises:
        UsageError: If it is none.
    """
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, MemoryError):
        array = np.zeros(0, np.object_)
    if array.dtype.kind not in "fiu" or isinstance(values, np.ma.MaskedArray):
        raise UsageError(f"{what} must be an array of numbers, got {shown(values)}")
    return array


def examples_of(num_examples: object) -> int | None:
    """A client's number of examples, or None if it does not say.

    Raises:
        UsageError: If it is no positive integer.
    """
    if num_examples is None:
        return None
    if isinstance(num_examples, int | np.integer) and not isinstance(num_examples, bool) and num_examples > 0:
        return int(num_examples)
    raise UsageError(f"num_examples: {shown(num_examples)} is not accepted; a positive integer")


def report_of(meta: object, ranges: Ranges) -> Mapping[str, float] | None:
    """A client's report of meta-parameters as plain data, or None if there is none.

    Raises:
        UsageError: As `check_report`.
    """
    check_report(meta, ranges)
    return dict(canonical_report(meta)) if isinstance(meta, Mapping) else None


def rows_of(matrix: object) -> NDArray[Any] | tuple[NDArray[Any] | Rejection, ...]:
    """Many updates: one array (n, d) of numbers if they can be stacked, else one entry each.

    An array of numbers is not copied. A row that is no numbers is a `Rejection` at its place.

    Raises:
        UsageError: If this is no sequence.
    """
    given = given_array(matrix)
    if given is not None and given.ndim != 2 and not (given.ndim == 1 and given.dtype.kind == "O"):
        raise UsageError(f"matrix must be of shape (n, d), got {given.shape}")
    if given is not None and given.ndim == 2:
        numbers = read_array(given)
        if not isinstance(numbers, Rejection):
            return numbers
    many = _items("matrix", matrix if given is None else given, "rows of numbers, one a client")
    rows = tuple(map(read_array, many))
    kinds = {None if isinstance(row, Rejection) or row.ndim != 1 else (row.dtype, row.shape) for row in rows}
    if len(kinds) == 1 and None not in kinds:
        return np.stack([row for row in rows if not isinstance(row, Rejection)])
    return rows


def check_precision(privacy: PrivacyConfig, updates: Iterable[object]) -> None:
    """Refuse updates, or arrays of many, in floats that are narrower than float32, where rounding matters.

    Rounding to float16 may move a mean over many persons further than any one of them does, and the noise is
    scaled to the latter. Noised rows may be rounded.

    Raises:
        UsageError: Where persons (records) are the unit of privacy and noise is central.
    """
    if privacy.unit is PrivacyUnit.CLIENT or privacy.noise is NoisePlace.SITE:
        return
    for update in updates:
        given = given_array(update)
        if given is None or given.dtype.itemsize >= 4:
            continue
        if given.dtype.kind == "f" or given.dtype.isbuiltin == ADDED_TYPE:
            raise UsageError(
                f"update: {given.dtype} is not accepted where {privacy.unit.value}s are the unit of privacy: "
                f"rounded so, one {privacy.unit.value} may move it further than the claim allows for; give "
                "float32 or float64"
            )


def single_update(
    ranges: Ranges,
    client_id: object,
    update: object,
    round_id: object,
    signature: object,
    meta: object,
    sequence: object,
    num_examples: object,
) -> SubmissionBatch:
    """A batch of one update.

    Raises:
        UsageError: For a meta-parameter that was not declared.
    """
    report = None if meta is None else report_of(meta, ranges)
    return SubmissionBatch(
        (id_of(client_id),),
        (read_array(update),),
        None if round_id is None else integer_of(round_id),
        None if signature is None else (signature_of(signature),),
        None if report is None else (report,),
        None if sequence is None else (integer_of(sequence),),
        None if num_examples is None else (integer_of(num_examples),),
    )


def batch_of(
    ranges: Ranges,
    client_ids: Iterable[object],
    matrix: object,
    round_id: object,
    signatures: object,
    meta: object,
    sequences: object,
    num_examples: object,
) -> SubmissionBatch:
    """A batch of many updates; what is wrong in one row raises nothing.

    Raises:
        UsageError: If a column is of the wrong type, they differ in length, or a meta-parameter was not
            declared.
    """
    ids, rows = ids_of(client_ids), rows_of(matrix)
    signed = _column("signatures", signatures, "bytes or None")
    told = _column("meta", meta, "reports or None")
    numbers = _column("sequences", sequences, "integers or None")
    counts = _column("num_examples", num_examples, "integers or None")
    columns = (ids, rows, signed, told, numbers, counts)
    lengths = {len(column) for column in columns if column is not None}
    if len(lengths) > 1:
        raise UsageError(
            f"client_ids, matrix and what else there is a row differ in length: {sorted(lengths)}"
        )
    return SubmissionBatch(
        ids,
        rows,
        integer_of(round_id),
        None if signed is None else tuple(map(signature_of, signed)),
        None if told is None else tuple(report_of(one, ranges) for one in told),
        None if numbers is None else tuple(map(integer_of, numbers)),
        None if counts is None else tuple(map(integer_of, counts)),
    )


def _column(what: str, values: object, wanted: str) -> tuple[Any, ...] | None:
    return None if values is None else tuple(_items(what, values, f"{wanted}, one a row"))


def _items(what: str, values: object, wanted: str) -> Sequence[Any]:
    if not isinstance(values, str | bytes | bytearray | Mapping) and isinstance(values, Iterable):
        # An array of no dimension has no items, and a range of 2^62 too many.
        with suppress(TypeError, MemoryError):
            return list(values)
    raise UsageError(f"{what} must be a sequence of {wanted}, got {shown(values)}")
