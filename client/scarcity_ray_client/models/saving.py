"""Saved models: one file that NumPy reads without pickle, so that opening a stranger's model runs no code.

The file is an ``.npz`` archive: a member ``header`` (JSON in UTF-8: the parts and, of a classifier, its
classes) and one array for each part that is not tied to another, named by its number. bfloat16 is kept as its
16 bits (uint16). scikit-learn's own way, joblib, is pickle: a saved estimator is read into an `initialised`
one instead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from scarcity_ray_client.errors import ModelRefused, UsageError
from scarcity_ray_client.formats import why_not_read
from scarcity_ray_client.models.forms import form_of
from scarcity_ray_client.models.parts import Numbers, Part, describe, read, write
from scarcity_ray_client.models.trees import named_leaves

FORMAT = "scarcity_ray model"
VERSION = 1
_OTHER_FILES = (
    *(zipfile.BadZipFile, zlib.error, EOFError),
    *(KeyError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError),
)
"""What reading a file may raise that somebody has torn or made up."""
Model = TypeVar("Model")


def save_model(path: str | os.PathLike[str], model: object) -> None:
    """Writes every part of a model, trained or not, to a file, which is there whole or not at all.

    Raises:
        ModelRefused: If a part cannot be carried.
    """
    form = form_of(model)
    leaves = dict(named_leaves(form.tree(model)))
    parts = describe(leaves.items())
    header = {
        "format": FORMAT,
        "version": VERSION,
        "facts": form.facts(model),
        "parts": [dataclasses.asdict(part) for part in parts],
    }
    members = {
        str(index): _bits(read(leaves[part.name])) if part.dtype == "bfloat16" else read(leaves[part.name])
        for index, part in enumerate(parts)
        if not part.tied_to
    }
    target = Path(path)
    unfinished = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with open(unfinished, "wb") as file:
            np.savez(
                file,
                allow_pickle=False,
                header=np.frombuffer(json.dumps(header).encode(), np.uint8),
                **members,
            )
        os.replace(unfinished, target)
    finally:
        unfinished.unlink(missing_ok=True)


def load_model(path: str | os.PathLike[str], like: Model | None = None) -> Any:
    """Reads what `save_model` wrote.

    Args:
        path: The file.
        like: A model of the same structure; it is copied, not changed.

    Returns:
        A model like `like`, or without one a dict of arrays by name, bfloat16 as float32.

    Raises:
        UsageError: If the file is no saved model.
        ModelRefused: If its parts are not those of `like`.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_model(f"{folder}/model.npz", {"w": np.ones(2, np.float32)})
    ...     load_model(f"{folder}/model.npz", like={"w": np.zeros(2, np.float32)})
    {'w': array([1., 1.], dtype=float32)}
    """
    facts, parts, arrays = _read_file(path)
    numbers = {
        part.name: _floats(arrays[part.name]) if part.dtype == "bfloat16" else arrays[part.name]
        for part in parts
    }
    if like is None:
        return numbers
    form = form_of(like)
    due = form.facts(like)
    for name, value in facts.items():
        if due.get(name) != value:
            raise ModelRefused(
                name, "different", f"the file's is {value!r:.200}, the model's {due.get(name)!r:.200}"
            )
    leaves = dict(named_leaves(form.tree(like)))
    for part in describe(leaves.items()):
        held = numbers.pop(part.name, None)
        if held is None:
            raise ModelRefused(part.name, "different", "the file has no such part")
        if held.shape != part.shape or (held.dtype.kind == "f") != part.is_float:
            detail = f"the file has {held.dtype} {held.shape}; {part.dtype} {part.shape} is due"
            raise ModelRefused(part.name, "different", detail)
        leaves[part.name] = (
            leaves[part.tied_to] if part.tied_to else write(part.name, leaves[part.name], held)
        )
    if numbers:
        raise ModelRefused(next(iter(numbers)), "different", "the file has it, the model has no such part")
    return form.assemble(form.template(like), leaves)


def export_model(
    saved: str | os.PathLike[str], path: str | os.PathLike[str], to: Literal["torch", "numpy"]
) -> None:
    """Writes a saved model for a framework.

    Args:
        saved: A file of `save_model`.
        path: The file to write.
        to: ``torch``: a ``state_dict`` that ``torch.load(path, weights_only=True)`` reads; ``numpy``: an
            ``.npz`` of the parts by name.

    Raises:
        UsageError: If the file is no saved model, PyTorch is not installed, or there is no such framework.
    """
    _, parts, arrays = _read_file(saved)
    if to == "numpy":
        with zipfile.ZipFile(path, "w") as archive:  # as np.savez does, which has no room for a part "file"
            for name, array in load_model(saved).items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)
    elif to == "torch":
        try:
            import torch
        except ImportError:
            raise UsageError("PyTorch is not installed: pip install 'scarcity-ray-client[torch]'") from None
        state: dict[str, Any] = {}
        for part in parts:
            array = arrays[part.name]
            if part.tied_to:
                state[part.name] = state[part.tied_to]
            elif part.dtype == "bfloat16":
                state[part.name] = torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
            else:
                state[part.name] = torch.from_numpy(array)
        torch.save(state, path)
    else:
        raise UsageError(
            f"to: {to!r} is not accepted; torch or numpy (load_model reads it into an estimator)"
        )


def _read_file(path: str | os.PathLike[str]) -> tuple[dict[str, object], list[Part], dict[str, Numbers]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            header = json.loads(archive["header"].tobytes())
            why = why_not_read(FORMAT, VERSION, header["format"], header["version"])
            if why:
                raise UsageError(f"{os.fspath(path)}: {why}")
            parts = [Part(**{**entry, "shape": tuple(entry["shape"])}) for entry in header["parts"]]
            arrays: dict[str, Numbers] = {}
            for index, part in enumerate(parts):
                arrays[part.name] = arrays[part.tied_to] if part.tied_to else archive[str(index)]
                if arrays[part.name].shape != part.shape:
                    raise ValueError(
                        f"{part.name} has shape {arrays[part.name].shape}, its header {part.shape}"
                    )
            return dict(header["facts"]), parts, arrays
    except OSError as error:
        raise UsageError(f"cannot read {os.fspath(path)}: {error.strerror or error}") from None
    except UsageError:
        raise
    except _OTHER_FILES as error:
        # NumPy's own words of another file tell the reader to load it unsafely.
        why = "it is no .npz file" if "pickle" in str(error) else str(error)
        raise UsageError(f"{os.fspath(path)} is no model that save_model wrote: {why}") from None


def _bits(numbers: Numbers) -> Numbers:
    """The 16 high bits of float32 numbers that are bfloat16."""
    return (np.asarray(numbers, np.float32, order="C").view(np.uint32) >> 16).astype(np.uint16)


def _floats(bits: Numbers) -> Numbers:
    return (bits.astype(np.uint32) << 16).view(np.float32)


__all__ = ["export_model", "load_model", "save_model"]
