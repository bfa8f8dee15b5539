"""Putting sources of predictions together: read, compare by cross-fitting, choose, write; what ensemble.py does.

The output is itself a source, so that ensembles of ensembles and every later step work on it:

<out>/
    oof/                   cross-fitted out-of-fold predictions
    predictions/<name>/    of the test table: what was fitted without a fold, applied to what this fold's models say
    config.yaml            which task, data and metric it is about
    ensemble.json          sources, methods, scores, weights, verdict
    report.html
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from foldwise.code.runs import keep_code
from foldwise.code.source import trust
from foldwise.config import write_config
from foldwise.errors import Refusal
from foldwise.files import check_new, new_folder, write_json
from foldwise.predictions.ensembles.blending import BLENDS, BLENDS_OF_VALUES, MEAN, RANK, SINGLE, given
from foldwise.predictions.ensembles.comparing import Comparison
from foldwise.predictions.ensembles.examples import Method
from foldwise.predictions.ensembles.joining import check_sources
from foldwise.predictions.ensembles.map_ensemble import MAP_BLENDS, MapEnsemble
from foldwise.predictions.ensembles.row_ensemble import RowEnsemble
from foldwise.predictions.ensembles.stacking import STACKERS
from foldwise.predictions.ground_truth import GroundTruth, read_ground_truth
from foldwise.predictions.metrics import MeanAveragePrecision, RocAuc
from foldwise.predictions.sources import Source, find_sources
from foldwise.progress import Progress, silent


def ensemble(
    folders: Sequence[Path],
    out: Path,
    oof: str = "oof",
    test: str | None = None,
    data: str | None = None,
    overrides: Sequence[str] = (),
    methods: Sequence[str] = (),
    use: str | None = None,
    weights: Sequence[float] = (),
    columns: Sequence[str] = (),
    strict: bool = False,
    progress: Progress = silent,
    report: Callable[[Path, str, Comparison], None] | None = None,
) -> tuple[Comparison, list[Path]]:
    """Compare methods of putting sources together, and write what the simplest good one predicts as a new source.

    Args:
        folders: two or more sources.
        out: the folder to write.
        oof, test, data, overrides: as in `find_sources` and `read_ground_truth`.
        methods: names of methods to compare, or "all"; empty: all blends. The best single source and the mean are
            always among them.
        use: the method to write whatever the scores say; None: the simplest within one standard error of the best.
        weights: one number a source, which are written whatever the scores say.
        columns: metadata columns of the table as further inputs of a second level.
        strict: score also on folds that took no part in choosing or fitting.
        progress: is called with a text, the steps that are done, and their number.
        report: writes report.html into the new folder, of its name and the comparison.

    Returns:
        The comparison, and the prediction folders that were written.

    Raises:
        Refusal: what is wrong with the sources or the choices; nothing is written then.
    """
    check_new(out)
    sources = find_sources(folders, oof, test)
    names = check_sources(sources)
    truth = read_ground_truth(sources[0].folder, data, overrides)
    _check_folds(truth, strict)
    chosen = choose_methods(truth, methods, use, _check_weights(weights, sources), bool(columns))
    forced = "given" if len(weights) else use
    level: RowEnsemble | MapEnsemble
    if truth.task.kind == "maps":
        level = MapEnsemble(sources, names, truth)
    else:
        level = RowEnsemble(sources, names, truth, columns)
    comparison = level.compare(chosen, forced, strict, progress)
    method = chosen[comparison.chosen]
    written = [out / "oof"]
    with new_folder(out) as temporary:
        if sources[0].test is not None:
            tests = {source.test.name for source in sources if source.test is not None}
            written.append(out / "predictions" / (tests.pop() if len(tests) == 1 else "test"))
        inside = [temporary / folder.relative_to(out) for folder in written]
        level.write(method, inside[0], inside[1] if len(inside) > 1 else None, out.name)
        write_config(temporary, {key: truth.config[key] for key in ("task", "data", "samples", "metric")})
        if truth.code.files:
            keep_code(truth.code, temporary)
            trust(truth.code.digest)
        write_json(temporary / "ensemble.json", {"sources": _describe(sources, names), **comparison.as_json()})
        if report is not None:
            report(temporary / "report.html", out.name, comparison)
    return comparison, written


def choose_methods(
    truth: GroundTruth, names: Sequence[str], use: str | None, weights: np.ndarray | None, metadata: bool
) -> list[Method]:
    """The methods to compare, the simplest first.

    Raises:
        Refusal: a name that does not exist, or that this task or metric cannot have.
    """
    if weights is not None:
        if names or use:
            raise Refusal("--weights are written as they are: leave out --methods and --use")
        return [*MAP_BLENDS[:2], given(weights)] if truth.task.kind == "maps" else [SINGLE, MEAN, given(weights)]
    maps = truth.task.kind == "maps"
    possible: tuple[Method, ...] = MAP_BLENDS if maps else BLENDS_OF_VALUES
    if truth.task.probabilities and not maps:
        possible = tuple(method for method in (*BLENDS, *STACKERS) if method is not RANK or _can_rank(truth))
    every, stackers = [method.name for method in possible], [method.name for method in STACKERS]
    chosen = every if "all" in names else names or [name for name in every if name not in stackers]
    wanted = {"single", "mean", *chosen, *([use] if use else [])}
    impossible = sorted(wanted.difference(every))
    if impossible:
        reason = " Ranks are for ranking metrics, and for labels or two classes." if "rank" in impossible else ""
        raise Refusal(
            f"there is no method {', '.join(impossible)} for {truth.task.name} and {type(truth.metric).__name__}; "
            f"there are {', '.join(every)}.{reason}"
        )
    if metadata and not wanted & set(stackers):
        none = not set(stackers) & set(every)
        there = (
            f"and {truth.task.name} has none" if none else f"name one with --methods ({', '.join(stackers)}, or all)"
        )
        raise Refusal(f"--columns are inputs of a second level: {there}")
    return [method for method in possible if method.name in wanted]


def _can_rank(truth: GroundTruth) -> bool:
    """Ranks of three or more exclusive classes cannot sum to 1, as predictions do, and keep their order."""
    several = truth.task.exclusive and len(truth.table.classes) > 2
    return isinstance(truth.metric, RocAuc | MeanAveragePrecision) and not several


def _check_folds(truth: GroundTruth, strict: bool) -> None:
    count = len(set(truth.folds.tolist()) - {-1})
    least = 3 if strict else 2
    if count < least:
        raise Refusal(f"cross-fitting {'with --strict ' if strict else ''}needs {least} folds, and there are {count}")


def _check_weights(weights: Sequence[float], sources: Sequence[Source]) -> np.ndarray | None:
    """(M,) with sum 1; None where there are none."""
    values = np.array(weights, np.float64)
    if not len(values):
        return None
    if len(values) != len(sources) or not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise Refusal(f"--weights needs {len(sources)} numbers of 0 or more, one a source, and not all 0")
    return values / values.sum()


def _describe(sources: Sequence[Source], names: Sequence[str]) -> list[dict[str, str | None]]:
    return [
        {
            "name": name,
            "folder": str(source.folder),
            "oof": str(source.oof),
            "test": None if source.test is None else str(source.test),
        }
        for name, source in zip(names, sources, strict=True)
    ]
