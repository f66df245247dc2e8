"""``scarcity-ray status``: what a federation is doing, asked of its roles on a cluster or of a gateway.

Guarantees:
    a_token_goes_to_the_gateway_that_was_named_alone: No redirect is followed, and without TLS none leaves
        this machine, whatever proxy there is.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from scarcity_ray.cli.exit_codes import ExitCode
from scarcity_ray.cli.ledger import printable
from scarcity_ray.errors import UsageError
from scarcity_ray.federation.hierarchical import HierarchicalFederation
from scarcity_ray.monitoring.status import FORMAT_VERSION, SECONDS_A_DAY, federation_status, observe

TOKEN = "SCARCITY_RAY_OPERATOR_TOKEN"
TIMEOUT_SECONDS = 20.0
MOST_BYTES = 64 * 2**20
MOST_SITES = 20
"""Sites that are listed as text, those in trouble first."""
STRIP = 40
"""Rounds of a site's strip."""

Ask = Callable[[], dict[str, Any]]


def status_command(
    where: str,
    address: str | None,
    token_file: str | None,
    ca: str | None,
    watch: bool,
    every: float,
    form: str,
) -> ExitCode:
    """Print the status once, or again and again until it is interrupted."""
    with _asked(where, address, token_file, ca) as ask, suppress(KeyboardInterrupt):
        show = _as_json if form == "json" else _as_text
        show(ask, every if watch else None)
    return ExitCode.DONE


def _as_json(ask: Ask, every: float | None) -> None:
    click.echo(json.dumps(ask(), allow_nan=False))
    while every is not None:
        time.sleep(every)
        click.echo(json.dumps(ask(), allow_nan=False))


