"""Every fenced block of the pages is run or checked, or says why not in a comment above it.

Python runs as a page is read, from top to bottom, in a folder of its own, with `runtime="local"` for Ray.
What is not run still compiles, and its imports work. YAML is a job file, or a part of one. The commands of
most pages are run by `tests/cli/test_documented_commands.py`; here the programs' own parsers read all.
"""

from __future__ import annotations

import ast
import json
import re
import shlex
import textwrap
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path

import click
import pytest
import yaml

import benchmarks
from scarcity_ray.cli.main import main as server_command
from scarcity_ray.config import load
from scarcity_ray.workloads.config import RunConfig
from scarcity_ray_client import command as client_command

ROOT = Path(__file__).parents[2]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "client/README.md", "cluster/README.md"),
    *(
        p.relative_to(ROOT).as_posix()
        for top in ("docs", "examples")
        for p in sorted((ROOT / top).rglob("*.md"))
    ),
]
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^\n]+?) -->\s*\n\s*)?"
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
FOREIGN = (
    *("pip install ", "python -m venv ", "python -m pytest", "python make.py"),
    *("ray ", "export ", "chmod ", "cd ", ". "),
)
"""Programs of others, which have no parser here."""


@dataclass(frozen=True)
class Block:
    """A fenced block, without the page's indent, and why it is not run if it is not."""

    language: str
    text: str
    why: str | None
    line: int


def blocks(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            found["language"],
            re.sub(rf"^{found['indent']}", "", found["text"], flags=re.MULTILINE),
            found["why"],
            text.count("\n", 0, found.start("text")) + 1,
        )
        for found in BLOCK.finditer(text)
    ]


def commands(text: str, *, after_prompt: bool) -> Iterator[str]:
    """Each command of a shell's block; where there is a prompt, the other lines are what was printed."""
    for line in text.replace("\\\n", " ").splitlines():
        shown = line.removeprefix("$ ") if after_prompt else line
        if after_prompt and not line.startswith("$ "):
            continue
        for part in re.sub(r"(^|\s+)# .*", "", shown).split("&&"):
            if part.strip():
                yield part.strip()


def check_command(line: str) -> None:
    """Have a program's own parser read a command; another's program must be known."""
    line = re.sub(r"^(\w+=\S+ )+|\s>.*$", "", line)
    words = shlex.split(line)
    if words[0] == "ray" and "--" in words:
        words = words[words.index("--") + 1 :]
    if words[0] == "scarcity-ray":
        command: click.Command = server_command
        words = words[1:]
        while isinstance(command, click.Group) and words and not words[0].startswith("-"):
            _, inner, words = command.resolve_command(click.Context(command), words)
            assert inner is not None, line
            command = inner
        _, rest, _ = command.make_parser(click.Context(command)).parse_args(words)
        assert not rest, line
    elif words[0] == "scarcity-ray-client":
        client_command._parser().parse_args(words[1:])
    elif words[:3] == ["python", "-m", "benchmarks"]:
        assert words[3] in {p.stem for p in Path(benchmarks.__file__).parent.iterdir()} | {"NAME"}, line
    else:
        assert line.startswith(FOREIGN), f"neither ours nor known, so mark its block: {line}"


def sections(settings: type) -> dict[str, type]:
    """The types of the parts of settings, by name."""
    found = {}
    hints = typing.get_type_hints(settings)
    for one in fields(settings):
        for kind in (hints[one.name], *typing.get_args(hints[one.name])):
            if is_dataclass(kind):
                found[one.name] = kind
    return found


def check_job(text: str) -> None:
    """Build the settings of each section that a block of YAML has, at the top or within `federation`."""
    content = yaml.safe_load(text)
    if content is None:
        return
    known = sections(RunConfig)
    inner = sections(known["federation"])
    plain = {one.name for one in fields(RunConfig)} - set(known)
    for name, part in content.items():
        if name not in plain:
            assert name in known | inner, f"{name} is no section of a job file, so mark the block"
            load((known | inner)[name], part, name)


def pages_with(*languages: str) -> list[str]:
    return [page for page in PAGES if any(b.language in languages and b.why is None for b in blocks(page))]


def test_every_block_is_of_a_kind_that_is_checked_or_says_why_not() -> None:
    text = "".join((ROOT / page).read_text(encoding="utf-8") for page in PAGES)
    assert text.count("```") == 2 * sum(len(blocks(page)) for page in PAGES), (
        "a block is not closed, or is inline"
    )
    known = ("python", "bash", "console", "yaml", "json", "toml", "")
    odd = [
        f"{page}:{b.line} {b.language}"
        for page in PAGES
        for b in blocks(page)
        if not b.why and b.language not in known
    ]
    assert odd == []
    reasons = [b.why for page in PAGES for b in blocks(page) if b.why is not None]
    assert [why for why in reasons if len(why) < 10] == []
    assert [
        why for why in reasons for test in re.findall(r"tests/\S+\.py", why) if not (ROOT / test).exists()
    ] == []


@pytest.mark.parametrize("page", pages_with("bash", "console"))
def test_commands_are_read_by_the_programs_own_parsers(page: str) -> None:
    for block in blocks(page):
        if block.language in ("bash", "console") and block.why is None:
            for line in commands(block.text, after_prompt=block.language == "console"):
                check_command(line)


@pytest.mark.parametrize("page", pages_with("yaml", "json", "toml"))
def test_settings_are_accepted(page: str) -> None:
    for block in blocks(page):
        if block.why is None and block.language in ("yaml", "json", "toml"):
            {"yaml": check_job, "json": json.loads, "toml": tomllib.loads}[block.language](block.text)


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs_from_the_top_of_a_page(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page == "README.md":
        pytest.skip("tests/cli/test_documented_commands.py runs it, and looks at what it learns")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and block.why is None:
            code = block.text.replace(
                "HierarchicalFederation(config)", 'HierarchicalFederation(config, runtime="local")'
            )
            exec(compile("\n" * (block.line - 1) + code, page, "exec"), names)


def test_python_that_is_not_run_compiles_and_imports_what_is_there() -> None:
    for page in PAGES:
        for block in blocks(page):
            if block.language == "python" and block.why is not None:
                tree = ast.parse(textwrap.dedent(block.text))
                imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
                exec(compile(ast.Module(imports, []), f"{page}:{block.line}", "exec"), {})


def test_a_wrong_command_or_setting_is_found() -> None:
    for wrong in (
        "scarcity-ray run job.yaml --no-such 3",
        "scarcity-ray runs",
        "scarcity-ray-client go",
        "docker up",
    ):
        with pytest.raises((click.UsageError, SystemExit, AssertionError)):
            check_command(wrong)
    with pytest.raises(Exception, match="vector_dims"):
        check_job("federation: {vector_dims: 3}")
