"""A workload, or another class that users write, by its import path as a job's file names it.

Where it trains its module must be found too: `source_folder` has a job's modules as they travel there.

Guarantees:
    A loading error names the path, the cause and the remedy.
    A module of the folder comes first.
    A workload of a folder is read in a process that lacks the folder.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib
import inspect
import os
import re
import shutil
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.workload import Workload

T = TypeVar("T")

MOST_SOURCE_BYTES = 16 * 2**20
"""Of a job's Python files."""
_STANDARD = os.path.dirname(os.__file__)
_folders: set[Path] = set()
"""Where workloads' modules were found: another folder's module of the same name takes the place of one."""


@dataclass(frozen=True)
class Plugin(Generic[T]):
    """A kind of class that users write and a configuration names by its import path.

    Attributes:
        noun: What errors call it, such as ``workload``.
        base: What such a class derives from.
        home: The module that `base` is imported from.
    """

    noun: str
    base: type[T]
    home: str


WORKLOAD: Plugin[Workload[Any]] = Plugin(
    "workload",
    Workload,  # type: ignore[type-abstract]
    "scarcity_ray_client",
)


def load_workload(
    spec: str, args: Mapping[str, Any] | None = None, folder: str | os.PathLike[str] | None = None
) -> Workload[Any]:
    """Imports a workload's class and makes one; arguments and errors are those of `load_plugin`."""
    return load_plugin(WORKLOAD, spec, args, folder)


def load_plugin(
    plugin: Plugin[T],
    spec: str,
    args: Mapping[str, Any] | None = None,
    folder: str | os.PathLike[str] | None = None,
) -> T:
    """Imports a class and makes one.

    Args:
        spec: ``module:Class``; the module may be in a package (``site.tables:Mortality``).
        args: What the class is made with, by name.
        folder: Where its module is sought first, and put onto ``sys.path``; None: only ``sys.path`` is
            searched.

    Raises:
        UsageError: If that cannot be done; the text names `spec`, what is wrong and what to do.
    """
    noun, base = plugin.noun, plugin.base
    if not is_import_path(spec):
        raise UsageError(
            f"{noun} {spec!r}: this is no import path; write module:Class, such as my_module:Mortality"
        )
    module_name, class_name = spec.split(":")
    module = _imported(noun, spec, module_name, None if folder is None else Path(folder).resolve())
    cls = getattr(module, class_name, None)
    if cls is None:
        names = [name for name, thing in vars(module).items() if _is_one(base, thing) and thing is not base]
        near = difflib.get_close_matches(class_name, names, n=1, cutoff=0.5) or sorted(names)
        remedy = (
            f"its {noun}s: {', '.join(near)}"
            if near
            else f"it has no {noun}; write class NAME({base.__name__})"
        )
        raise UsageError(f"{noun} {spec!r}: {module.__file__} has no {class_name}; {remedy}")
    if not _is_one(base, cls):
        raise UsageError(
            f"{noun} {spec!r}: {class_name} is no {noun}; derive it: "
            f"class {class_name}({base.__name__}), with from {plugin.home} import {base.__name__}"
        )
    if lacking := sorted(cls.__abstractmethods__):
        raise UsageError(f"{noun} {spec!r}: {class_name} lacks {', '.join(lacking)}; write these methods")
    given = dict(args or {})
    try:
        inspect.signature(cls).bind(**given)
    except TypeError as error:
        accepted = str(inspect.signature(cls)).partition(" ->")[0]
        raise UsageError(
            f"{noun} {spec!r}: wrong args: {error}; {class_name}{accepted} is what it takes"
        ) from None
    try:
        made: T = cls(**given)
    except Exception as error:
        raise UsageError(f"{noun} {spec!r}: {class_name} could not be made: {told(error)}") from error
    return made


def search_beside(file: str | os.PathLike[str]) -> None:
    """Has modules sought in the folder of a job's file first, then in the working folder."""
    for folder in (Path.cwd(), Path(file).resolve().parent):
        _put_first(folder)


def is_import_path(spec: str) -> bool:
    """Whether this is written as ``module:Class``.

    >>> is_import_path("site.tables:Mortality"), is_import_path("krum")
    (True, False)
    """
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", spec) is not None


@dataclass(frozen=True)
class SourceFolder:
    """The Python files of a folder, for a process on a machine that may not have it.

    Attributes:
        path: The folder, where it was read.
        inside: The same from the working folder of the process that read it; "" if it is not in there.
        files: Their contents, by their path in it.
    """

    path: str
    inside: str
    files: Mapping[str, bytes]

    def install(self) -> Path:
        """Puts the folder first on ``sys.path``, or a copy where there are no such files; which.

        It is sought at its path, and from this process's working folder, where Ray lays a submitted job's.
        """
        places = [Path(self.path), *([Path.cwd() / self.inside] if self.inside else [])]
        folder = next((place for place in places if self._is_at(place)), None) or self._copy()
        _put_first(folder)
        _folders.add(folder)
        return folder

    def _is_at(self, place: Path) -> bool:
        return all(_holds(place / name, content) for name, content in self.files.items())

    def _copy(self) -> Path:
        """This user's own copy, named by its contents: whole or not there at all."""
        digest = hashlib.sha256(repr(sorted(self.files.items())).encode()).hexdigest()[:24]
        # Windows numbers no users: its `stat` says 0, and its folder for temporary files is the user's own.
        user = os.getuid() if hasattr(os, "getuid") else 0
        home = Path(tempfile.gettempdir()) / f"scarcity_ray_sources_{user}"
        home.mkdir(mode=0o700, exist_ok=True)
        if home.is_symlink() or home.stat().st_uid != user:
            raise UsageError(f"{home}: it belongs to another user; remove it")
        target = home / digest
        if not target.exists():
            unfinished = Path(tempfile.mkdtemp(dir=home))
            for name, content in self.files.items():
                (unfinished / name).parent.mkdir(parents=True, exist_ok=True)
                (unfinished / name).write_bytes(content)
            try:
                unfinished.rename(target)
            except OSError:  # another process was quicker
                shutil.rmtree(unfinished, ignore_errors=True)
        return target


