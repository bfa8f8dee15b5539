"""Combine sources of predictions: read, compare by cross-fitting, choose, write; what ensemble.py does.

The output is itself a source, so that ensembles of ensembles and every later step work on it:

<out>/
    oof/                   cross-fitted out-of-fold predictions
    predictions/<name>/    of the test table: what was fitted without a fold, applied to this fold's models
    config.yaml            task, data and metric
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
from foldwise.predictions.ensembles.blending import BLENDS, BLENDS_OF_VALUES, RANK, Method, given
from foldwise.predictions.ensembles.comparing import Comparison
from foldwise.predictions.ensembles.joining import check_sources
from foldwise.predictions.ensembles.map_ensemble import MAP_BLENDS, MapEnsemble
from foldwise.predictions.ensembles.row_ensemble import RowEnsemble
from foldwise.predictions.ensembles.stacking import STACKERS
from foldwise.predictions.ground_truth import GroundTruth, read_ground_truth
from foldwise.predictions.metrics import MeanAveragePrecision, RocAuc
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import find_sources
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
    """Compare methods of combining sources, and write what the simplest good one predicts as a new source.

    Args:
        folders: two or more sources.
        out: the folder to write.
        oof, test, data, overrides: as in `find_sources` and `read_ground_truth`.
        methods: names of methods to compare, or "all"; empty: all blends. The best single source and the mean are
            always among them.
        use: the method to write whatever the scores say; None: the simplest within one standard error of the best.
        weights: one number a source, which are written whatever the scores say.
        columns: metadata columns of the table as further inputs of stacking.
        strict: score also on folds that took no part in choosing or fitting.
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
    count, least = len(set(truth.folds.tolist()) - {-1}), 3 if strict else 2
    if count < least:
        raise Refusal(f"cross-fitting {'with --strict ' if strict else ''}needs {least} folds, and there are {count}")
    chosen = choose_methods(truth, methods, use, _check_weights(weights, len(sources)), bool(columns))
    combined: RowEnsemble | MapEnsemble
    if truth.task.kind == "maps":
        combined = MapEnsemble(sources, names, truth, progress)
    else:
        combined = RowEnsemble(sources, names, truth, columns)
    comparison = combined.compare(chosen, "given" if len(weights) else use, strict, progress)
    method = chosen[comparison.chosen]
    header = Header(
        split="oof",
        task=truth.task.name,
        columns=truth.table.classes,
        run=out.name,
        folds_hash=truth.folds_hash,
        tta={"views": ["mean"], "mean": "rank" if method is RANK else "arithmetic"},  # ranks are no probabilities
        created_by="ensemble.py",
    )
    names_of_tests = sorted({source.test.name for source in sources if source.test is not None})
    inside = [Path("oof")]
    if names_of_tests:
        inside.append(Path("predictions") / (names_of_tests[0] if len(names_of_tests) == 1 else "test"))
    with new_folder(out) as folder:
        combined.write(method, folder / "oof", folder / inside[1] if names_of_tests else None, header)
        write_config(folder, {key: truth.config[key] for key in ("task", "data", "samples", "metric")})
        if truth.code.files:
            keep_code(truth.code, folder)
            trust(truth.code.digest)
        origin = [
            {"name": name, "folder": str(each.folder), "oof": str(each.oof), "test": each.test and str(each.test)}
            for name, each in zip(names, sources, strict=True)
        ]
        write_json(folder / "ensemble.json", {"sources": origin, **comparison.as_json()})
        if report is not None:
            report(folder / "report.html", out.name, comparison)
    return comparison, [out / path for path in inside]


def choose_methods(
    truth: GroundTruth, names: Sequence[str], use: str | None, weights: np.ndarray | None, metadata: bool
) -> list[Method]:
    """The methods to compare, the simplest first.

    Raises:
        Refusal: a name that does not exist, or that this task or metric cannot have.
    """
    maps = truth.task.kind == "maps"
    possible: tuple[Method, ...] = MAP_BLENDS if maps else BLENDS_OF_VALUES
    if truth.task.probabilities and not maps:
        possible = tuple(method for method in (*BLENDS, *STACKERS) if method is not RANK or _can_rank(truth))
    if weights is not None:
        if names or use:
            raise Refusal("--weights are written as they are: leave out --methods and --use")
        return [*possible[:2], given(weights)]
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
        possible_here = set(stackers) & set(every)
        advice = f"name one with --methods ({', '.join(stackers)}, or all)"
        raise Refusal(
            f"--columns are inputs of stacking: {advice if possible_here else f'and {truth.task.name} has none'}"
        )
    return [method for method in possible if method.name in wanted]


def _can_rank(truth: GroundTruth) -> bool:
    """Ranks of three or more exclusive classes cannot sum to 1, as predictions do, and keep their order."""
    several = truth.task.exclusive and len(truth.table.classes) > 2
    return isinstance(truth.metric, RocAuc | MeanAveragePrecision) and not several


def _check_weights(weights: Sequence[float], sources: int) -> np.ndarray | None:
    """(M,) with sum 1; None where there are none."""
    values = np.array(weights, np.float64)
    if not len(values):
        return None
    if len(values) != sources or not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise Refusal(f"--weights needs {sources} numbers of 0 or more, one a source, and not all 0")
    return values / values.sum()
