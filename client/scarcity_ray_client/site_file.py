"""A site's own file: which workload it trains, and what it accepts.

::

    workload: {class: "visits:Visits", args: {table: visits.csv}}    # as in a job's file
    policy: {unit: person, lifetime_epsilon: 3.0, delta: 1e-6}       # its ceiling; may be left out
    noise: site                                                      # send noised rows alone; may be left out
    person_clip_norm: 1.0                                            # to which the workload clips

A job's whole file is accepted as well: its other sections are the federation's, and are not read here.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scarcity_ray_client.errors import UsageError, shown
from scarcity_ray_client.loading import load_workload, search_beside, told
from scarcity_ray_client.models import ModelCodec
from scarcity_ray_client.policy import Policy
from scarcity_ray_client.workload import Client, Workload, checked_clients
from scarcity_ray_client.yaml_text import read_yaml_text

_FEDERATIONS = frozenset({"name", "federation", "training", "lab", "run", "gateway"})
_KNOWN = frozenset({"workload", "policy", "noise", "person_clip_norm"})
_POLICY = frozenset({"unit", "lifetime_epsilon", "delta", "is_newcomer"})


@dataclass(frozen=True, eq=False)
class SiteFile:
    """What a site trains, and what it accepts.

    Attributes:
        client: The workload's client that this site is.
        policy: Its ceiling; None: it sends whatever the federation asks for.
        noised_alone: Whether it sends nothing but rows that it has noised itself.
        person_clip_norm: To which the workload clips each person's contribution; noise for a smaller one is
            refused. None: the site does not say.
    """

    workload: Workload[Any]
    codec: ModelCodec[Any]
    client: Client
    policy: Policy | None = None
    noised_alone: bool = False
    person_clip_norm: float | None = None

    @property
    def num_examples(self) -> int:
        """What it states as it enrols: persons where it tells of them, else examples."""
        return self.client.num_persons or self.client.num_examples


def load_site_file(path: str | os.PathLike[str], client_id: str, federation_id: str = "") -> SiteFile:
    """Read a site's file and make its workload.

    Args:
        client_id: Which of the workload's clients this site is.
        federation_id: That the policy is for; empty: any.

    Raises:
        UsageError: If the file or the workload is not accepted; the text names the file and the remedy.
    """
    where = os.fspath(path)
    try:
        content = read_yaml_text(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{where}: {getattr(error, 'strerror', None) or error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("workload"), dict):
        raise UsageError(
            f'{where}: it has no section workload; write workload: {{class: "my_module:Visits"}}'
        )
    if unknown := sorted(map(str, content.keys() - _KNOWN - _FEDERATIONS)):
        raise UsageError(f"{where}: {unknown[0]} is not known; {', '.join(sorted(_KNOWN))} are")
    noise = content.get("noise")
    if noise not in (None, "site"):
        raise UsageError(f"{where}: noise: {shown(noise)} is not accepted; site, or leave it out")
    clip = content.get("person_clip_norm")
    if noise == "site":
        needed = {"policy": "without a ceiling", "person_clip_norm": "without what the workload clips to"}
        for name, why in needed.items():
            if content.get(name) is None:
                raise UsageError(
                    f"{where}: noise: site needs {name}: {why} the federation alone says how much noise "
                    "there is"
                )
    if clip is not None and not (type(clip) in (int, float) and 0.0 < clip < math.inf):
        raise UsageError(f"{where}: person_clip_norm: {shown(clip)} is not accepted; a number above 0")
    workload = _workload(where, content["workload"])
    try:
        clients, codec = checked_clients(workload.clients()), workload.codec()
    except Exception as error:
        cause = str(error) if isinstance(error, UsageError) else told(error)
        raise UsageError(f"{where}: its workload: {cause}") from error
    found = [client for client in clients if client.client_id == client_id]
    if not found:
        names = ", ".join(sorted(client.client_id for client in clients)[:5])
        raise UsageError(
            f"{where}: the kit is of client {client_id!r}, and the workload's clients() gives {names}; have "
            f"it give a Client({client_id!r}, ...)"
        )
    policy = None
    if content.get("policy") is not None:
        policy = _policy(where, content["policy"], client_id, federation_id)
    return SiteFile(workload, codec, found[0], policy, noise == "site", clip)


def _workload(where: str, section: Mapping[str, Any]) -> Workload[Any]:
    spec, args, named = section.get("class"), section.get("args") or {}, section.get("folder")
    if unknown := sorted(map(str, section.keys() - {"class", "args", "folder"})):
        raise UsageError(f"{where}: workload.{unknown[0]} is not known; class, args and folder are")
    for name, value, kind in (("class", spec, str), ("args", args, dict), ("folder", named, str | None)):
        if not isinstance(value, kind):
            raise UsageError(f"{where}: workload.{name}: {shown(value)} is not accepted")
    folder = Path(where).resolve().parent / Path(named or "").expanduser()
    search_beside(folder / "site.yaml")
    return load_workload(str(spec), args, folder)


def _policy(where: str, section: object, client_id: str, federation_id: str) -> Policy:
    if not isinstance(section, dict) or section.keys() - _POLICY:
        raise UsageError(f"{where}: policy: {shown(section)} is not accepted; {', '.join(sorted(_POLICY))}")
    if missing := sorted({"unit", "lifetime_epsilon", "delta"} - section.keys()):
        raise UsageError(f"{where}: policy: {missing[0]} is missing")
    try:
        return Policy(client_id=client_id, federation_id=federation_id, **section)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
