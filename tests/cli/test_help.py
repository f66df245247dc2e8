"""``--help`` has examples that can be typed, and the shell completes commands and options."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

import click
import pytest
from click.testing import CliRunner

from scarcity_ray.cli.main import main


def commands(group: click.Group = main, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


@pytest.mark.parametrize("path", list(commands()), ids=" ".join)
def test_every_help_ends_with_examples_that_parse(path: tuple[str, ...]) -> None:
    told = CliRunner().invoke(main, [*path, "--help"])
    assert told.exit_code == 0
    _, found, lines = told.stdout.partition(
        "\nExamples:\n" if "\nExamples:\n" in told.stdout else "  Examples:\n"
    )
    assert found, f"scarcity-ray {' '.join(path)}: no examples; give the command epilog=examples(...)"
    examples = [line.strip() for line in lines.splitlines() if line.strip()]
    assert examples
    for example in examples:
        assert example.startswith(" ".join(("scarcity-ray", *path)))
        command: click.Command = main
        words = shlex.split(example)[1:]
        while isinstance(command, click.Group):
            command = command.commands[words.pop(0)]
        context = click.Context(command)
        command.make_parser(context).parse_args(words)  # raises for an option that is not there


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_gets_a_script_for_completion(shell: str) -> None:
    told = CliRunner().invoke(
        main, prog_name="scarcity-ray", env={"_SCARCITY_RAY_COMPLETE": f"{shell}_source"}
    )
    assert "scarcity-ray" in told.stdout


def completed(*words: str) -> list[str]:
    environment = {
        "_SCARCITY_RAY_COMPLETE": "bash_complete",
        "COMP_WORDS": " ".join(("scarcity-ray", *words)),
        "COMP_CWORD": str(len(words)),
    }
    told = CliRunner().invoke(main, prog_name="scarcity-ray", env=environment)
    return [line.partition(",")[2] for line in told.stdout.splitlines()]


def test_commands_options_and_choices_are_completed() -> None:
    assert completed("led") == ["ledger"]
    assert completed("ledger", "ver") == ["verify"]
    assert completed("run", "--runt") == ["--runtime"]
    assert completed("run", "--runtime", "l") == ["local"]
