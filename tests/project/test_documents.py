"""What the documents say of the code is still so: names, files and links."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "SECURITY.md",
    "cluster/README.md",
    "client/README.md",
)
WRITTEN = (*PAGES, *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md"))))
DECISIONS = ROOT / "docs" / "decisions"


def source_words() -> set[str]:
    words = set()
    for path in (*(ROOT / "scarcity_ray").rglob("*.py"), *(ROOT / "client").rglob("*.py")):
        words |= set(re.findall(r"\w+", f"{path.stem} {path.read_text()}"))
    return words


def missing_names(text: str, known: set[str]) -> list[str]:
    """Names in the third column of a glossary's tables that are no word of the sources."""
    rows = [line.split("|") for line in text.splitlines() if line.startswith("|")]
    named = [name for row in rows if len(row) > 3 for name in re.findall(r"`([^`]+)`", row[3])]
    return [name for name in named if name not in known]


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a page's headings."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def missing_links(path: Path) -> list[str]:
    """Relative links whose file is not there, or has no such heading."""
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = path.parent / file if file else path
        if "://" not in link and (not target.exists() or (anchor and anchor not in anchors(target))):
            missing.append(link)
    return missing


def test_the_code_has_every_name_of_the_glossary():
    known = source_words()
    assert missing_names((ROOT / "docs" / "glossary.md").read_text(), known) == []
    assert missing_names("| a term | its meaning | `NoSuchName` |", known) == ["NoSuchName"]


def test_no_term_of_the_glossary_is_explained_twice():
    rows = [line for line in (ROOT / "docs" / "glossary.md").read_text().splitlines() if line.startswith("|")]
    terms = [row.split("|")[1].strip() for row in rows]
    terms = [term for term in terms if term not in ("term", "say") and not term.startswith("---")]
    assert len(terms) > 80
    assert len(set(terms)) == len(terms)


@pytest.mark.parametrize("name", WRITTEN)
def test_links_lead_somewhere(name):
    assert missing_links(ROOT / name) == []


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    links = "[a](page.md#the-top) [b](gone.md) [c](ftp://a/b) [d](#the-top) [e](#below) [f](page.md#g)"
    (tmp_path / "page.md").write_text(f"# The *top*\n{links}\n```\n# below\n```\n")
    assert missing_links(tmp_path / "page.md") == ["gone.md", "#below", "page.md#g"]


def test_the_index_names_every_page():
    listed = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {page for page in pages if f"({page}" not in listed} == set()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_every_decision_is_listed_and_says_context_decision_and_price():
    listed = (DECISIONS / "README.md").read_text()
    records = sorted(path for path in DECISIONS.glob("*.md") if path.name != "README.md")
    assert len(records) >= 12
    for number, path in enumerate(records, 1):
        assert path.name.startswith(f"{number:02d}-"), path.name
        assert f"({path.name})" in listed
        headings = re.findall(r"^## (.+)$", path.read_text(), flags=re.MULTILINE)
        assert headings == ["Context", "Decision", "Price"], path.name
        assert len(path.read_text().split()) < 450, "half a page"
