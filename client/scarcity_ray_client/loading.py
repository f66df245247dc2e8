"""A workload, or another class that users write, by its import path as a job's file names it.

Guarantees:
    A loading error names the path, the cause and the remedy.
    A module of the folder comes first.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Generic, TypeVar

from scarcity_ray_client.errors import UsageError
from scarcity_ray_client.workload import Workload

T = TypeVar("T")

_loaded: set[str] = set()
"""Modules that were imported here: another folder's of the same name takes their place."""


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


def is_import_path(spec: str) -> bool:
    """Whether this is written as ``module:Class``.

    >>> is_import_path("site.tables:Mortality"), is_import_path("krum")
    (True, False)
    """
    return re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*", spec) is not None


def home_of(cls: type) -> str | None:
    """The folder that has to be on ``sys.path`` for the class's module to be imported, if it is a file's."""
    module = sys.modules.get(cls.__module__)
    file = getattr(module, "__file__", None)
    if file is None:
        return None
    depth = cls.__module__.count(".") + (Path(file).name == "__init__.py")
    return str(Path(file).resolve().parents[depth])


def told(error: BaseException) -> str:
    """An error as one line: its type, its message, and the innermost line of the user's own code.

    Frames of the standard library, of installed packages and of this one are not the user's.
    """
    foreign = (os.path.dirname(__file__), os.path.dirname(os.__file__), "<frozen")
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if not f.filename.startswith(foreign) and "site-packages" not in f.filename]
    last = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError):
        return f"{last} (line {error.lineno} of {error.filename})"
    return f"{last[:500]} ({own[-1].filename}:{own[-1].lineno} in {own[-1].name})" if own else last[:500]


def _is_one(base: type, thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, base)


def _imported(noun: str, spec: str, name: str, folder: Path | None) -> ModuleType:
    top = name.partition(".")[0]
    if folder is not None:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        _make_way(noun, spec, top, folder)
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
    _loaded.add(top)
    return module


def _does_not_import(noun: str, spec: str, error: BaseException) -> UsageError:
    return UsageError(f"{noun} {spec!r}: its module does not import: {told(error)}; mend that line")


def _make_way(noun: str, spec: str, top: str, folder: Path) -> None:
    """Forgets an earlier job's module of this name; refuses where the name is somebody else's."""
    earlier = sys.modules.get(top)
    place = folder / top if (folder / top).is_dir() else folder / f"{top}.py"
    if earlier is None or not place.exists():
        return
    origin = getattr(earlier, "__file__", None) or next(iter(getattr(earlier, "__path__", [""])))
    if Path(origin).resolve() in (place, place / "__init__.py"):
        return
    if top not in _loaded:
        raise UsageError(
            f"{noun} {spec!r}: a module {top!r} is loaded already, from {origin}; rename {place.name}"
        )
    for name in [name for name in sys.modules if name == top or name.startswith(f"{top}.")]:
        del sys.modules[name]
    sys.path.remove(str(folder))
    sys.path.insert(0, str(folder))


__all__ = ["Plugin", "home_of", "is_import_path", "load_plugin", "load_workload", "told"]
