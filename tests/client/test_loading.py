"""A workload by its import path: found, or refused with the path, the cause and the remedy."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys

import pytest

from scarcity_ray_client import UsageError, Workload, load_workload
from scarcity_ray_client.loading import source_folder

SOURCE = """
from scarcity_ray_client import Client, Trained, Workload

class Mortality(Workload):
    word = "{word}"
    def __init__(self, folder: str, seed: int = 0) -> None:
        if seed < 0:
            raise OSError("no table in " + folder)
        self.folder, self.seed = folder, seed
    def clients(self): return [Client("a", "x")]
    def initial_model(self): return {{}}
    def train(self, model, client, round_id): return Trained(model=model)
    def evaluate(self, model): return {{}}

class HalfMade(Workload):
    def clients(self): return []

class Table: pass
"""
MODULES = ("sr_tables", "sr_wards", "sr_broken", "sr_half", "sr_package", "sr_slip")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "sr_wards.py").write_text(SOURCE.format(word="first"))
    (tmp_path / "sr_broken.py").write_text("import numpy\n\nimport no_such_library\n")
    (tmp_path / "sr_half.py").write_text("def broken(:\n")
    (tmp_path / "sr_slip.py").write_text("def rows():\n    return 1 / 0\n\nROWS = rows()\n")
    (tmp_path / "sr_package").mkdir()
    (tmp_path / "sr_package" / "__init__.py").write_text("")
    (tmp_path / "sr_package" / "tables.py").write_text(SOURCE.format(word="packed"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in MODULES]:
        del sys.modules[name]


def test_a_workload_is_made_with_its_arguments(folder):
    made = load_workload("sr_wards:Mortality", {"folder": "/data", "seed": 3}, folder)
    assert isinstance(made, Workload)
    assert (made.word, made.folder, made.seed) == ("first", "/data", 3)
    assert str(folder) in sys.path
    assert load_workload("sr_package.tables:Mortality", {"folder": "x"}, folder).word == "packed"
    assert load_workload("sr_wards:Mortality", {"folder": "x"}).word == "first", "it is on the path now"


REFUSED = {
    "sr_wards.Mortality": ["no import path", "my_module:Mortality"],
    "sr_wards:": ["no import path"],
    "../sr_wards:Mortality": ["no import path"],
    "sr_ward:Mortality": ["no module 'sr_ward'", "sr_wards"],
    "sr_package.table:Mortality": ["no module 'sr_package.table'"],
    "sr_wards:Mortalty": ["has no Mortalty", "its workloads: Mortality"],
    "sr_package:Mortality": ["has no Mortality", "write class NAME(Workload)"],
    "sr_wards:Table": ["Table is no workload", "class Table(Workload)"],
    "sr_wards:HalfMade": ["lacks evaluate, initial_model, train"],
    "sr_broken:Mortality": ["does not import", "No module named 'no_such_library'", "sr_broken.py:3"],
    "sr_half:Mortality": ["does not import", "SyntaxError", "line 1"],
    "sr_slip:Rows": ["does not import", "ZeroDivisionError: division by zero", "sr_slip.py:2 in rows"],
}


@pytest.mark.parametrize("spec", REFUSED)
def test_a_loading_error_names_the_path_the_cause_and_the_remedy(folder, spec):
    with pytest.raises(UsageError) as refused:
        load_workload(spec, {}, folder)
    for words in (f"workload {spec!r}: ", *REFUSED[spec]):
        assert words in str(refused.value)


def test_wrong_arguments_are_told_with_what_is_taken(folder):
    for args, words in (
        ({}, "missing a required argument: 'folder'"),
        ({"folder": "x", "sede": 1}, "unexpected keyword argument 'sede'"),
    ):
        with pytest.raises(UsageError) as refused:
            load_workload("sr_wards:Mortality", args, folder)
        assert words in str(refused.value)
        assert "Mortality(folder: str, seed: int = 0)" in str(refused.value)
    with pytest.raises(UsageError, match=r"could not be made: OSError: no table in x \(.*sr_wards.py:8"):
        load_workload("sr_wards:Mortality", {"folder": "x", "seed": -1}, folder)


def test_a_module_of_the_folder_comes_first(folder, tmp_path_factory):
    load_workload("sr_wards:Mortality", {"folder": "x"}, folder)
    other = tmp_path_factory.mktemp("other")
    (other / "sr_wards.py").write_text(SOURCE.format(word="second"))
    assert load_workload("sr_wards:Mortality", {"folder": "x"}, other).word == "second"
    assert load_workload("sr_wards:Mortality", {"folder": "x"}, folder).word == "first"


def test_a_name_that_is_somebody_elses_is_refused(folder):
    (folder / "json.py").write_text(SOURCE.format(word="third"))
    with pytest.raises(UsageError, match=r"a module 'json' is loaded already, from .*; rename json.py"):
        load_workload("json:Mortality", {"folder": "x"}, folder)


def test_modules_beside_it_are_the_folders_own(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for place, word in ((folder, "one"), (other, "two")):
        (place / "sr_tables.py").write_text(f"WORD = {word!r}")
        source = SOURCE.format(word="x").replace("'x'", "WORD").replace('"x"', "WORD")
        (place / "sr_wards.py").write_text("from sr_tables import WORD\n" + source)
    for place, word in ((folder, "one"), (other, "two"), (folder, "one")):
        assert load_workload("sr_wards:Mortality", {"folder": "x"}, place).word == word


READ = """
import pickle, sys
sources, pickled = pickle.load(open(sys.argv[1], "rb"))
print(sources.install())
made = pickle.loads(pickled)
print(made.word, type(made).__module__, made.late())
"""


@pytest.mark.long
def test_a_workload_of_a_folder_is_read_in_a_process_that_lacks_the_folder(
    folder, tmp_path_factory, monkeypatch
):
    """With a module beside it, one that is imported late, and a cache that cannot be pickled by value."""
    (folder / "sr_tables.py").write_text(
        "from functools import lru_cache\n@lru_cache\ndef word(): return 'late'\n"
    )
    (folder / "notes.txt").write_text("not Python")
    (folder / "data").mkdir()
    (folder / "data" / "script.py").write_text("no package")
    source = (folder / "sr_package" / "tables.py").read_text()
    late = "    def late(self):\n        from sr_tables import word\n        return word()\n"
    (folder / "sr_package" / "tables.py").write_text(
        source.replace("    def clients", late + "    def clients")
    )
    made = load_workload("sr_package.tables:Mortality", {"folder": "x"}, folder)
    monkeypatch.chdir(folder.parent)
    sources = source_folder(made)
    assert (sources.path, sources.inside) == (str(folder), folder.name)
    assert {"sr_tables.py", "sr_package/__init__.py", "sr_package/tables.py"} < sources.files.keys()
    assert not {"notes.txt", "data/script.py"} & sources.files.keys()
    sent = tmp_path_factory.mktemp("sent") / "sent"
    sent.write_bytes(pickle.dumps((sources, pickle.dumps(made))))
    told = set()
    for where in ("here", "elsewhere", "nowhere", "nowhere"):
        if where == "elsewhere":
            folder.rename(sent.parent / folder.name)
        if where == "nowhere" and (sent.parent / folder.name).exists():
            shutil.rmtree(sent.parent / folder.name)
        done = subprocess.run(
            [sys.executable, "-c", READ, str(sent)],
            env={**os.environ, "TMPDIR": str(sent.parent)},
            cwd=sent.parent,
            capture_output=True,
            text=True,
            check=True,
        )
        place, said = done.stdout.splitlines()
        told.add(said)
        assert (place == str(folder)) == (where == "here")
        assert (place == str(sent.parent / folder.name)) == (where == "elsewhere")
    assert told == {"packed sr_package.tables late"}


def test_only_modules_of_a_jobs_folder_travel(folder, monkeypatch):
    class Mine(Workload): ...

    assert source_folder(object()) is None
    assert source_folder(Mine) is None
    made = load_workload("sr_wards:Mortality", {"folder": "x"}, folder)
    monkeypatch.setattr("scarcity_ray_client.loading.MOST_SOURCE_BYTES", 100)
    with pytest.raises(UsageError, match="more than 100 bytes of Python"):
        source_folder(made)
    monkeypatch.undo()
    gone = folder / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(UsageError, match=r"working folder was removed.*--temp-dir"):
        source_folder(made)
