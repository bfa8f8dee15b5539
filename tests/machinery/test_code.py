"""The owner's code: what a run reaches of it, which edits count, and importing a run's copy."""

import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from foldwise.bundle.contents import find_imports
from foldwise.code import alias as aliases
from foldwise.code.alias import check_covered, open_code
from foldwise.code.build import make, resolve, resolve_strict
from foldwise.code.imports import collect_code
from foldwise.code.source import Code, is_trusted, read_code, require_trust, trust, trust_all, write_code
from foldwise.errors import Refusal
from foldwise.files import new_folder

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def alone(tmp_path, monkeypatch):
    """A working folder and a state of its own; what is opened in a test is forgotten after it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FOLDWISE_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FOLDWISE_TRUSTED", "")
    monkeypatch.delenv("FOLDWISE_TRUST_CODE", raising=False)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield
    aliases._opened.clear()
    for name in [name for name in sys.modules if name.startswith("solution")]:
        del sys.modules[name]


def write(files, root=Path()):
    """Files by their paths in `solution/`, without ".py"."""
    for name, text in files.items():
        path = root / "solution" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return root


def collected(*targets):
    return sorted(name.removeprefix("solution/") for name in collect_code(targets, Path()).files)


# What is reached


def test_every_kind_of_import_is_followed():
    write(
        {
            "__init__": "",
            "module": "import solution.a\nimport solution.b as x\nfrom solution.c import f\nfrom . import d\nM = 1",
            "a": "def f():\n    from .pack.e import g\n    return g",
            "b": "try:\n    from solution.pack import h\nexcept ImportError:\n    h = None",
            "c": "from solution import module  # a cycle\nf = 1",
            "d": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import solution.types_only\n",
            "pack/__init__": "from ..up import u",
            "pack/e": "g = 1",
            "pack/h": "",
            "pack/unused": "",
            "up": "u = 1",
            "types_only": "",
            "unused": "import nowhere",
        }
    )
    assert collected("solution.module.M", "foldwise.models.losses.Dice") == [
        *("__init__.py", "a.py", "b.py", "c.py", "d.py", "module.py"),
        *("pack/__init__.py", "pack/e.py", "pack/h.py", "up.py"),
    ]
    assert collected("solution.pack.e:g") == ["__init__.py", "pack/__init__.py", "pack/e.py", "up.py"]
    assert collected() == []


def test_a_folder_without_init_is_a_package_and_nothing_is_executed():
    write({"a": "raise SystemExit\nfrom solution.pack.b import f\nA = 1", "pack/b": "f = 1 / 0"})
    assert collected("solution.a.A") == ["a.py", "pack/b.py"]


def test_a_file_that_imports_by_strings_reaches_everything():
    write({"a": "import importlib\nA = importlib.import_module('.b', __package__)", "b": "", "pack/c": ""})
    assert collected("solution.a.A") == ["a.py", "b.py", "pack/c.py"]


def test_hash_is_of_names_and_contents():
    write({"a": "A = 1"})
    first = collect_code(["solution.a.A"], Path())
    assert len(first.hash) == 8 and first.alias == f"solution_{first.hash}" and first.digest.startswith(first.hash)
    assert Code({"solution/b.py": first.files["solution/a.py"]}, Path()).hash != first.hash
    assert Code({"solution/a.py": b"A = 2"}, Path()).hash != first.hash
    write({"unreached": "B = 1"})
    assert collect_code(["solution.a.A"], Path()).hash == first.hash


def test_all_that_is_wrong_is_listed_with_file_and_line():
    write(
        {
            "module": "import os\nfrom solution.losses import dcie\nimport solution.netwroks\nclass Module: ...",
            "losses": "def dice(): ...\nfrom . import missing",
            "networks": "from .. import above\nimport helpers\nfrom .broken import x",
            "broken": "x = 1\nx = (",
            "fine": "from .networks import Network\ntry:\n    from . import optional\nexcept ImportError: ...\nF = 1",
            "text": b"# -*- coding: utf-8 -*-\nx = '\xff'",
            "null": b"x = 1\0",
        }
    )
    Path("helpers.py").touch()
    targets = ["Modul", "Module"]
    names = [f"solution.module.{name}" for name in targets]
    names += ["solution.fine:F", "solution.text.x", "solution.null.x", "solution.modul.Module", "solution.module"]
    with pytest.raises(Refusal) as refusal:
        collect_code(names, Path())
    lines = str(refusal.value).splitlines()
    expected = [
        "solution.modul.Module: there is no modul in solution/; did you mean module?",
        "solution.module is a module; name what is in it, as solution.module.Name",
        "solution.module.Modul: there is no Modul in solution/module.py; did you mean Module?",
        "solution/broken.py, line 2: '(' was never closed",
        "solution/fine.py, line 1: there is no Network in solution/networks.py",
        "solution/losses.py, line 2: there is no missing in solution/",
        "solution/module.py, line 2: there is no dcie in solution/losses.py; did you mean dice?",
        "solution/module.py, line 3: there is no netwroks in solution/; did you mean networks?",
        "solution/networks.py, line 1: a relative import cannot leave solution/",
        "solution/networks.py, line 2: helpers lies beside solution/, and a run would not keep it; move it to "
        "solution/helpers",
    ]
    assert [line for line in lines if line in expected] == expected
    assert [line for line in lines if line not in expected and "text.py" not in line and "null.py" not in line] == []
    assert len(lines) == len(expected) + 2


def test_without_a_solution_folder():
    with pytest.raises(Refusal, match=r"solution\.a\.A: there is no folder solution/ in /"):
        collect_code(["solution.a.A"], Path())


def test_names_known_only_at_run_time_are_accepted():
    write({"a": "from torch.nn import *", "b": "def __getattr__(name): ...", "c": "if x:\n    for C in y: ..."})
    assert collected("solution.a.Linear", "solution.b.B", "solution.c.C") == ["a.py", "b.py", "c.py"]


def test_a_bundle_has_what_the_code_of_its_runs_needs():
    script, runs = (
        Path("infer.py"),
        {"a": "import torch", "b": "def f():\n    import scipy.ndimage\n    from . import c"},
    )
    script.write_text("import numpy\ndef f():\n    import pandas\nfrom foldwise import errors\n")
    codes = [
        Code({f"solution/{name}.py": f"{text}\nimport foldwise.files".encode()}, Path()) for name, text in runs.items()
    ]
    files, needs = find_imports(script, ROOT, codes=codes)
    assert {"errors.py", "files.py"} <= {path.name for path in files}
    assert needs == ["numpy", "scipy", "torch"]


# Importing a run's copy

SAMPLES = """
import solution.tables
import solution.tables as t
import os, solution
from solution.tables import scale
from . import tables


