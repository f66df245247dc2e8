"""What of Windows and macOS can be held on Linux: the client package asks for nothing that they lack."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import scarcity_ray_client

PACKAGE = Path(scarcity_ray_client.__file__).parent
UNIX_MODULES = frozenset({"fcntl", "grp", "pwd", "resource", "termios"})
# `rename` over a file that exists is refused on Windows; `replace` is not.
NOT_ON_WINDOWS = frozenset(
    {
        *(
            f"os.{name}"
            for name in ("fork", "getuid", "geteuid", "getgid", "getpgid", "killpg", "setsid", "uname")
        ),
        *(f"os.{name}" for name in ("chown", "fchown", "fchmod", "mkfifo", "sched_getaffinity", "rename")),
        *(f"os.O_{name}" for name in ("NOFOLLOW", "DIRECTORY", "CLOEXEC", "NONBLOCK", "SYNC", "DSYNC")),
        *(f"signal.SIG{name}" for name in ("KILL", "HUP", "USR1", "USR2", "ALRM", "CHLD", "PIPE", "QUIT")),
        "signal.alarm",
        "signal.setitimer",
        "socket.AF_UNIX",
    }
)

IMPORT_ALL = f"""
import importlib, os, pkgutil, sys
for name in {sorted(UNIX_MODULES)!r}:
    sys.modules[name] = None
import scarcity_ray_client as package
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise
"""


def unguarded(tree: ast.AST, guarded: bool = False) -> list[str]:
    """The names that Windows lacks, outside an ``if`` on ``hasattr(os, ...)`` or ``os.name``."""
    found: list[str] = []
    if isinstance(tree, ast.Attribute) and not guarded and ast.unparse(tree) in NOT_ON_WINDOWS:
        found.append(f"{ast.unparse(tree)}, line {tree.lineno}")
    if isinstance(tree, (ast.If, ast.IfExp)):
        guarded = guarded or any(word in ast.unparse(tree.test) for word in ("hasattr(os", "os.name"))
    return found + [name for child in ast.iter_child_nodes(tree) for name in unguarded(child, guarded)]


def test_every_module_is_imported_without_the_modules_of_unix_alone() -> None:
    done = subprocess.run([sys.executable, "-c", IMPORT_ALL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_that_windows_lacks_is_called_without_a_guard() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert files
    found = {str(file.relative_to(PACKAGE)): unguarded(ast.parse(file.read_text("utf-8"))) for file in files}
    assert {file: names for file, names in found.items() if names} == {}


@pytest.mark.parametrize("line", ["os.getuid()", "os.rename(a, b)", "signal.SIGKILL", "socket.AF_UNIX"])
def test_a_call_without_a_guard_is_found(line: str) -> None:
    assert unguarded(ast.parse(line))
    assert not unguarded(ast.parse(f"x = {line} if os.name != 'nt' else 0"))
