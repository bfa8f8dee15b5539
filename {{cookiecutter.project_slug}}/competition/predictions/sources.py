"""Where the predictions of a run lie: a run, an ensemble, or a folder of somebody else's with the same shape.

<source>/
    oof/                   the out-of-fold predictions
    predictions/<name>/    predictions of other tables, such as test-d4, and out-of-fold ones with another TTA
    config.yaml            of a run or an ensemble: which data and metric it is about
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from competition.predictions.schema import HEADER
from competition.predictions.store import read_header


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
        test: a name in `predictions/`; None takes the only ones of kind test, or none where there are none.

    Raises:
        ValueError: a folder twice, predictions that are not there, or several to choose from; every problem is listed.
    """
    problems: list[str] = []
    sources: list[Source] = []
    for folder in map(Path, folders):
        if folder.resolve() in {source.folder.resolve() for source in sources}:
            problems.append(f"{folder} is named twice")
            continue
        path = folder / "oof" if oof == "oof" else folder / "predictions" / oof
        if not (path / HEADER).is_file():
            made = (
                "train.py makes them" if oof == "oof" else f"python predict.py {folder} --oof --tta <name> makes such"
            )
            problems.append(f"{folder} has no out-of-fold predictions {path.relative_to(folder)}; {made}")
            continue
        names = test_names(folder) if test is None else [test]
        if len(names) > 1:
            problems.append(f"{folder} has several test predictions: choose with --test {' or --test '.join(names)}")
            continue
        chosen = folder / "predictions" / names[0] if names else None
        if chosen is not None and not (chosen / HEADER).is_file():
            there = f"; there are {', '.join(test_names(folder))}" if test_names(folder) else ""
            problems.append(f"{folder} has no predictions called {names[0]}{there}")
            continue
        sources.append(Source(folder, path, chosen))
    if problems:
        raise ValueError("\n".join(problems))
    return sources


def test_names(folder: Path) -> list[str]:
    """Names of the predictions of kind test in a source."""
    found = sorted(path.parent for path in (folder / "predictions").glob(f"*/{HEADER}"))
    return [path.name for path in found if read_header(path).kind == "test"]
