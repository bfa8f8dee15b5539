"""Sources of predictions: a run, an ensemble, or any folder with this layout.

<source>/
    oof/                   out-of-fold predictions
    predictions/<name>/    test predictions, such as test-d4; out-of-fold predictions with other TTA, such as oof-d4;
                           gold: of the gold rows, by train.py
    config.yaml            data and metric (runs and ensembles)
    outputs/<name>/        one more source for each further output of a run
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from foldwise.errors import Refusal
from foldwise.predictions.schema import HEADER
from foldwise.predictions.store import read_header
from foldwise.shell import command
from foldwise.tasks.outputs import FOLDER, Output

T = TypeVar("T")
GOLD_FOLDER = "gold"


def output_folder(run: Path, output: Output) -> Path:
    """Return the source of an output: the run for the main output, `<run>/outputs/<name>` for others."""
    return run / FOLDER / output.name if output.name else run


def source_name(run: Path, output: Output) -> str:
    """Name an output's source, as recorded in its predictions."""
    return f"{run.name}-{output.name}" if output.name else run.name


@dataclass(frozen=True)
class Source:
    """The out-of-fold predictions of a source, and its test predictions if any."""

    folder: Path
    oof: Path
    test: Path | None

    @property
    def name(self) -> str:
        return self.folder.resolve().name


def find_sources(folders: Sequence[Path], oof: str = "oof", test: str | None = None) -> list[Source]:
    """Find the predictions of each source; refuse duplicate folders, and missing or ambiguous predictions.

    Args:
        oof: "oof", or the name of out-of-fold predictions in `predictions/`, for example oof-d4.
        test: a name in `predictions/`; None takes the only test predictions but gold, if there are any.
    """
    return _find_each(folders, lambda folder: Source(folder, _find_oof(folder, oof), _find_test(folder, test)))


def find_predictions(paths: Sequence[Path], oof: str, test: str | None, labelled: bool) -> list[Path]:
    """Find the prediction folder of each path, a prediction folder or a source; refusals as `find_sources`.

    Args:
        labelled: find test predictions, to score on a labelled table, instead of out-of-fold predictions.
    """

    def find(path: Path) -> Path:
        folder: Path | None = path
        if not (path / HEADER).is_file():
            folder = _find_test(path, test) if labelled else _find_oof(path, oof)
        if folder is None:
            raise Refusal(f"{path} has no test predictions")
        if not labelled and read_header(folder).split == "test":
            raise Refusal(f"{folder} has test predictions: name a labelled table with --table <file>")
        return folder

    return _find_each(paths, find)


def _find_each(paths: Sequence[Path], find: Callable[[Path], T]) -> list[T]:
    """Call `find` on each path; raise all problems as one Refusal."""
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
        fix = (
            "train.py makes them"
            if oof == "oof"
            else f"make them: {command('python', 'predict.py', source)} --oof --tta <name>"
        )
        raise Refusal(f"{source} has no out-of-fold predictions {path.relative_to(source)}; {fix}")
    return path


def _find_test(source: Path, test: str | None) -> Path | None:
    folders = sorted(path.parent for path in (source / "predictions").glob(f"*/{HEADER}"))
    found = {folder.name: folder for folder in folders if read_header(folder).split == "test"}
    if test is None:
        found.pop(GOLD_FOLDER, None)
        if len(found) > 1:
            raise Refusal(f"{source} has several test predictions: choose with --test {' or --test '.join(found)}")
        return next(iter(found.values()), None)
    chosen = source / "predictions" / test
    if not (chosen / HEADER).is_file():
        others = f"; there are {', '.join(found)}" if found else ""
        others = ": train.py makes them of a table with data.columns.gold" if test == GOLD_FOLDER else others
        raise Refusal(f"{source} has no predictions called {test}{others}")
    return chosen
