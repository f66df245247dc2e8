"""``scarcity-ray-client``: what a site's administrator types.

Exit codes: 0 done, 1 failed, 2 bad usage, 3 the site's own ceiling is reached, 130 interrupted (also by
SIGTERM): nothing is lost then, and the same command goes on.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType

from scarcity_ray_client.connection import GatewayUnreachable, Waits
from scarcity_ray_client.errors import ScarcityError, UsageError
from scarcity_ray_client.federation_client import Ending, Event, FederationClient
from scarcity_ray_client.site_file import load_site_file
from scarcity_ray_client.site_home import PASSWORD, SiteHome
from scarcity_ray_client.site_ledger import SiteLedger

_EXAMPLES = """examples:
  scarcity-ray-client run hospital_1.zip workload.yaml    enrols if it has not, then trains round by round
  scarcity-ray-client run hospital_1 workload.yaml        the same, with the folder that the kit has made
  scarcity-ray-client status hospital_1                   budget, certificate, last rounds
  scarcity-ray-client rotate hospital_1                   new certificate and new key

A proxy is taken from HTTPS_PROXY and NO_PROXY. SCARCITY_RAY_CLIENT_PASSWORD encrypts the site's keys.
Exit codes: 0 done, 1 failed, 2 bad usage, 3 the site's own ceiling is reached, 130 interrupted.
"""


class ExitCode(IntEnum):
    """How the command ends."""

    DONE = 0
    FAILED = 1
    BAD_USAGE = 2
    AT_CEILING = 3
    INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command with the process's arguments, and end the process."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a console that lacks a letter of an id ends nothing
            stream.reconfigure(errors="backslashreplace")
    sys.exit(command(arguments))


def command(arguments: Sequence[str] | None = None, environ: Mapping[str, str] = os.environ) -> ExitCode:
    """Run the command; its exit code."""
    given = _parser().parse_args(arguments)
    say = _json_line if given.format == "json" else _text_line
    if given.verbose:
        logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s: %(message)s")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _interrupt)
    waits = Waits(give_up_seconds=given.give_up_seconds)
    try:
        with (
            _home(given, environ) as home,
            FederationClient(home, waits=waits, tell=say, environ=environ) as client,
        ):
            act: Callable[..., ExitCode] = given.act
            return act(client, given, say)
    except KeyboardInterrupt:
        print("scarcity-ray-client: interrupted; the same command goes on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    except UsageError as error:
        print(_shown(f"scarcity-ray-client: {error}"), file=sys.stderr)
        return ExitCode.BAD_USAGE
    except ScarcityError as error:
        print(_shown(f"scarcity-ray-client: {error}"), file=sys.stderr)
        return ExitCode.FAILED


def _parser() -> argparse.ArgumentParser:
    try:
        release = version("scarcity-ray-client")
    except PackageNotFoundError:
        release = "unknown"
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="scarcity-ray-client",
        description="One site of a federation that is served (docs/sites.md).",
        epilog=_EXAMPLES,
        formatter_class=form,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {release}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    acts: dict[str, tuple[Callable[..., ExitCode], str]] = {
        "enrol": (_enrol, "make this site's keys and have them known to the federation, once"),
        "run": (_run, "enrol if needed, then train in each round till the federation ends"),
        "status": (_status, "what the federation knows of this site"),
        "rotate": (_rotate, "put a new certificate and a new signing key in place of the old ones"),
    }
    for name, (act, what) in acts.items():
        one = commands.add_parser(name, help=what, description=what, epilog=_EXAMPLES, formatter_class=form)
        one.set_defaults(act=act, workload=None)
        one.add_argument("site", metavar="KIT|HOME", help="the kit (a zip file), or the folder it has made")
        if name in ("run", "enrol"):
            nargs = None if name == "run" else "?"
            what = "what to train, and the policy"
            one.add_argument("workload", metavar="WORKLOAD.yaml", help=what, nargs=nargs)
            one.add_argument(
                "--new-key",
                action="store_true",
                help="enrol under another signing key than the folder holds, with a kit made --again",
            )
        one.add_argument("--home", metavar="DIR", help="the site's folder [default: KIT without .zip]")
        one.add_argument("--format", choices=["text", "json"], default="text", help="json: an object a line")
        one.add_argument(
            "--give-up-seconds",
            type=float,
            metavar="S",
            default=float("inf") if name == "run" else 60.0,
            help="fail if the gateway does not answer for so long [default: %(default)s]",
        )
        one.add_argument("-v", "--verbose", action="store_true", help="log retries on standard error")
    return parser


def _home(given: argparse.Namespace, environ: Mapping[str, str]) -> SiteHome:
    place, beside = Path(given.site), given.act is _status
    if place.is_dir():
        if given.home is not None and Path(given.home).resolve() != place.resolve():
            raise UsageError(f"--home: {given.site} is a site's folder already")
        return SiteHome(place, environ, beside=beside)
    folder = place.with_suffix("") if given.home is None else Path(given.home)
    # A kit is thrown away after its use.
    if (beside or not place.exists()) and (folder / "site.json").exists():
        return SiteHome(folder, environ, beside=beside)
    return SiteHome.made(place, given.home, environ)


def _enrol(client: FederationClient, given: argparse.Namespace, say: Callable[[Event], None]) -> ExitCode:
    kit, site = client.home.kit, None
    if client.home.is_enrolled:
        say(Event("enrolled", f"{kit.client_id} is enrolled already", {"client_id": kit.client_id}))
        return ExitCode.DONE
    if given.new_key:
        client.home.forget_identity()
    if given.workload is not None:
        site = load_site_file(given.workload, kit.client_id, kit.federation_id)
    client.enrol(site)
    return ExitCode.DONE


def _run(client: FederationClient, given: argparse.Namespace, say: Callable[[Event], None]) -> ExitCode:
    kit = client.home.kit
    if given.new_key and not client.home.is_enrolled:
        client.home.forget_identity()
    ending = client.run(load_site_file(given.workload, kit.client_id, kit.federation_id))
    return ExitCode.AT_CEILING if ending is Ending.AT_CEILING else ExitCode.DONE


def _status(client: FederationClient, given: argparse.Namespace, say: Callable[[Event], None]) -> ExitCode:
    home, days = client.home, None
    if home.is_enrolled:
        days = round((home.certificate_life[1] - time.time()) / 86400.0, 1)
    own: dict[str, object] = {
        "certificate_days_left": days,
        "updates_waiting": len(list(home.folder.glob("outbox/*.update"))),
        "receipts": len(list(home.folder.glob("receipts/*.json"))),
    }
    own_file = home.folder / "ledger.sqlite"
    count = "this site's own ledger: none, as it has no policy, or the federation states no cost of a row"
    if own_file.exists():
        with SiteLedger.existing(own_file) as ledger:
            most, spent = ledger.policy.lifetime_epsilon, ledger.epsilon_spent
            own["own_ledger"] = {"epsilon_spent": spent, "ceiling": most, "is_proof": ledger.is_proof}
            count = f"this site's own ledger: epsilon {spent:.4g} of {most:g} is spent"
            count += "" if ledger.is_proof else ", if the federation noises each release as it says"
    kept = (
        f"{count}\ncertificate: {days} days left; receipts kept: {own['receipts']}; not acknowledged: "
        f"{own['updates_waiting']}"
    )
    try:
        me = client.me()
    except GatewayUnreachable:
        say(Event("status", f"site {home.kit.client_id}, as its own folder has it\n{kept}", own))
        raise
    facts = {**vars(me), "last_rounds": [vars(one) for one in me.last_rounds], **own}
    left = "no claim" if me.epsilon_left is None else f"epsilon {me.epsilon_left:.4g} at delta {me.delta:g}"
    ceiling = "none" if me.ceiling is None else f"epsilon {me.ceiling:g}"
    lines = [
        f"site {me.client_id} of domain {me.domain_id}, basket {me.basket_id or 'none yet'}",
        f"the federation's budget left: {left}; this site's ceiling: {ceiling}",
        kept,
        *(f"round {one.round_id}: {one.fate}" for one in me.last_rounds),
    ]
    say(Event("status", "\n".join(lines), facts))
    return ExitCode.DONE


def _rotate(client: FederationClient, given: argparse.Namespace, say: Callable[[Event], None]) -> ExitCode:
    client.change_key()
    client.renew_certificate()
    return ExitCode.DONE


def _text_line(event: Event) -> None:
    print(_shown(event.text), flush=True)


def _shown(text: str) -> str:
    """Without what a terminal would act on: a gateway's words are among it."""
    return "".join(
        letter if letter.isprintable() or letter == "\n" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _json_line(event: Event) -> None:
    print(json.dumps({"event": event.kind, "text": event.text, **event.facts}), flush=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    # Workloads may swallow any other exception, and training goes on.
    raise KeyboardInterrupt


__all__ = ["PASSWORD", "ExitCode", "command", "main"]
