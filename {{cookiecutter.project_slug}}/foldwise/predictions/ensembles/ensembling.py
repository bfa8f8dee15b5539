"""Combine sources: read, cross-fit and compare methods, choose one, write its predictions.

The output is itself a source, for later steps and for ensembles of ensembles:

<out>/
    oof/                   cross-fitted out-of-fold predictions
    predictions/<name>/    test predictions: for each fold's models, the method fitted without that fold
    config.yaml            task, data and metric
    ensemble.json          sources, methods, scores, weights, verdict
    stack.json, stack.safetensors    of stacking: the fitted models, see `stack`
    fusion.json            of boxes: weights, score floors and IoU for each fold
    report.html
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from foldwise.code.runs import keep_code
from foldwise.code.source import trust
from foldwise.config import write_config
from foldwise.errors import Refusal
from foldwise.files import check_new, new_folder, write_json
from foldwise.predictions.ensembles.blending import BLENDS, BLENDS_OF_VALUES, RANK, Method, given
from foldwise.predictions.ensembles.box_ensemble import BOX_FUSIONS, BoxEnsemble
from foldwise.predictions.ensembles.comparing import Comparison
from foldwise.predictions.ensembles.features import read_features
from foldwise.predictions.ensembles.joining import check_sources
from foldwise.predictions.ensembles.map_ensemble import MAP_BLENDS, MapEnsemble
from foldwise.predictions.ensembles.metadata import read_metadata
from foldwise.predictions.ensembles.row_ensemble import RowEnsemble
from foldwise.predictions.ensembles.stacking import STACKERS, STACKERS_OF_VALUES
from foldwise.predictions.ensembles.vector_ensemble import VectorEnsemble
from foldwise.predictions.ground_truth import GroundTruth, read_ground_truth
from foldwise.predictions.metrics import MeanAveragePrecision, RocAuc
from foldwise.predictions.schema import Header
from foldwise.predictions.sources import find_sources
from foldwise.progress import Progress, silent

STACKING = [method.name for method in STACKERS]


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
    features: Sequence[Path] = (),
    relative_to: str | None = None,
    unit_inputs: int = 0,
    strict: bool = False,
    progress: Progress = silent,
    report: Callable[[Path, str, Comparison], None] | None = None,
) -> tuple[Comparison, list[Path]]:
    """Compare methods of combining sources, and write the predictions of the chosen one as a new source.

    Args:
        folders: two or more sources; one is enough with further inputs of stacking.
        oof, test, data, overrides: as in `find_sources` and `read_ground_truth`.
        methods: names, or "all"; empty: all blends. The best single source and the mean are always included.
        use: the method to write; None: the simplest within one standard error of the best.
        weights: one per source, to write their weighted mean.
        columns: metadata columns, as further inputs of stacking.
        features: sources of any task, as further inputs of stacking.
        relative_to: a column; stacking also gets each input's z-score and rank within the rows of equal values.
        unit_inputs: stacking gets units, each with so many means of its pictures' sorted predictions; 0: pictures.
        strict: also score each fold with a method that was chosen and fitted without it.
        report: called with the path of report.html, the ensemble's name and the comparison.

    Returns:
        The comparison, and the prediction folders that were written; nothing is written on a Refusal.
    """
    check_new(out)
    sources = find_sources(folders, oof, test)
    names = check_sources(sources, least=1 if columns or features or unit_inputs else 2)
    truth = read_ground_truth(sources[0].folder, data, overrides)
    count, least = len(truth.scored_folds), 3 if strict else 2
    if count < least:
        raise Refusal(
            f"cross-fitting {'with --strict ' if strict else ''}needs {least} folds, and there are only {count}"
        )
    stacked = {"columns": columns, "features": features, "relative-to": relative_to, "unit-inputs": unit_inputs}
    options = [f"--{name}" for name, value in stacked.items() if value]
    chosen = choose_methods(truth, methods, use, _check_weights(weights, len(sources)), options)
    inputs = {"chunks": unit_inputs, "relative": relative_to is not None}
    chosen = [replace(each, fit=partial(each.fit, **inputs)) if each.name in STACKING else each for each in chosen]
    combined: RowEnsemble | MapEnsemble
    if truth.task.kind == "maps":
        combined = MapEnsemble(sources, names, truth, progress)
    elif truth.task.kind == "vectors":
        combined = VectorEnsemble(sources, names, truth, progress)
    elif truth.task.kind == "boxes":
        combined = BoxEnsemble(sources, names, truth, progress)
    else:
        metadata = partial(read_metadata, truth, columns, relative_to, bool(unit_inputs))
        combined = RowEnsemble(sources, names, truth, metadata, partial(read_features, features, truth, oof, test))
    comparison = combined.compare(chosen, "given" if len(weights) else use, strict, progress)
    method = chosen[comparison.chosen]
    header = Header(
        split="oof",
        task=truth.task.name,
        columns=truth.table.classes,
        run=out.name,
        folds_hash=truth.folds_hash,
        tta={"views": ["mean"], "mean": "rank" if method is RANK else "arithmetic"},  # mean ranks are not probabilities
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
        more = [{"folder": str(each.folder), "oof": str(each.oof)} for each in find_sources(features, oof, test)]
        described = {"sources": origin, "features": more, **comparison.as_json()}
        write_json(folder / "ensemble.json", described)
        if report is not None:
            report(folder / "report.html", out.name, comparison)
    return comparison, [out / path for path in inside]


def choose_methods(
    truth: GroundTruth, names: Sequence[str], use: str | None, weights: np.ndarray | None, inputs: Sequence[str]
) -> list[Method]:
    """Select the methods to compare, simplest first; refuse those that do not suit the task or the metric.

    Args:
        inputs: options that only stacking uses.
    """
    possible: tuple[Method, ...]
    if truth.task.kind == "maps":
        possible = MAP_BLENDS[truth.task.exclusive]
    elif truth.task.kind == "vectors":
        possible = MAP_BLENDS[True][:2]
    elif truth.task.kind == "boxes":
        possible = BOX_FUSIONS
    elif truth.task.probabilities:
        possible = tuple(method for method in (*BLENDS, *STACKERS) if method is not RANK or _can_rank(truth))
    else:
        possible = (*BLENDS_OF_VALUES, *STACKERS_OF_VALUES)
    if weights is not None:
        if names or use:
            raise Refusal("--weights replaces --methods and --use: leave those out")
        return [*possible[:2], given(weights)]
    available = [method.name for method in possible]
    chosen = available if "all" in names else names or [name for name in available if name not in STACKING]
    selected = {"single", "mean", *chosen, *([use] if use else [])}
    impossible = sorted(selected.difference(available))
    if impossible:
        reason = " Ranks need a ranking metric, and labels or two classes." if "rank" in impossible else ""
        raise Refusal(
            f"there is no method {', '.join(impossible)} for {truth.task.name} and {truth.metric.name}; "
            f"there are {', '.join(available)}.{reason}"
        )
    if inputs and not selected & set(STACKING):
        here = [name for name in STACKING if name in available]
        advice = f"add --methods {' '.join(here)}" if here else f"{truth.task.name} has none"
        raise Refusal(f"{', '.join(inputs)} need{'s' * (len(inputs) == 1)} a stacking method: {advice}")
    return [method for method in possible if method.name in selected]


def _can_rank(truth: GroundTruth) -> bool:
    """Check for a ranking metric; ranks of three or more exclusive classes would not sum to 1."""
    several = truth.task.exclusive and len(truth.table.classes) > 2
    return isinstance(truth.metric, RocAuc | MeanAveragePrecision) and not several


def _check_weights(weights: Sequence[float], sources: int) -> np.ndarray | None:
    """Normalise weights to sum 1."""
    values = np.array(weights, np.float64)
    if not len(values):
        return None
    if len(values) != sources or not (np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0):
        raise Refusal(f"--weights needs {sources} numbers, one per source, none negative and not all 0")
    return values / values.sum()
