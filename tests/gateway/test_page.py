"""The console's page in a real Chromium: hostile names, light and dark, 360 pixels wide, and each state."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from scarcity_ray import HierarchicalFederation
from scarcity_ray.gateway.operators import OperatorRole, Operators
from scarcity_ray.monitoring.status import Enrolment, State, federation_status, observe
from tests.gateway.watched import WatchedFederation, served
from tests.monitoring.test_status import DAY, NOW, config_of

pytestmark = pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium; Debian has a package")

HOSTILE = [
    "<img src=x onerror=\"document.title='owned'\">",
    "\"></td><script>document.title='owned'</script>",
    "a" * 200,
    "javascript:alert(1)//{{7*7}}${7*7}",
    "Süd-Klinikum — «Innere Medizin»",
]
CLIENTS = [(name, "region <i>0</i>") for name in HOSTILE]
CLIENTS += [(f"w{n}", f"region {n % 2 + 1}") for n in range(10)]


class Chromium:
    """A headless browser, by its DevTools protocol; `told` are its page's errors, dialogs and requests."""

    def __init__(self) -> None:
        self.folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        options = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0")
        command = ["chromium", *options, f"--user-data-dir={self.folder.name}", "about:blank"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        self.told: list[dict[str, Any]] = []
        self.number = 0

    async def __aenter__(self) -> Chromium:
        opened, until = Path(self.folder.name) / "DevToolsActivePort", time.monotonic() + 30
        while not (opened.exists() and opened.read_text().strip()):
            assert time.monotonic() < until, "Chromium does not start"
            await asyncio.sleep(0.05)
        self.session = aiohttp.ClientSession()
        async with self.session.get(f"http://127.0.0.1:{opened.read_text().split()[0]}/json") as answer:
            place = next(page for page in await answer.json() if page["type"] == "page")
        self.socket = await self.session.ws_connect(place["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log", "Network"):
            await self.call(f"{domain}.enable")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()
        self.process.terminate()
        self.process.wait(10)
        self.folder.cleanup()

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        self.number += 1
        await self.socket.send_json({"id": self.number, "method": method, "params": params})
        while True:
            message = await asyncio.wait_for(self.socket.receive_json(), 30)
            if message.get("id") == self.number:
                assert "error" not in message, message
                return dict(message["result"])
            self.told.append(message)

    async def do(self, script: str) -> Any:
        answer = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def until(self, script: str) -> None:
        """Wait until a script says true."""
        deadline = time.monotonic() + 20
        while not await self.do(script):
            assert time.monotonic() < deadline, script
            await asyncio.sleep(0.05)

    async def look(self, width: int, colours: str) -> None:
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        feature = {"name": "prefers-color-scheme", "value": colours}
        await self.call("Emulation.setEmulatedMedia", features=[feature])

    async def log_in(self, address: str, token: str) -> None:
        await self.call("Network.clearBrowserCookies")
        await self.call("Page.navigate", url=f"{address}/console")
        await self.until("!!document.getElementById('login') && !document.getElementById('login').hidden")
        await self.do(
            f"document.getElementById('token').value = {json.dumps(token)};"
            "document.querySelector('#login button').click()"
        )
        await self.until("!document.getElementById('console').hidden")


class Told:
    """A `Source` that tells a status that the test makes."""

    def __init__(self, watched: WatchedFederation) -> None:
        self.watched, self.changes = watched, dict[str, Any]()

    def status(self) -> dict[str, Any]:
        return {**self.watched.status(), **self.changes}

    def operate(self, act: str, arguments: Any, operator: str) -> dict[str, Any]:
        return self.watched.operate(act, arguments, operator)

    def ledger_rows(self) -> Iterator[dict[str, Any]]:
        return self.watched.ledger_rows()


CONTRAST = """
(() => {
  const light = (colour) => {
    const parts = colour.match(/[\\d.]+/g).slice(0, 3).map((part) => {
      const share = part / 255;
      return share <= 0.03928 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
  };
  const page = light(getComputedStyle(document.body).backgroundColor);
  return [...document.querySelectorAll("h1, p, td, th, .ok, .bad, .warn, .soft, .state")].map((node) => {
    const ink = light(getComputedStyle(node).color);
    return (Math.max(ink, page) + 0.05) / (Math.min(ink, page) + 0.05);
  }).reduce((least, one) => Math.min(least, one));
})()
"""
"""The least contrast of text with the page (WCAG 2.2 asks for 4.5)."""


@pytest.mark.long
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    operators = Operators(tmp_path / "operators.json")
    tokens = {role: operators.add(f"{role} Ann", role) for role in OperatorRole}
    enrolments = {name: Enrolment(NOW + (5 + n) * DAY, revoked=n == 7) for n, (name, _) in enumerate(CLIENTS)}
    with HierarchicalFederation(config_of(tmp_path), runtime="local", clock=lambda: NOW) as fed:
        (tmp_path / "empty").mkdir()
        with HierarchicalFederation(config_of(tmp_path / "empty"), runtime="local") as empty:
            nothing = federation_status(observe(empty, NOW))
        fed.register_clients(CLIENTS)
        watched = WatchedFederation(fed, NOW, name="<b>town</b>", enrolments=enrolments)
        watched.make_rounds(CLIENTS, 6)
        source, now = Told(watched), [NOW]
        with served(source, operators, clock=lambda: now[0]) as address:
            asyncio.run(_looked_at(address, source, nothing, tokens, now))


async def _looked_at(
    address: str,
    source: Told,
    nothing: dict[str, Any],
    tokens: dict[OperatorRole, str],
    now: list[float],
) -> None:
    async with Chromium() as browser:
        await browser.look(1200, "light")
        await browser.log_in(address, tokens[OperatorRole.OPERATE])
        assert await browser.do("document.title") == "<b>town</b>: Open"
        cells = "[...document.querySelectorAll('#sites td.id')]"
        told = await browser.do(f"{cells}.map((cell) => cell.textContent)")
        assert set(HOSTILE) <= set(told)
        assert await browser.do("document.querySelectorAll('img, b *, td script, iframe, i i').length") == 0
        colours = {}
        for colour in ("light", "dark"):
            await browser.look(360, colour)
            assert await browser.do("document.documentElement.scrollWidth") <= 360
            assert await browser.do(CONTRAST) >= 4.5
            colours[colour] = await browser.do("getComputedStyle(document.body).backgroundColor")
        assert colours["light"] != colours["dark"]

        await browser.do("document.querySelector('[data-act=pause]').click()")
        await browser.do("document.getElementById('ask-yes').click()")
        await browser.until("document.title.endsWith('Paused')")
        assert source.watched.acts == [("pause", {}, "operate Ann")]
        assert await browser.do("document.querySelector('[data-act=pause]').disabled")

        for changes, title, within in (
            (nothing, "Federation: No sites yet", "No site is registered yet."),
            (
                {"state": State.STOPPED, "sentence": "Its ledger is gone."},
                "<b>town</b>: Stopped",
                "is gone",
            ),
            ({"state": State.BUDGET_SPENT, "sentence": "Spent."}, "<b>town</b>: Budget spent", "Spent."),
            ({"outliers": None}, "<b>town</b>: Paused", "Not shown: this federation keeps"),
        ):
            source.changes = changes
            now[0] += 2.0
            await browser.do("refresh()")
            assert await browser.do("document.title") == title
            assert within in await browser.do("document.getElementById('console').textContent")
            assert await browser.do("document.documentElement.scrollWidth") <= 360

        await browser.log_in(address, tokens[OperatorRole.READ])
        assert await browser.do("document.getElementById('acts').hidden")
        await browser.do("document.getElementById('logout').click()")
        await browser.until("!document.getElementById('login').hidden")

        told = [message for message in browser.told if "method" in message]
        of = {method: [m["params"] for m in told if m["method"] == method] for method in WATCHED}
        assert not of["Runtime.exceptionThrown"] + of["Page.javascriptDialogOpening"]
        entries = [params["entry"] for params in of["Log.entryAdded"]]
        assert {e["text"][-18:] for e in entries if e["level"] == "error"} <= {"401 (Unauthorized)"}
        asked = {params["request"]["url"] for params in of["Network.requestWillBeSent"]}
        assert f"{address}/v1/status" in asked
        assert {url for url in asked if not url.startswith(address)} <= {"data:,"}


WATCHED = (
    "Runtime.exceptionThrown",
    "Page.javascriptDialogOpening",
    "Log.entryAdded",
    "Network.requestWillBeSent",
)