class Reader:
    def read(self, x):
        from solution.pack.inner import shift
        import solution.pack.inner
        assert solution.pack.inner.shift is shift
        assert solution.tables is t is tables and scale is t.scale
        return shift(scale * x)

    def fail(self):
        return 1 / 0
"""
FILES = {
    "samples": SAMPLES,
    "tables": "scale = 2",
    "pack/inner": "from ..tables import scale\ndef shift(x): return x + 1",
}


def make_run(folder, files=FILES):
    """The copy of a run that was made here."""
    code = Code({f"solution/{name}.py": text.encode() for name, text in files.items()}, Path())
    write_code(code, folder / "code")
    trust(code.digest)
    return folder / "code"


def test_two_versions_side_by_side(tmp_path):
    write({"samples": "raise SystemExit", "tables": "raise SystemExit"})  # the working copy takes no part
    first = open_code(make_run(tmp_path / "first"))
    second = open_code(make_run(tmp_path / "second", FILES | {"tables": "scale = 30"}))
    assert first != second and first == open_code(tmp_path / "first" / "code")
    readers = [resolve("solution.samples.Reader", alias)() for alias in (first, second)]
    assert [reader.read(5) for reader in readers] == [11, 151]
    assert type(readers[0]).__module__ == f"{first}.samples"
    assert type(pickle.loads(pickle.dumps(readers[1]))) is type(readers[1])  # noqa: S301
    assert "solution" not in sys.modules
    check_covered(first)


def test_tracebacks_show_the_owners_line(tmp_path):
    reader = resolve("solution.samples.Reader", open_code(make_run(tmp_path / "run")))()
    try:
        reader.fail()
    except ZeroDivisionError:
        text = traceback.format_exc()
    line = 1 + SAMPLES.splitlines().index("        return 1 / 0")
    assert f'{tmp_path}/run/code/solution/samples.py", line {line}, in fail' in text and "return 1 / 0" in text


def test_nothing_is_written_and_nothing_else_is_found(tmp_path):
    folder = make_run(tmp_path / "run")
    alias = open_code(folder)
    (folder / "solution" / "later.py").touch()
    resolve("solution.samples.Reader", alias)
    assert not list(folder.rglob("__pycache__"))
    with pytest.raises(ModuleNotFoundError):
        __import__(f"{alias}.later")
    with pytest.raises(ModuleNotFoundError):
        __import__("solution_00000000")


def test_code_in_memory_shows_the_files_that_it_was_read_from(tmp_path):
    write({"samples": "def f():\n    raise KeyError"})
    code = collect_code(["solution.samples.f"], tmp_path)
    function = resolve("solution.samples.f", open_code(code))
    with pytest.raises(KeyError) as error:
        function()
    assert str(error.traceback[-1].path) == str(tmp_path / "solution" / "samples.py")
    check_covered(code.alias)


def test_modules_of_the_working_copy_are_refused(tmp_path, monkeypatch):
    write({"__init__": "", "plain": "", "other": ""})
    alias = open_code(make_run(tmp_path / "run", {"a": "import importlib\nimportlib.import_module('solution.plain')"}))
    monkeypatch.syspath_prepend(tmp_path)
    resolve("solution.a.importlib", alias)
    with pytest.raises(
        Refusal, match=rf"solution, solution\.plain was imported .* not from the run's copy \({tmp_path}/run"
    ):
        check_covered(alias)
    for name in ("solution", "solution.plain"):
        del sys.modules[name]
    check_covered(alias)
    monkeypatch.syspath_prepend(tmp_path / "solution")
    __import__("other")
    with pytest.raises(Refusal, match="other was imported from the working copy"):
        check_covered(None)
    del sys.modules["other"]


SCRIPT = """
import multiprocessing, os, sys
from pathlib import Path
from foldwise.code.alias import open_code
from foldwise.code.build import resolve


