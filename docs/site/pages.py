"""What MkDocs does differently for this site: pages from the whole repository, and GitHub's anchors.

The site has the repository's layout, `README.md` at its top and `docs/` beside `examples/`. So a link between
two pages, or from a page to a file, leads to the same place on the site as in the repository.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pymdownx.slugs import slugify

ROOT = Path(__file__).parents[2]
PLACES = (
    *("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "client/README.md"),
    *("docs", "examples", "configs", "cluster"),
)
KINDS = (".md", ".svg", ".png", ".css", ".py", ".yaml", ".ipynb")


def paths() -> list[Path]:
    """All files of the site, relative to the repository."""
    found = []
    for place in PLACES:
        path = ROOT / place
        found += [path] if path.is_file() else sorted(path.rglob("*"))
    return [
        path.relative_to(ROOT)
        for path in found
        if path.suffix in KINDS and not {"runs", "__pycache__"} & set(path.parts)
    ]


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Name headings as GitHub does, since links are written for it."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Put the repository's pages in place of `docs_dir`'s, which know nothing of those beside it."""
    kept = [file for file in files if file.src_dir != config.docs_dir]  # the theme's own
    ours = [File.generated(config, path.as_posix(), abs_src_path=str(ROOT / path)) for path in paths()]
    return Files([*kept, *ours])
