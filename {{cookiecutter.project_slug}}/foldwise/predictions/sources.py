"""Sources of predictions: a run, an ensemble, or a folder of somebody else's with the same shape.

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
    """The name of an output's source, as predictions of it record."""
    return f"{run.name}-{output.name}" if output.name else run.name


@dataclass(frozen=True)
class Source:
    """The out-of-fold predictions of a source, and its test predictions where it has some."""

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
    return _find_each(folders, lambda folder: Source(folder, _find_oof(folder, oof), _find_test(folder, test)))


def find_predictions(paths: Sequence[Path], oof: str, test: str | None, labelled: bool) -> list[Path]:
    """The prediction folder that each path means: itself, or one in a source; refusals as `find_sources`.

    Args:
        labelled: look for predictions of split test, to compare with a labelled table, instead of out-of-fold ones.
    """

    def find(path: Path) -> Path:
        folder: Path | None = path
        if not (path / HEADER).is_file():
            folder = _find_test(path, test) if labelled else _find_oof(path, oof)
        if folder is None:
            raise Refusal(f"{path} has no test predictions")
        if not labelled and read_header(folder).split == "test":
            raise Refusal(f"{folder} has test predictions: name the table that has the ground truth with --table")
        return folder

    return _find_each(paths, find)


def _find_each(paths: Sequence[Path], find: Callable[[Path], T]) -> list[T]:
    """What is found for each path; the problems of all are one Refusal."""
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


def _find_oof(source: Path, oof: str) -> Path:
    path = source / "oof" if oof == "oof" else source / "predictions" / oof
    if not (path / HEADER).is_file():
        fix = "train.py makes them" if oof == "oof" else f"python predict.py {source} --oof --tta <name> makes such"
        raise Refusal(f"{source} has no out-of-fold predictions {path.relative_to(source)}; {fix}")
    return path


def _find_test(source: Path, test: str | None) -> Path | None:
    """The test predictions of a source, None where there are none."""
    folders = sorted(path.parent for path in (source / "predictions").glob(f"*/{HEADER}"))
    found = {folder.name: folder for folder in folders if read_header(folder).split == "test"}
    if test is None:
        if len(found) > 1:
            raise Refusal(f"{source} has several test predictions: choose with --test {' or --test '.join(found)}")
        return next(iter(found.values()), None)
    chosen = source / "predictions" / test
    if not (chosen / HEADER).is_file():
        others = f"; there are {', '.join(found)}" if found else ""
        raise Refusal(f"{source} has no predictions called {test}{others}")
    return chosen
