"""The documentation as a site: it is built without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

import scarcity_ray
import scarcity_ray_client

ROOT = Path(__file__).parents[2]
ATTRIBUTES = re.compile(r"""<(\w+)\b([^>]*)>""")
ADDRESS = re.compile(r"""\b(?:src|href|data|poster|srcset)=(?:"([^"]*)"|'([^']*)'|([^\s"'>]+))""")
LOADED_BY_STYLES = re.compile(r"""(?:url\(\s*|@import\s*)["']?([^"')\s;]+)""")


def pages_of(part: object) -> list[str]:
    """The pages of a part of the navigation, from top to bottom."""
    if isinstance(part, str):
        return [part]
    return [page for inner in (part.values() if isinstance(part, dict) else part) for page in pages_of(inner)]


def addresses(page: str) -> list[tuple[str, str]]:
    """Each address in a page, with the element that names it."""
    return [
        (tag, html.unescape("".join(found)))
        for tag, attributes in ATTRIBUTES.findall(page)
        for found in ADDRESS.findall(attributes)
    ]


def is_elsewhere(address: str) -> bool:
    return re.match(r"([a-z][a-z0-9+.-]*:)?//", address.strip(), re.IGNORECASE) is not None


def loaded_from_elsewhere(folder: Path) -> set[tuple[str, str]]:
    """What pages and styles load from another host; a link that a reader may follow is no load."""
    found = set()
    for path in folder.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        found |= {(path.name, to) for tag, to in addresses(text) if tag != "a" and is_elsewhere(to)}
    for path in (*folder.rglob("*.css"), *folder.rglob("*.html"), *folder.rglob("*.svg")):
        text = re.sub(r"<(code|pre)\b.*?</\1>", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
        found |= {(path.name, to) for to in LOADED_BY_STYLES.findall(text) if is_elsewhere(to)}
    return found


def leads_nowhere(folder: Path) -> set[tuple[str, str]]:
    """Addresses within the site whose file is not there."""
    found = set()
    for page in folder.rglob("*.html"):
        for _, address in addresses(page.read_text(encoding="utf-8")):
            path = unquote(re.split(r"[?#]", address)[0])
            if path and not is_elsewhere(address) and not re.match(r"(mailto|data|javascript):", address):
                base = folder if path.startswith("/") else page.parent
                target = base / path.lstrip("/")
                if not (target / "index.html" if target.is_dir() else target).is_file():
                    found.add((page.relative_to(folder).as_posix(), address))
    return found


def test_every_page_has_one_place_in_the_navigation() -> None:
    listed = Counter(pages_of(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert [page for page, times in listed.items() if times > 1] == []
    pages = {
        p.relative_to(ROOT).as_posix() for top in ("docs", "examples") for p in (ROOT / top).rglob("*.md")
    }
    assert pages <= set(listed)
    assert [page for page in listed if not (ROOT / page).is_file()] == []


@pytest.mark.parametrize(
    ("page", "module", "given"),
    [
        ("api.md", "scarcity_ray.public", set(scarcity_ray.__all__) - {"__version__"}),
        ("api_client.md", "scarcity_ray_client", set(scarcity_ray_client.__all__)),
    ],
)
def test_the_api_pages_have_every_public_name_once(page: str, module: str, given: set[str]) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(rf"^::: {re.escape(module)}\.(\w+)$", text, flags=re.MULTILINE)
    assert len(named) == text.count(":::")
    assert Counter(named) == Counter(given)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site is not built: pip install '.[docs]'")
    folder = tmp_path_factory.mktemp("docs") / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.docs
def test_the_site_is_built_without_a_warning_and_its_links_lead_somewhere(site: Path) -> None:
    assert leads_nowhere(site) == set()
    reference = (site / "docs" / "api" / "index.html").read_text(encoding="utf-8")
    assert "scarcity_ray.public.HierarchicalFederation.fit" in reference


@pytest.mark.docs
def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    assert loaded_from_elsewhere(site) == set()


def test_what_is_loaded_from_elsewhere_or_leads_nowhere_is_found(tmp_path: Path) -> None:
    page = """<link href=https://a.example/x.css><script src="//b.example/y.js"></script><img src='z.png'>
    <style>@import "https://c.example/d.css"; p { background: url(http://e.example/f.png) }</style>
    <a href="https://g.example">a reader may follow it</a><a href="#below"></a><a href="sub/?q=1#top"></a>"""
    (tmp_path / "index.html").write_text(page)
    assert {address.split("//")[1][0] for _, address in loaded_from_elsewhere(tmp_path)} == set("abce")
    assert leads_nowhere(tmp_path) == {("index.html", "z.png"), ("index.html", "sub/?q=1#top")}