def source_folder(workload: object) -> SourceFolder | None:
    """The Python files of the folder in which `load_workload` found a workload's module.

    They are the folder's own and those of its packages; None for a module that is installed, or that was
    imported otherwise.

    Raises:
        UsageError: If they are more than `MOST_SOURCE_BYTES`, or the working folder was removed.
    """
    folder = _home(type(workload).__module__)
    if folder not in _folders:
        return None
    files, size = dict[str, bytes](), 0
    for path in _sources(folder):
        files[path.relative_to(folder).as_posix()] = content = path.read_bytes()
        size += len(content)
        if size > MOST_SOURCE_BYTES:
            raise UsageError(
                f"{folder} and its packages hold more than {MOST_SOURCE_BYTES} bytes of Python, which would "
                "travel to where clients train; give the workload a folder of its own"
            )
    try:
        here = Path.cwd()
    except FileNotFoundError:
        raise UsageError(
            "the working folder was removed while the job ran; of a submitted job it is Ray's copy, which a "
            "second node on the same machine may clear: start that one with a --temp-dir of its own"
        ) from None
    inside = folder.relative_to(here).as_posix() if folder.is_relative_to(here) else ""
    return SourceFolder(str(folder), inside, files)


def told(error: BaseException) -> str:
    """An error as one line: its type, its message, and the innermost line of the user's own code.

    Line breaks and what else does not print become spaces, so that an error cannot forge lines of a log.
    Frames of the standard library, of installed packages and of this one are not the user's.
    """
    foreign = (os.path.dirname(__file__), os.path.dirname(os.__file__), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(foreign) and "site-packages" not in f.filename]
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {_one_line(error.msg)} (line {error.lineno} of {error.filename})"
    said = _one_line(traceback.format_exception_only(error)[0])[:500]  # notes come after it
    return f"{said} ({own[-1].filename}:{own[-1].lineno} in {own[-1].name})" if own else said


def _one_line(text: str) -> str:
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _is_one(base: type, thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, base)


def _imported(noun: str, spec: str, name: str, folder: Path | None) -> ModuleType:
    top = name.partition(".")[0]
    if folder is not None:
        _put_first(folder)
        place = folder / top if (folder / top).is_dir() else folder / f"{top}.py"
        origin = None if top not in sys.modules else _origin(sys.modules[top])
        if origin is not None and place.exists() and origin not in (place, place / "__init__.py"):
            raise UsageError(
                f"{noun} {spec!r}: a module {top!r} is loaded already, from {origin}; rename {place.name}"
            )
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
            raise _does_not_import(noun, spec, error) from error
        here = sorted(path.stem for path in folder.glob("*.py")) if folder else []
        near = difflib.get_close_matches(top, here, n=1) or here
        remedy = f"in {folder}: {', '.join(near)}" if near else f"write {top}.py there, or name its folder"
        raise UsageError(
            f"{noun} {spec!r}: no module {error.name!r} in {folder or 'sys.path'}; {remedy}"
        ) from None
    except (Exception, SystemExit) as error:
        raise _does_not_import(noun, spec, error) from error
    if (home := _home(name)) is not None:
        _folders.add(home)
    return module


def _origin(module: ModuleType) -> Path:
    return Path(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ["/"])))).resolve()


def _home(name: str) -> Path | None:
    """The folder on the path in which a loaded module lies; None for one that every machine has installed."""
    file = getattr(sys.modules.get(name), "__file__", None)
    top, *inner = name.split(".")
    if file is None or top in ("scarcity_ray", __package__) or file.startswith(_STANDARD):
        return None
    if "site-packages" in file or "dist-packages" in file:
        return None
    path = Path(file).resolve()
    return path.parents[len(inner) + (path.name == "__init__.py")]


def _sources(folder: Path) -> Iterator[Path]:
    yield from sorted(folder.glob("*.py"))
    for package in sorted(folder.glob("*/__init__.py")):
        yield from _sources(package.parent)


def _holds(path: Path, content: bytes) -> bool:
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def _does_not_import(noun: str, spec: str, error: BaseException) -> UsageError:
    return UsageError(f"{noun} {spec!r}: its module does not import: {told(error)}; mend that line")


def _put_first(folder: Path) -> None:
    """Puts a folder first on the path, and forgets what an earlier job's folder gave for its names."""
    if sys.path[:1] != [str(folder)]:
        sys.path[:] = [str(folder), *(entry for entry in sys.path if entry != str(folder))]
    importlib.invalidate_caches()
    earlier = _folders - {folder}
    tops = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/*.py")}
    for top in tops & sys.modules.keys():
        if earlier.isdisjoint(_origin(sys.modules[top]).parents[:2]):
            continue
        for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
            del sys.modules[name]


__all__ = [
    "Plugin",
    "SourceFolder",
    "is_import_path",
    "load_plugin",
    "load_workload",
    "search_beside",
    "source_folder",
    "told",
]
