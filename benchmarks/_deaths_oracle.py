"""What became of each update of a federation of `benchmarks.deaths`: by log, releases and ledger."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._deaths_driver import CLIENTS, IDS
from scarcity_ray.layers.models import GlobalMetaModel


def inside(model: GlobalMetaModel) -> list[tuple[int, str]]:
    """The updates in a release, each as round and client."""
    # An update that waited for 40 rounds, with 40 others in its row, still has 1e-4.
    places = np.flatnonzero(np.abs(model.aggregate) > 1e-5)
    return [(int(p) // len(IDS), IDS[int(p) % len(IDS)]) for p in places]


def charges(ledger: Path) -> Iterator[tuple[str, dict[str, Any], bytes]]:
    """Charges of releases that were not voided, as SQLite has them."""
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        rows = list(connection.execute("SELECT charge_id, record, hash FROM ledger ORDER BY seq"))
    records = [(charge_id, json.loads(record), bytes(hash_)) for charge_id, record, hash_ in rows]
    for charge_id, record, hash_ in records:
        if record["kind"] == "release":
            yield charge_id, record["body"], hash_


def judged(
    lines: Sequence[Mapping[str, Any]], releases: Mapping[int, GlobalMetaModel], ledger: Path
) -> tuple[Counter[str], list[str]]:
    """What became of each update, counted; and what is wrong.

    Args:
        lines: The drivers' log.
        releases: By version.
        ledger: Its file.
    """
    wrong: list[str] = []
    counts: Counter[str] = Counter()
    accepted: dict[tuple[int, str], float] = {}
    sent: set[tuple[int, str]] = set()
    left: list[tuple[float, int, str]] = []
    given_up: set[int] = set()
    nowhere: list[tuple[int, str]] = []
    stats: dict[str, int] = {}
    seen: set[int] = set()
    for line in lines:
        match line["what"]:
            case "send":
                sent |= {(line["round"], client) for client in line["clients"]}
            case "sent":
                for client, refused in zip(line["clients"], line["refused"], strict=True):
                    if refused is None and (line["round"], client) in accepted:
                        wrong.append(f"{client}'s update of round {line['round']} was accepted twice")
                    if refused is None:
                        accepted[line["round"], client] = line["at"]
                    counts["refused: " + refused if refused else "receipts"] += 1
            case "begin" if line["call"] == "unregister":
                left.append((line["at"], line["round"], line["client"]))
            case "seen":
                seen.add(line["version"])
            case "settled":
                stats = line["stats"]
            case "gave up":
                given_up.add(line["round"])
    released = Counter(update for model in releases.values() for update in inside(model))
    paid = list(charges(ledger))
    wrong += [f"release {version} was seen, and is not stored" for version in sorted(seen - set(releases))]
    unpublished = len(paid) - len(releases)
    heads = Counter(model.ledger_head for model in releases.values())
    if any(n > 1 for n in heads.values()):
        wrong.append("two releases have one charge")
    if unpublished < 0:
        wrong.append(f"{len(releases)} releases, and {len(paid)} charges")
    versions = sorted(releases)
    if versions != list(range(1, len(versions) + 1)):
        wrong.append(f"versions {versions}")
    rounds_of = {m.round_id for m in releases.values()}
    charged = {int(r["details"]["round"]) for _, r, _ in paid} if unpublished else set()
    for update, times in released.items():
        if times > 1:
            counts["double"] += 1
            wrong.append(f"{update} is in {times} releases")
        if update not in sent:
            wrong.append(f"{update} was never sent, and is in a release")
    domain = {client: place // 4 for place, client in enumerate(IDS)}

    def waited(update: tuple[int, str], until: int) -> bool:
        """Whether it may have waited so long: what waits of a client enters an aggregate together."""
        round_id, client = update
        return not any(released[later, client] for later in range(round_id + 1, until + 1))

    missing = {update: at for update, at in accepted.items() if not released[update]}
    counts["released"] = len(accepted) - len(missing)
    own = {
        update
        for update, at in missing.items()
        if any(at <= when and client == update[1] and waited(update, until) for when, until, client in left)
    }
    counts["withdrawn"] = len(own)
    last = max((round_id for round_id, _ in accepted), default=0)
    shared = {
        update
        for update, at in missing.items()
        if update not in own
        and any(at <= when and r <= update[0] + 1 and domain[c] == domain[update[1]] for when, r, c in left)
    }
    """In an aggregate with one who left before it was released, for all that is known."""
    waiting = {update for update in missing.keys() - own if waited(update, last)}
    buffered = stats.get("n_updates_buffered", -1)
    # Those whose receipt died with a driver wait, too; sent again, they are replays.
    untold = len(sent - accepted.keys() - released.keys())
    if len(waiting - shared) <= buffered <= len(waiting) + untold:
        counts["waiting"] = min(buffered, len(waiting))
        counts["withdrawn"] += len(waiting) - counts["waiting"]
    else:
        waiting = set()
    counts["withdrawn"] += len(shared - waiting)
    dropped = {
        (record["details"]["round"], basket.partition("_")[0])
        for _, record, _ in paid
        for basket in record["details"].get("dropped", ())
    }
    for round_id, client in sorted(missing.keys() - own - waiting - shared):
        failed = [r for r in charged - rounds_of if r >= round_id]
        if any(waited((round_id, client), r) for r in failed):
            counts["charged, and the session failed"] += 1
        elif round_id in given_up:
            counts["superseded"] += 1
        elif (round_id, dict(CLIENTS)[client]) in dropped:
            counts["dropped out"] += 1
        else:
            nowhere.append((round_id, client))
    if len(nowhere) <= 4 * stats.get("n_basket_models_superseded", 0):
        counts["superseded"] += len(nowhere)
        nowhere = []
    counts["lost"] = len(nowhere)
    for round_id, client in nowhere:
        wrong.append(f"{client}'s update of round {round_id} was acknowledged and is nowhere")
    counts |= {"acknowledged": len(accepted), "releases": len(versions), "charges": len(paid)}
    counts["charged and not published"] = unpublished
    return counts, wrong