def work(reader, queue):
    queue.put((type(reader).__module__, reader.read(5)))
    queue.put((os.path.basename(__file__), "solution" in sys.modules))


if __name__ == "__main__":
    method, first, second = sys.argv[1:]
    context = multiprocessing.get_context(method)
    if method == "forkserver":  # it runs since before the code was opened
        from multiprocessing.forkserver import ensure_running
        ensure_running()
    for folder in (first, second):
        alias = open_code(Path(folder))
        queue = context.Queue()
        reader = resolve("solution.samples.Reader", alias)()
        process = context.Process(target=work, args=(reader, queue))
        process.start()
        assert queue.get(timeout=60) == (f"{alias}.samples", reader.read(5))
        assert queue.get(timeout=60) == ("main.py", False)
        process.join()
        assert not process.exitcode
    print("fine")
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_objects_reach_processes_in_whichever_way_they_start(tmp_path, method):
    folders = [make_run(tmp_path / "first"), make_run(tmp_path / "second", FILES | {"tables": "scale = 30"})]
    for path in [*folders[0].rglob("*"), folders[0]]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    write({"samples": "raise SystemExit"})
    Path("main.py").write_text(SCRIPT)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "main.py", method, *map(str, folders)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_other_code_with_the_same_digits_is_not_mistaken_for_it(tmp_path):
    folder = make_run(tmp_path / "run")
    code = read_code(folder)
    aliases._opened[code.alias] = Code({"solution/evil.py": b""}, tmp_path)
    with pytest.raises(Refusal, match="has the hash of other code"):
        open_code(folder)


def test_a_process_refuses_code_that_was_changed_meanwhile(tmp_path):
    folder = make_run(tmp_path / "run")
    alias = open_code(folder)
    aliases._opened.clear()  # as in a process that was started by this one
    (folder / "solution" / "tables.py").write_text("scale = 3")
    with pytest.raises(Refusal, match=r"run/code/solution was changed while it was in use"):
        __import__(f"{alias}.tables")


# Trust and files


def test_only_code_from_here_is_imported(tmp_path, monkeypatch):
    code = Code({f"solution/{name}.py": text.encode() for name, text in FILES.items()}, Path())
    write_code(code, tmp_path / "gift" / "code")
    message = (
        r"^gift arrived with code of its own \(3 files in gift/code/solution\): look at it, then add --trust-code$"
    )
    with pytest.raises(Refusal, match=message):
        open_code(tmp_path / "gift" / "code")
    assert not any(code.alias in entry for entry in sys.path)
    trust(code.digest)
    trust(code.digest)
    monkeypatch.setenv("FOLDWISE_TRUSTED", "")  # as in another process
    assert (tmp_path / "state" / "trusted").read_text() == f"{code.digest}\n"
    assert is_trusted(code.digest) and not is_trusted(code.digest[:8])
    open_code(tmp_path / "gift" / "code")
    (tmp_path / "gift" / "code" / "solution" / "tables.py").write_text("scale = 3")
    with pytest.raises(Refusal, match="arrived with code"):
        require_trust(read_code(tmp_path / "gift" / "code"))
    monkeypatch.setenv("FOLDWISE_TRUST_CODE", "0")
    trust_all()
    trust("c" * 64)  # what is made meanwhile is trusted later, too
    assert "c" * 64 in (tmp_path / "state" / "trusted").read_text()
    require_trust(read_code(tmp_path / "gift" / "code"))