def _as_text(ask: Ask, every: float | None) -> None:
    console = Console(highlight=False)
    if every is not None and console.is_terminal:
        with Live(shown_status(ask()), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(every)
                live.update(shown_status(ask()), refresh=True)
    if not console.is_terminal:
        console.width = 120
    console.print(shown_status(ask()))
    while every is not None:
        console.file.flush()  # a pipe is given each as it comes
        time.sleep(every)
        console.print(shown_status(ask()))


@contextmanager
def _asked(where: str, address: str | None, token_file: str | None, ca: str | None) -> Iterator[Ask]:
    if "://" in where:
        yield _of_gateway(where, token_file, ca)
        return
    if token_file is not None or ca is not None:
        raise UsageError(f"--token-file and --ca are for a gateway's URL; {where!r} is a federation's name")
    with closing(HierarchicalFederation.attach(where, address=address)) as federation:
        yield lambda: federation_status(observe(federation, time.time(), name=where))


def _of_gateway(url: str, token_file: str | None, ca: str | None) -> Ask:
    place = urlsplit(url)
    if place.scheme not in ("http", "https") or not place.hostname or place.username or place.query:
        raise UsageError(f"{url!r} is no gateway's address; such as https://gateway.example.org:8443")
    if place.scheme == "http" and place.hostname not in ("localhost", "127.0.0.1", "::1"):
        raise UsageError(f"{url}: a token is sent over https alone, but to this machine; give https://...")
    token = _token(token_file)
    try:
        trusted = ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--ca {ca}: {error}; give the gateway's certificate authority as PEM") from None
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect(), urllib.request.HTTPSHandler(context=trusted)]
    if place.scheme == "http":  # a proxy of the environment would read the token
        handlers.append(urllib.request.ProxyHandler({}))
    opener = urllib.request.build_opener(*handlers)
    request = urllib.request.Request(
        url.rstrip("/") + "/v1/status", headers={"Authorization": f"Bearer {token}"}
    )

    def ask() -> dict[str, Any]:
        try:
            with opener.open(request, timeout=TIMEOUT_SECONDS) as answer:
                body = answer.read(MOST_BYTES)
        except urllib.error.HTTPError as error:
            raise UsageError(f"{url}: {_why(error)}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise UsageError(f"{url} does not answer ({reason}); is it the gateway's, and running?") from None
        try:
            told = json.loads(body)
            version = told["format_version"]
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{url} answers, but is no gateway of scarcity_ray") from None
        if version != FORMAT_VERSION:
            raise UsageError(
                f"{url} tells a status of format {version!r}; this command reads {FORMAT_VERSION}"
            )
        return dict(told)

    return ask


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an error: the token is for the gateway that was named."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _why(error: urllib.error.HTTPError) -> str:
    if error.code == 401:
        return f"the token is no operator's; see --token-file and {TOKEN}, and `scarcity-ray operators add`"
    if 300 <= error.code < 400:
        return (
            f"it sends elsewhere ({printable(error.headers.get('Location', ''))}); name that gateway yourself"
        )
    try:
        return printable(str(json.loads(error.read(MOST_BYTES))["message"]))
    except (ValueError, TypeError, KeyError, OSError):
        return f"it answers {error.code}; is it a gateway?"


def _token(token_file: str | None) -> str:
    if token_file is not None:
        try:
            token = Path(token_file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {token_file}: {error}") from None
    else:
        token = os.environ.get(TOKEN, "").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError(f"no operator's token was given: put it into a file for --token-file, or in {TOKEN}")
    return token


def shown_status(told: Mapping[str, Any]) -> RenderableType:
    """A status for a terminal."""
    name = told["federation"]["name"] or told["federation"]["id"]
    now, budget, sites = told["round"], told["budget"], told["sites"]
    left = "no end of rounds" if budget["rounds_left"] is None else f"{budget['rounds_left']} rounds left"
    closes = "" if now["closes_in_seconds"] is None else f", closes in {now['closes_in_seconds']:.0f} s"
    own = budget["ceilings"]
    lines = [
        f"{name}: {told['state'].replace('_', ' ')}. {told['sentence']}",
        f"round {now['number']}: {now['headline']}{closes}",
        f"budget: epsilon {_short(budget['epsilon_spent'])} of {_short(budget['epsilon_total'])} spent at "
        f"delta {_short(budget['delta'])} for one {budget['unit']}; {left}, the next release costs "
        f"{_short(budget['next_release_epsilon'])}",
    ]
    if own["clients"]:
        lines.append(f"ceilings: {own['clients']} sites have their own, {own['num_left_out']} reached it")
    states = [f"{count} {state.replace('_', ' ')}" for state, count in sites["by_state"].items() if count]
    more = f", {sites['unlisted']} not listed" if sites["unlisted"] else ""
    lines.append(f"sites: {', '.join(states) or 'none'}{more}")
    refusals = [f"{count} {reason.replace('_', ' ')}" for reason, count in told["refusals"].items()]
    lines.append(f"refused updates: {', '.join(refusals) or 'none'}")
    lines += _work(told["work"])
    lines.append(f"ledger: {told['ledger']['path']}, head {told['ledger']['head']}")
    faults = told["faults"]["newest"]
    lines += [f"lost: {loss}" for loss in faults[-3:]]
    parts: list[RenderableType] = [Text(printable(line), overflow="fold") for line in lines]
    if sites["list"]:
        parts.append(_sites(told))
    return Group(*parts)


def _work(work: Mapping[str, Any]) -> list[str]:
    forecast, last = work["forecast"], work["last_round"]
    if last is None:
        return []
    words = [f"{last['seconds']:.3g} s"]
    if last["own_seconds"] is not None:
        words.append(f"{last['own_seconds']:.3g} s of it the federation's own")
    if forecast is not None:
        words.append(f"forecast {forecast['seconds_on_one_core']:.3g} s on one core")
    return [f"last round: {', '.join(words)}"]


def _sites(told: Mapping[str, Any]) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for name in ("site", "domain", "state", "last seen", "certificate", "ceiling left", "last rounds"):
        table.add_column(name, overflow="fold")
    listed = told["sites"]["list"]
    for site in listed[:MOST_SITES]:
        days, ceiling = site["certificate_days_left"], site["ceiling"]
        cells = (
            site["id"],
            site["domain"] or "",
            site["state"].replace("_", " "),
            _ago(site["last_seen"], told["at"]),
            "" if days is None else "expired" if days < 0 else f"{days} days",
            "" if ceiling is None else f"{_short(ceiling['epsilon_left'])} of {_short(ceiling['epsilon'])}",
            site["strip"][-STRIP:],
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    if len(listed) > MOST_SITES:
        table.add_row(Text(f"and {len(listed) - MOST_SITES} more (--format json lists them)"))
    return table


def _ago(then: float | None, now: float) -> str:
    if then is None:
        return "never"
    gone = max(0.0, now - then)
    for size, unit in ((SECONDS_A_DAY, "d"), (3600.0, "h"), (60.0, "min")):
        if gone >= size:
            return f"{gone // size:.0f} {unit} ago"
    return f"{gone:.0f} s ago"


def _short(value: float | None) -> str:
    return "unlimited" if value is None else f"{value:.4g}"
