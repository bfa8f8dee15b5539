"""Where the predictions of a run lie: a run, an ensemble, or a folder of somebody else's with the same shape.

<source>/
    oof/                   the out-of-fold predictions
    predictions/<name>/    predictions of other tables, such as test-d4, and out-of-fold ones with another TTA
    config.yaml            of a run or an ensemble: which data and metric it is about
    outputs/<name>/        of a run with several outputs: a source of its own for each further one
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from foldwise.errors import Refusal
from foldwise.predictions.schema import HEADER
from foldwise.predictions.store import read_header
from foldwise.tasks.outputs import FOLDER, Output

T = TypeVar("T")


def output_folder(run: Path, output: Output) -> Path:
    """The source of an output: the run itself for the main one, `<run>/outputs/<name>` for others."""
    return run / FOLDER / output.name if output.name else run


def source_name(run: Path, output: Output) -> str:
    """What predictions of an output say that they were made by."""
    return f"{run.name}-{output.name}" if output.name else run.name


@dataclass(frozen=True)
class Source:
    """One contributor: its out-of-fold predictions, and those of the test table where they are asked for."""

    folder: Path
    oof: Path
    test: Path | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def find_sources(folders: Sequence[Path], oof: str = "oof", test: str | None = None) -> list[Source]:
    """The predictions in each folder.

    Args:
        folders: runs, ensembles, or folders with the same shape.
        oof: "oof", or the name of out-of-fold predictions in `predictions/`, for example oof-d4.
        test: a name in `predictions/`; None takes the only ones of split test, or none where there are none.

    Raises:
        Refusal: a folder twice, predictions that are not there, or several to choose from; every problem is listed.
    """
    return _collect(folders, lambda folder: _find_source(folder, oof, test))


def find_predictions(paths: Sequence[Path], oof: str, test: str | None, labelled: bool) -> list[Path]:
    """The prediction folder that each path means: itself, or one in a source.

    Args:
        oof: as in `find_sources`.
        test: the name of predictions of split test, to compare with a labelled table; None: the only ones.
        labelled: whether there is such a table.

    Raises:
        Refusal: predictions that are not there, twice the same, or several to choose from; all are listed.
    """
    return _collect(paths, lambda path: _find_prediction(path, oof, test, labelled))


def test_names(folder: Path) -> list[str]:
    """Names of the test predictions in a source."""
    found = sorted(path.parent for path in (folder / "predictions").glob(f"*/{HEADER}"))
    return [path.name for path in found if read_header(path).split == "test"]


def _collect(paths: Sequence[Path], find: Callable[[Path], T]) -> list[T]:
    """What is found for each path; what is wrong with all of them is one Refusal."""
    problems: list[str] = []
    found: dict[Path, T] = {}
    for path in map(Path, paths):
        if path.resolve() in found:
            problems.append(f"{path} is named twice")
            continue
        try:
            found[path.resolve()] = find(path)
        except Refusal as error:
            problems.append(str(error))
    if problems:
        raise Refusal("\n".join(problems))
    return list(found.values())


def _find_source(folder: Path, oof: str, test: str | None) -> Source:
    path = _oof_folder(folder, oof)
    if not (path / HEADER).is_file():
        made = "train.py makes them" if oof == "oof" else f"python predict.py {folder} --oof --tta <name> makes such"
        raise Refusal(f"{folder} has no out-of-fold predictions {path.relative_to(folder)}; {made}")
    return Source(folder, path, _find_test(folder, test))


def _find_prediction(path: Path, oof: str, test: str | None, labelled: bool) -> Path:
    folder: Path | None = path
    if not (path / HEADER).is_file():
        folder = _find_test(path, test) if labelled else _oof_folder(path, oof)
    if folder is None:
        raise Refusal(f"{path} has no test predictions")
    if not (folder / HEADER).is_file():
        raise Refusal(f"{path} has no predictions {folder}")
    if not labelled and read_header(folder).split == "test":
        raise Refusal(f"{folder} has test predictions: name the table that has the truth with --table")
    return folder


def _oof_folder(source: Path, oof: str) -> Path:
    return source / "oof" if oof == "oof" else source / "predictions" / oof


def _find_test(source: Path, test: str | None) -> Path | None:
    """The test predictions of a source, None where there are none."""
    there = test_names(source)
    names = there if test is None else [test]
    if len(names) > 1:
        raise Refusal(f"{source} has several test predictions: choose with --test {' or --test '.join(names)}")
    chosen = source / "predictions" / names[0] if names else None
    if chosen is not None and not (chosen / HEADER).is_file():
        others = f"; there are {', '.join(there)}" if there else ""
        raise Refusal(f"{source} has no predictions called {names[0]}{others}")
    return chosen