def test_several_processes_trust_at_once(tmp_path):
    digests = [[f"{process}{number:063d}" for number in range(50)] for process in range(4)]
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=lambda own=own: [trust(digest) for digest in own]) for own in digests]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    lines = (tmp_path / "state" / "trusted").read_text().splitlines()
    assert sorted(lines) == sorted(digest for own in digests for digest in own)


def test_trust_without_a_home_lasts_as_long_as_the_process(tmp_path, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv("FOLDWISE_STATE", str(tmp_path / "file"))
    trust("a" * 64)
    assert is_trusted("a" * 64) and not is_trusted("b" * 64)
    assert os.environ["FOLDWISE_TRUSTED"].split() == ["a" * 64]


def test_the_state_is_where_users_keep_theirs(tmp_path, monkeypatch):
    monkeypatch.delenv("FOLDWISE_STATE")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    trust("a" * 64)
    assert (tmp_path / "xdg" / "foldwise" / "trusted").read_text() == "a" * 64 + "\n"
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    trust("b" * 64)
    assert (tmp_path / "home" / ".local" / "state" / "foldwise" / "trusted").exists()


def test_code_is_written_once(tmp_path, monkeypatch):
    write(FILES)
    code = collect_code(["solution.samples.Reader"], tmp_path)
    write_code(code, tmp_path / "run")
    write_code(code, tmp_path / "run")
    assert read_code(tmp_path / "run").files == code.files
    other = Code({"solution/a.py": b""}, tmp_path)
    with pytest.raises(Refusal, match="other code than"):
        write_code(other, tmp_path / "run")

    def new_folder_too_late(folder):
        monkeypatch.undo()
        write_code(code, folder)  # what another process does now
        return new_folder(folder)

    monkeypatch.setattr("foldwise.code.source.new_folder", new_folder_too_late)
    write_code(code, tmp_path / "again")
    assert read_code(tmp_path / "again").files == code.files
    with pytest.raises(Refusal, match="there is no code in"):
        read_code(tmp_path / "nothing")


# From a name to an object

BUILD = """
from foldwise.errors import Refusal
from foldwise.code.source import Code

class Loss:
    def __init__(self, weight=1.0, *, parts=()):
        if weight < 0:
            raise ValueError("negative")
        if weight > 9:
            raise Refusal("weight is too large")
        self.weight, self.parts = weight, parts

    @classmethod
    def heavy(cls):
        return cls(3)

class Needy(Loss):
    def __init__(self, a, b): ...

def anything(**arguments):
    return arguments

number = 3
"""


@pytest.fixture
def built(tmp_path):
    return open_code(make_run(tmp_path / "run", {"build": BUILD, "pack/bad": "import nowhere"}))


def test_resolve(built):
    loss = resolve("solution.build.Loss", built)
    assert loss is resolve("solution.build:Loss", built) and loss.__module__ == f"{built}.build"
    assert resolve("solution.build.Loss.heavy", built)().weight == 3
    assert resolve("pathlib:Path.cwd") == Path.cwd and resolve("collections.abc.Mapping").__name__ == "Mapping"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "solution.build.Los",
            r"loss\._target_: solution\.build\.Los: there is no Los in solution\.build; did you mean Loss\?",
        ),
        ("solution.biuld.Loss", r"there is no biuld in solution"),
        ("solution.build:Loss.hevy", "there is no hevy in Loss; did you mean heavy"),
        ("solution.build.Loss:heavy", r"there is no Loss in solution\.build"),
        ("nowhere.Loss", "there is no package nowhere; is it installed"),
        ("Loss", "'Loss' is not of the form package.module.Name"),
        ("a..b", "is not of the form"),
        (3, "3 is not of the form"),
    ],
)
def test_what_cannot_be_resolved_is_named_with_its_setting(built, target, message):
    with pytest.raises(Refusal, match=message):
        resolve(target, built, "loss._target_")


def test_errors_of_the_owners_imports_are_bugs(built):
    with pytest.raises(ModuleNotFoundError, match="nowhere"):
        resolve("solution.pack.bad.X", built)


def test_solution_needs_its_code():
    with pytest.raises(Refusal, match=r"solution\.build\.Loss: it needs code of solution/"):
        resolve("solution.build.Loss")


def test_loose_files_are_refused(tmp_path, monkeypatch):
    for name in ("my_loss.py", "package/__init__.py", "folder/x.py", ".venv/lib/site-packages/installed.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("class Loss: ...")
    for name in ("my_loss.Loss", "package:Loss", "folder.x.Loss"):
        first = re.split("[.:]", name)[0]
        message = rf"{name}: {first} lies beside solution/, and a run would not keep it; move it to solution/{first}"
        with pytest.raises(Refusal, match=message):
            collect_code([name], tmp_path)
    assert not collect_code(["installed.Loss", "torch.nn.Module", "foldwise.errors.Refusal"], tmp_path).files
    monkeypatch.chdir(ROOT)
    assert resolve("foldwise.errors.Refusal") is Refusal


def test_make_builds_what_is_nested(built):
    config = {
        "_target_": "solution.build.Loss",
        "parts": [{"_target_": "solution.build:Loss", "weight": 2}, {"a": (1, "b")}],
    }
    loss = make(config, built, weight=5)
    assert (loss.weight, loss.parts[0].weight, loss.parts[1]) == (5, 2, {"a": [1, "b"]})
    assert (
        make({"a": [config]}, built)["a"][0].weight == 1
        and make(None) is None
        and make("solution.build.Loss") == "solution.build.Loss"
    )
    assert make({"_target_": "solution.build.anything", "x": 1}, built, y=2) == {"x": 1, "y": 2}


def test_wrong_arguments_are_listed(built):
    config = {"a": [{"_target_": "solution.build.Loss", "wieght": 1, "zzz": 2}]}
    with pytest.raises(Refusal) as refusal:
        make(config, built, "losses")
    where = "losses.a[0]._target_: solution.build.Loss"
    assert str(refusal.value).splitlines() == [
        f"{where} has no argument wieght; did you mean weight? (it takes weight, parts)",
        f"{where} has no argument zzz (it takes weight, parts)",
    ]
    with pytest.raises(Refusal, match=r"_target_: solution\.build\.Needy needs a, b"):
        make({"_target_": "solution.build.Needy"}, built)
    with pytest.raises(Refusal, match="number is neither a class nor a function"):
        make({"_target_": "solution.build.number"}, built)


def test_what_a_constructor_raises_is_passed_on(built):
    with pytest.raises(ValueError, match="negative") as error:
        make({"_target_": "solution.build.Loss", "weight": -1}, built, "loss")
    assert error.traceback[-1].path.name == "build.py" and error.traceback[-1].name == "__init__"
    assert error.value.__notes__ == ["while solution.build.Loss was built (loss._target_)"]
    with pytest.raises(Refusal, match="^weight is too large$") as error:
        make({"_target_": "solution.build.Loss", "weight": 10}, built, "loss")
    assert not hasattr(error.value, "__notes__")


def test_values_that_a_library_refuses_are_one_line(built):
    for value in (2, "much"):
        with pytest.raises(Refusal, match=r"^model\._target_: torch\.nn\.Dropout cannot be built: [^\n]+$"):
            make({"_target_": "torch.nn.Dropout", "p": value}, built, "model")


def test_files_from_anybody_name_only_classes_of_a_base(built):
    loss = resolve("solution.build.Loss", built)
    assert resolve_strict("solution.build:Needy", built, loss) is resolve("solution.build.Needy", built)
    assert resolve_strict("foldwise.errors:ProcessFailed", None, Refusal).__name__ == "ProcessFailed"
    for target, base in [
        ("os:system", object),
        ("solution.build.Loss", loss),
        ("solution.build:Loss.heavy", object),
        ("solution.build:anything", object),
        ("solution.build:Refusal", loss),
        ("foldwise.files:Path", object),  # it is of foldwise only by an import
        ("foldwise:os", object),
        (None, object),
    ]:
        with pytest.raises(Refusal, match=r"is not of the form|is not a \w+ of foldwise or solution"):
            resolve_strict(target, built, base)
    with pytest.raises(Refusal, match="it needs code of solution/"):
        resolve_strict("solution.build:Loss", None, object)
